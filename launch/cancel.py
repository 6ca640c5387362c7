"""Stopping a study, or single runs of it: what runs is told to save and leave, what is queued is taken back.

Not here: how a worker is told (`launch.watch`), submitting again (`launch.submit`).
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from launch.asked import forget, read_order
from launch.failures import FailureClass
from launch.job import cancel_path, raise_flag
from launch.lease import Lease, signal_holder
from launch.ledger import ENDED, INTERRUPTED, append_event, read_attempts
from launch.rows import read_rows
from launch.scheduler import cancel_jobs, slurm_site
from launch.status import OPEN_STATES, ORDERED, RUNNING, gather, lock_path
from launch.submit import Selection
from lst.errors import LaunchError
from lst.records import LEASE

LOCK_SECONDS = 30.0  # for a worker that submits what waits


def cancel(study: Path, *, selection: Selection | None = None, now: bool = False) -> list[str]:
    """Stop open runs, so that they save and leave, and take back what is queued; returns the run_ids it concerned.

    A running one is told by a file that its worker looks for, on whatever machine; with `now`, SLURM is told to end the jobs,
    which leaves them the site's KillWait to save. On this machine the whole study's submitter is stopped too, unless single
    runs are named. Nothing is deleted: submitting again goes on. Raises LaunchError where the scheduler fails.
    """
    study = study.absolute()
    selection = selection or Selection()
    rows = selection.rows(read_rows(study))
    trouble: list[OSError] = []

    def write(action: Callable[..., None], *arguments: Any, **fields: Any) -> None:
        try:
            action(*arguments, **fields)
        except OSError as error:  # a full disk: what can be stopped without it is stopped all the same
            trouble.append(error)

    found = [s for s in gather(study, rows) if s.state in OPEN_STATES]
    write(_forget, study, [s.run_id for s in found])
    forgotten = {s.run_id for s in found if s.source == ORDERED}
    # anew: whoever held the lock until then may have submitted some of these
    concerned, attempts = [s for s in gather(study, rows) if s.state in OPEN_STATES], read_attempts(study)
    running = [s for s in concerned if s.state == RUNNING and s.job_id]
    jobs = {s.run_id: {s.job_id} | {a.job_id for a in attempts.get(s.run_id, ()) if a.ended is None} for s in concerned}
    told = [job for status in running for job in jobs[status.run_id]]
    for name in [*told, *(s.run_id for s in concerned if s.source == "submitter")]:
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
    if not selection.run_ids:
        signal_holder(lock_path(study), signal.SIGINT)
    here = {s.run_id for s in concerned} - {s.run_id for s in slurm}
    for row in rows:
        if row.run_id in here:
            signal_holder(row.folder(study) / LEASE, signal.SIGTERM)
    if trouble:
        raise LaunchError(f"'{study}' cannot be written ({trouble[0].strerror}): jobs are ended, saved or not; free some space.")
    told_of = forgotten | {s.run_id for s in concerned}
    return [row.run_id for row in rows if row.run_id in told_of]


def _forget(study: Path, run_ids: Sequence[str]) -> None:
    """Take runs off the order, beside whoever may be submitting from it just now."""
    if not read_order(study).waiting:
        return
    lock = Lease.acquire(lock_path(study), wait=LOCK_SECONDS)
    try:
        forget(study, run_ids)
    finally:
        if lock is not None:
            lock.release()
