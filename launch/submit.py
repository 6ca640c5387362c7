"""Submitting a study: which rows still have to run, each of them once, however often and by however many it is asked.

A row is submitted if the plan admits it, it is not done, nobody runs it and no scheduler holds it. One submitter at a time
holds the study's lock; another one waits, then finds nothing left to do. A run that has failed is tried once more by a call,
never twice. Not here: how a job is started (`launch.executor`), how this machine is fed (`launch.feed`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import signal
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launch.asked import Order, left_waiting, place_order, read_order, resubmission, write_order
from launch.cluster import Cluster, DebugCluster, LocalCluster, SlurmCluster
from launch.display import Display
from launch.executor import require_path, warn_of_options
from launch.failures import FailureClass
from launch.follow import follow
from launch.interrupt import Interrupts
from launch.job import cancel_path, is_complete
from launch.lease import Lease, holder
from launch.ledger import FAILED, LAUNCH, LOST, count_lines, read_attempts
from launch.limits import Limits, change_limits, check_limits, overspent, read_limits
from launch.order import adopt, end_lost, top_up
from launch.past import GONE, NEVER_BEGAN, close, close_finished
from launch.places import weight
from launch.prepare import task_of
from launch.retries import STOPPED, stop_study, study_stopped
from launch.rows import EVAL, TASK, Row, check_run, cost_of, read_rows, require_data, waiting_text, waits_for
from launch.scheduler import Unsure
from launch.snapshot import make_private, take_snapshot
from launch.status import OPEN_STATES, RUNNING, RunStatus, gather, is_planned, lock_path
from launch.take_back import take_back
from launch.withdrawn import count_cancels, withdrawn
from lst.errors import LaunchError, did_you_mean
from lst.plain import to_dict

NEEDED_MIB = 64  # free space below which nothing is started
WAIT_SECONDS = 0.2


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
        return list(dict.fromkeys(find_row(rows, name) for name in self.run_ids))

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
    study = study.absolute()
    began, cancels = count_lines(study), count_cancels(study)
    selection = selection or Selection()
    if isinstance(cluster, SlurmCluster):
        require_path(study)
    rows = _admitted(selection, read_rows(study))
    require_data(rows)
    make_private(study / LAUNCH)
    _require_room(study, rows, check_limits(study, limits or {}))
    report = Report()
    with Interrupts() as interrupts:
        lock = _take_lock(study, display, interrupts)
        if lock is None:
            return Report(interrupted=interrupts.exit_code, statuses=gather(study, rows))
        try:
            stopped, stood = _stop_to_end(study, cluster, selection), read_limits(study)
            change_limits(study, limits or {})
            before, again = _what_stands(study, cluster, display, lowered=bool(limits))
            todo, running = _choose(study, rows, selection, began, cancels, behind=isinstance(cluster, SlurmCluster))
            if isinstance(cluster, SlurmCluster) and interrupts.count:
                return Report(interrupted=interrupts.exit_code, statuses=gather(study, rows))
            report.submitted = len(todo)
            asked = todo or again or (stopped and before.waiting)
            root = _prepare(study, todo) if asked and not isinstance(cluster, DebugCluster) else None
            _ask(study, cluster, todo, root, before)
            if isinstance(cluster, LocalCluster):
                from launch.feed import feed

                feed(
                    study, cluster, queue=todo, foreign=running, root=root, display=display, interrupts=interrupts,
                    announce=lambda waiting: lock.describe(waiting=waiting, works=True), trainer_argv=trainer_argv,
                )  # fmt: skip
            elif root is not None and isinstance(cluster, SlurmCluster):
                with _put_back(study, stood, before, stopped) as put_back:
                    report.submitted = _send(study, root, lock, interrupts, put_back, trainer_argv)
                if report.submitted < len(todo) and read_order(study).waiting:
                    display.note(_waiting_text(study, todo))
        finally:
            lock.release()
        if isinstance(cluster, DebugCluster):
            return _debug(study, cluster, todo, display)
        if isinstance(cluster, SlurmCluster) and wait:
            follow(study, rows, display, interrupts, root, trainer_argv)
        report.interrupted = interrupts.exit_code if interrupts.count else 0
    report.statuses = gather(study, rows)
    return report


def _admitted(selection: Selection, rows: Sequence[Row]) -> list[Row]:
    """The selected rows that the plan admits. Raises LaunchError where it refuses one that is named, or all of them."""
    chosen = selection.rows(rows)
    refused = [row for row in chosen if not row.admitted]
    if refused and (selection.run_ids or len(refused) == len(chosen)):
        which = f"run {refused[0].run_id}" if selection.run_ids else "every run"
        raise LaunchError(f"{which} is refused by the plan ({refused[0].reason or 'no reason given'}); plan the study anew.")
    return [row for row in chosen if row.admitted]


def _require_room(study: Path, rows: Sequence[Row], limits: Limits) -> None:
    """Raises LaunchError where a row that is not done could never start."""
    row = max((row for row in rows if not is_complete(row.folder(study))), key=weight, default=None)
    if row is not None and 0 < limits.gpus < weight(row):
        raise LaunchError(f"run {row.run_id} needs {weight(row)} GPUs, more than limit.gpus={limits.gpus}; raise it.")


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


def _what_stands(study: Path, cluster: Cluster, display: Display, *, lowered: bool) -> tuple[Order, list[str]]:
    """What was ordered before, as it stands now, and the runs whose jobs are gone and that go on by themselves.

    Raises LaunchError where those that are gone failed alike.
    """
    if warning := warn_of_writers(study):
        display.note(warning)
    close_finished(study)
    before = _begin_order(study, slurm=isinstance(cluster, SlurmCluster))
    if not isinstance(cluster, SlurmCluster):
        return before, []
    if warning := warn_of_options():
        display.note(warning)
    adopt(study)
    stopped = bool(study_stopped(study))
    if (lowered or stopped) and (taken := take_back(study, stopped=stopped)):
        display.note(f"{len(taken):,} queued jobs{'' if stopped else ' beyond limit.gpus'} are taken back, and wait")
    again = end_lost(study)
    if not stopped:  # nobody has seen yet why it is now: `resubmit` is refused once, too
        _stop_to_end(study, cluster, Selection())
    return read_order(study), again


def _stop_to_end(study: Path, cluster: Cluster, selection: Selection) -> str:
    """Why the study is stopped, if it is: it goes on by `resubmit` alone, and where its runs wait. Raises LaunchError."""
    stopped = study_stopped(study)
    if stopped and not selection.failed_only:
        raise LaunchError(
            f"the study is stopped: {stopped}; look with submit-sweep logs {study}, mend it, then {resubmission(study)}."
        )
    if stopped and not isinstance(cluster, SlurmCluster) and (left := left_waiting(study, read_order(study))):
        raise LaunchError(
            f"the study is stopped, and {len(left):,} of its runs wait for SLURM: {resubmission(study)}; or, to go on here, take "
            f"them back first: submit-sweep cancel {study}."
        )
    return stopped


def _begin_order(study: Path, *, slurm: bool) -> Order:
    """What was ordered before. Raises LaunchError where a limit is reached."""
    stopped, before = study_stopped(study), read_order(study)
    if spent := overspent(study):
        raise LaunchError(f"{spent}; raise it with limit.gpu_hours=N or limit.flops=N to go on.")
    if stopped:
        before = dataclasses.replace(before, canaries=() if slurm else before.canaries, waiting=left_waiting(study, before))
    if stopped or not before.canaries:
        before = dataclasses.replace(before, since=count_lines(study), time=time.time())
    write_order(study, before)
    return before


def _ask(study: Path, cluster: Cluster, todo: Sequence[Row], root: Path | None, before: Order) -> None:
    """Order the rows on SLURM. Only then a stopped study goes on: what waits would start without its new canaries."""
    if root is not None and isinstance(cluster, SlurmCluster):
        place_order(study, cluster, todo, root.name, before=before)
    (study / LAUNCH / STOPPED).unlink(missing_ok=True)


@contextlib.contextmanager
def _put_back(study: Path, limits: Limits, order: Order, stopped: str) -> Iterator[Callable[[], None]]:
    """Where a call is refused before anything was submitted, what waited before waits as it was asked for, `stopped` or not."""

    def put_back() -> None:
        if stopped:
            stop_study(study, stopped)
        write_order(study, order)
        change_limits(study, to_dict(limits))

    def tokens() -> set[str]:
        return {attempt.token for tries in read_attempts(study).values() for attempt in tries}

    known = tokens()
    try:
        yield put_back
    except Unsure:  # what it asked for may be on its way
        raise
    except LaunchError:
        if tokens() <= known:
            put_back()
        raise


def _send(
    study: Path,
    root: Path,
    lock: Lease,
    interrupts: Interrupts,
    put_back: Callable[[], None],
    trainer_argv: Sequence[str] | None,
) -> int:
    """Submit what fits now, until a signal comes; how many. Puts back what stood where it comes before the first."""
    sent = top_up(study, root, holding=(lock.file,), trainer_argv=trainer_argv, test=True, stop=lambda: interrupts.count)
    if interrupts.count and not sent:
        put_back()
    return sent


def _waiting_text(study: Path, todo: Sequence[Row]) -> str:
    """What is told of rows that are not submitted yet."""
    order = read_order(study)
    children = [row for row in todo if waits_for(study, row)]
    if children:
        return waiting_text(study, children, "they are submitted as jobs end")
    waiting = len(set(order.waiting) - set(order.canaries))
    what = "the canaries" if order.canaries else order.note or "a free place"
    if any(s.state in OPEN_STATES for s in gather(study)):
        return f"{waiting:,} wait for {what}, and are submitted as jobs end"
    return (
        f"{waiting:,} wait for {what}; no job of the study is there to submit them: keep submit --wait running, or call it again"
    )


def _choose(
    study: Path, rows: Sequence[Row], selection: Selection, began: int, cancels: int, *, behind: bool
) -> tuple[list[Row], list[Row]]:
    """The rows to start, the longest first (so that the end is short), and those that run on this machine already.

    `began`: lines of the ledger, and `cancels`: calls of `cancel`, when the call began. `behind`: rows that still run and are
    cancelled are started behind their jobs.
    """
    statuses = gather(study, rows)
    attempts = read_attempts(study)
    todo, running = [], []
    for row, status in zip(rows, statuses, strict=True):
        last = attempts[row.run_id][-1] if attempts.get(row.run_id) else None
        tried = last is not None and last.line >= began  # by another, while we waited
        if status.state == RUNNING and status.source == "lease" and (last is None or last.cluster != "slurm"):
            running.append(row)
        elif behind and status.state == RUNNING and cancel_path(study, status.job_id).exists() and selection.wants(status):
            todo.append(row)
        elif selection.wants(status) and (is_planned(status) or (status.state in (FAILED, LOST) and not tried)):
            todo.append(row)
            if status.state == LOST and last is not None and last.ended is None:
                close(study, row.folder(study), last, FailureClass.LOST, GONE if last.started else NEVER_BEGAN)
    costs, gone = cost_of(list(rows)), withdrawn(study, cancels, [row.run_id for row in todo])
    todo = [row for row in todo if row.run_id not in gone]
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
