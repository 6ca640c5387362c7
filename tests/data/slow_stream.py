"""The stream said slowly: lists of all documents, one random number at a time, patches span by span.

What it shares with the product is `encode_document` and `PackedRow.pack` (tested by hand in tests/lst/test_patching.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import accumulate, count
from typing import Any

import numpy as np

from lst.config import DataConfig, Format, Patching, RunConfig
from lst.data.interleave import Document, Segment
from lst.data.pack import EncodedDocument, PackedRow, encode_document
from lst.data.piece_spans import divide_words
from lst.data.shards import Dataset
from lst.data.speech_bpe import SpeechBpe
from lst.data.vocab import Vocabulary


def document_spans(row: dict[str, Any], aligned_unit: str, characters: Any) -> list[list[tuple[int, int]]]:
    """First and last frames of the aligned units of each word."""
    spans: list[list[tuple[int, int]]] = []
    piece = 0
    for start, end, pieces in zip(row["word_start"], row["word_end"], row["word_text_lengths"], strict=True):
        own = row["word_text_tokens"][piece : piece + pieces]
        if aligned_unit == "word":
            spans.append([(start, end)])
        elif "piece_start" in row:
            times = zip(row["piece_start"][piece : piece + pieces], row["piece_end"][piece : piece + pieces], strict=True)
            spans.append([(a, b) for a, b in times if b >= a])
        else:
            found, _ = divide_words(*(np.array([x], np.int64) for x in (start, end, pieces)), characters[np.array(own, np.int64)])
            spans.append([(a, b) for a, b in found.tolist()])
        piece += pieces
    return spans


def interleave(
    row: dict[str, Any], data: DataConfig, generator: np.random.Generator, *, first_word: int = 0, spans: list | None = None
) -> Document:
    """The document from `first_word` on; its words' spans are the words themselves unless given."""
    spans = spans or document_spans(row, "word", None)
    words = len(row["words"])
    borders = [0, *row["word_start"][1:], len(row["speech_tokens"])]
    speak = generator.random() < 0.5 if data.first_modality == "random" else data.first_modality == "speech"
    segments: Document = []
    word = text_span = 0
    word = first_word
    while word < words:
        if speak:
            length = text_span or int(generator.integers(*data.text_span_words, endpoint=True))
            last = min(words, word + max(1, round(length * data.speech_per_text_words)))
            begin = borders[word] if word else 0
            own = [(a - begin, b - begin) for w in spans[word:last] for a, b in w]
            tokens = np.array(row["speech_tokens"][begin : borders[last]])
            segments.append(Segment("speech", tokens, np.array(own, np.int64).reshape(-1, 2)))
        else:
            text_span = int(generator.integers(*data.text_span_words, endpoint=True))
            last = min(words, word + text_span)
            segments.append(text_of(row, word, last))
        word, speak = last, not speak
    return segments


def text_of(row: dict[str, Any], first: int, last: int) -> Segment:
    offsets = [0, *accumulate(row["word_text_lengths"])]
    return Segment("text", np.array(row["word_text_tokens"][offsets[first] : offsets[last]], np.int64))


def pack_units(documents: Sequence[EncodedDocument] | Iterator[EncodedDocument], units: int) -> list[EncodedDocument]:
    """Documents from the front, until `units` units are reached; the last is cut at a whole unit."""
    packed, room = [], units
    for document in documents:
        packed.append(document.first_units(room))
        room -= packed[-1].units
        if room == 0:
            break
    return packed


class SlowStream:
    """Rows of a run over a data set that fits in lists. Outlines (kind, start, generator) are given."""

    def __init__(self, dataset: Dataset, config: RunConfig, speech_bpe: SpeechBpe | None = None) -> None:
        self.config, self.speech_bpe = config, speech_bpe
        self.vocabulary = Vocabulary.of(config.model)
        self.characters = dataset.tokenizer.characters
        self.spoken = [r for r in dataset.speech.to_pylist() if r["split"] == "train"]
        self.text = [r["text_tokens"] for r in dataset.text.to_pylist() if r["split"] == "train" and r["text_tokens"]]

    def row(self, outline: tuple[Any, Format, float, np.random.Generator]) -> PackedRow:
        kind, layout, start, generator = outline
        if layout is Format.TEXT:
            documents = self._texts(start)
        elif layout is Format.INTERLEAVED:
            documents = self._interleaved(start, generator)
        else:
            documents = self._whole(start, layout, needs_words=layout is not Format.SPEECH or kind is Patching.ALIGNED)
        options = self.config.patching
        encoded = (
            encode_document(d, self.vocabulary, kind, options.patch_size, ends=True, silence=options.silence_rule)
            for d in map(self._in_pieces, documents)
        )
        packed = pack_units(encoded, self.config.data.seq_len_units)
        return dataclasses.replace(PackedRow.pack(packed, self.vocabulary, interleaved=True), format=layout)

    def _whole(self, start: float, layout: Format, *, needs_words: bool) -> Iterator[Document]:
        """Speech alone, or pairs of speech and text of `pair_words` words."""
        size = self.config.data.pair_words
        for row, first in self._spoken_from(start, needs_words):
            words = len(row["words"])
            if layout is Format.SPEECH:
                if first < words or not words:
                    yield [self._speech(row, first, words)]
                continue
            for begin in range(first, words, size):
                pair = [self._speech(row, begin, min(words, begin + size)), text_of(row, begin, min(words, begin + size))]
                yield pair if layout is Format.ASR else pair[::-1]

    def _speech(self, row: dict[str, Any], first: int, last: int) -> Segment:
        begin = row["word_start"][first] if first else 0
        end = row["word_start"][last] if last < len(row["words"]) else len(row["speech_tokens"])
        spans = document_spans(row, self.config.patching.aligned_unit, self.characters)[first:last]
        words = np.array([(a - begin, b - begin) for w in spans for a, b in w], np.int64).reshape(-1, 2)
        return Segment("speech", np.array(row["speech_tokens"][begin:end]), words)

    def _spoken_from(self, start: float, needs_words: bool) -> Iterator[tuple[dict[str, Any], int]]:
        place, frame = locate([len(r["speech_tokens"]) for r in self.spoken], start)
        for number in count(place):
            row = self.spoken[number % len(self.spoken)]
            if row["words"] or not needs_words:
                yield row, sum(s < frame for s in row["word_start"]) if number == place else 0

    def _in_pieces(self, document: Document) -> Document:
        return self.speech_bpe.encode_document(document) if self.speech_bpe else document

    def _interleaved(self, start: float, generator: np.random.Generator) -> Iterator[Document]:
        for row, skip in self._spoken_from(start, True):
            spans = document_spans(row, self.config.patching.aligned_unit, self.characters)
            document = interleave(row, self.config.data, generator, first_word=skip, spans=spans)
            if document:
                yield document

    def _texts(self, start: float) -> Iterator[Document]:
        first, offset = locate(list(map(len, self.text)), start)
        for place in count(first):
            tokens = self.text[place % len(self.text)]
            yield [Segment("text", np.array(tokens[offset if place == first else 0 :]))]


def locate(lengths: list[int], fraction: float) -> tuple[int, int]:
    """(document, token inside it) at `fraction` of the stream of documents of these lengths."""
    token = int(fraction * sum(lengths))
    for place, length in enumerate(lengths):
        if token < length:
            return place, token
        token -= length
    raise AssertionError("a fraction lies below 1")
