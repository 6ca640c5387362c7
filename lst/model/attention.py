"""Attention over masks and over segments.

Legend: B rows, T queries, S keys, H heads, D head width, E width, U units, K queries a unit.

Two backends give the same numbers: "sdpa" (torch's fused attention; segments by scatter) is what trains, "dense" (plain
matrix products over every pair) is the reference of the tests and what torch's FLOP counter can count.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RotaryTable(nn.Module):
    """Rotary position embedding: angles of integer positions, for heads of width D (PAPER: theta = 5e5)."""

    frequencies: Tensor

    def __init__(self, head_dim: int, theta: float) -> None:
        super().__init__()
        frequencies = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
        self.register_buffer("frequencies", frequencies.float(), persistent=False)

    def forward(self, position_BT: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin, each (B, 1, T, D / 2)."""
        angle_B1TF = position_BT[:, None, :, None].to(self.frequencies.dtype) * self.frequencies
        return angle_B1TF.cos(), angle_B1TF.sin()


def rotate(x_BHTD: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """`x` turned by its positions' angles; the first half of each head is paired with the second."""
    cos, sin = rotary
    a, b = x_BHTD.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x_BHTD.dtype)


def split_heads(x_BTE: Tensor, heads: int) -> Tensor:
    return x_BTE.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x_BHTD: Tensor) -> Tensor:
    return x_BHTD.transpose(1, 2).flatten(2)


def attend(q_BHTD: Tensor, k_BHSD: Tensor, v_BHSD: Tensor, bias_B1TS: Tensor, *, backend: str) -> Tensor:
    """Softmax attention under an additive bias (0 = visible, -inf = hidden)."""
    if backend == "dense":
        score_BHTS = q_BHTD @ k_BHSD.transpose(-1, -2) / math.sqrt(q_BHTD.shape[-1])
        return torch.softmax(score_BHTS + bias_B1TS.to(score_BHTS.dtype), dim=-1) @ v_BHSD
    return F.scaled_dot_product_attention(q_BHTD, k_BHSD, v_BHSD, attn_mask=bias_B1TS.to(q_BHTD.dtype))


def attend_segments(q_BUKE: Tensor, k_BTE: Tensor, v_BTE: Tensor, unit_BT: Tensor, *, heads: int, backend: str) -> Tensor:
    """Each unit's K queries attend to the unit's own tokens -> (B, U, K, E). `unit_BT` = U marks padding tokens."""
    if backend == "dense":
        return _attend_segments_dense(q_BUKE, k_BTE, v_BTE, unit_BT, heads)
    B, U, K, E = q_BUKE.shape
    T, D = k_BTE.shape[1], E // heads
    # One spare segment at the end of each row takes the padding tokens.
    segment_N = (unit_BT + torch.arange(B, device=unit_BT.device)[:, None] * (U + 1)).flatten()
    q_SKHD = F.pad(q_BUKE, (0, 0, 0, 0, 0, 1)).reshape(B * (U + 1), K, heads, D)
    k_N1HD = k_BTE.reshape(B * T, 1, heads, D)
    v_N1HD = v_BTE.reshape(B * T, 1, heads, D)
    score_NKH = ((q_SKHD.index_select(0, segment_N) * k_N1HD).sum(-1) / math.sqrt(D)).float()
    index_NKH = segment_N[:, None, None].expand_as(score_NKH)
    empty_SKH = score_NKH.new_zeros(B * (U + 1), K, heads)
    # The maximum only guards the exponential against overflow; it carries no gradient.
    peak_SKH = empty_SKH.scatter_reduce(0, index_NKH, score_NKH.detach(), "amax", include_self=False)
    weight_NKH = (score_NKH - peak_SKH.index_select(0, segment_N)).exp()
    total_SKH = empty_SKH.index_add(0, segment_N, weight_NKH)
    share_NKH = (weight_NKH / total_SKH.index_select(0, segment_N)).to(v_BTE.dtype)
    out_SKHD = v_BTE.new_zeros(B * (U + 1), K, heads, D).index_add(0, segment_N, share_NKH[..., None] * v_N1HD)
    return out_SKHD.view(B, U + 1, K, E)[:, :U]


def _attend_segments_dense(q_BUKE: Tensor, k_BTE: Tensor, v_BTE: Tensor, unit_BT: Tensor, heads: int) -> Tensor:
    _, U, K, _ = q_BUKE.shape
    own_BUT = unit_BT[:, None, :] == torch.arange(U, device=unit_BT.device)[None, :, None]
    own_BUT = own_BUT | ~own_BUT.any(-1, keepdim=True)  # an empty (padding) unit would divide 0 by 0
    bias_BUT = torch.zeros_like(own_BUT, dtype=torch.float32).masked_fill(~own_BUT, -math.inf)
    bias_B1QT = bias_BUT.repeat_interleave(K, dim=1)[:, None]
    q_BHQD = split_heads(q_BUKE.flatten(1, 2), heads)
    out_BHQD = attend(q_BHQD, split_heads(k_BTE, heads), split_heads(v_BTE, heads), bias_B1QT, backend="dense")
    return merge_heads(out_BHQD).unflatten(1, (U, K))


def pool_segments(x_BTE: Tensor, unit_BT: Tensor, units: int, how: str) -> Tensor:
    """Hidden states of each unit's tokens pooled by max, mean or last -> (B, U, E). `unit_BT` = U marks padding."""
    B, T, E = x_BTE.shape
    segment_N = (unit_BT + torch.arange(B, device=unit_BT.device)[:, None] * (units + 1)).flatten()
    x_NE = x_BTE.reshape(B * T, E)
    empty_SE = x_NE.new_zeros(B * (units + 1), E)
    if how == "max":
        pooled_SE = empty_SE.scatter_reduce(0, segment_N[:, None].expand_as(x_NE), x_NE, "amax", include_self=False)
    elif how == "mean":
        counts_S = torch.bincount(segment_N, minlength=B * (units + 1)).clamp(min=1)
        pooled_SE = empty_SE.index_add(0, segment_N, x_NE) / counts_S[:, None].to(x_NE.dtype)
    else:
        is_last_BT = unit_BT != F.pad(unit_BT, (0, 1), value=units)[:, 1:]
        is_last_BT[:, -1] = True
        last_N = is_last_BT.flatten().nonzero().squeeze(1)
        pooled_SE = empty_SE.index_copy(0, segment_N[last_N], x_NE[last_N])
    return pooled_SE.view(B, units + 1, E)[:, :units]
