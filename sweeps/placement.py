"""On how many GPUs a run is placed, with which micro-batch, and why; or why it fits nowhere.

A micro-batch holds at least one sequence, a GPU at least one of the batch's. `price.gpus=auto` takes the fewest GPUs (1, 2, 4,
... to a node's, then 2, 4, 8, ... nodes) that hold the run, and of them the largest micro-batch, `execution.micro_batch_tokens`
halved until it fits. The choice is execution: no run's id depends on it. Sequences are taken at their mean length, in 3 digits.
Not here: the estimate of memory (`lst.memory`), hours (`sweeps.price`).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from lst.config import ModelConfig, RunConfig
from lst.hardware import GpuProfile
from lst.memory import memory_by_part
from sweeps.price import AUTO, PriceConfig


@dataclass(frozen=True, kw_only=True)
class Job:
    """What of a run decides where it fits: equal jobs are placed alike, so each is placed once."""

    model: ModelConfig
    dtype: str
    micro_batch_tokens: int
    checkpointing: str
    batch_sequences: int
    tokens: float  # of a sequence
    units: int  # of a sequence

    @classmethod
    def of(cls, config: RunConfig, tokens_per_sequence: float) -> Job:
        return cls(
            model=config.model,
            dtype=config.train.dtype,
            micro_batch_tokens=config.execution.micro_batch_tokens,
            checkpointing=config.execution.activation_checkpointing,
            batch_sequences=config.train.batch_sequences,
            tokens=float(f"{tokens_per_sequence:.3g}"),
            units=config.data.seq_len_units,
        )


@dataclass(frozen=True, kw_only=True)
class Placement:
    """One choice. `memory` is GiB by part of one process."""

    gpus: int  # 0 = a CPU
    micro_batch_tokens: int
    memory: dict[str, float]
    why: str = ""  # of a choice that was made
    refusal: str = ""  # why it does not fit

    @property
    def peak_gib(self) -> float:
        return float(f"{sum(self.memory.values()):.4g}")


@dataclass(frozen=True)
class Room:
    """What a GPU offers."""

    name: str
    usable_gib: float
    gpus: int  # asked for; 0 = to be chosen
    counts: tuple[int, ...]  # that may be chosen, rising

    @property
    def choosing(self) -> bool:
        return not self.gpus


def room_of(price: PriceConfig) -> Room | None:
    """None on a CPU, whose memory is not known here (admission.max_peak_gib)."""
    if price.gpu is None:
        return None
    usable = price.gpu.memory_gib * price.memory_share
    gpus = 0 if price.gpus == AUTO else int(price.gpus)
    return Room(price.device, usable, gpus, tuple(_counts(price.gpu, price.max_gpus)))


def placements(job: Job, room: Room | None) -> Iterator[Placement]:
    """The placements to choose from, the fewest GPUs first: those that fit, or one with its refusal."""
    if room is None:
        yield Placement(gpus=0, micro_batch_tokens=job.micro_batch_tokens, memory=memory(job, 0, job.micro_batch_tokens))
    elif room.gpus:
        yield _fixed(job, room)
    else:
        found = False
        for gpus in room.counts:
            chosen = _largest_micro_batch(job, room, gpus)
            if chosen is not None:
                found = True
                yield chosen
        if not found:
            yield _nowhere(job, room)


@functools.lru_cache(maxsize=65536)
def _fixed(job: Job, room: Room) -> Placement:
    """The study's own micro-batch on the number of GPUs that was asked for."""
    held = memory(job, room.gpus, job.micro_batch_tokens)
    placed = Placement(gpus=room.gpus, micro_batch_tokens=job.micro_batch_tokens, memory=held)
    if room.gpus > job.batch_sequences:
        return dataclasses.replace(placed, refusal=_too_few_sequences(job, room.gpus))
    if sum(held.values()) <= room.usable_gib:
        return placed
    return dataclasses.replace(placed, refusal=f"{_needs(placed, room)}; {_remedy(job, room)}")


@functools.lru_cache(maxsize=65536)
def _largest_micro_batch(job: Job, room: Room, gpus: int) -> Placement | None:
    """The largest micro-batch with which the job fits on `gpus` GPUs; None if none does."""
    if gpus > job.batch_sequences:
        return None
    tokens = job.micro_batch_tokens
    while True:
        held = memory(job, gpus, tokens)
        if sum(held.values()) <= room.usable_gib:
            return Placement(gpus=gpus, micro_batch_tokens=tokens, memory=held, why=_why(job, room, gpus, tokens, held))
        if tokens <= job.tokens:
            return None
        tokens = max(1, tokens // 2)


@functools.lru_cache(maxsize=65536)
def _nowhere(job: Job, room: Room) -> Placement:
    gpus = max((n for n in room.counts if n <= job.batch_sequences), default=1)
    tokens = min(job.micro_batch_tokens, math.ceil(job.tokens))
    placed = Placement(gpus=gpus, micro_batch_tokens=tokens, memory=memory(job, gpus, tokens))
    return dataclasses.replace(placed, refusal=f"{_needs(placed, room)}; {_remedy(job, room)}")


def memory(job: Job, gpus: int, micro_batch_tokens: int) -> dict[str, float]:
    """Peak GiB by part of one process: its micro-batch is what it has of the batch, or `micro_batch_tokens`, or one sequence."""
    ranks = max(1, gpus)
    own = math.ceil(job.batch_sequences / ranks) * job.tokens
    tokens = max(job.tokens, min(float(micro_batch_tokens), own))
    return memory_by_part(
        job.model,
        tokens=tokens,
        units=tokens * min(1.0, job.units / job.tokens),
        gpu=gpus > 0,
        ranks=ranks,
        dtype=job.dtype,
        checkpointing=job.checkpointing,
    )


def _counts(gpu: GpuProfile, most: int) -> Iterator[int]:
    count = 1
    while count <= most:
        yield count
        count = min(2 * count, gpu.gpus_per_node) if count < gpu.gpus_per_node else 2 * count


def _needs(placed: Placement, room: Room) -> str:
    largest = max(placed.memory, key=lambda part: placed.memory[part])
    on = f"{placed.gpus} x {room.name}" if placed.gpus > 1 else f"one {room.name}"
    return (
        f"it needs about {placed.peak_gib:.1f} GiB a GPU on {on} with micro-batches of {placed.micro_batch_tokens:,} tokens "
        f"({largest} {placed.memory[largest]:.1f}), and {room.usable_gib:.1f} may be filled"
    )


def _remedy(job: Job, room: Room) -> str:
    """The first change under which the job would fit."""
    fixed = dataclasses.replace(room, gpus=0, counts=(room.gpus,)) if room.gpus else room
    tries = [
        ("micro-batches of {m:,} tokens (execution.micro_batch_tokens)", job, fixed),
        ("execution.activation_checkpointing=layers", dataclasses.replace(job, checkpointing="layers"), fixed),
        ("price.gpus={g}", job, dataclasses.replace(room, gpus=0, counts=tuple(2**n for n in range(11)))),
    ]
    for text, changed, offered in tries:
        for gpus in offered.counts:
            found = _largest_micro_batch(changed, offered, gpus)
            if found is not None:
                smaller = f" and micro-batches of {found.micro_batch_tokens:,} tokens"
                also = smaller if "{m" not in text and found.micro_batch_tokens != job.micro_batch_tokens else ""
                return f"it would fit with {text.format(m=found.micro_batch_tokens, g=gpus)}{also}"
    return "plan a smaller size, shorter sequences, or price it on a GPU with more memory"


def _too_few_sequences(job: Job, gpus: int) -> str:
    return (
        f"its batch of {job.batch_sequences} sequences cannot be shared by price.gpus={gpus}; give at most "
        f"{job.batch_sequences} GPUs, or larger batches (recipe.batch_sequences)"
    )


def _why(job: Job, room: Room, gpus: int, tokens: int, held: dict[str, float]) -> str:
    """Why this number of GPUs and this micro-batch, in one clause each."""
    smaller = [n for n in room.counts if n < gpus]
    total = sum(held.values())
    reasons = [f"{total:.1f} of {room.usable_gib:.1f} GiB"]
    if smaller and _largest_micro_batch(job, room, smaller[-1]) is None:
        reasons.append(f"{smaller[-1]} would not hold it")
    if tokens < job.micro_batch_tokens:
        over = sum(memory(job, gpus, 2 * tokens).values())
        reasons.append(f"micro-batches of {2 * tokens:,} tokens would need {over:.1f}")
    rest = job.batch_sequences % gpus
    if rest:
        reasons.append(f"{job.batch_sequences} sequences do not divide by {gpus}, so some GPUs wait for others")
    return "; ".join(reasons)
