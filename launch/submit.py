"""Submitting a study: which rows still have to run, each of them once, however often and by however many it is asked.

A row is submitted if the plan admits it, it is not done, nobody runs it and no scheduler holds it. One submitter at a time
holds the study's lock; another one waits, then finds nothing left to do. A run that has failed is tried once more by a call,
never twice. Not here: how a job is started (`launch.executor`), how this machine is fed (`launch.feed`).
"""

from __future__ import annotations

import dataclasses
import shutil
import signal
import stat
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launch.cluster import Cluster, DebugCluster, LocalCluster, SlurmCluster
from launch.display import Display
from launch.failures import FailureClass
from launch.interrupt import Interrupts
from launch.job import cancel_path, raise_flag
from launch.lease import Lease, holder, signal_holder
from launch.ledger import ENDED, FAILED, INTERRUPTED, LAUNCH, LOST, append_event, read_attempts
from launch.limits import change_limits, overspent
from launch.order import Order, adopt, forget, place_order, pump, read_order, take_back, top_up, write_order
from launch.past import GONE, NEVER_BEGAN, close, close_finished
from launch.prepare import task_of
from launch.retries import STOPPED, study_stopped
from launch.rows import EVAL, TASK, Row, check_run, cost_of, read_rows, require_data, waiting_text, waits_for
from launch.scheduler import cancel_jobs, slurm_site
from launch.snapshot import make_private, take_snapshot
from launch.status import OPEN_STATES, RUNNING, RunStatus, eta_seconds, gather, is_planned, lock_path
from lst.errors import LaunchError, did_you_mean
from lst.records import LEASE

NEEDED_MIB = 64  # free space below which nothing is started
FOLLOW_SECONDS = 5.0
WAIT_SECONDS = 0.2
LOCK_SECONDS = 30.0  # for a worker that submits what waits


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which of the plan's rows a call is about."""

    run_ids: tuple[str, ...] = ()  # only these (or unique beginnings of them); empty = all
    failed_only: bool = False  # only runs that have failed or were lost
    classes: tuple[str, ...] = ()  # only failures of these classes

    def rows(self, rows: Sequence[Row]) -> list[Row]:
        """The rows that are named. Raises LaunchError on a name that fits none, or several."""
        if not self.run_ids:
            return list(rows)
        return [find_row(rows, name) for name in self.run_ids]

    def wants(self, status: RunStatus) -> bool:
        """Whether a run in this state is meant."""
        if not self.failed_only:
            return True
        bad = status.state in (FAILED, LOST)
        return bad and (not self.classes or status.cause.partition(":")[0] in self.classes or status.state in self.classes)


@dataclass
class Report:
    """What a call did."""

    submitted: int = 0  # runs that this call started or handed to the scheduler
    interrupted: int = 0  # exit code, if a signal ended the call
    statuses: list[RunStatus] = field(default_factory=list)  # the selected rows, afterwards


def submit(
    study: Path,
    cluster: Cluster,
    *,
    display: Display,
    wait: bool,
    selection: Selection | None = None,
    limits: Mapping[str, float] | None = None,
    trainer_argv: Sequence[str] | None = None,
) -> Report:
    """Submit what is missing. With `wait`, return when all runs have ended (on this machine that is the only way).

    Raises LaunchError on a folder without a plan, a plan of another version, a full disk, or a scheduler that refuses.
    """
    began = time.time()
    study = study.absolute()
    selection = selection or Selection()
    rows = [row for row in selection.rows(read_rows(study)) if row.admitted]
    require_data(rows)
    make_private(study / LAUNCH)
    change_limits(study, limits or {})
    report = Report()
    with Interrupts() as interrupts:
        lock = _take_lock(study, display, interrupts)
        if lock is None:
            return Report(interrupted=interrupts.exit_code, statuses=gather(study, rows))
        if warning := warn_of_writers(study):
            display.note(warning)
        try:
            close_finished(study)
            before = _begin_order(study, selection)
            if isinstance(cluster, SlurmCluster):
                adopt(study)
                before = _lower_limit(study, before, display) if limits else before
            todo, running = _choose(study, rows, selection, began)
            report.submitted = len(todo)
            root = _prepare(study, todo) if todo and not isinstance(cluster, DebugCluster) else None
            if isinstance(cluster, LocalCluster):
                from launch.feed import feed

                feed(
                    study, cluster, queue=todo, foreign=running, root=root, display=display, interrupts=interrupts,
                    announce=lambda waiting: lock.describe(waiting=waiting), trainer_argv=trainer_argv,
                )  # fmt: skip
            elif root is not None and isinstance(cluster, SlurmCluster):
                place_order(study, cluster, todo, root.name, before=before)
                report.submitted = top_up(study, root, holding=(lock.file,), trainer_argv=trainer_argv, test=True)
                if report.submitted < len(todo):
                    display.note(_waiting_text(study, todo))
        finally:
            lock.release()
        if isinstance(cluster, DebugCluster):
            return _debug(study, cluster, todo, display)
        if isinstance(cluster, SlurmCluster) and wait:
            _follow(study, rows, display, interrupts, root, trainer_argv)
        report.interrupted = interrupts.exit_code if interrupts.count else 0
    report.statuses = gather(study, rows)
    return report


def cancel(study: Path, *, selection: Selection | None = None, now: bool = False) -> list[str]:
    """Stop open runs, so that they save and leave, and take back what is queued; returns the run_ids it concerned.

    A running one is told by a file that its worker looks for, on whatever machine; with `now`, SLURM is told to end the jobs,
    which leaves them the site's KillWait to save. On this machine the whole study's submitter is stopped too, unless single
    runs are named. Nothing is deleted: submitting again goes on. Raises LaunchError where the scheduler fails.
    """
    study = study.absolute()
    selection = selection or Selection()
    rows = selection.rows(read_rows(study))
    attempts = read_attempts(study)
    concerned = [s for s in gather(study, rows) if s.state in OPEN_STATES]
    _forget(study, [s.run_id for s in concerned])
    running = [s for s in concerned if s.state == RUNNING and s.job_id]
    for status in running:
        raise_flag(cancel_path(study, status.job_id), "cancelled")
    slurm = [s for s in concerned if attempts.get(s.run_id) and attempts[s.run_id][-1].cluster == "slurm"]
    ended = [s for s in slurm if now or s.state != RUNNING]
    if ended:
        elsewhere = {attempts[s.run_id][-1].site for s in ended} - {"", site := slurm_site()}
        if site and elsewhere:
            raise LaunchError(f"this is cluster {site}, and queued jobs are on {', '.join(elsewhere)}; cancel them from there.")
        cancel_jobs([s.job_id for s in ended])
    for status in ended:
        last = attempts[status.run_id][-1]
        if last.started is None:
            end = {"state": INTERRUPTED, "cause": "cancelled", "class": FailureClass.CANCELLED.value}
            append_event(study, ENDED, status.run_id, attempt=last.attempt, job_id=last.job_id, **end)
    if not selection.run_ids:
        signal_holder(lock_path(study), signal.SIGINT)
    here = {s.run_id for s in concerned} - {s.run_id for s in slurm}
    for row in rows:
        if row.run_id in here:
            signal_holder(row.folder(study) / LEASE, signal.SIGTERM)
    return [s.run_id for s in concerned]


def _forget(study: Path, run_ids: Sequence[str]) -> None:
    """Take runs off the order, beside whoever may be submitting from it just now."""
    if not read_order(study).waiting:
        return
    lock = Lease.acquire(lock_path(study), wait=LOCK_SECONDS)
    try:
        forget(study, run_ids)
    finally:
        if lock is not None:
            lock.release()


def warn_of_writers(study: Path) -> str:
    """A warning where others may write to the study; empty where they may not."""
    mode = study.stat().st_mode
    open_to = [who for who, bit in (("its group", stat.S_IWGRP), ("everybody", stat.S_IWOTH)) if mode & bit]
    return f"warning: '{study}' can be written by {' and '.join(open_to)}; chmod go-w it" if open_to else ""


def find_row(rows: Sequence[Row], name: str) -> Row:
    """The row whose run_id is or begins with `name`. Raises LaunchError where none or several do."""
    found = [row for row in rows if row.run_id == name] or [row for row in rows if name and row.run_id.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise LaunchError(f"run '{name}' is ambiguous ({', '.join(row.run_id for row in found[:4])}); give more of its run_id.")
    raise LaunchError(f"run '{name}' is not in the plan; {did_you_mean(name, [row.run_id for row in rows][:20])}")


def _take_lock(study: Path, display: Display, interrupts: Interrupts) -> Lease | None:
    """The study's lock, once it is free; None if a signal came while waiting."""
    told = False
    while not interrupts.count:
        lock = Lease.acquire(lock_path(study), wait=WAIT_SECONDS, waiting=[])
        if lock is not None:
            return lock
        if not told:
            found = holder(lock_path(study)) or {}
            process = (found.get("process") or ["?"])[0]
            display.note(
                f"process {process} on {found.get('host', 'some host')} is submitting this study already; waiting for it"
            )
            told = True
    return None


def _begin_order(study: Path, selection: Selection) -> Order:
    """What was ordered before, once it may go on: a stopped study goes on by `resubmit` alone. Raises LaunchError."""
    stopped, before = study_stopped(study), read_order(study)
    if stopped and not selection.failed_only:
        raise LaunchError(
            f"the study is stopped: {stopped}; look with submit-sweep logs {study}, mend it, then "
            f"submit-sweep resubmit {study} --failed."
        )
    if spent := overspent(study):
        raise LaunchError(f"{spent}; raise it with limit.gpu_hours=N or limit.flops=N to go on.")
    if stopped:
        (study / LAUNCH / STOPPED).unlink()
        attempts = read_attempts(study)  # what has not failed goes on waiting, behind new canaries
        left = tuple(r for r in before.waiting if not (attempts.get(r) and attempts[r][-1].state in (FAILED, LOST)))
        before = dataclasses.replace(before, canaries=(), waiting=left)
    if not before.canaries:
        before = dataclasses.replace(before, time=round(time.time(), 3))
    write_order(study, before)
    return before


def _lower_limit(study: Path, before: Order, display: Display) -> Order:
    """`before`, with what limit.gpus has no room for any more."""
    taken = take_back(study)
    if not taken:
        return before
    display.note(f"{len(taken):,} queued jobs beyond limit.gpus are taken back, and wait")
    order = dataclasses.replace(before, waiting=before.waiting + tuple(taken))
    write_order(study, order)
    return order


def _waiting_text(study: Path, todo: Sequence[Row]) -> str:
    """What is told of rows that are not submitted yet."""
    order = read_order(study)
    children = [row for row in todo if waits_for(study, row)]
    if children:
        return waiting_text(study, children)
    waiting = len(set(order.waiting) - set(order.canaries))
    what = "the canaries" if order.canaries else order.note or "a free place"
    return f"{waiting:,} wait for {what}, and are submitted as jobs end"


def _choose(study: Path, rows: Sequence[Row], selection: Selection, began: float) -> tuple[list[Row], list[Row]]:
    """The rows to start, the longest first (so that the end is short), and those that run on this machine already."""
    statuses = gather(study, rows)
    attempts = read_attempts(study)
    todo, running = [], []
    for row, status in zip(rows, statuses, strict=True):
        last = attempts[row.run_id][-1] if attempts.get(row.run_id) else None
        tried = last is not None and max(last.started or 0.0, last.submitted or 0.0) >= began  # by another, while we waited
        if status.state == RUNNING and status.source == "lease" and (last is None or last.cluster != "slurm"):
            running.append(row)
        elif selection.wants(status) and (is_planned(status) or (status.state in (FAILED, LOST) and not tried)):
            todo.append(row)
            if status.state == LOST and last is not None and last.ended is None:
                close(study, row.folder(study), last, FailureClass.LOST, GONE if last.started else NEVER_BEGAN)
    costs = cost_of(list(rows))
    return sorted(todo, key=lambda row: -costs[row.run_id]), [] if selection.failed_only else running


def _debug(study: Path, cluster: DebugCluster, todo: Sequence[Row], display: Display) -> Report:
    """Run the cheapest row of `todo` in this process."""
    from launch.debug import run_here, traceback_of

    able = [row for row in todo if not waits_for(study, row)]
    if not able:
        return Report(statuses=gather(study, todo))
    row = able[-1]
    _check(study, [row])
    display.note(f"run {row.run_id} ({row.arm}, {row.size}) in this process; its output follows")
    outcome = run_here(study, row, cluster)
    display.note(traceback_of(study, row, outcome) or f"{outcome.state} {outcome.cause}".strip())
    interrupted = 128 + signal.SIGINT if outcome.failure == FailureClass.CANCELLED else 0
    return Report(submitted=1, interrupted=interrupted, statuses=gather(study, [row]))


def _prepare(study: Path, todo: Sequence[Row]) -> Path:
    """Check that the rows can run, and freeze the code they run with: its root."""
    _check(study, todo)
    return take_snapshot(study / LAUNCH)


def _check(study: Path, todo: Sequence[Row]) -> None:
    """Raises LaunchError where rows cannot run."""
    free = shutil.disk_usage(study).free / 2**20
    if free < NEEDED_MIB:
        raise LaunchError(f"'{study}' has {free:.0f} MiB of free space, less than {NEEDED_MIB}; free some before submitting.")
    for row in todo:
        if row.kind in (TASK, EVAL):
            task_of(study, row)
        else:
            check_run(study, row)


def _follow(
    study: Path,
    rows: Sequence[Row],
    display: Display,
    interrupts: Interrupts,
    root: Path | None,
    trainer_argv: Sequence[str] | None,
) -> None:
    """Show the runs until all have ended; an interrupt ends the looking, not the jobs."""
    reported: set[str] = set()
    costs = cost_of(list(rows))
    while not interrupts.count:
        statuses = gather(study, rows)
        open_runs = [s for s in statuses if s.state in OPEN_STATES]
        ended = [s for s in statuses if s.state not in OPEN_STATES]
        for status in ended:
            if status.run_id not in reported:
                reported.add(status.run_id)
                display.ended(status, len(reported), len(rows))
        running = sum(s.state == RUNNING for s in open_runs)
        fraction = sum(costs[s.run_id] * s.fraction for s in statuses) / sum(costs.values()) if costs else 1.0
        display.progress(len(ended), len(rows), running, fraction, eta_seconds(rows, statuses, max(1, running)))
        if not open_runs:
            break
        if root is not None:
            pump(study, root, trainer_argv=trainer_argv)
        deadline = time.monotonic() + FOLLOW_SECONDS
        while time.monotonic() < deadline and not interrupts.count:
            time.sleep(WAIT_SECONDS)
    display.clear()
