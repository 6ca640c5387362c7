"""Keys and values kept for step-by-step decoding, and plain attention over them.

Legend: B rows that decode together, R those of them that take part in a step, T tokens or units of a prompt, Q queries of a
row, S keys, H heads, D head width.

Rows have lengths of their own. Key n of a row (from 0) lies in slot n, under a window of w keys in slot n mod w, so that
what leaves the window is written over and the cache never holds more than w; softmax does not ask for the order:

    window 3, after 5 keys      slot     0  1  2
                                key      3  4  2        key 1 made room for key 4

Keys are kept turned by their positions' angles. Unused slots hold anything: `Slots.seen_R11S` hides them. Not here: what is
cached and when a unit closes (lst.model.stepper).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

IntArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Rows:
    """Some of the rows that decode together."""

    index: IntArray  # (R,)
    tensor: Tensor | None  # the same on the device; None: all rows, in order

    @classmethod
    def where(cls, chosen_B: NDArray[np.bool_], device: torch.device) -> Rows:
        index = np.flatnonzero(chosen_B)
        return cls(index, None if len(index) == len(chosen_B) else torch.from_numpy(index).to(device))

    def __len__(self) -> int:
        return len(self.index)

    def of(self, x_B: Tensor) -> Tensor:
        """These rows of a tensor; no copy if they are all."""
        return x_B if self.tensor is None else x_B.index_select(0, self.tensor)

    def put(self, target_B: Tensor, x_R: Tensor) -> None:
        """Write these rows of `target_B`."""
        target_B[slice(None) if self.tensor is None else self.tensor] = x_R


@dataclass(frozen=True, eq=False)
class Slots:
    """Where R rows keep their newest key, and which keys they see with it. One serves all layers of a stack."""

    rows: Rows
    row_R: Tensor  # the rows' places in the caches ..
    slot_R: Tensor  # .. and the newest key's
    seen_R11S: Tensor | None  # bool; None: every row sees all S
    keys: int  # S, the most that a row sees

    @classmethod
    def newest(cls, count_R: IntArray, rows: Rows, device: torch.device, *, window: int = 0) -> Slots:
        """After `count_R` keys (1 or more), the newest among them."""
        seen_R = np.minimum(count_R, window) if window else count_R
        keys = int(seen_R.max())
        newest_R = (count_R - 1) % window if window else count_R - 1
        row_R, slot_R = torch.from_numpy(np.stack([rows.index, newest_R])).to(device).unbind()
        if int(seen_R.min()) == keys:
            return cls(rows, row_R, slot_R, None, keys)
        seen_R1 = torch.from_numpy(seen_R).to(device)[:, None]
        return cls(rows, row_R, slot_R, (torch.arange(keys, device=device) < seen_R1)[:, None, None], keys)


class KeyValues:
    """Keys and values of one attention, (B, H, S, D) each."""

    def __init__(self, key_BHSD: Tensor, value_BHSD: Tensor) -> None:
        self.key, self.value = key_BHSD, value_BHSD

    @classmethod
    def of_prompt(cls, key_BTHD: Tensor, value_BTHD: Tensor, count_B: IntArray, *, window: int = 0) -> KeyValues:
        """The first `count_B` keys of each row, under a window the last of them, each in its slot."""
        ring = window or max(1, int(count_B.max()))
        slot_S = np.arange(min(ring, max(1, int(count_B.max()))))
        last_B1 = count_B[:, None] - 1
        place_BS = np.maximum(last_B1 - (last_B1 - slot_S) % ring, 0)  # the latest key of each slot; any, if it has none
        index_BS11 = torch.from_numpy(place_BS).to(key_BTHD.device)[:, :, None, None]
        index_BSHD = index_BS11.expand(-1, -1, *key_BTHD.shape[2:])
        key, value = (x.gather(1, index_BSHD).transpose(1, 2).contiguous() for x in (key_BTHD, value_BTHD))
        return cls(key, value)

    def write(self, slots: Slots, key_RHD: Tensor, value_RHD: Tensor) -> None:
        """Keep one more key and value of each row of `slots`; the cache grows to twice its size when it is full."""
        missing = slots.keys - self.key.shape[2]
        if missing > 0:
            grown = max(missing, self.key.shape[2])
            self.key, self.value = (F.pad(x, (0, 0, 0, grown)) for x in (self.key, self.value))
        self.key[slots.row_R, :, slots.slot_R] = key_RHD
        self.value[slots.row_R, :, slots.slot_R] = value_RHD

    def attend(self, q_RQHD: Tensor, slots: Slots) -> Tensor:
        """Softmax attention to the keys that `slots` shows -> (R, Q, H, D)."""
        key, value = (slots.rows.of(x[:, :, : slots.keys]) for x in (self.key, self.value))
        return F.scaled_dot_product_attention(q_RQHD.transpose(1, 2), key, value, attn_mask=slots.seen_R11S).transpose(1, 2)

    def keep(self, rows_B: Tensor) -> None:
        """Drop all rows but these."""
        self.key, self.value = self.key.index_select(0, rows_B), self.value.index_select(0, rows_B)
