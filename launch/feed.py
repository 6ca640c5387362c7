"""Feeding this machine: starts the next run as soon as a slot is free, never more than the cluster's slots at once.

It runs inside `submit-sweep submit DIR cluster=local` until all runs have ended. A failed run does not stop the others. On
Ctrl-C nothing more starts, the running ones save and leave; a second Ctrl-C kills them. Not here: which runs to start.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch import canary
from launch.cluster import LocalCluster
from launch.display import Display
from launch.executor import LocalHandle, start_local
from launch.failures import FailureClass, last_line, one_line
from launch.interrupt import Interrupts
from launch.job import WorkerJob, cancel_path, is_complete
from launch.lease import holder, signal_holder
from launch.ledger import (
    DONE,
    ELSEWHERE,
    ENDED,
    FAILED,
    INTERRUPTED,
    LAUNCH,
    SUBMITTED,
    append_event,
    count_lines,
    next_attempt,
    read_attempts,
)
from launch.limits import overspent
from launch.past import close
from launch.prepare import task_of
from launch.retries import may_go_on, stop_study, study_stopped
from launch.rows import Row, cost_of, waiting_text, waits_for
from launch.status import eta_seconds, gather
from launch.worker import NO_SPACE
from lst.records import LEASE

POLL_SECONDS = 0.05  # how soon a free slot is seen
LOOK_SECONDS = 1.0  # how often files are read for the display and for runs of other submitters
SIGNAL_SECONDS = 2.0  # a stop signal is repeated: a worker that was just starting may have missed it


@dataclass
class Slot:
    """A run that is alive, started by us (`handle`) or found running (None)."""

    row: Row
    handle: LocalHandle | None
    attempt: int = 0
    gpu: int | None = None


class Feeder:
    """Runs `queue` (in this order) on this machine, beside the runs `foreign` that are alive already."""

    def __init__(
        self,
        study: Path,
        cluster: LocalCluster,
        *,
        queue: Sequence[Row],
        foreign: Sequence[Row],
        root: Path | None,
        display: Display,
        interrupts: Interrupts,
        announce: Callable[[list[str]], None],
        trainer_argv: Sequence[str] | None = None,
        canary_steps: int = 0,
        behind: Sequence[Row] = (),
    ) -> None:
        self.canary_steps = canary_steps
        self.behind = [row.run_id for row in behind]  # runs that start after these
        self.study = study
        self.cluster = cluster
        self.queue = list(queue)
        self.rows = [*queue, *foreign]
        self.slots = [Slot(row, None) for row in foreign]
        self.root = root
        self.display = display
        self.interrupts = interrupts
        self.announce = announce  # told the run_ids that still wait, whenever they change
        self.trainer_argv = trainer_argv
        self._looked = 0.0
        self._signalled = 0.0
        self._stopping_since = 0.0
        self._fraction = 0.0  # share of the work that is done, by cost
        self._eta: float | None = None

    def run(self) -> None:
        """Return when every run has ended, or when all have left after an interrupt.

        Raises OSError on a full disk, for instance, after telling the running ones to save and leave.
        """
        try:
            self._loop()
        except OSError:
            for slot in self.slots:
                if slot.handle is not None:
                    slot.handle.signal(signal.SIGTERM)
            raise
        finally:
            self.display.clear()

    def _loop(self) -> None:
        self._announce()
        while self.queue or self.slots:
            look = time.monotonic() - self._looked >= LOOK_SECONDS
            self._reap(look)
            if self.interrupts.count:
                self._stop()
            else:
                self._fill()
            if look:
                self._looked = time.monotonic()
                self._estimate()
            ended = len(self.rows) - len(self.queue) - len(self.slots)
            self.display.progress(ended, len(self.rows), len(self.slots), self._fraction, self._eta)
            if self.queue or self.slots:
                time.sleep(POLL_SECONDS)

    def _fill(self) -> None:
        """Start runs while there are free slots. A run that somebody else began meanwhile is watched instead."""
        if self.queue and self._stopped():
            return
        while self.queue and len(self.slots) < self.cluster.slots:
            ready = next((place for place, row in enumerate(self.queue) if not waits_for(self.study, row)), None)
            if ready is None:
                if not self.slots:  # nothing that runs will end what they wait for
                    self.display.note(waiting_text(self.study, self.queue))
                    self.queue.clear()
                return
            row = self.queue.pop(ready)
            self._announce()
            if cancel_path(self.study, row.run_id).exists():
                self.rows.remove(row)
                continue
            if is_complete(row.folder(self.study)) or holder(row.folder(self.study) / LEASE) is not None:
                self.slots.append(Slot(row, None))
                continue
            self.slots.append(self._start(row))

    def _announce(self) -> None:
        self.announce([*(row.run_id for row in self.queue), *self.behind])

    def _stopped(self) -> bool:
        """Whether the study was stopped, after which nothing more starts."""
        stopped = study_stopped(self.study)
        found = f"the study is stopped: {stopped}" if stopped else overspent(self.study)
        if found:
            self.queue.clear()
            self.announce([])
            self.display.note(found)
        return bool(found)

    def _start(self, row: Row) -> Slot:
        assert self.root is not None, "runs wait, and no code was frozen for them"
        taken = {slot.gpu for slot in self.slots}
        gpu = next((g for g in range(self.cluster.gpus) if g not in taken), None)
        job = WorkerJob(
            study=str(self.study),
            run_id=row.run_id,
            root=str(self.root),
            code=self.root.name,
            threads=self.cluster.threads,
            gpus=0 if gpu is None else 1,
            environment=self.cluster.environment,
            canary_steps=self.canary_steps,
            task=task_of(self.study, row),
        )
        attempt = next_attempt(read_attempts(self.study).get(row.run_id, []))
        handle = start_local(self.study / LAUNCH, job, self.cluster, gpu=gpu, trainer_argv=self.trainer_argv)
        append_event(self.study, SUBMITTED, row.run_id, attempt=attempt, job_id=handle.job_id, cluster="local")
        return Slot(row, handle, attempt, gpu)

    def _reap(self, look: bool) -> None:
        """Free the slots of runs that have ended: worker gone, and nobody (an orphaned trainer) holding the run any more."""
        for slot in list(self.slots):
            ready = look if slot.handle is None else slot.handle.ended()
            if not ready or holder(slot.row.folder(self.study) / LEASE) is not None:
                continue
            self.slots.remove(slot)
            if slot.handle is not None:
                self._settle(slot, slot.handle)
                slot.handle.clean()
            (status,) = gather(self.study, [slot.row])
            self.display.ended(status, len(self.rows) - len(self.queue) - len(self.slots), len(self.rows))
            if self.canary_steps and status.state not in (DONE, FAILED):  # it goes on behind the others
                self.behind.append(slot.row.run_id)
                self._announce()

    def _settle(self, slot: Slot, handle: LocalHandle) -> None:
        """Give the attempt its end in the ledger where its worker could not."""
        run_dir, complaint = slot.row.folder(self.study), handle.complaint()
        attempts = read_attempts(self.study).get(slot.row.run_id, [])
        mine = next((a for a in attempts if a.job_id == handle.job_id), None)
        if mine is None or mine.ended is not None:
            return
        if is_complete(run_dir):
            close(self.study, run_dir, mine, None, "")
        elif self.interrupts.count:
            cause = "stopped before it had saved"
            close(self.study, run_dir, mine, FailureClass.CANCELLED, cause, state=INTERRUPTED)
        elif handle.exit_status == NO_SPACE:
            cause = "no space left for the run's own files; free some, and call submit-sweep resubmit."
            close(self.study, run_dir, mine, FailureClass.DISK_FULL, cause, state=FAILED)
        elif mine.started is None and handle.exit_status == 0:  # it has found another runner
            append_event(self.study, ENDED, run_dir.name, attempt=mine.attempt, job_id=handle.job_id, state=ELSEWHERE)
        else:
            close(self.study, run_dir, mine, FailureClass.LOST, last_line(complaint) or "its worker was killed")

    def _stop(self) -> None:
        """Tell all runs to save and leave; kill them after the grace, or at once on a second signal."""
        now = time.monotonic()
        if not self._stopping_since:
            self._stopping_since = now
            self.queue.clear()
            if self.slots:
                self.display.note(f"stopping: {len(self.slots)} running save and leave (once more to kill them)")
        if self.interrupts.count > 1 or now - self._stopping_since > self.cluster.stop_grace_seconds:
            for slot in self.slots:
                slot.handle.kill() if slot.handle is not None else signal_holder(
                    slot.row.folder(self.study) / LEASE, signal.SIGKILL
                )
            return
        if now - self._signalled >= SIGNAL_SECONDS:
            self._signalled = now
            for slot in self.slots:
                if slot.handle is not None and not slot.handle.ended():
                    slot.handle.signal(signal.SIGTERM)
                else:
                    signal_holder(slot.row.folder(self.study) / LEASE, signal.SIGTERM)

    def _estimate(self) -> None:
        """How far all runs are, and when they will be through."""
        statuses = gather(self.study, self.rows)
        costs = cost_of(self.rows)
        self._fraction = sum(costs[s.run_id] * s.fraction for s in statuses) / sum(costs.values())
        self._eta = eta_seconds(self.rows, statuses, self.cluster.slots)


def feed(
    study: Path,
    cluster: LocalCluster,
    *,
    queue: Sequence[Row],
    foreign: Sequence[Row],
    root: Path | None,
    display: Display,
    interrupts: Interrupts,
    announce: Callable[[list[str]], None],
    trainer_argv: Sequence[str] | None = None,
) -> None:
    """Run `queue` beside `foreign`, after the canaries if the cluster wants any. Raises as `Feeder.run`.

    A canary that was interrupted is tried again where `launch.retries` allows it; else the next one of its arm takes its place.
    """

    for row in queue:
        cancel_path(study, row.run_id).unlink(missing_ok=True)  # of an earlier call

    def run(rows: Sequence[Row], beside: Sequence[Row], canary_steps: int = 0, behind: Sequence[Row] = ()) -> None:
        Feeder(
            study, cluster, queue=rows, foreign=beside, root=root, display=display, interrupts=interrupts,
            announce=announce, trainer_argv=trainer_argv, canary_steps=canary_steps, behind=behind,
        ).run()  # fmt: skip

    def open_rows(rows: Sequence[Row]) -> list[Row]:
        return [row for row in rows if not is_complete(row.folder(study)) and not cancel_path(study, row.run_id).exists()]

    since = count_lines(study)
    while root is not None and cluster.canary_steps and (chosen := canary.canaries(study, queue, root.name)):
        display.note(f"{len(chosen)} canaries of {cluster.canary_steps} steps first")
        run(chosen, (), cluster.canary_steps, [row for row in queue if row not in chosen])
        attempts = read_attempts(study)
        if found := canary.failed(chosen, attempts, since, root.name):
            stop_study(study, one_line(found))
        if found or interrupts.count:
            return
        if study_stopped(study) or overspent(study):
            break  # which is told below
        passed = [row for row in chosen if canary.passed(study, [row], attempts, since, root.name)]
        if passed:
            canary.note_passed(study, passed, root.name)
        left = [row for row in chosen if row not in passed and not may_go_on(attempts.get(row.run_id, ()))]
        queue = open_rows([row for row in queue if row not in left])
    run(open_rows(queue), foreign)
