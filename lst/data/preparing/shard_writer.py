"""Writes the tables of a prepared data set (lst/data/shards.py): batch by batch as shards, or a small table as one file.

    ShardWriter     one Arrow IPC file of bounded record batches; what the join of `prepare-data` writes
    write_dataset   a whole data set from tables in memory: the embedded corpus, and the tests' small sets

The identity of a data set is a hash of its content: of values and lengths, never of the bytes of a file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lst.data.piece_spans import CHARACTER_START, piece_times
from lst.data.shards import (
    FORMAT_VERSION,
    MANIFEST,
    PIECE_TIMES,
    SPLITS,
    manifest_text,
    piece_times_error,
    speech_row_error,
    table_schema,
)
from lst.data.text import TextTokenizer
from lst.errors import DataError
from lst.records import file_sha256

BATCH_TOKENS = 1 << 20  # tokens a record batch; a longer document is a batch of its own
BATCH_BYTES = 1 << 23  # of text, where documents have few tokens
TOKENS = {"speech": "speech_tokens", "text": "text_tokens"}  # the column whose values a table counts

_frames = pa.list_(pa.uint32())


def with_text_tokens(name: str, table: pa.Table, tokenizer: TextTokenizer) -> pa.Table:
    """`table` with the columns of pieces that its schema wants, in the schema's order."""
    schema = table_schema(name, tokenizer.size)
    if name == "speech":
        pieces = encode_documents(table["words"].to_pylist(), tokenizer)
        flat = [[p for word in words for p in word] for words in pieces]
        table = table.append_column("word_text_tokens", pa.array(flat, schema.field("word_text_tokens").type))
        lengths = [[len(word) for word in words] for words in pieces]
        table = table.append_column("word_text_lengths", pa.array(lengths, _frames))
        if CHARACTER_START in table.schema.names:
            table = _add_piece_times(table, pieces, tokenizer)
    elif name == "text":
        encoded = [tokenizer.encode(t) for t in table["text"].to_pylist()]
        table = table.append_column("text_tokens", pa.array(encoded, schema.field("text_tokens").type))
    if name == "speech" and set(PIECE_TIMES) <= set(table.schema.names):
        schema = with_piece_times(schema)
    return table.select(schema.names).cast(schema)


def encode_documents(documents: Sequence[Sequence[str]], tokenizer: TextTokenizer) -> list[list[list[int]]]:
    """`tokenizer.encode_words` of each document; a word that comes again is encoded once, as a first word or a later one."""
    first = {words[0]: tokenizer.encode_words(words[:1])[0] for words in documents if words}
    distinct = list(dict.fromkeys(word for words in documents for word in words[1:]))
    later = dict(zip(distinct, tokenizer.encode_words(["a", *distinct])[1:], strict=True))
    return [[*(first[word] for word in words[:1]), *(later[word] for word in words[1:])] for words in documents]


def with_piece_times(schema: pa.Schema) -> pa.Schema:
    """`schema` with the optional columns of the pieces' times."""
    for column in PIECE_TIMES:
        schema = schema.append(pa.field(column, pa.list_(pa.int32())))
    return schema


def _add_piece_times(table: pa.Table, pieces: list[list[list[int]]], tokenizer: TextTokenizer) -> pa.Table:
    """`table` with the times of `pieces` (a list a word), from those of the words' characters."""
    found = []
    rows = table.select(["words", "word_start", "word_end", CHARACTER_START]).to_pylist()
    for row, of_words in zip(rows, pieces, strict=True):
        flat = np.array([piece for word in of_words for piece in word], np.int64)
        times = piece_times(
            row["words"],
            row["word_start"],
            row["word_end"],
            row[CHARACTER_START],
            [len(word) for word in of_words],
            tokenizer.characters[flat],
        )
        found.append(times)
    for column, values in zip(PIECE_TIMES, zip(*found, strict=True), strict=True):
        table = table.append_column(column, pa.array(values, pa.list_(pa.int32())))
    return table


def list_lengths(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """How many values each row of a list column has, or how many bytes each text."""
    count = pc.binary_length if pa.types.is_string(column.type) else pc.list_value_length
    lengths: NDArray[np.int64] = count(column).to_numpy().astype(np.int64)
    return lengths


class ContentDigest:
    """A hash of a table's content that does not depend on how its rows are cut into batches."""

    def __init__(self) -> None:
        self._parts: dict[str, Any] = {}
        self._rows = 0

    def add(self, table: pa.Table) -> None:
        self._rows += table.num_rows
        for name in table.schema.names:
            for chunk in table[name].chunks:
                self._add_column(name, chunk)

    def hexdigest(self) -> str:
        parts = {name: part.hexdigest() for name, part in sorted(self._parts.items())}
        return hashlib.sha256(json.dumps([self._rows, parts]).encode()).hexdigest()

    def _add_column(self, name: str, column: pa.Array) -> None:
        while pa.types.is_list(column.type):
            self._update(f"{name}.lengths", np.asarray(pc.list_value_length(column)).astype("<i8"))
            column, name = column.flatten(), f"{name}.item"
        if pa.types.is_string(column.type):
            self._update(f"{name}.lengths", np.asarray(pc.binary_length(column)).astype("<i8"))
            _, offsets, content = column.buffers()
            if len(column) and content is not None:
                ends = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1]
                self._update(name, memoryview(content)[int(ends[0]) : int(ends[-1])])
        else:
            self._update(name, column.to_numpy(zero_copy_only=False))

    def _update(self, part: str, values: Any) -> None:
        self._parts.setdefault(part, hashlib.sha256()).update(values)


class Written(NamedTuple):
    """What a shard holds: its counts, the hash of its content, and the checksum of its file."""

    rows: int
    tokens: int
    content_sha256: str
    sha256: str


class ShardWriter:
    """One Arrow IPC file, written in batches of about BATCH_TOKENS; `count` names the list or text column that is counted.

    Rows are kept until a batch is full, so memory does not grow with the file. Raises OSError on a full disk.
    """

    def __init__(self, path: Path, schema: pa.Schema, count: str) -> None:
        self._path, self._schema, self._count = path, schema, count
        self._file = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._file, schema)
        self._digest = ContentDigest()
        self._kept: list[pa.Table] = []
        self._kept_tokens, self._kept_bytes, self._rows, self._tokens = 0, 0, 0, 0

    def write(self, table: pa.Table) -> None:
        """Add rows of the file's schema."""
        start = 0
        for row, (tokens, size) in enumerate(zip(*self._sizes(table), strict=True)):
            if self._kept_tokens and (self._kept_tokens + tokens > BATCH_TOKENS or self._kept_bytes + size > BATCH_BYTES):
                self._kept.append(table.slice(start, row - start))
                self._flush()
                start = row
            self._kept_tokens += tokens
            self._kept_bytes += size
        self._kept.append(table.slice(start))

    def close(self) -> Written:
        """Write what is left, wait until the disk has it, and say what was written."""
        self._flush()
        self._writer.close()
        self._file.close()
        with self._path.open("rb") as file:
            os.fsync(file.fileno())
        return Written(self._rows, self._tokens, self._digest.hexdigest(), file_sha256(self._path))

    def abandon(self) -> None:
        """Close the file, whatever became of it, and remove it."""
        with contextlib.suppress(OSError):  # a full disk: what could not be written is not wanted
            self._file.close()
        self._path.unlink(missing_ok=True)

    def _sizes(self, table: pa.Table) -> tuple[list[int], list[int]]:
        """(tokens, bytes of text) of each row."""
        return list_lengths(table[self._count]).tolist(), list_lengths(table["text"]).tolist()

    def _flush(self) -> None:
        table = pa.concat_tables(self._kept).combine_chunks() if self._kept else self._schema.empty_table()
        self._kept, self._kept_tokens, self._kept_bytes = [], 0, 0
        if not table.num_rows:
            return
        self._rows += table.num_rows
        self._tokens += int(list_lengths(table[self._count]).sum())
        self._digest.add(table)
        self._writer.write_table(table)


def write_dataset(
    out: Path,
    tables: Mapping[str, pa.Table],
    *,
    tokenizer: Path,
    speech_vocab: int,
    extra_files: Mapping[str, bytes] | None = None,
    about: Mapping[str, Any] | None = None,
    compress: bool = False,
) -> str:
    """Write a prepared data set into the new folder `out`, one file a table, and return its data_id.

    `tables` have the raw columns (no pieces yet) by the names of SCHEMAS; `about` goes into the manifest under "about".
    Raises DataError if `out` exists, or a table breaks its contract.
    """
    if out.exists():
        raise DataError(f"out={out} exists already; choose another folder, or delete it to prepare anew.")
    text_tokenizer = TextTokenizer(tokenizer)
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        full = {name: with_text_tokens(name, table, text_tokenizer) for name, table in tables.items()}
        for name, table in full.items():
            _check(name, table, speech_vocab)
            _write_table(aside / f"{name}.{'parquet' if compress else 'arrow'}", table, compress)
        (aside / text_tokenizer.file).write_bytes(text_tokenizer.content)
        for name, content in (extra_files or {}).items():
            (aside / name).write_bytes(content)
        contents = {name: table_hash(table) for name, table in sorted(full.items())}
        contents["tokenizer"] = file_sha256(aside / text_tokenizer.file)
        manifest = {
            "format_version": FORMAT_VERSION,
            "data_id": identity(contents),
            "content_sha256": contents,
            "text_vocab": text_tokenizer.size,
            "speech_vocab": speech_vocab,
            "rows": {name: table.num_rows for name, table in tables.items()},
            "files": {p.name: file_sha256(p) for p in sorted(aside.iterdir())},
            "about": dict(about or {}),
        }
        write_manifest(aside, manifest)
        aside.chmod(0o755)
        aside.rename(out)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return str(manifest["data_id"])


def identity(contents: Mapping[str, str]) -> str:
    """The data_id: the hash of what each table and the tokenizer hold."""
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()[:12]


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Raises OSError on a full disk."""
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        file.write(manifest_text(manifest))
        file.flush()
        os.fsync(file.fileno())


def table_hash(table: pa.Table) -> str:
    """SHA-256 of a table's content, the same whatever file holds it. For tables in memory: see ContentDigest for shards."""
    digest = hashlib.sha256()
    for name in table.schema.names:
        column = table[name].combine_chunks()
        column = column if isinstance(column, pa.Array) else pa.concat_arrays(column.chunks)
        digest.update(name.encode())
        while pa.types.is_list(column.type):
            digest.update(np.diff(column.offsets.to_numpy()).astype("<i8").tobytes())
            column = column.flatten()
        if pa.types.is_string(column.type):
            texts = [t.encode() for t in column.to_pylist()]
            digest.update(np.array([len(t) for t in texts], "<i8").tobytes() + b"".join(texts))
        else:
            digest.update(column.to_numpy(zero_copy_only=False).astype("<i8").tobytes())
    return digest.hexdigest()


def _write_table(path: Path, table: pa.Table, compress: bool) -> None:
    if compress:
        pq.write_table(table, path, compression="zstd", compression_level=22, store_schema=True)
        return
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())


def _check(name: str, table: pa.Table, speech_vocab: int) -> None:
    """The contract of a row that readers rely on; DataError names the row's id."""
    if name == "stories":
        return
    for split in set(table["split"].to_pylist()) - set(SPLITS):
        raise DataError(f"{name} table: split='{split}' is unknown; use one of {', '.join(SPLITS)}.")
    if name != "speech":
        return
    times = [column for column in PIECE_TIMES if column in table.schema.names]
    for row in table.select(["id", "speech_tokens", "words", "word_start", "word_end", "word_text_lengths", *times]).to_pylist():
        reason = speech_row_error(row, speech_vocab) or (piece_times_error(row) if times else None)
        if reason:
            raise DataError(f"speech document '{row['id']}': {reason}.")
