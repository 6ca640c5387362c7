"""Where limit.gpus was lowered: jobs beyond it that have not started leave SLURM's queue, and their runs wait again.

Not here: submitting them once there is a place (`launch.order`).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from launch.asked import read_order, write_order
from launch.job import is_complete
from launch.ledger import ENDED, INTERRUPTED, append_event, read_attempts
from launch.limits import read_limits
from launch.places import has_job, weight
from launch.rows import read_rows
from launch.scheduler import PENDING, cancel_pending, slurm_queue


def take_back(study: Path, *, stopped: bool = False) -> list[str]:
    """Cancel jobs beyond limit.gpus that have not started; the run_ids, which wait again. The caller holds the study's lock.

    Where the study was stopped, all that have not started: they would run with the code of before, and before the new canaries.
    That they wait is written first, for the case that this process is killed. A job that starts all the same is left alone.
    Raises LaunchError where SLURM does not answer.
    """
    most = 0 if stopped else read_limits(study).gpus
    if not (most or stopped):
        return []
    rows, queue = {row.run_id: row for row in read_rows(study)}, slurm_queue()
    attempts = {r: tries for r, tries in read_attempts(study).items() if r in rows and not is_complete(rows[r].folder(study))}
    last = {run_id: tries[-1] for run_id, tries in attempts.items()}
    opened = [run_id for run_id in last if has_job(attempts[run_id], queue)]
    surplus, beyond = [], sum(weight(rows[run_id]) for run_id in opened) - most
    for run_id in reversed(opened):
        if beyond > 0 and queue.get(last[run_id].job_id) == PENDING:
            surplus.append(run_id)
            beyond -= weight(rows[run_id])
    if not surplus:
        return []
    order, jobs = read_order(study), tuple(last[run_id].job_id for run_id in surplus)
    write_order(study, dataclasses.replace(order, waiting=(*order.waiting, *surplus), back=(*order.back, *jobs)))
    cancel_pending(jobs)
    queue, now = slurm_queue(), read_attempts(study)
    taken = [run_id for run_id in surplus if last[run_id].job_id not in queue and now[run_id][-1] == last[run_id]]
    for run_id in taken:
        attempt = last[run_id]
        number = attempt.attempt + (attempt.ended is not None)  # it was queued again
        why = "the study was stopped" if stopped else f"limit.gpus={most}"
        end = {"state": INTERRUPTED, "cause": f"taken back: {why}"}
        append_event(study, ENDED, run_id, attempt=number, job_id=attempt.job_id, **end)
    write_order(study, dataclasses.replace(order, waiting=(*order.waiting, *taken)))
    return taken
