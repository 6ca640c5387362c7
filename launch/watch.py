"""What a worker looks at while its trainer trains: the stop flags, the time limit, the budget. It finds reasons to stop.

A reason says of which class the interruption is, and whether the job is to be queued again. Not here: acting on it
(`launch.worker`).
"""

from __future__ import annotations

import logging
import math
import os
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from launch.environment import ask_environment
from launch.failures import FailureClass
from launch.job import FLAG, WorkerJob, cancel_path, flag_path, flag_reason, job_id, job_start, life
from launch.progress import recorded_step
from launch.scheduler import SQUEUE
from lst.errors import LstError

TOLD_SECONDS = 90.0  # SLURM looks at time limits now and then: a signal so much before our own deadline is for the limit
CALL_SECONDS = 20
LOOK_AGAIN_SECONDS = 5.0  # after a look at the budget that came to nothing
LIMIT = re.compile(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d+)")

log = logging.getLogger(__name__)


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
        try:
            found, pause = self._look()
        except (LstError, OSError) as error:  # a file that is being replaced, on a filesystem that shows it: the run goes on
            log.warning("what is spent cannot be told now: %s", error)
            found, pause = "", LOOK_AGAIN_SECONDS
        self._next_look = time.monotonic() + pause
        return Stop(failure=FailureClass.BUDGET, cause=found) if found else None

    def too_short(self) -> str:
        """Why no step could be trained before the time limit's signal; empty where there is time."""
        start = job_start()
        if self.deadline is None or start is None or self.deadline > start:
            return ""
        return (
            f"the job's time limit leaves no time to train: runs save {self._job.signal_seconds:g} seconds before it; raise "
            "cluster.timeout_min, or lower cluster.signal_seconds."
        )

    def _of_signal(self, name: str) -> Stop:
        """What the batch script's signal means."""
        if name not in ("USR1", "USR2"):  # scancel, or scontrol requeue: in both cases not ours to queue it again
            return Stop(failure=FailureClass.CANCELLED, cause=f"stopped by SIG{name}")
        self.deadline = find_deadline(self._job) or self.deadline  # the limit may have been changed since
        if self.deadline is not None and time.time() >= self.deadline - TOLD_SECONDS:
            return Stop(failure=FailureClass.TIMEOUT, cause="the job's time limit is near", again=True)
        return Stop(failure=FailureClass.PREEMPTED, cause=f"SLURM takes the job's place (SIG{name})", again=True)


def find_deadline(job: WorkerJob) -> float | None:
    """When (seconds since the epoch) the run has to save for its time limit, which counts from the allocation's start.

    SLURM is asked for start and limit, not for the end: of a job that it is about to preempt that one comes early.
    """
    start, seconds = job_start(), 60 * job.timeout_minutes or None
    if job.cluster == "slurm":
        argv = [*SQUEUE, "--noheader", "--jobs", job_id(), "--format=%S|%l"]
        try:
            words = ask_environment(os.environ)  # a format of times that the shell asks for would not be read
            done = subprocess.run(argv, capture_output=True, text=True, timeout=CALL_SECONDS, check=False, env=words)
            began, _, limit = done.stdout.strip().partition("|")
            start, seconds = parse_time(began) or start, parse_limit(limit) or seconds
        except (OSError, subprocess.TimeoutExpired):
            log.warning("squeue does not tell this job's time limit; cluster.timeout_min counts")
    return None if start is None or seconds is None else start + seconds - job.signal_seconds


def parse_time(text: str) -> float | None:
    """SLURM's local time as seconds since the epoch; None for NONE, N/A and the like."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def parse_limit(text: str) -> float | None:
    """SLURM's `days-hours:minutes:seconds`, whose leading parts may be absent, in seconds; None for UNLIMITED and the like."""
    found = LIMIT.fullmatch(text)
    if found is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return float(((24 * days + hours) * 60 + minutes) * 60 + seconds)
