"""A data set in shards of several record batches, from one in files: rows and their order inside a split stay."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa

from lst.data.preparing.shard_writer import write_manifest
from lst.data.shards import MANIFEST, SPLITS, TOKEN_COLUMNS, open_dataset
from lst.data.text import tokenizer_file


def write_shards(source: Path, out: Path, *, shard_rows: int = 17, batch_rows: int = 5) -> Path:
    """A copy of data set `source` in shards of at most `shard_rows` documents, each in batches of `batch_rows`."""
    dataset = open_dataset(source)
    out.mkdir(parents=True)
    manifest = dict(dataset.manifest)
    manifest["shards"] = {name: _write_table(dataset, name, out, shard_rows, batch_rows) for name in TOKEN_COLUMNS}
    shutil.copy(tokenizer_file(dataset.path), out)
    write_manifest(out, manifest)
    return out


def without_words(folder: Path, *, every: int) -> Path:
    """The data set in shards, changed in place: every so manieth spoken document of a shard has no words."""
    for shard in json.loads((folder / MANIFEST).read_text())["shards"]["speech"]:
        table = pa.ipc.open_file(pa.BufferReader((folder / shard["file"]).read_bytes())).read_all()
        lists = [f.name for f in table.schema if f.name.startswith("word")]
        rows = [row | {key: [] for key in lists} if i % every == 0 else row for i, row in enumerate(table.to_pylist())]
        write_arrow(folder / shard["file"], pa.Table.from_pylist(rows, table.schema), 5)
    return folder


def _write_table(dataset, name: str, out: Path, shard_rows: int, batch_rows: int) -> list[dict]:
    table, shards = getattr(dataset, name), []
    for split in SPLITS:
        own = table.take(np.flatnonzero(np.array(table["split"].to_pylist()) == split))
        for first in range(0, own.num_rows, shard_rows):
            rows = own.slice(first, shard_rows).combine_chunks()
            file = f"{name}-{len(shards):05}.arrow"
            write_arrow(out / file, rows, batch_rows)
            tokens = sum(map(len, rows[TOKEN_COLUMNS[name]].to_pylist()))
            shards.append({"file": file, "split": split, "rows": rows.num_rows, "tokens": tokens})
    return shards


def write_arrow(path: Path, table: pa.Table, batch_rows: int) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=batch_rows)
