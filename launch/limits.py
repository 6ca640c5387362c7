"""What a study may spend and use at once: limits that the user gave, and what its attempts have spent, failed ones too.

    submit-sweep submit DIR limit.gpu_hours=500 limit.flops=1e21 limit.gpus=64

launch/limits.json keeps them; another call changes them while the study runs. Every worker looks at what the study has spent,
the oftener the nearer a limit is, and saves and leaves when one is reached: a run overruns by a second, a step and a save.
Not here: who is stopped by it (`launch.watch`), how many GPUs are in use (`launch.order`).
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.lease import holder
from launch.ledger import LAUNCH, Attempt, read_attempts
from launch.progress import flops_per_second, last_sign, own_flops
from launch.rows import RUNS
from lst.errors import ConfigError
from lst.plain import from_dict, to_dict
from lst.records import LEASE, read_json, write_json

LIMITS = "limits.json"
PREFIX = "limit."
LOOK_SECONDS = (1.0, 15.0)  # between two looks at what is spent: near a limit, and far from it


@dataclass(frozen=True, kw_only=True)
class Limits:
    """0 = no limit."""

    gpu_hours: float = 0.0  # GPU-hours of all attempts
    flops: float = 0.0  # training FLOPs of all attempts
    gpus: int = 0  # GPUs of all jobs on SLURM at once, queued ones included; a run without GPUs counts as one

    def validate(self) -> None:
        for field in dataclasses.fields(self):
            if not math.isfinite(getattr(self, field.name)):
                raise ConfigError(f"limit.{field.name}={getattr(self, field.name)} must be finite; 0 takes the limit away.")
            if getattr(self, field.name) < 0:
                raise ConfigError(f"limit.{field.name}={getattr(self, field.name)} must not be negative; 0 takes the limit away.")


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Of all attempts so far."""

    gpu_hours: float
    flops: float
    gpu_hours_per_second: float = 0.0  # of those that run
    flops_per_second: float = 0.0
    unmeasured: frozenset[str] = frozenset()  # those that run and whose speed nobody knows yet


def split_limits(overrides: Sequence[str]) -> tuple[dict[str, float], list[str]]:
    """The `limit.key=value` words as numbers, and the other words. Raises ConfigError."""
    given: dict[str, float] = {}
    for word in overrides:
        key, _, value = word.partition("=")
        if key.startswith(PREFIX):
            try:
                given[key.removeprefix(PREFIX)] = float(value)
            except ValueError as error:
                raise ConfigError(f"{word} must be a number, as in limit.gpu_hours=500.") from error
    return given, [word for word in overrides if not word.startswith(PREFIX)]


def check_limits(study: Path, given: Mapping[str, float]) -> Limits:
    """The new limits beside those that stand. Raises ConfigError on an unknown one."""
    values: dict[str, object] = {**to_dict(read_limits(study)), **given}
    if not float(given.get("gpus", 0)).is_integer():
        raise ConfigError(f"limit.gpus={given['gpus']} must be a whole number.")
    values["gpus"] = int(float(str(values["gpus"])))
    limits = from_dict(Limits, values, "limit")
    limits.validate()
    return limits


def change_limits(study: Path, given: Mapping[str, float]) -> Limits:
    """Keep the new limits beside those that stand. Raises as `check_limits`."""
    limits = check_limits(study, given)
    if given:
        write_json(study / LAUNCH / LIMITS, to_dict(limits))
    return limits


def read_limits(study: Path) -> Limits:
    path = study / LAUNCH / LIMITS
    found = read_json(path)
    if found is None and path.exists():
        raise ConfigError(f"'{path}' is damaged; delete it, and give the limits again.")
    limits: Limits = from_dict(Limits, found or {}, "limit")
    return limits


def spent(study: Path, attempts: Mapping[str, Sequence[Attempt]], now: float) -> Spent:
    """GPU-hours and FLOPs of all attempts; of one without an end what it recorded, until it was last heard of."""
    gpu_seconds, flops, gpus = 0.0, 0.0, 0
    speeds: dict[str, float] = {}
    for run_id, tries in attempts.items():
        run_dir = study / RUNS / run_id
        for attempt in tries:
            gpu_seconds += attempt.gpus * attempt.seconds(now) if attempt.ended is not None else 0.0
            flops += attempt.flops
        last = next((a for a in reversed(tries) if a.started is not None), None)
        if last is not None and last.started is not None and last.ended is None:
            alive = holder(run_dir / LEASE) is not None
            seconds = last.seconds(now if alive else last_sign(run_dir, last))
            gpu_seconds += last.gpus * seconds
            flops += own_flops(run_dir, before=last.flops_before, started=last.started)
            if alive:
                speeds[run_id] = flops_per_second(run_dir, started=last.started)
                gpus += last.gpus
    return Spent(
        gpu_hours=gpu_seconds / 3600,
        flops=flops,
        gpu_hours_per_second=gpus / 3600,
        flops_per_second=sum(speeds.values()),
        unmeasured=frozenset(run_id for run_id, speed in speeds.items() if not speed),
    )


def overspent(study: Path) -> str:
    """Which limit is reached; empty where none is."""
    return look(study)[0]


def left_text(study: Path) -> str:
    """What is left under each limit, for a table's last line; empty where there is no limit."""
    limits = read_limits(study)
    if not (limits.gpu_hours or limits.flops):
        return ""
    found, parts = spent(study, read_attempts(study), time.time()), []
    if limits.gpu_hours:
        left = max(0.0, limits.gpu_hours - found.gpu_hours)
        parts.append(f"limit.gpu_hours={limits.gpu_hours:,g}: {found.gpu_hours:,.3f} spent, {left:,.3f} left")
    if limits.flops:
        left = max(0.0, limits.flops - found.flops)
        parts.append(f"limit.flops={limits.flops:.3g}: {found.flops:.3g} spent, {left:.3g} left")
    return "; ".join(parts)


def look(study: Path, run_id: str = "") -> tuple[str, float]:
    """Which limit is reached (empty where none is), and in how many seconds to look again: when half of the way is gone.

    For the worker of run `run_id`: as long as nobody knows how fast that run is, it looks all the time.
    """
    limits = read_limits(study)
    soonest, latest = LOOK_SECONDS
    if not (limits.gpu_hours or limits.flops):
        return "", latest
    found = spent(study, read_attempts(study), time.time())
    if limits.gpu_hours and found.gpu_hours >= limits.gpu_hours:
        return f"the limit of {limits.gpu_hours:,g} GPU-hours is reached ({found.gpu_hours:,.3f} are spent)", soonest
    if limits.flops and found.flops >= limits.flops:
        return f"the limit of {limits.flops:.3g} FLOPs is reached ({found.flops:.3g} are spent)", soonest
    left = latest * 2
    if limits.gpu_hours and found.gpu_hours_per_second:
        left = min(left, (limits.gpu_hours - found.gpu_hours) / found.gpu_hours_per_second)
    if limits.flops:
        known = found.flops_per_second and run_id not in found.unmeasured
        left = min(left, (limits.flops - found.flops) / found.flops_per_second) if known else 0.0
    return "", max(soonest, left / 2)
