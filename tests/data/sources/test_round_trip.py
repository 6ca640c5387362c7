"""The same ten documents in every format give the same rows, wherever the blocks are cut."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lst.data.sources.base import Refused
from tests.data.sources.written_formats import FORMATS, WITH_WORDS, documents, expected_rows, read_all

WITHOUT_WORDS = {"text": "", "words": [], "word_start": [], "word_end": [], "split": ""}


def expected(name, records):
    rows = expected_rows(records)
    return rows if name in WITH_WORDS else [row | WITHOUT_WORDS for row in rows]


@pytest.mark.parametrize("name", FORMATS)
def test_ten_documents_give_the_same_rows_in_every_format(tmp_path, name):
    rows, refused = read_all(FORMATS[name](tmp_path, documents()))
    assert refused == []
    assert rows == expected(name, documents())


@pytest.mark.parametrize("name", FORMATS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=15)
@given(size=st.integers(1, 4_000))
def test_the_rows_do_not_depend_on_where_blocks_are_cut(tmp_path_factory, name, size):
    folder = tmp_path_factory.mktemp("cut")
    source = FORMATS[name](folder, documents(7), block_bytes=size)
    blocks = source.blocks()
    assert len(set(blocks)) == len(blocks)
    assert read_all(source) == (expected(name, documents(7)), [])


@pytest.mark.parametrize("name", FORMATS)
def test_a_block_alone_gives_what_it_gives_among_others(tmp_path, name):
    source = FORMATS[name](tmp_path, documents(), block_bytes=300)
    blocks = source.blocks()
    assert len(blocks) > 1
    together = [[(r.row["id"], r.line, r.place) for r in source.read(block)] for block in blocks]
    alone = [[(r.row["id"], r.line, r.place) for r in source.read(block)] for block in reversed(blocks)]
    assert alone[::-1] == together


@pytest.mark.parametrize("name", FORMATS)
def test_a_refusal_among_good_documents_takes_nothing_else_away(tmp_path, name):
    records = documents()
    records[4] = records[4] | {"speech_tokens": [*records[4]["speech_tokens"], 50]}  # past the vocabulary
    rows, refused = read_all(FORMATS[name](tmp_path, records))
    assert [row["id"] for row in rows] == [r["id"] for i, r in enumerate(records) if i != 4]
    assert len(refused) == 1
    assert isinstance(refused[0], Refused)
    assert refused[0].reason == "speech token 50 lies outside 0..49"
    assert refused[0].line == 5 or refused[0].place in ("row 5", "row 1", f"member {records[4]['id']}")
