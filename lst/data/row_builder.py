"""One row of the training stream, all its documents at once: the vectorised twin of `encode_document` and `PackedRow.pack`.

A row is built in two strokes. While documents are read, only views of their spans are collected, with a lower bound of the
units that they are, until the row is full. Then the whole row is made by a few array operations: where units begin is a mask
over tokens, from which follow each token's unit (a running count of beginnings) and the units that are closed at it (its own
as well, if the next token begins another, and if it is not a patch cut short, which closes only at the next token):

    static(3)    <s>  a  b  c   d  e  f   g  h  <t>  w
    begins        1   1  0  0   1  0  0   1  0   1   1
    unit          0   1  1  1   2  2  2   3  3   4   5
    visible       1   1  1  2   2  2  3   3  3   5   6

tests/data/test_row_builder.py holds it equal to the two functions, which say the same document by document (lst/patching.py).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lst.config import Format, Patching, PatchingConfig
from lst.data.boundary_noise import move_boundaries
from lst.data.interleave import SpokenDocument, SpokenDocuments, piece_times
from lst.data.pack import IntArray, PackedRow, count_within
from lst.data.piece_spans import divide_words
from lst.data.shards import PIECE_TIMES
from lst.data.speech_bpe import SpeechBpe
from lst.data.vocab import BOS, EOS, SPEECH, TEXT, Vocabulary


class RowBuilder:
    """Collects documents until `units` units are full; speech is cut into patches of `kind` (TOKEN, STATIC or ALIGNED)."""

    def __init__(
        self, *, vocabulary: Vocabulary, kind: Patching, patching: PatchingConfig, units: int,
        spoken: SpokenDocuments, speech_bpe: SpeechBpe | None = None,
    ) -> None:  # fmt: skip
        self.limit, self._vocabulary, self._kind, self._patching = units, vocabulary, kind, patching
        self._spoken, self._speech_bpe = spoken, speech_bpe
        self._units = 0  # a lower bound of the row's
        # Of each span: its content, which is text or speech, and its place in these lists where it begins or ends a document.
        self._contents: list[NDArray[np.integer]] = []
        self._kinds: list[int] = []
        self._first: list[int] = []
        self._last: list[int] = []
        self._words: list[tuple[SpokenDocument, int, int]] = []  # of aligned speech: document, first word, one past the last
        self._frames: list[int] = []  # and the frame that it begins at
        self._open = False

    @property
    def full(self) -> bool:
        return self._units >= self.limit

    def text(self, tokens: NDArray[np.integer]) -> None:
        """A span of text pieces."""
        count = len(tokens)
        self._add(tokens if count <= self.limit else tokens[: self.limit], TEXT, count)

    def speech(self, document: SpokenDocument, first: int, last: int) -> None:
        """The speech of words `first` .. `last` - 1; of a document without words, all of it."""
        begin = document.begin(first)
        tokens = document.tokens[begin : document.end(last)]
        if self._speech_bpe is not None:
            (pieces,) = self._speech_bpe.encode([tokens])
            self._add(pieces, SPEECH, len(pieces))
        elif self._kind is Patching.ALIGNED:
            self._words.append((document, first, last))
            self._frames.append(begin)
            timed = self._spoken.in_pieces and PIECE_TIMES[0] in document.chunk
            self._add(tokens, SPEECH, 1 if timed else last - first)  # timed pieces may all be without frames
        else:
            size = 1 if self._kind is Patching.TOKEN else self._patching.patch_size
            units = -(-len(tokens) // size)
            self._add(tokens if units <= self.limit else tokens[: self.limit * size], SPEECH, units)

    def end_document(self) -> None:
        """What was added since the last call is a document; nothing, if nothing was."""
        if self._open:
            self._last.append(len(self._kinds) - 1)
            self._units += 1
        self._open = False

    def row(self, *, format: Format) -> PackedRow:
        """The row of what was collected, cut at `units` units."""
        lengths = np.array([len(content) for content in self._contents])
        speech = np.array(self._kinds) == SPEECH
        before = np.ones(len(lengths), np.int64)  # a marker stands before each span, and BOS before a document's first
        before[self._first] = 2
        after = np.zeros(len(lengths), np.int64)  # and EOS after its last
        after[self._last] = 1
        ends = np.cumsum(before + lengths + after)
        starts = ends - after - lengths
        content = np.concatenate(self._contents).astype(np.int64)
        inside = count_within(lengths, starts)
        ids, frames = np.empty(int(ends[-1]), np.int64), np.zeros(int(ends[-1]), np.int64)
        spoken = np.repeat(speech, lengths)
        frames[inside] = spoken if self._speech_bpe is None else np.where(spoken, self._speech_bpe.lengths[content * spoken], 0)
        ids[inside] = content + spoken * self._vocabulary.text
        ids[starts - 1] = np.where(speech, self._vocabulary.speech_marker, self._vocabulary.text_marker)
        ids[starts[self._first] - 2] = BOS
        ids[ends[self._last] - 1] = EOS
        begins, cut_short = self._beginnings(len(ids), starts[speech], lengths[speech])
        unit = np.cumsum(begins[:-1]) - 1
        closes = begins[1:].copy()
        closes[cut_short] = False
        size = len(ids) if unit[-1] < self.limit else int(np.searchsorted(unit, self.limit))
        first_tokens = starts[self._first] - 2
        return self._packed(size, first_tokens[first_tokens < size], ids, unit, unit + closes, frames, format=format)

    def _packed(
        self, size: int, first_tokens: IntArray, ids: IntArray, unit: IntArray, visible: IntArray, frames: IntArray,
        *, format: Format,
    ) -> PackedRow:  # fmt: skip
        """The first `size` tokens as a row; documents begin at `first_tokens`."""
        ids, unit = ids[:size], unit[:size]
        tokens = np.diff(np.append(first_tokens, size))
        doc = np.repeat(np.arange(len(tokens)), tokens)
        first_units = unit[first_tokens]
        units = np.diff(np.append(first_units, unit[-1] + 1))
        target = np.append(ids[1:], -1)
        target[first_tokens[1:] - 1] = -1
        return PackedRow(
            ids=ids,
            doc=doc,
            position=count_within(tokens),
            unit=unit,
            visible=visible[:size],
            target=target,
            modality=self._vocabulary.modality(ids),
            frames=frames[:size],
            unit_doc=np.repeat(np.arange(len(units)), units),
            unit_position=count_within(units),
            format=format,
        )

    def _beginnings(self, tokens: int, starts: IntArray, lengths: IntArray) -> tuple[NDArray[np.bool_], IntArray]:
        """(tokens + 1,) whether a unit begins at each token and after the last; and the last tokens of patches cut short.

        `starts` and `lengths` are those of the spans of speech.
        """
        begins = np.ones(tokens + 1, bool)
        if self._kind is Patching.TOKEN or not len(starts):
            return begins, starts[:0]
        ends = starts + lengths
        begins[count_within(lengths, starts)] = False
        if self._kind is Patching.STATIC:
            size = self._patching.patch_size
            patches = -(-lengths // size)
            begins[np.repeat(starts, patches) + size * count_within(patches)] = True
            return begins, ends[lengths % size > 0] - 1
        begins[starts] = True
        first, after = self._aligned_units(starts - np.array(self._frames))
        if self._spoken.noisy:
            first, after = self._moved(first, after, starts, ends)
        rule = self._patching.silence_rule
        if rule != "next":
            begins[first] = True
        if rule != "previous":
            begins[after] = True  # one past a span's last token lies a token that begins a unit anyway
        cut = np.ones(len(ends), bool) if rule == "previous" else ~np.isin(ends, after)
        return begins, ends[cut & (lengths > 0)] - 1

    def _aligned_units(self, shifts: IntArray) -> tuple[IntArray, IntArray]:
        """First token of each word (or piece) of the row's speech, and one past its last; `shifts` from frames to tokens."""
        counts = np.array([last - first for _, first, last in self._words])
        shift = np.repeat(shifts, counts)
        own = [(document, slice(first, last)) for document, first, last in self._words]
        if self._spoken.in_pieces and PIECE_TIMES[0] in self._words[0][0].chunk:
            times = [piece_times(*words) + by for words, by in zip(self._words, shifts.tolist(), strict=True)]
            spans = np.concatenate(times)
            return spans[:, 0], spans[:, 1] + 1
        starts = np.concatenate([document.starts[words] for document, words in own]) + shift
        ends = np.concatenate([document.ends[words] for document, words in own]) + shift
        if self._spoken.in_pieces:
            lengths = np.concatenate([document.word_lengths[words] for document, words in own]).astype(np.int64)
            pieces = np.concatenate([document.text(first, last) for document, first, last in self._words])
            spans, _ = divide_words(starts, ends, lengths, self._spoken.characters[pieces])
            starts, ends = spans[:, 0], spans[:, 1]
        return starts, ends + 1

    def _moved(self, first: IntArray, after: IntArray, starts: IntArray, ends: IntArray) -> tuple[IntArray, IntArray]:
        """The same with the boundaries moved, each inside its span (patching.boundary_noise_ms)."""
        own = np.searchsorted(starts, first, side="right") - 1  # the span of each
        moves = [self._spoken.moves(document) for document, _, _ in self._words]
        before = np.cumsum([0, *map(len, moves[:-1])]) + np.array(self._frames) - starts  # from a token to its frame's move
        all_moves = np.concatenate(moves)
        by = (all_moves[first + before[own]], all_moves[after + before[own]])
        return move_boundaries(first, after, by, (starts[own], ends[own]))

    def _add(self, content: NDArray[np.integer], kind: int, units: int) -> None:
        """A span, led by its marker."""
        if not self._open:
            self._first.append(len(self._kinds))
            self._units += 1
            self._open = True
        self._contents.append(content)
        self._kinds.append(kind)
        self._units += units + 1
