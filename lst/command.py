"""How a command ends: one sentence on stderr for what its user can meet, and the exit status that scripts rely on.

An output that cannot be written (a full disk behind `> FILE`) is an error like a file's; a reader that left (`| head`) is
none. Not here: what a run in training does then, which is to go on (`lst.train.terminal`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn, TextIO

from lst.errors import LstError


class Terminated(KeyboardInterrupt):
    """SIGTERM came: what was begun is taken away as after Ctrl-C."""


def ended(name: str, work: Callable[[], int]) -> int:
    """The exit status of `work`, or of what ended it, told as `name: sentence`.

    LstError: its own; OSError: 2; and quietly, Ctrl-C: 130; Terminated: 143; the output's reader has left: 0.
    """
    try:
        try:
            return work()
        finally:
            sys.stdout.flush()  # here, where it can be told; at the interpreter's exit it could not
    except LstError as error:
        return _complain(name, str(error), error.exit_code)
    except KeyboardInterrupt as interrupt:
        return 143 if isinstance(interrupt, Terminated) else 130
    except BrokenPipeError:
        discard(sys.stdout)
        return 0
    except OSError as error:
        _drop_unwritable_output()
        full = "; free some space and call again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        what = error.filename or "the output"
        return _complain(name, f"{what} cannot be read or written ({error.strerror or error}){full}.", 2)


@contextlib.contextmanager
def sigterm_raises() -> Iterator[None]:
    """While entered, SIGTERM raises Terminated, so that what is half-written is taken away; in the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _raise_terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def discard(stream: TextIO) -> None:
    """Let the stream go nowhere from now on, what it still holds included: flushing it at the exit would fail as well."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _raise_terminated(*_: object) -> NoReturn:
    raise Terminated


def _drop_unwritable_output() -> None:
    try:
        sys.stdout.flush()
    except OSError:
        discard(sys.stdout)


def _complain(name: str, sentence: str, code: int) -> int:
    print(f"{name}: {sentence}", file=sys.stderr)
    return code
