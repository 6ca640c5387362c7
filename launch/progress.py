"""How far a run is, and what it has spent so far: read from its records and checkpoints.

Not here: sums over a study (`launch.limits`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch.failures import last_record
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
