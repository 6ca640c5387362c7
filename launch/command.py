"""The trainer's command: one process here, or on SLURM one srun task a process of the run, on one machine or several.

Not here: what the processes say to each other (lst/train/distributed.py reads srun's variables).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.environment import job_environment
from launch.job import WorkerJob


@dataclass(frozen=True, kw_only=True)
class Command:
    """What is started for a run."""

    argv: list[str]
    environment: dict[str, str]
    by_srun: bool

    def exit_status(self, code: int) -> int:
        """The trainer's exit status, negative for a signal: srun tells a task's signal as 128 + its number."""
        return -(code - 128) if self.by_srun and 128 < code < 160 else code


def trainer_command(job: WorkerJob, trainer_argv: Sequence[str] | None = None) -> Command:
    """The command for the job's run; `trainer_argv` replaces the trainer, for tests only."""
    names = tuple(part.strip() for part in job.environment.split(",") if part.strip())
    environment = job_environment(os.environ, root=Path(job.root), threads=job.threads, allow=names)
    argv = [*(trainer_argv or [sys.executable, "-m", "lst.train"]), str(job.run_dir)]
    if job.task:
        argv = [sys.executable, "-m", *job.task]
    if job.cluster != "slurm":
        return Command(argv=argv, environment=environment, by_srun=False)
    tasks = job.nodes * job.tasks_per_node
    srun = ["srun", "--unbuffered", "--kill-on-bad-exit=1", f"--nodes={job.nodes}", f"--ntasks={tasks}"]
    if job.cpus_per_task:
        srun.append(f"--cpus-per-task={job.cpus_per_task}")
    return Command(argv=[*srun, *argv], environment=environment, by_srun=True)
