"""Who may see whom, as additive biases (0 visible, -inf hidden). Legend: B rows, T tokens, S keys, U units.

A padding query sees something harmless (itself, or the first key), for a softmax over nothing is not a number; nothing
that is kept reads what it computes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def causal_bias(doc_BT: Tensor, position_BT: Tensor, window: int) -> Tensor:
    """(B, 1, T, T): the same or an earlier position of the same document, at most `window` back (0 = any)."""
    step_T = torch.arange(doc_BT.shape[1], device=doc_BT.device)
    seen_BTT = (doc_BT[:, :, None] == doc_BT[:, None, :]) & (step_T[:, None] >= step_T[None, :])
    if window:
        seen_BTT = seen_BTT & (position_BT[:, :, None] - position_BT[:, None, :] < window)
    seen_BTT = seen_BTT | torch.eye(len(step_T), dtype=torch.bool, device=doc_BT.device)
    return _bias(seen_BTT)


def visible_bias(doc_BT: Tensor, visible_BT: Tensor, unit_doc_BU: Tensor) -> Tensor:
    """(B, 1, T, U): the units of the token's document that are closed at the token (DESIGN rule 2)."""
    unit_U = torch.arange(unit_doc_BU.shape[1], device=doc_BT.device)
    seen_BTU = (unit_U < visible_BT[:, :, None]) & (unit_doc_BU[:, None, :] == doc_BT[:, :, None])
    seen_BTU = seen_BTU | ((doc_BT < 0)[:, :, None] & (unit_U == 0))
    return _bias(seen_BTU)


def _bias(seen: Tensor) -> Tensor:
    return torch.zeros(seen.shape, device=seen.device).masked_fill_(~seen, -math.inf)[:, None]
