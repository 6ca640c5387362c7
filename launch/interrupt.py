"""Ctrl-C and its kin as a counter that a loop looks at, instead of an exception in the middle of something."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """While entered, SIGINT, SIGTERM and SIGHUP are counted; what handled them before comes back at the end."""

    def __init__(self) -> None:
        self.count = 0  # signals that came
        self.number = 0  # the first one
        self._before: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> Interrupts:
        for number in NUMBERS:
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def exit_code(self) -> int:
        """130 for Ctrl-C, as shells have it."""
        return 128 + (self.number or signal.SIGINT)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.count += 1
        self.number = self.number or number
