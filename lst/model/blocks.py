"""The layers all stacks are made of: RMS norm, self-attention, gated feed-forward. Legend: B rows, T positions, E width.

Norm and gate are autograd functions of their own: they keep their input alone for the backward pass, and touch memory less
often than autograd over single operations would (on a CPU, and for narrow models, that is where the time goes).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lst.config import StackConfig
from lst.model.attention import Rotary, self_attention
from lst.model.intervals import Intervals


class RMSNorm(nn.Module):
    """Root-mean-square norm with a gain: x / sqrt(mean(x^2) + eps) x gain."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x_BTE: Tensor) -> Tensor:
        return _RMSNorm.apply(x_BTE, self.gain, self.eps)


class SelfAttention(nn.Module):
    """Multi-head self-attention with rotary positions, without bias terms."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.backend = "auto"
        self.attend = self_attention
        self.to_query_key_value = nn.Linear(dim, 3 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)

    def forward(self, x_BTE: Tensor, seen: Intervals, rotary: Rotary) -> Tensor:
        qkv_BT3HD = self.to_query_key_value(x_BTE).unflatten(-1, (3, self.heads, -1))
        return self.to_out(self.attend(qkv_BT3HD, rotary, seen, self.backend).flatten(2))


class FeedForward(nn.Module):
    """SwiGLU: (silu(x W1) * x W2) W3."""

    def __init__(self, dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.to_gate_value = nn.Linear(dim, 2 * ffn_dim, bias=False)
        self.to_out = nn.Linear(ffn_dim, dim, bias=False)

    def forward(self, x_BTE: Tensor) -> Tensor:
        return self.to_out(_Gate.apply(self.to_gate_value(x_BTE)))


class TransformerLayer(nn.Module):
    """Pre-norm layer: self-attention, then feed-forward."""

    def __init__(self, stack: StackConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(stack.dim)
        self.attention = SelfAttention(stack.dim, stack.heads)
        self.ffn_norm = RMSNorm(stack.dim)
        self.ffn = FeedForward(stack.dim, stack.ffn_dim)

    def forward(self, x_BTE: Tensor, seen: Intervals, rotary: Rotary) -> Tensor:
        x_BTE = x_BTE + self.attention(self.attention_norm(x_BTE), seen, rotary)
        return x_BTE + self.ffn(self.ffn_norm(x_BTE))


class _RMSNorm(torch.autograd.Function):
    """With r = (mean(x^2) + eps)^-1/2:  y = x r gain,  dx = r (g gain - x r^2 mean(x g gain)),  dgain = sum(g x r)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        r = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, gain, r)
        return (x * r).mul_(gain).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (grad,), (x, gain, r) = gradients, ctx.saved_tensors
        normed = x * r
        product = grad * normed
        grad_gain = product.flatten(0, -2).sum(0)
        along = (product @ gain.to(product.dtype))[..., None].div_(-x.shape[-1])
        return (grad * gain).addcmul_(normed, along).mul_(r).to(x.dtype), grad_gain.to(gain.dtype), None


class _Gate(torch.autograd.Function):
    """silu(gate) x value, of one tensor that holds both. With s = sigmoid(gate): silu = gate s, silu' = s (1 + gate (1 - s))."""

    @staticmethod
    def forward(ctx: Any, gate_value: Tensor) -> Tensor:
        ctx.save_for_backward(gate_value)
        gate, value = gate_value.chunk(2, dim=-1)
        return F.silu(gate).mul_(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (grad,), (gate_value,) = gradients, ctx.saved_tensors
        out = torch.empty_like(gate_value)
        (gate, value), (out_gate, out_value) = gate_value.chunk(2, dim=-1), out.chunk(2, dim=-1)
        s = torch.sigmoid(gate)
        silu = gate * s
        torch.mul(silu, grad, out=out_value)
        torch.mul(s.addcmul_(silu, 1 - s), value, out=out_gate).mul_(grad)
        return out
