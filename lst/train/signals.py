"""A wish to stop, made by a signal: the trainer sees it at the next step boundary, saves and leaves with exit code 75.

SIGTERM and SIGUSR1 are what schedulers send before a time limit or a preemption; SIGINT is Ctrl-C. A second Ctrl-C leaves
at once (what the last checkpoint does not hold is then done again).
"""

from __future__ import annotations

import signal
from types import FrameType

EXIT_STOPPED = 75  # EX_TEMPFAIL: run it again


class Stopped(Exception):
    """The run was asked to stop; its state is saved."""


class StopRequest:
    """Turns signals into a flag."""

    def __init__(self) -> None:
        self.signal: str | None = None

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
        if number == signal.SIGINT and self.signal:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number).name
