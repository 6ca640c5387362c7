"""The state of every run of a study, told from its files (and one call of squeue where SLURM jobs are open).

planned: not yet started, or stopped and to go on; queued: a submitter or SLURM will start it; running: its lease is held;
done: its own exit.json says so; failed: its last attempt failed; lost: an attempt ended without a word; refused: the plan
does not admit it. Anybody may look at any time; looking changes nothing.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.asked import read_order
from launch.canary import PRICE
from launch.failures import failure_text, last_line, last_record, read_failure
from launch.gone import last_words
from launch.job import is_complete
from launch.lease import holder
from launch.ledger import DONE, FAILED, INTERRUPTED, LAUNCH, LOST, Attempt, read_attempts
from launch.limits import overspent
from launch.past import GONE, NEVER_BEGAN
from launch.progress import last_sign
from launch.retries import study_stopped
from launch.rows import Row, cost_of, read_rows, waits_for
from launch.scheduler import HELD, slurm_queue, slurm_site
from launch.scheduler import RUNNING as SLURM_RUNNING
from lst.errors import LaunchError
from lst.records import LEASE, TRAIN_RECORDS, read_json

PLANNED, QUEUED, RUNNING, REFUSED = "planned", "queued", "running", "refused"
STATES = (PLANNED, QUEUED, RUNNING, DONE, FAILED, LOST, REFUSED)
OPEN_STATES = (QUEUED, RUNNING)
ORDERED = "order"  # the source of a state: it waits to be submitted
LOCK = "lock"
LOOK_SECONDS = 10.0  # how long squeue may take before the files alone tell
START_SECONDS = 30.0  # a local job may take as long from its submission to its lease


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """One run as `status --json` tells it."""

    run_id: str
    arm: str
    size: str
    state: str  # planned, queued, running, done, failed, lost or refused
    cause: str  # one line: why it failed, stopped or was refused
    step: int  # optimiser steps recorded
    steps: int  # optimiser steps planned
    attempts: int  # jobs that started
    gpu_hours: float  # GPU-hours of all attempts so far
    planned_gpu_hours: float = 0.0  # GPU-hours of the whole run, as planned, or as priced anew from the canaries
    seconds: float = 0.0  # wall-clock seconds of all attempts so far
    eta_seconds: float | None = None  # of a running one: until its end, at the speed of this attempt
    loss: float | None = None  # the last step's training loss, nats per token
    mfu: float | None = None  # of the last step; None where the device's peak is not known
    source: str = ""  # where the state comes from: plan, exit.json, lease, heartbeat, ledger, squeue, submitter, order
    job_id: str = ""  # the last attempt's job
    node: str = ""  # where the last attempt ran

    @property
    def fraction(self) -> float:
        """Share of the run's steps that is done."""
        return 1.0 if self.state == DONE else min(1.0, self.step / self.steps) if self.steps else 0.0


def lock_path(study: Path) -> Path:
    """The file that the study's submitter holds."""
    return study / LAUNCH / LOCK


def gather(study: Path, rows: Sequence[Row] | None = None) -> list[RunStatus]:
    """The status of `rows` (default: every row of the plan), in order. Raises LaunchError where there is no plan."""
    rows = read_rows(study) if rows is None else rows
    attempts = read_attempts(study)
    seen = _look(study, rows, attempts)
    statuses = _settled(study, [_status(study, row, attempts.get(row.run_id, []), seen) for row in rows])
    if any(s.state == LOST for s in statuses):  # a run that started or ended between our two looks is not lost: look again
        attempts = read_attempts(study)
        statuses = [
            _status(study, row, attempts.get(row.run_id, []), seen) if status.state == LOST else status
            for row, status in zip(rows, statuses, strict=True)
        ]
    return statuses


def _settled(study: Path, statuses: list[RunStatus]) -> list[RunStatus]:
    """Runs that wait to be submitted are queued as long as a job is open that will do it at its end; else they are planned.

    So they are where the study is stopped, or a limit reached.
    """
    if not any(s.source == ORDERED for s in statuses):
        return statuses
    cause = why_nothing_starts(study)
    if not cause and any(s.state in OPEN_STATES and s.source != ORDERED for s in statuses):
        return statuses
    return [dataclasses.replace(s, state=PLANNED, cause=cause) if s.source == ORDERED else s for s in statuses]


def why_nothing_starts(study: Path) -> str:
    """Why no run of the study starts, be there a job or not; empty where they do."""
    stopped = study_stopped(study)
    return f"the study is stopped: {stopped}" if stopped else overspent(study)


def is_planned(status: RunStatus) -> bool:
    """Whether the run is there to be submitted."""
    return status.state == PLANNED or status.source == ORDERED


def count_states(statuses: Sequence[RunStatus]) -> dict[str, int]:
    """Runs by state, in the order of STATES, states without runs left out."""
    counts = {state: sum(s.state == state for s in statuses) for state in STATES}
    return {state: count for state, count in counts.items() if count}


def eta_seconds(rows: Sequence[Row], statuses: Sequence[RunStatus], parallel: int) -> float | None:
    """Seconds until all open and planned runs end at `parallel` at once, at the speed measured so far; None while unknown.

    Speed is seconds per planned cost over what has been trained; before that, the plan's own minutes.
    """
    costs = cost_of(list(rows))
    trained = [(s.seconds, costs[s.run_id] * s.fraction) for s in statuses if s.seconds > 0 and s.fraction > 0]
    spent, work = sum(t[0] for t in trained), sum(t[1] for t in trained)
    if work > 0:
        rate = spent / work
    elif rows and all(row.est_minutes > 0 for row in rows):
        rate = 60.0
    else:
        return None
    left = [costs[s.run_id] * (1 - s.fraction) * rate for s in statuses if s.state in (PLANNED, *OPEN_STATES)]
    return max(sum(left) / max(1, parallel), max(left, default=0.0))


def _queue(study: Path, rows: Sequence[Row], attempts: Mapping[str, list[Attempt]]) -> tuple[dict[str, str] | None, str]:
    """SLURM's list where any open attempt is SLURM's; {} where none is; None where SLURM does not answer.

    And, where jobs are missing in it, which cluster's list it is: another one does not know them.
    """
    last = [(row, _last(attempts.get(row.run_id, []))) for row in rows]
    opened = [
        attempt
        for row, attempt in last
        if attempt is not None
        and attempt.cluster == "slurm"
        and attempt.state not in (DONE, FAILED)
        and not is_complete(row.folder(study))
    ]
    if not opened:
        return {}, ""
    try:
        queue = slurm_queue(LOOK_SECONDS)
    except LaunchError:
        return None, ""
    return queue, slurm_site() if any(a.job_id not in queue for a in opened) else ""


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What was seen at one look, of all runs."""

    queue: dict[str, str] | None  # SLURM's list; None where it does not answer
    site: str  # whose list; empty = not asked
    waiting: frozenset[str]  # runs that this machine's submitter will start
    ordered: Mapping[str, str]  # runs that wait to be submitted to SLURM -> for what
    planned_hours: Mapping[str, float]  # GPU-hours, priced anew from the canaries; empty = as the plan has them
    now: float


def _look(study: Path, rows: Sequence[Row], attempts: Mapping[str, list[Attempt]]) -> _Seen:
    submitter = holder(lock_path(study)) or {}
    order = read_order(study)
    price = (read_json(study / LAUNCH / PRICE) or {}).get("gpu_hours")
    queue, site = _queue(study, rows, attempts)
    return _Seen(
        queue=queue,
        site=site,
        waiting=frozenset(submitter.get("waiting") or ()),
        ordered=dict.fromkeys(order.waiting, order.note or "its turn"),
        planned_hours={k: v for k, v in price.items() if isinstance(v, int | float)} if isinstance(price, dict) else {},
        now=time.time(),
    )


def _status(study: Path, row: Row, attempts: list[Attempt], seen: _Seen) -> RunStatus:
    folder = row.folder(study)
    record = last_record(folder / TRAIN_RECORDS) or {}
    last, step = _last(attempts), int(record.get("step", 0))
    state, cause, source = _state(study, row, last, seen, step)
    until = seen.now if state == RUNNING else float(record.get("time") or 0.0)
    if state != RUNNING and last is not None and last.ended is None:
        until = last_sign(folder, last)
    seconds = sum(a.seconds(until) for a in attempts)
    loss, mfu = (record.get(name) if isinstance(record.get(name), int | float) else None for name in ("loss", "mfu"))
    speed = (step - last.step_before) / last.seconds(until) if last is not None and last.seconds(until) > 0 else 0.0
    return RunStatus(
        run_id=row.run_id,
        arm=row.arm,
        size=row.size,
        state=state,
        cause=cause,
        step=row.steps if state == DONE else step,
        steps=row.steps,
        attempts=sum(a.started is not None for a in attempts),
        gpu_hours=round(sum(a.seconds(until) * a.gpus for a in attempts) / 3600, 6),
        planned_gpu_hours=float(seen.planned_hours.get(row.run_id) or row.est_gpu_hours),
        seconds=round(seconds, 3),
        eta_seconds=round((row.steps - step) / speed, 1) if state == RUNNING and speed > 0 else None,
        loss=loss,
        mfu=mfu,
        source=source,
        job_id=last.job_id if last else "",
        node=last.host if last else "",
    )


def _state(study: Path, row: Row, last: Attempt | None, seen: _Seen, step: int) -> tuple[str, str, str]:
    """State, cause and source of a run: its own record first, then its lease, its job, and the ledger."""
    folder = row.folder(study)
    foreign = last is not None and bool(last.site and seen.site and last.site != seen.site)
    queue = None if foreign else seen.queue
    if is_complete(folder):
        return DONE, "", "exit.json"
    held = holder(folder / LEASE)
    if held is not None and last is not None and last.ended is not None and last.job_id == held.get("job_id"):
        held = held if held["locked"] else None  # killed with all it had started: its last beat outlives it for a minute
    if held is not None and (held["locked"] or last is None or not queue or queue.get(last.job_id) in SLURM_RUNNING):
        return RUNNING, "", "lease" if held["locked"] else "heartbeat"
    if last is not None and queue and last.job_id in queue:
        found = queue[last.job_id]
        cause = "SLURM could not start its job, and holds it; submit" if found == HELD else found.lower()
        return (RUNNING if found in SLURM_RUNNING else QUEUED), cause, "squeue"
    if row.run_id in seen.waiting:
        return QUEUED, "", "submitter"
    if not row.admitted:
        return REFUSED, row.reason, "plan"
    if last is None:
        failure, waits = read_failure(folder), waits_for(study, row)
        if row.run_id in seen.ordered:
            return QUEUED, f"waits for {f'run {waits}' if waits else seen.ordered[row.run_id]}", ORDERED
        verb = "comes after" if row.after else "starts from"
        planned = PLANNED, f"{verb} run {waits}, which is not done" if waits else "", "plan"
        return (FAILED, failure_text(failure), "failure.json") if failure else planned
    if row.run_id in seen.ordered and last.state in (INTERRUPTED, LOST):
        return QUEUED, f"waits for {seen.ordered[row.run_id]}", ORDERED
    if last.state == FAILED:
        return FAILED, last.cause, "ledger"
    if last.state == INTERRUPTED:
        return PLANNED, f"{last.cause or 'interrupted'}; goes on from its checkpoint (step {step} recorded)", "ledger"
    if last.state in (DONE, LOST):
        return LOST, last.cause or "the ledger says it ended, yet it left no exit.json", "ledger"
    if last.cluster == "slurm" and queue is None:
        cause = f"its job is on cluster {last.site}, this is {seen.site}" if foreign else "squeue does not answer"
        return (RUNNING if last.started else QUEUED), cause, "ledger"
    if last.started is None and last.cluster != "slurm" and time.time() - (last.submitted or 0.0) < START_SECONDS:
        return QUEUED, "", "ledger"
    return LOST, last_line(last_words(study, last)) or (GONE if last.started else NEVER_BEGAN), "ledger"


def _last(attempts: Sequence[Attempt]) -> Attempt | None:
    return attempts[-1] if attempts else None


def as_json(status: RunStatus) -> dict[str, Any]:
    """The object of `status --json`."""
    return dataclasses.asdict(status)
