"""What the planner needs of a data set: sizes by modality and split, patch lengths, units a document, epochs at a budget.

    summary = summarise(open_dataset("data/mine"))      # plain values, as in statistics.json
    budgets = at_budget(dataset, summary, tokens=1e9)   # what each arm would see

One streamed pass; all counts are exact. Patch lengths and units are those of whole documents in speech alone; interleaving cuts
speech into spans, where patches begin anew: `at_budget` counts the very sequences of the stream (lst/data/statistics.py).
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lst.config import Arm, DataConfig, arm_config
from lst.data.quality.figures import refusals
from lst.data.quality.scan import Piece, pieces
from lst.data.quality.tally import find_silences
from lst.data.shards import Dataset
from lst.data.statistics import count_sequences
from lst.data.vocab import FRAMES_PER_SECOND
from lst.errors import ConfigError
from lst.flops import SequenceCounts
from lst.records import write_atomically

STATISTICS = "statistics.json"
SUMMARY_VERSION = 1
SPEECH_COLUMNS = ("split", "speech_tokens", "word_start", "word_end", "word_text_tokens")
PATCH_SIZES = (2, 3, 4, 5, 6, 8)
SILENCE_RULES = ("separate", "previous", "next")
PATCHINGS = (
    "token",
    *(f"static({p})" for p in PATCH_SIZES),
    "words",
    "silences",
    *(f"aligned, silence {r}" for r in SILENCE_RULES),
)
"""The rows of the table of patch lengths, in their order: a file of JSON keeps none."""
COUNTED_UNITS = 1 << 17  # in sequences of each kind and arm, evenly spread over the corpus
DEFAULT_ARMS = (Arm.BASELINE, Arm.LST_STATIC, Arm.LST_ALIGNED)


@dataclass
class SpeechSizes:
    """Counts of one split's spoken documents."""

    documents: int = 0
    speech_tokens: int = 0
    documents_with_words: int = 0
    tokens_with_words: int = 0  # of documents that have words
    words: int = 0
    silences: int = 0
    silence_tokens: int = 0
    leading_silences: int = 0
    trailing_silences: int = 0
    text_tokens: int = 0  # pieces of the words
    static_patches: dict[str, int] = field(default_factory=lambda: {str(p): 0 for p in PATCH_SIZES})

    def add(self, piece: Piece) -> None:
        tokens = piece.lists("speech_tokens")
        self.documents += len(piece)
        self.speech_tokens += len(tokens.values)
        self.text_tokens += len(piece.lists("word_text_tokens").values)
        for size in PATCH_SIZES:
            self.static_patches[str(size)] += int((-(-tokens.lengths // size)).sum())
        aligned = piece.take((piece.lists("word_start").lengths > 0) & (tokens.lengths > 0))
        if not len(aligned):
            return
        tokens, starts = aligned.lists("speech_tokens"), aligned.lists("word_start")
        silences = find_silences(tokens, starts, aligned.lists("word_end"))
        self.documents_with_words += len(aligned)
        self.tokens_with_words += len(tokens.values)
        self.words += len(starts.values)
        self.silences += len(silences.lengths)
        self.silence_tokens += int(silences.lengths.sum())
        self.leading_silences += silences.leading
        self.trailing_silences += silences.trailing

    def aligned_patches(self, rule: str) -> int:
        """Patches of the documents that have words (lst.patching.aligned_patches), by the rule for silence."""
        return (
            self.words
            + {
                "separate": self.silences,
                "previous": self.leading_silences,
                "next": self.trailing_silences,
            }[rule]
        )

    def plain(self) -> dict[str, Any]:
        return {**vars(self), "seconds": self.speech_tokens / FRAMES_PER_SECOND, "patching": self._patching()}

    def _patching(self) -> dict[str, Any]:
        """Mean patch length and units a document, by patching."""

        def row(tokens: int, patches: int, documents: int) -> dict[str, float]:
            return {"mean_patch_length": tokens / max(1, patches), "units_per_document": patches / max(1, documents)}

        found = {"token": row(self.speech_tokens, self.speech_tokens, self.documents)}
        found |= {f"static({p})": row(self.speech_tokens, n, self.documents) for p, n in self.static_patches.items()}
        if self.documents_with_words:
            spoken = self.tokens_with_words - self.silence_tokens
            found["words"] = row(spoken, self.words, self.documents_with_words)
            found["silences"] = row(self.silence_tokens, self.silences, self.documents_with_words)
            for rule in SILENCE_RULES:
                patches = self.aligned_patches(rule)
                found[f"aligned, silence {rule}"] = row(self.tokens_with_words, patches, self.documents_with_words)
        return found


def summarise(dataset: Dataset) -> dict[str, Any]:
    """The content of statistics.json, from one pass over both tables. Raises DataError on a damaged file."""
    speech = {split: SpeechSizes() for split in ("train", "heldout")}
    text = {split: {"documents": 0, "text_tokens": 0} for split in speech}
    for piece in pieces(dataset, "speech", SPEECH_COLUMNS, bound_by="speech_tokens"):
        for split, part in _by_split(piece):
            speech[split].add(part)
    for piece in pieces(dataset, "text", ("split", "text_tokens"), bound_by="text_tokens"):
        for split, part in _by_split(piece):
            text[split]["documents"] += len(part)
            text[split]["text_tokens"] += len(part.lists("text_tokens").values)
    return {
        "summary_version": SUMMARY_VERSION,
        "data_id": dataset.data_id,
        "tokens_per_second": FRAMES_PER_SECOND,
        "speech": {split: sizes.plain() for split, sizes in speech.items()},
        "text": text,
        "refused": refusals(dataset.manifest),
    }


def _by_split(piece: Piece) -> list[tuple[str, Piece]]:
    names = np.array(piece.strings("split"), dtype=object)
    return [(split, piece.take(names == split)) for split in ("train", "heldout") if (names == split).any()]


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Write statistics.json into a data set's folder, whole or not at all."""
    write_atomically(folder / STATISTICS, (json.dumps(summary, indent=1, sort_keys=True) + "\n").encode())


def summary_of(dataset: Dataset) -> dict[str, Any]:
    """The data set's statistics.json where it has one, whole by its checksum and of this version; else the same, counted now."""
    file = dataset.path / STATISTICS
    if file.is_file():
        content = file.read_bytes()
        if hashlib.sha256(content).hexdigest() == dataset.manifest["files"].get(STATISTICS):
            stored: dict[str, Any] = json.loads(content)
            if stored["summary_version"] == SUMMARY_VERSION:
                return stored
    return summarise(dataset)  # none, or one that is damaged or of other data: the tables know


@dataclass(frozen=True)
class Budget:
    """What a run is given: `tokens` (all of them, markers included), or `steps` batches of `batch` sequences."""

    tokens: float | None = None
    steps: int | None = None
    batch: int | None = None
    seq_len_units: int = 4096
    patch_size: int = 4
    arms: tuple[Arm, ...] = DEFAULT_ARMS

    @property
    def given(self) -> bool:
        return (self.tokens, self.steps, self.batch) != (None, None, None)

    def sequences(self, tokens_each: float) -> float:
        """How many sequences of `tokens_each` tokens the budget holds."""
        if self.tokens is not None:
            return self.tokens / tokens_each
        return float((self.steps or 0) * (self.batch or 0))

    def validate(self) -> None:
        """Raises ConfigError."""
        for name in ("tokens", "steps", "batch", "seq_len_units", "patch_size"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name}={value} must be positive.")
        by_steps = (self.steps is not None, self.batch is not None)
        if self.given and by_steps != ((False, False) if self.tokens else (True, True)):
            raise ConfigError("a budget is either tokens=NUMBER, or steps=NUMBER batch=NUMBER (sequences of a step).")


def at_budget(dataset: Dataset, summary: dict[str, Any], budget: Budget) -> list[dict[str, Any]]:
    """A row an arm: units, tokens by modality, mean patch length, and epochs over the unique tokens of the training split.

    An epoch of speech is as many speech tokens kept in sequences as the split has (plan.csv's speech_epochs). Raises DataError
    where the data has no speech or no text to train on.
    """
    return [_arm_row(dataset, summary, budget, arm) for arm in budget.arms]


def _arm_row(dataset: Dataset, summary: dict[str, Any], budget: Budget, arm: Arm) -> dict[str, Any]:
    spoken, written = (_mean_sequence(dataset, budget, arm, share) for share in (1.0, 0.0))
    share = DataConfig().interleaved_token_share
    # Of sequences, so that `share` of the tokens are interleaved (the formula of lst.data.statistics.solve_mixture).
    interleaved = share * written.tokens / (share * written.tokens + (1 - share) * spoken.tokens)
    mean = spoken.scaled(interleaved) + written.scaled(1 - interleaved)
    sequences = budget.sequences(mean.tokens)
    total = mean.scaled(sequences)
    return {
        "arm": arm.value,
        "sequences": sequences,
        "units": total.units,
        "tokens": total.tokens,
        "speech_tokens": total.speech_tokens,
        "text_tokens": total.text_tokens,
        "mean_patch_length": mean.mean_patch_length,
        "speech_epochs": total.speech_tokens / max(1, summary["speech"]["train"]["speech_tokens"]),
        "text_epochs": total.text_only_tokens / max(1, summary["text"]["train"]["text_tokens"]),
    }


def _mean_sequence(dataset: Dataset, budget: Budget, arm: Arm, interleaved: float) -> SequenceCounts:
    """The mean sequence of `arm`, interleaved (1.0) or of text alone (0.0); of the run only its data and patching matter here."""
    sections: dict[str, Any] = {
        "model": {"text_vocab": dataset.text_vocab, "speech_vocab": dataset.speech_vocab},
        "data": {
            "seq_len_units": budget.seq_len_units,
            "interleaved_sequence_share_static": interleaved,
            "interleaved_sequence_share_aligned": interleaved,
        },
        "patching": {"patch_size": budget.patch_size},
        "train": {"steps": max(8, COUNTED_UNITS // budget.seq_len_units), "batch_sequences": 1},
    }
    return count_sequences(dataset, arm_config(arm.value, **sections)).mean()
