"""Between tokens and the unit each belongs to: a patch reads its own tokens, a token reads one unit.

Legend: B rows, T tokens, U units, N = B x T tokens, S = B x U units, K queries or keys of a unit, H heads, D head width,
E = H x D.

Each token has one unit, so scores are N x K x H numbers and no matrix of pairs exists. Three primitives make both attentions
and their backward passes (w: weights of N x K x H; s(n): the unit of token n):

    scores   unit_SKE, token_NE -> (N, K, H)   <unit[s(n), k], token[n]> by head
    spread   w, unit_SKE        -> (N, E)      sum_k w[n, k] unit[s(n), k]
    collect  w, token_NE        -> (S, K, E)   sum of w[n, k] token[n] over the tokens n of each unit

They walk over tokens in chunks, which bounds the memory of what is gathered. Padding tokens have weight zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

CHUNK_FLOATS = {"cpu": 2**22, "cuda": 2**28}  # gathered at a time


@dataclass(frozen=True, eq=False)
class Segments:
    """Which token is in which unit, as flat places (row x length + position)."""

    unit_BT: Tensor  # unit of each token of its row, U for padding
    unit_N: Tensor  # flat unit of each token, S for padding
    length_S: Tensor  # tokens of each unit, at least 1
    last_N: Tensor  # bool: the last token of its unit
    padded: bool  # whether there are padding tokens
    shape: tuple[int, int]  # B, U

    @classmethod
    def of(cls, unit_BT: Tensor, units: int) -> Segments:
        """From the unit of each token of a row; `units` marks padding."""
        rows = torch.arange(unit_BT.shape[0], device=unit_BT.device)[:, None] * units
        real_BT = unit_BT < units
        unit_N = torch.where(real_BT, unit_BT + rows, unit_BT.shape[0] * units).flatten()
        length_S = torch.bincount(unit_N, minlength=unit_BT.shape[0] * units + 1)[:-1].clamp(min=1)
        next_BT = F.pad(unit_BT[:, 1:], (0, 1), value=-1)
        last_N = (real_BT & (next_BT != unit_BT)).flatten()
        return cls(unit_BT, unit_N, length_S, last_N, not bool(real_BT.all()), (unit_BT.shape[0], units))

    @property
    def count(self) -> int:
        return self.shape[0] * self.shape[1]


def pool_segments(x_BTE: Tensor, segments: Segments, how: str) -> Tensor:
    """Hidden states of each unit's tokens pooled by max, mean or last -> (B, U, E); zero for padding units."""
    pooled_SE = _Pool.apply(x_BTE.flatten(0, 1), segments, how)
    return pooled_SE.unflatten(0, segments.shape)


def read_own_tokens(q_BUKE: Tensor, k_BTE: Tensor, v_BTE: Tensor, segments: Segments, heads: int) -> Tensor:
    """Each unit's K queries attend to the unit's own tokens -> (B, U, K, E); zero for padding units."""
    out_SKE = _OwnTokens.apply(q_BUKE.flatten(0, 1), k_BTE.flatten(0, 1), v_BTE.flatten(0, 1), segments, heads)
    return out_SKE.unflatten(0, segments.shape)


def read_one_unit(q_BTE: Tensor, k_BUKE: Tensor, v_BUKE: Tensor, unit_BT: Tensor, heads: int) -> Tensor:
    """Each token attends to the K keys of one unit, `unit_BT` of its row -> (B, T, E)."""
    rows = torch.arange(unit_BT.shape[0], device=unit_BT.device)[:, None] * k_BUKE.shape[1]
    out_NE = _OneUnit.apply(q_BTE.flatten(0, 1), k_BUKE.flatten(0, 1), v_BUKE.flatten(0, 1), (unit_BT + rows).flatten(), heads)
    return out_NE.unflatten(0, unit_BT.shape)


class _Pool(torch.autograd.Function):
    """Equal maxima of a unit share its gradient. A spare unit at the end takes the padding."""

    @staticmethod
    def forward(ctx: Any, x_NE: Tensor, segments: Segments, how: str) -> Tensor:
        unit_N = segments.unit_N
        pooled_SE = x_NE.new_zeros(segments.count + 1, x_NE.shape[1])
        if how == "last":
            pooled_SE.index_copy_(0, unit_N[segments.last_N], x_NE[segments.last_N])
        elif how == "mean":
            pooled_SE.index_add_(0, unit_N, x_NE)[:-1].div_(segments.length_S[:, None])
        else:
            pooled_SE.scatter_reduce_(0, unit_N[:, None].expand_as(x_NE), x_NE, "amax", include_self=False)
        ctx.save_for_backward(*((x_NE, pooled_SE) if how == "max" else ()))
        ctx.segments, ctx.how = segments, how
        pooled_SE[-1] = 0
        return pooled_SE[:-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (grad_SE,), segments = gradients, ctx.segments
        unit_N = segments.unit_N
        grad_SE = F.pad(grad_SE, (0, 0, 0, 1))
        if ctx.how == "last":
            grad_NE = grad_SE.index_select(0, unit_N).mul_(segments.last_N[:, None])
        elif ctx.how == "mean":
            grad_SE[:-1].div_(segments.length_S[:, None])
            grad_NE = grad_SE.index_select(0, unit_N)
        else:
            x_NE, pooled_SE = ctx.saved_tensors
            is_peak_NE = (x_NE == pooled_SE.index_select(0, unit_N)).to(grad_SE.dtype)
            peaks_SE = torch.zeros_like(pooled_SE).index_add_(0, unit_N, is_peak_NE).clamp_(min=1)
            grad_NE = is_peak_NE.mul_(grad_SE.div_(peaks_SE).index_select(0, unit_N))
        return grad_NE, None, None


class _OwnTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_SKE: Tensor, k_NE: Tensor, v_NE: Tensor, segments: Segments, heads: int) -> Tensor:
        unit_N = segments.unit_N.clamp(max=segments.count - 1)
        score_NKH = scores(q_SKE, k_NE, unit_N, heads).div_(math.sqrt(k_NE.shape[1] // heads))
        share_NKH = _segment_softmax(score_NKH, segments)
        ctx.save_for_backward(q_SKE, k_NE, v_NE, unit_N, share_NKH)
        ctx.heads = heads
        return collect(share_NKH, v_NE, unit_N, segments.count)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        (grad_SKE,), (q_SKE, k_NE, v_NE, unit_N, share_NKH) = gradients, ctx.saved_tensors
        count, heads = q_SKE.shape[0], ctx.heads
        along_NKH = scores(grad_SKE, v_NE, unit_N, heads).mul_(share_NKH)
        mean_SKH = share_NKH.new_zeros(count, *share_NKH.shape[1:]).index_add_(0, unit_N, along_NKH)
        grad_score_NKH = along_NKH.sub_(mean_SKH.index_select(0, unit_N).mul_(share_NKH)).div_(math.sqrt(k_NE.shape[1] // heads))
        return (
            collect(grad_score_NKH, k_NE, unit_N, count),
            spread(grad_score_NKH, q_SKE, unit_N),
            spread(share_NKH, grad_SKE, unit_N),
            None,
            None,
        )


class _OneUnit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_NE: Tensor, k_SKE: Tensor, v_SKE: Tensor, unit_N: Tensor, heads: int) -> Tensor:
        score_NKH = scores(k_SKE, q_NE, unit_N, heads).div_(math.sqrt(q_NE.shape[1] // heads))
        share_NKH = torch.softmax(score_NKH, dim=1)
        ctx.save_for_backward(q_NE, k_SKE, v_SKE, unit_N, share_NKH)
        ctx.heads = heads
        return spread(share_NKH, v_SKE, unit_N)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        (grad_NE,), (q_NE, k_SKE, v_SKE, unit_N, share_NKH) = gradients, ctx.saved_tensors
        count, heads = k_SKE.shape[0], ctx.heads
        along_NKH = scores(v_SKE, grad_NE, unit_N, heads).mul_(share_NKH)
        mean_N1H = along_NKH.sum(1, keepdim=True)
        grad_score_NKH = along_NKH.sub_(share_NKH * mean_N1H).div_(math.sqrt(q_NE.shape[1] // heads))
        return (
            spread(grad_score_NKH, k_SKE, unit_N),
            collect(grad_score_NKH, q_NE, unit_N, count),
            collect(share_NKH, grad_NE, unit_N, count),
            None,
            None,
        )


def scores(unit_SKE: Tensor, token_NE: Tensor, unit_N: Tensor, heads: int) -> Tensor:
    """(N, K, H) in fp32 or wider: each token with its unit's K vectors, head by head."""
    K, E = unit_SKE.shape[1:]
    wide = torch.promote_types(unit_SKE.dtype, torch.float32)
    parts = []
    for part in _chunks(len(unit_N), K * E, unit_SKE.device):
        product_CKE = unit_SKE.index_select(0, unit_N[part]).mul_(token_NE[part, None])
        parts.append(product_CKE.unflatten(2, (heads, -1)).sum(-1, dtype=wide))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def spread(weight_NKH: Tensor, unit_SKE: Tensor, unit_N: Tensor) -> Tensor:
    """(N, E): the unit's K vectors, weighted and summed."""
    (K, E), heads = unit_SKE.shape[1:], weight_NKH.shape[2]
    parts = []
    for part in _chunks(len(unit_N), K * E, unit_SKE.device):
        gathered_CKHD = unit_SKE.index_select(0, unit_N[part]).unflatten(2, (heads, -1))
        gathered_CKHD.mul_(weight_NKH[part, :, :, None])
        parts.append(gathered_CKHD[:, 0] if K == 1 else gathered_CKHD.sum(1))
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).flatten(1)


def collect(weight_NKH: Tensor, token_NE: Tensor, unit_N: Tensor, count: int) -> Tensor:
    """(S, K, E): weighted sums over each unit's tokens."""
    (_, K, heads), E = weight_NKH.shape, token_NE.shape[1]
    out_SKE = token_NE.new_zeros(count, K, E)
    for part in _chunks(len(unit_N), K * E, token_NE.device):
        token_C1HD = token_NE[part].unflatten(1, (heads, -1))[:, None]
        weighted_CKHD = weight_NKH[part, :, :, None].to(token_NE.dtype) * token_C1HD
        out_SKE.index_add_(0, unit_N[part], weighted_CKHD.flatten(2))
    return out_SKE


def _segment_softmax(score_NKH: Tensor, segments: Segments) -> Tensor:
    """Softmax over the tokens of each unit; 0 for padding."""
    unit_N, (_, K, H) = segments.unit_N, score_NKH.shape
    peak_SKH = score_NKH.new_zeros(segments.count + 1, K, H)
    peak_SKH.scatter_reduce_(0, unit_N[:, None, None].expand_as(score_NKH), score_NKH, "amax", include_self=False)
    weight_NKH = (score_NKH - peak_SKH.index_select(0, unit_N)).exp_()
    total_SKH = peak_SKH.zero_().index_add_(0, unit_N, weight_NKH)
    share_NKH = weight_NKH.div_(total_SKH.index_select(0, unit_N))
    return share_NKH.mul_((unit_N < segments.count)[:, None, None]) if segments.padded else share_NKH


def _chunks(tokens: int, floats: int, device: torch.device) -> Iterator[slice]:
    """Stretches of tokens, each of which gathers about CHUNK_FLOATS of `floats` a token."""
    size = max(1, CHUNK_FLOATS.get(device.type, 2**28) // floats)
    for start in range(0, tokens, size):
        yield slice(start, min(start + size, tokens))
