"""From a spoken document to spans of text and speech, made anew for each pass (PAPER: Data, Interleaving).

A contiguous span of words becomes its text tokens; the following span of about half that length stays speech; and so on.
A speech span runs from the start of its first word to the frame before the next word's start, so that no frame is used
twice and the silence after a word stays with it. Pure functions of (document, generator).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lst.config import DataConfig
from lst.data.boundary_noise import IntArray, NoiseRange, frame_moves, move_boundaries
from lst.data.columns import Chunk, Place
from lst.data.draws import Draws
from lst.data.piece_spans import divide_words
from lst.data.shards import PIECE_TIMES, Dataset


class Segment(NamedTuple):
    """A stretch of one modality, numbered as its tokenizer numbers it."""

    modality: str  # "text" or "speech"
    tokens: NDArray[np.integer]  # text pieces, speech tokens, or pieces of speech tokens
    words: NDArray[np.int64] | None = None  # speech: (n, 2) first and last frame of each word (or piece), from its start
    frames: NDArray[np.int64] | None = None  # speech in pieces (arm `bpe`): speech tokens of each; None: tokens are speech tokens


Document = list[Segment]


class WordSpan(NamedTuple):
    """Words `first` .. `last` - 1 of a document, spoken or written."""

    speech: bool
    first: int
    last: int


def interleaved_spans(words: int, data: DataConfig, draws: Draws, *, first_word: int = 0) -> Iterator[WordSpan]:
    """Spans of text and speech in turn over `words` words, from `first_word` on; drawn while they are read.

    A text span has data.text_span_words words, uniform; the speech span after it data.speech_per_text_words times as many,
    rounded, one at least. Which comes first is data.first_modality: by a fair coin (`random`), `text` or `speech`.
    """
    (low, high), share = data.text_span_words, data.speech_per_text_words
    speak = draws.coin() if data.first_modality == "random" else data.first_modality == "speech"
    word, text_span = first_word, 0
    while word < words:
        if speak:
            length = text_span or draws.between(low, high)
            last = word + max(1, round(length * share))
        else:
            text_span = draws.between(low, high)
            last = word + text_span
        yield WordSpan(speak, word, min(words, last))
        word, speak = last, not speak


def stretches(words: int, length: int, *, first_word: int = 0) -> Iterator[tuple[int, int]]:
    """(first, one past the last) of stretches of `length` words, the last one shorter."""
    for first in range(first_word, words, length):
        yield first, min(words, first + length)


class SpokenDocument:
    """One spoken document by its words: views of the data set."""

    __slots__ = ("_piece_ends", "chunk", "ends", "pieces", "row", "starts", "tokens", "word_lengths", "words")

    def __init__(self, place: Place) -> None:
        chunk, row, _ = place
        self.chunk: Chunk = chunk
        self.row = row
        self.tokens = chunk["speech_tokens"].row(row)
        self.starts = chunk["word_start"].row(row)  # first frame of each word
        self.ends = chunk["word_end"].row(row)  # last frame of each word, itself inside
        self.word_lengths = chunk["word_text_lengths"].row(row)
        self.pieces = chunk["word_text_tokens"].row(row)
        self.words = len(self.starts)
        self._piece_ends: NDArray[np.int64] | None = None

    def first_word_at(self, frame: int) -> int:
        """The first word that starts at `frame` or later; `words` where there is none."""
        return int(np.searchsorted(self.starts, self.starts.dtype.type(frame))) if frame else 0

    def begin(self, word: int) -> int:
        """The first frame of `word`; of the first one, that of the silence before it."""
        return self.starts.item(word) if word else 0

    def end(self, last: int) -> int:
        """One past the frames of the words before `last`: a word owns the frames up to the next one's start."""
        return self.starts.item(last) if last < self.words else len(self.tokens)

    def piece_border(self, word: int) -> int:
        """Text pieces before `word`."""
        if self._piece_ends is None:
            self._piece_ends = np.cumsum(self.word_lengths, dtype=np.int64)
        return self._piece_ends.item(word - 1) if word else 0

    def speech(self, first: int, last: int) -> NDArray[np.integer]:
        """Speech tokens of words `first` .. `last` - 1, with the silences that they own; all where there are no words."""
        return self.tokens[self.begin(first) : self.end(last)]

    def text(self, first: int, last: int) -> NDArray[np.integer]:
        """Their text pieces."""
        return self.pieces[self.piece_border(first) : self.piece_border(last)]


class SpokenDocuments:
    """Documents as segments, with the spans of words or of their text pieces."""

    def __init__(self, dataset: Dataset, aligned_unit: str = "word", boundary_noise_ms: NoiseRange = (0, 0)) -> None:
        """`aligned_unit`: whose spans speech segments carry, of words (`word`) or of their text pieces (`bpe`).

        Their boundaries are moved by `boundary_noise_ms` (lst.data.boundary_noise).
        """
        self._dataset, self.in_pieces, self._noise = dataset, aligned_unit == "bpe", boundary_noise_ms

    @cached_property
    def characters(self) -> NDArray[np.int64]:
        """Characters of each text piece, by which a word's frames are divided."""
        return self._dataset.tokenizer.characters

    def speech(self, document: SpokenDocument) -> Segment:
        """The whole document as speech."""
        return Segment("speech", document.tokens, self.spans(document, 0, document.words))

    def interleaved(
        self, document: SpokenDocument, data: DataConfig, generator: np.random.Generator, *, first_word: int = 0
    ) -> Document:
        """The document from `first_word` on, text and speech spans in turn; empty where no word is left."""
        segments = []
        for span in interleaved_spans(document.words, data, Draws(generator), first_word=first_word):
            if span.speech:
                words = self.spans(document, span.first, span.last)
                segments.append(Segment("speech", document.speech(span.first, span.last), words))
            else:
                segments.append(Segment("text", document.text(span.first, span.last)))
        return segments

    def spans(self, document: SpokenDocument, first: int, last: int) -> NDArray[np.int64]:
        """(n, 2) first and last frame of each aligned unit of words `first` .. `last` - 1, from where their speech begins."""
        starts, ends = document.starts[first:last].astype(np.int64), document.ends[first:last].astype(np.int64)
        if not self.in_pieces:
            spans = np.stack([starts, ends], 1)
        elif PIECE_TIMES[0] in document.chunk:
            spans = piece_times(document, first, last)
        else:
            characters = self.characters[document.text(first, last)]
            spans, _ = divide_words(starts, ends, document.word_lengths[first:last].astype(np.int64), characters)
        if self.noisy:
            moves = self.moves(document)
            limits = (np.full(len(spans), document.begin(first)), np.full(len(spans), document.end(last)))
            begins, after = spans[:, 0], spans[:, 1] + 1
            begins, after = move_boundaries(begins, after, (moves[begins], moves[after]), limits)
            spans = np.stack([begins, after - 1], 1)
        return spans - document.begin(first)

    @property
    def noisy(self) -> bool:
        """Whether boundaries are moved."""
        return self._noise[1] > 0

    def moves(self, document: SpokenDocument) -> IntArray:
        """Frames by which a boundary before each of the document's frames, and after the last, moves."""
        return frame_moves(document.starts, len(document.tokens), self._noise)


def piece_times(document: SpokenDocument, first: int, last: int) -> NDArray[np.int64]:
    """(n, 2) first and last frame of the pieces of words `first` .. `last` - 1 that have frames, as the data set gives them."""
    own = slice(document.piece_border(first), document.piece_border(last))
    spans = np.stack([document.chunk[name].row(document.row)[own].astype(np.int64) for name in PIECE_TIMES], 1)
    return spans[spans[:, 1] >= spans[:, 0]]  # a piece without frames ends before it starts
