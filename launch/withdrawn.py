"""launch/cancels.jsonl: which runs somebody has called off, a line a call of `cancel`; lines are never taken away.

A line is written before anything else is done, so whoever is submitting just then sees it before its next sbatch. An order, and
a call of `submit`, knows how many lines there were when it was made: it is only the later ones that it heeds, and so the next
call of `submit` may ask for the same runs again. Not here: stopping what runs or is queued (`launch.cancel`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from launch.job import CANCELS_BEFORE, JOB_FILES
from launch.ledger import LAUNCH, append_line
from lst.records import read_jsonl

CANCELS = "cancels.jsonl"


def withdraw(study: Path, run_ids: Sequence[str]) -> None:
    """From now on nobody submits these runs (none are named: any) who was asked to before. Raises OSError."""
    append_line(study / LAUNCH / CANCELS, {"time": round(time.time(), 3), "runs": list(run_ids)})


def count_cancels(study: Path) -> int:
    """How many calls of `cancel` there were."""
    return len(read_jsonl(study / LAUNCH / CANCELS))


def withdrawn(study: Path, since: int, run_ids: Iterable[str]) -> set[str]:
    """Which of these runs were called off since there were `since` calls of `cancel`."""
    run_ids, found = list(run_ids), set[str]()
    for line in read_jsonl(study / LAUNCH / CANCELS)[since:]:
        named = line.get("runs") or run_ids
        found |= set(run_ids) & set(named)
    return found


def called_off(study: Path, token: str, run_ids: Iterable[str]) -> set[str]:
    """Which runs of a submission were called off after it was ordered (of the earlier version's: none, for it does not say)."""
    before = study / LAUNCH / JOB_FILES / token / CANCELS_BEFORE
    text = before.read_text().strip() if before.is_file() else ""
    return withdrawn(study, int(text), run_ids) if text.isdecimal() else set()
