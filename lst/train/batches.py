"""A step's global batch, spread over ranks: each rank makes its own rows, all know what the whole batch holds.

Which rank makes which rows depends on nothing but the configuration, the step and the number of ranks, and decides nothing:
gradients are sums over the global batch. Not here: which sequences a batch has (lst.data.stream).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from lst.data.pack import PackedBatch, batch_hash
from lst.data.stream import Stream
from lst.flops import SequenceCounts
from lst.train.distributed import Ranks

HALF = 1 << 32  # hashes travel as two numbers that fp64 holds exactly


@dataclass(frozen=True)
class StepBatch:
    """The global batch of one step as one rank sees it."""

    own: PackedBatch  # this rank's rows
    counts: SequenceCounts  # of the global batch
    hash: str  # of the global batch

    @classmethod
    def make(cls, stream: Stream, step: int, ranks: Ranks) -> StepBatch:
        """Called by all ranks. Raises on all of them what making a row raises on one."""
        own = ranks.together(lambda: stream.batch(step, rank=ranks.rank, size=ranks.size))
        high, low, *counts = ranks.sum([own.digest // HALF, own.digest % HALF, *dataclasses.astuple(own.counts)])
        names = [field.name for field in dataclasses.fields(SequenceCounts)]
        total = SequenceCounts(**{name: int(count) for name, count in zip(names, counts, strict=True)})
        return cls(own, total, batch_hash(int(high) * HALF + int(low)))


def equally_many(parts: list[PackedBatch], stream: Stream, ranks: Ranks) -> list[PackedBatch]:
    """This rank's parts, and as many that predict nothing as it has fewer than another rank. Called by all ranks.

    Ranks gather each other's weights in every forward pass, so all must make equally many.
    """
    most = max(int(count) for (count,) in ranks.gather([len(parts)]))
    return parts + [PackedBatch([stream.idle_row()])] * (most - len(parts))
