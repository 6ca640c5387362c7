"""The planned runs as the launcher needs them: a few columns of plan.csv, and the check of a run's frozen configuration.

Not here: planning, or pandas (a worker and `status` start faster without it).
"""

from __future__ import annotations

import csv
import dataclasses
import math
import re
from dataclasses import dataclass
from pathlib import Path

from lst.config import RunConfig
from lst.errors import ConfigError, LaunchError
from lst.records import CHECKPOINTS, EVALUATION, EXIT, RUN_CONFIG, cut_table, is_whole_text, read_json

PLAN = "plan.csv"
RUNS = "runs"
ADMITTED = "admitted"
STATED = "stated:"  # how the data_id of stated statistics begins (sweeps/stated_file.py)
BRANCH, TASK, EVAL = "branch", "task", "eval"  # of the column kind
RUN_ID = re.compile(r"[0-9A-Za-z_-]{1,64}")
KEPT = re.compile(r"kept-[0-9]{1,12}")  # the folder of a run's weights after so many steps (execution.keep_steps)
NEEDED = ("run_id", "arm", "size", "steps", "planned_flops", "gpus", "est_gpu_hours", "status", "reason")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of plan.csv."""

    run_id: str  # content hash of the run's configuration
    arm: str
    size: str
    steps: int  # optimiser steps of the whole run
    gpus: int  # GPUs of the run; 0 on a CPU
    planned_flops: float  # training FLOPs
    est_minutes: float  # estimated minutes of one process; 0 = unknown
    est_gpu_hours: float  # estimated GPU-hours; 0 = unknown
    status: str  # admitted or refused
    reason: str  # why it is refused
    data_id: str = ""  # content hash of the data set; `stated:...` where there is none
    parent: str = ""  # run_id of the run whose weights it starts from, or evaluates
    kind: str = ""  # of the plan; no training: TASK, a part of a data preparation (`launch.prepare`), EVAL (`launch.evaluations`)
    after: tuple[str, ...] = ()  # of a TASK: run_ids that must be done before

    @property
    def admitted(self) -> bool:
        return self.status == ADMITTED

    def folder(self, study: Path) -> Path:
        return study / RUNS / self.run_id


def read_rows(study: Path) -> list[Row]:
    """All rows of the study's plan, in its order. Raises LaunchError where there is no plan, or one of another version."""
    path = study / PLAN
    if not path.is_file():
        raise LaunchError(f"'{study}' has no {PLAN}; plan a study there first: plan-sweep study=NAME out={study}.")
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise LaunchError(f"'{path}' is no text; plan the study again with plan-sweep.") from error
    if not is_whole_text(path):
        raise LaunchError(f"'{path}' is torn (its last line has no end); plan the study again with plan-sweep.")
    with path.open(newline="", encoding="utf-8") as file:
        table = csv.DictReader(file)
        missing = [name for name in NEEDED if name not in (table.fieldnames or ())]
        if missing:
            raise LaunchError(
                f"'{path}' lacks the columns {', '.join(missing)}: it was written by another version; "
                "plan the study again with plan-sweep."
            )
        records = list(enumerate(table, start=2))
    if cut := cut_table(study, len(records)):
        raise LaunchError(f"'{path}' {cut}")
    # a branch is no run of its own: its parent's run yields it
    runs = {record["run_id"]: record.get("parent_run_id") or "" for _, record in records if record.get("kind") == BRANCH}
    rows = [_row(path, number, record, runs) for number, record in records if record.get("kind") != BRANCH]
    if any(row.kind == TASK for row in rows):  # the last task takes up what the others have made
        rows[-1] = dataclasses.replace(rows[-1], after=tuple(row.run_id for row in rows[:-1]))
    seen: set[str] = set()
    for row in rows:
        if row.run_id in seen:
            raise LaunchError(f"'{path}' holds run_id {row.run_id} twice; plan the study again with plan-sweep.")
        seen.add(row.run_id)
    return rows


def waits_for(study: Path, row: Row) -> str:
    """A run that must be done before `row` can start, from its weights or with its output; empty where there is none left.

    An evaluation of weights that the run keeps on its way needs these alone.
    """
    if row.kind == EVAL and _weights_are_kept(study, row):
        return ""
    for run_id in (row.parent, *row.after):
        ended = read_json(study / RUNS / run_id / EXIT) if run_id else {"status": "done"}
        if ended is None or ended.get("status") != "done":
            return run_id
    return ""


def _weights_are_kept(study: Path, row: Row) -> bool:
    """Whether the checkpoint that an evaluation is of is one of a run's kept steps, and there (folders appear whole)."""
    content = read_json(row.folder(study) / EVALUATION) or {}
    run, checkpoint = str(content.get("run")), str(content.get("checkpoint"))
    kept = RUN_ID.fullmatch(run) and KEPT.fullmatch(checkpoint)
    return bool(kept) and (study / RUNS / run / CHECKPOINTS / checkpoint).is_dir()


def waiting_text(study: Path, rows: list[Row], then: str = "submit again later") -> str:
    """What is told of rows that cannot start yet."""
    first = waits_for(study, rows[0])
    why = "whose weights it evaluates" if rows[0].kind == EVAL else "from whose weights it starts"
    why = "which comes before" if rows[0].after else why
    return f"not started yet: {len(rows)}, the first waits for run {first}, {why}; {then}"


def require_data(rows: list[Row]) -> None:
    """Raises LaunchError where runs were planned from stated statistics: there is no data set to train them on."""
    stated = next((row for row in rows if row.data_id.startswith(STATED)), None)
    if stated is not None:
        raise LaunchError(
            f"the plan was made from stated statistics (data_id {stated.data_id}), so there is no data set to train on; prepare "
            "one and plan the study again with plan-sweep ... data=FOLDER."
        )


def cost_of(rows: list[Row]) -> dict[str, float]:
    """Relative cost by run_id: estimated minutes where every row has them, else planned FLOPs."""
    if rows and all(row.est_minutes > 0 for row in rows):
        return {row.run_id: row.est_minutes for row in rows}
    return {row.run_id: max(row.planned_flops, 1.0) for row in rows}


def check_run(study: Path, row: Row) -> None:
    """Raises LaunchError unless run.yaml is there, readable by this version, and still hashes to the row's run_id."""
    from omegaconf import OmegaConf

    path = row.folder(study) / RUN_CONFIG
    again = "plan the study again with plan-sweep."
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
        config = content["config"]  # type: ignore[index, call-overload]
    except FileNotFoundError as error:
        raise LaunchError(f"'{path}' is missing; {again}") from error
    except Exception as error:  # whatever the YAML parser raises: the file is damaged
        raise LaunchError(f"'{path}' is no frozen run configuration; {again}") from error
    try:
        found = RunConfig.from_dict(config).run_id  # type: ignore[arg-type]
    except ConfigError as error:
        raise LaunchError(f"'{path}' was planned by another version ({str(error).rstrip('.')}); {again}") from error
    if found != row.run_id:
        raise LaunchError(
            f"'{path}' hashes to {found}, not to {row.run_id}: it was edited, or planned by another version; {again}"
        )


def _row(path: Path, number: int, record: dict[str, str], branches: dict[str, str]) -> Row:
    try:
        row = Row(
            run_id=record["run_id"],
            arm=record["arm"],
            size=record["size"],
            steps=int(_number(record["steps"])),
            gpus=int(_number(record["gpus"])),
            planned_flops=_number(record["planned_flops"]),
            est_minutes=_number(record.get("est_minutes")),
            est_gpu_hours=_number(record["est_gpu_hours"]),
            status=record["status"],
            reason=record["reason"] or "",
            data_id=record.get("data_id") or "",
            parent=branches.get(record.get("parent_run_id") or "", record.get("parent_run_id") or ""),
            kind=record.get("kind") or "",
        )
    except (TypeError, ValueError) as error:
        raise LaunchError(f"{path}:{number} is malformed ({error}); plan the study again with plan-sweep.") from error
    if not RUN_ID.fullmatch(row.run_id):
        raise LaunchError(
            f"{path}:{number} has run_id={row.run_id!r}, which is no run's name; plan the study again with plan-sweep."
        )
    return row


def _number(text: str | None) -> float:
    """A number of the plan; an empty or not-a-number cell counts as 0 (unknown)."""
    value = float(text) if text else 0.0
    return 0.0 if math.isnan(value) else value
