"""One run, one runner; one study, one submitter: files that are held by a lock which dies with its holder.

The lock is the kernel's (`flock`), so a killed holder leaves nothing to clean up. A worker hands the open file on to its
trainer: should the worker be killed, the run stays held until the trainer is gone too. The file's content only says who
holds it. Not here: holders on machines that do not share locks.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from lst.records import read_json

LEASE = "lease.json"
PROBE_SECONDS = 0.3  # a reader holds the lock for microseconds while it looks; a runner outwaits that


class Lease:
    """A held lock on `path`. Release it, or end the process (and those that inherited the file)."""

    def __init__(self, path: Path, file: int) -> None:
        self.path = path
        self.file = file  # descriptor that holds the lock

    @classmethod
    def acquire(cls, path: Path, *, wait: float = PROBE_SECONDS, **about: Any) -> Lease | None:
        """Take the lock within `wait` seconds and write who holds it (`about`, host, process, time); None if another holds it."""
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        deadline = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    os.close(file)
                    return None
                time.sleep(0.02)
        lease = cls(path, file)
        lease.describe(**about)
        return lease

    def describe(self, **about: Any) -> None:
        """Replace the file's content."""
        content = {"host": socket.gethostname(), "process": process_mark(os.getpid()), "time": round(time.time(), 3), **about}
        os.ftruncate(self.file, 0)
        os.pwrite(self.file, (json.dumps(content) + "\n").encode(), 0)

    def release(self) -> None:
        fcntl.flock(self.file, fcntl.LOCK_UN)
        os.close(self.file)


def holder(path: Path) -> dict[str, Any] | None:
    """Who holds the lock on `path` (what the file says; at least {}), or None where it is free."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return read_json(path) or {}
    finally:
        with contextlib.suppress(OSError):
            os.close(file)
    return None


def signal_holder(path: Path, number: int) -> bool:
    """Signal the process that holds `path` (its trainer, if the worker is gone); False if it is not on this machine or gone."""
    content = holder(path)
    if content is None or content.get("host") != socket.gethostname():
        return False
    for name in ("process", "trainer"):
        mark = content.get(name)
        if isinstance(mark, list) and len(mark) == 2 and isinstance(mark[0], int) and process_mark(mark[0]) == mark:
            with contextlib.suppress(ProcessLookupError):
                os.kill(mark[0], number)
                return True
    return False


def process_mark(pid: int) -> list[int]:
    """[pid, start time in clock ticks since boot]: tells a process from a later one of the same id; 0 where there is no /proc."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
        return [pid, int(after_name.split()[19])]
    except (OSError, IndexError, ValueError):
        return [pid, 0]
