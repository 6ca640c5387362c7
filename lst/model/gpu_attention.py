"""Attention over intervals on a GPU: FlexAttention, and torch's variable-length flash attention.

FlexAttention reads the two vectors of `lst.model.intervals` in its mask function, so blocks of keys that no query of a block
sees are skipped, and no mask is stored. On a CPU it runs unfused, which the tests use. `varlen_attention` knows documents and
windows by their lengths alone: self-attention only, on CUDA only. Legend: B rows, T queries, S keys, H heads, D head width,
Q blocks of queries, K blocks of keys.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lst.errors import ConfigError
from lst.model.intervals import Intervals

NARROWEST_HEAD = 16  # of the fused kernel; zeros make up what a narrower head lacks, and change no product
BLOCK = 128  # queries, and keys, of a block of the kernel
VARIANTS = 64  # that the compiler may make of the kernel


def flex_attention(q_BTHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, seen: Intervals) -> Tensor:
    """FlexAttention under the intervals -> (B, T, H, D)."""
    fused, width = q_BTHD.is_cuda, q_BTHD.shape[-1]
    lacking = max(NARROWEST_HEAD - width, 0)
    q, k, v = (F.pad(x, (0, lacking)).transpose(1, 2) if lacking else x.transpose(1, 2) for x in (q_BTHD, k_BSHD, v_BSHD))
    out: Tensor = _flex(fused)(q, k, v, block_mask=_block_mask(seen), scale=width**-0.5)
    return out.transpose(1, 2)[..., :width]


def varlen_attention(q_BTHD: Tensor, k_BTHD: Tensor, v_BTHD: Tensor, seen: Intervals) -> Tensor:
    """Causal self-attention inside documents, windowed or not, without padding -> (B, T, H, D).

    Raises ConfigError for float32 on a GPU: the kernel is flash attention's.
    """
    from torch.nn.attention.varlen import varlen_attn

    if q_BTHD.is_cuda and q_BTHD.dtype not in (torch.bfloat16, torch.float16):
        raise ConfigError(
            f"execution.attention='varlen' computes in half precision, and here is {q_BTHD.dtype}; set train.dtype=bfloat16, or "
            "choose 'flex'."
        )

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
    if not fused:
        return attend
    from torch._dynamo import config

    # A variant for each head width, for attention to units, short rows, evaluation: beyond the limit the compiler would
    # silently go on unfused, with every score in memory.
    config.recompile_limit = max(config.recompile_limit, VARIANTS)
    return torch.compile(attend, dynamic=True)


def _block_mask(seen: Intervals) -> Any:
    """FlexAttention's mask, made once a batch and used by all layers.

    Which blocks of keys are seen in part, and which by every query of a block of queries, follows from the intervals' ends:
    torch's own way compiles a kernel for each kind of shape to look at every pair.
    """
    if "flex" not in seen.made:
        from torch.nn.attention.flex_attention import BlockMask

        lo_BT, hi_BT = seen.lo_BT.contiguous(), seen.hi_BT.contiguous()

        def visible(b: Tensor, _: Tensor, q: Tensor, s: Tensor) -> Tensor:
            return (s >= lo_BT[b, q]) & (s < hi_BT[b, q])

        queries = lo_BT.shape[1]
        start_K = torch.arange(0, seen.keys, BLOCK, device=lo_BT.device)
        # Queries that fill up the last block see no key.
        lo_BQT1, hi_BQT1 = (F.pad(x, (0, -queries % BLOCK)).unflatten(1, (-1, BLOCK))[..., None] for x in (lo_BT, hi_BT))
        some_BQK = ((lo_BQT1 < start_K + BLOCK) & (hi_BQT1 > start_K)).any(2)
        every_BQK = ((lo_BQT1 <= start_K) & (hi_BQT1 >= start_K + BLOCK)).all(2)
        partial, full = _listed(some_BQK & ~every_BQK), _listed(every_BQK)
        lengths = (queries, seen.keys)
        seen.made["flex"] = BlockMask.from_kv_blocks(*partial, *full, BLOCK, mask_mod=visible, seq_lengths=lengths)
    return seen.made["flex"]


def _listed(blocks_BQK: Tensor) -> tuple[Tensor, Tensor]:
    """For each block of queries, of all heads: how many blocks of keys are marked, and all of them, the marked ones first."""
    ordered = torch.argsort(blocks_BQK.int(), dim=-1, descending=True, stable=True)
    return blocks_BQK.sum(-1, dtype=torch.int32)[:, None], ordered.int()[:, None]
