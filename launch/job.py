"""What a job is told, and the small files by which it is told to stop.

    launch/jobs/TOKEN/jobs.json        the jobs of one submission, written before anything is submitted; plain values, no code
    launch/stop/JOB.LIFE               the flag of one life of a job: its trainer saves and leaves once it is there
    launch/stop/JOB.cancelled          the job, in whatever life, is not wanted any more

Not here: what a job does (`launch.worker`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.ledger import DONE, LAUNCH
from lst.errors import LaunchError
from lst.plain import from_dict, to_dict
from lst.records import EXIT, read_json, write_atomically

JOB_FILES = "jobs"  # below launch/: a folder a submission
SPEC = "jobs.json"
ACCEPTED = "accepted"  # in a submission's folder: SLURM's id of it once the ledger knows it, or blank where SLURM has none
CANCELS_BEFORE = "cancels"  # there too: how many calls of `cancel` its order knew
STOP_FILES = "stop"
JOB_ID, FLAG, START = "LST_JOB_ID", "LST_STOP_FLAG", "LST_JOB_START"  # variables that a job is given
CANCELLED = ".cancelled"


@dataclass(frozen=True, kw_only=True)
class WorkerJob:
    """Everything a worker needs, as plain values."""

    study: str  # folder of the study, absolute
    run_id: str
    root: str  # folder of the five packages, absolute
    code: str = ""  # hash that the packages below root must have; empty = not checked
    threads: int = 1  # CPU threads of a process
    gpus: int = 0  # GPUs the run holds, for the account
    environment: str = ""  # further variables handed to the trainer, by comma
    cluster: str = "local"  # local or slurm
    token: str = ""  # names the submission
    nodes: int = 1  # on SLURM: machines, and processes on each
    tasks_per_node: int = 1
    cpus_per_task: int = 0  # 0 = as the batch script has it
    timeout_minutes: float = 0.0  # time limit, where the scheduler does not tell it; 0 = none
    task: tuple[str, ...] = ()  # instead of training: a module of the project and its arguments (launch/prepare.py)
    canary_steps: int = 0  # leave after so many steps, the grid follows; 0 = train to the end
    signal_seconds: float = 120.0  # how long before the time limit the run is told to save

    @property
    def run_dir(self) -> Path:
        return Path(self.study) / "runs" / self.run_id

    @property
    def launch_dir(self) -> Path:
        return Path(self.study) / LAUNCH


def write_jobs(folder: Path, jobs: Sequence[WorkerJob]) -> str:
    """Write the jobs of a submission; their hash, which the job's command names and checks."""
    folder.mkdir(parents=True, exist_ok=True)
    data = (json.dumps({"jobs": [to_dict(job) for job in jobs]}, indent=1) + "\n").encode()
    write_atomically(folder / SPEC, data)
    return hashlib.sha256(data).hexdigest()


def read_job(spec: Path, number: int, sha256: str) -> WorkerJob:
    """The `number`-th job of a submission. Raises LaunchError where the file is not the one that was submitted."""
    data = spec.read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise LaunchError(f"'{spec}' was altered after submitting; cancel the study's jobs and submit again.")
    return from_dict(WorkerJob, json.loads(data)["jobs"][number])


def is_complete(run_dir: Path) -> bool:
    """Whether the run's own exit record says that it is done."""
    record = read_json(run_dir / EXIT)
    return record is not None and record.get("status") == DONE and record.get("run_id", run_dir.name) == run_dir.name


def job_id() -> str:
    """The scheduler's name of this job; the process id outside of any."""
    return os.environ.get(JOB_ID) or os.environ.get("SLURM_JOB_ID") or str(os.getpid())


def job_start() -> float | None:
    """When this life of the job began (seconds since the epoch), before Python was up; None where nobody said it."""
    try:
        return float(os.environ.get(START, ""))
    except ValueError:
        return None


def life() -> int:
    """How often SLURM has started this job before."""
    count = os.environ.get("SLURM_RESTART_COUNT", "0")
    return int(count) if count.isdecimal() else 0


def flag_path(study: Path, job: str, life: int) -> Path:
    """The stop flag of one life of a job; the batch script makes it under the same name."""
    return study / LAUNCH / STOP_FILES / f"{job}.{life}"


def cancel_path(study: Path, job: str) -> Path:
    return study / LAUNCH / STOP_FILES / f"{job}{CANCELLED}"


def raise_flag(path: Path, why: str) -> None:
    """Make the flag; one that is there says already why."""
    path.parent.mkdir(exist_ok=True)
    if not path.exists():
        write_atomically(path, (why + "\n").encode())


def flag_reason(path: Path) -> str:
    """Why the flag was raised; empty while it was not."""
    try:
        return path.read_text().strip() or "?"
    except FileNotFoundError:
        return ""
