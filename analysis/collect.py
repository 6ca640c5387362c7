"""From run folders to tables: results.csv, runs.csv, attempts.csv, curves.parquet, items.parquet (docs/columns.md).

    fit-scaling collect DIR

Reads plan.csv, each run's records and the launcher's ledger; tolerates torn lines, missing runs and restarts (each step, each
evaluation and each item stands once, as last written). The same folder gives the same bytes. Fits nothing and judges nothing
but what `analysis.exclude` says.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from analysis import exclude
from lst import records
from lst.errors import FitError

PLAN, RUNS, RESULTS, ATTEMPTS = "plan.csv", "runs.csv", "results.csv", "attempts.csv"
CURVES, ITEMS = "curves.parquet", "items.parquet"
LEDGER = Path("launch") / "ledger.jsonl"

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
ATTEMPT_COLUMNS = ["run_id", "attempt", "job_id", "submitted", "started", "ended", "state", "cause"]
SPENT = ("train_flops", "units", "tokens", "text_tokens", "text_only_tokens", "speech_tokens")
CURVE_SCHEMA = pa.schema(
    [("run_id", pa.string()), ("step", pa.int64())]
    + [(name, pa.float64()) for name in ["train_flops", "loss", "loss_text", "loss_speech", "lr", "grad_norm", "tokens"]]
)
ITEM_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("run_id", "arm", "size")]
    + [("branch", pa.int64()), ("step", pa.int64()), ("task", pa.string()), ("direction", pa.string()), ("item", pa.string())]
    + [("correct", pa.bool_()), ("scores", pa.list_(pa.float64()))]
)
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Collected:
    """The tables of a study, as they go to disk."""

    results: pd.DataFrame
    runs: pd.DataFrame
    attempts: pd.DataFrame
    curves: pa.Table
    items: pa.Table

    def write(self, folder: Path) -> None:
        """Each file is replaced whole."""
        for name, table in ((RESULTS, self.results), (RUNS, self.runs), (ATTEMPTS, self.attempts)):
            records.write_atomically(folder / name, table.to_csv(index=False, lineterminator="\n").encode())
        for name, table in ((CURVES, self.curves), (ITEMS, self.items)):
            buffer = io.BytesIO()
            pq.write_table(table, buffer, compression="zstd")
            records.write_atomically(folder / name, buffer.getvalue())


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """What one run's folder holds, each step and each evaluation once, in order."""

    train: list[dict[str, Any]]  # of the run's own path, skipped steps included
    evaluations: list[dict[str, Any]]  # of branches too (field `branch`)
    items: list[dict[str, Any]]  # of branches too
    spent_flops: float | None  # on all paths, as far as is recorded
    exit: dict[str, Any] | None
    failure: dict[str, Any] | None

    @classmethod
    def read(cls, folder: Path) -> RunFiles:
        """Of a run's own path."""
        steps = _once(records.iter_jsonl(folder / records.TRAIN_RECORDS), ("step",))
        return cls(
            train=_path(steps, None),
            spent_flops=max((row["spent_flops"] for row in steps if "spent_flops" in row), default=None),
            evaluations=_once(
                records.iter_jsonl(folder / records.EVAL_RECORDS), ("step", "task", "direction", "metric"), ("value",)
            ),
            items=_once(records.iter_jsonl(folder / records.ITEM_RECORDS), ("step", "task", "direction", "item"), ("correct",)),
            exit=records.read_json(folder / records.EXIT),
            failure=records.read_json(folder / records.FAILURE),
        )

    @classmethod
    def read_branch(cls, folder: Path, branch: int) -> RunFiles:
        """Of a run's branch of so many steps: the trunk up to its fork and its own records. Its tag says that it is done."""
        whole = cls.read(folder)
        tag = records.read_json(folder / records.CHECKPOINTS / f"budget-{branch}" / "tag.json")
        steps = _once(records.iter_jsonl(folder / records.TRAIN_RECORDS), ("step",))
        return cls(
            train=_path(steps, branch),
            spent_flops=0.0,
            evaluations=[row for row in whole.evaluations if row.get("branch") == branch],
            items=[row for row in whole.items if row.get("branch") == branch],
            exit=None if tag is None else tag | {"status": "done", "step": branch, "spent_flops": 0.0},
            failure=whole.failure,
        )

    @property
    def good(self) -> list[dict[str, Any]]:
        """The training records of steps that were not skipped."""
        return [row for row in self.train if "skipped" not in row]

    def without(self, branches: set[int]) -> RunFiles:
        """The same without the results of `branches`."""
        evaluations = [row for row in self.evaluations if row.get("branch") not in branches]
        return replace(self, evaluations=evaluations, items=[row for row in self.items if row.get("branch") not in branches])

    @property
    def last(self) -> dict[str, Any]:
        """What was spent: exit.json over the last training record."""
        return {**(self.train[-1] if self.train else {}), **{k: v for k, v in (self.exit or {}).items() if v is not None}}


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
    return [{str(k): v for k, v in row.items()} for row in table.drop_duplicates("run_id").to_dict("records")]


def collect(folder: Path, *, progress: Progress | None = None) -> Collected:
    """Read a study's folder. Raises FitError where it has no plan; writes nothing."""
    plan = read_plan(folder)
    results: list[dict[str, Any]] = []
    runs: list[dict[str, Any]] = []
    planned: dict[str, set[int]] = {}  # run_id -> its branches that are rows of their own
    for row in plan:
        if (steps := branch_of(row)) is not None:
            planned.setdefault(row["parent_run_id"], set()).add(steps)
    curves, items = [CURVE_SCHEMA.empty_table()], [ITEM_SCHEMA.empty_table()]
    for done, row in enumerate(plan):
        branch = branch_of(row)
        if branch is None:
            files = RunFiles.read(folder / "runs" / row["run_id"]).without(planned.get(row["run_id"], set()))
        else:
            files = RunFiles.read_branch(folder / "runs" / row["parent_run_id"], branch)
        names = {name: row[name] for name in ("run_id", "arm", "size")}
        results += [{**record, **names} for record in files.evaluations]
        runs.append(run_row(row, files))
        if files.good:
            curves.append(_columns(({**r, "run_id": row["run_id"]} for r in files.good), CURVE_SCHEMA))
        if files.items:
            cleaned = ({**r, **names, "item": str(r["item"]), "correct": bool(r["correct"])} for r in files.items)
            items.append(_columns(cleaned, ITEM_SCHEMA))
        if progress is not None:
            progress(done + 1, len(plan))
    return Collected(
        results=_frame(results, RESULT_COLUMNS),
        runs=_frame(runs, RUN_COLUMNS),
        attempts=_frame(attempt_rows(folder, {row["run_id"] for row in plan}), ATTEMPT_COLUMNS),
        curves=pa.concat_tables(curves),
        items=pa.concat_tables(items),
    )


def run_row(plan: dict[str, Any], files: RunFiles) -> dict[str, Any]:
    """One row of runs.csv: planned beside spent, the state and the exclusion."""
    last = files.last
    step = int(last.get("step", 0))
    state = exclude.run_state(plan, len(files.train), files.exit, files.failure)
    reason = exclude.state_reason(state, plan, step, files.exit, files.failure) or exclude.other_kind(plan)
    losses = [float(r["loss"]) for r in files.good]
    steps = _number(plan.get("steps"))
    evaluated = any(int(r["step"]) == step and r.get("branch") == branch_of(plan) for r in files.evaluations)
    groups = last.get("num_params") if isinstance(last.get("num_params"), dict) else {}
    return {
        **{name: plan.get(name) for name in RUN_COLUMNS},
        **{name: last.get(name) for name in SPENT},
        "state": state,
        "reason": reason,
        "step": step,
        "num_params_global": plan.get("num_params_global") or (groups or {}).get("global"),
        "spent_flops": last.get("spent_flops") if files.exit else files.spent_flops,
        "skipped_steps": len(files.train) - len(files.good),
        "seconds": (files.exit or {}).get("seconds"),
        "final_loss": exclude.final_loss(losses),
        "excluded": exclude.exclusion(state, reason, losses, step, None if steps is None else int(steps), evaluated),
    }


def branch_of(plan: dict[str, Any]) -> int | None:
    """The steps of a plan's row that is a branch of another's run (docs/columns.md), else None."""
    return int(plan["branch"]) if plan.get("kind") == "branch" else None


def _path(steps: list[dict[str, Any]], branch: int | None) -> list[dict[str, Any]]:
    """The training records on the way to the run's end, or to the branch's: the trunk's before its first step, then its own."""
    rows = [row for row in steps if "loss" in row or "skipped" in row]
    own = [row for row in rows if row.get("branch") == branch]
    if branch is None or not own:
        return own
    return [row for row in rows if row.get("branch") is None and row["step"] < own[0]["step"]] + own


def attempt_rows(folder: Path, run_ids: set[str]) -> list[dict[str, Any]]:
    """attempts.csv from the ledger: a row a (run, attempt), in the plan's runs only."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for event in records.iter_jsonl(folder / LEDGER):
        run_id, attempt, kind = event.get("run_id"), event.get("attempt"), event.get("event")
        if run_id not in run_ids or not isinstance(attempt, int) or kind not in ("submitted", "started", "ended"):
            continue
        row = found.setdefault((str(run_id), attempt), {"run_id": run_id, "attempt": attempt})
        row[str(kind)] = event.get("time")
        row |= {name: event[name] for name in ("job_id", "state", "cause") if event.get(name) not in (None, "")}
    return [found[key] for key in sorted(found)]


def _once(rows: Iterable[dict[str, Any]], key: tuple[str, ...], needed: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Rows that have all of `key` and `needed` in their types, the last of each key and branch, in the order of steps."""
    last: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        if all(name in row for name in key + needed) and all(_is_typed(name, value) for name, value in row.items()):
            last[row.get("branch"), *(row[name] for name in key)] = row
    return sorted(last.values(), key=lambda row: int(row["step"]))


def _is_typed(name: str, value: Any) -> bool:
    """Whether a record's field has its type: a damaged line may be whole JSON all the same."""
    if name in ("task", "direction", "metric", "batch_hash", "skipped", "score", "join", "patching", "group", "pair", "items_id"):
        return isinstance(value, str)
    if name == "item":
        return isinstance(value, str | int)
    if name in ("scores", "loglik_sum", "loglik_unconditional", "ending_tokens", "ending_units", "ending_bytes"):
        return isinstance(value, list) and all(isinstance(v, int | float) for v in value)
    if name in ("step", "branch"):
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, int | float)


def _columns(rows: Iterable[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    kept = list(rows)
    return pa.table([pa.array([row.get(f.name) for row in kept], f.type) for f in schema], schema=schema)


def _frame(rows: list[dict[str, Any]], columns: list[str]) -> pd.DataFrame:
    """Rows as a table of objects: whole numbers stay whole beside empty cells, floats keep their shortest exact text."""
    return pd.DataFrame([[row.get(name) for name in columns] for row in rows], columns=columns, dtype=object)


def _number(text: object) -> float | None:
    try:
        return float(str(text))
    except ValueError:
        return None
