"""`submit --wait`: showing the runs until all have ended, and sending what waits meanwhile."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from launch.asked import read_order
from launch.display import Display
from launch.interrupt import Interrupts
from launch.job import is_complete
from launch.ledger import LAUNCH
from launch.limits import overspent
from launch.order import pump
from launch.retries import study_stopped
from launch.rows import Row, cost_of, waits_for
from launch.scheduler import NoAnswer
from launch.snapshot import take_snapshot
from launch.status import OPEN_STATES, RUNNING, eta_seconds, gather

FOLLOW_SECONDS = 5.0
WAIT_SECONDS = 0.2


def follow(
    study: Path,
    rows: Sequence[Row],
    display: Display,
    interrupts: Interrupts,
    root: Path | None,
    trainer_argv: Sequence[str] | None,
) -> None:
    """Show the runs until all have ended; an interrupt ends the looking, not the jobs."""
    reported: set[str] = set()
    costs = cost_of(list(rows))
    root = root or take_snapshot(study / LAUNCH)

    def send_more() -> None:
        try:
            pump(study, root, trainer_argv=trainer_argv)
        except NoAnswer as error:
            display.note(str(error))

    while not interrupts.count:
        statuses = gather(study, rows)
        if not any(s.state in OPEN_STATES for s in statuses):  # unless what was lost goes on by itself
            send_more()
            statuses = gather(study, rows)
        open_runs = [s for s in statuses if s.state in OPEN_STATES]
        ended = [s for s in statuses if s.state not in OPEN_STATES]
        for status in ended:
            if status.run_id not in reported:
                reported.add(status.run_id)
                display.ended(status, len(reported), len(rows))
        running = sum(s.state == RUNNING for s in open_runs)
        fraction = sum(costs[s.run_id] * s.fraction for s in statuses) / sum(costs.values()) if costs else 1.0
        display.progress(len(ended), len(rows), running, fraction, eta_seconds(rows, statuses, max(1, running)))
        if not open_runs and not is_to_come(study, rows):
            break
        send_more()
        deadline = time.monotonic() + FOLLOW_SECONDS
        while time.monotonic() < deadline and not interrupts.count:
            time.sleep(WAIT_SECONDS)
    display.clear()


def is_to_come(study: Path, rows: Sequence[Row]) -> bool:
    """Whether any of the rows waits to be submitted, as it will be once SLURM answers, or has room."""
    waiting = set(read_order(study).waiting)
    able = any(row.run_id in waiting and not is_complete(row.folder(study)) and not waits_for(study, row) for row in rows)
    return able and not study_stopped(study) and not overspent(study)
