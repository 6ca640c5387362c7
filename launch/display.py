"""What a human sees while runs are going on: a line a finished run, and a live bar where the output is a terminal.

Text goes to the stream that the command line gives; elsewhere than on a terminal there is no bar and no control character.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from typing import TextIO

from launch.ledger import DONE, FAILED, LOST
from launch.status import QUEUED, RUNNING, RunStatus, count_states

REDRAW_SECONDS = 0.2
BAR_WIDTH = 24


class Display:
    """Lines and a bar on `stream`."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._drawn = 0.0  # when the bar was drawn last; 0 = it is not on the screen

    def note(self, text: str) -> None:
        """One line, above the bar."""
        self.clear()
        self._stream.write(text + "\n")
        self._stream.flush()

    def ended(self, status: RunStatus, number: int, total: int) -> None:
        """The line of a run that has ended."""
        loss = f"  loss {status.loss:.3f}" if status.state == DONE and status.loss is not None else ""
        cause = f"  {status.cause}" if status.cause else ""
        width = len(str(total))
        self.note(
            f"[{number:{width}}/{total}] {status.state:<7} {status.run_id}  {status.arm:<14} {status.size:<6} "
            f"{status.step:,}/{status.steps:,} steps  {duration(status.seconds)}{loss}{cause}"
        )

    def progress(self, ended: int, total: int, running: int, fraction: float, eta: float | None) -> None:
        """Redraw the bar, at most a few times a second. `fraction` is the share of the planned work, by cost."""
        now = time.monotonic()
        if not self._live or now - self._drawn < REDRAW_SECONDS:
            return
        self._drawn = now
        left = f"  ETA {duration(eta)}" if eta is not None else ""
        line = f"{bar(fraction)} {fraction:4.0%}  {ended}/{total} ended  {running} running{left}"
        columns = shutil.get_terminal_size().columns
        self._stream.write(f"\r\x1b[K{line[: columns - 1]}")
        self._stream.flush()

    def clear(self) -> None:
        """Take the bar off the screen."""
        if self._drawn:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._drawn = 0.0


def bar(fraction: float, width: int = BAR_WIDTH) -> str:
    """`fraction` as a bar of fixed width."""
    full = round(max(0.0, min(1.0, fraction)) * width)
    return "█" * full + "░" * (width - full)


def duration(seconds: float) -> str:
    """Seconds as `42 s`, `3 min 5 s` or `2 h 10 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


def summary(statuses: Sequence[RunStatus], eta: float | None) -> str:
    """One line about the study: runs by state, GPU-hours, time left."""
    counts = ", ".join(f"{count} {state}" for state, count in count_states(statuses).items())
    gpu_hours = sum(s.gpu_hours for s in statuses)
    spent = f"; {gpu_hours:,.2f} GPU-hours" if gpu_hours else f"; {duration(sum(s.seconds for s in statuses))} of process time"
    open_runs = any(s.state in (QUEUED, RUNNING) for s in statuses)
    return f"{len(statuses):,} runs: {counts}{spent}" + (f"; about {duration(eta)} left" if eta is not None and open_runs else "")


def table(statuses: Sequence[RunStatus]) -> list[str]:
    """The lines of `submit-sweep status`."""
    arm, size = (max([len(name), *(len(getattr(s, name)) for s in statuses)]) for name in ("arm", "size"))
    steps = max([len("step"), *(len(f"{s.step:,}/{s.steps:,}") for s in statuses)])
    lines = [
        f"{'run_id':<12}  {'arm':<{arm}}  {'size':<{size}}  {'state':<7}  {'':<10}  {'step':>{steps}}  tries  {'time':>12}  cause"
    ]
    for s in statuses:
        done = f"{s.step:,}/{s.steps:,}"
        lines.append(
            f"{s.run_id:<12}  {s.arm:<{arm}}  {s.size:<{size}}  {s.state:<7}  {bar(s.fraction, 10)}  {done:>{steps}}  "
            f"{s.attempts:>5}  {duration(s.seconds) if s.attempts else '-':>12}  {s.cause}".rstrip()
        )
    return lines


def failures(study: object, statuses: Sequence[RunStatus]) -> list[str]:
    """A line for each run that has failed or was lost, and what to do next."""
    bad = [s for s in statuses if s.state in (FAILED, LOST)]
    lines = [f"{s.state}: {s.run_id} ({s.arm}, {s.size}, step {s.step:,} of {s.steps:,}): {s.cause}" for s in bad]
    if bad:
        lines.append(f"look: submit-sweep logs {study} {bad[0].run_id}    again: submit-sweep resubmit {study} --failed")
    return lines
