"""Documents to rows, rows to batches: ids, units, what each token may see, and what it must predict. Numpy only.

Documents of a row are kept apart (no attention, no target across them). A document is BOS, its segments each led by a marker,
and EOS at its true end. `encode_document` and `PackedRow.pack` take documents that are given; rows of the training stream are
made by lst/data/row_builder.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lst.config import Format, ModelConfig, Patching
from lst.data.interleave import Document
from lst.data.vocab import BOS, EOS, SPEECH, TEXT, Vocabulary
from lst.flops import SequenceCounts
from lst.patching import closing_positions, patch_span, visible_units

IntArray = NDArray[np.int64]

SIMILAR_LENGTH = 0.75  # rows of a micro-batch are at least this share of its longest, so that padding is small
SMALL_PART = 2048  # padded tokens up to which one forward pass more would cost more than the padding


@dataclass(frozen=True)
class EncodedDocument:
    """One document as ids and units."""

    ids: IntArray  # (T,)
    unit_lengths: IntArray  # (U,) tokens of each unit
    complete: NDArray[np.bool_]  # (U,) False: closes only at the next token
    frames: IntArray  # (T,) speech tokens that an id stands for: 0 for text and markers, 1, or those of a piece

    @property
    def units(self) -> int:
        return len(self.unit_lengths)

    def first_units(self, units: int) -> EncodedDocument:
        """The document cut after `units` units."""
        if units >= self.units:
            return self
        tokens = int(self.unit_lengths[:units].sum())
        return EncodedDocument(self.ids[:tokens], self.unit_lengths[:units], self.complete[:units], self.frames[:tokens])


def encode_document(
    document: Document, vocabulary: Vocabulary, kind: Patching, patch_size: int, *, ends: bool, silence: str = "separate"
) -> EncodedDocument:
    """Ids and units of a document; `ends` adds EOS (False where the document goes on elsewhere).

    `kind` is TOKEN, STATIC or ALIGNED, `silence` as in `lst.patching.aligned_patches`. Raises DataError on speech without
    word spans under ALIGNED.
    """
    one, none, done = np.ones(1, np.int64), np.zeros(1, np.int64), np.ones(1, bool)
    ids, lengths, complete, frames = [np.array([BOS])], [one], [done], [none]
    for segment in document:
        speech = segment.modality == "speech"
        assert not speech or (segment.frames is not None) == bool(vocabulary.speech_pieces), "speech in pieces, or none of it"
        marker = vocabulary.speech_marker if speech else vocabulary.text_marker
        ids += [np.array([marker]), vocabulary.speech_ids(segment.tokens) if speech else segment.tokens.astype(np.int64)]
        count = len(segment.tokens)
        cut = kind if speech else Patching.TOKEN
        patches = patch_span(cut, count, patch_size=patch_size, words=segment.words, silence=silence)
        lengths += [one, patches.lengths]
        complete += [done, patches.complete]
        frames += [none, np.full(count, int(speech)) if segment.frames is None else segment.frames]
    if ends:
        ids, lengths, complete, frames = [*ids, np.array([EOS])], [*lengths, one], [*complete, done], [*frames, none]
    return EncodedDocument(*map(np.concatenate, (ids, lengths, complete, frames)))


class LocalTokens(NamedTuple):
    """Which tokens the patch encoder and decoder run on, and how far back each sees (0 = all). The baseline has none."""

    encoder_window: int = 0
    decoder_window: int = 0
    on_text: bool = True

    @classmethod
    def of(cls, model: ModelConfig) -> LocalTokens:
        encoder, decoder = (stack.window if stack else 0 for stack in (model.encoder, model.decoder))
        return cls(encoder, decoder, model.local_text)


EVERY_TOKEN = LocalTokens()


@dataclass(frozen=True)
class PackedRow:
    """One sequence of a batch. T tokens, U units."""

    ids: IntArray  # (T,)
    doc: IntArray  # (T,) document of each token, from 0
    position: IntArray  # (T,) position in the document
    unit: IntArray  # (T,) unit of each token
    visible: IntArray  # (T,) units of the row that are closed at each token
    target: IntArray  # (T,) id to predict, -1 where there is none
    modality: NDArray[np.int8]  # (T,) of each id
    frames: IntArray  # (T,) speech tokens that each id stands for
    unit_doc: IntArray  # (U,) document of each unit
    unit_position: IntArray  # (U,) position of the unit in its document
    format: Format  # how its documents are laid out

    @classmethod
    def pack(cls, documents: Sequence[EncodedDocument], vocabulary: Vocabulary, *, interleaved: bool) -> PackedRow:
        ids = np.concatenate([d.ids for d in documents])
        lengths = np.concatenate([d.unit_lengths for d in documents])
        complete = np.concatenate([d.complete for d in documents])
        tokens_per_doc = np.array([len(d.ids) for d in documents])
        units_per_doc = np.array([d.units for d in documents])
        doc = np.repeat(np.arange(len(documents)), tokens_per_doc)
        target = np.append(ids[1:], -1)
        target[np.cumsum(tokens_per_doc) - 1] = -1
        return cls(
            ids=ids,
            doc=doc,
            position=count_within(tokens_per_doc),
            unit=np.repeat(np.arange(len(lengths)), lengths),
            visible=visible_units(closing_positions(lengths, complete), len(ids)),
            target=target,
            modality=vocabulary.modality(ids),
            frames=np.concatenate([d.frames for d in documents]),
            unit_doc=np.repeat(np.arange(len(documents)), units_per_doc),
            unit_position=count_within(units_per_doc),
            format=Format.INTERLEAVED if interleaved else Format.TEXT,
        )

    @property
    def interleaved(self) -> bool:
        return self.format is Format.INTERLEAVED

    @property
    def tokens(self) -> int:
        """Positions; `content` says what they stand for."""
        return len(self.ids)

    @property
    def content(self) -> IntArray:
        """(T,) tokens that each id counts as: one, but for a piece the speech tokens that it stands for."""
        return np.maximum(self.frames, 1)

    @property
    def units(self) -> int:
        return len(self.unit_doc)

    @property
    def digest(self) -> int:
        """64 bits of the SHA-256 of ids and units."""
        content = self.ids.astype("<i8").tobytes() + self.visible.astype("<i8").tobytes()
        return int.from_bytes(hashlib.sha256(content).digest()[:8], "little")

    def counts(self, local: LocalTokens) -> SequenceCounts:
        """What the row costs and holds (lst/flops.py), with local modules as `local` says."""
        first_unit = np.searchsorted(self.unit_doc, np.arange(self.doc[-1] + 1))
        text = int((self.modality == TEXT).sum())
        speech = self.modality == SPEECH
        on = slice(None) if local.on_text else speech
        position = self.position if local.on_text else count_within(np.bincount(self.doc[speech]))
        tokens = int(self.content.sum())
        return SequenceCounts(
            sequences=1,
            units=self.units,
            tokens=tokens,
            text_tokens=text,
            text_only_tokens=text if self.format is Format.TEXT else 0,
            interleaved_tokens=tokens if self.format is Format.INTERLEAVED else 0,
            speech_tokens=int(self.frames.sum()),
            patches=_distinct(self.unit[speech]),
            predicted=int((self.target >= 0).sum()),
            global_pairs=int((self.unit_position + 1).sum()),
            encoder_pairs=_windowed(position, local.encoder_window),
            decoder_pairs=_windowed(position, local.decoder_window),
            cross_pairs=int((self.visible - first_unit[self.doc])[on].sum()),
        )


@dataclass(frozen=True)
class PackedBatch:
    """Rows that are trained on together."""

    rows: list[PackedRow]
    local: LocalTokens = EVERY_TOKEN

    @cached_property
    def counts(self) -> SequenceCounts:
        total = SequenceCounts()
        for row in self.rows:
            total += row.counts(self.local)
        return total

    @cached_property
    def digest(self) -> int:
        """The sum of the rows' digests: parts of a batch, whoever made them, add up to the batch's."""
        return sum(row.digest for row in self.rows)

    @property
    def hash(self) -> str:
        """Hash of the batch's ids and units, row by row: equal batches on any machine, in any order, have equal hashes."""
        return batch_hash(self.digest)

    def split(self, max_tokens: int) -> list[PackedBatch]:
        """Micro-batches of rows of similar length, each of at most `max_tokens` padded tokens (one row at least)."""
        parts: list[list[PackedRow]] = []
        for row in sorted(self.rows, key=lambda r: -r.tokens):
            widest = parts[-1][0].tokens if parts else 0
            padded = widest * (len(parts[-1]) + 1) if parts else 0
            similar = row.tokens >= SIMILAR_LENGTH * widest or padded <= SMALL_PART
            if parts and padded <= max_tokens and similar:
                parts[-1].append(row)
            else:
                parts.append([row])
        return [PackedBatch(rows, self.local) for rows in parts]


def batch_hash(digest: int) -> str:
    """The hash of a batch whose rows' digests sum to `digest`: that sum modulo 2^64, as 16 hex digits."""
    return f"{digest % (1 << 64):016x}"


def count_within(lengths: IntArray, starts: IntArray | int = 0) -> IntArray:
    """start, start + 1, .. within each stretch of the given lengths."""
    ends = np.cumsum(lengths)
    within: IntArray = np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)
    return within


def _windowed(position: IntArray, window: int) -> int:
    seen = position + 1
    return int((np.minimum(seen, window) if window else seen).sum())


def _distinct(rising: IntArray) -> int:
    return int((np.diff(rising, prepend=-1) != 0).sum())
