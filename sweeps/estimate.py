"""The estimate of one run: where it is placed, how long it takes there, and what it leaves on the disk.

Not here: the options (`sweeps.price`), the choice of GPUs (`sweeps.placement`), what was measured (`sweeps.canary`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lst.config import RunConfig
from lst.memory import PARTS
from sweeps.placement import Job, Placement, placements, room_of
from sweeps.price import PriceConfig, Speed, Work, disk_gib, evaluation_flops, rounded, run_minutes

SpeedOf = Callable[[Placement], Speed]


@dataclass(frozen=True, kw_only=True)
class Price:
    """The estimate of one run."""

    placement: Placement
    minutes: float  # wall clock, start-up and evaluation included
    dollars: float  # 0 where no price is known
    kept_gib: float  # of checkpoints, when the run is done
    disk_gib: float  # of checkpoints, at most while it trains

    @property
    def gpu_hours(self) -> float:
        return rounded(self.minutes / 60 * self.placement.gpus)

    def columns(self) -> dict[str, Any]:
        """The price columns of plan.csv."""
        return {
            "gpus": self.placement.gpus,
            "micro_batch_tokens": self.placement.micro_batch_tokens,
            "placement_reason": self.placement.why,
            "est_minutes": self.minutes,
            "est_gpu_hours": self.gpu_hours,
            "est_dollars": self.dollars,
            "est_peak_gib": self.placement.peak_gib,
            **{f"est_gib_{part}": self.placement.memory[part] for part in PARTS},
            "est_disk_gib": self.disk_gib,
            "est_kept_gib": self.kept_gib,
        }


def price_run(
    config: RunConfig,
    price: PriceConfig,
    *,
    train_flops: float,
    tokens: float,
    spent: Work | None = None,
    speed_of: SpeedOf | None = None,
) -> Price:
    """The estimate for a run of `train_flops` over `tokens` training tokens.

    `spent` is what it trains on all its paths, where it has several; `speed_of` is a measured speed in the place of the options'.
    Raises ConfigError where the device's speed is not known.
    """
    trained = spent or Work(flops=train_flops, steps=config.train.steps)
    evaluations = (1 + trained.branches) * evaluation_flops(config, train_flops / tokens)
    work = dataclasses.replace(trained, flops=trained.flops + evaluations)
    speed_of = speed_of or (lambda placement: option_speed(price, placement, config.train.dtype))
    placement, minutes = _placed(config, price, work, speed_of, tokens / config.train.total_sequences)
    kept, most = disk_gib(config)
    return Price(
        placement=placement,
        minutes=minutes,
        dollars=rounded(minutes / 60 * placement.gpus * price.dollars),
        kept_gib=rounded(kept),
        disk_gib=rounded(most),
    )


def option_speed(price: PriceConfig, placement: Placement, dtype: str) -> Speed:
    """What the options of the price say."""
    return Speed(
        flops_per_second=price.flops_per_second(placement.gpus, dtype),
        step_seconds=0.0 if placement.gpus else price.step_seconds,
        startup_seconds=price.startup_seconds,
    )


def _placed(
    config: RunConfig, price: PriceConfig, work: Work, speed_of: SpeedOf, tokens_per_sequence: float
) -> tuple[Placement, float]:
    """The first placement that keeps `price.max_hours`, and its minutes."""
    most = price.max_hours * 60 or math.inf
    late: list[int] = []
    room = room_of(price)
    for placement in placements(Job.of(config, tokens_per_sequence), room):
        batch = config.train.batch_sequences
        minutes = run_minutes(work, speed_of(placement), batch_sequences=batch, gpus=placement.gpus)
        if minutes <= most or placement.refusal or not (room and room.choosing):
            break
        late.append(placement.gpus)
    else:
        hours = f"{minutes / 60:,.1f} hours on {placement.gpus} x {price.device}, over price.max_hours={price.max_hours:g}"
        return dataclasses.replace(placement, refusal=f"it takes {hours}; allow more hours, price.max_gpus, or larger batches"), (
            minutes
        )
    if late:
        reason = f"{late[-1]} would take longer than price.max_hours={price.max_hours:g}"
        placement = dataclasses.replace(placement, why=f"{placement.why}; {reason}")
    return placement, minutes
