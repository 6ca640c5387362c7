"""How far a run is, and what it has spent so far: read from its records and checkpoints.

Not here: sums over a study (`launch.limits`).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch.failures import last_record, last_records
from launch.ledger import Attempt
from lst.records import CHECKPOINTS, LEASE, TRAIN_RECORDS, read_json


def recorded_step(run_dir: Path) -> int:
    """Optimiser steps recorded."""
    record = last_record(run_dir / TRAIN_RECORDS)
    return int(record.get("step", 0)) if record else 0


def own_flops(run_dir: Path, *, before: float, started: float) -> float:
    """Training FLOPs of an attempt that went on from `before` and has run since `started` (seconds since the epoch).

    Until its first step the records end with another attempt's last one, which its own attempt has paid for.
    """
    record = last_record(run_dir / TRAIN_RECORDS) or {}
    if float(record.get("time") or started) < started:
        return 0.0
    return max(0.0, _flops_of(record) - before)


def flops_per_second(run_dir: Path, *, started: float) -> float:
    """How fast an attempt that has run since `started` trains: its fastest step of late. 0 until it has recorded two.

    By the steps' own seconds: what passed before the first one, or between two, is none of its speed; nor is the first, which
    may have compiled.
    """
    own = [record for record in last_records(run_dir / TRAIN_RECORDS) if float(record.get("time") or 0.0) >= started]
    gaps = [(_flops_of(new) - _flops_of(old), new.get("seconds")) for old, new in itertools.pairwise(own)]
    return max((flops / seconds for flops, seconds in gaps if isinstance(seconds, int | float) and seconds > 0), default=0.0)


def last_sign(run_dir: Path, attempt: Attempt, lease: Mapping[str, Any] | None = None) -> float:
    """When (seconds since the epoch) an attempt was last heard of: by a record, or a beat of its `lease` (or the folder's)."""
    record = last_record(run_dir / TRAIN_RECORDS) or {}
    said = (read_json(run_dir / LEASE) or {}) if lease is None else lease
    beat = said.get("beat") if said.get("attempt") == attempt.attempt else None
    return max(
        float(record.get("time") or 0.0),
        float(beat) if isinstance(beat, int | float) else 0.0,
        attempt.started or attempt.submitted or 0.0,
    )


def saved_flops(run_dir: Path) -> float:
    """Training FLOPs as of the newest checkpoint: what a resume does not spend again."""
    found = 0.0
    for latest in (run_dir / CHECKPOINTS).glob("**/latest"):
        try:
            name = latest.read_text().strip()
        except OSError:
            continue
        state = read_json(latest.parent / name / "state.json") or {}
        found = max(found, _flops_of(state))
    return found


def _flops_of(state: Mapping[str, Any]) -> float:
    """What a record, or a checkpoint's state, says was spent."""
    return float(state.get("spent_flops") or state.get("train_flops") or 0.0)
