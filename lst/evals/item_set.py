"""An item set: choice items with their text and their speech tokens in one folder, with a manifest and an identity.

    DIR/manifest.json   format version, items_id, task, counts, the tokenizer's and the voice's card, checksums
    DIR/items.parquet   a row an item (schema ITEMS)

`prepare-data eval=FILE out=DIR` makes one (lst/evals/make_items.py). `items_id` is the hash of the items' content, of the card of
what made their speech tokens and of the voice that spoke them: sets of other voices or quantizers are other sets. Text is kept as
text and encoded by the data set's tokenizer when it is scored, so one set serves every model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lst.data.boundary_noise import NoiseRange, frame_moves, move_boundaries
from lst.data.interleave import Segment
from lst.data.preparing.shard_writer import table_hash, write_manifest
from lst.data.shards import MANIFEST, MANIFEST_SUM, Dataset, manifest_text
from lst.data.text import TextTokenizer
from lst.errors import ConfigError, DataError
from lst.evals.choices import DIRECTIONS, ChoiceItem, score_table
from lst.plain import content_hash
from lst.records import file_sha256

ITEM_SET_VERSION = 1
TABLE = "items.parquet"
SMOKE = "hellaswag_spoken_smoke"  # 200 items of HellaSwag's validation file, spoken by espeak: no benchmark
MODALITY = {"S": "speech", "T": "text"}
DECISIVE = ("layer", "k", "rate_hz", "dedup", "features", "quantizer_sha256", "weights_sha256")

ITEMS = pa.schema(
    {
        "id": pa.string(),
        "group": pa.string(),  # a part of the task; "" = none
        "pair": pa.string(),  # items of one pair are averaged first; "" = none
        "prompt": pa.int8(),  # 1: the first of texts and of speech is the prompt; 0: there is none
        "right": pa.int32(),  # place of the right ending among the endings, from 0
        "texts": pa.list_(pa.string()),  # prompt and endings; empty where the set has no text
        "speech": pa.list_(pa.list_(pa.uint16())),  # their speech tokens; empty where the set has no speech
        "words": pa.list_(pa.list_(pa.uint32())),  # their words' first and last frames, one after the other; empty = not known
    }
)


@dataclass(frozen=True, kw_only=True)
class Item:
    """One item as it is stored. Parts are the prompt, if there is one, and the endings."""

    id: str
    right: int
    prompt: bool = True
    group: str = ""
    pair: str = ""
    texts: tuple[str, ...] = ()
    speech: tuple[NDArray[np.integer], ...] = ()
    words: tuple[NDArray[np.integer], ...] = ()  # (n, 2) of each part

    def row(self) -> dict[str, Any]:
        row = {name: getattr(self, name) for name in ("id", "group", "pair", "right")}
        flat = [np.asarray(w, np.int64).reshape(-1).tolist() for w in self.words]
        return row | {
            "prompt": int(self.prompt),
            "texts": list(self.texts),
            "speech": [np.asarray(s).tolist() for s in self.speech],
            "words": flat,
        }


def write_item_set(folder: Path, rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> dict[str, Any]:
    """Fill `folder`, which is empty; the manifest. `about` has `task`, and `speech_tokenizer` and `voice` where known."""
    table = pa.Table.from_pylist(list(rows), schema=ITEMS)
    pq.write_table(table, folder / TABLE, compression="zstd")
    decisive = {"speech_tokenizer": card_identity(about.get("speech_tokenizer")), "voice": about.get("voice")}
    manifest = {
        "item_set_version": ITEM_SET_VERSION,
        "items_id": content_hash({"items": table_hash(table), **decisive}),
        "rows": len(rows),
        "endings": sorted({len(r["texts"] or r["speech"]) - r["prompt"] for r in rows}),
        "directions": _directions(rows),
        "aligned": all(r["words"] for r in rows),
        "files": {TABLE: file_sha256(folder / TABLE)},
        **about,
    }
    write_manifest(folder, manifest)
    return manifest


def is_task_name(name: object) -> bool:
    """Whether results can stand in a folder of this name."""
    return isinstance(name, str) and bool(name) and Path(name).name == name and not name.startswith(".") and name.isprintable()


def _directions(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    has = {"S": all(r["speech"] for r in rows), "T": all(r["texts"] for r in rows)}
    crossing = all(r["prompt"] for r in rows)
    return [d for d in DIRECTIONS if has[d[0]] and has[d[-1]] and (d[0] == d[-1] or crossing)]


def card_identity(card: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What of a speech tokenizer's card decides the tokens (SpeechTokenizerCard.identity), from the card or from that."""
    if not card:
        return None
    known = {name: card.get(name, "") for name in DECISIVE}
    return known | ({} if known["weights_sha256"] else {"model": card.get("model", "")})


class ItemSet:
    """An opened item set. Its table is read when it is first asked for."""

    def __init__(self, path: Path) -> None:
        """Raises DataError if `path` is no item set, or a damaged one."""
        self.path = path
        file = path / MANIFEST
        if not file.is_file():
            raise DataError(f"items='{path}' has no {MANIFEST}; make an item set with: prepare-data eval=FILE out={path}")
        try:
            text = file.read_text(encoding="utf-8")
            self.manifest: dict[str, Any] = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"'{file}' is not JSON ({error}); make the item set again.") from error
        if not isinstance(self.manifest, dict) or self.manifest.get("item_set_version") != ITEM_SET_VERSION:
            raise DataError(
                f"'{path}' is no item set of version {ITEM_SET_VERSION}; make one with: prepare-data eval=FILE out=DIR"
            )
        if MANIFEST_SUM not in self.manifest or text != manifest_text(self.manifest):
            raise DataError(f"'{file}' is damaged (its checksum differs); make the item set again, or copy it again.")
        sums = self.manifest.get("files")
        if not (path / TABLE).is_file() or not isinstance(sums, dict) or file_sha256(path / TABLE) != sums.get(TABLE):
            raise DataError(f"'{path / TABLE}' is missing or damaged; make the item set again, or copy it again.")
        if not self._is_of_its_table():
            raise DataError(f"'{file}' does not describe its {TABLE}; make the item set again.")

    def _is_of_its_table(self) -> bool:
        """Whether the manifest's values are those that this program writes for such a table: a hand may have changed them."""
        known = {name: self.manifest.get(name) for name in ("items_id", "task", "directions", "aligned", "rows")}
        directions = known["directions"]
        return (
            isinstance(known["items_id"], str)
            and is_task_name(known["task"])
            and isinstance(directions, list)
            and bool(directions)
            and all(d in DIRECTIONS for d in directions)
            and isinstance(known["aligned"], bool)
            and known["rows"] == pq.read_metadata(self.path / TABLE).num_rows
        )

    @property
    def items_id(self) -> str:
        return str(self.manifest["items_id"])

    @property
    def task(self) -> str:
        return str(self.manifest["task"])

    @property
    def directions(self) -> list[str]:
        """The directions that the items' text and speech allow."""
        return list(self.manifest["directions"])

    def __len__(self) -> int:
        return int(self.manifest["rows"])

    @cached_property
    def table(self) -> pa.Table:
        return pq.read_table(self.path / TABLE)

    def require_tokens_of(self, dataset: Dataset) -> None:
        """Raises DataError unless the set's speech tokens were made by what made the data set's, and lie in its range."""
        ours = card_identity(self.manifest.get("speech_tokenizer"))
        theirs = card_identity(dataset.manifest.get("about", {}).get("speech_tokenizer"))
        if ours != theirs:
            one, other = (ours or {}), (theirs or {})
            key = next(k for k in (*DECISIVE, "model") if one.get(k) != other.get(k))
            raise DataError(
                f"item set '{self.path}' has another speech tokenizer than data '{dataset.path}' ({key}: {one.get(key)!r} and "
                f"{other.get(key)!r}); prepare the items with that quantizer, or with card=FILE if their tokens are its."
            )
        spoken = (s for parts in self.table["speech"].to_pylist() for s in parts if s)
        highest = max((max(s) for s in spoken), default=0)
        if highest >= dataset.speech_vocab:
            raise DataError(
                f"item set '{self.path}' has speech token {highest}, data '{dataset.path}' only 0..{dataset.speech_vocab - 1}; "
                "prepare the items with the data's quantizer."
            )

    def require_direction(self, direction: str) -> None:
        """Raises ConfigError where the items have not the text or the speech for it."""
        if direction not in self.directions:
            raise ConfigError(
                f"directions={direction}: item set '{self.path}' has {', '.join(self.directions)}; choose among these, or "
                "prepare it with speech (voice=) or text."
            )

    def scores(self, direction: str) -> tuple[str, ...]:
        """The scores that are defined for all items in a direction."""
        alone = [1.0] if all(self.table["prompt"].to_pylist()) else []
        return tuple(score_table(direction, [1.0], tokens=[1], sizes=[1], alone=alone))

    def choices(
        self, direction: str, tokenizer: TextTokenizer, *, first: int = 0, count: int | None = None, noise: NoiseRange = (0, 0)
    ) -> list[ChoiceItem]:
        """The items from `first` on in one direction, in the set's order; borders of words moved by `noise` milliseconds, each
        inside its part (lst.data.boundary_noise). Raises ConfigError on a direction that they do not have."""
        self.require_direction(direction)
        rows = self.table.slice(first, count).to_pylist()
        return [_choice(self.task, direction, row, tokenizer, noise) for row in rows]


def _choice(task: str, direction: str, row: Mapping[str, Any], tokenizer: TextTokenizer, noise: NoiseRange) -> ChoiceItem:
    given, asked = MODALITY[direction[0]], MODALITY[direction[-1]]
    prompt = _segment(given, row, 0, tokenizer, noise) if row["prompt"] else None
    places = range(row["prompt"], len(row["texts"] or row["speech"]))
    endings = tuple(_segment(asked, row, i, tokenizer, noise) for i in places)
    sizes = tuple(len(row["texts"][i].encode()) for i in places) if asked == "text" else ()
    names = {key: row[key] for key in ("right", "group", "pair")}
    return ChoiceItem(task=task, direction=direction, item=row["id"], prompt=prompt, endings=endings, ending_bytes=sizes, **names)


def _segment(modality: str, row: Mapping[str, Any], part: int, tokenizer: TextTokenizer, noise: NoiseRange) -> Segment:
    if modality == "text":
        return Segment("text", np.asarray(tokenizer.encode(row["texts"][part]), np.int64))
    tokens = np.asarray(row["speech"][part], np.int64)
    words = np.asarray(row["words"][part], np.int64).reshape(-1, 2) if row["words"] else None
    return Segment("speech", tokens, words if words is None or not noise[1] else _moved(words, len(tokens), noise))


def _moved(words: NDArray[np.int64], frames: int, noise: NoiseRange) -> NDArray[np.int64]:
    """The words of a part of `frames` frames with their borders moved. What is drawn follows from the part alone, so that all
    endings of an item meet the same prompt."""
    moves, first, after = frame_moves(words[:, 0], frames, noise), words[:, 0], words[:, 1] + 1
    limits = (np.zeros(len(words), np.int64), np.full(len(words), frames))
    first, after = move_boundaries(first, after, (moves[first], moves[after]), limits)
    return np.stack([first, after - 1], 1)


def open_item_set(name: str) -> ItemSet:
    """The item set in folder `name`, or SMOKE, the one that ships. Raises ConfigError without a name, DataError if it is none."""
    if not name:
        raise ConfigError("give items=DIR, the folder of an item set; make one with: prepare-data eval=FILE out=DIR")
    return ItemSet(Path(__file__).parent / "embedded" if name == SMOKE else Path(name))
