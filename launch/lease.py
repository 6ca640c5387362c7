"""One run, one runner; one study, one submitter: a locked file that says who holds it, since when it was heard of, and its owner.

Two things tell that a holder lives. The kernel's lock (`flock`) dies with its holder and with those that inherited the file (a
worker hands it to its trainer), so a kill on this machine leaves nothing to clean up. Where the lock does not tell enough
(a machine that hangs or was cut off, a filesystem that keeps locks to one machine), the heartbeat does: a holder that
was not heard of for LEASE_SECONDS, by the clock of whoever listens, is gone. Every taking writes a new *owner* with a token
that rises; whoever finds another owner than itself is fenced off and writes no more (lst/train/fence.py). The file is
replaced when it is taken by force, so that the lock on the old one means nothing. Not here: what is done under a lease.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import time
import uuid
from pathlib import Path
from typing import Any

from lst.file_lock import is_at
from lst.records import EVAL_RECORDS, ITEM_RECORDS, TRAIN_RECORDS, read_json

PROBE_SECONDS = 0.3  # a reader holds the lock for microseconds while it looks; a runner outwaits that
BEAT_SECONDS = 5.0
LEASE_SECONDS = 60.0  # a holder that was not heard of for so long is taken for gone
CONFIRM_SECONDS = 3 * BEAT_SECONDS  # how long one is listened to whose last beat is as old by this machine's clock
OLD_LIFE_SECONDS = 5.0  # how long the processes of the same job's earlier life may take to die
DISPLACED = (".lock", TRAIN_RECORDS, EVAL_RECORDS, ITEM_RECORDS)  # what a former runner may hold open


class Lease:
    """A held lease on `path`. Release it, or end the process (and those that inherited the file)."""

    def __init__(self, path: Path, file: int, content: dict[str, Any]) -> None:
        self.path = path
        self.file = file  # descriptor that holds the lock
        self.content = content
        self.former: dict[str, Any] = {}  # what the holder before said last
        self._written = 0  # bytes

    @classmethod
    def acquire(cls, path: Path, *, wait: float = PROBE_SECONDS, beats: bool = False, **about: Any) -> Lease | None:
        """Take the lease and write who holds it (`about`, host, process, time); None if another holds it.

        With `beats` the holder promises to call `beat`, and one who no longer does is displaced. Clocks of two machines may
        differ, so one is taken for silent only after it was listened to. Raises OSError where the file cannot be written.
        """
        deadline, ear = time.monotonic() + wait, _Ear()
        while True:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            locked = _lock(file)
            mine = locked and is_at(file, path)
            found = read_json(path) or {}
            same_job = bool(found.get("job_id")) and found.get("job_id") == about.get("job_id")
            if mine and not (beats and _may_live(found) and (not same_job or _elsewhere(found))):
                return cls._begin(path, file, found, beats, about)
            os.close(file)
            late = time.monotonic() >= deadline
            if beats and (mine or (not locked and (same_job or _stale(found)))):  # the lock does not tell enough
                if ear.hears_nothing_of(found) or (same_job and (mine or time.monotonic() > deadline + OLD_LIFE_SECONDS)):
                    return cls._displace(path, found, beats, about)
                if ear.heard and not same_job:
                    return None
            elif late:
                return None
            time.sleep(0.5 if late else 0.02)

    @classmethod
    def _begin(cls, path: Path, file: int, found: dict[str, Any], beats: bool, about: dict[str, Any]) -> Lease:
        before = found.get("token")
        token = (before if isinstance(before, int) else 0) + 1
        lease = cls(path, file, {"token": token, "owner": f"{token}-{uuid.uuid4().hex[:12]}", "beats": beats})
        lease.former = found
        lease._written = os.fstat(file).st_size
        lease.describe(**about)
        return lease

    @classmethod
    def _displace(cls, path: Path, found: dict[str, Any], beats: bool, about: dict[str, Any]) -> Lease:
        """Take the run from a holder that hangs: with new files in the place of those that it may still write to."""
        aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
        file = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        _lock(file)
        lease = cls._begin(path, file, found, beats, about)
        aside.replace(path)
        for name in DISPLACED:
            old = path.with_name(name)
            if old.is_file() and lease.held():  # two may displace at once
                shutil.copyfile(old, aside)
                aside.replace(old)
        return lease

    @property
    def owner(self) -> str:
        return str(self.content["owner"])

    def describe(self, **about: Any) -> None:
        """Say who holds it: `about` replaces what was said before."""
        now = round(time.time(), 3)
        kept = {key: self.content[key] for key in ("token", "owner", "beats")}
        self.content = {
            **kept,
            "host": socket.gethostname(),
            "process": process_mark(os.getpid()),
            "time": now,
            "beat": now,
            **about,
        }
        self._write()

    def beat(self) -> bool:
        """Be heard of; False if the lease is another's by now."""
        if not self.held():
            return False
        self.content["beat"] = round(time.time(), 3)
        self._write()
        return True

    def held(self) -> bool:
        """Whether nobody has taken it over."""
        return is_at(self.file, self.path) and (read_json(self.path) or self.content).get("owner") == self.owner

    def release(self) -> None:
        """Let the next one have it at once."""
        if self.content["beats"] and self.held():
            self.content["released"] = True
            self._write()
        with contextlib.suppress(OSError):  # a filesystem without locks
            fcntl.flock(self.file, fcntl.LOCK_UN)
        os.close(self.file)

    def _write(self) -> None:
        data = (json.dumps(self.content) + "\n").encode()
        padded = data.ljust(self._written)  # one write covers the old text: nobody reads half of each
        os.pwrite(self.file, padded, 0)
        if self.content["beats"]:  # while the file is open, a client of NFS keeps what was written to itself for half a minute
            os.fsync(self.file)
        self._written = len(padded)


def holder(path: Path) -> dict[str, Any] | None:
    """Who holds `path` (what the file says, at least {}, and `locked`: whether the kernel says so), or None where it is free."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return (read_json(path) or {}) | {"locked": True}
    except OSError:  # a filesystem without locks: the heartbeat tells
        pass
    finally:
        with contextlib.suppress(OSError):
            os.close(file)
    content = read_json(path) or {}
    return content | {"locked": False} if _may_live(content) and not _stale(content) else None


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


def _lock(file: int) -> bool:
    """Whether the file is ours now, as far as the kernel can tell."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a filesystem without locks: the heartbeat must do
        return True
    return True


class _Ear:
    """Listens to a holder: whether it beats, by this process's own clock."""

    def __init__(self) -> None:
        self.heard = False
        self._last: object = None
        self._since = 0.0

    def hears_nothing_of(self, content: dict[str, Any]) -> bool:
        """Whether it was silent for long enough: where its last beat looks old already, a few beats are enough."""
        beat, now = (content.get("owner"), content.get("beat")), time.monotonic()
        if self._last is None:
            self._last, self._since = beat, now
        self.heard = self.heard or beat != self._last
        return not self.heard and now - self._since >= (CONFIRM_SECONDS if _stale(content) else LEASE_SECONDS)


def _may_live(content: dict[str, Any]) -> bool:
    """Whether a holder whose lock is not seen may live all the same: it has not taken its leave, and is not known to be dead."""
    if not content.get("beats") or content.get("released"):
        return False
    mark = content.get("process")
    if _elsewhere(content):
        return True
    if not isinstance(mark, list) or len(mark) != 2 or not isinstance(mark[0], int):
        return False
    return mark[0] != os.getpid() and process_mark(mark[0]) == mark


def _elsewhere(content: dict[str, Any]) -> bool:
    """Whether the holder that did not take its leave was on another machine: nobody here knows what it still does."""
    return bool(content.get("beats")) and not content.get("released") and content.get("host") != socket.gethostname()


def _stale(content: dict[str, Any]) -> bool:
    beat = content.get("beat")
    return bool(content.get("beats")) and isinstance(beat, int | float) and time.time() - beat > LEASE_SECONDS
