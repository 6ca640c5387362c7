"""Attempts that ended without a word: what became of them, told by what they left behind.

A life of a job that SLURM ended abruptly (its node went down, it was requeued by hand, its worker was killed) leaves a `started`
without an `ended`. The next life of the same job, or the next submitter, ends it in the ledger, at the time of its last sign of
life, with what it had spent. Not here: whether the run is tried again (`launch.retries`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.failures import FailureClass, last_record, write_failure
from launch.job import WorkerJob, flag_path, flag_reason, is_complete, job_id, life
from launch.lease import holder
from launch.ledger import DONE, ENDED, LOST, Attempt, append_event, read_attempts
from launch.progress import recorded_flops, recorded_step
from launch.rows import RUNS
from lst.records import LEASE, TRAIN_RECORDS, read_json

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
) -> None:
    """End an attempt in the ledger whose worker could not, and say so in failure.json; without a `failure` the run is done.

    It ended when it was last heard of: by a record, or by a beat of its lease (`former`; by default the one in the folder).
    """
    record = last_record(run_dir / TRAIN_RECORDS) or {}
    lease = (read_json(run_dir / LEASE) or {}) if former is None else former
    beat = float(lease.get("beat") or 0.0) if lease.get("attempt") == attempt.attempt else 0.0
    when = max(float(record.get("time") or 0.0), beat, attempt.started or attempt.submitted or 0.0)
    spent = max(0.0, recorded_flops(run_dir) - attempt.flops_before) if attempt.started is not None else 0.0
    if failure is not None:
        write_failure(run_dir, failure, cause, attempt=attempt.attempt, node=attempt.host or "?")
    end = {
        "state": LOST if failure else DONE,
        "class": failure.value if failure else "",
        "step": recorded_step(run_dir),
        "flops": spent,
    }
    append_event(study, ENDED, run_dir.name, attempt=attempt.attempt, job_id=attempt.job_id, time=when, cause=cause, **end)
