"""From run folders to tables: results, runs, attempts and item_pairs.csv, curves and items.parquet (docs/columns.md).

    fit-scaling collect DIR

Reads plan.csv, each run's records and evaluations (`analysis.run_files`) and the launcher's ledger. Runs are read by a few
threads at once and written as they come, so memory does not grow with their records. The same folder gives the same bytes.
Fits nothing and judges nothing but what `analysis.exclude` says.
"""

from __future__ import annotations

import collections
import csv
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from analysis import exclude
from analysis.item_table import PAIR_COLUMNS, Answers, Key, answers_of, pair_rows
from analysis.run_files import RunFiles
from analysis.step_records import SPENT, good_steps, is_whole
from analysis.table_files import ParquetRows, only_one, replacing, table_of
from lst import records
from lst.errors import FitError

PLAN, RUNS, RESULTS, ATTEMPTS = "plan.csv", "runs.csv", "results.csv", "attempts.csv"
CURVES, ITEMS, PAIRS = "curves.parquet", "items.parquet", "item_pairs.csv"
LEDGER = Path("launch") / "ledger.jsonl"
LOCK, IMPORT_CARD = "collect.lock", "import.json"

RESULT_COLUMNS = [
    "run_id",
    "arm",
    "size",
    "branch",
    "step",
    "train_flops",
    "units",
    "text_tokens",
    "speech_tokens",
    "task",
    "direction",
    "metric",
    "value",
    "n_items",
    "score",
    "patching",
    "conditional",
    "evaluation",
    "items_id",
]
RUN_COLUMNS = [
    "run_id",
    "study",
    "kind",
    "arm",
    "size",
    "seed",
    "matching",
    "match_group",
    "state",
    "reason",
    "step",
    "steps",
    "num_params",
    "num_non_embedding_params",
    "num_params_global",
    "flops_budget",
    "planned_flops",
    "planned_spent_flops",
    "train_flops",
    "spent_flops",
    "units",
    "tokens",
    "text_tokens",
    "text_only_tokens",
    "speech_tokens",
    "skipped_steps",
    "seconds",
    "final_loss",
    "excluded",
]
ATTEMPT_COLUMNS = ["run_id", "attempt", "job_id", "submitted", "started", "ended", "state", "cause", "step", "code"]
CURVE_COLUMNS = ("step", "train_flops", "loss", "loss_text", "loss_speech", "lr", "grad_norm", "tokens")
CURVE_SCHEMA = pa.schema([("run_id", pa.string()), ("step", pa.int64())] + [(name, pa.float64()) for name in CURVE_COLUMNS[1:]])
ITEM_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("run_id", "arm", "size")]
    + [("branch", pa.int64()), ("step", pa.int64()), ("task", pa.string()), ("direction", pa.string()), ("item", pa.string())]
    + [("correct", pa.bool_()), ("scores", pa.list_(pa.float64())), ("score", pa.string()), ("conditional", pa.bool_())]
    + [("evaluation", pa.string()), ("items_id", pa.string())]
)
AHEAD = 8
"""Runs a thread that may be read before their turn to be written."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Collected:
    """The tables of a study, in memory."""

    results: pd.DataFrame
    runs: pd.DataFrame
    attempts: pd.DataFrame
    curves: pa.Table
    items: pa.Table
    pairs: pd.DataFrame
    notes: tuple[str, ...]  # what of the folders was left out, in sentences


@dataclass(frozen=True, kw_only=True)
class RunTables:
    """One run's rows of each table."""

    run: dict[str, Any]
    results: list[list[Any]]
    curves: pa.Table
    items: pa.Table
    answers: dict[Key, Answers]  # of the final checkpoint
    same: str | None  # equal for runs that have the same losses (exclude.fingerprint)
    notes: tuple[str, ...]


def read_plan(folder: Path) -> list[dict[str, Any]]:
    """The rows of plan.csv as text, a run once. Raises FitError where there is none."""
    path = folder / PLAN
    if not path.is_file():
        raise FitError(f"'{folder}' holds no {PLAN}, so it is no study; give the folder that plan-sweep wrote (out=DIR).")
    if not records.is_whole_text(path):
        raise FitError(f"'{path}' is torn (its last line has no end); plan the study again.")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except ValueError as error:  # pandas' parser errors are ValueErrors
        raise FitError(f"'{path}' is no readable table ({str(error).splitlines()[0]}); plan the study again.") from error
    missing = [name for name in ("run_id", "arm", "size") if name not in table.columns]
    if missing:
        raise FitError(f"'{path}' has no column '{missing[0]}'; plan the study again.")
    if cut := records.cut_table(folder, len(table)):
        raise FitError(f"'{path}' {cut}")
    return [{str(k): v for k, v in row.items()} for row in table.drop_duplicates("run_id").to_dict("records")]


def collect(folder: Path, *, progress: Progress | None = None) -> Collected:
    """The tables of a study, all in memory. Raises FitError where it has no plan; writes nothing."""
    plan, attempts = _read_study(folder)
    runs = list(_told(read_runs(folder, plan, attempts), len(plan), progress))
    return Collected(
        results=_frame([row for run in runs for row in run.results], RESULT_COLUMNS),
        runs=(table := _run_frame(runs)),
        pairs=_pair_frame(table, runs),
        attempts=_attempt_frame(attempts),
        curves=pa.concat_tables([CURVE_SCHEMA.empty_table(), *(run.curves for run in runs)]),
        items=pa.concat_tables([ITEM_SCHEMA.empty_table(), *(run.items for run in runs)]),
        notes=tuple(note for run in runs for note in run.notes),
    )


def collect_into(folder: Path, *, progress: Progress | None = None) -> tuple[pd.DataFrame, list[str]]:
    """Write the tables, replacing all of them at the end; runs.csv's rows, and what was left out in sentences.

    Raises FitError where the folder has no plan, or while another process collects it.
    """
    plan, attempts = _read_study(folder)
    light: list[RunTables] = []
    with (
        only_one(folder / LOCK, f"another collection of '{folder}' is running; wait until it has ended."),
        replacing(folder, RESULTS, RUNS, ATTEMPTS, CURVES, ITEMS, PAIRS) as aside,
        aside[RESULTS].open("w", encoding="utf-8", newline="") as text,
        ParquetRows(aside[CURVES], CURVE_SCHEMA) as curves,
        ParquetRows(aside[ITEMS], ITEM_SCHEMA) as items,
    ):
        results = csv.writer(text, lineterminator="\n")
        results.writerow(RESULT_COLUMNS)
        for run in _told(read_runs(folder, plan, attempts), len(plan), progress):
            results.writerows(run.results)
            curves.add(run.curves)
            items.add(run.items)
            light.append(replace(run, results=[], curves=CURVE_SCHEMA.empty_table(), items=ITEM_SCHEMA.empty_table()))
        runs = _run_frame(light)
        for name, table in ((RUNS, runs), (ATTEMPTS, _attempt_frame(attempts)), (PAIRS, _pair_frame(runs, light))):
            table.to_csv(aside[name], index=False, lineterminator="\n")
    return runs, [note for run in light for note in run.notes]


def read_runs(folder: Path, plan: list[dict[str, Any]], attempts: list[dict[str, Any]]) -> Iterator[RunTables]:
    """Each run's rows in the plan's order, read by as many threads as there are processors, a few runs ahead."""
    planned, of_run = planned_branches(plan), by_run(attempts)

    def read(row: dict[str, Any]) -> RunTables:
        return run_tables(row, run_files(folder, row, planned), of_run.get(row["run_id"], []))

    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    waiting: collections.deque[Future[RunTables]] = collections.deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for row in plan:
                waiting.append(pool.submit(read, row))
                if len(waiting) >= AHEAD * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def planned_branches(plan: list[dict[str, Any]]) -> dict[str, set[int]]:
    """run_id -> its branches that are rows of their own."""
    found: dict[str, set[int]] = {}
    for row in plan:
        if (steps := branch_of(row)) is not None:
            found.setdefault(row["parent_run_id"], set()).add(steps)
    return found


def by_run(attempts: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """run_id -> its attempts, in order."""
    found: dict[str, list[dict[str, Any]]] = {}
    for attempt in attempts:
        found.setdefault(str(attempt["run_id"]), []).append(attempt)
    return found


def run_files(folder: Path, plan: dict[str, Any], planned: dict[str, set[int]]) -> RunFiles:
    """What the study's folder holds of a row of the plan; `planned` are `planned_branches`."""
    branch = branch_of(plan)
    if branch is None:
        return RunFiles.read(folder / "runs" / plan["run_id"]).without(planned.get(plan["run_id"], set()))
    return RunFiles.read_branch(folder / "runs" / plan["parent_run_id"], branch)


def run_tables(plan: dict[str, Any], files: RunFiles, attempts: list[dict[str, Any]]) -> RunTables:
    """A run's rows of each table."""
    names = {name: plan[name] for name in ("run_id", "arm", "size")}
    good = good_steps(files.steps)
    curve = {"run_id": pa.array([plan["run_id"]] * len(good), pa.string())} | {n: good[n] for n in CURVE_COLUMNS}
    items = [{**row, **names, "item": str(row["item"]), "correct": bool(row["correct"])} for row in files.items]
    run = run_row(plan, files, attempts)
    return RunTables(
        run=run,
        results=[[{**row, **names}.get(name) for name in RESULT_COLUMNS] for row in files.evaluations],
        curves=pa.table(curve, schema=CURVE_SCHEMA),
        items=table_of(items, ITEM_SCHEMA),
        answers=answers_of(files.items, run["step"], branch_of(plan)),
        same=exclude.fingerprint(run, files.evaluations),
        notes=files.notes,
    )


def run_row(plan: dict[str, Any], files: RunFiles, attempts: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of runs.csv: planned beside spent, the state and the exclusion."""
    last, losses = files.last, good_steps(files.steps)["loss"].to_numpy()
    step = last["step"]
    state = exclude.run_state(plan, len(files.steps), files.exit, files.failure)
    reason = exclude.state_reason(state, plan, step, files.exit, files.failure) or exclude.other_kind(plan)
    evaluated = any(row["step"] == step and row.get("branch") == branch_of(plan) for row in files.evaluations)
    groups = last.get("num_params") if isinstance(last.get("num_params"), dict) else {}
    why = exclude.exclusion(state, reason, losses, step, _number(plan.get("steps")), evaluated)
    return {
        **{name: plan.get(name) for name in RUN_COLUMNS},
        **{name: last.get(name) for name in SPENT},
        "state": state,
        "reason": reason,
        "step": step,
        "num_params_global": plan.get("num_params_global") or (groups or {}).get("global"),
        "spent_flops": last.get("spent_flops") if files.exit else files.spent_flops,
        "skipped_steps": len(files.steps) - len(losses),
        "seconds": (files.exit or {}).get("seconds"),
        "final_loss": exclude.final_loss(losses),
        "excluded": why or exclude.warm_up(step, _number(plan.get("warmup_steps"))) or exclude.resumed(attempts, step),
    }


def branch_of(plan: dict[str, Any]) -> int | None:
    """The steps of a plan's row that is a branch of another's run (docs/columns.md), else None. Raises FitError on no number."""
    if plan.get("kind") != "branch":
        return None
    steps = _number(plan.get("branch"))
    if steps is None or not plan.get("parent_run_id"):
        raise FitError(f"plan.csv: run {plan['run_id']} is a branch of no run and steps; plan the study again.")
    return int(steps)


def attempt_rows(folder: Path, run_ids: set[str]) -> list[dict[str, Any]]:
    """attempts.csv from the ledger: a row a (run, attempt), in the plan's runs only."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for event in records.iter_jsonl(folder / LEDGER):
        run_id, attempt, kind = event.get("run_id"), event.get("attempt"), event.get("event")
        if run_id not in run_ids or not isinstance(attempt, int) or kind not in ("submitted", "started", "ended"):
            continue
        row = found.setdefault((str(run_id), attempt), {"run_id": run_id, "attempt": attempt})
        row[str(kind)] = event.get("time")
        row |= {name: event[name] for name in ("job_id", "state", "cause", "code") if event.get(name) not in (None, "")}
        if kind == "started" and is_whole(event.get("step")):
            row["step"] = event["step"]
    return [found[key] for key in sorted(found)]


def _read_study(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    if (folder / IMPORT_CARD).is_file():
        raise FitError(f"'{folder}' was imported, so there are no runs to collect; import its source again, or fit it as it is.")
    plan = read_plan(folder)
    return plan, attempt_rows(folder, {row["run_id"] for row in plan})


def _told(runs: Iterator[RunTables], total: int, progress: Progress | None) -> Iterator[RunTables]:
    for done, run in enumerate(runs, start=1):
        yield run
        if progress is not None:
            progress(done, total)


def _run_frame(runs: list[RunTables]) -> pd.DataFrame:
    rows = exclude.without_duplicates([run.run for run in runs], [run.same for run in runs])
    return _frame([[row.get(name) for name in RUN_COLUMNS] for row in rows], RUN_COLUMNS)


def _pair_frame(table: pd.DataFrame, runs: list[RunTables]) -> pd.DataFrame:
    known = [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]
    rows = pair_rows(known, {run.run["run_id"]: run.answers for run in runs})
    return _frame([[row.get(name) for name in PAIR_COLUMNS] for row in rows], PAIR_COLUMNS)


def _attempt_frame(attempts: list[dict[str, Any]]) -> pd.DataFrame:
    return _frame([[row.get(name) for name in ATTEMPT_COLUMNS] for row in attempts], ATTEMPT_COLUMNS)


def _frame(rows: list[list[Any]], columns: list[str]) -> pd.DataFrame:
    """Rows as a table of objects: whole numbers stay whole beside empty cells, floats keep their shortest exact text."""
    return pd.DataFrame(rows, columns=columns, dtype=object)


def _number(text: object) -> float | None:
    try:
        return float(str(text))
    except ValueError:
        return None
