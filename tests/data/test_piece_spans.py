"""Frames of a word divided among its text pieces: the drawing of docs/patching.md, a slow oracle, and given times of pieces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lst.config import DataConfig
from lst.data.interleave import SpokenDocument, SpokenDocuments
from lst.data.piece_spans import divide_words
from lst.data.preparing.shard_writer import write_dataset
from lst.data.shards import Dataset, open_dataset
from lst.errors import DataError


def divide(*words: tuple[int, int, list[int]]) -> tuple[list[list[int]], list[int]]:
    starts, ends = (np.array([w[i] for w in words], np.int64) for i in (0, 1))
    pieces = np.array([len(w[2]) for w in words], np.int64)
    spans, counts = divide_words(starts, ends, pieces, np.array([c for w in words for c in w[2]], np.int64))
    return spans.tolist(), counts.tolist()


def test_frames_are_divided_as_drawn() -> None:
    assert divide((10, 18, [2, 4, 3])) == ([[10, 11], [12, 15], [16, 18]], [3])
    assert divide((10, 13, [2, 4, 3])) == ([[10, 10], [11, 12], [13, 13]], [3])
    assert divide((10, 11, [2, 4, 3])) == ([[10, 10], [11, 11]], [2])


def test_words_without_pieces_or_characters_keep_their_frames() -> None:
    assert divide((0, 3, []), (5, 6, [0, 0]), (7, 7, [])) == ([[0, 3], [5, 5], [6, 6], [7, 7]], [1, 2, 1])
    assert divide() == ([], [])


def slow(start: int, end: int, characters: list[int]) -> list[tuple[int, int]]:
    """One word, by the rule's words."""
    pieces, frames = len(characters) or 1, end - start + 1
    weights = characters if sum(characters) else [1] * pieces
    bounds, last = [], 0
    for j in range(pieces):
        bound = int(frames * sum(weights[: j + 1]) / sum(weights) + 0.5)
        if frames >= pieces:
            bound = min(max(bound, last + 1), frames - (pieces - 1 - j))
        bounds.append((start + last, start + bound - 1))
        last = bound
    return [(a, b) for a, b in bounds if b >= a]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 12), st.lists(st.integers(0, 7), max_size=6)), max_size=6))
def test_division_is_the_rule_and_covers_each_word(words: list[tuple[int, int, list[int]]]) -> None:
    laid, frame = [], 0
    for before, frames, characters in words:
        laid.append((frame + before, frame + before + frames - 1, characters))
        frame += before + frames
    spans, counts = divide(*laid)
    expected = [slow(*word) for word in laid]
    assert spans == [list(span) for word in expected for span in word]
    assert counts == [len(word) for word in expected]
    for (start, end, characters), own in zip(laid, expected, strict=True):
        assert [f for a, b in own for f in range(a, b + 1)] == list(range(start, end + 1))
        assert (
            len(own) == min(max(1, len(characters)), len(own)) if end - start + 1 < len(characters) else max(1, len(characters))
        )


def test_characters_of_pieces_add_up_to_the_words(toy_dataset: Path) -> None:
    tokenizer = open_dataset(toy_dataset).tokenizer
    for word in ("bright", "while", "über", "naïve", "日本"):
        assert tokenizer.characters[tokenizer.encode(word)].sum() == len(word), word


def test_pieces_of_the_stream_stay_inside_their_words(toy_dataset: Path) -> None:
    dataset = open_dataset(toy_dataset)
    words, pieces = SpokenDocuments(dataset), SpokenDocuments(dataset, "bpe")
    finer = 0
    places = list(dataset.documents("speech", "train").documents(range(12)))
    for number, place in enumerate(places):
        data, seed = DataConfig(text_span_words=(2, 5)), np.random.default_rng
        coarse, fine = (spoken.interleaved(SpokenDocument(place), data, seed(number)) for spoken in (words, pieces))
        for a, b in zip(coarse, fine, strict=True):
            assert np.array_equal(a.tokens, b.tokens)
            if a.words is None or b.words is None:
                continue
            inside = [f for first, last in a.words.tolist() for f in range(first, last + 1)]
            assert [f for first, last in b.words.tolist() for f in range(first, last + 1)] == inside
            finer += len(b.words) - len(a.words)
    assert finer > 0


def with_piece_times(toy_dataset: Path, out: Path, times: Any) -> Path:
    """The toy data set with piece_start and piece_end as `times` of (word spans, pieces of each word) makes them."""
    dataset = open_dataset(toy_dataset)
    speech = dataset.speech.to_pylist()
    starts, ends = [], []
    for row in speech:
        spans = list(zip(row["word_start"], row["word_end"], strict=True))
        own = times(spans, row["word_text_lengths"])
        starts.append([a for a, _ in own])
        ends.append([b for _, b in own])
    plain = [n for n in dataset.speech.schema.names if not n.startswith("word_text")]
    table = dataset.speech.select(plain).append_column("piece_start", pa.array(starts)).append_column("piece_end", pa.array(ends))
    text = dataset.text.select(["id", "book", "split", "text"])
    write_dataset(out, {"speech": table, "text": text}, tokenizer=toy_dataset / "tokenizer.model", speech_vocab=100)
    return out


def first_frame_each(spans: list[tuple[int, int]], lengths: list[int]) -> list[tuple[int, int]]:
    """All pieces but the last get one frame, the last the rest; without enough frames a piece ends before it starts."""
    times = []
    for (start, end), count in zip(spans, lengths, strict=True):
        for j in range(count):
            first = min(start + j, end + 1)
            times.append((first, end if j == count - 1 else min(first, end)))
    return times


def test_given_times_of_pieces_are_used(toy_dataset: Path, tmp_path: Path) -> None:
    dataset = open_dataset(with_piece_times(toy_dataset, tmp_path / "d", first_frame_each))
    spoken = SpokenDocuments(dataset, "bpe")
    (row,) = dataset.speech.slice(int(dataset.rows("speech", "train")[3]), 1).to_pylist()
    expected = first_frame_each(list(zip(row["word_start"], row["word_end"], strict=True)), row["word_text_lengths"])
    found = spoken.speech(fourth_document(dataset)).words
    assert found is not None
    assert found.tolist() == [list(t) for t in expected if t[1] >= t[0]]
    divided = SpokenDocuments(open_dataset(toy_dataset), "bpe").speech(fourth_document(open_dataset(toy_dataset))).words
    assert divided is not None
    assert found.tolist() != divided.tolist()


def fourth_document(dataset: Dataset) -> SpokenDocument:
    (place,) = dataset.documents("speech", "train").documents([3])
    return SpokenDocument(place)


def test_times_outside_their_word_are_refused(toy_dataset: Path, tmp_path: Path) -> None:
    def late(spans: list[tuple[int, int]], lengths: list[int]) -> list[tuple[int, int]]:
        return [(a + 1, b + 1) for a, b in first_frame_each(spans, lengths)]

    with pytest.raises(DataError, match=r"document 'd\d+': a piece of word '\w+' at frames \d+..\d+ leaves its word"):
        with_piece_times(toy_dataset, tmp_path / "d", late)
    assert not (tmp_path / "d").exists()


def test_missing_times_are_refused(toy_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\d+ pieces have \d+ starts and \d+ ends"):
        with_piece_times(toy_dataset, tmp_path / "d", lambda spans, _: spans[:-1])
