"""The job: one run, one runner. It holds the run's lease, starts the trainer, and tells the ledger how that ended.

submitit runs `run_job` in a process that imports neither torch nor pandas; the trainer is a subprocess,
`python -m lst.train RUN_DIR`. It prints straight into log.txt, so that nothing is lost when the worker dies. Stop signals
are forwarded: the trainer saves, leaves with 75, and the run waits for the next submit (or is requeued, on SLURM). A
trainer that leaves with 75 by itself is started again. Not here: which runs to start (`launch.submit`).
"""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from launch.environment import job_environment
from launch.failures import (
    FailureClass,
    count_oom_kills,
    failure_stamp,
    failure_text,
    judge_death,
    last_record,
    log_tail,
    read_failure,
    write_failure,
)
from launch.lease import LEASE, Lease, process_mark
from launch.ledger import DONE, ENDED, FAILED, INTERRUPTED, STARTED, append_event, next_attempt, read_attempts
from launch.snapshot import code_hash
from lst.plain import from_dict
from lst.records import EXIT, LOG, TRAIN_RECORDS, read_json

RESTART = 75  # the trainer has saved and asks to be run again
FRUITLESS_RESTARTS = 3  # restarts in a row without a new step, after which the run has failed
ELSEWHERE = "elsewhere"  # another runner holds the run
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class WorkerJob:
    """Everything a worker needs, as plain values: it is what submitit stores."""

    study: str  # folder of the study, absolute
    run_id: str
    root: str  # folder of the five packages, absolute
    code: str = ""  # hash that the packages below root must have; empty = not checked
    threads: int = 1  # CPU threads of the trainer
    gpus: int = 0  # GPUs the run holds, for the account
    environment: str = ""  # further variables handed to the trainer, by comma
    cluster: str = "local"  # local or slurm; on slurm, USR2 (time limit, preemption) queues the job again

    @property
    def run_dir(self) -> Path:
        return Path(self.study) / "runs" / self.run_id


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How an attempt ended."""

    state: str  # done, failed, interrupted, or elsewhere
    cause: str = ""


def run_job(values: dict[str, Any], trainer_argv: list[str] | None = None) -> dict[str, str]:
    """Train one run to its end, or to a stop signal; returns {"state", "cause"}. `trainer_argv` is for tests only.

    Leaves at once where another runner holds the run or the run is complete. Raises OSError if the ledger cannot be written.
    """
    job = from_dict(WorkerJob, values)
    lease = Lease.acquire(job.run_dir / LEASE, job_id=job_id())
    if lease is None:
        return {"state": ELSEWHERE, "cause": "another runner holds the run"}
    try:
        if is_complete(job.run_dir):
            return {"state": DONE, "cause": ""}
        attempt = next_attempt(read_attempts(Path(job.study)).get(job.run_id, []), job_id())
        runner = Runner(job, attempt=attempt, lease=lease, trainer_argv=trainer_argv)
        runner.listen()
        runner.tell(STARTED, host=socket.gethostname(), gpus=job.gpus, code=job.code, cluster=job.cluster)
        outcome = runner.run()
        runner.tell(ENDED, state=outcome.state, cause=outcome.cause)
    finally:
        lease.release()
    if job.cluster == "slurm" and runner.stopped_by == signal.SIGUSR2 and outcome.state == INTERRUPTED:
        subprocess.run(["scontrol", "requeue", job_id()], check=True, timeout=60)
    return dataclasses.asdict(outcome)


class Runner:
    """Starts the trainer, forwards signals to it, and judges how it ended."""

    def __init__(self, job: WorkerJob, *, attempt: int, lease: Lease, trainer_argv: list[str] | None = None) -> None:
        self.job = job
        self.attempt = attempt
        self.lease = lease
        self.argv = [*(trainer_argv or [sys.executable, "-m", "lst.train"]), str(job.run_dir)]
        self.stopped_by = 0  # the first stop signal that came
        self.trainer: subprocess.Popen[bytes] | None = None

    def listen(self) -> None:
        """Take signals from now on: stop signals end the run in order, USR1 makes the trainer save and go on."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._stop)
        signal.signal(signal.SIGUSR1, self._forward)

    def tell(self, event: str, **fields: Any) -> None:
        """Append an event of this attempt to the ledger."""
        append_event(Path(self.job.study), event, self.job.run_id, attempt=self.attempt, job_id=job_id(), **fields)

    def run(self) -> Outcome:
        """Train until the run is complete, has failed, or is told to stop."""
        found = self._wrong_code()
        if found:
            return self._failed(FailureClass.CONFIG, found)
        fruitless = 0
        while not self.stopped_by:
            before = self._step()
            outcome = self._train_once()
            if outcome is not None:
                return outcome
            fruitless = 0 if self._step() > before else fruitless + 1
            if fruitless >= FRUITLESS_RESTARTS:
                return self._failed(
                    FailureClass.ERROR, f"the trainer asked {fruitless} times to be run again without a new step."
                )
        return self._interrupted()

    def _train_once(self) -> Outcome | None:
        """One life of the trainer; None when it asks to be run again."""
        run_dir, stamp, oom_kills = self.job.run_dir, failure_stamp(self.job.run_dir), count_oom_kills()
        exit_code, since = self._live()
        if is_complete(run_dir):
            return Outcome(state=DONE)
        if exit_code == RESTART:
            return None
        if failure_stamp(run_dir) not in (stamp, None):
            failure = read_failure(run_dir) or {}
            state = INTERRUPTED if failure.get("class") == FailureClass.INTERRUPTED else FAILED
            return Outcome(state=state, cause=failure_text(failure))
        if self.stopped_by:  # killed by the signal before it could save: it goes on from its last checkpoint
            return self._interrupted()
        tail = log_tail(run_dir, since)
        return self._failed(*judge_death(exit_code, tail, count_oom_kills() - oom_kills), tail)

    def _live(self) -> tuple[int, int]:
        """Run the trainer to its end: its exit status, and where in log.txt its output begins."""
        names = tuple(part.strip() for part in self.job.environment.split(",") if part.strip())
        environment = job_environment(os.environ, root=Path(self.job.root), threads=self.job.threads, allow=names)
        environment["LST_ATTEMPT"] = str(self.attempt)
        with (self.job.run_dir / LOG).open("ab") as output:
            when = time.strftime("%Y-%m-%d %H:%M:%S")
            output.write(f"--- attempt {self.attempt}, job {job_id()}, {socket.gethostname()}, {when} ---\n".encode())
            output.flush()
            since = output.tell()
            with subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=(self.lease.file,),
            ) as trainer:
                self.trainer = trainer
                self.lease.describe(job_id=job_id(), attempt=self.attempt, trainer=process_mark(trainer.pid))
                if self.stopped_by:  # the signal came while the process was being made
                    trainer.send_signal(signal.SIGTERM)
                return trainer.wait(), since

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        """Remember the first stop signal and tell the trainer, once; it saves at the next step boundary."""
        if self.stopped_by:
            return
        self.stopped_by = number
        if self.trainer is not None:
            self.trainer.send_signal(signal.SIGTERM)

    def _forward(self, number: int, _frame: FrameType | None) -> None:
        if self.trainer is not None:
            self.trainer.send_signal(number)

    def _interrupted(self) -> Outcome:
        return Outcome(state=INTERRUPTED, cause=f"stopped by {signal.Signals(self.stopped_by).name}")

    def _failed(self, failure: FailureClass, cause: str, tail: str = "") -> Outcome:
        try:
            content: dict[str, Any] = write_failure(self.job.run_dir, failure, cause, attempt=self.attempt, log_tail=tail)
        except OSError as error:  # a full disk: the ledger still gets the cause if it can
            log.error("failure.json of %s could not be written: %s", self.job.run_id, error)
            content = {"class": failure.value, "cause": cause}
        return Outcome(state=FAILED, cause=failure_text(content))

    def _wrong_code(self) -> str:
        """Why the code is not what was submitted; empty where it is."""
        here, root = Path(__file__).resolve().parents[1], Path(self.job.root).resolve()
        if here != root:
            return f"the worker runs from '{here}', not from '{root}'; clean PYTHONPATH."
        if self.job.code and code_hash(root) != self.job.code:
            return f"the code snapshot '{root}' was altered after submitting; delete it and submit again."
        return ""

    def _step(self) -> int:
        record = last_record(self.job.run_dir / TRAIN_RECORDS)
        return int(record.get("step", 0)) if record else 0


def is_complete(run_dir: Path) -> bool:
    """Whether the run's own exit record says that it is done."""
    record = read_json(run_dir / EXIT)
    return record is not None and record.get("status") == DONE and record.get("run_id", run_dir.name) == run_dir.name


def job_id() -> str:
    """The scheduler's name of this job; the process id outside of any."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    if os.environ.get("SUBMITIT_EXECUTOR") == "local":
        return os.environ["SUBMITIT_LOCAL_JOB_ID"]
    if array and task:
        return f"{array}_{task}"
    return os.environ.get("SLURM_JOB_ID", str(os.getpid()))
