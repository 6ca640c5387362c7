"""A wish to stop, made by a signal: the trainer sees it at the next step boundary, saves and leaves with exit code 75.

SIGTERM and SIGUSR1 are what schedulers send before a time limit or a preemption; SIGINT is Ctrl-C. A second Ctrl-C leaves
at once (what the last checkpoint does not hold is then done again). A file named by LST_STOP_FLAG says the same once it is
there: a batch script makes it, whose signals would not reach the processes of other machines, nor one that is still starting.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import FrameType

EXIT_STOPPED = 75  # EX_TEMPFAIL: run it again
FLAG = "LST_STOP_FLAG"
LOOK_SECONDS = 0.5  # between two looks for the flag


class Stopped(Exception):
    """The run was asked to stop; its state is saved."""


class StopRequest:
    """Turns signals, and the file of LST_STOP_FLAG, into a wish that the trainer looks at."""

    def __init__(self) -> None:
        self._signal: str | None = None
        self._flag = os.environ.get(FLAG)
        self._next_look = 0.0

    @property
    def signal(self) -> str | None:
        """What asked to stop; None while nothing did."""
        if self._signal is None and self._flag and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + LOOK_SECONDS
            if Path(self._flag).exists():
                self._signal = "the launcher's flag"
        return self._signal

    @classmethod
    def install(cls) -> StopRequest:
        """Handle SIGTERM, SIGUSR1 and SIGINT from now on."""
        request = cls()
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, request._handle)
        return request

    def check(self) -> None:
        """Raises Stopped if a signal came."""
        if self.signal:
            raise Stopped(self.signal)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self._signal:
            raise KeyboardInterrupt
        self._signal = signal.Signals(number).name
