"""Edits by hand, by brute force, and against jiwer where it is installed."""

from __future__ import annotations

import functools
import importlib.util

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lst.evals.asr import repeats
from lst.evals.edit_errors import Errors, align, character_errors, plain_english, total, word_errors

texts = st.lists(st.sampled_from("abc"), max_size=7).map(tuple)


def test_counts_by_hand() -> None:
    assert word_errors("the cat sat down", "the bat sat down today now") == Errors(1, 0, 2, 4)
    assert word_errors("the cat sat on the mat", "the cat sat the mat") == Errors(0, 1, 0, 6)
    assert word_errors("", "a b") == Errors(0, 0, 2, 0)
    assert word_errors("a b", "") == Errors(0, 2, 0, 2)
    assert character_errors("kitten", "sitting") == Errors(2, 0, 1, 6)


def test_rates_are_of_sums_and_may_exceed_one() -> None:
    assert total([Errors(1, 0, 0, 1), Errors(0, 0, 0, 9)]).rate == pytest.approx(0.1, abs=1e-12)
    assert word_errors("a", "b c d").rate == 3.0


@given(texts, texts)
def test_an_edit_is_shortest_and_its_counts_add_up(a: tuple[str, ...], b: tuple[str, ...]) -> None:
    @functools.cache
    def distance(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        return min(distance(i - 1, j) + 1, distance(i, j - 1) + 1, distance(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    found = align(a, b)
    assert found.substitutions + found.deletions + found.insertions == distance(len(a), len(b))
    assert len(a) - found.deletions + found.insertions == len(b)


@pytest.mark.skipif(importlib.util.find_spec("jiwer") is None, reason="needs jiwer (pip install jiwer)")
@given(st.lists(st.tuples(texts.filter(len), texts), min_size=1, max_size=4))
def test_rates_equal_jiwers(pairs: list[tuple[tuple[str, ...], tuple[str, ...]]]) -> None:
    import jiwer

    said, heard = ([" ".join(p[i]) for p in pairs] for i in (0, 1))
    assert total(word_errors(s, h) for s, h in zip(said, heard, strict=True)).rate == pytest.approx(jiwer.wer(said, heard))
    assert total(character_errors(s, h) for s, h in zip(said, heard, strict=True)).rate == pytest.approx(jiwer.cer(said, heard))


def test_the_normaliser_is_what_its_name_says() -> None:
    assert plain_english(" The  Cat’s — well-known_tail, No. 5! ") == "the cat's well known tail no 5"


def test_a_decoder_in_circles_is_seen() -> None:
    assert repeats(["a", "b", "c", "d", "a", "b", "c", "d", "a", "b", "c", "d"])
    assert not repeats(["a", "b", "c", "d", "e", "a", "b", "c", "d", "e", "f", "a", "b", "c"])
    assert repeats(["x"] * 6)
    assert not repeats(["x"] * 5)
