"""Alignment noise: how far boundaries move, that they keep their order and their span; a document's errors are its own."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lst.config import Format, Patching, PatchingConfig, arm_config
from lst.data.boundary_noise import frame_moves, move_boundaries
from lst.data.heldout import heldout_documents
from lst.data.interleave import SpokenDocument, SpokenDocuments
from lst.data.row_builder import RowBuilder
from lst.data.shards import open_dataset
from lst.data.stream import Stream
from lst.data.vocab import Vocabulary
from lst.errors import ConfigError
from lst.patching import patch_span
from lst.plain import merge


def array(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def test_words_move_as_drawn() -> None:
    """Words at [2, 4] and [5, 7] of nine frames: their common boundary moves once, and the last one stops at the span's end."""
    moved = move_boundaries(array(2, 5), array(5, 8), (array(-1, 1), array(1, 3)), (array(0, 0), array(9, 9)))
    assert [m.tolist() for m in moved] == [[1, 6], [6, 9]]


def test_a_word_of_one_frame_keeps_a_frame() -> None:
    """[3, 3] with its start moved right and its end left."""
    first, after = move_boundaries(array(3), array(4), (array(1), array(-1)), (array(0), array(6)))
    assert (first.tolist(), after.tolist()) == ([4], [5])


@given(st.data(), st.lists(st.integers(1, 12), min_size=1, max_size=4), st.integers(0, 4))
def test_boundaries_keep_their_order_their_span_and_their_reach(data, spans, reach) -> None:
    """Units of several spans, a marker between two; touching ones still touch."""
    first, after, low, high, begin = [], [], [], [], 0
    for length in spans:
        cuts = sorted(data.draw(st.sets(st.integers(begin, begin + length), min_size=2)))
        words = [(a, b) for a, b in pairwise(cuts) if data.draw(st.booleans())]
        first += [a for a, _ in words]
        after += [b for _, b in words]
        low += [begin] * len(words)
        high += [begin + length] * len(words)
        begin += length + 1
    by = {place: data.draw(st.integers(-reach, reach)) for place in {*first, *after}}
    moves = array(*(by[a] for a in first)), array(*(by[b] for b in after))
    begins, ends = (m.tolist() for m in move_boundaries(array(*first), array(*after), moves, (array(*low), array(*high))))
    assert all(b < e for b, e in zip(begins, ends, strict=True))
    for (a, b), (begin_next, after_last) in zip(pairwise(first), zip(begins[1:], ends[:-1], strict=True), strict=True):
        assert begin_next >= after_last
        assert (begin_next == after_last) == (b == after[first.index(a)])
    for old, new in [*zip(first, begins, strict=True), *zip(after, ends, strict=True)]:
        assert abs(new - old) <= reach
    assert all(lo <= b and e <= hi for lo, b, e, hi in zip(low, begins, ends, high, strict=True))


@pytest.mark.parametrize(("noise", "mean"), [((20, 20), 0.5), ((40, 40), 1.0), ((20, 40), 0.75), ((0, 100), 1.25)])
def test_moves_have_the_size_that_is_asked_for_to_both_sides(noise, mean) -> None:
    moves = frame_moves(array(3, 9, 14), 20_000, noise)
    assert np.abs(moves).mean() == pytest.approx(mean, abs=0.02)
    assert moves.mean() == pytest.approx(0, abs=0.03)
    assert np.abs(moves).max() <= -(-noise[1] // 40)


def test_moves_follow_from_the_document_alone() -> None:
    starts = array(3, 9, 14)
    assert np.array_equal(frame_moves(starts.astype(np.int32), 20, (40, 40)), frame_moves(starts, 20, (40, 40)))
    assert not np.array_equal(frame_moves(starts + 1, 20, (40, 40)), frame_moves(starts, 20, (40, 40)))


def spoken(dataset, split="train"):
    documents = dataset.documents("speech", split)
    return [SpokenDocument(place) for place in documents.documents(range(documents.rows))]


@pytest.mark.parametrize("unit", ["word", "bpe"])
def test_the_streams_rows_are_cut_at_the_moved_boundaries(toy_dataset, unit) -> None:
    dataset = open_dataset(toy_dataset)
    patching = PatchingConfig(kind=Patching.ALIGNED, aligned_unit=unit, boundary_noise_ms=(40, 80))
    documents = SpokenDocuments(dataset, unit, (40, 80))
    vocabulary = Vocabulary(text=dataset.text_vocab, speech=dataset.speech_vocab, speech_pieces=0)
    builder = RowBuilder(vocabulary=vocabulary, kind=Patching.ALIGNED, patching=patching, units=10**6, spoken=documents)
    expected: list[int] = []
    for document in spoken(dataset)[:6]:
        for first, last in ((0, 3), (3, 4), (4, document.words)):
            builder.speech(document, first, last)
            length = document.end(last) - document.begin(first)
            spans = documents.spans(document, first, last)
            expected += [1, *patch_span(Patching.ALIGNED, length, patch_size=4, words=spans).lengths.tolist()]  # a marker leads
        builder.end_document()
        expected += [0]
    row = builder.row(format=Format.SPEECH)
    ends = [place for place, length in enumerate(expected) if not length]
    for place in reversed(ends):
        expected[place : place + 1] = [1, 1]  # EOS, and BOS of the next
    assert np.bincount(row.unit).tolist() == [1, *expected[:-1]]


def test_noise_moves_patches_and_no_token(toy_dataset) -> None:
    dataset = open_dataset(toy_dataset)
    values = {
        "model": {"text_vocab": dataset.text_vocab, "speech_vocab": dataset.speech_vocab},
        "data": {"data_id": dataset.data_id, "seq_len_units": 300, "interleaved_token_share": 1.0}
        | {f"interleaved_sequence_share_{kind}": 1.0 for kind in ("static", "aligned")},
        "train": {"steps": 4, "batch_sequences": 2},
    }
    clean, same, noisy = (
        Stream(dataset, arm_config("lst_aligned", **merge(values, {"patching": {"boundary_noise_ms": noise}}))).row(1)
        for noise in ([0, 0], [0, 0], [40, 40])
    )
    size = min(len(clean.ids), len(noisy.ids))
    assert np.array_equal(clean.ids[:size], noisy.ids[:size])
    assert np.array_equal(clean.unit, same.unit)
    assert not np.array_equal(clean.unit[:size], noisy.unit[:size])
    assert abs(int(noisy.unit[size - 1]) - int(clean.unit[size - 1])) < 0.2 * clean.unit[size - 1]  # about as many patches


def test_held_out_words_are_off_as_those_of_training(toy_dataset) -> None:
    dataset, config = open_dataset(toy_dataset), arm_config("lst_aligned")
    clean, noisy = (
        heldout_documents(dataset, config.evaluation, config.data, boundary_noise_ms=noise)["speech"]
        for noise in ((0, 0), (40, 40))
    )
    assert all(np.array_equal(a[0].tokens, b[0].tokens) for a, b in zip(clean, noisy, strict=True))
    far = [np.abs(a[0].words - b[0].words).max() for a, b in zip(clean, noisy, strict=True)]
    assert set(far) == {1}


@pytest.mark.parametrize("noise", [[40, 20], [-20, 20], [0, 2000]])
def test_what_is_no_range_of_milliseconds_is_refused(noise) -> None:
    with pytest.raises(ConfigError, match=r"patching\.boundary_noise_ms=.* is no range of milliseconds"):
        arm_config("lst_aligned", patching={"boundary_noise_ms": noise})


def test_without_noise_runs_keep_the_ids_that_they_had() -> None:
    assert arm_config("lst_aligned", patching={"boundary_noise_ms": [0, 0]}).run_id == arm_config("lst_aligned").run_id
    assert arm_config("lst_aligned", patching={"boundary_noise_ms": [20, 40]}).run_id != arm_config("lst_aligned").run_id
