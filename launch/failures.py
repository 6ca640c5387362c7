"""What went wrong, in one class and one line: failure.json of a run whose trainer could not write it itself.

The trainer writes failure.json for whatever it can catch; the worker writes it for the rest (killed by a signal, out of
memory, died while starting, stopped before its end). Not here: what to do about it (`launch.retries`).
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import time
from enum import StrEnum
from pathlib import Path
from typing import Any

from lst.records import FAILURE, LOG, TRAIN_RECORDS, read_json, write_json

TAIL_BYTES = 16_384
TRACEBACK_LINES = 40
CAUSE_LENGTH = 300


class FailureClass(StrEnum):
    """The classes of failure.json (docs/run_folder.md)."""

    OOM = "oom"
    NAN = "nan"
    DISK_FULL = "disk_full"
    CONFIG = "config"
    DATA = "data"
    IMPORT = "import"
    KILLED = "killed"
    ERROR = "error"
    TIMEOUT = "timeout"
    PREEMPTED = "preempted"
    NODE_FAILURE = "node_failure"
    LOST = "lost"
    CANCELLED = "cancelled"
    BUDGET = "budget"
    CANARY = "canary"  # no failure: it has done its steps, and the grid follows


SRUN = (  # srun's own: a node of its job went down, or the job is being ended; its exit status may be 0
    (FailureClass.NODE_FAILURE, re.compile(r"srun: error: Node failure on")),
    (FailureClass.LOST, re.compile(r"Job/step already completing|Cancelled pending job step|Expired or invalid job")),
)
PATTERNS = (
    (FailureClass.DISK_FULL, re.compile(r"No space left on device|no space left|Disk quota exceeded")),
    (
        FailureClass.OOM,
        re.compile(r"OutOfMemoryError|CUDA out of memory|MemoryError|can't allocate memory|Cannot allocate memory"),
    ),
    (FailureClass.IMPORT, re.compile(r"ModuleNotFoundError|ImportError|No module named|slurm_script: line \d+: .*No such file")),
    (FailureClass.DATA, re.compile(r"DataError")),
    (FailureClass.CONFIG, re.compile(r"ConfigError|CheckpointError")),
)


def judge_death(exit_code: int, log_tail: str, oom_kills: int = 0) -> tuple[FailureClass, str]:
    """Class and one-line cause of a trainer that ended with `exit_code` (negative: a signal) and left no failure.json.

    `oom_kills` is how many processes the kernel has killed for memory meanwhile, as far as this job's group tells.
    """
    if exit_code < 0:
        name = signal_name(-exit_code)
        if oom_kills > 0:
            return (
                FailureClass.OOM,
                f"the kernel killed the trainer for memory ({name}); lower execution.micro_batch_tokens or ask for more.",
            )
        hint = "; often the kernel's out-of-memory killer, or somebody's kill -9" if -exit_code == signal.SIGKILL else ""
        return FailureClass.KILLED, f"the trainer was killed by {name}{hint}."
    last = last_line(log_tail)
    for name_of_class, pattern in SRUN if exit_code == 0 else SRUN + PATTERNS:
        fitting = [line for line in log_tail.splitlines() if pattern.search(line)]
        if fitting:
            return name_of_class, one_line(fitting[-1])
    if exit_code == 0:
        return FailureClass.ERROR, "the trainer ended with 0 and left no exit.json."
    fallback = FailureClass.CONFIG if exit_code == 2 else FailureClass.ERROR
    return fallback, last or f"the trainer ended with {exit_code} and printed nothing."


def write_failure(
    run_dir: Path, failure: FailureClass, cause: str, *, attempt: int, log_tail: str = "", node: str = ""
) -> dict[str, Any]:
    """Write failure.json and return its content."""
    record = last_record(run_dir / TRAIN_RECORDS)
    content = {
        "run_id": run_dir.name,
        "class": failure.value,
        "cause": one_line(cause),
        "traceback": "\n".join(log_tail.splitlines()[-TRACEBACK_LINES:]),
        "attempt": attempt,
        "step": int(record.get("step", 0)) if record else 0,
        "node": node or socket.gethostname(),
        "time": round(time.time(), 3),
    }
    write_json(run_dir / FAILURE, content)
    return content


def failure_text(failure: dict[str, Any] | None) -> str:
    """`class: cause` of a failure.json, for a table; empty where there is none."""
    return one_line(f"{failure.get('class', 'error')}: {failure.get('cause', '')}") if failure else ""


def failure_stamp(run_dir: Path) -> tuple[int, int] | None:
    """Changes whenever failure.json is written anew; None where there is none."""
    try:
        found = (run_dir / FAILURE).stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def log_tail(run_dir: Path, since: int = 0) -> str:
    """The last kilobytes that the run printed, none from before byte `since`."""
    return tail_of(run_dir / LOG, since)


def tail_of(path: Path, since: int = 0) -> str:
    """The last kilobytes of a text file, none from before byte `since`; empty where there is no file."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(since, size - TAIL_BYTES, 0))
            return file.read(TAIL_BYTES).decode(errors="replace")
    except FileNotFoundError:
        return ""


def last_record(path: Path) -> dict[str, Any] | None:
    """The last whole record of a JSON-lines file, read from its end."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    with file:
        size = file.seek(0, 2)
        block = 4096
        while True:
            start = max(0, size - block)
            file.seek(start)
            # the first piece may be the end of a line, the last one a line still being written
            lines = file.read(size - start).split(b"\n")[:-1]
            for line in reversed(lines[1:] if start else lines):
                try:
                    record = json.loads(line)
                except ValueError:
                    continue
                if _is_sound(record):
                    return dict(record)
            if not start:
                return None
            block *= 8


def last_records(path: Path) -> list[dict[str, Any]]:
    """The whole records in the last kilobytes of a JSON-lines file, oldest first."""
    records = []
    for line in tail_of(path).split("\n")[:-1]:
        with contextlib.suppress(ValueError):
            records.append(json.loads(line))
    return [record for record in records if _is_sound(record)]


def _is_sound(record: Any) -> bool:
    """Whether it is a record, and what is reckoned with are numbers."""
    if not isinstance(record, dict) or not isinstance(record.get("step", 0), int):
        return False
    return all(isinstance(record.get(name) or 0, int | float) for name in ("time", "train_flops", "spent_flops"))


def last_line(text: str) -> str:
    """The last line that is not blank."""
    return next((one_line(line) for line in reversed(text.splitlines()) if line.strip()), "")


def one_line(text: str) -> str:
    """`text` on one printable line, cut to a table's length."""
    flat = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(flat.split())[:CAUSE_LENGTH]


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def count_oom_kills() -> int:
    """Processes of this process's control group that the kernel has killed for memory so far; 0 where it cannot be told."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        group = next(line.split("::", 1)[1] for line in lines if line.startswith("0::"))
        events = Path(f"/sys/fs/cgroup{group}/memory.events").read_text()
        return int(next(line.split()[1] for line in events.splitlines() if line.startswith("oom_kill ")))
    except (OSError, StopIteration, ValueError, IndexError):
        return 0


def read_failure(run_dir: Path) -> dict[str, Any] | None:
    return read_json(run_dir / FAILURE)
