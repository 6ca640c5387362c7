"""Who may see whom, as one interval of keys a query; and how a CPU walks over it in blocks.

Legend: B rows, T queries, S keys.

Every attention of the networks is an interval: query t sees the keys `lo[t] .. hi[t] - 1`, and both ends never fall along
a row (of real, unpadded queries):

    causal inside a document        lo = the document's first position      hi = t + 1
    the last w positions of it      lo = max(that, t - w + 1)               hi = t + 1
    all closed units                lo = the document's first unit          hi = visible(t)      (lst/patching.py)

So a mask is two vectors. `mask` writes it out for the reference; a GPU's FlexAttention reads the vectors; `blocks` cuts the
queries into blocks whose keys are one stretch, such that what lies outside is never computed:

    a long document, causal         one block; the kernel itself skips the upper triangle
    a window, or short documents    blocks of QUERIES queries on keys lo[first] .. hi[last] - 1, with a small mask
    a long prefix that all see      a part without a mask, and a masked tail; the two are joined by their log-sum-exps

Padding queries see something harmless (one key), for a softmax over nothing is not a number; nothing that is kept reads
what they compute, and `blocks` leaves them out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IntArray = NDArray[np.int64]
Masks = dict[tuple[bytes, bytes, int], Tensor]  # by pattern: (lo, hi, keys) from the first key on

QUERIES = 128  # of a masked block: fewer compute fewer hidden pairs, more need fewer kernel starts
CROSS_QUERIES = 256  # the same for attention to units, where a block has a long prefix
CAUSAL = 192  # queries from which a causal stretch is a block of its own
PREFIX = 256  # keys that all queries of a block see, from which they are a part without a mask
SMALL = 256 * 256  # pairs of a row up to which all rows are one masked block


@dataclass(frozen=True)
class Part:
    """Keys of a block. The queries see all of them (no mask), the mask's, or causally their own stretch."""

    keys: slice
    mask: Tensor | None = None  # additive, (rows or 1, 1, queries, keys): 0 = visible, -inf = hidden
    causal: bool = False


@dataclass(frozen=True)
class Block:
    """Queries of some rows, with the keys that they meet."""

    rows: slice
    queries: slice
    parts: tuple[Part, ...]


@dataclass(frozen=True, eq=False)
class Documents:
    """Rows without their padding, as one stretch of documents: what variable-length kernels take."""

    place_N: Tensor  # row x length + position of each real token
    lengths: list[int]  # tokens of each document
    starts: Tensor  # int32: where each begins, and the end of the last
    longest: int  # 0 where no row has a token (text alone, where the local modules run on speech alone)

    @classmethod
    def of(cls, position_BT: Tensor, lengths: tuple[int, ...]) -> Documents:
        """From positions in documents, which start at 0, and each row's real tokens."""
        step_T = torch.arange(position_BT.shape[1], device=position_BT.device)
        real_BT = step_T < torch.tensor(lengths, device=position_BT.device)[:, None]
        place_N = real_BT.flatten().nonzero().squeeze(1)
        first_D = (position_BT.flatten()[place_N] == 0).nonzero().squeeze(1)
        starts = torch.cat([first_D, first_D.new_tensor([len(place_N)])]).int()
        sizes = starts.diff().tolist()
        return cls(place_N, sizes, starts, max(sizes, default=0))

    def unpack(self, x_NHD: Tensor, like_BTHD: Tensor) -> Tensor:
        """Back to padded rows, zero in the padding."""
        return x_NHD.new_zeros(like_BTHD.shape).flatten(0, 1).index_copy(0, self.place_N, x_NHD).view(like_BTHD.shape)


@dataclass(frozen=True, eq=False)
class Intervals:
    """The visible keys of each query."""

    lo_BT: Tensor
    hi_BT: Tensor
    keys: int  # S
    lengths: tuple[int, ...]  # real queries of each row; the padding comes after them
    block: int = QUERIES  # queries of a masked block
    position_BT: Tensor | None = None  # of self-attention: positions in documents
    window: int = 0  # of self-attention: positions seen, the own among them; 0 = all of the document
    made: dict[str, Any] = field(default_factory=dict)  # what a backend makes of them once for all layers

    @cached_property
    def mask_B1TS(self) -> Tensor:
        """True where the query may see the key."""
        key_S = torch.arange(self.keys, device=self.lo_BT.device)
        return ((key_S >= self.lo_BT[..., None]) & (key_S < self.hi_BT[..., None]))[:, None]

    @cached_property
    def bias_B1TS(self) -> Tensor:
        """The mask as an additive bias: 0 or -inf."""
        return additive(self.mask_B1TS)

    @cached_property
    def blocks(self) -> list[Block]:
        """The plan of the blocked kernel. Each real query lies in exactly one block; parts of a block are disjoint."""
        lo, hi = self.lo_BT.numpy(), self.hi_BT.numpy()
        rows, queries = lo.shape
        if queries * self.keys <= SMALL:
            return [Block(slice(0, rows), slice(0, queries), (Part(slice(0, self.keys), self.bias_B1TS),))]
        alike = len(set(self.lengths)) == 1 and bool((lo == lo[:1]).all() and (hi == hi[:1]).all())
        masks: Masks = {}
        if alike:
            return self._row_blocks(slice(0, rows), lo[0, : self.lengths[0]], hi[0, : self.lengths[0]], masks)
        return [
            block
            for row, length in enumerate(self.lengths)
            for block in self._row_blocks(slice(row, row + 1), lo[row, :length], hi[row, :length], masks)
        ]

    @cached_property
    def documents(self) -> Documents:
        """For self-attention: the documents of all rows, one after the other."""
        assert self.position_BT is not None
        return Documents.of(self.position_BT, self.lengths)

    @cached_property
    def whole(self) -> bool:
        """Whether the blocks cover every query, padding included."""
        blocks = self.blocks
        covered = sum((b.rows.stop - b.rows.start) * (b.queries.stop - b.queries.start) for b in blocks)
        return covered == self.lo_BT.numel()

    def _row_blocks(self, rows: slice, lo: IntArray, hi: IntArray, masks: Masks) -> list[Block]:
        blocks: list[Block] = []
        start = 0
        for first, end in [*_causal_stretches(lo, hi), (len(lo), len(lo))]:
            for q in range(start, first, self.block):
                queries = slice(q, min(q + self.block, first))
                blocks.append(Block(rows, queries, _masked_parts(lo[queries], hi[queries], masks)))
            if end > first:
                blocks.append(Block(rows, slice(first, end), (Part(slice(first, end), causal=True),)))
            start = end
        return blocks


def causal_intervals(position_BT: Tensor, lengths: tuple[int, ...], *, window: int = 0) -> Intervals:
    """The same or an earlier position of the same document, at most `window` of them (0 = any). Padding has position 0."""
    step_T = torch.arange(position_BT.shape[1], device=position_BT.device)
    back_BT = position_BT if window == 0 else position_BT.clamp(max=window - 1)
    return Intervals(
        step_T - back_BT,
        (step_T + 1).expand_as(position_BT),
        position_BT.shape[1],
        lengths,
        position_BT=position_BT,
        window=window,
    )


def visible_intervals(visible_BT: Tensor, first_unit_BT: Tensor, units: int, lengths: tuple[int, ...]) -> Intervals:
    """The units of the token's document that are closed at it (DESIGN rule 2). Padding has visible 0 and sees the first."""
    return Intervals(first_unit_BT, torch.maximum(visible_BT, first_unit_BT + 1), units, lengths, block=CROSS_QUERIES)


def _causal_stretches(lo: IntArray, hi: IntArray) -> list[tuple[int, int]]:
    """Longest stretches [first, end) in which each query sees first .. itself, of at least CAUSAL queries."""
    step = np.arange(len(lo))
    own = hi == step + 1
    changes = np.flatnonzero(np.diff(lo, prepend=-1) != 0)
    ends = np.append(changes[1:], len(lo))
    long = (ends - changes >= CAUSAL) & (lo[changes] == changes)
    return [(int(a), int(b)) for a, b in zip(changes[long], ends[long], strict=True) if own[a:b].all()]


def _masked_parts(lo: IntArray, hi: IntArray, masks: Masks) -> tuple[Part, ...]:
    first, last = int(lo[0]), int(hi[-1])
    if lo[-1] == first and hi[0] == last:
        return (Part(slice(first, last)),)
    # Keys first .. common - 1 are seen by all, and each query sees one key of the tail at least.
    common = int(hi[0]) - 1 if lo[-1] == first else first
    if common - first >= PREFIX:
        return Part(slice(first, common)), Part(slice(common, last), _mask(lo, hi, common, last, masks))
    return (Part(slice(first, last), _mask(lo, hi, first, last, masks)),)


def _mask(lo: IntArray, hi: IntArray, first: int, last: int, masks: Masks) -> Tensor:
    """The mask of keys first .. last - 1; blocks of the same pattern share one."""
    key = (np.maximum(lo - first, 0).tobytes(), (hi - first).tobytes(), last - first)
    if key not in masks:
        step = np.arange(first, last)
        seen = (step >= lo[:, None]) & (step < hi[:, None])
        masks[key] = additive(torch.from_numpy(seen))[None, None]
    return masks[key]


def additive(seen: Tensor) -> Tensor:
    """A mask as an additive bias: 0 where seen, -inf where hidden."""
    return torch.zeros(seen.shape, device=seen.device).masked_fill_(~seen, -math.inf)
