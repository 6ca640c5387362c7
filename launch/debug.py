"""`cluster=debug`: one row in this very process, where breakpoints in the trainer are met and its output is on the terminal.

    python -m pdb -m launch.cli submit DIR cluster=debug --run RUN

The run has its lease, ledger, stop flags and limits as anywhere; a thread does what a worker does meanwhile. It runs the code
that is there, not a snapshot. Not here: choosing the row (`launch.submit`).
"""

from __future__ import annotations

import importlib
import os
import signal
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from launch.cluster import DebugCluster
from launch.environment import THREAD_LIMITS
from launch.failures import read_failure
from launch.job import FLAG, JOB_ID, WorkerJob
from launch.ledger import FAILED
from launch.rows import EVAL, TASK, Row
from launch.snapshot import code_root
from launch.worker import POLL_SECONDS, RESTART, Outcome, Runner, run_job
from lst.errors import LaunchError

TRAINER = "lst.train.__main__"  # by name: the launcher knows the trainer as a command, and what it imports stays out of here


def run_here(study: Path, row: Row, cluster: DebugCluster) -> Outcome:
    """Train the run in this process, until it ends or Ctrl-C. Raises LaunchError for what is no training."""
    if row.kind in (TASK, EVAL):
        what = "part of a preparation; run prepare-data" if row.kind == TASK else "an evaluation; run python -m lst.evals"
        raise LaunchError(f"cluster=debug trains runs, and '{row.run_id}' is {what} itself.")
    root = str(code_root())
    job = WorkerJob(study=str(study), run_id=row.run_id, root=root, threads=cluster.threads, gpus=min(1, row.gpus))
    name = {JOB_ID: uuid.uuid4().hex[:12]}  # not that of an allocation in which there may be two such runs
    with _variables(name | dict.fromkeys(THREAD_LIMITS, str(cluster.threads))):
        return run_job(job, runner=HereRunner)


def traceback_of(study: Path, row: Row, outcome: Outcome) -> str:
    """What failure.json tells of where it went wrong; empty where the run has not failed."""
    failure = read_failure(row.folder(study)) if outcome.state == FAILED else None
    return str((failure or {}).get("traceback", "")).rstrip()


class HereRunner(Runner):
    """An attempt whose trainer is no process of its own."""

    def _live(self) -> tuple[int, int]:
        mine = {"LST_ATTEMPT": str(self.attempt), "LST_LEASE": self.lease.owner, FLAG: str(self.watch.flag)}
        self.lease.describe(attempt=self.attempt)
        ended = threading.Event()

        def look() -> None:
            while not ended.wait(POLL_SECONDS):
                self._look()

        watching = threading.Thread(target=look, daemon=True)
        watching.start()
        try:
            with _variables(mine):
                code = int(importlib.import_module(TRAINER).main([str(self.job.run_dir)]))
        finally:
            ended.set()
            watching.join()
        if code == RESTART and self.stop is None:  # the trainer has taken Ctrl-C for itself
            self.signals.first = signal.SIGINT
        return code, 0


@contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables, as long as it lasts."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
