"""The ledger: launch/ledger.jsonl, one line an event of an attempt, appended by the submitter and by every worker.

Writers append under a lock; readers never lock and tolerate a torn line. What an event means: docs/run_folder.md. The
ledger is an account of attempts, not the judge of a run: a run is done only when its own exit.json says so.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lst.records import parse_line, read_jsonl

LAUNCH = "launch"
LEDGER = "ledger.jsonl"

SUBMITTED, STARTED, ENDED = "submitted", "started", "ended"
DONE, FAILED, INTERRUPTED, LOST = "done", "failed", "interrupted", "lost"
ELSEWHERE = "elsewhere"  # its job found another runner there, and left: no attempt


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One job of a run, put together from its events. Times are seconds since the epoch; None = not happened."""

    attempt: int
    line: int = 0  # of the ledger: of its `started`, or its first event before; lines tell before and after on all machines
    job_id: str = ""
    submitted: float | None = None
    started: float | None = None  # when its worker took the run
    since: float | None = None  # when its job began to hold GPUs, before that
    ended: float | None = None
    state: str = ""  # done, failed, interrupted or lost, once ended
    cause: str = ""
    gpus: int = 0
    cluster: str = ""  # local or slurm
    site: str = ""  # of SLURM: the cluster's own name
    token: str = ""  # names the submission, on SLURM: the jobs' comment, and the folder of their own logs
    host: str = ""  # where it ran
    code: str = ""  # hash of the code that it ran with, once it has started
    life: int = 0  # how often SLURM had started its job before
    failure: str = ""  # the class, if it did not end as done
    step_before: int = 0  # optimiser steps recorded when it started
    step: int = 0  # and when it ended
    flops_before: float = 0.0  # training FLOPs spent, as of the checkpoint that it went on from
    flops: float = 0.0  # training FLOPs that it spent itself, those of steps that were lost included

    def seconds(self, until: float) -> float:
        """Wall-clock seconds from its job's start to its end (or to `until`, while it has none)."""
        if self.started is None:
            return 0.0
        return max(0.0, (self.ended if self.ended is not None else until) - (self.since or self.started))


def ledger_path(study: Path) -> Path:
    return study / LAUNCH / LEDGER


def append_event(study: Path, event: str, run_id: str, *, attempt: int, job_id: str, **fields: Any) -> None:
    """Append one event, whole or not at all. Raises OSError, on a full disk for instance."""
    record = {"time": round(fields.pop("time", None) or time.time(), 3), "run_id": run_id, "event": event}
    record |= {"attempt": attempt, "job_id": job_id, **fields}
    append_line(ledger_path(study), record)


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Append one record, whole or not at all. Raises OSError, on a full disk for instance."""
    data = (json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n").encode()
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":
            data = b"\n" + data  # end the line that somebody's death left torn
        try:
            written = os.write(file, data)
        except OSError:
            os.ftruncate(file, size)
            raise
        if written != len(data):
            os.ftruncate(file, size)
            raise OSError(28, f"no space left to append to '{path}'")
    finally:
        os.close(file)


def count_lines(study: Path) -> int:
    """How many events the ledger holds: what is appended from now on has this number as its line, or a higher one."""
    try:
        lines = ledger_path(study).read_bytes().split(b"\n")
    except FileNotFoundError:
        return 0
    return sum(parse_line(line + b"\n") is not None for line in lines)  # whoever appends next ends a line that has no end


def read_attempts(study: Path) -> dict[str, list[Attempt]]:
    """The attempts of every run that the ledger knows, oldest first."""
    return attempts_of(read_jsonl(ledger_path(study)))


def attempts_of(events: Iterable[dict[str, Any]]) -> dict[str, list[Attempt]]:
    """Group events by run and attempt; lines that are no event are left out."""
    runs: dict[str, dict[int, Attempt]] = {}
    for line, event in enumerate(events):
        try:
            _take(runs, event, line)
        except (KeyError, TypeError, ValueError, OverflowError):
            continue
    return {run_id: [attempts[number] for number in sorted(attempts)] for run_id, attempts in runs.items() if attempts}


def _take(runs: dict[str, dict[int, Attempt]], event: Mapping[str, Any], line: int) -> None:
    """Put the event on this line to its attempt. Raises KeyError, TypeError, ValueError or OverflowError on what is no event."""
    run_id, number, kind, at = str(event["run_id"]), int(event["attempt"]), event["event"], float(event["time"])
    changes: dict[str, Any] = {"job_id": str(event.get("job_id", ""))}
    changes |= {key: str(event[key]) for key in ("cluster", "site", "token", "code") if event.get(key)}
    step, flops = int(event.get("step") or 0), float(event.get("flops") or 0.0)
    if kind == SUBMITTED:
        changes |= {"submitted": at, "line": line}
    elif kind == STARTED:
        changes |= {"started": at, "line": line, "life": int(event.get("life") or 0)}
        changes |= {"since": float(event.get("since") or 0.0) or None, "gpus": int(event.get("gpus") or 0)}
        changes |= {"host": str(event.get("host") or ""), "step_before": step, "flops_before": flops}
    elif kind == ENDED:
        changes |= {"ended": at, "state": str(event.get("state", "")), "cause": str(event.get("cause") or "")}
        changes |= {"failure": str(event.get("class") or ""), "step": step, "flops": flops}
    attempts = runs.setdefault(run_id, {})
    if changes.get("state") == ELSEWHERE:
        attempts.pop(number, None)
        return
    attempt = attempts.get(number) or dataclasses.replace(_of_job(attempts, number, changes["job_id"]), line=line)
    attempts[number] = dataclasses.replace(attempt, **changes)


def _of_job(attempts: dict[int, Attempt], number: int, job_id: str) -> Attempt:
    """A new attempt; one of a job that was queued again is where the job was submitted."""
    before = next((a for a in attempts.values() if job_id and a.job_id == job_id), Attempt(attempt=number))
    return Attempt(attempt=number, cluster=before.cluster, site=before.site, token=before.token, code=before.code)


def next_attempt(attempts: list[Attempt], job_id: str = "") -> int:
    """The number of the attempt that job `job_id` is about to begin: the one submitted for it, else a new one."""
    for attempt in attempts:
        if job_id and attempt.job_id == job_id and attempt.started is None and attempt.ended is None:
            return attempt.attempt
    return max((a.attempt for a in attempts), default=0) + 1
