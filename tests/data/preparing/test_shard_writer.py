"""Shards: batches of bounded size, a hash of content that no cut into batches changes, pieces of words encoded once."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lst.data.preparing import shard_writer
from lst.data.preparing.shard_writer import ContentDigest, ShardWriter, encode_documents
from lst.data.shard_files import file_batches

SCHEMA = pa.schema(
    {"id": pa.string(), "text": pa.string(), "text_tokens": pa.list_(pa.uint16()), "more": pa.list_(pa.list_(pa.int32()))}
)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.text("ab\u00e9", max_size=3),
            "text": st.text("xy", max_size=4),
            "text_tokens": st.lists(st.integers(0, 9), max_size=5),
            "more": st.lists(st.lists(st.integers(-3, 3), max_size=2), max_size=2),
        }
    ),
    max_size=8,
)


def digest(rows, cut):
    found = ContentDigest()
    table = pa.Table.from_pylist(rows, SCHEMA)
    for part in (table.slice(0, cut), table.slice(cut)):
        found.add(part)
    return found.hexdigest()


@given(rows=ROWS, other=ROWS, cut=st.integers(0, 8), another=st.integers(0, 8))
def test_a_content_has_one_hash_however_it_is_cut(rows, other, cut, another):
    assert digest(rows, cut) == digest(rows, another)
    assert (digest(rows, cut) == digest(other, cut)) == (rows == other)


def test_batches_are_bounded_and_a_long_document_stands_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_writer, "BATCH_TOKENS", 10)
    lengths = [4, 4, 4, 30, 1, 1, 9]
    rows = [{"id": str(i), "text": "", "text_tokens": [1] * n, "more": []} for i, n in enumerate(lengths)]
    writer = ShardWriter(tmp_path / "a.arrow", SCHEMA, "text_tokens")
    for start in range(0, 7, 2):
        writer.write(pa.Table.from_pylist(rows[start : start + 2], SCHEMA))
    written = writer.close()
    assert [batch["id"].to_pylist() for batch in file_batches(tmp_path / "a.arrow")] == [
        ["0", "1"],
        ["2"],
        ["3"],
        ["4", "5"],
        ["6"],
    ]
    assert (written.rows, written.tokens) == (7, sum(lengths))


def test_long_texts_of_few_tokens_fill_a_batch_too(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_writer, "BATCH_BYTES", 100)
    rows = [{"id": str(i), "text": "x" * 40, "text_tokens": [1], "more": []} for i in range(5)]
    writer = ShardWriter(tmp_path / "a.arrow", SCHEMA, "text_tokens")
    writer.write(pa.Table.from_pylist(rows, SCHEMA))
    writer.close()
    assert [batch.num_rows for batch in file_batches(tmp_path / "a.arrow")] == [2, 2, 1]


class PlaceMatters:
    """Encodes the first word of a document otherwise than later ones, as byte-level tokenizers do."""

    def encode_words(self, words):
        return [[len(word), int(place > 0), *map(ord, word)] for place, word in enumerate(words)]


@given(documents=st.lists(st.lists(st.sampled_from(["a", "bc", "d"]), max_size=6), max_size=6))
def test_words_encoded_once_are_those_encoded_by_document(documents):
    assert encode_documents(documents, PlaceMatters()) == [PlaceMatters().encode_words(words) for words in documents]


@pytest.mark.parametrize("columns", [["more", "id"], ["text_tokens"]])
def test_some_columns_are_read_in_the_order_asked_for(tmp_path, columns):
    writer = ShardWriter(tmp_path / "a.arrow", SCHEMA, "text_tokens")
    writer.write(pa.Table.from_pylist([{"id": "a", "text": "t", "text_tokens": [3], "more": [[1]]}], SCHEMA))
    writer.close()
    (batch,) = file_batches(tmp_path / "a.arrow", columns)
    assert batch.schema.names == columns
    assert np.asarray(batch.num_rows) == 1
