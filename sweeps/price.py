"""What a run costs before it is spent: minutes, GPU-hours, and peak memory by part. Estimates, and named as such.

Time is FLOPs over speed: on a CPU the FLOP/s of one training process, plus seconds a step and the seconds it takes to
start (all three are options, to be set from a run's records); on GPUs the card's peak times an assumed utilisation.
Not here: what the FLOPs are (`lst.flops`), how much memory a run needs (`lst.memory`), or which runs are worth them
(`sweeps.admit`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from lst.config import RunConfig
from lst.errors import ConfigError, did_you_mean
from lst.hardware import GPU_PEAK_FLOPS
from lst.memory import memory_by_part

CPU = "cpu"


@dataclass(frozen=True, kw_only=True)
class PriceConfig:
    """On what the runs are priced. Changes no run, only its price."""

    device: str = CPU  # cpu, or a card of lst/hardware.py, in bfloat16
    cpu_flops_per_second: float = 2e10  # training FLOP/s of one process on one core, step_seconds apart
    step_seconds: float = 0.02  # seconds of a step that do not depend on its FLOPs (tiny networks wait for their operations)
    startup_seconds: float = 4.0  # seconds of a run before its first step
    gpus: int = 1  # cards of a run (device other than cpu)
    mfu: float = 0.4  # model FLOPs utilisation on a card (PAPER: about 0.4 fits its 17 hours on 32 cards)

    def validate(self) -> None:
        if self.device not in (CPU, *GPU_PEAK_FLOPS):
            raise ConfigError(f"price.device='{self.device}' is unknown; {did_you_mean(self.device, (CPU, *GPU_PEAK_FLOPS))}")
        for key in ("cpu_flops_per_second", "gpus"):
            if not (math.isfinite(getattr(self, key)) and getattr(self, key) > 0):
                raise ConfigError(f"price.{key}={getattr(self, key)} must be a positive finite number.")
        for key in ("startup_seconds", "step_seconds"):
            if not (math.isfinite(getattr(self, key)) and getattr(self, key) >= 0):
                raise ConfigError(f"price.{key}={getattr(self, key)} must be a finite number, 0 or more.")
        if not 0 < self.mfu <= 1:
            raise ConfigError(f"price.mfu={self.mfu} must lie in (0, 1].")

    @property
    def cards(self) -> int:
        """GPUs of a run: 0 on a CPU."""
        return 0 if self.device == CPU else self.gpus

    @property
    def flops_per_second(self) -> float:
        """Of one run."""
        if self.device == CPU:
            return self.cpu_flops_per_second
        return GPU_PEAK_FLOPS[self.device]["bfloat16"] * self.mfu * self.gpus


@dataclass(frozen=True, kw_only=True)
class Price:
    """The estimate of one run."""

    minutes: float  # wall clock of the run, start-up and evaluation included
    gpu_hours: float
    memory: dict[str, float]  # GiB by part

    @property
    def peak_gib(self) -> float:
        return sum(self.memory.values())


def price_run(config: RunConfig, price: PriceConfig, *, train_flops: float, tokens: float) -> Price:
    """The estimate for a run of `train_flops` over `tokens` training tokens."""
    flops = train_flops + evaluation_flops(config, train_flops / tokens)
    waiting = price.startup_seconds + (config.train.steps * price.step_seconds if price.device == CPU else 0)
    seconds = flops / price.flops_per_second + waiting
    return Price(
        minutes=_rounded(seconds / 60),
        gpu_hours=_rounded(seconds / 3600 * price.cards),
        memory=_memory(config, tokens_per_step=tokens / config.train.steps, gpu=price.cards > 0),
    )


def _memory(config: RunConfig, *, tokens_per_step: float, gpu: bool) -> dict[str, float]:
    """Peak GiB by part: a micro-batch holds the step, or `execution.micro_batch_tokens` of it."""
    tokens = min(float(config.execution.micro_batch_tokens), tokens_per_step)
    units_per_step = config.train.batch_sequences * config.data.seq_len_units
    return memory_by_part(config, tokens=tokens, units=tokens * min(1.0, units_per_step / tokens_per_step), gpu=gpu)


def evaluation_flops(config: RunConfig, training_flops_per_token: float) -> float:
    """FLOPs of the run's held-out sets (three) and story items, at the training's cost a token without a backward pass.

    A story item scores each ending after its prompt in two directions and two kinds of wrong endings; its length is taken
    as half the held-out context.
    """
    evaluation = config.evaluation
    heldout = 3 * evaluation.heldout_documents * evaluation.context_tokens * evaluation.points
    stories = 4 * evaluation.story_items * evaluation.story_choices * evaluation.context_tokens / 2
    return (heldout + stories) * training_flops_per_token / 3


def wall_minutes(minutes: Iterable[float], cores: int) -> float:
    """Wall clock of runs started in this order on `cores` processes, each taken by the first that is free."""
    free = [0.0] * max(1, cores)
    for run in minutes:
        first = free.index(min(free))
        free[first] += run
    return max(free)


def _rounded(value: float) -> float:
    """4 significant digits: an estimate that claims no more."""
    return float(f"{value:.4g}")
