"""Tensors on their way into a checkpoint: rows of all ranks to rank 0, one tensor at a time, through the CPUs' memory.

The exchange has a process group of its own (`Ranks.writers`), so that a thread may do it while training goes on. Not here: what
is written, and where (lst.train.checkpoint).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch

from lst.train.distributed import Ranks
from lst.train.sharding import is_sharded, local, row_range


@dataclass(frozen=True)
class Piece:
    """A tensor as one rank has it: all of it, or of a sharded one some rows."""

    part: torch.Tensor  # what this rank has
    shape: torch.Size  # of the whole
    sharded: bool

    @property
    def dtype(self) -> torch.dtype:
        return self.part.dtype


def pieces(tensors: Mapping[str, torch.Tensor], *, copy: bool) -> dict[str, Piece]:
    """The tensors' pieces; `copy` puts them into the CPU's memory, so that the tensors may change meanwhile."""
    found = {}
    for name, tensor in tensors.items():
        part = local(tensor)
        part = part.to("cpu", copy=True) if copy else part
        found[name] = Piece(part, tensor.shape, is_sharded(tensor))
    return found


@contextlib.contextmanager
def whole_tensors(parts: Iterable[Piece], ranks: Ranks) -> Iterator[Iterator[torch.Tensor] | None]:
    """On rank 0 the whole tensors in order, each when it is asked for; None on the others, which have sent theirs by then.

    If rank 0 leaves early (a full disk), what the others send is taken all the same, so that nobody waits for ever.
    """
    if not ranks.first:
        for piece in parts:
            if piece.sharded and piece.part.numel():
                _send(piece, ranks)
        yield None
        return
    values = (_receive(piece, ranks) if piece.sharded else piece.part for piece in parts)
    try:
        yield values
    finally:
        for _ in values:
            pass


def _send(piece: Piece, ranks: Ranks) -> None:
    import torch.distributed as dist

    dist.send(piece.part.cpu().contiguous(), dst=0, group=ranks.writers)


def _receive(piece: Piece, ranks: Ranks) -> torch.Tensor:
    import torch.distributed as dist

    whole = torch.empty(piece.shape, dtype=piece.dtype)
    whole[: len(piece.part)] = piece.part
    for rank in range(1, ranks.size):
        start, stop = row_range(len(whole), rank, ranks.size)
        if stop > start:
            dist.recv(whole[start:stop], src=rank, group=ranks.writers)
    return whole
