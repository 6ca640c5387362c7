"""Spoken utterances with their text, from a data set's held-out documents: what ASR and TTS are measured on.

A document is cut into stretches of at most `words` words, as the formats `asr` and `tts` of training are (data.pair_words); a
stretch has the speech tokens from its first word's start to the next stretch's, the spans of its words, its text and pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lst.data.boundary_noise import NoiseRange
from lst.data.columns import draw_places
from lst.data.interleave import Segment, SpokenDocument, SpokenDocuments, stretches
from lst.data.shards import Dataset
from lst.data.vocab import FRAMES_PER_SECOND
from lst.errors import DataError

if TYPE_CHECKING:
    from lst.evals.checkpoints import Checkpoint
    from lst.evals.evaluation_folder import EvaluationFolder

WHERE = ("out", "data", "device", "test", "shard")  # options that decide no result


@dataclass(frozen=True)
class Utterance:
    id: str
    speech: Segment
    pieces: tuple[int, ...]  # of its text, by the data set's tokenizer
    text: str
    document: int  # number of the held-out document ..
    first_frame: int  # .. and of its frame with which the utterance begins
    words: tuple[str, ...]  # its words' text ..
    word_spans: NDArray[np.int64]  # .. and first and last frame, from where it begins

    @property
    def seconds(self) -> float:
        return len(self.speech.tokens) / FRAMES_PER_SECOND


def heldout_utterances(
    dataset: Dataset, *, count: int, words: int, seed: int, aligned_unit: str = "word", boundary_noise_ms: NoiseRange = (0, 0)
) -> list[Utterance]:
    """At most `count` utterances, drawn by `seed` from the documents with words, in their order. Raises DataError without any.

    Speech carries the spans of its `aligned_unit`s (word or bpe), their boundaries moved by `boundary_noise_ms`.
    """
    documents = dataset.documents("speech", "heldout")
    every, found = range(documents.rows), list[tuple[int, int, int]]()
    for number, place in zip(every, documents.documents(every), strict=True):
        found += [(number, first, last) for first, last in stretches(SpokenDocument(place).words, words)]
    if not found:
        raise DataError(f"data '{dataset.path}' has no held-out speech with words; prepare it with transcripts and alignments.")
    drawn = [found[i] for i in draw_places(np.random.Generator(np.random.Philox(key=seed)), len(found), count)]
    spoken, utterances = SpokenDocuments(dataset, aligned_unit, boundary_noise_ms), []
    for (number, first, last), place in zip(drawn, documents.documents([number for number, *_ in drawn]), strict=True):
        utterances.append(_utterance(dataset, spoken, SpokenDocument(place), number, first, last))
    return utterances


def _utterance(
    dataset: Dataset, spoken: SpokenDocuments, document: SpokenDocument, number: int, first: int, last: int
) -> Utterance:
    pieces = tuple(int(p) for p in document.text(first, last))
    texts = ([int(p) for p in document.text(word, word + 1)] for word in range(first, last))
    return Utterance(
        id=f"{number}/{first}",
        speech=Segment("speech", document.speech(first, last), spoken.spans(document, first, last)),
        pieces=pieces,
        text=dataset.tokenizer.decode(pieces),
        document=number,
        first_frame=document.begin(first),
        words=tuple(dataset.tokenizer.decode(text) for text in texts),
        word_spans=np.stack([document.starts[first:last], document.ends[first:last]], 1).astype(np.int64) - document.begin(first),
    )


def open_evaluation(task: str, source: Path, options: Mapping[str, Any]) -> tuple[Checkpoint, Dataset, EvaluationFolder, int]:
    """The checkpoint, the data set of the utterances, the folder of the results, and the most words of an utterance.

    Raises LstError where the checkpoint, its data or the folder cannot be used.
    """
    from lst.evals.checkpoints import default_out, open_checkpoint, utterance_dataset
    from lst.evals.evaluation_folder import EvaluationFolder, evaluation_id

    checkpoint = open_checkpoint(source, data=options["data"], device=options["device"], dtype=options["dtype"])
    dataset = utterance_dataset(checkpoint.dataset, options["test"])
    words = options["words"] or checkpoint.config.data.pair_words
    stated = {name: value for name, value in options.items() if name not in WHERE} | {"words": words}
    decisive = checkpoint.decisive | {"task": task, "test": dataset.data_id, **stated}
    out = Path(options["out"]) if options["out"] else default_out(source, f"{task}-{evaluation_id(decisive)}")
    return checkpoint, dataset, EvaluationFolder(out, decisive, shard=options["shard"]), words


def in_parts(
    utterances: Sequence[Utterance], size: int, make: Callable[[Sequence[Utterance], int], list[dict[str, Any]]]
) -> tuple[list[int], Callable[[int], list[dict[str, Any]]]]:
    """The utterances in parts of `size`: how many each has, and what computes one by its number. `make` gets the part and the
    number of its first utterance."""
    parts = [utterances[first : first + size] for first in range(0, len(utterances), size)]
    return [len(part) for part in parts], lambda number: make(parts[number], number * size)
