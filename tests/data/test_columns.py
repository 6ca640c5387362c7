"""Reading in place: documents by token and by number, over shards and record batches, without copies."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lst.data.columns import MappedFile, Place, Split
from lst.data.preparing.shard_writer import write_manifest
from lst.data.shards import MANIFEST, SPLITS, TOKEN_COLUMNS, Dataset, open_dataset, ragged
from lst.errors import DataError
from tests.data.sharded import write_arrow, write_shards


@pytest.fixture(scope="module")
def whole(toy_dataset: Path) -> Dataset:
    return open_dataset(toy_dataset)


@pytest.fixture(scope="module")
def shards(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return open_dataset(write_shards(toy_dataset, tmp_path_factory.mktemp("shards") / "data"))


def tokens_of(document: Place, split: Split) -> list[int]:
    return document.chunk[split.column].row(document.row).tolist()


@pytest.mark.parametrize("name", ["speech", "text"])
@pytest.mark.parametrize("split", SPLITS)
def test_shards_hold_the_documents_of_the_one_file_in_the_same_order(whole, shards, name, split) -> None:
    rows = [getattr(whole, name)[TOKEN_COLUMNS[name]][int(r)].as_py() for r in whole.rows(name, split)]
    for dataset in (whole, shards):
        documents = dataset.documents(name, split)
        assert (documents.rows, documents.tokens) == (len(rows), sum(map(len, rows)))
        assert [tokens_of(d, documents) for d in documents.documents(range(len(rows)))] == rows
        found = [chunk[documents.column].row(r).tolist() for chunk, first, last in documents.runs() for r in range(first, last)]
        assert found == rows
    assert shards.rows(name, split) == range(shards.rows(name, split).start, shards.rows(name, split).start + len(rows))
    column = ragged(getattr(shards, name), TOKEN_COLUMNS[name])
    assert [column[r].tolist() for r in shards.rows(name, split)] == rows


def test_every_token_of_the_stream_is_found_where_it_stands_and_the_stream_goes_round(whole, shards) -> None:
    rows = [whole.text["text_tokens"][int(r)].as_py() for r in whole.rows("text", "train")]
    flat = [(i, j) for i, row in enumerate(rows) for j in range(len(row))]
    for dataset in (whole, shards):
        documents = dataset.documents("text", "train")
        for token in range(0, documents.tokens, 37):
            number, offset = flat[token]
            read = list(islice(documents.from_token(token), len(rows) + 2))
            assert read[0].offset == offset
            assert all(d.offset == 0 for d in read[1:])
            wanted = [rows[(number + i) % len(rows)] for i in range(len(rows) + 2)]
            assert [tokens_of(d, documents) for d in read] == wanted


def test_a_token_is_never_found_in_an_empty_document(tmp_path: Path) -> None:
    table = pa.table({"text_tokens": pa.array([[], [5, 6], [], [], [7]], pa.list_(pa.uint16()))})
    write_arrow(tmp_path / "a.arrow", table, 3)
    manifest = {"format_version": 1, "data_id": "x", "shards": {}}
    manifest["shards"]["text"] = [{"file": "a.arrow", "split": "train", "rows": 5, "tokens": 3}]
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    documents = Dataset(tmp_path).documents("text", "train")
    firsts = [next(documents.from_token(token)) for token in range(3)]
    assert [(d.chunk["text_tokens"].row(d.row).tolist(), d.offset) for d in firsts] == [([5, 6], 0), ([5, 6], 1), ([7], 0)]


def test_columns_are_views_of_the_file(shards: Dataset) -> None:
    """No bytes are allocated for values or offsets; offsets keep their 32 bits."""
    before = pa.total_allocated_bytes()
    documents = shards.documents("speech", "train")
    held = [chunk["speech_tokens"] for chunk, _, _ in documents.runs()]
    assert pa.total_allocated_bytes() == before
    for column in held:
        assert not column.values.flags.owndata
        assert not column.values.flags.writeable
        assert (column.values.dtype, column.offsets.dtype) == (np.uint16, np.int32)


def test_memory_grows_with_record_batches_and_not_with_documents(tmp_path: Path) -> None:
    """The same tokens in ten times as many documents: what a split holds is the same, 28 bytes a batch."""
    held = []
    for documents in (1_000, 10_000):
        folder = tmp_path / str(documents)
        folder.mkdir()
        rows = pa.array([[1] * (100_000 // documents)] * documents, pa.list_(pa.uint16()))
        write_arrow(folder / "a.arrow", pa.table({"text_tokens": rows}), documents // 20)
        shard = {"file": "a.arrow", "split": "train", "rows": documents, "tokens": 100_000}
        (folder / MANIFEST).write_text(json.dumps({"format_version": 1, "data_id": "x", "shards": {"text": [shard]}}))
        split = Dataset(folder).documents("text", "train")
        next(split.from_token(77_777))
        (part,) = split._parts
        held.append([part.runs.nbytes, part.row_ends.nbytes, part.token_ends.nbytes])
    assert held[0] == held[1] == [20 * 12, 20 * 8, 20 * 8]


def test_a_billion_documents_are_opened_from_the_manifest_alone(tmp_path: Path) -> None:
    """A thousand shards of a million documents each, of which no file exists until it is read."""
    shards = [{"file": f"t-{i}.arrow", "split": "train", "rows": 1_000_000, "tokens": 500_000_000} for i in range(1_000)]
    (tmp_path / MANIFEST).write_text(json.dumps({"format_version": 1, "data_id": "x", "shards": {"text": shards}}))
    dataset = Dataset(tmp_path)
    documents = dataset.documents("text", "train")
    assert (documents.rows, documents.tokens) == (10**9, 5 * 10**11)
    assert dataset.rows("text", "train") == range(10**9)
    with pytest.raises(DataError, match=r"t-778\.arrow' cannot be read"):
        next(documents.from_token(int(0.7784 * documents.tokens)))


def test_a_shard_with_other_counts_than_its_manifest_is_refused(toy_dataset: Path, tmp_path: Path) -> None:
    folder = write_shards(toy_dataset, tmp_path / "d")
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["shards"]["text"][0]["tokens"] += 1
    write_manifest(folder, manifest)
    with pytest.raises(DataError, match=r"text-00000.arrow' holds 17 documents of .* but its manifest says 17 of"):
        next(open_dataset(folder).documents("text", "train").from_token(0))


@pytest.mark.parametrize("change", [{"file": "../x.arrow"}, {"split": "test"}, {"rows": "7"}])
def test_a_damaged_list_of_shards_is_refused(toy_dataset: Path, tmp_path: Path, change: dict) -> None:
    folder = write_shards(toy_dataset, tmp_path / "d")
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["shards"]["text"][0] |= change
    write_manifest(folder, manifest)
    with pytest.raises(DataError, match="damaged shard of text"):
        open_dataset(folder).documents("text", "train")


@pytest.mark.parametrize("content", [b"", b"ARROW1 and then nothing"])
def test_a_file_that_is_no_arrow_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.arrow").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.arrow' cannot be read"):
        MappedFile(tmp_path / "a.arrow")


def test_pages_that_were_let_go_of_are_read_again(shards: Dataset) -> None:
    documents = shards.documents("speech", "train")
    document = next(documents.from_token(1))
    before = tokens_of(document, documents)
    documents.release()
    assert tokens_of(document, documents) == before
