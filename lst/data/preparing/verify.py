"""Compares a prepared data set with its manifest: the sum of each file, rows and tokens of each shard, the manifest itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lst.data.preparing.shard_writer import TOKENS, identity, list_lengths
from lst.data.shard_files import file_batches
from lst.data.shards import MANIFEST, MANIFEST_SUM, SPLITS, Dataset, manifest_text
from lst.errors import DataError
from lst.records import file_sha256

AGAIN = "prepare the data set again, or copy it again"
TABLE_SUFFIXES = (".arrow", ".parquet")


def verify_dataset(folder: Path) -> dict[str, Any]:
    """The manifest of a folder that is whole. Raises DataError naming the first file that is missing, damaged or too many."""
    manifest = Dataset(folder).manifest
    try:
        _check_manifest(folder, manifest)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"'{folder / MANIFEST}' is damaged (it lacks {error}); {AGAIN}.") from error
    for name, expected in manifest["files"].items():
        file = folder / name
        if file.is_symlink():
            raise DataError(f"'{file}' is a link, and what it leads to can change or go; copy the file itself into the folder.")
        if not file.is_file():
            raise DataError(f"'{file}' is missing; {AGAIN}.")
        if file_sha256(file) != expected:
            raise DataError(f"'{file}' is damaged (its checksum differs); {AGAIN}.")
    extra = sorted(p.name for p in folder.iterdir() if p.suffix in TABLE_SUFFIXES and p.name not in manifest["files"])
    if extra:
        raise DataError(f"'{folder / extra[0]}' is no file of this data set (its manifest does not name it); move it away.")
    for table, shards in manifest.get("shards", {}).items():
        for shard in shards:
            _check_shard(folder / shard["file"], table, shard)
        for key in ("rows", "tokens"):
            if manifest[key][table] != sum(shard[key] for shard in shards):
                raise DataError(
                    f"'{folder / MANIFEST}' counts {manifest[key][table]} {key} of {table}, its shards others; {AGAIN}."
                )
    return manifest


def _check_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    file = folder / MANIFEST
    has_sum = MANIFEST_SUM in manifest or "shards" in manifest  # data sets in one file a table may have none
    if has_sum and file.read_text(encoding="utf-8") != manifest_text(manifest):
        raise DataError(f"'{file}' is damaged (its checksum differs); {AGAIN}.")
    if identity(manifest["content_sha256"]) != manifest["data_id"]:
        raise DataError(f"'{file}' has data_id={manifest['data_id']}, which is not that of its content; {AGAIN}.")
    for shards in manifest.get("shards", {}).values():
        for shard in shards:
            if shard["file"] not in manifest["files"] or shard["split"] not in SPLITS:
                raise DataError(f"'{file}' lists the shard {json.dumps(shard)}, which is none of its files; {AGAIN}.")


def _check_shard(file: Path, table: str, shard: dict[str, Any]) -> None:
    rows = tokens = 0
    for batch in file_batches(file, ["split", TOKENS[table]]):
        rows += batch.num_rows
        tokens += int(list_lengths(batch[TOKENS[table]]).sum())
        if set(batch["split"].to_pylist()) - {shard["split"]}:
            raise DataError(f"'{file}' holds rows of another split than {shard['split']}; {AGAIN}.")
    if (rows, tokens) != (shard["rows"], shard["tokens"]):
        raise DataError(
            f"'{file}' holds {rows:,} rows and {tokens:,} tokens, the manifest says {shard['rows']:,} and "
            f"{shard['tokens']:,}; {AGAIN}."
        )
