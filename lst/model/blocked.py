"""Attention on a CPU, block by block: what a mask hides is not computed, and nothing of size (queries x keys) is kept.

Legend: B rows, T queries, S keys, H heads, D head width, 3 = query, key, value.

Two autograd functions over torch's own flash kernel. Written by hand because autograd over slices would make a full-size
gradient for each block, and because the fused one turns queries and keys in place, in the projection's own output: three
copies less of the largest activations. Blocks come from `lst.model.intervals`. Where a block has two parts, their outputs
are joined by the log-sum-exps, out = sum_i exp(l_i - l) out_i with l = log sum_i exp(l_i); the kernel's backward pass, given
the joined out and l, then gives each part's exact gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lst.model.intervals import Block, Intervals, Part

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def self_attention(qkv_BT3HD: Tensor, rotary: tuple[Tensor, Tensor], seen: Intervals) -> Tensor:
    """Rotary self-attention -> (B, T, H, D). `qkv_BT3HD` is used up: its queries and keys are turned in place.

    That is safe for the output of a projection: its backward pass reads its input, never its output.
    """
    return _SelfAttention.apply(qkv_BT3HD, *rotary, seen)


def cross_attention(q_BTHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, seen: Intervals) -> Tensor:
    """Attention of queries to keys and values of another stream -> (B, T, H, D)."""
    return _CrossAttention.apply(q_BTHD, k_BSHD, v_BSHD, seen)


def turn_(x_BTHD: Tensor, cos_BT1D: Tensor, sin_BT1D: Tensor, *, back: bool = False) -> None:
    """`lst.model.attention.rotate` in place, or back by the same angles."""
    a, b = x_BTHD.chunk(2, dim=-1)
    swapped = torch.cat([b, a], dim=-1)
    sign = -1 if back else 1
    if x_BTHD.dtype == cos_BT1D.dtype:
        x_BTHD.mul_(cos_BT1D).addcmul_(swapped, sin_BT1D, value=sign)
    else:  # half precision: round once
        x_BTHD.copy_(torch.addcmul(x_BTHD * cos_BT1D, swapped, sin_BT1D, value=sign))


class _SelfAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, seen: Intervals) -> Tensor:
        turn_(qkv[:, :, :2].flatten(2, 3), cos, sin)
        q, k, v = qkv.unbind(2)
        out, sums = _attend(q, k, v, seen)
        ctx.save_for_backward(qkv, out, cos, sin, *sums)
        ctx.seen = seen
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        qkv, out, cos, sin, *sums = ctx.saved_tensors
        (grad_out,) = gradients
        grad = torch.empty_like(qkv) if ctx.seen.whole else torch.zeros_like(qkv)
        grad[:, :, 1:].zero_()
        _attend_backward(grad_out, qkv.unbind(2), out, sums, ctx.seen, grad.unbind(2))
        turn_(grad[:, :, :2].flatten(2, 3), cos, sin, back=True)
        return grad, None, None, None


class _CrossAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, seen: Intervals) -> Tensor:
        out, sums = _attend(q, k, v, seen)
        ctx.save_for_backward(q, k, v, out, *sums)
        ctx.seen = seen
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, out, *sums = ctx.saved_tensors
        (grad_out,) = gradients
        grads = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        _attend_backward(grad_out, (q, k, v), out, sums, ctx.seen, grads)
        return *grads, None


def _attend(q: Tensor, k: Tensor, v: Tensor, seen: Intervals) -> tuple[Tensor, list[Tensor]]:
    """(B, T, H, D), and each block's log-sum-exps (rows, H, queries)."""
    blocks = seen.blocks
    if len(blocks) == 1 and seen.whole:
        joined, sums = _attend_block(q, k, v, blocks[0])
        return joined.transpose(1, 2), [sums]
    out = q.new_empty(q.shape) if seen.whole else q.new_zeros(q.shape)
    all_sums = []
    for block in blocks:
        joined, sums = _attend_block(q, k, v, block)
        out[block.rows, block.queries] = joined.transpose(1, 2)
        all_sums.append(sums)
    return out, all_sums


def _attend_block(q: Tensor, k: Tensor, v: Tensor, block: Block) -> tuple[Tensor, Tensor]:
    q_b = q[block.rows, block.queries].transpose(1, 2)
    out, sums = _attend_part(q_b, k, v, block, block.parts[0])
    for part in block.parts[1:]:
        more, its = _attend_part(q_b, k, v, block, part)
        both = torch.logaddexp(sums, its)
        out = (out * (sums - both).exp()[..., None] + more * (its - both).exp()[..., None]).to(q.dtype)
        sums = both
    return out, sums


def _attend_part(q_b: Tensor, k: Tensor, v: Tensor, block: Block, part: Part) -> tuple[Tensor, Tensor]:
    k_b, v_b = (x[block.rows, part.keys].transpose(1, 2) for x in (k, v))
    out, sums = _forward(q_b, k_b, v_b, 0.0, part.causal, attn_mask=_mask(part, q_b))
    return out, sums


def _attend_backward(
    grad_out: Tensor,
    qkv: tuple[Tensor, ...],
    out: Tensor,
    all_sums: list[Tensor],
    seen: Intervals,
    grads: tuple[Tensor, ...],
) -> None:
    """Write the query's gradient into grads[0] and add the key's and value's to grads[1] and grads[2]."""
    q, k, v = qkv
    grad_q, grad_k, grad_v = grads
    for block, sums in zip(seen.blocks, all_sums, strict=True):
        q_b, out_b, grad_b = (x[block.rows, block.queries].transpose(1, 2) for x in (q, out, grad_out))
        for number, part in enumerate(block.parts):
            k_b, v_b = (x[block.rows, part.keys].transpose(1, 2) for x in (k, v))
            gq, gk, gv = _backward(grad_b, q_b, k_b, v_b, out_b, sums, 0.0, part.causal, attn_mask=_mask(part, q_b))
            target = grad_q[block.rows, block.queries]
            target.add_(gq.transpose(1, 2)) if number else target.copy_(gq.transpose(1, 2))
            grad_k[block.rows, part.keys].add_(gk.transpose(1, 2))
            grad_v[block.rows, part.keys].add_(gv.transpose(1, 2))


def _mask(part: Part, like: Tensor) -> Tensor | None:
    return None if part.mask is None else part.mask.to(like.dtype)
