"""Attention over intervals on a GPU: FlexAttention, and torch's variable-length flash attention.

FlexAttention reads the two vectors of `lst.model.intervals` in its mask function, so blocks of keys that no query of a block
sees are skipped, and no mask is stored. On a CPU it runs unfused, which the tests use. `varlen_attention` knows documents and
windows by their lengths alone: self-attention only, on CUDA only. Legend: B rows, T queries, S keys, H heads, D head width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lst.model.intervals import Intervals


def flex_attention(q_BTHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, seen: Intervals) -> Tensor:
    """FlexAttention under the intervals -> (B, T, H, D)."""
    fused = q_BTHD.is_cuda
    q, k, v = (x.transpose(1, 2) for x in (q_BTHD, k_BSHD, v_BSHD))
    out: Tensor = _flex(fused)(q, k, v, block_mask=_block_mask(seen, fused))
    return out.transpose(1, 2)


def varlen_attention(q_BTHD: Tensor, k_BTHD: Tensor, v_BTHD: Tensor, seen: Intervals) -> Tensor:
    """Causal self-attention inside documents, windowed or not, without padding -> (B, T, H, D)."""
    from torch.nn.attention.varlen import varlen_attn

    documents = seen.documents
    q, k, v = (x.flatten(0, 1)[documents.place_N] for x in (q_BTHD, k_BTHD, v_BTHD))
    if not documents.longest:  # no kernel runs over nothing
        return documents.unpack(v, q_BTHD)
    # flash's left = w keeps w + 1 keys, the token itself among them.
    left = seen.window - 1 if seen.window else -1
    starts, longest = documents.starts, documents.longest
    out = varlen_attn(q, k, v, starts, starts, longest, longest, window_size=(left, 0))
    assert isinstance(out, Tensor)
    return documents.unpack(out, q_BTHD)


@functools.cache
def _flex(fused: bool) -> Callable[..., Any]:
    from torch.nn.attention import flex_attention as flex

    attend: Callable[..., Any] = flex.flex_attention
    return torch.compile(attend, dynamic=True) if fused else attend


def _block_mask(seen: Intervals, fused: bool) -> Any:
    """FlexAttention's mask, made once a batch and used by all layers."""
    if "flex" not in seen.made:
        from torch.nn.attention import flex_attention as flex

        lo_BT, hi_BT = seen.lo_BT.contiguous(), seen.hi_BT.contiguous()

        def visible(b: Tensor, _: Tensor, q: Tensor, s: Tensor) -> Tensor:
            return (s >= lo_BT[b, q]) & (s < hi_BT[b, q])

        rows, queries = lo_BT.shape
        make = torch.compile(flex.create_block_mask) if fused else flex.create_block_mask
        seen.made["flex"] = make(visible, rows, None, queries, seen.keys, device=str(lo_BT.device))
    return seen.made["flex"]
