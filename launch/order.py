"""On SLURM: submitting of what was asked for as much as fits, by whoever comes by.

Runs wait for a free place under `limit.gpus`, for SLURM's own limits on submitted jobs, for the canaries, or for the run whose
weights they start from. `top_up` is called by `submit` (also while it waits) and by every worker at its end, under the study's
lock: no process has to stay alive for it. Not here: the order itself (`launch.asked`), the batch script (`launch.executor`).
"""

from __future__ import annotations

import dataclasses
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from launch.asked import Order, may_start, pass_canaries, read_order, without_cancelled, write_order
from launch.cluster import SlurmCluster, cluster_from_dict, placement
from launch.gone import end_gone, suspects
from launch.job import ACCEPTED, JOB_FILES, SPEC, WorkerJob, cancel_path, is_complete, raise_flag
from launch.lease import Lease
from launch.ledger import (
    FAILED,
    LAUNCH,
    STARTED,
    SUBMITTED,
    Attempt,
    append_event,
    ledger_path,
    next_attempt,
    read_attempts,
)
from launch.limits import overspent, read_limits
from launch.past import close_finished
from launch.places import fitting, has_job, open_attempts
from launch.prepare import task_of
from launch.retries import may_go_on, stop_if_alike, study_stopped
from launch.rows import Row, read_rows, waits_for
from launch.scheduler import HELD, NoAnswer, Refused, cancel_jobs, find_by_token, slurm_queue, slurm_site
from launch.snapshot import SNAPSHOTS, altered
from launch.withdrawn import called_off, count_cancels
from lst.errors import LaunchError
from lst.records import read_json, read_jsonl

FULL = re.compile(
    r"MaxSubmit|SubmitJobs?Limit|MaxJobCount|job limit|temporarily unable to accept|Invalid job array specification",
    re.IGNORECASE,
)
LOCK = "lock"
LATE_SECONDS = 600.0  # as long after sbatch SLURM may list jobs whose submitter got no answer, or was killed
PUMP_SECONDS = 60.0  # how long a worker at its end waits for another one that submits


def top_up(
    study: Path,
    root: Path,
    *,
    holding: Sequence[int],
    trainer_argv: Sequence[str] | None = None,
    test: bool = False,
    stop: Callable[[], int] = int,
) -> int:
    """Submit what fits now; how many. The caller holds the study's lock, by the file `holding`. Raises LaunchError.

    Before each sbatch it looks whether it is to `stop`, and whether a run was called off.
    """
    close_finished(study)
    end_lost(study)
    order = read_order(study)
    if not order.waiting or not order.cluster or study_stopped(study) or overspent(study):
        return 0
    cluster = cluster_from_dict(order.cluster)
    assert isinstance(cluster, SlurmCluster)
    root = _root_of(study, order, root)
    rows = {row.run_id: row for row in read_rows(study)}
    order = pass_canaries(study, order, rows, root.name)
    if study_stopped(study):
        return 0
    attempts = read_attempts(study)
    queue = slurm_queue() if attempts else {}
    order = without_cancelled(study, order, attempts, queue)
    wanted = [rows[run_id] for run_id in order.waiting if run_id in rows and not is_complete(rows[run_id].folder(study))]
    order = dataclasses.replace(order, waiting=tuple(row.run_id for row in wanted))
    if order.canaries:
        wanted = [row for row in wanted if row.run_id in order.canaries and may_start(study, order, row, attempts, queue)]
    else:
        order = _without_jobs(study, order, attempts, queue)
        wanted = [row for row in wanted if row.run_id in order.waiting]
    able = [row for row in wanted if not waits_for(study, row) and not has_job(attempts.get(row.run_id, ()), queue)]
    fits = fitting(study, able, rows, attempts, queue)
    note = f"limit.gpus={read_limits(study).gpus}" if len(fits) < len(able) else ""
    if not note and any(has_job(attempts.get(run_id, ()), queue) for run_id in order.waiting):
        note = "the end of jobs that are cancelled"
    submitted = 0
    for gpus in sorted({row.gpus for row in fits}, reverse=True):
        group, most = [row for row in fits if row.gpus == gpus], cluster.max_array_size
        while group and not stop() and count_cancels(study) == order.cancels:
            wanted = group[:most]
            chunk = _submit_chunk(study, wanted, cluster, order, root, holding, trainer_argv, test and not submitted)
            if not chunk:
                note = "SLURM's limit on submitted jobs"
                break
            most = len(chunk) if len(chunk) < len(wanted) else most
            group = group[len(chunk) :]
            submitted += len(chunk)
            if not order.canaries:
                gone = {row.run_id for row in chunk}
                order = dataclasses.replace(order, waiting=tuple(w for w in order.waiting if w not in gone))
            write_order(study, order)
    write_order(study, dataclasses.replace(order, note="its canary" if order.canaries else note))
    if count_cancels(study) > order.cancels:  # what is left is looked at anew
        submitted += top_up(study, root, holding=holding, trainer_argv=trainer_argv, test=test and not submitted, stop=stop)
    return submitted


def _root_of(study: Path, order: Order, root: Path) -> Path:
    """The code that the order is to run with, not that of the job at whose end it is submitted. Raises LaunchError."""
    if order.code in ("", root.name):
        return root
    root = study / LAUNCH / SNAPSHOTS / order.code
    if altered(root, order.code):
        raise LaunchError(f"the code snapshot '{root}' was altered, or is gone; delete it and submit again.")
    return root


def end_lost(study: Path) -> list[str]:
    """End attempts whose jobs are gone, as SLURM has it; the runs that go on by themselves, which then wait before all others."""

    def keep(again: Sequence[str]) -> None:
        order = read_order(study)
        write_order(study, dataclasses.replace(order, waiting=(*again, *order.waiting)))

    again = end_gone(study, keep=keep)
    if not study_stopped(study):
        stop_if_alike(study)
    return again


def pump(study: Path, root: Path, *, trainer_argv: Sequence[str] | None = None) -> None:
    """`top_up`, by a worker at its end."""
    if not read_order(study).waiting and not suspects(study):
        return
    lock = Lease.acquire(study / LAUNCH / LOCK, wait=PUMP_SECONDS)
    if lock is None:
        raise NoAnswer("somebody else is at this study, and what waits was not sent; submit again.")
    try:
        adopt(study)
        top_up(study, root, holding=(lock.file,), trainer_argv=trainer_argv)
    finally:
        lock.release()


def adopt(study: Path, *, end_cancelled: bool = True) -> None:
    """Put submissions into the ledger whose submitter was killed before it could: SLURM, or the jobs themselves, know them.

    Those that were called off meanwhile are ended, unless the caller does so itself. Raises LaunchError if SLURM does not answer.
    """
    started = {str(e.get("token")): str(e.get("job_id")) for e in read_jsonl(ledger_path(study)) if e.get("event") == STARTED}
    for folder in sorted((study / LAUNCH / JOB_FILES).glob("*")):
        if (folder / ACCEPTED).exists() or not (folder / "job.sh").is_file():
            continue
        array = started.get(folder.name, "").partition("_")[0] or find_by_token(folder.name)
        runs = [str(job["run_id"]) for job in (read_json(folder / SPEC) or {}).get("jobs", [])]
        if array:
            _record(study, runs, array, folder.name)
            if end_cancelled:
                _end_cancelled(study, runs, array, folder.name)
        elif time.time() - (folder / "job.sh").stat().st_mtime < LATE_SECONDS:
            continue
        (folder / ACCEPTED).write_text(f"{array}\n")


def _end_cancelled(study: Path, run_ids: Sequence[str], array: str, token: str) -> None:
    """End jobs that were called off while nobody knew whether SLURM had taken them."""
    off = called_off(study, token, run_ids)
    late = [f"{array}_{number}" for number, run_id in enumerate(run_ids) if run_id in off]
    for job in late:
        raise_flag(cancel_path(study, job), "cancelled")
    cancel_jobs(late)


def _record(study: Path, run_ids: Sequence[str], array: str, token: str) -> None:
    """The runs' `submitted` in the ledger, unless their jobs have told of themselves already."""
    known, site = read_attempts(study), slurm_site()
    for number, run_id in enumerate(run_ids):
        job_id, attempts = f"{array}_{number}", known.get(run_id, [])
        if not any(a.job_id == job_id for a in attempts):
            number_of = next_attempt(attempts, job_id)
            append_event(study, SUBMITTED, run_id, attempt=number_of, job_id=job_id, cluster="slurm", site=site, token=token)


def _submit_chunk(
    study: Path,
    group: Sequence[Row],
    cluster: SlurmCluster,
    order: Order,
    root: Path,
    holding: Sequence[int],
    trainer_argv: Sequence[str] | None,
    test: bool,
) -> list[Row]:
    """Submit the first rows of `group`, as many as SLURM takes at once; none where its limit is reached. Raises LaunchError."""
    from launch.executor import submit_slurm

    size = len(group)
    while size:
        token = uuid.uuid4().hex[:12]
        jobs = [
            slurm_job(study, row, cluster, root, canary_steps=order.canary_steps if order.canaries else 0) for row in group[:size]
        ]
        try:
            array = submit_slurm(
                study, jobs, cluster, token=token, cancels=order.cancels, trainer_argv=trainer_argv, holding=holding, test=test
            )
        except Refused as error:
            (study / LAUNCH / JOB_FILES / token / ACCEPTED).write_text("\n")
            if not FULL.search(str(error)):
                raise
            size //= 2
            continue
        _record(study, [row.run_id for row in group[:size]], array, token)
        (study / LAUNCH / JOB_FILES / token / ACCEPTED).write_text(f"{array}\n")
        return list(group[:size])
    return []


def _without_jobs(study: Path, order: Order, attempts: Mapping[str, Sequence[Attempt]], queue: Mapping[str, str]) -> Order:
    """The order without runs that have, or had, the job they were asked for, as after a submitter that was killed.

    One whose job is cancelled, or held, waits for that job's end.
    """

    def has_own(run_id: str) -> bool:
        tries = attempts.get(run_id, [])
        if tries and tries[-1].state == FAILED and tries[-1].line >= order.asked and not may_go_on(tries):
            return True
        opened = [a for a in open_attempts(tries, queue) if queue[a.job_id] != HELD]
        return bool(opened) and not all(cancel_path(study, a.job_id).exists() for a in opened)

    return dataclasses.replace(order, waiting=tuple(run_id for run_id in order.waiting if not has_own(run_id)))


def slurm_job(study: Path, row: Row, cluster: SlurmCluster, root: Path, *, canary_steps: int = 0) -> WorkerJob:
    """What the row's job is told."""
    nodes, tasks, gpus = placement(cluster, row.gpus)
    return WorkerJob(
        study=str(study), run_id=row.run_id, root=str(root), code=root.name, threads=cluster.threads,
        environment=cluster.environment, cluster="slurm", gpus=gpus, nodes=nodes, tasks_per_node=tasks,
        cpus_per_task=cluster.cpus_per_task or 0, timeout_minutes=float(cluster.timeout_min or 0),
        signal_seconds=float(cluster.signal_seconds), canary_steps=canary_steps, task=task_of(study, row),
    )  # fmt: skip
