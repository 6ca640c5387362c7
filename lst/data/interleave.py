"""From a spoken document to a sequence of text and speech segments, made anew for each pass (PAPER: Data, Interleaving).

A contiguous span of words becomes its text tokens; the following span of about half that length stays speech; and so on.
A speech span runs from the start of its first word to the frame before the next word's start, so that no frame is used
twice and the silence after a word stays with it. Pure functions of (document, generator).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lst.config import DataConfig
from lst.data.shards import Dataset, Ragged, ragged


class Segment(NamedTuple):
    """A stretch of one modality, numbered as its tokenizer numbers it."""

    modality: str  # "text" or "speech"
    tokens: NDArray[np.integer]  # text pieces or speech tokens
    words: NDArray[np.int64] | None = None  # speech: (n, 2) first and last frame of each word, from the segment's start


Document = list[Segment]


class SpokenDocuments:
    """Column access to the spoken documents of a data set, by row."""

    def __init__(self, dataset: Dataset) -> None:
        table = dataset.speech
        self.tokens: Ragged = ragged(table, "speech_tokens")
        self.word_start: Ragged = ragged(table, "word_start")
        self.word_end: Ragged = ragged(table, "word_end")
        self.word_lengths: Ragged = ragged(table, "word_text_lengths")
        self.pieces: Ragged = ragged(table, "word_text_tokens")

    def speech(self, row: int) -> Segment:
        """The whole document as speech."""
        words = np.stack([self.word_start[row], self.word_end[row]], 1).astype(np.int64)
        return Segment("speech", self.tokens[row], words)

    def text(self, row: int) -> Segment:
        """The whole document as text pieces."""
        return Segment("text", self.pieces[row])

    def interleaved(self, row: int, data: DataConfig, generator: np.random.Generator, *, first_word: int = 0) -> Document:
        """The document from `first_word` on, text and speech spans in turn; empty where no word is left."""
        starts = self.word_start[row].astype(np.int64)
        ends = self.word_end[row].astype(np.int64)
        words, tokens = len(starts), self.tokens[row]
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
                spans = np.stack([starts[word:last], ends[word:last]], 1) - begin
                segments.append(Segment("speech", tokens[begin:end], spans))
            else:
                text_span = int(generator.integers(*data.text_span_words, endpoint=True))
                last = min(words, word + text_span)
                segments.append(Segment("text", self.pieces[row][offsets[word] : offsets[last]]))
            word, speak = last, not speak
        return segments
