"""Between tokens and the unit each belongs to: a patch reads its own tokens, a token reads one unit.

Legend: B rows, T tokens, U units, N tokens in units of more than one token, M units of one token, S = B x U, K queries or
keys of a unit, H heads, D head width, E = H x D.

Each token has one unit, so scores are N x K x H numbers and no matrix of pairs exists. Three primitives make both attentions
and their backward passes (w: weights of N x K x H; s(n): the unit of token n):

    scores   unit_SKE, token_NE -> (N, K, H)   <unit[s(n), k], token[n]> by head
    spread   w, unit_SKE        -> (N, E)      sum_k w[n, k] unit[s(n), k]
    collect  w, token_NE        -> (S, K, E)   sum of w[n, k] token[n] over the tokens n of each unit

They walk over tokens in chunks, so that what a chunk gathers stays in a CPU's cache. A unit of one token (all text) needs
no scores: the softmax over one key is 1, and the unit reads that token's value.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK_FLOATS = {"cpu": 2**18, "cuda": 2**28}  # gathered at a time: 1 MiB stays in a CPU's cache, a GPU wants large pieces


@dataclass(frozen=True, eq=False)
class Segments:
    """Which token is in which unit, as flat places (row x length + position); padding is in none."""

    token_N: Tensor  # tokens of units that have more than one, in order
    unit_N: Tensor  # their units
    lengths_N: Tensor  # tokens of the unit of each
    last_token_N: Tensor  # last token of each unit that has more than one, in order
    last_unit_N: Tensor  # these units
    single_token_M: Tensor  # tokens that are a unit of their own
    single_unit_M: Tensor  # these units
    unit_BT: Tensor  # unit of each token of a row, U for padding
    shape: tuple[int, int]  # B, U

    @classmethod
    def of(cls, unit_BT: Tensor, units: int) -> Segments:
        """From the unit of each token of a row; `units` marks padding."""
        rows = torch.arange(unit_BT.shape[0], device=unit_BT.device)[:, None] * units
        flat_BT = unit_BT + rows
        real_BT = unit_BT < units
        same_BT = F.pad((unit_BT[:, 1:] == unit_BT[:, :-1]) & real_BT[:, 1:], (1, 0))  # as the token before it
        goes_on_BT = F.pad(same_BT[:, 1:], (0, 1))  # the token after it is in the same unit
        many_BT = same_BT | goes_on_BT
        token_N, last_N = (x.flatten().nonzero().squeeze(1) for x in (many_BT, same_BT & ~goes_on_BT))
        single_M = (real_BT & ~many_BT).flatten().nonzero().squeeze(1)
        unit = flat_BT.flatten()
        unit_N = unit[token_N]
        lengths_N = torch.bincount(unit_N, minlength=unit_BT.shape[0] * units)[unit_N]
        shape = (unit_BT.shape[0], units)
        return cls(token_N, unit_N, lengths_N, last_N, unit[last_N], single_M, unit[single_M], unit_BT, shape)

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
    """Equal maxima of a unit share its gradient."""

    @staticmethod
    def forward(ctx: Any, x_NE: Tensor, segments: Segments, how: str) -> Tensor:
        units, tokens = segments.unit_N, segments.token_N
        pooled_SE = x_NE.new_zeros(segments.count, x_NE.shape[1])
        pooled_SE[segments.single_unit_M] = x_NE[segments.single_token_M]
        if how == "last":
            pooled_SE[segments.last_unit_N] = x_NE[segments.last_token_N]
        elif how == "mean":
            pooled_SE.index_add_(0, units, x_NE[tokens] / segments.lengths_N[:, None].to(x_NE.dtype))
        else:
            pooled_SE[segments.last_unit_N] = -math.inf
            many_NE = x_NE[tokens]
            pooled_SE.scatter_reduce_(0, units[:, None].expand_as(many_NE), many_NE, "amax")
        ctx.save_for_backward(*((x_NE, pooled_SE) if how == "max" else ()))
        ctx.segments, ctx.how, ctx.tokens = segments, how, x_NE.shape[0]
        return pooled_SE

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (grad_SE,), segments = gradients, ctx.segments
        units, tokens = segments.unit_N, segments.token_N
        grad_NE = grad_SE.new_zeros(ctx.tokens, grad_SE.shape[1])
        grad_NE[segments.single_token_M] = grad_SE[segments.single_unit_M]
        if ctx.how == "last":
            grad_NE[segments.last_token_N] = grad_SE[segments.last_unit_N]
        elif ctx.how == "mean":
            grad_NE[tokens] = grad_SE[units] / segments.lengths_N[:, None].to(grad_SE.dtype)
        else:
            x_NE, pooled_SE = ctx.saved_tensors
            is_peak_NE = (x_NE[tokens] == pooled_SE[units]).to(grad_SE.dtype)
            peaks_SE = torch.zeros_like(pooled_SE).index_add_(0, units, is_peak_NE).clamp_(min=1)
            grad_NE[tokens] = is_peak_NE.mul_((grad_SE / peaks_SE)[units])
        return grad_NE, None, None


class _OwnTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_SKE: Tensor, k_NE: Tensor, v_NE: Tensor, segments: Segments, heads: int) -> Tensor:
        units, tokens = segments.unit_N, segments.token_N
        score_NKH = scores(q_SKE, k_NE, units, tokens, heads) / math.sqrt(k_NE.shape[1] // heads)
        share_NKH = _segment_softmax(score_NKH, units, segments.count)
        out_SKE = collect(share_NKH, v_NE, units, tokens, segments.count)
        out_SKE[segments.single_unit_M] = v_NE[segments.single_token_M][:, None]
        ctx.save_for_backward(q_SKE, k_NE, v_NE, share_NKH)
        ctx.segments, ctx.heads = segments, heads
        return out_SKE

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        (grad_SKE,), (q_SKE, k_NE, v_NE, share_NKH) = gradients, ctx.saved_tensors
        segments, heads = ctx.segments, ctx.heads
        units, tokens = segments.unit_N, segments.token_N
        grad_share_NKH = scores(grad_SKE, v_NE, units, tokens, heads)
        along_NKH = share_NKH * grad_share_NKH
        mean_SKH = share_NKH.new_zeros(segments.count, *share_NKH.shape[1:]).index_add_(0, units, along_NKH)
        grad_score_NKH = along_NKH.sub_(share_NKH * mean_SKH.index_select(0, units)).div_(math.sqrt(k_NE.shape[1] // heads))
        grad_v, grad_k = torch.zeros_like(v_NE), torch.zeros_like(k_NE)
        grad_v[tokens] = spread(share_NKH, grad_SKE, units)
        grad_v[segments.single_token_M] = grad_SKE[segments.single_unit_M].sum(1)
        grad_k[tokens] = spread(grad_score_NKH, q_SKE, units)
        return collect(grad_score_NKH, k_NE, units, tokens, segments.count), grad_k, grad_v, None, None


class _OneUnit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_NE: Tensor, k_SKE: Tensor, v_SKE: Tensor, unit_N: Tensor, heads: int) -> Tensor:
        score_NKH = scores(k_SKE, q_NE, unit_N, None, heads) / math.sqrt(q_NE.shape[1] // heads)
        share_NKH = torch.softmax(score_NKH, dim=1)
        ctx.save_for_backward(q_NE, k_SKE, v_SKE, unit_N, share_NKH)
        ctx.heads = heads
        return spread(share_NKH, v_SKE, unit_N)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        (grad_NE,), (q_NE, k_SKE, v_SKE, unit_N, share_NKH) = gradients, ctx.saved_tensors
        grad_share_NKH = scores(v_SKE, grad_NE, unit_N, None, ctx.heads)
        along_NKH = share_NKH * grad_share_NKH
        grad_score_NKH = along_NKH.sub_(share_NKH * along_NKH.sum(1, keepdim=True)).div_(math.sqrt(q_NE.shape[1] // ctx.heads))
        count = k_SKE.shape[0]
        return (
            spread(grad_score_NKH, k_SKE, unit_N),
            collect(grad_score_NKH, q_NE, unit_N, None, count),
            collect(share_NKH, grad_NE, unit_N, None, count),
            None,
            None,
        )


def scores(unit_SKE: Tensor, token_NE: Tensor, unit_N: Tensor, token_N: Tensor | None, heads: int) -> Tensor:
    """(N, K, H) in fp32 or wider: each token with its unit's K vectors, head by head. `token_N` picks rows of `token_NE`."""
    K, E = unit_SKE.shape[1:]
    wide = torch.promote_types(unit_SKE.dtype, torch.float32)
    out_NKH = torch.empty(len(unit_N), K, heads, dtype=wide, device=unit_SKE.device)
    for part in _chunks(len(unit_N), K * E, unit_SKE.device):
        product_CKE = unit_SKE.index_select(0, unit_N[part]).mul_(_rows(token_NE, token_N, part)[:, None])
        torch.sum(product_CKE.unflatten(2, (heads, -1)), -1, dtype=wide, out=out_NKH[part])
    return out_NKH


def spread(weight_NKH: Tensor, unit_SKE: Tensor, unit_N: Tensor) -> Tensor:
    """(N, E): the unit's K vectors, weighted and summed."""
    (K, E), heads = unit_SKE.shape[1:], weight_NKH.shape[2]
    out_NE = unit_SKE.new_empty(len(unit_N), E)
    for part in _chunks(len(unit_N), K * E, unit_SKE.device):
        gathered_CKHD = unit_SKE.index_select(0, unit_N[part]).unflatten(2, (heads, -1))
        gathered_CKHD.mul_(weight_NKH[part, :, :, None])
        torch.sum(gathered_CKHD.flatten(2), 1, out=out_NE[part])
    return out_NE


def collect(weight_NKH: Tensor, token_NE: Tensor, unit_N: Tensor, token_N: Tensor | None, count: int) -> Tensor:
    """(S, K, E): weighted sums over each unit's tokens."""
    (_, K, heads), E = weight_NKH.shape, token_NE.shape[1]
    out_SKE = token_NE.new_zeros(count, K, E)
    for part in _chunks(len(unit_N), K * E, token_NE.device):
        token_C1HD = _rows(token_NE, token_N, part).unflatten(1, (heads, -1))[:, None]
        weighted_CKHD = (weight_NKH[part, :, :, None] * token_C1HD).to(token_NE.dtype)
        out_SKE.index_add_(0, unit_N[part], weighted_CKHD.flatten(2))
    return out_SKE


def _segment_softmax(score_NKH: Tensor, unit_N: Tensor, count: int) -> Tensor:
    """Softmax over the tokens of each unit."""
    empty_SKH = score_NKH.new_zeros(count, *score_NKH.shape[1:])
    index_NKH = unit_N[:, None, None].expand_as(score_NKH)
    peak_SKH = empty_SKH.scatter_reduce(0, index_NKH, score_NKH, "amax", include_self=False)
    weight_NKH = (score_NKH - peak_SKH.index_select(0, unit_N)).exp_()
    total_SKH = empty_SKH.index_add_(0, unit_N, weight_NKH)
    return weight_NKH.div_(total_SKH.index_select(0, unit_N))


def _rows(token_NE: Tensor, token_N: Tensor | None, part: slice) -> Tensor:
    return token_NE[part] if token_N is None else token_NE.index_select(0, token_N[part])


def _chunks(tokens: int, floats: int, device: torch.device) -> Iterator[slice]:
    """Stretches of tokens, each of which gathers about CHUNK_FLOATS of `floats` a token."""
    size = max(1, CHUNK_FLOATS.get(device.type, 2**28) // floats)
    for start in range(0, tokens, size):
        yield slice(start, min(start + size, tokens))
