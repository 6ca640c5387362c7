"""A prepared data set: one folder of columnar tables, a text tokenizer and a manifest with checksums.

    DIR/manifest.json      format version, data_id, counts, cards, and for each file its SHA-256
    DIR/tokenizer.model    SentencePiece model of the text side; or DIR/tokenizer.json (lst/data/tokenizer_json.py)
    DIR/speech.arrow       a row a spoken document (schema SPEECH)
    DIR/text.arrow         a row a text document (schema TEXT)
    DIR/stories.arrow      story-completion items (schema STORIES), if there are any

A large table is many *shards* instead, each with rows of one split, those of `train` first; the manifest lists them:

    "shards": {"speech": [{"file": "speech-00000.arrow", "split": "train", "rows": n, "tokens": t}, ...], "text": [...]}

Shards are Arrow files of several record batches, read in place (lst/data/columns.py).

`.arrow` files are memory-mapped; `.parquet` files of the same schema are compressed and read into memory (that is how
the embedded corpus ships). `data_id` is the hash of the tables' content, so both forms of one data set share it. A
folder is written aside and renamed: it is there whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lst.data.columns import MappedFile, Part, Split, all_rows, rows_of_split
from lst.data.columns import Ragged as Ragged
from lst.data.columns import ragged as ragged
from lst.data.text import TextTokenizer, tokenizer_file
from lst.errors import DataError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
MANIFEST_SUM = "manifest_sha256"
SPLITS = ("train", "heldout")

_ids = pa.list_(pa.uint16())
_frames = pa.list_(pa.uint32())
_texts = pa.list_(pa.string())

SPEECH = pa.schema(
    {
        "id": pa.string(),
        "speaker": pa.string(),
        "book": pa.string(),
        "split": pa.string(),
        "text": pa.string(),  # the transcript
        "speech_tokens": _ids,  # 25 Hz, not deduplicated
        "words": _texts,
        "word_start": _frames,  # first frame of each word
        "word_end": _frames,  # last frame of each word, itself inside
        "word_text_tokens": _ids,  # pieces of all words, one after another
        "word_text_lengths": _frames,  # how many of them each word has
    }
)
TEXT = pa.schema(
    {
        "id": pa.string(),
        "book": pa.string(),
        "split": pa.string(),
        "text": pa.string(),
        "text_tokens": _ids,
    }
)
PIECE_TIMES = ("piece_start", "piece_end")
"""Optional columns of SPEECH (lists of int32, one value a piece): its first and last frame, from the document's start. A
piece without frames ends before it starts. Without these columns a word's frames are divided (lst/data/piece_spans.py)."""
STORIES = pa.schema(
    {
        "id": pa.string(),
        "book": pa.string(),
        "speaker": pa.string(),
        "prompt": pa.string(),
        "right": pa.string(),
        "elsewhere": _texts,  # wrong endings from other stories
        "later": _texts,  # wrong endings from later in the same story (harder)
        "prompt_speech": _ids,
        "right_speech": _ids,
        "elsewhere_speech": pa.list_(_ids),
        "later_speech": pa.list_(_ids),
    }
)
TOKEN_COLUMNS = {"speech": "speech_tokens", "text": "text_tokens"}
"""The columns whose tokens a table's documents and shards are counted by."""
SCHEMAS = {"speech": SPEECH, "text": TEXT, "stories": STORIES}
TEXT_PIECES = ("word_text_tokens", "text_tokens")  # columns of text pieces: 16 bits each where the vocabulary allows it


def table_schema(name: str, text_vocab: int) -> pa.Schema:
    """The columns of a table whose text tokenizer has `text_vocab` pieces."""
    wide = text_vocab > 1 << 16
    fields = [pa.field(f.name, pa.list_(pa.uint32())) if wide and f.name in TEXT_PIECES else f for f in SCHEMAS[name]]
    return pa.schema(fields)


def speech_row_error(row: Mapping[str, Any], speech_vocab: int) -> str | None:
    """Why a spoken document breaks the contract, or None: tokens in range, words in order, inside, not overlapping."""
    tokens, words, starts, ends = row["speech_tokens"], row["words"], row["word_start"], row["word_end"]
    if not len(tokens):
        return "it has no speech tokens"
    lowest, highest = int(np.min(tokens)), int(np.max(tokens))
    if lowest < 0 or highest >= speech_vocab:
        return f"speech token {highest if highest >= speech_vocab else lowest} lies outside 0..{speech_vocab - 1}"
    if not len(words) == len(starts) == len(ends):
        return f"{len(words)} words have {len(starts)} starts and {len(ends)} ends"
    last = -1
    for word, start, end in zip(words, starts, ends, strict=True):
        if start <= last:
            return f"word '{word}' starts at frame {start}, inside the word before it (which ends at {last})"
        if end < start:
            return f"word '{word}' ends at frame {end}, before it starts at {start}"
        if end >= len(tokens):
            return f"word '{word}' ends at frame {end}, past the last frame {len(tokens) - 1}"
        last = end
    return None


def piece_times_error(row: Mapping[str, Any]) -> str | None:
    """Why the times of a document's pieces break the contract, or None: one a piece, in order, each inside its word."""
    starts, ends = row["piece_start"], row["piece_end"]
    if not sum(row["word_text_lengths"]) == len(starts) == len(ends):
        return f"{sum(row['word_text_lengths'])} pieces have {len(starts)} starts and {len(ends)} ends"
    piece, last = 0, -1
    for word, first, final, count in zip(row["words"], row["word_start"], row["word_end"], row["word_text_lengths"], strict=True):
        for start, end in zip(starts[piece : piece + count], ends[piece : piece + count], strict=True):
            if end < start:
                continue
            if not max(first, last + 1) <= start <= end <= final:
                return f"a piece of word '{word}' at frames {start}..{end} leaves its word ({first}..{final}) or its order"
            last = end
        piece += count
    return None


def manifest_text(manifest: Mapping[str, Any]) -> str:
    """manifest.json with its own checksum, byte for byte."""
    content = {key: value for key, value in manifest.items() if key != MANIFEST_SUM}
    content[MANIFEST_SUM] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


class Dataset:
    """An opened data set. Columns are loaded when first asked for."""

    def __init__(self, path: Path) -> None:
        """Raises DataError if `path` is no prepared data set, or one of another format version."""
        self.path = path
        file = path / MANIFEST
        if not file.is_file():
            raise DataError(f"data '{path}' has no {MANIFEST}; prepare it with: prepare-data input=FILE out={path}")
        try:
            text = file.read_text(encoding="utf-8")
            self.manifest: dict[str, Any] = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"'{file}' is not JSON ({error}); prepare the data set again.") from error
        if not isinstance(self.manifest, dict) or "data_id" not in self.manifest:
            raise DataError(f"'{file}' is no manifest of a data set; prepare the data set again.")
        if self.manifest.get("format_version") != FORMAT_VERSION:
            raise DataError(
                f"'{file}' has format_version={self.manifest.get('format_version')}, this program reads {FORMAT_VERSION}; "
                "prepare the data set again."
            )
        if MANIFEST_SUM in self.manifest and text != manifest_text(self.manifest):
            raise DataError(f"'{file}' is damaged (its checksum differs); prepare the data set again, or copy it again.")

    @property
    def data_id(self) -> str:
        return str(self.manifest["data_id"])

    @property
    def text_vocab(self) -> int:
        return int(self.manifest["text_vocab"])

    @property
    def speech_vocab(self) -> int:
        return int(self.manifest["speech_vocab"])

    @property
    def has_stories(self) -> bool:
        return "stories" in self.manifest["rows"]

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        return TextTokenizer(tokenizer_file(self.path))

    @cached_property
    def speech(self) -> pa.Table:
        """All spoken documents. Opens every shard: for looking at some rows of a data set of moderate size."""
        return self._table("speech")

    @cached_property
    def text(self) -> pa.Table:
        """All text documents, as `speech`."""
        return self._table("text")

    @cached_property
    def stories(self) -> pa.Table:
        return self._table("stories")

    def rows(self, name: str, split: str) -> NDArray[np.int64] | range:
        """Row numbers of table `name` that belong to `split`, in file order: of a table in shards, a range."""
        if self._in_shards(name):
            shards = self._shards(name)
            first = 0 if split == SPLITS[0] else sum(shard["rows"] for shard in shards if shard["split"] == SPLITS[0])
            return range(first, first + sum(shard["rows"] for shard in shards if shard["split"] == split))
        table: pa.Table = getattr(self, name)
        return np.flatnonzero(np.array(table["split"].to_pylist(), dtype=object) == split)

    def documents(self, name: str, split: str) -> Split:
        """The documents of table `name` (`speech` or `text`) in `split`, for one thread. Raises DataError on broken shards."""
        column = TOKEN_COLUMNS[name]
        if not self._in_shards(name):
            arrow = self.path / f"{name}.arrow"
            whole = partial(MappedFile, arrow) if arrow.is_file() else getattr(self, name).to_batches
            return Split([Part(name, whole, rows_of_split(split), column)], column)
        return Split([self._part(shard, column) for shard in self._shards(name) if shard["split"] == split], column)

    def _in_shards(self, name: str) -> bool:
        return name in self.manifest.get("shards", {})

    def _part(self, shard: Mapping[str, Any], column: str) -> Part:
        path = self.path / str(shard["file"])
        return Part(str(path), partial(MappedFile, path), all_rows, column, (int(shard["rows"]), int(shard["tokens"])))

    def _shards(self, name: str) -> list[dict[str, Any]]:
        """The manifest's shards of a table that is in shards. Raises DataError where their list is damaged."""
        shards: list[dict[str, Any]] = self.manifest["shards"][name]
        for shard in shards:
            plain = isinstance(shard.get("file"), str) and Path(shard["file"]).name == shard["file"]
            counted = all(isinstance(shard.get(key), int) for key in ("rows", "tokens"))
            if not (plain and counted and shard.get("split") in SPLITS):
                raise DataError(f"'{self.path / MANIFEST}' has a damaged shard of {name} ({shard}); prepare the data set again.")
        return shards

    def _table(self, name: str) -> pa.Table:
        arrow, parquet = self.path / f"{name}.arrow", self.path / f"{name}.parquet"
        try:
            if self._in_shards(name):
                files = [str(self.path / shard["file"]) for shard in self._shards(name)]
                return pa.concat_tables(pa.ipc.open_file(pa.memory_map(file)).read_all() for file in files)
            if arrow.is_file():
                return pa.ipc.open_file(pa.memory_map(str(arrow))).read_all()
            return pq.read_table(parquet)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"table '{name}' of '{self.path}' cannot be read ({error}); prepare the data set again.") from error


def embedded_path() -> Path:
    """The folder of the corpus that ships with this package."""
    return Path(__file__).parent / "embedded"


def open_dataset(path: str | Path) -> Dataset:
    """The data set in folder `path`, or the embedded corpus for 'embedded'."""
    return Dataset(embedded_path() if str(path) == "embedded" else Path(path))
