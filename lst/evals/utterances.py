"""Spoken utterances with their text, from a data set's held-out documents: what ASR and TTS are measured on.

A document is cut into stretches of at most `words` words, as the formats `asr` and `tts` of training are (data.pair_words); a
stretch has the speech tokens from its first word's start to the next stretch's, the spans of its words, its text and pieces.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lst.data.columns import draw_places
from lst.data.interleave import Segment, SpokenDocument, SpokenDocuments, stretches
from lst.data.shards import Dataset
from lst.data.vocab import FRAMES_PER_SECOND
from lst.errors import DataError


@dataclass(frozen=True)
class Utterance:
    id: str
    speech: Segment
    pieces: tuple[int, ...]  # of its text, by the data set's tokenizer
    text: str

    @property
    def seconds(self) -> float:
        return len(self.speech.tokens) / FRAMES_PER_SECOND


def heldout_utterances(dataset: Dataset, *, count: int, words: int, seed: int, aligned_unit: str = "word") -> list[Utterance]:
    """At most `count` utterances, drawn by `seed` from the documents with words, in their order. Raises DataError without any."""
    spoken, found = SpokenDocuments(dataset, aligned_unit), []
    documents = dataset.documents("speech", "heldout")
    every = range(documents.rows)
    for number, place in zip(every, documents.documents(list(every)), strict=True):
        document = SpokenDocument(place)
        for first, last in stretches(document.words, words):
            pieces = tuple(int(p) for p in document.text(first, last))
            speech = Segment("speech", document.speech(first, last), spoken.spans(document, first, last))
            found.append(Utterance(f"{number}/{first}", speech, pieces, dataset.tokenizer.decode(pieces)))
    if not found:
        raise DataError(f"data '{dataset.path}' has no held-out speech with words; prepare it with transcripts and alignments.")
    generator = np.random.Generator(np.random.Philox(key=seed))
    return [found[i] for i in draw_places(generator, len(found), count)]
