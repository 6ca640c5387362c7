"""What was asked for on SLURM: launch/order.json, and the canaries that the rest of it waits for.

The order holds the runs that wait, the code and the cluster they are for. Whoever reads and writes it to change it holds the
study's lock. Not here: submitting what waits (`launch.order`), which rows are asked for (`launch.submit`).
"""

from __future__ import annotations

import dataclasses
import shlex
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch import canary
from launch.cluster import SlurmCluster
from launch.failures import FailureClass, one_line
from launch.job import cancel_path
from launch.ledger import FAILED, LAUNCH, LOST, Attempt, count_lines, read_attempts
from launch.retries import GOES_ON, ORDER, order_since, stop_study
from launch.rows import EVAL, TASK, Row, cost_of, read_rows, waits_for
from launch.scheduler import restarts
from launch.withdrawn import count_cancels, withdrawn
from lst.errors import LaunchError
from lst.plain import to_dict
from lst.records import read_json, write_json


@dataclass(frozen=True, kw_only=True)
class Order:
    """What the user asked for last."""

    since: int = 0  # lines that the ledger had then, or when its canaries were asked for
    time: float = 0.0  # the same in seconds since the epoch, for jobs of the version that compared clocks
    asked: int = 0  # lines that the ledger had when it was added to last
    code: str = ""  # hash of the code that it is to run with, a folder of launch/snapshot; empty = of whoever submits it
    waiting: tuple[str, ...] = ()  # run_ids, in the order in which they are to start
    canaries: tuple[str, ...] = ()  # run_ids that have to pass before the others start; empty = none, or they have passed
    canary_steps: int = 0
    cluster: dict[str, Any] = field(default_factory=dict)
    note: str = ""  # why runs wait
    cancels: int = 0  # calls of `cancel` that it knows of
    back: tuple[str, ...] = ()  # jobs that are being taken back (limit.gpus was lowered): nobody cancelled these


def write_order(study: Path, order: Order) -> None:
    """Keep the order, each run once."""
    once = dataclasses.replace(order, waiting=tuple(dict.fromkeys(order.waiting)), canaries=tuple(dict.fromkeys(order.canaries)))
    write_json(study / LAUNCH / ORDER, dataclasses.asdict(once))


def read_order(study: Path) -> Order:
    """The order as it stands, without what was called off meanwhile. Raises LaunchError where its file is damaged."""
    order, cancels = _read(study), count_cancels(study)
    gone = withdrawn(study, order.cancels, order.waiting)
    return dataclasses.replace(_without(study, order, gone) if gone else order, cancels=cancels)


def _read(study: Path) -> Order:
    path = study / LAUNCH / ORDER
    values = read_json(path) or {}
    lists = [values.get(name) or [] for name in ("waiting", "canaries", "back")]
    numbers = [values.get(name) or 0 for name in ("since", "canary_steps", "asked", "cancels")]
    sound = all(isinstance(found, list) and all(isinstance(run_id, str) for run_id in found) for found in lists)
    sound = sound and isinstance(values.get("time") or 0.0, int | float) and isinstance(values.get("code") or "", str)
    if not sound or not all(isinstance(n, int) for n in numbers) or not isinstance(values.get("cluster") or {}, dict):
        raise LaunchError(f"'{path}' is damaged; delete it and submit again.")
    if "cancels" not in values:  # the earlier version has written it, which knew of none
        numbers[3] = count_cancels(study)
    lines = count_lines(study) if values else 0
    since = order_since(study, values, lines)
    return Order(
        since=since,
        time=float(values.get("time") or 0.0),
        asked=max(since, min(numbers[2], lines)),
        code=str(values.get("code") or ""),
        waiting=tuple(lists[0]),
        canaries=tuple(lists[1]),
        canary_steps=numbers[1],
        cluster=dict(values.get("cluster") or {}),
        note=str(values.get("note") or ""),
        cancels=numbers[3],
        back=tuple(lists[2]),
    )


def left_waiting(study: Path, order: Order) -> tuple[str, ...]:
    """What waits on after a stop, behind new canaries: what has not failed."""
    attempts = read_attempts(study)
    return tuple(r for r in order.waiting if not (attempts.get(r) and attempts[r][-1].state in (FAILED, LOST)))


def resubmission(study: Path) -> str:
    """The command that runs again what has failed, where it ran: with the fields of the cluster that it was ordered for."""
    found, last = read_order(study).cluster, [tries[-1] for tries in read_attempts(study).values()]
    words = ["submit-sweep", "resubmit", str(study), "--failed"]
    if found and (not last or max(last, key=lambda attempt: attempt.line).cluster == "slurm"):
        usual = to_dict(SlurmCluster())
        fields = {key: value for key, value in found.items() if key != "options" and value != usual.get(key)}
        fields |= {f"options.{key}": value for key, value in (found.get("options") or {}).items()}
        words += [
            "cluster=slurm",
            *(f"cluster.{key}={str(value).lower() if value is True else value}" for key, value in fields.items()),
        ]
    return shlex.join(words)


def place_order(study: Path, cluster: SlurmCluster, rows: Sequence[Row], code: str, *, before: Order) -> None:
    """Ask for these rows beside those that `before` left waiting; canaries of this code that have begun are waited for.

    Arms that have none of these get their own beside them, unless such a one has failed since those were asked for.
    """
    plain = to_dict(cluster) | {"options": dict(cluster.options)}
    ids = tuple(row.run_id for row in rows)
    left = tuple(run_id for run_id in before.waiting if run_id not in ids)
    now, plan = count_lines(study), read_rows(study)
    behind = [row for row in plan if row.run_id in left]
    chosen = canary.canaries(study, [*rows, *behind], code) if cluster.canary_steps else []
    if before.canaries and before.code in ("", code):
        join = canary.of_other_arms(chosen, [row for row in plan if row.run_id in before.canaries])
        if not canary.failed(join, read_attempts(study), before.since, code):
            canaries = (*before.canaries, *(row.run_id for row in join))
            changes: dict[str, Any] = {"asked": now, "code": code, "waiting": ids + left, "canaries": canaries, "cluster": plain}
            write_order(study, dataclasses.replace(before, **changes))
            return
    order = Order(
        since=now,
        time=time.time(),
        asked=now,
        code=code,
        waiting=ids + left,
        canaries=tuple(row.run_id for row in chosen),
        canary_steps=cluster.canary_steps,
        cluster=plain,
        cancels=before.cancels,
    )
    write_order(study, order)


def forget(study: Path, run_ids: Collection[str]) -> None:
    """These runs are not wanted any more. Where a canary is among them, another run of its arm takes its place."""
    order = read_order(study)
    if order.waiting:
        write_order(study, _without(study, order, run_ids))


def _without(study: Path, order: Order, run_ids: Collection[str]) -> Order:
    """The order without these runs; where a canary is among them, with another run of its arm in its place."""
    left = tuple(run_id for run_id in order.waiting if run_id not in run_ids)
    canaries = tuple(run_id for run_id in order.canaries if run_id not in run_ids)
    rows = read_rows(study)
    arms = {row.arm for row in rows if row.run_id in order.canaries} - {row.arm for row in rows if row.run_id in canaries}
    able_rows = [row for row in rows if row.run_id in left and row.kind not in (EVAL, TASK) and not waits_for(study, row)]
    costs = cost_of(rows)
    for arm in sorted(arms):
        able = [row.run_id for row in able_rows if row.arm == arm]
        canaries += (min(able, key=lambda run_id: costs[run_id]),) if able else ()
    return dataclasses.replace(order, waiting=left, canaries=canaries)


def pass_canaries(study: Path, order: Order, rows: Mapping[str, Row], code: str) -> Order:
    """The order without its canaries, once they have all trained their steps. Stops the study if one has failed."""
    chosen = [rows[run_id] for run_id in order.canaries if run_id in rows]
    if len(chosen) < len(order.canaries):  # the plan has changed: what waits needs others
        waiting = [rows[run_id] for run_id in order.waiting if run_id in rows]
        chosen += canary.of_other_arms(canary.canaries(study, waiting, code), chosen)
        order = dataclasses.replace(order, canaries=tuple(row.run_id for row in chosen))
    if not order.canaries:
        return order
    attempts = read_attempts(study)
    if found := canary.failed(chosen, attempts, order.since, code):
        stop_study(study, one_line(found))
        return order
    if not canary.passed(study, chosen, attempts, order.since, code):
        return order
    canary.note_passed(study, chosen, code)
    return dataclasses.replace(order, canaries=())


def may_start(study: Path, order: Order, row: Row, attempts: Mapping[str, Sequence[Attempt]], queue: Mapping[str, str]) -> bool:
    """Whether a canary is to be submitted: it has not passed, and no job of it is about to be queued again."""
    tries = attempts.get(row.run_id, ())
    listed = [a for a in tries if a.line >= order.since and a.job_id in queue and not cancel_path(study, a.job_id).exists()]
    again = (*GOES_ON, FailureClass.CANCELLED, FailureClass.KILLED)  # cancelled: by `scontrol requeue`; killed: by its worker
    return not any(a.failure in again for a in listed) and not canary.passed(study, [row], attempts, order.since, order.code)


def without_cancelled(study: Path, order: Order, attempts: Mapping[str, Sequence[Attempt]], queue: Mapping[str, str]) -> Order:
    """The order without canaries whose jobs somebody has ended by scancel; other runs of their arms take their places."""
    if not order.canaries:
        return order
    ended = [(run_id, attempts[run_id][-1]) for run_id in order.canaries if attempts.get(run_id)]
    counted = [(run_id, a) for run_id, a in ended if canary.counts(a, order.since, order.code)]
    ended = [(run_id, a) for run_id, a in counted if a.failure == FailureClass.CANCELLED]
    ended = [(run_id, a) for run_id, a in ended if a.job_id not in order.back and not cancel_path(study, a.job_id).exists()]
    # to the job `scontrol requeue` looks alike
    cancelled = [run_id for run_id, a in ended if a.job_id not in queue or restarts(a.job_id) <= a.life]
    if cancelled:
        forget(study, cancelled)
        order = read_order(study)
    return order
