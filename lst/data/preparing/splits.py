"""Which documents are held out: whole books and speakers, drawn by their names' hashes, never by sentence.

`split_by` says what stands on one side as a whole:

    book_and_speaker  connected components of the graph whose nodes are books and speakers and whose edges are documents
    book              books (a document without one: its speaker)
    speaker           speakers (a document without one: its book)
    document          documents

A document without book and speaker is a group of its own. Groups that hold a row with a `split` of its own follow that row
(`train` if there are both). The others are taken in the order of their names' hashes, each that fits into the share of tokens
that is asked for, and then the smallest that is left if that comes nearer. So the choice depends neither on the order of
the input nor on its parts. Groups of one document are so many that their hashes' quantile decides.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lst.errors import DataError

NEXT_BEST = {"book_and_speaker": "book", "book": "document", "speaker": "document", "document": ""}
_SETS = {"book_and_speaker": "sets of books and speakers that no document ties together"}
TOO_MUCH, TOO_LITTLE = 0.15, 0.2  # more than this above the share that is asked for; less than this part of it


def rank(name: str) -> int:
    """64 bits of a name's hash: its place in the draw."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


def ranks(names: pa.ChunkedArray) -> NDArray[np.uint64]:
    """The ranks of a column of names."""
    return np.fromiter((rank(name) for name in names.to_pylist()), np.uint64, len(names))


def group_keys(book: str, speaker: str, split_by: str) -> tuple[str, ...]:
    """The groups that a document ties together; none for a document that is a group of its own."""
    both = [key for key in (f"book {book}" if book else "", f"speaker {speaker}" if speaker else "") if key]
    if split_by == "document":
        return ()
    if split_by == "book_and_speaker":
        return tuple(both)
    return tuple(both[:1] if split_by == "book" else both[-1:])


@dataclass(frozen=True)
class Sides:
    """The side of each document of a table."""

    split_by: str
    of_group: dict[str, str]  # a book's or a speaker's key -> train or heldout
    below: int  # a document that is a group of its own is held out if its id's rank is lower
    settled: dict[str, str] = field(default_factory=dict)  # books whose side another table has drawn, where documents are groups

    def of(self, rows: pa.Table) -> list[str]:
        """The split of each row of `rows` (columns id, book, split, and speaker where the table has it)."""
        books, ids, splits = (rows[name].to_pylist() for name in ("book", "id", "split"))
        speakers = rows["speaker"].to_pylist() if "speaker" in rows.schema.names else [""] * len(books)
        return [split or self._drawn(*names) for split, *names in zip(splits, ids, books, speakers, strict=True)]

    def _drawn(self, name: str, book: str, speaker: str) -> str:
        keys = group_keys(book, speaker, self.split_by)
        if keys:
            return self.of_group[keys[0]]
        if f"book {book}" in self.settled:
            return self.settled[f"book {book}"]
        return "heldout" if rank(name) < self.below else "train"


@dataclass
class Groups:
    """The groups of a table, gathered batch by batch. Memory grows with books and speakers, and by 8 bytes a lone document."""

    table: str
    split_by: str
    _parent: dict[str, str] = field(default_factory=dict)
    _size: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # tokens without a split of their own
    _given: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))  # splits that rows name
    _lone: list[NDArray[np.uint64]] = field(default_factory=list)
    _splits: set[str] = field(default_factory=set)
    _documents: int = 0

    def add(self, rows: pa.Table, tokens: NDArray[np.int64]) -> None:
        """Add rows (columns id, book, split, and speaker where the table has it) of so many tokens each."""
        self._documents += rows.num_rows
        columns = [c for c in ("book", "speaker", "split") if c in rows.schema.names]
        counted = rows.select(columns).append_column("tokens", pa.array(tokens)).group_by(columns).aggregate([("tokens", "sum")])
        for row in counted.to_pylist():
            self._add(row["book"], row.get("speaker", ""), row["split"], row["tokens_sum"])
        lone = np.array(
            [not split and not group_keys(book, speaker, self.split_by) for book, speaker, split in _named(rows)], bool
        )
        if lone.any():
            self._lone.append(ranks(rows["id"].filter(pa.array(lone))))

    def draw(self, share: float, settled: dict[str, str] | None = None) -> Sides:
        """The sides, with about `share` of the tokens held out. `settled` are books whose side another table has drawn.

        Raises DataError where no choice of whole groups comes near the share; DataError names the next best split_by.
        """
        settled = settled or {}
        members = defaultdict(list)
        for key in self._parent:
            members[self._root(key)].append(key)
        fixed = {root: side for root, keys in members.items() if (side := self._fixed(keys, settled))}
        free = {root: sum(self._size[k] for k in keys) for root, keys in members.items() if root not in fixed}
        lone = np.concatenate(self._lone) if self._lone else np.empty(0, np.uint64)
        named = {root: min(members[root]) for root in free}  # a name that does not depend on the order of the input
        others = len(lone) > 1 or "heldout" in self._splits or "heldout" in fixed.values()
        held = self._held_out(free, named, share, others)
        count = min(round(share * len(lone)), len(lone) - 1)
        if share and len(lone) > 1 and not (held or "heldout" in self._splits or "heldout" in fixed.values()):
            count = max(count, 1)
        below = int(np.partition(lone, count)[count]) if count > 0 else 0
        drawn = fixed | {root: "heldout" if root in held else "train" for root in free}
        of_group = {key: drawn[root] for root, keys in members.items() for key in keys}
        return Sides(self.split_by, of_group, below, {} if members else settled)

    def describe(self) -> str:
        """What was drawn, for people: groups of books and speakers, or documents."""
        count = len({self._root(key) for key in self._parent})
        lone = sum(len(ids) for ids in self._lone)
        found = [f"{count:,} {_SETS.get(self.split_by, f'{self.split_by}s')}"] if count else []
        found += [f"{lone:,} documents one by one"] if lone else []
        found += ["documents with a split of their own"] if self._splits else []
        told = f"{self.table} documents are split by {self.split_by}: {', '.join(found)}"
        if count or not lone or self.split_by == "document":
            return told
        return f"{told}, for no record names a book or a speaker (layout= or names= may tell them from paths of audio files)"

    def _held_out(self, free: dict[str, int], named: dict[str, str], share: float, others: bool) -> set[str]:
        """Roots of the groups to hold out. `others`: something else is held out, so that none need be."""
        total, held, chosen = sum(free.values()), 0, list[str]()
        if not share:
            return set()
        order = sorted(free, key=lambda root: (rank(named[root]), named[root]))
        for root in order:
            if held + free[root] <= share * total:
                held += free[root]
                chosen.append(root)
        taken = set(chosen)
        left = min((root for root in order if root not in taken), key=lambda root: free[root], default=None)
        if left is not None:  # the smallest other one: where it brings the sum nearer, or nothing is held out yet
            nearer = held + free[left] / 2 <= share * total
            if nearer or (share and not chosen and not others and len(free) > 1):
                held += free[left]
                chosen.append(left)
        if len(chosen) == len(free) and chosen:
            held -= free[chosen.pop()]
        if share and total and not others and not TOO_LITTLE * share <= held / total <= share + TOO_MUCH:
            raise DataError(self._too_far(len(free), max(free.values()) / total, held / total, share))
        return set(chosen)

    def _too_far(self, count: int, largest: float, held: float, share: float) -> str:
        what = _SETS.get(self.split_by, f"{self.split_by}s")
        found = f"the {self.table} documents form one group" if count == 1 else (
            f"the {self.table} documents have {count} {what}, of which the largest has {largest:.1%} of the tokens: "
            f"{held:.1%} would be held out"
        )  # fmt: skip
        if self._documents == 1:
            found = f"there is one {self.table} document; give more, or heldout_share=0"
            return f"heldout_share={share} cannot be met: {found}."
        remedy = f"give split_by={NEXT_BEST[self.split_by]}, another heldout_share, or rows with a 'split' of their own"
        return f"heldout_share={share} cannot be met with split_by={self.split_by}: {found}; {remedy}."

    def _add(self, book: str, speaker: str, split: str, tokens: int) -> None:
        if split:
            self._splits.add(split)
        keys = group_keys(book, speaker, self.split_by)
        for key in keys:
            self._parent.setdefault(key, key)
        if keys:
            if split:
                self._given[keys[0]].add(split)
            else:
                self._size[keys[0]] += tokens
            if len(keys) > 1:
                self._parent[self._root(keys[1])] = self._root(keys[0])

    def _root(self, key: str) -> str:
        while self._parent[key] != key:
            self._parent[key] = self._parent[self._parent[key]]
            key = self._parent[key]
        return key

    def _fixed(self, keys: list[str], settled: dict[str, str]) -> str:
        """The side that another table, or rows of these groups themselves, settle; "" where neither does."""
        sides = {settled[key] for key in keys if key in settled} or {side for key in keys for side in self._given.get(key, ())}
        return "train" if "train" in sides else "heldout" if sides else ""


def _named(rows: pa.Table) -> Any:
    books, splits = rows["book"].to_pylist(), rows["split"].to_pylist()
    speakers = rows["speaker"].to_pylist() if "speaker" in rows.schema.names else [""] * len(books)
    return zip(books, speakers, splits, strict=True)
