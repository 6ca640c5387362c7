"""A batch as tensors, and how to make one by hand. Legend: B rows, T tokens, U units.

`make_batch` takes documents of segments, numbered as their tokenizers number them; BOS, markers, offsets and unit
boundaries are added here. Padding has document -1, unit U (one past the last) and no target.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lst.config import Patching, RunConfig
from lst.data.interleave import Segment
from lst.data.pack import PackedBatch, PackedRow, encode_document
from lst.data.vocab import Vocabulary
from lst.errors import DataError


@dataclass(frozen=True)
class Batch:
    """What `forward` reads. `visible_BT` counts the units of the row that are closed at each token (lst/patching.py)."""

    ids_BT: Tensor  # int64
    doc_BT: Tensor  # document of each token, -1 = padding
    position_BT: Tensor  # position in the document
    unit_BT: Tensor  # unit of each token, U = padding
    visible_BT: Tensor  # closed units at each token
    target_BT: Tensor  # id to predict, -1 = none
    target_modality_BT: Tensor  # 0 text, 1 speech, 2 marker (undefined where there is no target)
    unit_doc_BU: Tensor  # document of each unit, -1 = padding
    unit_position_BU: Tensor  # position of the unit in its document

    @property
    def units(self) -> int:
        return int(self.unit_doc_BU.shape[1])

    @classmethod
    def from_packed(
        cls, packed: PackedBatch, device: torch.device | str = "cpu", *, tokens: int | None = None, units: int | None = None
    ) -> Batch:
        """Pad the rows to the longest, or to `tokens` and `units` if those are given."""
        T = tokens or max(r.tokens for r in packed.rows)
        U = units or max(r.units for r in packed.rows)
        target_modality = [np.append(r.modality[1:], 0).astype(np.int64) for r in packed.rows]
        arrays = {
            "ids_BT": _stack([r.ids for r in packed.rows], T, 0),
            "doc_BT": _stack([r.doc for r in packed.rows], T, -1),
            "position_BT": _stack([r.position for r in packed.rows], T, 0),
            "unit_BT": _stack([r.unit for r in packed.rows], T, U),
            "visible_BT": _stack([r.visible for r in packed.rows], T, 0),
            "target_BT": _stack([r.target for r in packed.rows], T, -1),
            "target_modality_BT": _stack(target_modality, T, 0),
            "unit_doc_BU": _stack([r.unit_doc for r in packed.rows], U, -1),
            "unit_position_BU": _stack([r.unit_position for r in packed.rows], U, 0),
        }
        return cls(**{name: torch.from_numpy(array).to(device) for name, array in arrays.items()})

    def to(self, device: torch.device | str) -> Batch:
        return Batch(**{f.name: getattr(self, f.name).to(device) for f in dataclasses.fields(self)})


def make_batch(
    documents: Sequence[Sequence[Any]],
    config: RunConfig,
    *,
    kind: Patching | None = None,
    ends: bool = False,
    tokens: int | None = None,
    units: int | None = None,
) -> Batch:
    """One document a row: `[[("text", [12, 7]), ("speech", [3, 3, 90]), ("text", [5])]]`.

    A speech segment may carry spans as a third value, a list of (first frame, last frame) from the segment's start, of its
    words or, under patching.aligned_unit=bpe, of their pieces; the aligned patching needs them. `kind` is the patching
    (default: that of the arm's evaluation), `ends` adds EOS, `tokens` and `units` pad to fixed sizes. Raises DataError on an
    unknown modality or an id outside its vocabulary.
    """
    vocabulary = Vocabulary(text=config.model.text_vocab, speech=config.model.speech_vocab)
    patching = kind or config.patching.evaluation_kind
    rows = []
    for number, document in enumerate(documents):
        segments = [_segment(s, vocabulary, number) for s in document]
        options = config.patching
        encoded = encode_document(segments, vocabulary, patching, options.patch_size, ends=ends, silence=options.silence_rule)
        rows.append(PackedRow.pack([encoded], vocabulary, interleaved=True))
    return Batch.from_packed(PackedBatch(rows), tokens=tokens, units=units)


def _segment(segment: Sequence[Any], vocabulary: Vocabulary, number: int) -> Segment:
    modality, values, *words = segment
    sizes = {"text": vocabulary.text, "speech": vocabulary.speech}
    if modality not in sizes:
        raise DataError(f"document {number}: modality='{modality}' is unknown; use 'text' or 'speech'.")
    tokens = np.asarray(values, np.int64).reshape(-1)
    if len(tokens) and not 0 <= tokens.min() <= tokens.max() < sizes[modality]:
        raise DataError(f"document {number}: {modality} token {tokens.max()} lies outside 0..{sizes[modality] - 1}.")
    spans = np.asarray(words[0], np.int64).reshape(-1, 2) if words and words[0] is not None else None
    return Segment(modality, tokens, spans)


def _stack(rows: list[np.ndarray], length: int, fill: int) -> np.ndarray:
    stacked = np.full((len(rows), length), fill, np.int64)
    for i, row in enumerate(rows):
        stacked[i, : len(row)] = row
    return stacked
