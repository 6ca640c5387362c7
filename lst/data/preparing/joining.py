"""Second stage of `prepare-data`: the raw shards of all blocks become a data set (lst/data/shards.py).

    1. every block is there and whole, and no id comes twice (8 bytes a document)
    2. splits are drawn (lst/data/preparing/splits.py), the tokenizer is given or trained on a sample of the training text
    3. shards are written, each from a run of whole blocks and of one split; one that is finished is not written again
    4. overlap table, refusals, manifest; the folder gets its name in one step

Rows stand in the input's order, training first. What is read is streamed batch by batch. Nothing here depends on the number
of parts, and, interrupted, the join makes the same files again.
"""

from __future__ import annotations

import math
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lst.data.piece_spans import CHARACTER_START
from lst.data.preparing.building import RAW, read_refusals, refusal_line
from lst.data.preparing.overlap import describe_overlap, measure_overlap, write_overlap
from lst.data.preparing.shard_writer import (
    TOKENS,
    ShardWriter,
    identity,
    list_lengths,
    with_piece_times,
    with_text_tokens,
    write_manifest,
)
from lst.data.preparing.splits import Groups, Sides, ranks
from lst.data.preparing.text_training import TextSample, sentences, train_tokenizer
from lst.data.preparing.work_folder import WorkFolder, made_note, with_tokenizer
from lst.data.quality.summary import summarise, write_summary
from lst.data.shard_files import file_batches
from lst.data.shards import FORMAT_VERSION, MANIFEST, SPLITS, Dataset, table_schema
from lst.data.sources.base import Refused
from lst.data.text import TextTokenizer, tokenizer_file
from lst.errors import DataError
from lst.plain import content_hash
from lst.records import file_sha256, read_json, write_atomically, write_json

SHARD_SIZE = 1 << 27  # speech tokens, or bytes of text, at which a shard is full; whole blocks only
REFUSALS = "refusals.jsonl"
REASONS = 50  # kinds of reasons that the manifest counts; the rest is "other"

Sizes = dict[str, list[dict[str, int]]]  # table -> split -> size, for each block


class Place(NamedTuple):
    """A row of a raw shard."""

    table: str
    block: int
    row: int


@dataclass
class Join:
    """One join: the work folder, the options, and what the passes over the raw shards have found."""

    work: WorkFolder
    options: dict[str, Any]  # of the join: heldout_share, split_by, refuse, max_refused, vocab_size, tokenizer, ngram
    blocks: dict[str, int] = field(default_factory=dict)  # table -> number of blocks
    counts: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    twice: dict[Place, Refused] = field(default_factory=dict)
    piece_times: bool = False  # characters are aligned, and so the pieces are

    def run(self) -> str:
        """Join, name the folder, remove the work folder; returns the data_id. Raises DataError; OSError on a full disk."""
        made_from = self.work.made_from()
        self.piece_times = bool(made_from["identity"]["speech"].get("aligner", {}).get("characters"))
        self.blocks = {table: count for table, count in made_from["blocks"].items() if count is not None}
        self._check_blocks()
        self._find_twice()
        refused = self._check_refusals()
        sides = self._draw_sides()
        sizes, sample = self._assign(sides)
        folder = self.work.join / "data"
        folder.mkdir(parents=True, exist_ok=True)
        self._keep_options()
        tokenizer = self._tokenizer(folder, sample)
        del sample  # up to 32 MiB of text
        shards = {table: self._write_table(table, sides, sizes[table], tokenizer, folder) for table in ("speech", "text")}
        made = {tokenizer_file(folder).name, *(shard["file"] for entries in shards.values() for shard in entries)}
        for left in {file.name for file in folder.iterdir()} - made:
            (folder / left).unlink()  # of a join that was killed further on
        manifest = self._manifest(made_from, shards, tokenizer, refused)
        overlap = measure_overlap(folder, manifest, self.options["ngram"])
        write_overlap(folder, overlap)
        self._write_refusals(folder)
        write_manifest(folder, manifest)
        write_summary(folder, summarise(Dataset(folder)))
        known = {s["file"]: s.pop("sha256") for entries in manifest["shards"].values() for s in entries}
        written = sorted(p for p in folder.iterdir() if p.name != MANIFEST)
        manifest["files"] = {p.name: known.get(p.name) or file_sha256(p) for p in written}
        write_manifest(folder, manifest)
        folder.rename(self.work.out)
        self.work.remove()
        print(describe_overlap(overlap))
        return str(manifest["data_id"])

    def source_of(self, table: str) -> str:
        """The raw table that a table is made from: transcripts are the text where no text is given."""
        return table if table in self.blocks else "speech"

    def rows(self, table: str, block: int, columns: Sequence[str]) -> Iterator[pa.Table]:
        """A block's rows that are not refused, batch by batch."""
        start = 0
        dropped = {place.row for place in self.twice if place[:2] == (table, block)}
        for rows in file_batches(self.work.block(table, block, "arrow"), columns):
            kept = [row not in dropped for row in range(start, start + rows.num_rows)] if dropped else None
            start += rows.num_rows
            yield rows if kept is None else rows.filter(pa.array(kept))

    def _check_blocks(self) -> None:
        for table, count in self.blocks.items():
            found = [self.work.finished(table, number) for number in range(count)]
            missing = [number for number, counts in enumerate(found) if counts is None]
            if missing:
                raise DataError(
                    f"{len(missing)} of {count} blocks of {table} are not read yet (from block {missing[0] + 1} on); run the "
                    f"parts that are missing, then join with: prepare-data merge {self.work.out}"
                )
            self.counts[table] = [counts for counts in found if counts is not None]
            for number, counts in enumerate(self.counts[table]):
                shard = self.work.block(table, number, "arrow")
                if not shard.is_file() or file_sha256(shard) != counts["sha256"]:
                    raise DataError(
                        f"'{shard}' is missing or damaged; delete '{self.work.block(table, number, 'json')}' and "
                        "read its part again."
                    )

    def _find_twice(self) -> None:
        """Records whose id an earlier record of the table has. Hashes find them; equal hashes are compared as texts."""
        for table, count in self.blocks.items():
            hashes = np.empty(sum(counts["rows"] for counts in self.counts[table]), np.uint64)
            start = 0
            for number in range(count):
                for rows in self.rows(table, number, ["id"]):
                    hashes[start : start + rows.num_rows] = ranks(rows["id"])
                    start += rows.num_rows
            hashes.sort()
            suspects = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
            del hashes
            if len(suspects):
                self._compare_ids(table, suspects)

    def _compare_ids(self, table: str, suspects: NDArray[np.uint64]) -> None:
        first: set[str] = set()
        for number in range(self.blocks[table]):
            start = 0
            for rows in file_batches(self.work.block(table, number, "arrow"), ["id", "line", "place"]):
                for row in np.flatnonzero(np.isin(ranks(rows["id"]), suspects)).tolist():
                    name, line, place = (rows[c][row].as_py() for c in ("id", "line", "place"))
                    if name in first:
                        file = Path(self.counts[table][number]["file"])
                        reason = f"id '{name}' stands on an earlier line too" if line else f"id '{name}' stands earlier too"
                        self.twice[Place(table, number, start + row)] = Refused(file, reason, line, place)
                        if self.options["refuse"] == "stop":
                            raise DataError(f"{Refused(file, reason, line, place)}; mend it, or skip it by refuse=skip.")
                    first.add(name)
                start += rows.num_rows

    def _check_refusals(self) -> dict[str, dict[str, Any]]:
        """Refusals by table and reason. Raises DataError if they are more than max_refused, or nothing is left."""
        report = {}
        for table in self.blocks:
            reasons: Counter[str] = Counter()
            first = ""
            for refused in self._refusals(table):
                first = first or str(refused)
                kind = re.sub(r"'[^']*'", "'...'", re.sub(r"\d+", "N", refused.reason))
                reasons[kind if kind in reasons or len(reasons) < REASONS else "other"] += 1
            count = sum(reasons.values())
            total = sum(counts["rows"] + counts["refused"] for counts in self.counts[table])
            if not total:
                raise DataError(f"the {table} input has no record in its {self.blocks[table]} blocks; give one that has some.")
            if self.options["refuse"] == "stop" and count:
                raise DataError(f"{first}; mend it, or go on without such records by refuse=skip.")
            if count > self.options["max_refused"] * total:
                raise DataError(
                    f"{count:,} of {total:,} records of the {table} input are malformed, more than "
                    f"max_refused={self.options['max_refused']}; the first: {first}"
                )
            report[table] = {"records": count, "by_reason": dict(sorted(reasons.items()))}
        return report

    def _refusals(self, table: str) -> Iterator[Refused]:
        """In the order of blocks; those of a block before the ids that it repeats."""
        twice = sorted(place for place in self.twice if place.table == table)
        for number in range(self.blocks[table]):
            yield from read_refusals(self.work.block(table, number, "refused"))
            yield from (self.twice[place] for place in twice if place.block == number)

    def _draw_sides(self) -> dict[str, Sides]:
        share, split_by = self.options["heldout_share"], self.options["split_by"]
        groups = Groups("spoken", split_by)
        for number in range(self.blocks["speech"]):
            for rows in self.rows("speech", number, ["id", "book", "speaker", "split", "speech_tokens"]):
                groups.add(rows, list_lengths(rows["speech_tokens"]))
        sides = {"speech": groups.draw(share)}
        print(groups.describe())
        if "text" in self.blocks:
            groups = Groups("text", split_by)
            for number in range(self.blocks["text"]):
                for rows in self.rows("text", number, ["id", "book", "split", "text"]):
                    groups.add(rows, list_lengths(rows["text"]))
            sides["text"] = groups.draw(share, self._sides_of_spoken_books(sides["speech"]))
            print(groups.describe())
        return sides

    def _sides_of_spoken_books(self, sides: Sides) -> dict[str, str]:
        """A book that stands on both sides counts as one of training."""
        books: dict[str, str] = {}
        for number in range(self.blocks["speech"]):
            for rows in self.rows("speech", number, ["id", "book", "speaker", "split"]):
                for book, side in set(zip(rows["book"].to_pylist(), sides.of(rows), strict=True)):
                    if book and books.get(f"book {book}") != "train":
                        books[f"book {book}"] = side
        return books

    def _table_rows(self, table: str, block: int, sides: dict[str, Sides], split: str = "") -> Iterator[pa.Table]:
        """The raw rows that become rows of `table`, with their split, of all splits or of one."""
        source = self.source_of(table)
        unwanted = ("line", "place") if self.piece_times else ("line", "place", CHARACTER_START)
        columns = [name for name in RAW[table].names if name not in unwanted]
        needed = columns if source == table else [*columns, "speaker"]
        for rows in self.rows(source, block, needed):
            drawn = sides[source].of(rows)
            rows = rows.set_column(rows.schema.get_field_index("split"), "split", pa.array(drawn, pa.string()))
            kept = [not split or side == split for side in drawn]
            if source != table:
                kept = [keep and bool(text.strip()) for keep, text in zip(kept, rows["text"].to_pylist(), strict=True)]
            if not all(kept):
                rows = rows.filter(pa.array(kept, pa.bool_()))
            yield rows.select(columns)

    def _assign(self, sides: dict[str, Sides]) -> tuple[Sizes, TextSample]:
        """How much of each split each block holds, and the text that a tokenizer is trained on."""
        sizes: Sizes = {"speech": [], "text": []}
        sample = TextSample()
        for table, count in (("speech", "speech_tokens"), ("text", "text")):
            for block in range(self.blocks[self.source_of(table)]):
                found = dict.fromkeys(SPLITS, 0)
                for rows in self._table_rows(table, block, sides):
                    splits, lengths = np.array(rows["split"].to_pylist(), object), list_lengths(rows[count])
                    for split in SPLITS:
                        found[split] += int(lengths[splits == split].sum())
                    if table == "text" and not self.options["tokenizer"]:
                        for name, text, split in zip(*(rows[c].to_pylist() for c in ("id", "text", "split")), strict=True):
                            if split == "train":
                                sample.add(name, text)
                sizes[table].append(found)
        share = self.options["heldout_share"]
        for table, name in (("speech", "spoken"), ("text", "text")):
            if table == "text" and not any(any(found.values()) for found in sizes[table]):
                raise DataError(
                    "no document has any text, and the text side needs some; give transcripts=, or text= with texts of your own."
                )
            if not any(found["train"] for found in sizes[table]):
                raise DataError(f"the input leaves no {name} document for training; lower heldout_share={share}.")
            if share and not any(found["heldout"] for found in sizes[table]):
                raise DataError(f"no {name} document is left to hold out; give more documents, or heldout_share=0.")
        return sizes, sample

    def _keep_options(self) -> None:
        """The join's options, so that a join that was interrupted cannot go on with others."""
        file = self.work.join / "joining.json"
        now = with_tokenizer(self.options)
        before = read_json(file)
        for key, value in (before or now).items():
            if now.get(key) != value:
                raise DataError(
                    f"the join in '{self.work.join}' was begun with {key}={value}, this command has {key}={now.get(key)}; "
                    "give the same, or delete that folder to join anew."
                )
        if before is None:
            write_json(file, now)

    def _tokenizer(self, folder: Path, sample: TextSample) -> TextTokenizer:
        """The given model, or one that is trained; kept in the data set. Raises DataError."""
        given, file = self.options["tokenizer"], tokenizer_file(folder)
        try:
            if given:
                tokenizer = TextTokenizer(Path(given))
                write_atomically(folder / tokenizer.file, tokenizer.content)
            elif not file.is_file():
                texts = [piece for _, text in sample.items() for piece in sentences(text)]
                write_atomically(file, train_tokenizer(texts, self.options["vocab_size"]))
        except DataError:
            shutil.rmtree(self.work.join)  # nothing is joined yet: other options may be given
            raise
        return TextTokenizer(tokenizer_file(folder))

    def _write_table(
        self, table: str, sides: dict[str, Sides], sizes: list[dict[str, int]], tokenizer: TextTokenizer, folder: Path
    ) -> list[dict[str, Any]]:
        from tqdm import tqdm

        runs = [(split, run) for split in SPLITS for run in _runs([found[split] for found in sizes])]
        entries = []
        for number, (split, run) in enumerate(tqdm(runs, desc=f"writing {table}", unit=" shards", disable=None, delay=2)):
            done = self.work.join / f"{table}-{number:05}.json"
            entry = read_json(done)
            if entry is None:
                entry = self._write_shard(table, sides, split, run, tokenizer, folder / f"{table}-{number:05}.arrow")
                write_json(done, entry)
            entries.append(entry)
        return entries

    def _write_shard(
        self, table: str, sides: dict[str, Sides], split: str, run: range, tokenizer: TextTokenizer, file: Path
    ) -> dict[str, Any]:
        aside = self.work.join / f".{file.name}"
        schema = table_schema(table, tokenizer.size)
        schema = with_piece_times(schema) if table == "speech" and self.piece_times else schema
        writer = ShardWriter(aside, schema, TOKENS[table])
        try:
            for block in run:
                for rows in self._table_rows(table, block, sides, split):
                    if rows.num_rows:
                        writer.write(with_text_tokens(table, rows, tokenizer))
            written = writer.close()
        except BaseException:
            writer.abandon()
            raise
        aside.replace(file)
        return {"file": file.name, "split": split, **written._asdict()}

    def _manifest(
        self,
        made_from: dict[str, Any],
        shards: dict[str, list[dict[str, Any]]],
        tokenizer: TextTokenizer,
        refused: dict[str, Any],
    ) -> dict[str, Any]:
        contents = {t: content_hash([[s["split"], s["content_sha256"]] for s in entries], 64) for t, entries in shards.items()}
        contents["tokenizer"] = file_sha256(tokenizer_file(self.work.join / "data"))
        contents["speech_vocab"] = str(made_from["reading"]["speech_vocab"])  # a larger one moves the markers' ids
        cards = {table: card for table, card in made_from["identity"].items() if card}
        contents |= {f"{table}_source": content_hash(card, 64) for table, card in cards.items()}
        about = {
            **made_from["about"],
            "refused": sum(found["records"] for found in refused.values()),
            "split_by": self.options["split_by"],
            "heldout_share": self.options["heldout_share"],
        }
        return {
            "format_version": FORMAT_VERSION,
            "data_id": identity(contents),
            "content_sha256": contents,
            "text_vocab": tokenizer.size,
            "speech_vocab": made_from["reading"]["speech_vocab"],
            "rows": {table: sum(s["rows"] for s in entries) for table, entries in shards.items()},
            "tokens": {table: sum(s["tokens"] for s in entries) for table, entries in shards.items()},
            **self._audio_seconds(),
            "refused": refused,
            "shards": shards,
            "made_from": made_note(made_from, self.options),
            "about": about | cards.get("speech", {}),  # speech_tokenizer: the card; aligner; how another rate became 25 Hz
        }

    def _audio_seconds(self) -> dict[str, float]:
        """Seconds of audio that all speech tokens were made from, where every document's are known."""
        found = [counts["audio_seconds"] for counts in self.counts["speech"] if counts["rows"]]
        known = all(found) and not any(place.table == "speech" for place in self.twice)
        return {"audio_seconds": round(math.fsum(found), 3)} if known else {}

    def _write_refusals(self, folder: Path) -> None:
        """All refusals of both inputs, if there are any."""
        file = folder / REFUSALS
        with file.open("w", encoding="utf-8") as lines:
            for table in self.blocks:
                lines.writelines(refusal_line(table, refused) for refused in self._refusals(table))
        if not file.stat().st_size:
            file.unlink()


def _runs(sizes: Sequence[int]) -> Iterator[range]:
    """Runs of blocks that fill a shard each, by the size of their rows of one split; blocks without any stand in no run alone."""
    start, held = 0, 0
    for block, size in enumerate(sizes):
        held += size
        if held >= SHARD_SIZE:
            yield range(start, block + 1)
            start, held = block + 1, 0
    if held:
        yield range(start, len(sizes))
