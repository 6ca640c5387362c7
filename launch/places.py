"""Which jobs hold, or will hold, their GPUs, and what has room beside them under limit.gpus.

Not here: submitting (`launch.order`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from launch.ledger import Attempt
from launch.limits import read_limits
from launch.retries import may_go_on
from launch.rows import Row
from launch.scheduler import HELD, PENDING


def weight(row: Row) -> int:
    """What a run counts under limit.gpus."""
    return max(1, row.gpus)


def open_attempts(tries: Sequence[Attempt], queue: Mapping[str, str]) -> list[Attempt]:
    """The attempts of a run (oldest first) whose jobs hold or will hold their GPUs.

    A worker that has told its end is about to leave, unless its job is about to be queued again.
    """
    again = tries[-1:] if may_go_on(tries) else ()
    return [a for a in tries if a.job_id in queue and (a.ended is None or a in again or queue[a.job_id] in (PENDING, HELD))]


def has_job(tries: Sequence[Attempt], queue: Mapping[str, str]) -> bool:
    """Whether any job of a run is open."""
    return bool(open_attempts(tries, queue))


def fitting(
    study: Path,
    able: Sequence[Row],
    rows: Mapping[str, Row],
    attempts: Mapping[str, Sequence[Attempt]],
    queue: Mapping[str, str],
) -> list[Row]:
    """Of `able`, in order, what has room beside the study's open jobs under limit.gpus."""
    most = read_limits(study).gpus
    if not most:
        return list(able)
    free = most - sum(weight(rows[r]) for r, tries in attempts.items() if r in rows and has_job(tries, queue))
    found = []
    for row in able:
        if weight(row) <= free:
            found.append(row)
            free -= weight(row)
    return found
