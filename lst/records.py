"""What a run writes, and how: names of the files in a run's folder, a crash-safe JSON-lines writer, a tolerant reader.

docs/run_folder.md is the data dictionary. One process writes a run's records; anybody may read them at any time. A line
is written whole with one system call; a torn last line (a full disk, a kill) is ignored by the reader and cut off by the
next writer. Not here: what the records mean (the trainer) and how they become tables (`analysis.collect`).
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lst.errors import CheckpointError

STUDY_FILE = "study.yaml"
RUN_CONFIG = "run.yaml"
TRAIN_RECORDS = "train.jsonl"
EVAL_RECORDS = "eval.jsonl"
ITEM_RECORDS = "items.jsonl"
EXIT = "exit.json"
FAILURE = "failure.json"
LOG = "log.txt"
LEASE = "lease.json"
EVALUATION = "eval.json"  # what a row of kind eval is to evaluate
EVALUATIONS, EVALUATION_CARD = "evals", "evaluation.json"  # a run's evaluations, a folder each, and what each is of
CHECKPOINTS = "checkpoints"
KEPT_CHECKPOINTS = 2  # that a run in training keeps: the newest, and one before it in case the newest is damaged

PUT_BACK = "plan the study again into the same folder, which puts it back."
_ROWS = "# rows of plan.csv: "

WALL_CLOCK_FIELDS = frozenset(
    {
        "time", "seconds", "data_seconds", "data_wait_share", "tokens_per_second", "units_per_second", "audio_seconds_per_second",
        "mfu", "peak_memory_mib", "micro_batch_tokens", "processes",
    }
)  # fmt: skip
"""Fields that may differ between a run and its killed and resumed twin (DESIGN rule 4)."""


@dataclass(frozen=True)
class Position:
    """How far a file of records reaches: what a checkpoint counts on, to the byte."""

    bytes: int = 0
    sha256: str = hashlib.sha256().hexdigest()  # of these bytes


class JsonLinesWriter:
    """Appends records to a file, each a line flushed at once.

    A run that goes on after a kill opens its records at the checkpoint's `position`: what stands behind it is dropped (it
    will be written again, equal), so that each step stands once.
    """

    def __init__(self, path: Path, *, position: Position | None = None) -> None:
        """Open `path` and cut it at `position` (without one: behind its last whole line).

        `dropped` are the records that were cut off. Raises CheckpointError, before anything is changed, where the file does
        not begin with what `position` counts on.
        """
        self.path = path
        data = path.read_bytes() if path.exists() else b""
        end = data.rfind(b"\n") + 1 if position is None else position.bytes
        self._digest = hashlib.sha256(data[:end])
        if position is not None and (len(data) < end or self._digest.hexdigest() != position.sha256):
            what = "is shorter than" if len(data) < end else "does not begin with"
            raise CheckpointError(
                f"'{path}' {what} the {end:,} bytes that the checkpoint counts on; restore it, or delete it and the folder "
                f"'{CHECKPOINTS}' beside it to train the run from the start."
            )
        self.dropped = [r for r in map(parse_line, data[end:].splitlines(keepends=True)) if r is not None]
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._size = end
        if end < len(data):
            os.ftruncate(self._file, end)

    @property
    def position(self) -> Position:
        """Behind the last record."""
        return Position(self._size, self._digest.hexdigest())

    def write(self, record: dict[str, Any]) -> None:
        """Append one record. Raises OSError on a full disk, after cutting off what was half-written."""
        data = _line(record).encode()
        try:
            written = os.write(self._file, data)
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        if written != len(data):
            os.ftruncate(self._file, self._size)
            raise OSError(28, f"no space left to append to '{self.path}'")
        self._size += written
        self._digest.update(data)

    def flush_to_disk(self) -> None:
        os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)

    def __enter__(self) -> JsonLinesWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def iter_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The whole records of `path`, in order; a torn last line and a missing file give nothing."""
    try:
        file = path.open("rb")
    except (FileNotFoundError, NotADirectoryError):
        return
    with file:
        for line in file:
            record = parse_line(line)
            if record is not None:
                yield record


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return list(iter_jsonl(path))


def is_whole_text(path: Path) -> bool:
    """Whether a table's file ends with a line's end, as every file here is written; a torn copy does not."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        return file.read(1) == b"\n"


def rows_line(rows: int) -> str:
    """The last line of study.yaml, a comment: how many rows its plan.csv has."""
    return f"{_ROWS}{rows}\n"


def cut_table(study: Path, rows: int) -> str:
    """What is wrong where `rows` rows of plan.csv are fewer than study.yaml says; empty where it says nothing, too.

    More are right: a plan that grows gets its table first.
    """
    try:
        *_, last = (study / STUDY_FILE).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return ""
    planned = last.removeprefix(_ROWS)
    if planned == last or not planned.isdecimal() or int(planned) <= rows:
        return ""
    return f"is cut: it holds {rows} of its {planned} rows; {PUT_BACK}"


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


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parse_line(line: bytes) -> dict[str, Any] | None:
    """The record on a whole line; None for a torn or damaged one."""
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # damage may open more brackets than Python follows
        return None
    return record if isinstance(record, dict) else None


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n"
