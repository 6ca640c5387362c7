"""What is held out: whole books and speakers, whatever the order; given splits are kept; an impossible share is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lst.data.preparing.splits import Groups, Sides
from lst.errors import DataError

SCHEMA = pa.schema({name: pa.string() for name in ("id", "book", "speaker", "split")})
Document = tuple[str, str, str]  # book, speaker, split


def table(documents: list[Document]) -> pa.Table:
    rows = [{"id": f"d{i}", "book": b, "speaker": s, "split": given} for i, (b, s, given) in enumerate(documents)]
    return pa.Table.from_pylist(rows, SCHEMA)


def draw(rows: pa.Table, share: float, split_by: str = "book_and_speaker", tokens: list[int] | None = None, **more: Any) -> Sides:
    groups = Groups("spoken", split_by)
    lengths = np.array(tokens or [10] * rows.num_rows, np.int64)
    for start in range(0, rows.num_rows, 3):  # in batches
        groups.add(rows.slice(start, 3), lengths[start : start + 3])
    return groups.draw(share, **more)


def sides(rows: pa.Table, share: float, split_by: str = "book_and_speaker", **more: Any) -> dict[str, str]:
    """id -> side."""
    return dict(zip(rows["id"].to_pylist(), draw(rows, share, split_by, **more).of(rows), strict=True))


@given(
    documents=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=60),
    share=st.sampled_from([0.0, 0.05, 0.2, 0.5]),
    order=st.randoms(use_true_random=False),
)
def test_no_book_and_no_speaker_stands_on_both_sides_whatever_the_order(documents, share, order):
    rows = table([(f"b{b}" if b else "", f"s{s}" if s else "", "") for b, s in documents])
    try:
        first = sides(rows, share)
    except DataError:
        assume(False)  # one group, or groups too large: tested below
    for column in ("book", "speaker"):
        of = {
            side: {n for n, d in zip(rows[column].to_pylist(), first.values(), strict=True) if n and d == side}
            for side in ("train", "heldout")
        }
        assert not of["train"] & of["heldout"]
    assert "train" in first.values()
    places = list(range(rows.num_rows))
    order.shuffle(places)
    assert sides(rows.take(places), share) == first


def test_a_share_is_met_in_tokens_and_in_documents_of_their_own():
    books = table([(f"b{i}", "", "") for i in range(400)])
    tokens = [1 + i % 7 for i in range(400)]
    found = draw(books, 0.1, tokens=tokens).of(books)
    held = sum(n for n, side in zip(tokens, found, strict=True) if side == "heldout")
    assert held / sum(tokens) == pytest.approx(0.1, abs=0.01)
    lone = table([("", "", "")] * 400)
    assert list(sides(lone, 0.1).values()).count("heldout") == 40
    assert list(sides(lone, 0.001).values()).count("heldout") == 1  # at least one
    assert set(sides(lone, 0.0).values()) == {"train"}


def test_what_was_drawn_is_told():
    def told(documents: list[Document], split_by: str = "book_and_speaker") -> str:
        groups = Groups("spoken", split_by)
        groups.add(table(documents), np.ones(len(documents), np.int64))
        return groups.describe()

    named = [("b1", "s1", ""), ("b2", "s1", ""), ("b3", "s2", ""), ("", "", "")]
    assert told(named) == (
        "spoken documents are split by book_and_speaker: 2 sets of books and speakers that no document ties together, "
        "1 documents one by one"
    )
    assert told(named, "speaker") == "spoken documents are split by speaker: 2 speakers, 1 documents one by one"
    assert "3 documents one by one, for no record names a book or a speaker (layout=" in told([("", "", "")] * 3)
    assert told([("", "", "train")]) == ("spoken documents are split by book_and_speaker: documents with a split of their own")


def test_books_tied_by_speakers_are_one_group_and_the_remedy_works():
    """Readers of several books: 1-A 1-B 2-B 2-C 3-C is one component of books A, B, C and speakers 1, 2, 3."""
    rows = table([("A", "1", ""), ("B", "1", ""), ("B", "2", ""), ("C", "2", ""), ("C", "3", ""), *[("D", "4", "")] * 2] * 10)
    with pytest.raises(DataError, match=r"heldout_share=0.1 cannot be met with split_by=book_and_speaker.*give split_by=book,"):
        sides(rows.filter(pa.compute.not_equal(rows["book"], "D")), 0.1)
    with pytest.raises(DataError, match=r"have 2 sets of books and speakers .* 28.6% would be held out"):
        sides(rows, 0.1)
    assert set(sides(rows, 0.2, "book").values()) == {"train", "heldout"}


def test_a_giant_group_beside_a_tiny_one_is_refused_too():
    rows = table([("A", "1", "")] * 999 + [("B", "2", "")])
    with pytest.raises(DataError, match=r"0\.1% would be held out"):
        sides(rows, 0.1)


def test_splits_of_records_are_kept_and_their_books_follow():
    documents = [("A", "1", "heldout"), ("A", "2", ""), ("B", "3", "train"), ("B", "4", ""), ("", "", "heldout"), ("", "4", "")]
    rows = table([*documents, ("A", "9", "heldout"), ("C", "5", "train"), ("C", "5", "heldout"), ("C", "6", "")])
    found = list(sides(rows, 0.05).values())
    assert found == ["heldout", "heldout", "train", "train", "heldout", "train", "heldout", "train", "heldout", "train"]


def test_written_documents_go_with_their_spoken_books():
    rows = table([("A", "", ""), ("B", "", ""), *[(f"c{i}", "", "") for i in range(50)]])
    found = draw(rows, 0.1, settled={"book A": "heldout", "book B": "train"}).of(rows)
    assert found[:2] == ["heldout", "train"]
    assert 0 < found[2:].count("heldout") < 10


@pytest.mark.parametrize(
    ("split_by", "same"),
    [("book", [(0, 1), (2, 3)]), ("speaker", [(0, 2), (1, 3)]), ("document", []), ("book_and_speaker", [(0, 3)])],
)
def test_what_is_kept_together(split_by, same):
    """Documents A-1, A-2, B-1, B-2, each 25 times, beside books of their own."""
    four = [("A", "1", ""), ("A", "2", ""), ("B", "1", ""), ("B", "2", "")]
    rows = table(four * 25 + [(f"x{i}", f"y{i}", "") for i in range(100)])
    for share in (0.1, 0.3, 0.5):
        found = list(sides(rows, share, split_by).values())
        for a, b in same:
            assert {found[4 * i + a] for i in range(25)} == {found[4 * i + b] for i in range(25)}
            assert len({found[4 * i + a] for i in range(25)}) == 1
        if split_by == "document":
            assert len(set(found[:100])) == 2


def test_a_text_goes_on_the_side_of_its_spoken_book_where_documents_are_split_one_by_one() -> None:
    rows = table([(f"b{i % 4}", "", "") for i in range(40)])
    found = sides(rows, 0.2, "document", settled={"book b1": "heldout", "book b2": "train"})
    books = dict(zip(rows["id"].to_pylist(), rows["book"].to_pylist(), strict=True))
    assert {side for name, side in found.items() if books[name] == "b1"} == {"heldout"}
    assert {side for name, side in found.items() if books[name] == "b2"} == {"train"}
