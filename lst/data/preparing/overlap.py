"""What the held-out documents share with training: speakers, books, and n-grams of words in their texts (contamination).

A held-out word is covered if it lies in a run of n words (13 by default) that also stands in a training text, spoken or
written; a held-out document is hit if it has such a run. Words are compared in lower case without punctuation. Texts of
fewer than n words have no run and are counted apart. Story items are looked at as a whole, prompt and right ending.

Only the held-out runs are kept, as 64-bit hashes; training is streamed. A held-out side of more than SAMPLE_BYTES of text is
measured on the documents whose ids have the lowest hashes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lst.data.preparing.splits import rank
from lst.data.preparing.text_training import TextSample
from lst.data.shard_files import table_batches

OVERLAP = "overlap.json"
NGRAM = 13
SAMPLE_BYTES = 1 << 24  # held-out text looked at, by table
KEPT_WORDS = 1 << 18  # hashes of words that are remembered
_WORD = re.compile(r"\w+(?:['’]\w+)*")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd: the golden ratio's 64 bits

Hashes = NDArray[np.uint64]


def measure_overlap(folder: Path, manifest: dict[str, Any], ngram: int = NGRAM) -> dict[str, Any]:
    """The overlap table of a prepared data set, as plain values."""
    hasher = _Hasher(ngram)
    samples = {name: TextSample(SAMPLE_BYTES) for name in manifest["rows"]}
    names = {kind: {"train": _Names(), "heldout": _Names()} for kind in ("speaker", "book")}
    for table, rows in _rows(folder, manifest):
        _note_names(names, rows)
        for name, text, split in zip(*(rows[c].to_pylist() for c in ("id", "text", "split")), strict=True):
            if split == "heldout":
                samples[table].add(name, text)
    documents = {table: [hasher.runs([text])[0] for _, text in sample.items()] for table, sample in samples.items()}
    wanted = np.unique(np.concatenate([np.empty(0, np.uint64), *(runs for found in documents.values() for runs in found)]))
    seen = np.zeros(len(wanted), bool)
    for _, rows in _rows(folder, manifest):
        if len(wanted):
            texts = [t for t, split in zip(rows["text"].to_pylist(), rows["split"].to_pylist(), strict=True) if split == "train"]
            runs = np.concatenate([np.empty(0, np.uint64), *hasher.runs(texts)])
            places = np.minimum(np.searchsorted(wanted, runs), len(wanted) - 1)
            seen[places[wanted[places] == runs]] = True
    return {
        "ngram": ngram,
        **{f"{kind}s": _shared(sides) for kind, sides in names.items()},
        "text": {
            table: _covered(documents[table], wanted[seen], ngram, hasher.lengths(samples[table]), samples[table].whole)
            for table in documents
        },
    }


def describe_overlap(overlap: dict[str, Any]) -> str:
    """The table as lines for people."""
    n = overlap["ngram"]
    lines = ["overlap of what is held out with training:"]
    for kind in ("speakers", "books"):
        found = overlap[kind]
        shared = f"{found['shared']:,} of {found['heldout']:,} held-out {kind} are in training too"
        lines.append(f"  {kind:<9} {shared}" + (f" ({found['documents_shared']:,} documents)" if found["shared"] else ""))
    for table, found in overlap["text"].items():
        sample = "" if found["whole"] else " (a sample)"
        hit = f"{found['documents_hit']:,} of {found['documents']:,} held-out documents{sample} share {n} words in a row"
        lines.append(f"  {table:<9} {hit}; they cover {found['share_of_words_covered']:.2%} of the words")
        if found["too_short"]:
            lines[-1] += f"; {found['too_short']:,} are shorter"
    return "\n".join(lines)


@dataclass
class _Names:
    """Names on one side, and how many documents each has. Memory grows with the number of names."""

    documents: dict[str, int] = field(default_factory=dict)

    def add(self, names: Sequence[str]) -> None:
        for name in names:
            if name:
                self.documents[name] = self.documents.get(name, 0) + 1


def _rows(folder: Path, manifest: dict[str, Any]) -> Iterator[tuple[str, pa.Table]]:
    """(table, batch with id, book, split, text and speaker if there is one); story items count as held out."""
    for table in manifest["rows"]:
        if table == "stories":
            for rows in table_batches(folder, manifest, table, ["id", "book", "speaker", "prompt", "right"]):
                texts = [f"{a} {b}" for a, b in zip(rows["prompt"].to_pylist(), rows["right"].to_pylist(), strict=True)]
                rows = rows.append_column("text", pa.array(texts, pa.string()))
                yield table, rows.append_column("split", pa.array(["heldout"] * rows.num_rows, pa.string()))
            continue
        columns = ["id", "book", "split", "text", *(["speaker"] if table == "speech" else [])]
        for rows in table_batches(folder, manifest, table, columns):
            yield table, rows


def _note_names(names: dict[str, dict[str, _Names]], rows: pa.Table) -> None:
    splits = rows["split"].to_pylist()
    for kind, sides in names.items():
        if kind in rows.schema.names:
            values = rows[kind].to_pylist()
            for side, found in sides.items():
                found.add([value for value, split in zip(values, splits, strict=True) if split == side])


def _shared(sides: dict[str, _Names]) -> dict[str, Any]:
    held, train = sides["heldout"].documents, sides["train"].documents
    shared = [name for name in held if name in train]
    return {
        "train": len(train),
        "heldout": len(held),
        "shared": len(shared),
        "documents_shared": sum(held[name] for name in shared),
    }


def _covered(documents: list[Hashes], seen: Hashes, ngram: int, lengths: list[int], whole: bool) -> dict[str, Any]:
    hit, covered = 0, 0
    for runs, words in zip(documents, lengths, strict=True):
        starts = np.flatnonzero(np.isin(runs, seen))
        hit += len(starts) > 0
        steps = np.zeros(words + 1, np.int64)
        np.add.at(steps, starts, 1)
        np.add.at(steps, starts + ngram, -1)
        covered += int((np.cumsum(steps) > 0).sum())
    return {
        "documents": len(documents),
        "documents_hit": hit,
        "too_short": sum(words < ngram for words in lengths),
        "words": sum(lengths),
        "words_covered": covered,
        "share_of_words_covered": covered / sum(lengths) if sum(lengths) else 0.0,
        "whole": whole,
    }


class _Hasher:
    """Runs of n words as 64-bit hashes: a polynomial in the words' own hashes."""

    def __init__(self, ngram: int) -> None:
        self._ngram = ngram
        self._words: dict[str, int] = {}

    def runs(self, texts: Sequence[str]) -> list[Hashes]:
        """For each text the hash of each run, by its first word; empty for a text of fewer than n words."""
        found = [_WORD.findall(text.casefold()) for text in texts]
        flat = np.fromiter((self._hash(word) for words in found for word in words), np.uint64)
        hashes = np.zeros(max(len(flat) - self._ngram + 1, 0), np.uint64)
        for place in range(self._ngram):
            hashes = hashes * _FACTOR + flat[place : place + len(hashes)]
        ends = np.cumsum([len(words) for words in found])
        return [
            hashes[end - len(words) : max(end - self._ngram + 1, end - len(words))]
            for words, end in zip(found, ends, strict=True)
        ]

    def lengths(self, sample: TextSample) -> list[int]:
        """Words of each text."""
        return [len(_WORD.findall(text.casefold())) for _, text in sample.items()]

    def _hash(self, word: str) -> int:
        known = self._words.get(word)
        if known is None:
            known = rank(word)
            if len(self._words) < KEPT_WORDS:
                self._words[word] = known
        return known


def write_overlap(folder: Path, overlap: dict[str, Any]) -> None:
    (folder / OVERLAP).write_text(json.dumps(overlap, indent=1, sort_keys=True) + "\n")
