"""The job: one run, one runner. It holds the run's lease, starts the trainer, and tells the ledger how that ended.

    python -m launch.worker SPEC.json NUMBER SHA256

Imports neither torch nor pandas; the trainer is a subprocess, `python -m lst.train RUN_DIR`, on SLURM one srun task a process of
the run. It prints straight into log.txt, so that nothing is lost when the worker dies. Whatever asks to stop (a signal, the
batch script's flag, the time limit, the budget) becomes the flag that all processes of the trainer see at a step boundary. Exit
codes: 0 nothing to add, 1 the run has failed, 74 no space left, 75 queue the job again. Not here: which runs to start.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from launch.command import trainer_command
from launch.failures import (
    FailureClass,
    count_oom_kills,
    failure_stamp,
    failure_text,
    judge_death,
    log_tail,
    read_failure,
    write_failure,
)
from launch.job import FLAG, WorkerJob, is_complete, job_id, job_start, life, raise_flag, read_job
from launch.lease import BEAT_SECONDS, Lease, process_mark
from launch.ledger import DONE, ELSEWHERE, ENDED, FAILED, INTERRUPTED, STARTED, append_event, next_attempt, read_attempts
from launch.limits import look, overspent
from launch.past import close_former_life, ended_in_order
from launch.progress import own_flops, recorded_step, saved_flops
from launch.retries import may_go_on, stop_if_alike, study_stopped
from launch.snapshot import altered
from launch.watch import Stop, Watch
from launch.withdrawn import called_off
from lst.errors import LstError
from lst.records import EXIT, FAILURE, LEASE, LOG, write_json

NO_SPACE = 74  # a worker leaves with it where it finds no space for its own files; its words may have found none either
RESTART = 75  # the trainer has saved and asks to be run again; a worker that leaves with it asks to be queued again
FRUITLESS_RESTARTS = 3  # restarts in a row without a new step, after which the run has failed
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
POLL_SECONDS = 0.25
FEED_SECONDS, FEED_AGAIN_SECONDS = 180.0, 10.0  # where SLURM does not answer, how long a job at its end asks again, and how often

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How an attempt ended."""

    state: str  # done, failed, interrupted, or elsewhere
    cause: str = ""
    failure: str = ""  # the class, of a failure or an interruption
    again: bool = False  # whether the job is to be queued again


def run_job(job: WorkerJob, trainer_argv: Sequence[str] | None = None, *, runner: type[Runner] | None = None) -> Outcome:
    """Train one run to its end, or until something asks to stop, by a `runner` an attempt. `trainer_argv` is for tests only.

    Leaves at once where another runner holds the run, the run is complete or the study is stopped. Raises OSError if the ledger
    cannot be written.
    """
    with Signals() as signals:
        lease = Lease.acquire(job.run_dir / LEASE, beats=True, job_id=job_id())
        if lease is None:
            _withdraw(job)
            return Outcome(state=ELSEWHERE, cause="another runner holds the run")
        try:
            return _hold(job, lease, signals, trainer_argv, runner or Runner)
        finally:
            lease.release()


def _withdraw(job: WorkerJob) -> None:
    """Take the attempt that was submitted for this job back: the run has another runner."""
    attempts = read_attempts(Path(job.study)).get(job.run_id, []) if job.cluster == "slurm" else []
    for attempt in attempts:
        if attempt.job_id == job_id() and attempt.started is None and attempt.ended is None:
            append_event(Path(job.study), ENDED, job.run_id, attempt=attempt.attempt, job_id=job_id(), state=ELSEWHERE)


def _hold(job: WorkerJob, lease: Lease, signals: Signals, trainer_argv: Sequence[str] | None, runner: type[Runner]) -> Outcome:
    """One attempt after the other, as long as the policy of retries has it."""
    study = Path(job.study)
    attempts = read_attempts(study).get(job.run_id, [])
    closed = close_former_life(study, job, attempts, lease.former)
    if is_complete(job.run_dir):
        return Outcome(state=DONE)
    if not closed and (last := ended_in_order(study, attempts)) is not None:
        return Outcome(state=last.state, cause=last.cause)
    if closed:
        attempts = read_attempts(study).get(job.run_id, [])
        if not may_go_on(attempts):
            return Outcome(state=FAILED, cause=attempts[-1].cause)
    since = job_start()  # the first attempt's GPU-hours count from there: Python's start is paid for too
    while True:
        off = FailureClass.CANCELLED if called_off(study, job.token, [job.run_id]) else ""
        found = off or study_stopped(study) or overspent(study)
        if found:
            end = {"state": INTERRUPTED, "cause": found, "class": off}
            append_event(study, ENDED, job.run_id, attempt=next_attempt(attempts, job_id()), job_id=job_id(), **end)
            return Outcome(state=INTERRUPTED, cause=found, failure=off)
        number = next_attempt(attempts, job_id())
        attempt = runner(job, attempt=number, lease=lease, signals=signals, trainer_argv=trainer_argv, since=since)
        outcome, since = attempt.attempt_once(), None
        attempts = read_attempts(study).get(job.run_id, [])
        if outcome.state == FAILED:
            stop_if_alike(study)
        if outcome.state != FAILED or not may_go_on(attempts):
            return outcome


class Signals:
    """While entered, stop signals are remembered: the first one decides, and USR1 or USR2 came before Python was up too."""

    def __init__(self) -> None:
        self.first = 0
        self.trainer: subprocess.Popen[bytes] | None = None  # started without srun: it is told at once
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        for number in STOP_SIGNALS:
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.first:
            return
        self.first = number
        if self.trainer is not None:
            self.trainer.send_signal(signal.SIGTERM)


class Runner:
    """One attempt: starts the trainer, watches over it, and judges how it ended."""

    def __init__(
        self,
        job: WorkerJob,
        *,
        attempt: int,
        lease: Lease,
        signals: Signals,
        trainer_argv: Sequence[str] | None,
        since: float | None = None,
    ) -> None:
        """`since`: when the job of this attempt began (seconds since the epoch), if not just now."""
        self.job = job
        self.attempt = attempt
        self.lease = lease
        self.signals = signals
        self.command = trainer_command(job, trainer_argv)
        self.watch = Watch(job, look=lambda: look(Path(job.study), job.run_id))
        self.stop: Stop | None = None  # why the trainer was told to leave
        self.fenced = False  # whether another runner has taken the run over
        self.since = since or round(time.time(), 3)
        self._flops_before = 0.0
        self._beaten = 0.0

    def attempt_once(self) -> Outcome:
        """From `started` to `ended` in the ledger."""
        run_dir = self.job.run_dir
        self._flops_before = saved_flops(run_dir)
        about = {"host": socket.gethostname(), "gpus": self.job.gpus, "code": self.job.code, "cluster": self.job.cluster}
        now = {"token": self.job.token, "life": life(), "step": recorded_step(run_dir), "flops": self._flops_before}
        began = round(time.time(), 3)
        self.tell(STARTED, time=began, since=self.since, **about, **now)
        outcome = self._run()
        if not self.fenced:
            spent = own_flops(run_dir, before=self._flops_before, started=began)
            ended = {"class": outcome.failure, "step": recorded_step(run_dir), "flops": spent}
            self.tell(ENDED, state=outcome.state, cause=outcome.cause, **ended)
            self.watch.flag.unlink(missing_ok=True) if self.job.cluster == "local" else None
        return outcome

    def tell(self, event: str, **fields: Any) -> None:
        """Append an event of this attempt to the ledger."""
        append_event(Path(self.job.study), event, self.job.run_id, attempt=self.attempt, job_id=job_id(), **fields)

    def _run(self) -> Outcome:
        """Train until the run is complete, has failed, or is told to stop."""
        found = self._wrong_code() or self.watch.too_short()
        if found:
            return self._failed(FailureClass.CONFIG, found)
        restarts = 0
        while not self._look():
            before = recorded_step(self.job.run_dir)
            outcome = self._train_once()
            if outcome is not None:
                return outcome
            restarts = 0 if recorded_step(self.job.run_dir) > before else restarts + 1
            if restarts >= FRUITLESS_RESTARTS:
                cause = f"the trainer asked {restarts} times to be run again without a new step."
                return self._failed(FailureClass.ERROR, cause)
        return self._interrupted()

    def _train_once(self) -> Outcome | None:
        """One life of the trainer; None when it asks to be run again."""
        run_dir, stamp, oom_kills = self.job.run_dir, failure_stamp(self.job.run_dir), count_oom_kills()
        exit_code, since = self._live()
        if self.fenced:
            return Outcome(state=ELSEWHERE, cause="another runner has taken the run over")
        if self.job.task and exit_code == 0:
            write_json(run_dir / EXIT, {"run_id": self.job.run_id, "status": DONE, "step": 1})
            (run_dir / FAILURE).unlink(missing_ok=True)
        if is_complete(run_dir):
            return Outcome(state=DONE)
        if exit_code == RESTART:
            return self._interrupted() if self.stop else None
        if failure_stamp(run_dir) not in (stamp, None):
            failure = (read_failure(run_dir) or {}) | {"node": socket.gethostname(), "attempt": self.attempt}
            write_json(run_dir / FAILURE, failure)
            return Outcome(state=FAILED, cause=failure_text(failure), failure=str(failure.get("class", "error")))
        if self.stop is None and self.watch.flag.exists():  # it came just now, and srun was quicker
            self._look()
        if self.stop:  # killed before it could save: it goes on from its last checkpoint
            return self._interrupted()
        tail = log_tail(run_dir, since)
        judged, cause = judge_death(exit_code, tail, count_oom_kills() - oom_kills)
        if judged is FailureClass.NODE_FAILURE:  # no try here helps: the job has to be queued again
            self.stop = Stop(failure=judged, cause=cause, again=True)
            return self._interrupted()
        return self._failed(judged, cause, tail)

    def _live(self) -> tuple[int, int]:
        """Run the trainer to its end: its exit status, and where in log.txt its output begins."""
        environment = self.command.environment | {"LST_ATTEMPT": str(self.attempt), "LST_LEASE": self.lease.owner}
        environment[FLAG] = str(self.watch.flag)
        with (self.job.run_dir / LOG).open("ab") as output:
            when = time.strftime("%Y-%m-%d %H:%M:%S")
            output.write(f"--- attempt {self.attempt}, job {job_id()}, {socket.gethostname()}, {when} ---\n".encode())
            output.flush()
            since = output.tell()
            with subprocess.Popen(
                self.command.argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=(self.lease.file,),
            ) as trainer:
                self.signals.trainer = None if self.command.by_srun and not self.job.task else trainer  # a task knows no flag
                self.lease.describe(job_id=job_id(), attempt=self.attempt, trainer=process_mark(trainer.pid))
                if self.signals.first and not self.command.by_srun:  # it came while the process was being made
                    trainer.send_signal(signal.SIGTERM)
                try:
                    return self.command.exit_status(self._wait(trainer)), since
                finally:
                    self.signals.trainer = None

    def _wait(self, trainer: subprocess.Popen[bytes]) -> int:
        """Look around until the trainer is gone."""
        while True:
            try:
                return trainer.wait(POLL_SECONDS)
            except subprocess.TimeoutExpired:
                self._look()
                if self.fenced:
                    trainer.kill()

    def _look(self) -> bool:
        """Whether the trainer has to leave; once it has, the flag stands. Beats the lease."""
        now = time.monotonic()
        if now - self._beaten >= BEAT_SECONDS:
            self._beaten = now
            self.fenced = self.fenced or not self.lease.beat()
        if self.stop is None:
            self.stop = self._told() or self.watch.reason()
            if self.stop is not None:
                raise_flag(self.watch.flag, self.stop.failure.value)
                if self.signals.trainer is not None:
                    self.signals.trainer.send_signal(signal.SIGTERM)
        return self.stop is not None or self.fenced

    def _told(self) -> Stop | None:
        """The reason in a signal that this process got itself."""
        number = self.signals.first
        if not number:
            return None
        name = signal.Signals(number).name
        if self.job.cluster == "slurm" and number in (signal.SIGUSR1, signal.SIGUSR2):
            return Stop(failure=FailureClass.PREEMPTED, cause=f"SLURM takes the job's place ({name})", again=True)
        return Stop(failure=FailureClass.CANCELLED, cause=f"stopped by {name}")

    def _interrupted(self) -> Outcome:
        if self.fenced or self.stop is None:
            return Outcome(state=ELSEWHERE, cause="another runner has taken the run over")
        stop = self.stop
        if stop.failure is not FailureClass.CANARY:
            write_failure(self.job.run_dir, stop.failure, stop.cause, attempt=self.attempt)
        return Outcome(state=INTERRUPTED, cause=stop.cause, failure=stop.failure.value, again=stop.again)

    def _failed(self, failure: FailureClass, cause: str, tail: str = "") -> Outcome:
        try:
            content: dict[str, Any] = write_failure(self.job.run_dir, failure, cause, attempt=self.attempt, log_tail=tail)
        except OSError as error:  # a full disk: the ledger still gets the cause if it can
            log.error("failure.json of %s could not be written: %s", self.job.run_id, error)
            content = {"class": failure.value, "cause": cause}
        return Outcome(state=FAILED, cause=failure_text(content), failure=failure.value)

    def _wrong_code(self) -> str:
        """Why the code is not what was submitted; empty where it is."""
        here, root = Path(__file__).resolve().parents[1], Path(self.job.root).resolve()
        if here != root:
            return f"the worker runs from '{here}', not from '{root}'; clean PYTHONPATH."
        if self.job.code and altered(root, self.job.code):
            return f"the code snapshot '{root}' was altered after submitting; delete it and submit again."
        return ""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of a job."""
    spec, number, sha256, *trainer_argv = sys.argv[1:] if argv is None else argv
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        job = read_job(Path(spec), int(number), sha256)
        outcome = run_job(job, trainer_argv or None)
    except LstError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        with contextlib.suppress(OSError):  # the log is on the same filesystem, most likely
            print(f"error: {error.strerror}", file=sys.stderr, flush=True)
        return NO_SPACE
    print(f"{outcome.state} {outcome.cause}".strip(), flush=True)
    if outcome.again and outcome.state == INTERRUPTED and may_go_on(read_attempts(Path(job.study)).get(job.run_id, [])):
        return RESTART
    if job.cluster == "slurm":
        _feed(job, trainer_argv)
    return 1 if outcome.state == FAILED else 0


def _feed(job: WorkerJob, trainer_argv: Sequence[str]) -> None:
    """Submit what waited for this job's place. What goes wrong is told to the job's log: the run itself has ended well or not."""
    from launch.order import pump
    from launch.scheduler import NoAnswer

    deadline = time.monotonic() + FEED_SECONDS
    while True:
        try:
            return pump(Path(job.study), Path(job.root), trainer_argv=trainer_argv or None)
        except (LstError, OSError) as error:
            print(f"what waits was not submitted: {error}", file=sys.stderr, flush=True)
            if not isinstance(error, NoAnswer) or time.monotonic() > deadline:
                return None
        time.sleep(FEED_AGAIN_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
