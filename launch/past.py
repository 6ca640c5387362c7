"""Attempts that ended without a word: what became of them, told by what they left behind.

A life of a job that SLURM ended abruptly (its node went down, it was requeued by hand, its worker was killed) leaves a `started`
without an `ended`. The next life of the same job, or the next submitter, ends it in the ledger, at the time of its last sign of
life, with what it had spent. Not here: whether the run is tried again (`launch.retries`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.failures import FailureClass, failure_text, write_failure
from launch.job import WorkerJob, flag_path, flag_reason, is_complete, job_id, life
from launch.lease import holder
from launch.ledger import DONE, ENDED, FAILED, LOST, Attempt, append_event, read_attempts
from launch.progress import last_sign, own_flops, recorded_step
from launch.retries import may_go_on
from launch.rows import RUNS
from lst.records import LEASE

GONE = "its job is gone and left neither exit.json nor failure.json"
NEVER_BEGAN = "its job ended before the run had begun; submit again"


def close_finished(study: Path) -> None:
    """End the attempts of complete runs whose worker was killed between exit.json and its last word."""
    for run_id, attempts in read_attempts(study).items():
        run_dir = study / RUNS / run_id
        open_ones = [a for a in attempts if a.started is not None and a.ended is None]
        if open_ones and is_complete(run_dir) and holder(run_dir / LEASE) is None:
            for attempt in open_ones:
                close(study, run_dir, attempt, None, "")


def close_former_life(study: Path, job: WorkerJob, attempts: Sequence[Attempt], former: Mapping[str, Any]) -> bool:
    """End what earlier runners of this run left open; whether there was anything. `former` is the lease that the last one had."""
    found = [a for a in attempts if a.started is not None and a.ended is None]
    for attempt in found:
        if is_complete(job.run_dir):
            close(study, job.run_dir, attempt, None, "", former)
            continue
        failure, cause = FailureClass.LOST, GONE
        if attempt.job_id == job_id() and life() > 0:
            failure, cause = of_former_life(study, job_id(), life() - 1)
        close(study, job.run_dir, attempt, failure, cause, former)
    return bool(found)


def ended_in_order(study: Path, attempts: Sequence[Attempt]) -> Attempt | None:
    """The end of this job's former life, if that is not to go on: SLURM started the job anew because its worker was killed later.

    `scontrol requeue` by hand tells the former life the same as scancel does, and is meant to go on.
    """
    last = attempts[-1] if attempts and life() > 0 else None
    if last is None or last.job_id != job_id() or last.ended is None or may_go_on(attempts):
        return None
    return None if flag_reason(flag_path(study, job_id(), life() - 1)) == "TERM" else last


def of_former_life(study: Path, job: str, before: int) -> tuple[FailureClass, str]:
    """Class and cause of a job's life that SLURM followed by another one."""
    left = flag_reason(flag_path(study, job, before))
    if left.startswith("worker"):
        return FailureClass.LOST, f"its {left}"
    if left:
        return FailureClass.PREEMPTED, "SLURM took the job back before it could save"
    return FailureClass.NODE_FAILURE, "its node went down, or it was killed with all it had started"


def close(
    study: Path,
    run_dir: Path,
    attempt: Attempt,
    failure: FailureClass | None,
    cause: str,
    former: Mapping[str, Any] | None = None,
    *,
    state: str = LOST,
) -> None:
    """End an attempt in the ledger whose worker could not, and say so in failure.json; without a `failure` the run is done.

    It ended when it was last heard of: by a record, or by a beat of its lease (`former`; by default the one in the folder). One
    that has its end already is followed by one that never began: its job was queued again, and did not come back.
    """
    number, began, when = attempt.attempt, attempt.started, last_sign(run_dir, attempt, former)
    if attempt.ended is not None:
        number, began, when = number + 1, None, time.time()
    spent = own_flops(run_dir, before=attempt.flops_before, started=began) if began is not None else 0.0
    if failure is not None:
        content = write_failure(run_dir, failure, cause, attempt=number, node=attempt.host or "?")
        cause = failure_text(content) if state == FAILED else cause
    end = {
        "state": state if failure else DONE,
        "class": failure.value if failure else "",
        "step": recorded_step(run_dir),
        "flops": spent,
    }
    append_event(study, ENDED, run_dir.name, attempt=number, job_id=attempt.job_id, time=when, cause=cause, **end)
