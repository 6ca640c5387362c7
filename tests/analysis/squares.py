"""Work for processes to share, in a module that is quickly imported."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

from lst.errors import DataError


def squares(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Of each number its square, and how many numbers came together; damage at -1, and a lack of memory at -2."""
    if -1 in numbers:
        raise DataError("a number is negative; square another one.")
    if -2 in numbers:
        os.kill(os.getpid(), signal.SIGKILL)
    return [(number * number, len(numbers)) for number in numbers]
