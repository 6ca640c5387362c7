"""Stopping a study, or single runs of it: what runs is told to save and leave, what is queued is taken back.

Not here: how a worker is told (`launch.watch`), submitting again (`launch.submit`).
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from launch.asked import forget, read_order
from launch.failures import FailureClass
from launch.gone import suspects
from launch.job import cancel_path, raise_flag
from launch.lease import Lease, holder, signal_holder
from launch.ledger import ENDED, INTERRUPTED, LAUNCH, append_event, read_attempts
from launch.order import adopt
from launch.rows import Row, read_rows
from launch.scheduler import cancel_jobs, slurm_site
from launch.status import OPEN_STATES, RUNNING, gather, lock_path
from launch.submit import Selection
from launch.withdrawn import withdraw
from lst.errors import LaunchError
from lst.records import LEASE

LOCK_SECONDS = 90.0  # for who submits just now: an sbatch that does not answer takes a minute


def cancel(study: Path, *, selection: Selection | None = None, now: bool = False) -> list[str]:
    """Stop open runs, so that they save and leave, and take back what is queued; returns the run_ids it concerned.

    Whoever was asked to submit them before does not any more: that is written down first, and what is submitted at this moment is
    waited for. A running one is told by a file that its worker looks for, on whatever machine; with `now`, SLURM is told to end
    the jobs, which leaves them the site's KillWait to save. On this machine the whole study's submitter is stopped too, unless
    single runs are named. Nothing is deleted: submitting again goes on. Raises LaunchError where the scheduler fails, or somebody
    submits still.
    """
    study = study.absolute()
    selection = selection or Selection()
    rows = selection.rows(read_rows(study))
    if not (study / LAUNCH).is_dir():
        return []
    trouble: list[OSError] = []

    def write(action: Callable[..., Any], *arguments: Any, **fields: Any) -> Any:
        try:
            return action(*arguments, **fields)
        except OSError as error:  # a full disk: what can be stopped without it is stopped all the same
            trouble.append(error)
            return None

    waited = {row.run_id for row in rows} & set(read_order(study).waiting)
    write(withdraw, study, [row.run_id for row in rows] if selection.run_ids else [])
    submits = not _feeds(study) and "waiting" in (holder(lock_path(study)) or {})  # a worker at its end is none
    if submits and not selection.run_ids:
        signal_holder(lock_path(study), signal.SIGINT)
    lock = write(_lock, study)
    try:
        told, unknown = _stop(study, rows, write, trouble, now=now, locked=lock is not None)
    finally:
        if lock is not None:
            lock.release()
    if not submits and not selection.run_ids and _feeds(study):
        signal_holder(lock_path(study), signal.SIGINT)
    if trouble:
        raise LaunchError(f"'{study}' cannot be written ({trouble[0].strerror}): jobs are ended, saved or not; free some space.")
    if unknown:
        raise LaunchError(f"jobs of a submitter that was killed may be queued, and are not cancelled: {unknown}")
    if lock is None and not _feeds(study):
        raise LaunchError(
            f"somebody submits '{study}' at this moment, and stops at the next look; what runs is told; cancel once more."
        )
    return [row.run_id for row in rows if row.run_id in waited or row.run_id in told]


def _lock(study: Path) -> Lease | None:
    """The study's lock, once who submits just now has seen that it is not to; None where that takes long, as for local jobs."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        lock = Lease.acquire(lock_path(study))
        if lock is not None or _feeds(study) or time.monotonic() > deadline:
            return lock


def _feeds(study: Path) -> bool:
    """Whether the lock's holder feeds local jobs: that takes as long as these, and it looks for files of single runs."""
    return bool((holder(lock_path(study)) or {}).get("works"))


def _stop(
    study: Path, rows: Sequence[Row], write: Callable[..., Any], trouble: list[OSError], *, now: bool, locked: bool
) -> tuple[set[str], str]:
    """Take the rows off the order, and stop what runs or is queued; the run_ids, and why there may be jobs that nobody knows."""
    ids, unknown = {row.run_id for row in rows}, ""
    if locked:
        write(forget, study, ids)
        try:
            write(adopt, study, end_cancelled=False)
        except LaunchError as error:
            unknown = str(error)
    attempts, suspected = read_attempts(study), suspects(study)
    concerned = [s for s in gather(study, rows) if s.state in OPEN_STATES]
    jobs = {s.run_id: {s.job_id} | {a.job_id for a in attempts.get(s.run_id, ()) if a.ended is None} for s in concerned}
    running = [job for s in concerned if s.state == RUNNING and s.job_id for job in jobs[s.run_id]]
    queued = {s.run_id for s in concerned if s.state != RUNNING}
    gone = [last.job_id for run_id, last in suspected.items() if run_id in ids - queued]  # they would go on by themselves
    for name in dict.fromkeys([*running, *gone, *(s.run_id for s in concerned if s.source == "submitter")]):
        write(raise_flag, cancel_path(study, name), "cancelled")
    slurm = [s for s in concerned if attempts.get(s.run_id) and attempts[s.run_id][-1].cluster == "slurm"]
    ended = [s for s in slurm if now or trouble or s.state != RUNNING]
    if ended:
        elsewhere = {attempts[s.run_id][-1].site for s in ended} - {"", site := slurm_site()}
        if site and elsewhere:
            raise LaunchError(f"this is cluster {site}, and queued jobs are on {', '.join(elsewhere)}; cancel them from there.")
        cancel_jobs([job for s in ended for job in sorted(jobs[s.run_id])])
    for status in ended:
        last = attempts[status.run_id][-1]
        if last.started is None:
            end = {"state": INTERRUPTED, "cause": "cancelled", "class": FailureClass.CANCELLED.value}
            write(append_event, study, ENDED, status.run_id, attempt=last.attempt, job_id=last.job_id, **end)
    here = {s.run_id for s in concerned} - {s.run_id for s in slurm}
    for row in rows:
        if row.run_id in here:
            signal_holder(row.folder(study) / LEASE, signal.SIGTERM)
    return {s.run_id for s in concerned}, unknown
