"""A batch is the same for 1, 2, 4 and 8 ranks: in whole and sharded data sets, with every format, and after a restart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lst.config import Format, RunConfig, arm_config
from lst.data.pack import batch_hash
from lst.data.shards import Dataset, open_dataset
from lst.data.stream import Stream
from tests.data.sharded import without_words, write_shards

SIZES = (1, 2, 4, 8)
STEPS = 6
FORMATS = {"interleaved": 0.2, "speech": 0.2, "asr": 0.2, "tts": 0.2, "text": 0.2}


def joined(stream: Stream, step: int, size: int) -> tuple[list[bytes], str]:
    """The rows of all ranks, sorted, and the hash that they log together."""
    parts = [stream.batch(step, rank=rank, size=size) for rank in range(size)]
    rows = [row.ids.tobytes() + row.unit.tobytes() + row.target.tobytes() for part in parts for row in part.rows]
    assert max(len(part.rows) for part in parts) - min(len(part.rows) for part in parts) <= 1
    return sorted(rows), batch_hash(sum(part.digest for part in parts))


def config_of(dataset: Dataset, arm: str, mixture: dict[str, float]) -> RunConfig:
    """Shares of sequences are given, not solved."""
    shares = [mixture.get(name.value, 0.0) for name in Format]
    data: dict[str, Any] = {"seq_len_units": 64, "pair_words": 7}
    if mixture:
        data |= {"mixture": mixture, "mixture_sequences_static": shares, "mixture_sequences_aligned": shares}
    model = {"text_vocab": dataset.text_vocab, "speech_vocab": dataset.speech_vocab}
    return arm_config(arm, model=model, data=data, train={"steps": STEPS, "batch_sequences": 16, "final_batch_sequences": 11})


@pytest.mark.parametrize("arm", ["baseline", "lst_static", "lst_mixed", "lst_curriculum"])
@pytest.mark.parametrize("mixture", [{}, FORMATS], ids=["third", "formats"])
def test_every_batch_is_the_same_for_any_number_of_ranks(toy_dataset: Path, tmp_path: Path, arm: str, mixture: dict) -> None:
    """Rows and hash; the last batch of 11 does not divide evenly."""
    sharded = without_words(write_shards(toy_dataset, tmp_path / "d"), every=3)
    recut = without_words(write_shards(toy_dataset, tmp_path / "e", batch_rows=3), every=3)
    dataset = open_dataset(sharded)
    config = config_of(dataset, arm, mixture)
    for step in range(STEPS):
        alone = joined(Stream(dataset, config), step, 1)
        assert alone[1] == Stream(dataset, config).batch(step).hash
        assert len(alone[0]) == config.train.sequences_at(step)
        for size in SIZES[1:]:
            assert joined(Stream(dataset, config), step, size) == alone
        assert joined(Stream(open_dataset(recut), config), step, 4) == alone


def test_a_restart_with_another_number_of_ranks_goes_on_with_the_same_batches(toy_dataset: Path, tmp_path: Path) -> None:
    """Steps 0 and 1 by 8 ranks, 2 and 3 by 2, the rest by 4, each time with new streams: as one process made them at one go."""
    dataset = open_dataset(write_shards(toy_dataset, tmp_path / "d"))
    config = config_of(dataset, "lst_mixed", FORMATS)
    stream = Stream(dataset, config)
    alone = [joined(stream, step, 1) for step in range(STEPS)]
    assert len({hashed for _, hashed in alone}) == STEPS
    restarted = []
    for size, steps in ((8, (0, 1)), (2, (2, 3)), (4, (4, 5))):
        fresh = Stream(open_dataset(tmp_path / "d"), config)
        restarted += [joined(fresh, step, size) for step in steps]
    assert restarted == alone
