"""From a spoken document to a sequence of text and speech segments, made anew for each pass (PAPER: Data, Interleaving).

A contiguous span of words becomes its text tokens; the following span of about half that length stays speech; and so on.
A speech span runs from the start of its first word to the frame before the next word's start, so that no frame is used
twice and the silence after a word stays with it. Pure functions of (document, generator).
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lst.config import DataConfig
from lst.data.piece_spans import divide_words
from lst.data.shards import PIECE_TIMES, Dataset, Ragged, ragged


class Segment(NamedTuple):
    """A stretch of one modality, numbered as its tokenizer numbers it."""

    modality: str  # "text" or "speech"
    tokens: NDArray[np.integer]  # text pieces, speech tokens, or pieces of speech tokens
    words: NDArray[np.int64] | None = None  # speech: (n, 2) first and last frame of each word (or piece), from its start
    frames: NDArray[np.int64] | None = None  # speech in pieces (arm `bpe`): speech tokens of each; None: tokens are speech tokens


Document = list[Segment]


class SpokenDocuments:
    """Column access to the spoken documents of a data set, by row."""

    def __init__(self, dataset: Dataset, aligned_unit: str = "word") -> None:
        """`aligned_unit`: whose spans speech segments carry, of words (`word`) or of their text pieces (`bpe`)."""
        self._dataset, self._in_pieces = dataset, aligned_unit == "bpe"
        table = dataset.speech
        self.tokens: Ragged = ragged(table, "speech_tokens")
        self.word_start: Ragged = ragged(table, "word_start")
        self.word_end: Ragged = ragged(table, "word_end")
        self.word_lengths: Ragged = ragged(table, "word_text_lengths")
        self.pieces: Ragged = ragged(table, "word_text_tokens")

    def speech(self, row: int) -> Segment:
        """The whole document as speech."""
        spans, _ = self._spans(row)
        return Segment("speech", self.tokens[row], spans)

    def text(self, row: int) -> Segment:
        """The whole document as text pieces."""
        return Segment("text", self.pieces[row])

    def interleaved(self, row: int, data: DataConfig, generator: np.random.Generator, *, first_word: int = 0) -> Document:
        """The document from `first_word` on, text and speech spans in turn; empty where no word is left."""
        starts = self.word_start[row].astype(np.int64)
        words, tokens = len(starts), self.tokens[row]
        spans, spans_before = self._spans(row)
        borders = np.append(starts, len(tokens))  # a word owns the frames up to the next word's start
        borders[0] = 0
        offsets = np.append(0, np.cumsum(self.word_lengths[row], dtype=np.int64))
        segments, word = [], first_word
        speak = bool(generator.random() < 0.5)
        text_span = 0
        while word < words:
            if speak:
                length = text_span or int(generator.integers(*data.text_span_words, endpoint=True))
                last = min(words, word + max(1, round(length * data.speech_per_text_words)))
                begin, end = borders[word], borders[last]
                own = spans[spans_before[word] : spans_before[last]] - begin
                segments.append(Segment("speech", tokens[begin:end], own))
            else:
                text_span = int(generator.integers(*data.text_span_words, endpoint=True))
                last = min(words, word + text_span)
                segments.append(Segment("text", self.pieces[row][offsets[word] : offsets[last]]))
            word, speak = last, not speak
        return segments

    def _spans(self, row: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(n, 2) first and last frame of each aligned unit of the document, and how many stand before each word's (W + 1,)."""
        starts, ends = self.word_start[row].astype(np.int64), self.word_end[row].astype(np.int64)
        if not self._in_pieces:
            return np.stack([starts, ends], 1), np.arange(len(starts) + 1)
        lengths = self.word_lengths[row].astype(np.int64)
        if self._piece_times is None:
            spans, counts = divide_words(starts, ends, lengths, self._dataset.tokenizer.characters[self.pieces[row]])
        else:
            spans = np.stack([times[row].astype(np.int64) for times in self._piece_times], 1)
            spoken = spans[:, 1] >= spans[:, 0]  # a piece without frames ends before it starts
            word = np.repeat(np.arange(len(starts)), lengths)
            spans, counts = spans[spoken], np.bincount(word[spoken], minlength=len(starts))
        return spans, np.append(0, np.cumsum(counts))

    @cached_property
    def _piece_times(self) -> tuple[Ragged, Ragged] | None:
        """First and last frames of all pieces, where the data set has them."""
        table = self._dataset.speech
        if not set(PIECE_TIMES) <= set(table.schema.names):
            return None
        start, end = (ragged(table, name) for name in PIECE_TIMES)
        return start, end
