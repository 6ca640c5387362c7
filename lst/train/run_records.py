"""The three record files of a run in training, opened where its checkpoint stands.

Not here: what a record holds (lst.train.metrics).
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from lst.records import EVAL_RECORDS, ITEM_RECORDS, TRAIN_RECORDS, JsonLinesWriter, Position
from lst.train.fence import require_lease


class NoRecords:
    """Takes records in the place of a JsonLinesWriter, and drops them."""

    dropped: tuple[dict[str, Any], ...] = ()
    position = Position()

    def write(self, record: dict[str, Any]) -> None: ...
    def flush_to_disk(self) -> None: ...
    def close(self) -> None: ...


class FencedWriter(JsonLinesWriter):
    """Writes as long as the run is this runner's; raises Fenced afterwards."""

    def write(self, record: dict[str, Any]) -> None:
        require_lease(self.path.parent)
        super().write(record)


class RunRecords:
    """Writers of train.jsonl, eval.jsonl and items.jsonl."""

    def __init__(self, run_dir: Path, positions: dict[str, dict[str, Any]], *, writes: bool = True) -> None:
        """Cut each file at its entry of `positions` (none: at its start). Raises CheckpointError on a damaged file.

        Without `writes` (of several processes only one has it) no file is touched, and records go nowhere.
        """

        def opened(name: str) -> FencedWriter | NoRecords:
            if not writes:
                return NoRecords()
            require_lease(run_dir)
            return FencedWriter(run_dir / name, position=Position(**positions.get(name, {})))

        self.train = opened(TRAIN_RECORDS)
        self.evaluations = opened(EVAL_RECORDS)
        self.items = opened(ITEM_RECORDS)
        self._writers = {TRAIN_RECORDS: self.train, EVAL_RECORDS: self.evaluations, ITEM_RECORDS: self.items}

    @property
    def lost_seconds(self) -> float:
        """Training time of the steps that were cut off: it was spent all the same."""
        return sum(float(record.get("seconds", 0.0)) for record in self.train.dropped)

    def flush_to_disk(self) -> dict[str, dict[str, Any]]:
        """Flush what a checkpoint is about to count on; its positions, as `state.json` keeps them."""
        for writer in self._writers.values():
            writer.flush_to_disk()
        return {name: asdict(writer.position) for name, writer in self._writers.items()}

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
