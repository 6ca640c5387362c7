"""Rows made by array operations equal those made span by span: all arms, options, random documents; draws equal numpy's."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lst.config import Arm, DataConfig, Format, Patching, PatchingConfig, RunConfig
from lst.data import statistics
from lst.data.columns import Chunk, Place
from lst.data.draws import Draws
from lst.data.interleave import SpokenDocument, SpokenDocuments, interleaved_spans
from lst.data.pack import PackedRow, encode_document
from lst.data.row_builder import RowBuilder
from lst.data.shards import open_dataset
from lst.data.speech_bpe import run_pieces
from lst.data.stream import Stream
from lst.data.vocab import Vocabulary
from tests.data.sharded import without_words, write_shards
from tests.data.slow_stream import SlowStream, document_spans, interleave, pack_units
from tests.data.test_stream import run_config as planned_config

VOCABULARY = Vocabulary(text=50, speech=9)
CHARACTERS = np.arange(50) % 4  # of each text piece; some have none


class NoDataset:
    """Stands for a data set of which only the pieces' characters are asked."""

    class tokenizer:
        characters = CHARACTERS


def run_config(*arguments: Any, **sections: Any) -> RunConfig:
    """A planned run whose shares of formats are solved on a few sequences: any shares do where rows are compared one by one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "MIXTURE_SAMPLE", (32, 32))
        patch.setattr(statistics, "_mean_tokens", statistics._mean_tokens.__wrapped__)  # what is found so is not remembered
        return planned_config(*arguments, **sections)


def equal_rows(one: PackedRow, two: PackedRow) -> None:
    for field in dataclasses.fields(PackedRow):
        a, b = getattr(one, field.name), getattr(two, field.name)
        assert np.array_equal(a, b), field.name
        assert getattr(a, "dtype", None) == getattr(b, "dtype", None), field.name


@st.composite
def spoken_documents(draw: Any) -> dict[str, Any]:
    """Words of 1 to 9 frames with up to four pieces (none, too), silences between them or not; perhaps times of pieces."""
    frame = draw(st.integers(0, 3))
    starts, ends, lengths = [], [], []
    for _ in range(draw(st.integers(1, 14))):
        starts.append(frame)
        ends.append(frame + draw(st.integers(0, 8)))
        lengths.append(draw(st.integers(0, 4)))
        frame = ends[-1] + 1 + draw(st.sampled_from([0, 0, 1, 4]))
    frames = max(ends[-1] + 1, frame - draw(st.integers(0, 4)))
    row: dict[str, Any] = {"words": ["w"] * len(starts), "word_start": starts, "word_end": ends, "word_text_lengths": lengths}
    row["speech_tokens"] = draw(st.lists(st.integers(0, 8), min_size=frames, max_size=frames))
    row["word_text_tokens"] = draw(st.lists(st.integers(0, 49), min_size=sum(lengths), max_size=sum(lengths)))
    return row


def chunk_of(rows: list[dict[str, Any]]) -> Chunk:
    ids, frames = pa.list_(pa.uint16()), pa.list_(pa.uint32())
    types = {"speech_tokens": ids, "word_start": frames, "word_end": frames, "word_text_tokens": ids, "word_text_lengths": frames}
    types |= {name: pa.list_(pa.int32()) for name in ("piece_start", "piece_end") if name in rows[0]}
    return Chunk(pa.record_batch({name: pa.array([row[name] for row in rows], of) for name, of in types.items()}))


def with_piece_times(row: dict[str, Any]) -> dict[str, Any]:
    """The first piece of a word has all its frames but one for each later piece, as far as they go."""
    starts, ends = [], []
    for first, last, pieces in zip(row["word_start"], row["word_end"], row["word_text_lengths"], strict=True):
        for j in range(pieces):
            starts.append(first if j == 0 else max(first, last - (pieces - 1 - j)) if last - first >= pieces else last + 1)
            ends.append(last if pieces == 1 or last - first < pieces else last - (pieces - 1) if j == 0 else starts[-1])
    return row | {"piece_start": starts, "piece_end": ends}


@settings(max_examples=150)
@given(
    rows=st.lists(spoken_documents(), min_size=1, max_size=4),
    kind=st.sampled_from([Patching.TOKEN, Patching.STATIC, Patching.ALIGNED]),
    patch_size=st.integers(1, 5),
    rule=st.sampled_from([("separate", "previous"), ("merged", "previous"), ("merged", "next")]),
    unit=st.sampled_from(["word", "bpe", "times"]),
    spans=st.tuples(st.integers(1, 3), st.integers(0, 3)),
    ratio=st.sampled_from([0.2, 0.5, 1.0, 2.0]),
    first=st.sampled_from(["random", "text", "speech"]),
    limit=st.integers(1, 150),
    seed=st.integers(0, 9),
)
def test_random_documents_become_the_same_row(rows, kind, patch_size, rule, unit, spans, ratio, first, limit, seed) -> None:
    options = PatchingConfig(
        kind=kind, patch_size=patch_size, silence=rule[0], merge_side=rule[1], aligned_unit="word" if unit == "word" else "bpe"
    )
    data = DataConfig(text_span_words=(spans[0], sum(spans)), speech_per_text_words=ratio, first_modality=first)
    rows = [with_piece_times(row) for row in rows] if unit == "times" else rows
    rows = rows * (1 + limit // 4)  # enough of them to fill the row
    slow_generator, draws = np.random.Generator(np.random.Philox(key=seed)), None
    documents = [
        interleave(row, data, slow_generator, spans=document_spans(row, options.aligned_unit, CHARACTERS)) for row in rows
    ]
    encoded = (encode_document(d, VOCABULARY, kind, patch_size, ends=True, silence=options.silence_rule) for d in documents)
    expected = PackedRow.pack(pack_units(encoded, limit), VOCABULARY, interleaved=True)
    spoken = SpokenDocuments(NoDataset(), options.aligned_unit)  # type: ignore[arg-type]
    builder = RowBuilder(vocabulary=VOCABULARY, kind=kind, patching=options, units=limit, spoken=spoken)
    draws, chunk = Draws(np.random.Generator(np.random.Philox(key=seed))), chunk_of(rows)
    for number in range(len(rows)):
        document = SpokenDocument(Place(chunk, number))
        for speech, begin, end in interleaved_spans(document.words, data, draws):
            if speech:
                builder.speech(document, begin, end)
            else:
                builder.text(document.text(begin, end))
            if builder.full:
                break
        builder.end_document()
        if builder.full:
            break
    assert builder.full
    equal_rows(builder.row(format=Format.INTERLEAVED), expected)


OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("baseline", {}),
    ("bpe", {}),
    ("lst_static", {"patch_size": 3}),
    ("lst_aligned", {}),
    ("lst_aligned", {"silence": "merged"}),
    ("lst_aligned", {"silence": "merged", "merge_side": "next", "aligned_unit": "bpe"}),
    ("lst_mixed", {}),
    ("lst_mixed", {"draw": "step"}),
    ("lst_curriculum", {"aligned_unit": "bpe"}),
]


@pytest.mark.parametrize(("arm", "patching"), OPTIONS)
@pytest.mark.parametrize("form", ["whole", "shards"])
def test_the_stream_is_the_slow_one(toy_dataset: Path, tmp_path: Path, arm: str, patching: dict[str, Any], form: str) -> None:
    """Whatever the cut into shards and record batches: the same rows, and so the same batch hashes."""
    dataset = open_dataset(toy_dataset if form == "whole" else write_shards(toy_dataset, tmp_path / "d"))
    config = run_config(dataset, arm, patching=patching, train={"steps": 40, "batch_sequences": 4, "seed": 3})
    stream = Stream(dataset, config)
    slow = SlowStream(dataset, config, run_pieces(config, dataset))
    for index in [*range(0, 24), 100, 159]:
        equal_rows(stream.row(index), slow.row(stream._outline(index)))


@pytest.mark.parametrize("arm", ["baseline", "bpe", "lst_static", "lst_aligned", "lst_mixed"])
def test_sequences_of_every_format_are_the_slow_ones(toy_dataset: Path, tmp_path: Path, arm: str) -> None:
    """Some documents have no words: they are speech alone, and under aligned patches nothing."""
    dataset = open_dataset(without_words(write_shards(toy_dataset, tmp_path / "d"), every=3))
    mixture = {"interleaved": 0.2, "speech": 0.2, "asr": 0.2, "tts": 0.2, "text": 0.2}
    data = {"seq_len_units": 64, "mixture": mixture, "pair_words": 7}
    config = run_config(dataset, arm, data=data, train={"steps": 40, "batch_sequences": 4, "seed": 3})
    stream, seen = Stream(dataset, config), set()
    slow = SlowStream(dataset, config, run_pieces(config, dataset))
    for index in range(48):
        outline = stream._outline(index)
        seen.add(outline[1])
        equal_rows(stream.row(index), slow.row(outline))
    assert seen == set(Format)


@given(st.integers(0, 2**32), st.lists(st.tuples(st.integers(1, 40), st.integers(0, 40)), max_size=80))
def test_draws_are_those_of_numpy(seed: int, ranges: list[tuple[int, int]]) -> None:
    """A range of one number is a coin here."""
    generator, draws = np.random.Generator(np.random.Philox(key=seed)), Draws(np.random.Generator(np.random.Philox(key=seed)))
    for low, more in ranges:
        if more == 0:
            assert draws.coin() == (generator.random() < 0.5)
            assert draws.between(low, low) == low
        else:
            assert draws.between(low, low + more) == generator.integers(low, low + more, endpoint=True)


def test_draws_from_a_range_that_rejects_often_are_those_of_numpy() -> None:
    """Of 3 x 2^30 numbers, a quarter of the words is refused."""
    generator, draws = np.random.Generator(np.random.Philox(key=1)), Draws(np.random.Generator(np.random.Philox(key=1)))
    high = 3 * 2**30 - 1
    assert [draws.between(0, high) for _ in range(500)] == [generator.integers(0, high, endpoint=True) for _ in range(500)]


def test_arms_are_all_compared() -> None:
    assert {arm for arm, _ in OPTIONS} == {arm.value for arm in Arm}
