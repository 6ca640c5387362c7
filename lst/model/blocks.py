"""The layers all stacks are made of: RMS norm, self-attention, gated feed-forward. Legend: B rows, T positions, E width."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lst.config import StackConfig
from lst.model.attention import attend, merge_heads, rotate, split_heads


class RMSNorm(nn.Module):
    """Root-mean-square norm with a gain."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x_BTE: Tensor) -> Tensor:
        return F.rms_norm(x_BTE, self.gain.shape, self.gain.to(x_BTE.dtype), self.eps)


class SelfAttention(nn.Module):
    """Multi-head self-attention with rotary positions, without bias terms."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.backend = "sdpa"
        self.to_query_key_value = nn.Linear(dim, 3 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)

    def forward(self, x_BTE: Tensor, bias_B1TT: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        q, k, v = (split_heads(x, self.heads) for x in self.to_query_key_value(x_BTE).chunk(3, dim=-1))
        out = attend(rotate(q, rotary), rotate(k, rotary), v, bias_B1TT, backend=self.backend)
        return self.to_out(merge_heads(out))


class FeedForward(nn.Module):
    """SwiGLU: (silu(x W1) * x W2) W3."""

    def __init__(self, dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.to_gate_value = nn.Linear(dim, 2 * ffn_dim, bias=False)
        self.to_out = nn.Linear(ffn_dim, dim, bias=False)

    def forward(self, x_BTE: Tensor) -> Tensor:
        gate, value = self.to_gate_value(x_BTE).chunk(2, dim=-1)
        return self.to_out(F.silu(gate) * value)


class TransformerLayer(nn.Module):
    """Pre-norm layer: self-attention, then feed-forward."""

    def __init__(self, stack: StackConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(stack.dim)
        self.attention = SelfAttention(stack.dim, stack.heads)
        self.ffn_norm = RMSNorm(stack.dim)
        self.ffn = FeedForward(stack.dim, stack.ffn_dim)

    def forward(self, x_BTE: Tensor, bias_B1TT: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        x_BTE = x_BTE + self.attention(self.attention_norm(x_BTE), bias_B1TT, rotary)
        return x_BTE + self.ffn(self.ffn_norm(x_BTE))
