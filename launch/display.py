"""What a human sees while runs are going on: a line a finished run, and a live bar where the output is a terminal.

Text goes to the stream that the command line gives; elsewhere than on a terminal there is no bar and no control character.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from launch.asked import resubmission
from launch.ledger import DONE, FAILED, LOST
from launch.status import QUEUED, REFUSED, RUNNING, RunStatus, count_states

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
    """One line about the study: runs by state, GPU-hours spent and planned, time left."""
    counts = ", ".join(f"{count} {state}" for state, count in count_states(statuses).items())
    gpu_hours, planned = sum(s.gpu_hours for s in statuses), sum(s.planned_gpu_hours for s in statuses if s.state != REFUSED)
    of = f" of {planned:,.2f} planned" if planned else ""
    spent = (
        f"; {gpu_hours:,.2f}{of} GPU-hours" if gpu_hours else f"; {duration(sum(s.seconds for s in statuses))} of process time"
    )
    open_runs = any(s.state in (QUEUED, RUNNING) for s in statuses)
    return f"{len(statuses):,} runs: {counts}{spent}" + (f"; about {duration(eta)} left" if eta is not None and open_runs else "")


def table(statuses: Sequence[RunStatus]) -> list[str]:
    """The lines of `submit-sweep status`. Columns that would be empty for all runs (GPU-hours, MFU) are left out."""
    columns: list[tuple[str, str, list[str]]] = [  # name, side, cells
        ("run_id", "<", [s.run_id for s in statuses]),
        ("arm", "<", [s.arm for s in statuses]),
        ("size", "<", [s.size for s in statuses]),
        ("state", "<", [s.state for s in statuses]),
        ("", "<", [bar(s.fraction, 10) for s in statuses]),
        ("step", ">", [f"{s.step:,}/{s.steps:,}" for s in statuses]),
        ("tries", ">", [f"{s.attempts}" for s in statuses]),
        ("time", ">", [duration(s.seconds) if s.attempts else "-" for s in statuses]),
        ("left", ">", [duration(s.eta_seconds) if s.eta_seconds is not None else "-" for s in statuses]),
    ]
    if any(s.mfu is not None for s in statuses):
        columns.append(("mfu", ">", [f"{s.mfu:.1%}" if s.mfu is not None else "-" for s in statuses]))
    if any(s.gpu_hours for s in statuses):
        columns.append(("GPU-h/plan", ">", [f"{s.gpu_hours:,.2f}/{s.planned_gpu_hours:,.2f}" for s in statuses]))
    columns += [("from", "<", [s.source for s in statuses]), ("cause", "<", [s.cause for s in statuses])]
    widths = [max([len(name), *map(len, cells)]) for name, _, cells in columns]
    rows = [[name for name, _, _ in columns], *zip(*(cells for _, _, cells in columns), strict=True)]
    sides = [side[0] for _, side, _ in columns]
    return [
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)).rstrip() for row in rows
    ]


def failures(study: Path, statuses: Sequence[RunStatus]) -> list[str]:
    """A line for each run that has failed or was lost, and what to do next."""
    bad = [s for s in statuses if s.state in (FAILED, LOST)]
    lines = [f"{s.state}: {s.run_id} ({s.arm}, {s.size}, step {s.step:,} of {s.steps:,}): {s.cause}" for s in bad]
    if bad:
        lines.append(f"look: submit-sweep logs {study} {bad[0].run_id}    again: {resubmission(study)}")
    return lines
