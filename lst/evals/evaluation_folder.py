"""The folder of one evaluation: what was evaluated and how, its metrics and its items; whole or not there.

    OUT/evaluation.json    checkpoint, task, options, versions (docs/evaluation.md)
    OUT/eval.jsonl         a record a metric, as the trainer writes it
    OUT/items.jsonl        a record an item

While it is made, the folder is `.OUT.work` beside OUT, and finished items stand in its items.jsonl: the same command goes on
after the last whole part. One process works in it at a time.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lst.errors import ConfigError, RunFailed
from lst.plain import content_hash
from lst.records import EVAL_RECORDS, ITEM_RECORDS, JsonLinesWriter, read_json, read_jsonl, write_json

CARD = "evaluation.json"
LOCK = "lock"


def evaluation_id(decisive: Mapping[str, Any]) -> str:
    """12 hex digits that name an evaluation: what is evaluated, on what, how."""
    return content_hash(dict(decisive))


class EvaluationFolder:
    """An evaluation that is being made, or is there."""

    def __init__(self, out: Path, decisive: Mapping[str, Any]) -> None:
        """Raises ConfigError if `out` holds anything else."""
        self.out, self.decisive, self.id = out, dict(decisive), evaluation_id(decisive)
        self.work = out.parent / f".{out.name}.work"
        if out.exists() and not self.is_done:
            raise ConfigError(f"out={out} holds something else; give a new folder.")

    @property
    def is_done(self) -> bool:
        """Whether just this evaluation stands in `out`."""
        card = read_json(self.out / CARD)
        return card is not None and card.get("evaluation_id") == self.id

    @contextlib.contextmanager
    def begun(self) -> Iterator[list[dict[str, Any]]]:
        """The work folder, locked, and the items that an earlier attempt finished. Raises RunFailed if another works there."""
        self.work.mkdir(parents=True, exist_ok=True)
        with (self.work / LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunFailed(f"'{self.work}' is in use by another evaluation; wait for it.") from error
            if read_json(self.work / CARD) != self.decisive:
                (self.work / ITEM_RECORDS).unlink(missing_ok=True)
                write_json(self.work / CARD, self.decisive)
            yield read_jsonl(self.work / ITEM_RECORDS)

    def add_items(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Append finished items."""
        with JsonLinesWriter(self.work / ITEM_RECORDS) as writer:
            for record in records:
                writer.write(dict(record))
            writer.flush_to_disk()

    def finish(self, card: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> None:
        """Write metrics and card, and give the folder its name."""
        from lst.train.layout import flush_to_disk

        (self.work / EVAL_RECORDS).unlink(missing_ok=True)
        with JsonLinesWriter(self.work / EVAL_RECORDS) as writer:
            for metric in metrics:
                writer.write(dict(metric))
        write_json(self.work / CARD, dict(card) | {"evaluation_id": self.id, "decided_by": self.decisive})
        (self.work / LOCK).unlink()
        flush_to_disk(self.work)
        os.rename(self.work, self.out)  # noqa: PTH104  # refuses a folder that holds anything
