"""Unique tokens by rule against tokens counted one by one: in a data set where each token of the split has an id of its own."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lst.config import RunConfig, arm_config
from lst.data.repetition import Repetition, unique_tokens
from lst.data.shards import MANIFEST, Dataset
from lst.data.stream import Stream
from lst.data.vocab import SPEECH
from lst.flops import SequenceCounts
from tests.data.sharded import write_arrow

WORDS, FRAMES = 9, 8  # of a document: words, and frames of each
DOCUMENTS = 500  # 36,000 speech tokens


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("unique")
    spoken, written = [], []
    for number in range(DOCUMENTS):
        first = number * WORDS * FRAMES
        starts = np.arange(WORDS) * FRAMES
        spoken.append(
            {
                "speech_tokens": list(range(first, first + WORDS * FRAMES)),
                "word_start": starts.tolist(),
                "word_end": (starts + FRAMES - 1).tolist(),
                "word_text_tokens": [3] * WORDS,
                "word_text_lengths": [1] * WORDS,
            }
        )
        written.append({"text_tokens": list(range(10 + number * 60, 10 + number * 60 + 60))})
    ids, frames = pa.list_(pa.uint16()), pa.list_(pa.uint32())
    schemas = {
        "speech": {"speech_tokens": ids, "word_start": frames, "word_end": frames, "word_text_tokens": ids,
                   "word_text_lengths": frames},
        "text": {"text_tokens": ids},
    }  # fmt: skip
    shards = {}
    for name, rows in (("speech", spoken), ("text", written)):
        write_arrow(folder / f"{name}.arrow", pa.Table.from_pylist(rows, pa.schema(schemas[name])), 100)
        tokens = sum(len(row[f"{name}_tokens"]) for row in rows)
        shards[name] = [{"file": f"{name}.arrow", "split": "train", "rows": len(rows), "tokens": tokens}]
    manifest = {"format_version": 1, "data_id": "x", "text_vocab": 40_000, "speech_vocab": 36_000, "shards": shards}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return Dataset(folder)


def config_with(**data: Any) -> RunConfig:
    model = {"text_vocab": 40_000, "speech_vocab": 36_000}
    return arm_config("baseline", model=model, data={"seq_len_units": 64} | data, train={"steps": 400, "batch_sequences": 16})


ALL_SPEECH = {"mixture": {"speech": 0.4, "text": 0.6}}
ALL_SPEECH |= {key: [0, 0.4, 0, 0, 0.6] for key in ("mixture_sequences_static", "mixture_sequences_aligned")}


@pytest.mark.parametrize("data", [{}, {"speech_per_text_words": 1.0, "interleaved_token_share": 1 / 3}, ALL_SPEECH])
def test_unique_tokens_by_rule_are_those_counted_one_by_one(dataset: Dataset, data: dict[str, Any]) -> None:
    """Within 8% of the split, from the first steps to several epochs: what docs/stream.md says of the rule."""
    config = config_with(**data)
    stream, seen, counts = Stream(dataset, config), {"speech": set(), "text": set()}, SequenceCounts()
    checked = []
    for step in range(400):
        batch = stream.batch(step)
        counts += batch.counts
        for row in batch.rows:
            spoken = row.modality == SPEECH
            seen["speech"].update(row.ids[spoken].tolist())
            if row.format == "text":
                seen["text"].update(row.ids[(row.ids >= 10) & (row.ids < 40_000)].tolist())
        if step % 20 == 0:
            record = stream.repetition.record(dataclasses.asdict(counts))
            for name, available in (("speech", 36_000), ("text", 30_000)):
                assert record[f"unique_{name}_tokens"] == pytest.approx(len(seen[name]), abs=0.08 * available)
            checked.append(record["speech_epochs"])
    assert checked[0] < 0.1
    assert checked[-1] > 1.5


def test_the_rule_by_hand() -> None:
    """Of 1,000 tokens, of which a pass keeps half: 0, a quarter, a half, 0.75 and 0.875 after 0, 1/2, 1, 2 and 3 passes."""
    assert [unique_tokens(500 * n, 1000, 0.5) for n in (0, 0.5, 1, 2, 3)] == [0, 250, 500, 750, 875]
    assert [unique_tokens(seen, 1000, 1.0) for seen in (0, 500, 1000, 2000, 9000)] == [0, 469, 790, 988, 1000]
    assert unique_tokens(0, 0, 1.0) == 0


def test_epochs_are_seen_over_unique() -> None:
    config = config_with()
    record = Repetition.of(config.data, speech_tokens=200, text_tokens=0).record({"speech_tokens": 500, "text_only_tokens": 7})
    assert record["speech_epochs"] == 2.5
    assert record["unique_speech_tokens"] == round(200 * (1 - (2 / 3) ** 7 * (1 - 0.5 / 3)))
    assert (record["text_epochs"], record["unique_text_tokens"]) == (0.0, 0)
