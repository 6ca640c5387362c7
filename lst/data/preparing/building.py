"""First stage of `prepare-data`: each block of the input becomes one raw shard in the work folder.

A block is read, checked and written as one, by whichever part it belongs to; a block that is finished is not read again.
So the raw shards do not depend on the number of parts, on their order, or on where an earlier attempt stopped. Refusals are
kept beside each shard: what to do about them (refuse=stop or skip) does not change what is read.

Raw shards have the raw columns of lst/data/shards.py and, for what only a look at all records can refuse, each record's
`line` and `place`. Second stage: lst/data/preparing/joining.py.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lst.data.piece_spans import CHARACTER_START
from lst.data.preparing.shard_writer import BATCH_TOKENS, ShardWriter
from lst.data.preparing.work_folder import WorkFolder
from lst.data.shards import SPEECH, TEXT
from lst.data.sources.base import Block, Record, Refused, Row, Source
from lst.errors import DataError
from lst.records import write_json

SHOWN_REFUSALS = 10
_PLACE = [pa.field("line", pa.int64()), pa.field("place", pa.string())]
_MADE_LATER = ("word_text_tokens", "word_text_lengths", "text_tokens")
_CHARACTERS = [pa.field(CHARACTER_START, pa.list_(pa.uint32()))]  # none where characters are not aligned
RAW = {
    name: pa.schema([f for f in schema if f.name not in _MADE_LATER] + optional + _PLACE)
    for name, schema, optional in (("speech", SPEECH, _CHARACTERS), ("text", TEXT, []))
}
COUNTED = {"speech": "speech_tokens", "text": "text"}  # what a raw shard is as long as: speech tokens, or bytes of text
KEPT_ROWS = 1_024  # rows that wait for a column form


@dataclass
class Tally:
    """Records read by this process, and what is still unread: whether too many are refused may be certain before the end."""

    kept: int = 0
    refused: int = 0
    unread: dict[tuple[str, int], int] = field(default_factory=dict)  # block -> the most records it can hold; -1: not known

    def too_many(self, share: float) -> bool:
        if -1 in self.unread.values():
            return False
        return self.refused > share * (self.kept + self.refused + sum(self.unread.values()))


def part_of(count: int, part: tuple[int, int]) -> range:
    """The blocks of part i of N: contiguous, all of them once over the parts."""
    index, parts = part
    return range(count * (index - 1) // parts, count * index // parts)


def read_part(work: WorkFolder, sources: Mapping[str, Source], part: tuple[int, int], *, stop: bool, max_refused: float) -> int:
    """Read the part's blocks that are not finished yet; returns how many there were.

    Raises DataError at the first refusal with `stop`, or when it is certain that more than `max_refused` of a table's records
    will be refused; OSError on a full disk. Finished blocks stay.
    """
    from tqdm import tqdm

    read, shown = 0, 0
    for table, source in sources.items():
        blocks = source.blocks()
        tally = Tally(unread={(table, i): _at_most(block) for i, block in enumerate(blocks)})
        numbers = part_of(len(blocks), part)
        first = ""
        bar = tqdm(numbers, desc=f"reading {table}", unit=" blocks", disable=None, delay=2)
        for number in bar:
            counts = work.finished(table, number)
            if counts is None:
                counts = _read_block(work, source, table, number, blocks[number], stop=stop)
                shown = _show_refusals(work, table, number, shown)
                read += 1
            tally.kept += counts["rows"]
            tally.refused += counts["refused"]
            first = first or next(map(str, read_refusals(work.block(table, number, "refused"))), "")
            del tally.unread[table, number]
            if not stop and tally.too_many(max_refused):
                raise DataError(
                    f"{tally.refused:,} of {tally.kept + tally.refused:,} records of {counts['file']} are refused so far, and "
                    f"max_refused={max_refused} cannot be kept any more; the first: {first}"
                )
    return read


def _at_most(block: Block) -> int:
    return block.stop - block.start if block.stop > block.start else -1


def _read_block(work: WorkFolder, source: Source, table: str, number: int, block: Block, *, stop: bool) -> dict[str, Any]:
    shard, refusals = work.block(table, number, "arrow"), work.block(table, number, "refused")
    aside, refusals_aside = shard.with_name(f".{shard.name}"), refusals.with_name(f".{refusals.name}")
    refused = 0
    durations: list[float] = []
    writer = ShardWriter(aside, RAW[table], COUNTED[table])
    try:
        with refusals_aside.open("w", encoding="utf-8") as file:
            rows: list[Row] = []
            waiting = 0
            for record in source.read(block):
                if isinstance(record, Refused):
                    if stop:
                        raise DataError(f"{record}; mend it, or go on without such records by refuse=skip.")
                    file.write(refusal_line(table, record))
                    refused += 1
                    continue
                durations.append(record.audio_seconds)
                rows.append(_raw_row(table, record))
                waiting += len(rows[-1].get("speech_tokens", ())) + len(rows[-1]["text"])
                if len(rows) == KEPT_ROWS or waiting > BATCH_TOKENS:
                    writer.write(pa.Table.from_pylist(rows, RAW[table]))
                    rows, waiting = [], 0
            if rows:
                writer.write(pa.Table.from_pylist(rows, RAW[table]))
        written = writer.close()
    except BaseException:
        writer.abandon()
        refusals_aside.unlink(missing_ok=True)
        raise
    refusals_aside.replace(refusals)
    aside.replace(shard)
    counts = {
        "file": str(block.file), "rows": written.rows, "tokens": written.tokens, "refused": refused, "sha256": written.sha256,
        "audio_seconds": math.fsum(durations) if all(durations) else 0.0,  # 0: that of some is not known
    }  # fmt: skip
    write_json(work.block(table, number, "json"), counts)
    return counts


def _raw_row(table: str, record: Record) -> Row:
    row = {**record.row, "line": record.line, "place": record.place}
    if table == "speech":
        row["speech_tokens"] = np.asarray(row["speech_tokens"], np.uint16)
        row.setdefault(CHARACTER_START, [])
    return row


def refusal_line(table: str, refused: Refused) -> str:
    """One line of refusals.jsonl."""
    content = {
        "table": table, "file": str(refused.file), "line": refused.line, "place": refused.place, "reason": refused.reason,
    }  # fmt: skip
    return json.dumps(content) + "\n"


def read_refusals(file: Path) -> Iterator[Refused]:
    with file.open(encoding="utf-8") as lines:
        for told in map(json.loads, lines):
            yield Refused(Path(told["file"]), told["reason"], told["line"], told["place"])


def _show_refusals(work: WorkFolder, table: str, number: int, shown: int) -> int:
    """Print the first few refusals of a run; returns how many were printed so far."""
    for refused in read_refusals(work.block(table, number, "refused")):
        if shown == SHOWN_REFUSALS:
            print("refused: more records; all are kept in refusals.jsonl of the data set", file=sys.stderr)
        shown += 1
        if shown > SHOWN_REFUSALS:
            break
        print(f"refused {refused}", file=sys.stderr)
    return shown
