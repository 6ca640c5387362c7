"""Small data sets with known faults, for the checks' tests. Speech here is a rule, not speech."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lst.data.preparing.shard_writer import write_dataset, write_manifest
from lst.data.shards import MANIFEST, Dataset

VOCABULARY = 40
SILENCE_TOKENS = (36, 37, 38, 39)
WORDS = ("a", "to", "the", "moon", "house", "garden", "evening", "mountain")
Row = dict[str, Any]


def sound_rows(documents: int = 60, *, seed: int = 3) -> list[Row]:
    """Documents that every check should call ok: each word a fixed walk over tokens 0..35, two frames a letter, some repeated."""
    generator = np.random.default_rng(seed)
    return [_document(number, generator) for number in range(documents)]


def _document(number: int, generator: np.random.Generator) -> Row:
    tokens: list[int] = []
    words, starts, ends = [], [], []
    for _ in range(40):
        if generator.random() < 0.3:
            tokens += generator.choice(SILENCE_TOKENS, generator.integers(1, 8)).tolist()
        place = int(generator.integers(len(WORDS)))
        frames = 2 * len(WORDS[place])
        starts.append(len(tokens))
        walk = [(9 * place + j) % 36 for j in range(frames)]
        tokens += [walk[max(0, j - 1)] if generator.random() < 0.1 else walk[j] for j in range(frames)]
        ends.append(len(tokens) - 1)
        words.append(WORDS[place])
    return {
        "id": f"doc-{number}",
        "speaker": f"voice {number % 3}",
        "book": f"book {number % 6}",
        "split": "heldout" if number % 6 == 0 else "train",
        "text": " ".join(words),
        "speech_tokens": tokens,
        "words": words,
        "word_start": starts,
        "word_end": ends,
    }


def made_dataset(folder: Path, rows: list[Row], tokenizer: Path, *, compress: bool = False, **manifest: Any) -> Dataset:
    """`rows` as a prepared data set in `folder`; `manifest` are keys that its manifest holds besides."""
    texts = [{key: row[key] for key in ("id", "book", "split", "text")} for row in rows]
    tables = {"speech": pa.Table.from_pylist(rows), "text": pa.Table.from_pylist(texts)}
    write_dataset(folder, tables, tokenizer=tokenizer, speech_vocab=VOCABULARY, compress=compress)
    write_manifest(folder, json.loads((folder / MANIFEST).read_text()) | manifest)
    return Dataset(folder)


def changed(rows: list[Row], change: Callable[[Row], Row]) -> list[Row]:
    return [change(dict(row)) for row in rows]


def in_shards(dataset: Dataset, folder: Path, rows_a_batch: int = 7) -> Dataset:
    """The same data as shards of several record batches, one split each."""
    folder.mkdir()
    shutil.copyfile(dataset.path / "tokenizer.model", folder / "tokenizer.model")
    shards: dict[str, list[dict[str, Any]]] = {"speech": [], "text": []}
    for name, of in shards.items():
        table = dataset.speech if name == "speech" else dataset.text
        for split in ("train", "heldout"):
            part = table.take(pa.array(dataset.rows(name, split)))
            file = f"{name}-{len(of):05}.arrow"
            with pa.OSFile(str(folder / file), "wb") as sink, pa.ipc.new_file(sink, part.schema) as writer:
                writer.write_table(part, max_chunksize=rows_a_batch)
            of.append({"file": file, "split": split, "rows": part.num_rows, "tokens": 0})
    write_manifest(folder, json.loads((dataset.path / MANIFEST).read_text()) | {"shards": shards})
    return Dataset(folder)
