"""What a worker looks at while its trainer trains: the stop flags, the time limit, the budget. It finds reasons to stop.

A reason says of which class the interruption is, and whether the job is to be queued again. Not here: acting on it
(`launch.worker`).
"""

from __future__ import annotations

import math
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from launch.failures import FailureClass
from launch.job import FLAG, WorkerJob, cancel_path, flag_path, flag_reason, job_id, job_start, life
from launch.progress import recorded_step

TOLD_SECONDS = 90.0  # SLURM looks at time limits now and then: a signal so much before our own deadline is for the limit
CALL_SECONDS = 20


@dataclass(frozen=True, kw_only=True)
class Stop:
    """Why a trainer has to save and leave."""

    failure: FailureClass
    cause: str
    again: bool = False  # whether the job is to be queued again


class Watch:
    """Reasons to stop, of one job."""

    def __init__(self, job: WorkerJob, *, look: Callable[[], tuple[str, float]] = lambda: ("", math.inf)) -> None:
        """`look` tells which limit is reached, if any, and in how many seconds to look again."""
        study = Path(job.study)
        self._job = job
        self.flag = Path(os.environ.get(FLAG) or flag_path(study, job_id(), life()))
        self.cancelled = cancel_path(study, job_id())
        self.deadline = find_deadline(job)
        self._look, self._next_look = look, 0.0
        self._canary = recorded_step(job.run_dir) + job.canary_steps if job.canary_steps else 0
        self._run_dir = job.run_dir

    def reason(self) -> Stop | None:
        """The reason there is, if any."""
        if self.cancelled.exists():
            return Stop(failure=FailureClass.CANCELLED, cause="cancelled")
        if self.flag.exists():
            return self._of_signal(flag_reason(self.flag))
        if self.deadline is not None and time.time() >= self.deadline:
            return Stop(failure=FailureClass.TIMEOUT, cause="the job's time limit is near", again=True)
        if self._canary and recorded_step(self._run_dir) >= self._canary:
            return Stop(failure=FailureClass.CANARY, cause="the canary's steps are done")
        if time.monotonic() < self._next_look:
            return None
        found, pause = self._look()
        self._next_look = time.monotonic() + pause
        return Stop(failure=FailureClass.BUDGET, cause=found) if found else None

    def _of_signal(self, name: str) -> Stop:
        """What the batch script's signal means."""
        if name not in ("USR1", "USR2"):  # scancel, or scontrol requeue: in both cases not ours to queue it again
            return Stop(failure=FailureClass.CANCELLED, cause=f"stopped by SIG{name}")
        self.deadline = find_deadline(self._job) or self.deadline  # the limit may have been changed since
        if self.deadline is not None and time.time() >= self.deadline - TOLD_SECONDS:
            return Stop(failure=FailureClass.TIMEOUT, cause="the job's time limit is near", again=True)
        return Stop(failure=FailureClass.PREEMPTED, cause=f"SLURM takes the job's place (SIG{name})", again=True)


def find_deadline(job: WorkerJob) -> float | None:
    """When (seconds since the epoch) the run has to save for its time limit, which counts from the allocation's start."""
    end = None
    if job.cluster == "slurm":
        argv = ["squeue", "--noheader", "--jobs", os.environ.get("SLURM_JOB_ID", ""), "--format=%e"]
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=CALL_SECONDS, check=False)
            end = parse_time(done.stdout.strip())
        except (OSError, subprocess.TimeoutExpired):
            end = None
    start = job_start()
    if end is None and job.timeout_minutes and start is not None:
        end = start + 60 * job.timeout_minutes
    return None if end is None else end - job.signal_seconds


def parse_time(text: str) -> float | None:
    """SLURM's local time as seconds since the epoch; None for NONE, N/A and the like."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None
