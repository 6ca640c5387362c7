"""The one place that decides what is tried again by itself: a policy per failure class, and when a study stops.

A worker asks after each attempt, and before its first one where an earlier life of its job ended without a word. What a policy
does not allow waits for `submit-sweep submit` or `resubmit`. An attempt that trained further than any before it sets the
count back, so a run that gets on is never given up. Not here: how an attempt is judged (`launch.failures`).
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.failures import FailureClass as F
from launch.ledger import ENDED, FAILED, INTERRUPTED, LAUNCH, LOST, Attempt, ledger_path
from lst.records import read_json, read_jsonl, write_json

ALIKE = 3  # equal failures before the first step, after which nothing more of a study starts
STOPPED = "stopped.json"
ORDER = "order.json"
GOES_ON = ("preempted", "timeout", "lost", "node_failure")  # ends after which the same job may be queued again


@dataclass(frozen=True)
class Policy:
    """What happens by itself after a failure."""

    retries: int  # attempts that may follow without a new step in between
    why: str


POLICIES: dict[F, Policy] = {
    F.OOM: Policy(0, "it would run out of memory again"),
    F.NAN: Policy(0, "the same data and weights diverge again"),
    F.DISK_FULL: Policy(0, "somebody has to free space"),
    F.CONFIG: Policy(0, "the same input is wrong again"),
    F.DATA: Policy(0, "the same input is wrong again"),
    F.IMPORT: Policy(0, "the same environment is broken again"),
    F.ERROR: Policy(0, "a defect: somebody has to look"),
    F.CANCELLED: Policy(0, "somebody wanted it so"),
    F.BUDGET: Policy(0, "somebody has to raise the budget"),
    F.CANARY: Policy(0, "the grid follows"),
    F.KILLED: Policy(1, "a machine's hiccup, or memory that was short for a moment"),
    F.TIMEOUT: Policy(3, "it goes on from its checkpoint"),
    F.PREEMPTED: Policy(3, "it goes on from its checkpoint"),
    F.NODE_FAILURE: Policy(3, "it goes on from its checkpoint, elsewhere"),
    F.LOST: Policy(3, "it goes on from its checkpoint"),
}


def may_go_on(attempts: Sequence[Attempt]) -> bool:
    """Whether the run whose attempts these are (oldest first, the last one ended) is tried again by itself."""
    last = attempts[-1] if attempts else None
    if last is None or last.failure not in POLICIES:
        return False
    return fruitless(attempts) <= POLICIES[F(last.failure)].retries


def fruitless(attempts: Sequence[Attempt]) -> int:
    """How many of the last attempts ended in the last one's class without a step that no attempt had done before."""
    furthest, count = 0, 0
    for attempt in attempts:
        if attempt.step > furthest or (count and attempt.failure != attempts[-1].failure):
            count = 0
        furthest = max(furthest, attempt.step)
        if attempt.failure == attempts[-1].failure and attempt.state in (FAILED, INTERRUPTED, LOST):
            count += 1
    return count


def stop_if_alike(study: Path) -> str:
    """Stop the study where ALIKE attempts since the last order failed alike before their first step; why, or empty."""
    events = read_jsonl(ledger_path(study))
    since = order_since(study, read_json(study / LAUNCH / ORDER) or {}, len(events))
    kinds: dict[tuple[str, str], int] = {}
    for event in events[since:]:
        kind = _kind(event)
        if kind:
            kinds[kind] = kinds.get(kind, 0) + 1
            if kinds[kind] >= ALIKE:
                return stop_study(study, f"{ALIKE} attempts failed alike before their first step ({event['cause']})")
    return ""


def order_since(study: Path, order: Mapping[str, Any], lines: int) -> int:
    """How many lines the ledger had when `order` (the content of order.json) was made, of the `lines` that it has now.

    The earlier version has written the time instead. A ledger that was cut has fewer lines: all that comes from now on is later.
    """
    since = order.get("since")
    if isinstance(since, int):
        return min(since, lines)
    when = order.get("time")
    if not isinstance(when, int | float):
        return 0
    times = [event.get("time") for event in read_jsonl(ledger_path(study))]
    return sum(isinstance(time, int | float) and time < when for time in times)


def stop_study(study: Path, why: str) -> str:
    """From now on nothing of the study starts; what runs goes on. Returns `why`."""
    write_json(study / LAUNCH / STOPPED, {"time": round(time.time(), 3), "why": why})
    return why


def study_stopped(study: Path) -> str:
    """Why nothing of the study starts; empty where it may."""
    return str((read_json(study / LAUNCH / STOPPED) or {}).get("why", ""))


def _kind(event: dict[str, Any]) -> tuple[str, str] | None:
    """What makes two failures before the first step equal: class, and cause without numbers and names."""
    if event.get("event") != ENDED or event.get("state") != FAILED or event.get("step"):
        return None
    return str(event.get("class", "")), re.sub(r"'[^']*'|[0-9a-f]{8,}|\d+", "#", str(event.get("cause", "")))
