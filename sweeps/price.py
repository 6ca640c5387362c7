"""What a run costs before it is spent: minutes, GPU-hours, and peak memory by part. Estimates, and named as such.

Time is FLOPs over speed: on a CPU the FLOP/s of one training process, plus seconds a step and the seconds it takes to
start (all three are options, to be set from a run's records); on GPUs the card's peak times an assumed utilisation.
Memory is a sum of parts for one process without sharding. Not here: what the FLOPs are (`lst.flops`), or which runs are
worth them (`sweeps.admit`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from lst.config import RunConfig, StackConfig
from lst.errors import ConfigError, did_you_mean

CPU = "cpu"
GPU_PEAK_FLOPS = {
    "a100": 312e12,
    "h100": 989e12,
    "h200": 989e12,
    "b200": 2250e12,
}
"""Dense bfloat16 FLOP/s of a card, from NVIDIA's data sheets (SXM; the halves of the sparse figures)."""

GIB = 2**30
RUNTIME_GIB = {CPU: 0.35, "gpu": 1.0}
"""What a process holds before it has a model: torch and the tables on a CPU, the CUDA context on a GPU. Rounded measurements."""

FLOATS_PER_WIDTH = 10  # activations kept for the backward pass, per token and layer, in multiples of the width: residuals,
# norms, query, key, value before and after the rotary embedding, the attention's output
FLOATS_PER_FFN = 4  # the same in multiples of the feed-forward width: gate, up, gated, their product
LOGIT_COPIES = 3  # logits, their log-softmax, their gradient


@dataclass(frozen=True, kw_only=True)
class PriceConfig:
    """On what the runs are priced. Changes no run, only its price."""

    device: str = CPU  # cpu, or a card of GPU_PEAK_FLOPS
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
        return GPU_PEAK_FLOPS[self.device] * self.mfu * self.gpus


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
        memory=memory_by_part(config, tokens_per_step=tokens / config.train.steps, gpu=price.cards > 0),
    )


def evaluation_flops(config: RunConfig, training_flops_per_token: float) -> float:
    """FLOPs of the run's held-out sets (three) and story items, at the training's cost a token without a backward pass.

    A story item scores each ending after its prompt in two directions and two kinds of wrong endings; its length is taken
    as half the held-out context.
    """
    evaluation = config.evaluation
    heldout = 3 * evaluation.heldout_documents * evaluation.context_tokens * evaluation.points
    stories = 4 * evaluation.story_items * evaluation.story_choices * evaluation.context_tokens / 2
    return (heldout + stories) * training_flops_per_token / 3


def memory_by_part(config: RunConfig, *, tokens_per_step: float, gpu: bool) -> dict[str, float]:
    """Peak GiB of one process by part, without sharding or recomputation; weights and AdamW's states in float32."""
    from lst.flops import num_params

    model = config.model
    weights = 4.0 * num_params(model)
    tokens = min(float(config.execution.micro_batch_tokens), tokens_per_step)
    bytes_per_float = 2 if config.train.dtype == "bfloat16" else 4
    stacks = [stack for stack in (model.global_stack, model.encoder, model.decoder) if stack is not None]
    vocabulary = model.text_vocab + model.speech_vocab + 2
    parts = {
        "weights": weights,
        "gradients": weights,
        "optimiser": 2 * weights,
        "activations": tokens * bytes_per_float * sum(_floats_per_token(stack) for stack in stacks),
        "logits": tokens * 4 * LOGIT_COPIES * vocabulary,
        "runtime": RUNTIME_GIB["gpu" if gpu else CPU] * GIB,
    }
    return {name: _rounded(size / GIB) for name, size in parts.items()}


def wall_minutes(minutes: Iterable[float], cores: int) -> float:
    """Wall clock of runs started in this order on `cores` processes, each taken by the first that is free."""
    free = [0.0] * max(1, cores)
    for run in minutes:
        first = free.index(min(free))
        free[first] += run
    return max(free)


def _floats_per_token(stack: StackConfig) -> int:
    return stack.layers * (FLOATS_PER_WIDTH * stack.dim + FLOATS_PER_FFN * stack.ffn_dim)


def _rounded(value: float) -> float:
    """4 significant digits: an estimate that claims no more."""
    return float(f"{value:.4g}")
