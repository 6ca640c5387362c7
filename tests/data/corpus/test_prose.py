"""Books -> sections, paragraphs, sentences."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lst.data.corpus.prose import clean_paragraph, is_heading, pack_sentences, read_book, split_sections, split_sentences
from lst.errors import DataError

BOOK = """[A Book by Nobody 1900]

CHAPTER I. Down the Hole

The cat sat on the _wide_ mat
and looked at the dog.  "Oh!" it said.

     A verse that is indented
     is not a piece of prose

CHAPTER II

It went away--nobody knew where.
"""


def test_a_book_falls_into_sections_at_its_headings() -> None:
    first, second = split_sections(BOOK)
    assert first.title == "CHAPTER I. Down the Hole"
    assert first.paragraphs == ('The cat sat on the wide mat and looked at the dog. "Oh!" it said.',)
    assert second.paragraphs == ("It went away— nobody knew where.",)


@pytest.mark.parametrize(
    ("block", "expected"),
    [("THE LITTLE RED HEN", True), ("Chapter 4", True), ('"COME IN!"', False), ("He came in at last.", False)],
)
def test_headings_are_told_from_shouting(block: str, expected: bool) -> None:
    assert is_heading(block) is expected


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ("I think--' (for, you see, she knew)", "I think—' (for, you see, she knew)"),
        ("down -- I mean up -- he said", "down— I mean up— he said"),
        ("one two * three four", "one two three four"),
        ("one two ... three four", "one two... three four"),
        ("too short here", ""),
        ("[Illustration of a very large cat]", ""),
    ],
)
def test_cleaning_leaves_only_words_that_can_be_spoken(block: str, expected: str) -> None:
    assert clean_paragraph(block) == expected


@pytest.mark.parametrize(
    ("paragraph", "expected"),
    [
        ("He ran. She hid! Why? Nobody knew.", ["He ran.", "She hid!", "Why?", "Nobody knew."]),
        ("Mr. Otter met Dr. Bear. They talked.", ["Mr. Otter met Dr. Bear.", "They talked."]),
        ('"Who is that?" she said. "Me."', ['"Who is that?" she said.', '"Me."']),
        ("'Oh!' A mouse.", ["'Oh!'", "A mouse."]),
        ("It was J. Smith himself.", ["It was J. Smith himself."]),
        ("So did I. He laughed.", ["So did I.", "He laughed."]),
        ("no end", ["no end"]),
    ],
)
def test_sentences_end_where_a_reader_would_end_them(paragraph: str, expected: list[str]) -> None:
    assert split_sentences(paragraph) == expected


@given(st.text(alphabet="aB.!?'\" ", max_size=60))
def test_sentences_joined_give_the_paragraph_back(raw: str) -> None:
    paragraph = " ".join(raw.split())
    assert " ".join(split_sentences(paragraph)) == paragraph


def test_packing_keeps_the_order_and_leaves_out_what_is_too_long() -> None:
    assert list(pack_sentences(["aa.", "bb.", "c" * 20, "dd."], 8)) == ["aa. bb.", "dd."]


def test_a_missing_book_is_told_with_its_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"austen-emma.txt' does not exist.*lst-scaling\[speech\]"):
        read_book("austen-emma", tmp_path)
