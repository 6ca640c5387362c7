"""How far a run is, and what it has spent so far: read from its records and checkpoints.

Not here: sums over a study (`launch.budget`).
"""

from __future__ import annotations

from pathlib import Path

from launch.failures import last_record
from lst.records import CHECKPOINTS, TRAIN_RECORDS, read_json


def recorded_step(run_dir: Path) -> int:
    """Optimiser steps recorded."""
    record = last_record(run_dir / TRAIN_RECORDS)
    return int(record.get("step", 0)) if record else 0


def recorded_flops(run_dir: Path) -> float:
    """Training FLOPs of the steps that stand in the records."""
    record = last_record(run_dir / TRAIN_RECORDS) or {}
    return float(record.get("spent_flops") or record.get("train_flops") or 0.0)


def saved_flops(run_dir: Path) -> float:
    """Training FLOPs as of the newest checkpoint: what a resume does not spend again."""
    found = 0.0
    for latest in (run_dir / CHECKPOINTS).glob("**/latest"):
        try:
            name = latest.read_text().strip()
        except OSError:
            continue
        state = read_json(latest.parent / name / "state.json") or {}
        found = max(found, float(state.get("spent_flops") or state.get("train_flops") or 0.0))
    return found
