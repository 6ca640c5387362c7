"""What a run costs before it is spent: hours, GPU-hours, money, disk, and peak memory by part. Estimates, named as such.

Time is FLOPs over speed: on a CPU the FLOP/s of one training process, plus seconds a step and the seconds it takes to
start (all three are options, to be set from a run's records); on GPUs each card's peak times an assumed utilisation. What
`plan-sweep price --from-canary` has measured takes their place (`sweeps.canary`). Not here: what the FLOPs are
(`lst.flops`), how much memory a run needs (`lst.memory`), which number of GPUs and micro-batch is taken
(`sweeps.placement`), or which runs are worth them (`sweeps.admit`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from lst.config import RunConfig
from lst.errors import ConfigError, did_you_mean
from lst.flops import num_params
from lst.hardware import GPU_PROFILES, GpuProfile
from lst.memory import GIB
from lst.records import KEPT_CHECKPOINTS

CPU = "cpu"
AUTO = "auto"
CHECKPOINT_NUMBERS = 3  # of a parameter in a checkpoint that a run resumes from: weight and two moments, in float32


@dataclass(frozen=True, kw_only=True)
class PriceConfig:
    """On what the runs are priced. Changes no run's id; `gpus=auto` chooses its GPUs and micro-batches."""

    device: str = CPU  # cpu, a GPU of lst/hardware.py, or one of profiles
    cpu_flops_per_second: float = 2e10  # training FLOP/s of one process on one core, step_seconds apart
    step_seconds: float = 0.02  # seconds of a step that do not depend on its FLOPs (tiny networks wait for their operations)
    startup_seconds: float = 4.0  # seconds of a run before its first step
    gpus: int | str = 1  # GPUs of a run (device other than cpu); auto: the fewest that hold it and keep max_hours
    max_gpus: int = 64  # auto: GPUs of a run at most
    max_hours: float = 0.0  # auto: hours that a run may take, which more GPUs shorten; 0 = any
    memory_share: float = 0.9  # of a GPU's memory that a run may fill by the estimate
    mfu: float = 0.4  # model FLOPs utilisation on a card (PAPER: about 0.4 fits its 17 hours on 32 cards)
    gpu_efficiency: float = 1.0  # share of its speed that a GPU keeps each time a run's GPUs are doubled; 1 = none is lost
    dollars_per_gpu_hour: float = 0.0  # 0 = the profile's, if it has one
    profiles: Mapping[str, GpuProfile] = field(default_factory=dict)  # GPUs beside those of lst/hardware.py, by name

    def validate(self) -> None:
        for name, profile in self.profiles.items():
            profile.validate(f"price.profiles.{name}")
        known = (CPU, *GPU_PROFILES, *self.profiles)
        if self.device not in known:
            raise ConfigError(f"price.device='{self.device}' is unknown; {did_you_mean(self.device, known)}")
        if isinstance(self.gpus, str) and self.gpus != AUTO:
            raise ConfigError(f"price.gpus='{self.gpus}' is neither a number nor 'auto'.")
        if self.gpus == AUTO and self.device == CPU:
            raise ConfigError(
                f"price.gpus=auto has nothing to choose on a CPU; give price.device, one of {', '.join(known[1:])}."
            )
        for key in ("cpu_flops_per_second", "max_gpus", *(("gpus",) if self.gpus != AUTO else ())):
            if not (math.isfinite(getattr(self, key)) and getattr(self, key) > 0):
                raise ConfigError(f"price.{key}={getattr(self, key)} must be a positive finite number.")
        for key in ("startup_seconds", "step_seconds", "max_hours", "dollars_per_gpu_hour"):
            if not (math.isfinite(getattr(self, key)) and getattr(self, key) >= 0):
                raise ConfigError(f"price.{key}={getattr(self, key)} must be a finite number, 0 or more.")
        for key in ("mfu", "memory_share", "gpu_efficiency"):
            if not 0 < getattr(self, key) <= 1:
                raise ConfigError(f"price.{key}={getattr(self, key)} must lie in (0, 1].")

    @property
    def gpu(self) -> GpuProfile | None:
        """The card; None on a CPU."""
        return None if self.device == CPU else (self.profiles.get(self.device) or GPU_PROFILES[self.device])

    @property
    def dollars(self) -> float:
        """Of a GPU-hour; 0 = no price is known."""
        return self.dollars_per_gpu_hour or (self.gpu.dollars_per_hour if self.gpu else 0.0)

    def on_at_most(self, gpus: int) -> PriceConfig:
        """The same on no more GPUs: those of a pretraining are too many for the small batches of what follows it."""
        fewer = self.gpu is not None and isinstance(self.gpus, int) and self.gpus > gpus
        return dataclasses.replace(self, gpus=gpus) if fewer else self

    def flops_per_second(self, gpus: int, dtype: str) -> float:
        """Of one run on `gpus` cards (0: a CPU). Raises ConfigError where the card's peak in `dtype` is not known."""
        if self.gpu is None:
            return self.cpu_flops_per_second
        peak = self.gpu.peak_flops(dtype)
        if not peak:
            raise ConfigError(f"price.profiles.{self.device} has no {dtype}; give its peak FLOP/s in {dtype}.")
        return peak * self.mfu * gpus * math.pow(self.gpu_efficiency, math.log2(gpus))


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What time is reckoned with."""

    flops_per_second: float  # of the run
    step_seconds: float  # on top, a step
    startup_seconds: float


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a run computes and keeps."""

    flops: float  # of training and evaluation, on all its paths
    steps: int  # on all its paths
    branches: int = 0  # budgets that it yields beside its own end (train.branch_steps)


def run_minutes(work: Work, speed: Speed, *, batch_sequences: int, gpus: int) -> float:
    """Wall clock of a run, start-up and evaluation included. A step takes as long as the GPU with the most sequences."""
    busiest = math.ceil(batch_sequences / gpus) * gpus / batch_sequences if gpus else 1.0
    seconds = work.flops * busiest / speed.flops_per_second + work.steps * speed.step_seconds + speed.startup_seconds
    return rounded(seconds / 60)


def evaluation_flops(config: RunConfig, training_flops_per_token: float) -> float:
    """FLOPs of the run's held-out sets (three) and story items, at the training's cost a token without a backward pass.

    A story item scores each ending after its prompt in two directions and two kinds of wrong endings; its length is taken
    as half the held-out context.
    """
    evaluation = config.evaluation
    heldout = 3 * evaluation.heldout_documents * evaluation.context_tokens * evaluation.points
    stories = 4 * evaluation.story_items * evaluation.story_choices * evaluation.context_tokens / 2
    return (heldout + stories) * training_flops_per_token / 3


def disk_gib(config: RunConfig) -> tuple[float, float]:
    """GiB of a run's checkpoints: what stays when it is done, and the most while it trains.

    Weights stay, of the run's end, of each branch's and of each kept step. A run in training keeps KEPT_CHECKPOINTS with weights
    and moments and writes the next one beside them; while it is on a branch, the trunk's stay there too.
    """
    weights = 4.0 * num_params(config.model) / GIB
    branches, kept = len(config.train.branch_steps), len(config.execution.keep_steps)
    saved = KEPT_CHECKPOINTS * (2 if branches else 1) + 1
    return weights * (1 + branches + kept), weights * (branches + kept + CHECKPOINT_NUMBERS * saved)


def wall_minutes(minutes: Iterable[float], cores: int) -> float:
    """Wall clock of runs started in this order on `cores` processes, each taken by the first that is free."""
    free = [0.0] * max(1, cores)
    for run in minutes:
        first = free.index(min(free))
        free[first] += run
    return max(free)


def rounded(value: float) -> float:
    """4 significant digits: an estimate that claims no more."""
    return float(f"{value:.4g}")
