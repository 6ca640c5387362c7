"""A lock on a file that its holder may remove. The kernel frees it on any exit. Not here: what is locked, and what is told."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock of the file `path`, made with its folders where it is missing; the holder may remove it.

    A lock on a file that was removed, or renamed, before it was got keeps nobody out: then that on the file which is there now is
    taken. Raises BlockingIOError where another process holds it and `wait` is False. On a filesystem without locks nothing is
    held, which is told.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except FileNotFoundError:
            continue  # another process has just removed the folder
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise
            except OSError as error:
                log.warning("cannot lock '%s' (%s); make sure that nobody else works there", path, error.strerror)
            if is_at(file, path):
                yield
                return
        finally:
            os.close(file)


def is_at(file: int, path: Path) -> bool:
    """Whether the open file is the one that stands at `path`."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False
