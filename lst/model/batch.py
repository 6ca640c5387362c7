"""A batch as tensors, and how to make one by hand. Legend: B rows, T tokens, U units.

`make_batch` takes documents of segments, numbered as their tokenizers number them; BOS, markers, offsets and unit
boundaries are added here. Padding has document -1, unit U (one past the last) and no target.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lst.config import Patching, RunConfig
from lst.data.interleave import Segment
from lst.data.pack import PackedBatch, PackedRow, encode_document
from lst.data.speech_bpe import run_pieces
from lst.data.vocab import SPEECH, Vocabulary
from lst.errors import DataError
from lst.model.intervals import Intervals, causal_intervals, visible_intervals
from lst.model.segments import Segments


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
    speech_BT: Tensor  # bool: a speech token (no marker)
    unit_doc_BU: Tensor  # document of each unit, -1 = padding
    unit_position_BU: Tensor  # position of the unit in its document
    tokens: tuple[int, ...]  # tokens of each row, padding not among them
    row_units: tuple[int, ...]  # the same for units
    host: Batch | None = None  # the batch on the CPU that this one is a copy of: indices are made there, without waiting

    @property
    def units(self) -> int:
        return int(self.unit_doc_BU.shape[1])

    @cached_property
    def unit_intervals(self) -> Intervals:
        """What each unit sees: the same and earlier units of its document."""
        return causal_intervals(self.unit_position_BU, self.row_units)

    @cached_property
    def all_tokens(self) -> TokenStream:
        """All tokens as the local modules' stream."""
        return TokenStream.of_all(self) if self.host is None else _moved(self.host.all_tokens, self.ids_BT.device)

    @cached_property
    def other_tokens(self) -> tuple[Tensor, Tensor]:
        """Flat places of the tokens that are no speech (text, markers, BOS, EOS), and of their units."""
        if self.host is not None:
            token_M, unit_M = self.host.other_tokens
            return token_M.to(self.ids_BT.device), unit_M.to(self.ids_BT.device)
        token_M = ((self.doc_BT >= 0) & ~self.speech_BT).flatten().nonzero().squeeze(1)
        rows_B1 = torch.arange(len(self.tokens), device=token_M.device)[:, None] * self.units
        return token_M, (self.unit_BT + rows_B1).flatten()[token_M]

    @cached_property
    def speech_tokens(self) -> TokenStream:
        """Speech tokens alone as the local modules' stream."""
        return TokenStream.of_speech(self) if self.host is None else _moved(self.host.speech_tokens, self.ids_BT.device)

    @classmethod
    def from_packed(
        cls, packed: PackedBatch, device: torch.device | str = "cpu", *, tokens: int | None = None, units: int | None = None
    ) -> Batch:
        """Pad the rows to the longest, or to `tokens` and `units` if those are given. Raises DataError if those are too few."""
        longest_T, longest_U = max(r.tokens for r in packed.rows), max(r.units for r in packed.rows)
        T, U = tokens or longest_T, units or longest_U
        if longest_T > T or longest_U > U:
            raise DataError(f"tokens={T} or units={U} is too few for rows of up to {longest_T} tokens and {longest_U} units.")
        target_modality = [np.append(r.modality[1:], 0).astype(np.int64) for r in packed.rows]
        arrays = {
            "ids_BT": _stack([r.ids for r in packed.rows], T, 0),
            "doc_BT": _stack([r.doc for r in packed.rows], T, -1),
            "position_BT": _stack([r.position for r in packed.rows], T, 0),
            "unit_BT": _stack([r.unit for r in packed.rows], T, U),
            "visible_BT": _stack([r.visible for r in packed.rows], T, 0),
            "target_BT": _stack([r.target for r in packed.rows], T, -1),
            "target_modality_BT": _stack(target_modality, T, 0),
            "speech_BT": _stack([r.modality == SPEECH for r in packed.rows], T, 0).astype(bool),
            "unit_doc_BU": _stack([r.unit_doc for r in packed.rows], U, -1),
            "unit_position_BU": _stack([r.unit_position for r in packed.rows], U, 0),
        }
        tensors: dict[str, Any] = {name: torch.from_numpy(array) for name, array in arrays.items()}
        lengths, units_of_row = tuple(r.tokens for r in packed.rows), tuple(r.units for r in packed.rows)
        return cls(**tensors, tokens=lengths, row_units=units_of_row).to(device)

    def to(self, device: torch.device | str) -> Batch:
        if torch.device(device) == self.ids_BT.device:
            return self
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        moved: dict[str, Any] = {name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)}
        return dataclasses.replace(self, host=self.host or self, **moved)


@dataclass(frozen=True, eq=False, kw_only=True)
class SpeechPlaces:
    """Where a compact stream of speech tokens and patches is in its batch, as flat places (row x length + position)."""

    token_BL: Tensor  # among the batch's tokens; padding points at some token
    real_N: Tensor  # in (B, L): the tokens that are no padding ..
    token_N: Tensor  # .. and where each is among the batch's tokens
    patch_N: Tensor  # in (B, P): the patches ..
    unit_N: Tensor  # .. and where each is among the batch's units


@dataclass(frozen=True, eq=False, kw_only=True)
class TokenStream:
    """The tokens that the local modules run on, and the patches among their units. Legend: L tokens, P patches.

    With all tokens, L = T and P = U: a text token is a patch of one. With speech tokens alone, both are compact and padded,
    and positions and windows count speech tokens.
    """

    position_BL: Tensor  # position in the document's stream
    visible: Intervals  # closed units (of the global transformer) that each token sees
    last_visible_BL: Tensor  # the latest of them
    query_position_BL: Tensor  # its position in the document
    segments: Segments  # which token is in which patch
    lengths: tuple[int, ...]  # real tokens of each row
    places: SpeechPlaces | None = None  # where its tokens and patches are in the batch; None: it is the batch
    windows: dict[int, Intervals] = field(default_factory=dict)

    def seen(self, window: int) -> Intervals:
        """The tokens that each sees in a windowed self-attention; made once."""
        if window not in self.windows:
            self.windows[window] = causal_intervals(self.position_BL, self.lengths, window=window)
        return self.windows[window]

    def gather(self, x_BTE: Tensor) -> Tensor:
        """The stream's tokens of the batch's -> (B, L, E)."""
        if self.places is None:
            return x_BTE
        place_BL = self.places.token_BL
        return x_BTE.flatten(0, 1).index_select(0, place_BL.flatten()).unflatten(0, place_BL.shape)

    @classmethod
    def of_all(cls, batch: Batch) -> TokenStream:
        last, position = _last_visible(batch, batch.visible_BT, batch.unit_BT)
        return cls(
            position_BL=batch.position_BT,
            visible=visible_intervals(batch.visible_BT, last - position, batch.units, batch.tokens),
            last_visible_BL=last,
            query_position_BL=position,
            segments=Segments.of(batch.unit_BT, batch.units),
            lengths=batch.tokens,
        )

    @classmethod
    def of_speech(cls, batch: Batch) -> TokenStream:
        """Rows hold their speech tokens, in order; a row without any holds padding alone."""
        B, T = batch.speech_BT.shape
        count_B = batch.speech_BT.sum(1)
        lengths = tuple(count_B.tolist())
        L = max(*lengths, 1)
        place_BL = (~batch.speech_BT).to(torch.int8).sort(dim=1, stable=True).indices[:, :L]
        real_BL = torch.arange(L, device=place_BL.device) < count_B[:, None]
        unit_BL = batch.unit_BT.gather(1, place_BL).masked_fill(~real_BL, batch.units)
        doc_BL = batch.doc_BT.gather(1, place_BL).masked_fill(~real_BL, -1)
        new_patch_BL = real_BL & (unit_BL != F.pad(unit_BL, (1, 0), value=-1)[:, :-1])
        patch_BL = new_patch_BL.cumsum(1) - 1
        P = max(1, int(patch_BL.max()) + 1)
        row_B1 = torch.arange(B, device=place_BL.device)[:, None]
        visible_BL = batch.visible_BT.gather(1, place_BL).masked_fill(~real_BL, 0)
        last, position = _last_visible(batch, visible_BL, unit_BL)
        return cls(
            position_BL=_position_in_run(doc_BL).masked_fill(~real_BL, 0),
            visible=visible_intervals(visible_BL, last - position, batch.units, lengths),
            last_visible_BL=last,
            query_position_BL=position,
            segments=Segments.of(patch_BL.masked_fill(~real_BL, P), P),
            lengths=lengths,
            places=SpeechPlaces(
                token_BL=place_BL + row_B1 * T,
                real_N=real_BL.flatten().nonzero().squeeze(1),
                token_N=(place_BL + row_B1 * T)[real_BL],
                patch_N=(patch_BL + row_B1 * P)[new_patch_BL],
                unit_N=(unit_BL + row_B1 * batch.units)[new_patch_BL],
            ),
        )


def joined(places_of_rows: Sequence[tuple[Tensor, Tensor]], shape: tuple[int, ...]) -> Tensor:
    """Rows of width E at flat places of a zero tensor of `shape` + (E,): pairs of places and rows, in the dtype of the last."""
    rows_NE = places_of_rows[-1][1]
    out_NE = rows_NE.new_zeros(math.prod(shape), rows_NE.shape[-1])
    for place_N, x_NE in places_of_rows:
        out_NE = out_NE.index_copy(0, place_N, x_NE.to(rows_NE.dtype))
    return out_NE.unflatten(0, shape)


def _moved(value: Any, device: torch.device | str) -> Any:
    """A copy of a dataclass with all its tensors on `device`; what was made from them is made anew."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, **{f.name: _moved(getattr(value, f.name), device) for f in dataclasses.fields(value)})
    return value


def _last_visible(batch: Batch, visible_BL: Tensor, unit_BL: Tensor) -> tuple[Tensor, Tensor]:
    """The latest closed unit at each token, and its position in the document. Padding sees unit 0."""
    last_BL = (visible_BL - 1).clamp(min=0)
    position_BL = batch.unit_position_BU.gather(1, last_BL)
    return last_BL, position_BL.masked_fill(unit_BL >= batch.units, 0)


def _position_in_run(doc_BL: Tensor) -> Tensor:
    """0, 1, .. within each run of equal values."""
    step_L = torch.arange(doc_BL.shape[1], device=doc_BL.device).expand_as(doc_BL)
    begins_BL = F.pad(doc_BL[:, 1:] != doc_BL[:, :-1], (1, 0), value=True)
    first_BL = torch.where(begins_BL, step_L, 0).cummax(1).values
    return step_L - first_BL


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
    unknown modality, an id outside its vocabulary, or sizes that do not fit.

    Arm `bpe` takes speech tokens too and encodes them with the run's pieces: those of `config.data`, which the planner (or
    lst.data.statistics.solve_mixture) fills in, or those that `load_checkpoint` found beside the weights.
    """
    vocabulary, pieces = Vocabulary.of(config.model), run_pieces(config)
    patching = kind or config.patching.evaluation_kind
    rows = []
    for number, document in enumerate(documents):
        segments = [_segment(s, vocabulary, number) for s in document]
        segments = pieces.encode_document(segments) if pieces else segments
        options = config.patching
        encoded = encode_document(segments, vocabulary, patching, options.patch_size, ends=ends, silence=options.silence_rule)
        rows.append(PackedRow.pack([encoded], vocabulary, interleaved=True))
    if patching is Patching.TOKEN and tokens != units:
        raise DataError(f"tokens={tokens} and units={units} differ, but each token is a unit here; give both, equal, or neither.")
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
