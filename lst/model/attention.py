"""Attention over intervals of keys, by the backend that suits the device; and the rotary embedding.

Legend: B rows, T queries, S keys, H heads, D head width, F = D / 2 frequencies, 3 = query, key, value.

All backends give the same numbers to rounding (tests compare them, forward and backward):

    auto      blocked on a CPU, flex on a GPU
    blocked   CPU: torch's flash kernel, block by block (lst.model.blocked)
    flex      GPU: FlexAttention on the two vectors (lst.model.gpu_attention); on a CPU it runs unfused, for tests
    varlen    GPU: torch's variable-length flash attention for self-attention, flex for the rest
    xformers  GPU: xformers' block-diagonal masks for self-attention (lst.model.xformers_attention), flex for the rest
    sdpa      any device: torch's fused attention under a written-out mask; simple, and quadratic in memory
    dense     the reference: plain matrix products over every pair, which torch's FLOP counter can count
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lst.config import ATTENTION_BACKENDS
from lst.errors import ConfigError, did_you_mean
from lst.model.intervals import Intervals

Rotary = tuple[Tensor, Tensor]  # (cos, cos) and (-sin, sin), each (B, T, 1, D)


class RotaryTable(nn.Module):
    """Rotary position embedding: angles of integer positions, for heads of width D (PAPER: theta = 5e5).

    It holds no tensor: frequencies in half precision, to which a model may be cast, would confuse neighbouring positions.
    """

    def __init__(self, head_dim: int, theta: float) -> None:
        super().__init__()
        self.head_dim, self.theta = head_dim, theta

    def forward(self, position_BT: Tensor) -> Rotary:
        steps_F = torch.arange(0, self.head_dim, 2, dtype=torch.float64, device=position_BT.device)
        angle_BT1F = position_BT[:, :, None, None].float() * (self.theta ** (-steps_F / self.head_dim)).float()
        cos, sin = angle_BT1F.cos(), angle_BT1F.sin()
        return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x_BTHD: Tensor, rotary: Rotary) -> Tensor:
    """`x` turned by its positions' angles; the first half (a) of each head is paired with the second (b):

    (a, b) -> (a cos - b sin, b cos + a sin) = (a, b) (cos, cos) + (b, a) (-sin, sin)
    """
    cos, sin = rotary
    a, b = x_BTHD.chunk(2, dim=-1)
    return torch.addcmul(x_BTHD * cos, torch.cat([b, a], dim=-1), sin).to(x_BTHD.dtype)


def self_attention(qkv_BT3HD: Tensor, rotary: Rotary, seen: Intervals, backend: str) -> Tensor:
    """Rotary self-attention -> (B, T, H, D). `qkv_BT3HD` is a projection's output and may be used up."""
    backend = _resolve(backend, qkv_BT3HD.device)
    if backend == "blocked":
        from lst.model import blocked

        return blocked.self_attention(qkv_BT3HD, rotary, seen)
    q, k, v = qkv_BT3HD.unbind(2)
    q, k = rotate(q, rotary), rotate(k, rotary)
    if backend == "varlen":
        from lst.model.gpu_attention import varlen_attention

        return varlen_attention(q, k, v, seen)
    if backend == "xformers":
        from lst.model.xformers_attention import xformers_attention

        return xformers_attention(q, k, v, seen)
    return _attention(q, k, v, seen, backend)


def cross_attention(q_BTHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, seen: Intervals, backend: str) -> Tensor:
    """Attention of queries to keys and values of another stream -> (B, T, H, D)."""
    backend = _resolve(backend, q_BTHD.device)
    if backend == "blocked":
        from lst.model import blocked

        return blocked.cross_attention(q_BTHD, k_BSHD, v_BSHD, seen)
    return _attention(q_BTHD, k_BSHD, v_BSHD, seen, "flex" if backend in ("varlen", "xformers") else backend)


def dense_attention(q_BTHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, bias_B1TS: Tensor) -> Tensor:
    """Softmax attention under an additive bias (0 = visible, -inf = hidden), by plain matrix products."""
    q, k, v = (x.transpose(1, 2) for x in (q_BTHD, k_BSHD, v_BSHD))
    score_BHTS = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    return (torch.softmax(score_BHTS + bias_B1TS.to(score_BHTS.dtype), dim=-1) @ v).transpose(1, 2)


def use_backend(model: nn.Module, backend: str) -> None:
    """Let all attention of `model` run on `backend`. Raises ConfigError if there is no such."""
    if backend not in ATTENTION_BACKENDS:
        raise ConfigError(f"execution.attention='{backend}' is unknown; {did_you_mean(backend, ATTENTION_BACKENDS)}")
    for module in model.modules():
        if hasattr(module, "backend"):
            module.backend = backend  # type: ignore[assignment]


def _attention(q: Tensor, k: Tensor, v: Tensor, seen: Intervals, backend: str) -> Tensor:
    if backend == "dense":
        return dense_attention(q, k, v, seen.bias_B1TS)
    if backend == "flex":
        from lst.model.gpu_attention import flex_attention

        return flex_attention(q, k, v, seen)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen.bias_B1TS.to(q.dtype)).transpose(1, 2)


def _resolve(backend: str, device: torch.device) -> str:
    if backend != "auto":
        return backend
    return {"cpu": "blocked", "cuda": "flex"}.get(device.type, "sdpa")
