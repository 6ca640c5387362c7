"""Jobs that SLURM ended, or could not start, while their worker had no word: what became of them, and which runs go on.

A job may leave SLURM's list before its script began (a node that died just then, a signal before the traps, an interpreter that
is not there), or with all it had started (the kernel's memory killer takes the batch script too); or SLURM fails to launch
it and holds it. Whoever holds the study's lock, a submitter or a worker at its end, asks SLURM how these ended, ends their
attempts in the ledger under the class of that, and is told which runs `launch.retries` lets go on. Not here: submitting them
(`launch.order`), lives of a job that SLURM itself followed by another one (`launch.past`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.failures import FailureClass, judge_death, last_line, tail_of
from launch.job import JOB_FILES, cancel_path, is_complete
from launch.lease import holder
from launch.ledger import FAILED, INTERRUPTED, LAUNCH, LOST, Attempt, read_attempts
from launch.past import close
from launch.progress import recorded_step
from launch.retries import GOES_ON, may_go_on
from launch.rows import RUNS
from launch.scheduler import HELD, cancel_jobs, job_ends, slurm_queue, slurm_site
from lst.errors import LaunchError
from lst.records import LEASE

CLASSES = {
    "NODE_FAIL": FailureClass.NODE_FAILURE,
    "BOOT_FAIL": FailureClass.NODE_FAILURE,
    "PREEMPTED": FailureClass.PREEMPTED,
    "TIMEOUT": FailureClass.TIMEOUT,
    "OUT_OF_MEMORY": FailureClass.OOM,
    "CANCELLED": FailureClass.CANCELLED,
    "DEADLINE": FailureClass.CANCELLED,
}
STATES = {FailureClass.CANCELLED: INTERRUPTED, FailureClass.OOM: FAILED}  # of a closed attempt; of other classes LOST
EXITED = "NonZeroExitCode"  # SLURM's reason of a job whose script ended with a code of its own


def suspects(study: Path) -> dict[str, Attempt]:
    """Last attempts, by run_id, of runs that are not done and have a job on SLURM as far as the ledger knows."""
    return _suspects(study, read_attempts(study))


def _suspects(study: Path, attempts: Mapping[str, Sequence[Attempt]]) -> dict[str, Attempt]:
    return {
        run_id: tries[-1]
        for run_id, tries in attempts.items()
        if tries[-1].cluster == "slurm"
        and (tries[-1].ended is None or tries[-1].failure in GOES_ON or _is_requeued(study, tries[-1]))
        and not is_complete(study / RUNS / run_id)
    }


def _is_requeued(study: Path, last: Attempt) -> bool:
    """Whether the job may have been queued again by hand: to its worker that looks like scancel."""
    cancelled = last.started is not None and last.failure == FailureClass.CANCELLED
    return cancelled and not cancel_path(study, last.job_id).exists()


@dataclass(frozen=True, kw_only=True)
class Gone:
    """What became of a job that left no word, and of its run."""

    run_id: str
    attempt: Attempt
    failure: FailureClass
    cause: str
    state: str = LOST  # of the attempt, once it is closed
    again: bool = False  # whether the run goes on by itself


def end_gone(study: Path, *, keep: Callable[[Sequence[str]], None]) -> list[str]:
    """End the attempts whose jobs are gone or held; the run_ids that go on. The caller holds the study's lock.

    `keep` is told these first, to write down that they wait: whoever kills this process then finds either attempts that still
    have to be closed, or runs that wait. What SLURM cancelled, or does not remember, is left to the user; so is all while
    SLURM does not answer.
    """
    if not suspects(study):
        return []
    try:
        queue, site = slurm_queue(), slurm_site()
    except LaunchError:  # who comes next asks again
        return []
    tries = read_attempts(study)  # anew: what has left the list meanwhile has told the ledger before
    here = {run_id: last for run_id, last in _suspects(study, tries).items() if last.site in ("", site)}
    held = [_of_held(study, run_id, tries[run_id]) for run_id, last in here.items() if queue.get(last.job_id) == HELD]
    left = {
        run_id: last
        for run_id, last in here.items()
        if last.job_id not in queue and not _is_held(study / RUNS / run_id / LEASE, last.job_id)
    }
    unstarted = [last.job_id for last in left.values() if last.started is None]
    ends = job_ends([last.job_id for last in left.values()], unstarted=unstarted) if left else {}
    gone = [run_id for run_id, last in left.items() if last.ended is None or _ended_again(tries[run_id], ends)]
    found = held + [_of_gone(study, run_id, tries[run_id], ends) for run_id in gone]
    again = [one.run_id for one in found if one.again]
    if again:
        keep(again)
    for one in found:
        if not _is_closed(one.attempt):
            close(study, study / RUNS / one.run_id, one.attempt, one.failure, one.cause, state=one.state)
    if held:
        cancel_jobs([one.attempt.job_id for one in held])
    return again


def _is_held(lease: Path, job: str) -> bool:
    """Whether somebody holds the run, be it the job itself: its heartbeat alone outlives a job for a minute."""
    found = holder(lease)
    return found is not None and (found["locked"] or found.get("job_id") != job)


def _is_closed(last: Attempt) -> bool:
    """Whether an attempt has its end: a held job's, whose submitter was killed before it took the job back."""
    return last.ended is not None and last.failure == FailureClass.NODE_FAILURE


def _ended_again(tries: Sequence[Attempt], ends: Mapping[str, tuple[str, str]]) -> bool:
    """Whether SLURM has ended a job that was queued again, after its worker had told the end of the life before."""
    last, (state, _) = tries[-1], ends.get(tries[-1].job_id, ("", ""))
    if last.started is None or last.state != INTERRUPTED:  # its end is told already
        return False
    if last.failure == FailureClass.CANCELLED:  # of a job that was not queued again after it SLURM has one of these
        return state not in ("", "CANCELLED", "COMPLETED")
    return bool(state) and (may_go_on(tries) or state == "CANCELLED")


def _of_held(study: Path, run_id: str, tries: Sequence[Attempt]) -> Gone:
    """Of a job that SLURM could not launch and holds: a new one takes its place."""
    failure, cause = FailureClass.NODE_FAILURE, "SLURM could not start its job, and held it"
    again = _goes_on(study / RUNS / run_id, tries, failure, LOST)
    return Gone(run_id=run_id, attempt=tries[-1], failure=failure, cause=cause, again=again)


def _of_gone(study: Path, run_id: str, tries: Sequence[Attempt], ends: Mapping[str, tuple[str, str]]) -> Gone:
    """Of a job that has left, as SLURM has it."""
    last = tries[-1]
    state, reason = ends.get(last.job_id, ("", ""))
    when = "all it had started was killed" if last.started is not None else "it ended before the run had begun"
    words = last_words(study, last)
    failure, cause = CLASSES.get(state, FailureClass.LOST), f"{when} (SLURM: {state}{f', {reason}' if reason else ''})"
    cancelled = cancel_path(study, last.job_id).exists()
    if cancelled:
        failure = FailureClass.CANCELLED
    kind = STATES.get(failure, LOST)
    if cancelled:
        cause = "cancelled"
    elif not state:
        cause = f"{when}, and SLURM does not know any more how"
    elif state == "FAILED" and reason == EXITED:
        (failure, cause), kind = judge_death(1, words), FAILED
    elif words:
        cause = f"{cause}: {last_line(words)}"
    again = bool(state) and not cancelled and _goes_on(study / RUNS / run_id, tries, failure, kind)
    return Gone(run_id=run_id, attempt=last, failure=failure, cause=cause, state=kind, again=again)


def _goes_on(run_dir: Path, tries: Sequence[Attempt], failure: FailureClass, state: str) -> bool:
    """Whether the run goes on by itself once its last attempt is closed so."""
    last = tries[-1]
    before = tries[:-1] if last.ended is None or _is_closed(last) else tries
    return may_go_on([*before, dataclasses.replace(last, state=state, failure=failure.value, step=recorded_step(run_dir))])


def last_words(study: Path, attempt: Attempt) -> str:
    """The end of what a job itself printed to its error file (as submitit names it): what is no run's, nor in its log."""
    return tail_of(study / LAUNCH / JOB_FILES / attempt.token / f"{attempt.job_id}_0_log.err") if attempt.token else ""
