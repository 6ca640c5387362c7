"""The rows that a run has in each table of a study: what its folder holds (`analysis.run_files`), beside its row of the plan.

Runs are read by this process, or shared by a few (`analysis.processes`). Not here: the study's tables (`analysis.collect`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from analysis import exclude
from analysis.columns import RESULT_COLUMNS, RUN_COLUMNS
from analysis.item_table import Answers, Key, answers_of
from analysis.processes import in_order
from analysis.run_files import RunFiles
from analysis.step_records import SPENT, good_steps
from analysis.table_files import table_of
from lst.errors import FitError

CURVE_COLUMNS = ("step", "train_flops", "loss", "loss_text", "loss_speech", "lr", "grad_norm", "tokens")
CURVE_SCHEMA = pa.schema([("run_id", pa.string()), ("step", pa.int64())] + [(name, pa.float64()) for name in CURVE_COLUMNS[1:]])
ITEM_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("run_id", "arm", "size")]
    + [("branch", pa.int64()), ("step", pa.int64()), ("task", pa.string()), ("direction", pa.string()), ("item", pa.string())]
    + [("correct", pa.bool_()), ("scores", pa.list_(pa.float64())), ("score", pa.string()), ("conditional", pa.bool_())]
    + [("evaluation", pa.string()), ("items_id", pa.string()), ("options", pa.string())]
)
NO_CURVES, NO_ITEMS = CURVE_SCHEMA.empty_table(), ITEM_SCHEMA.empty_table()
FEW_RUNS = 64
"""Runs that are read by a process before another one is worth its start."""


@dataclass(frozen=True, kw_only=True)
class RunTables:
    """Rows of each table, of one run or of several in the plan's order."""

    runs: list[dict[str, Any]]
    same: list[str | None]  # of each run: equal for those that have the same losses (exclude.fingerprint)
    answers: dict[str, dict[Key, Answers]]  # run_id -> those of its final checkpoint
    notes: list[str]
    results: list[list[Any]]
    curves: pa.Table
    items: pa.Table

    @property
    def nbytes(self) -> int:
        """Of the large tables."""
        return int(self.curves.nbytes + self.items.nbytes)

    def light(self) -> RunTables:
        """Without the large tables."""
        return replace(self, results=[], curves=NO_CURVES, items=NO_ITEMS)


def joined(parts: Sequence[RunTables]) -> RunTables:
    """The rows of all of them."""
    return RunTables(
        runs=[run for part in parts for run in part.runs],
        same=[same for part in parts for same in part.same],
        answers={run_id: answers for part in parts for run_id, answers in part.answers.items()},
        notes=[note for part in parts for note in part.notes],
        results=[row for part in parts for row in part.results],
        curves=pa.concat_tables([NO_CURVES, *(part.curves for part in parts)]),
        items=pa.concat_tables([NO_ITEMS, *(part.items for part in parts)]),
    )


@dataclass(frozen=True)
class Planned:
    """What is known of a run before its folder is read."""

    row: dict[str, Any]  # of plan.csv
    branches: set[int]  # of its run that are rows of their own
    attempts: list[dict[str, Any]]  # in order


def planned_runs(plan: list[dict[str, Any]], attempts: list[dict[str, Any]]) -> list[Planned]:
    """Each row of the plan; `attempts` are rows of attempts.csv."""
    branches: dict[str, set[int]] = {}
    for row in plan:
        if (steps := branch_of(row)) is not None:
            branches.setdefault(row["parent_run_id"], set()).add(steps)
    of_run: dict[str, list[dict[str, Any]]] = {}
    for attempt in attempts:
        of_run.setdefault(str(attempt["run_id"]), []).append(attempt)
    return [Planned(row, branches.get(row["run_id"], set()), of_run.get(row["run_id"], [])) for row in plan]


def read_runs(folder: Path, runs: Sequence[Planned], processes: int) -> Iterator[RunTables]:
    """The runs' rows in their order, by `processes` at most: this one alone reads them a run at a time, several by stretches."""
    processes = min(processes, len(runs) // FEW_RUNS)
    if processes > 1:
        return in_order(partial(_read, folder), runs, processes, lambda tables: tables.nbytes)
    return (run_tables(run, run_files(folder, run)) for run in runs)


def _read(folder: Path, runs: Sequence[Planned]) -> RunTables:
    tables = joined([run_tables(run, run_files(folder, run)) for run in runs])
    return replace(tables, curves=tables.curves.combine_chunks(), items=tables.items.combine_chunks())


def run_files(folder: Path, run: Planned) -> RunFiles:
    """What the study's folder holds of a run, or of a branch that is a row of its own."""
    branch = branch_of(run.row)
    if branch is None:
        return RunFiles.read(folder / "runs" / run.row["run_id"]).without(run.branches)
    return RunFiles.read_branch(folder / "runs" / run.row["parent_run_id"], branch)


def run_tables(run: Planned, files: RunFiles) -> RunTables:
    """A run's rows of each table."""
    names = {name: run.row[name] for name in ("run_id", "arm", "size")}
    good = good_steps(files.steps)
    curve = [pa.repeat(run.row["run_id"], len(good)), *(good[name] for name in CURVE_COLUMNS)]
    items = [{**row, **names, "item": str(row["item"]), "correct": bool(row["correct"])} for row in files.items]
    row = run_row(run, files)
    finite = [evaluation for evaluation in files.evaluations if math.isfinite(evaluation["value"])]
    lost = len(files.evaluations) - len(finite)
    told = [f"run {run.row['run_id']}: {lost} evaluations without a finite value were left out."] if lost else []
    return RunTables(
        runs=[row],
        same=[exclude.fingerprint(row, files.evaluations)],
        answers={run.row["run_id"]: answers_of(files.items, row["step"], branch_of(run.row))},
        notes=[*files.notes, *told],
        results=[[row.get(name) for name in RESULT_COLUMNS] for row in ({**row, **names} for row in finite)],
        curves=pa.Table.from_arrays(curve, schema=CURVE_SCHEMA),
        items=table_of(items, ITEM_SCHEMA) if items else NO_ITEMS,
    )


def run_row(run: Planned, files: RunFiles) -> dict[str, Any]:
    """One row of runs.csv: planned beside spent, the state and the exclusion."""
    plan = run.row
    last, losses = files.last, good_steps(files.steps)["loss"].to_numpy()
    step = last["step"]
    state = exclude.run_state(plan, len(files.steps), files.exit, files.failure)
    reason = exclude.state_reason(state, plan, step, files.exit, files.failure) or exclude.other_kind(plan)
    final = [row for row in files.evaluations if row["step"] == step and row.get("branch") == branch_of(plan)]
    groups = last.get("num_params") if isinstance(last.get("num_params"), dict) else {}
    why = exclude.exclusion(state, reason, losses, step, _number(plan.get("steps")), final)
    if state == exclude.DONE and not why:
        why = exclude.uncounted(last) or exclude.warm_up(step, _number(plan.get("warmup_steps")))
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
        "excluded": why or exclude.resumed(run.attempts, step),
    }


def branch_of(plan: dict[str, Any]) -> int | None:
    """The steps of a plan's row that is a branch of another's run (docs/columns.md), else None. Raises FitError on no number."""
    if plan.get("kind") != "branch":
        return None
    steps = _number(plan.get("branch"))
    if steps is None or not plan.get("parent_run_id"):
        raise FitError(f"plan.csv: run {plan['run_id']} is a branch of no run and steps; plan the study again.")
    return int(steps)


def _number(text: object) -> float | None:
    try:
        return float(str(text))
    except ValueError:
        return None
