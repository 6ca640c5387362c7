"""A step's global batch, spread over ranks: each rank makes its own rows, all know what the whole batch holds.

Which rank makes which rows depends on nothing but the configuration, the step and the number of ranks, and decides nothing:
gradients are sums over the global batch. Not here: which sequences a batch has (lst.data.stream).
"""

from __future__ import annotations

import dataclasses
from concurrent.futures import Future, ThreadPoolExecutor
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
    def make(cls, rows: Prefetch, step: int, ranks: Ranks) -> StepBatch:
        """Called by all ranks. Raises on all of them what making a row raises on one."""
        own = ranks.together(lambda: rows.batch(step))
        high, low, *counts = ranks.sum([own.digest // HALF, own.digest % HALF, *dataclasses.astuple(own.counts)])
        names = [field.name for field in dataclasses.fields(SequenceCounts)]
        total = SequenceCounts(**{name: int(count) for name, count in zip(names, counts, strict=True)})
        return cls(own, total, batch_hash(int(high) * HALF + int(low)))


class Prefetch:
    """Makes a rank's rows of the next step in a thread, while the current one is trained on.

    What it makes is a function of the step alone, so it decides nothing: a step that was not foreseen (a branch begins, or
    ends) is made when it is asked for. Holds one batch more than is trained on.
    """

    def __init__(self, stream: Stream, *, rank: int, size: int, steps: int) -> None:
        self._stream, self._rank, self._size, self._steps = stream, rank, size, steps
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._next: tuple[int, Future[PackedBatch]] | None = None

    def batch(self, step: int) -> PackedBatch:
        """The rows of `step`; those of the step after it are begun. Raises what making a row raises."""
        ahead = self._next if self._next is not None and self._next[0] == step else None
        batch = (ahead[1] if ahead else self._thread.submit(self._make, step)).result()
        self._next = (step + 1, self._thread.submit(self._make, step + 1)) if step + 1 < self._steps else None
        return batch

    def close(self) -> None:
        """Drop what is not asked for any more, and end the thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _make(self, step: int) -> PackedBatch:
        batch = self._stream.batch(step, rank=self._rank, size=self._size)
        _ = batch.counts, batch.digest  # made here, and kept by the batch
        return batch


def equally_many(parts: list[PackedBatch], stream: Stream, ranks: Ranks) -> list[PackedBatch]:
    """This rank's parts, and as many that predict nothing as it has fewer than another rank. Called by all ranks.

    Ranks gather each other's weights in every forward pass, so all must make equally many.
    """
    most = max(int(count) for (count,) in ranks.gather([len(parts)]))
    return parts + [PackedBatch([stream.idle_row()])] * (most - len(parts))
