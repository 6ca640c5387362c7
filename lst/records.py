"""What a run writes, and how: names of the files in a run's folder, a crash-safe JSON-lines writer, a tolerant reader.

docs/run_folder.md is the data dictionary. One process writes a run's records; anybody may read them at any time. A line
is written whole with one system call; a torn last line (a full disk, a kill) is ignored by the reader and cut off by the
next writer. Not here: what the records mean (the trainer) and how they become tables (`analysis.collect`).
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RUN_CONFIG = "run.yaml"
TRAIN_RECORDS = "train.jsonl"
EVAL_RECORDS = "eval.jsonl"
ITEM_RECORDS = "items.jsonl"
EXIT = "exit.json"
FAILURE = "failure.json"
LOG = "log.txt"
CHECKPOINTS = "checkpoints"

WALL_CLOCK_FIELDS = frozenset({"time", "seconds", "data_seconds", "tokens_per_second", "mfu", "peak_memory_mib"})
"""Fields that may differ between a run and its killed and resumed twin (DESIGN rule 4)."""


class JsonLinesWriter:
    """Appends records to a file, each a line flushed at once.

    `keep` decides which earlier records stay when a run goes on after a kill: those past the checkpoint are dropped
    (they will be written again, equal), so that each step stands once.
    """

    def __init__(self, path: Path, *, last_step: int | None = None) -> None:
        """Open `path`; records whose `step` is past `last_step` are dropped first, and a torn last line with them."""
        self.path = path
        if path.exists():
            kept = [r for r in read_jsonl(path) if last_step is None or r["step"] <= last_step]
            write_atomically(path, "".join(_line(r) for r in kept).encode())
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, record: dict[str, Any]) -> None:
        """Append one record. Raises OSError on a full disk, after cutting off what was half-written."""
        data = _line(record).encode()
        size = os.fstat(self._file).st_size
        try:
            written = os.write(self._file, data)
        except OSError:
            os.ftruncate(self._file, size)
            raise
        if written != len(data):
            os.ftruncate(self._file, size)
            raise OSError(28, f"no space left to append to '{self.path}'")

    def close(self) -> None:
        os.close(self._file)

    def __enter__(self) -> JsonLinesWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def iter_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The whole records of `path`, in order; a torn last line and a missing file give nothing."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                yield record


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return list(iter_jsonl(path))


def is_whole_text(path: Path) -> bool:
    """Whether a table's file ends with a line's end, as every file here is written; a torn copy does not."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        return file.read(1) == b"\n"


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where the file is missing or torn."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def write_json(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: written aside, flushed to disk, renamed. On an error the old file stays."""
    handle, aside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(aside).chmod(0o644)
        Path(aside).replace(path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n"
