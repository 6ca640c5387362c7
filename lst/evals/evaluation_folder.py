"""The folder of one evaluation: what was evaluated and how, its metrics and its items; whole or not there.

    OUT/evaluation.json    checkpoint, task, options, versions (docs/evaluation.md)
    OUT/eval.jsonl         a record a metric, as the trainer writes it
    OUT/items.jsonl        a record an item

While it is made, the folder is `.OUT.work` beside OUT. Items come in *parts*, cut by their number alone:

    .OUT.work/parts/00007.jsonl    the records of a finished part, written aside and renamed

So the same command goes on after what is finished, several processes may share the parts (shard=i/N), and whoever finishes the
last part joins them: the result depends neither on N nor on interruptions. One process works on a shard at a time.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lst.errors import ConfigError, LstError, RunFailed
from lst.file_lock import locked
from lst.plain import content_hash
from lst.records import EVAL_RECORDS, EVALUATION_CARD, ITEM_RECORDS, read_json, read_jsonl, write_atomically, write_json

PARTS = "parts"
WEIGHTS = ("step", "branch")  # of the run, where the checkpoint's folder tells them
Records = list[dict[str, Any]]

log = logging.getLogger(__name__)


def evaluation_id(decisive: Mapping[str, Any]) -> str:
    """12 hex digits that name an evaluation: what is evaluated, on what, how."""
    return content_hash(dict(decisive))


class Shard(NamedTuple):
    """Which of the parts a process makes: every `of`-th, from `number` (from 1) on."""

    number: int = 1
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From `2/4`. Raises ConfigError."""
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        shard = cls(*map(int, found.groups())) if found else cls(0, 0)
        if not 1 <= shard.number <= shard.of:
            raise ConfigError(f"shard={text} is no share of the work; give the i-th of N as i/N, as in shard=2/4.")
        return shard

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


class EvaluationFolder:
    """An evaluation that is being made, or is there."""

    def __init__(self, out: Path, decisive: Mapping[str, Any], *, shard: str = "1/1") -> None:
        """Raises ConfigError if `out` holds anything else, or `shard` is none; CheckpointError if it would lie in a file."""
        from lst.model.export import require_folders_above

        self.out, self.decisive, self.id, self.shard = out, dict(decisive), evaluation_id(decisive), Shard.parse(shard)
        self.work = out.parent / f".{out.name}.work"
        require_folders_above(out)
        if not self.is_done and (out.is_symlink() or out.exists()):
            raise ConfigError(f"out={out} holds something else; give a new folder.")

    @property
    def is_done(self) -> bool:
        """Whether just this evaluation stands in `out`."""
        card = read_json(self.out / EVALUATION_CARD)
        return card is not None and card.get("evaluation_id") == self.id

    @contextlib.contextmanager
    def records(self, sizes: Sequence[int], make: Callable[[int], Records]) -> Iterator[Records | None]:
        """All records, of parts that have so many each (`sizes`), in their order; `make(i)` computes part i.

        Parts that are there are not made again. None where other shards have parts left, or finished the evaluation meanwhile
        (`is_done`). While the caller has the records nobody else does. Raises RunFailed if another process works on this shard.
        """
        with contextlib.ExitStack() as stack:
            own = f"lock-{self.shard.number}-of-{self.shard.of}"
            stack.enter_context(self._lock(own, wait=False))
            with self._lock("lock"):
                done = self.is_done  # the others ended it while this one waited
                if done:
                    shutil.rmtree(self.work, ignore_errors=True)
                elif read_json(self.work / EVALUATION_CARD) != self.decisive:
                    self._start_anew(own)
            if done:
                yield None
                return
            try:
                for i in range(self.shard.number - 1, len(sizes), self.shard.of):
                    if self._part(i, sizes[i]) is None:
                        self._write_part(i, make(i))
            except (LstError, KeyboardInterrupt) as end:
                self._drop_if_nothing_is_done(own)
                if isinstance(end, KeyboardInterrupt):
                    kept = f"finished parts are kept in '{self.work}', and the same command goes on from there"
                    log.warning("interrupted; %s.", kept if self.work.exists() else "nothing was finished, and nothing is left")
                raise
            stack.enter_context(self._lock("lock"))
            parts = [self._part(i, size) for i, size in enumerate(sizes)]
            if self.is_done:
                shutil.rmtree(self.work, ignore_errors=True)  # of a shard that began when the others were just done
            left = self.is_done or any(part is None for part in parts)
            yield None if left else [record for part in parts if part is not None for record in part]

    def finish(self, card: Mapping[str, Any], records: Sequence[Mapping[str, Any]], metrics: Sequence[Mapping[str, Any]]) -> None:
        """Write items, metrics and card, and give the folder its name. Each item says of which weights its answer is."""
        from lst.train.layout import flush_to_disk

        weights = {name: card[name] for name in WEIGHTS if name in card}
        write_atomically(self.work / ITEM_RECORDS, _lines([weights | dict(record) for record in records]))
        write_atomically(self.work / EVAL_RECORDS, _lines(metrics))
        write_json(self.work / EVALUATION_CARD, dict(card) | {"evaluation_id": self.id, "decided_by": self.decisive})
        shutil.rmtree(self.work / PARTS, ignore_errors=True)
        flush_to_disk(self.work)
        os.rename(self.work, self.out)  # noqa: PTH104  # refuses a folder that holds anything
        for lock in self.out.glob("lock*"):  # until here they keep out who would take the folder for another evaluation's
            lock.unlink()

    @property
    def left(self) -> str:
        """What to tell where `records` gave None."""
        if self.is_done:
            return f"{self.out}: this evaluation is there already."
        return f"shard {self.shard} of {self.out} is done; the other shards' parts are missing, and the last to finish joins all."

    def _start_anew(self, own: str) -> None:
        """Drop the parts of another evaluation that was never finished. Raises RunFailed if somebody is still at it.

        Where no card is, nothing has begun: a shard that holds its lock already is waiting to read what is written here.
        """
        begun = (self.work / EVALUATION_CARD).exists()
        for lock in self.work.glob("lock-*") if begun else ():
            if lock.name != own:
                with self._lock(lock.name, wait=False):
                    pass
        for path in self.work.iterdir():
            if path.is_dir():
                shutil.rmtree(path)  # parts, and what a task writes beside them: its sound, above all
            elif not path.name.startswith("lock"):
                path.unlink()
        write_json(self.work / EVALUATION_CARD, self.decisive)

    def _drop_if_nothing_is_done(self, own: str) -> None:
        """Leave nothing of what was refused before its first part, unless another shard is there."""
        with self._lock("lock"):
            others = [lock for lock in self.work.glob("lock-*") if lock.name != own]
            if not others and not any((self.work / PARTS).glob("*")):
                shutil.rmtree(self.work, ignore_errors=True)

    def _part(self, number: int, size: int) -> Records | None:
        """The records of a finished part; None where it is missing or damaged."""
        records = read_jsonl(self.work / PARTS / f"{number:05}.jsonl")
        return records if len(records) == size else None

    def _write_part(self, number: int, records: Records) -> None:
        (self.work / PARTS).mkdir(parents=True, exist_ok=True)
        write_atomically(self.work / PARTS / f"{number:05}.jsonl", _lines(records))

    @contextlib.contextmanager
    def _lock(self, name: str, *, wait: bool = True) -> Iterator[None]:
        """Hold a lock of the work folder. Raises RunFailed where another has it and `wait` is False."""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(self.work / name, wait=wait))
            except BlockingIOError as error:
                raise RunFailed(f"'{self.work}' ({name}) is in use by another evaluation; wait for it.") from error
            yield


def _lines(records: Sequence[Mapping[str, Any]]) -> bytes:
    """JSON lines as lst.records writes them. Raises RunFailed on a value that is no number."""
    try:
        return "".join(json.dumps(dict(r), separators=(",", ":"), allow_nan=False) + "\n" for r in records).encode()
    except ValueError as error:
        raise RunFailed(
            "the model's log-likelihoods are no numbers (nan or infinite): its training diverged, or dtype= is too coarse."
        ) from error
