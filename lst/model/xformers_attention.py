"""Self-attention through xformers' block-diagonal masks: the only file that imports xformers, which is optional.

xformers has no attention on a CPU; its masks can be written out there, and tests compare them with ours. Its local attention
of window w keeps w keys, the token itself among them. Legend: B rows, T queries, H heads, D head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lst.errors import ConfigError
from lst.model.intervals import Intervals


def xformers_attention(q_BTHD: Tensor, k_BTHD: Tensor, v_BTHD: Tensor, seen: Intervals) -> Tensor:
    """Causal self-attention inside documents, windowed or not, without padding -> (B, T, H, D).

    Raises ConfigError if xformers is not installed, or was built for another torch or GPU.
    """
    try:
        from xformers.ops import memory_efficient_attention
    except ImportError as error:
        raise ConfigError(
            "execution.attention='xformers', but xformers is not installed; install the extra 'gpu', or choose 'flex'."
        ) from error
    documents = seen.documents
    flat = [x.flatten(0, 1)[documents.place_N][None] for x in (q_BTHD, k_BTHD, v_BTHD)]
    if not documents.longest:  # no kernel runs over nothing
        return documents.unpack(flat[2][0], q_BTHD)
    try:
        out: Tensor = memory_efficient_attention(*flat, attn_bias=document_mask(seen))
    except NotImplementedError as error:  # a list of its kernels, with why each does not fit
        raise ConfigError(
            f"execution.attention='xformers', but the installed xformers has no kernel for {flat[0].dtype} on this "
            f"{flat[0].device.type} under torch {torch.__version__} (`python -m xformers.info` tells what it was built for); "
            "install a build that fits, or choose 'flex' or 'varlen'."
        ) from error
    return documents.unpack(out[0], q_BTHD)


def document_mask(seen: Intervals) -> Any:
    """xformers' mask of the documents of all rows, one after the other, made once a batch."""
    if "xformers" not in seen.made:
        from xformers.ops.fmha.attn_bias import BlockDiagonalCausalMask

        mask = BlockDiagonalCausalMask.from_seqlens(seen.documents.lengths)
        seen.made["xformers"] = mask.make_local_attention(seen.window) if seen.window else mask
    return seen.made["xformers"]
