"""Work that is shared by processes: results in order, few ahead, and nothing left behind when one of them ends."""

from __future__ import annotations

import collections
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from lst.errors import FitError

Task = TypeVar("Task")
Result = TypeVar("Result")
MOST_PROCESSES = 4
"""More need more than 1 GB, and wait for the one process that writes."""
MOST_TASKS = 32
"""Of tasks that are handed over together."""
RESULT_BYTES = 2**21
"""Of results that are handed back together, about."""
AHEAD = 3
"""Results a process that may wait for their turn."""


def processors() -> int:
    """How many processes are worth starting here."""
    known = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(known, MOST_PROCESSES)


def in_order(
    work: Callable[[Sequence[Task]], Result], tasks: Sequence[Task], processes: int, size: Callable[[Result], int]
) -> Iterator[Result]:
    """`work` of stretches of `tasks`, in their order; `size` is a result's in bytes, and decides how long stretches are.

    The main module is imported by each process, so a script that calls this needs `if __name__ == "__main__"`. Raises what `work`
    raises, and FitError where a process is killed.
    """
    waiting: collections.deque[tuple[int, Future[Result]]] = collections.deque()
    start, count = 0, 1
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=_end_with_parent)
    try:
        while start < len(tasks) or waiting:
            while start < len(tasks) and len(waiting) < AHEAD * processes:
                stretch = tasks[start : start + count]
                waiting.append((len(stretch), pool.submit(work, stretch)))
                start += len(stretch)
            done, future = waiting.popleft()
            result = future.result()
            count = max(1, min(MOST_TASKS, RESULT_BYTES * done // max(1, size(result))))
            yield result
    except BrokenProcessPool as error:
        raise FitError("a process that read runs was killed (for lack of memory, most likely); collect again.") from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _end_with_parent() -> None:
    """Leave Ctrl-C to the process that writes, and end when it does, killed or not."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
