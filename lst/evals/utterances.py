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


def open_evaluation(task: str, source: Path, options: Mapping[str, Any]) -> tuple[Checkpoint, Dataset, EvaluationFolder, int]:
    """The checkpoint, the data set of the utterances, the folder of the results, and the most words of an utterance.

    Raises LstError where the checkpoint, its data or the folder cannot be used.
    """
    from lst.evals.checkpoints import default_out, open_checkpoint, utterance_dataset
    from lst.evals.evaluation_folder import EvaluationFolder, evaluation_id

    checkpoint = open_checkpoint(source, data=options["data"], device=options["device"], dtype=options["dtype"])
    dataset = utterance_dataset(checkpoint, options["test"])
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
