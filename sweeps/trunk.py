"""Several budgets from one WSD run: what a shared trunk saves, and the rows of a plan that has one.

Budgets of one size, arm and seed read the same batches at the same learning rate up to the fork of each (lst.schedule), so one
run may yield them all (docs/training.md, "One run, several budgets"). Its row is the longest budget's, with
`train.branch_steps`; each shorter budget keeps a row of its own, kind `branch`, whose run_id is that of the run which the branch
equals. What is spent stands on the run's row alone, so sums count the trunk once. Not here: how budgets get one batch,
learning rate and warm-up (`sweeps.build`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lst.config import Arm, RunConfig
from lst.schedule import fork_step
from sweeps.columns import BRANCH, PlanRow, Status
from sweeps.estimate import price_run
from sweeps.price import PriceConfig, Work
from sweeps.variants import arm_of

Planned = tuple[PlanRow, RunConfig]

LENGTH_DECIDES = (Arm.LST_CURRICULUM,)  # arms whose patching depends on the run's length (DESIGN rule 11)
SPENT_COLUMNS = (
    "planned_spent_flops", "planned_spent_steps", "est_minutes", "est_gpu_hours", "est_dollars", "est_disk_gib", "est_kept_gib",
)  # fmt: skip
"""What stands on the run's row alone."""
WHY_NOT = "its patching depends on the run's length, so mid-way it is no shorter run"


@dataclass(frozen=True, kw_only=True)
class Saving:
    """What one group of budgets costs apart and with a shared trunk."""

    arm: str
    size: str
    seed: int
    budgets: int
    flops: float  # apart
    saved_flops: float
    saved_gpu_hours: float


def savings(rows: Sequence[PlanRow], decay_share: float) -> list[Saving]:
    """Of the admitted rows that share size, arm and seed; a shorter budget saves its steps up to its fork.

    FLOPs and GPU-hours are taken in proportion to steps. Groups of one budget, and arms that cannot branch, have none.
    """
    found = []
    for (arm, size, seed), group in groups(rows).items():
        if len(group) < 2 or arm_of(arm) in LENGTH_DECIDES:
            continue
        shares = [(row.steps - max(1, round(decay_share * row.steps))) / row.steps for row in group[:-1]]
        pairs = list(zip(group, shares, strict=False))
        found.append(
            Saving(
                arm=arm,
                size=size,
                seed=seed,
                budgets=len(group),
                flops=sum(row.planned_flops for row in group),
                saved_flops=sum(row.planned_flops * share for row, share in pairs),
                saved_gpu_hours=sum(row.est_gpu_hours * share for row, share in pairs),
            )
        )
    return found


def share_trunks(
    runs: Sequence[Planned], price: PriceConfig, flops_until: Callable[[RunConfig, int], float]
) -> tuple[list[Planned], list[str]]:
    """The plan with one run for the budgets of each size, arm and seed, in the same order; and what must be told.

    `flops_until(config, steps)` are the FLOPs of a run's first steps.
    """
    new = {row.run_id: (row, config) for row, config in runs}
    configs = {row.run_id: config for row, config in runs}
    told = ["recipe.share_trunk: shorter budgets take the longest one's batch, learning rate and warm-up, in whole batches."]
    for (arm, size, seed), group in groups([row for row, _ in runs]).items():
        if arm_of(arm) in LENGTH_DECIDES:
            told.append(f"{arm} {size} seed {seed} shares no trunk: {WHY_NOT}.")
        elif len(group) > 1:
            for before, after in _shared([(row, configs[row.run_id]) for row in group], price, flops_until):
                new[before] = after
    return [new[row.run_id] for row, _ in runs], told


def _shared(
    group: Sequence[Planned], price: PriceConfig, flops_until: Callable[[RunConfig, int], float]
) -> Iterator[tuple[str, Planned]]:
    """(run_id before, the run after) of a group, the longest last."""
    trunk, config = group[-1]
    flops, steps, branches = trunk.planned_flops, trunk.steps, []
    for row, _ in group[:-1]:
        train = dataclasses.replace(config.train, steps=row.steps, final_batch_sequences=0)
        alone = dataclasses.replace(config, train=train)  # the run that the branch equals (lst.train.branches.branch_tag)
        fork = fork_step(row.steps, config.optim)
        if fork < config.optim.warmup_steps:
            reason = f"it would leave the trunk at step {fork}, in the trunk's warm-up of {config.optim.warmup_steps} steps"
            remedy = "give recipe.warmup_steps, or plan it without recipe.share_trunk"
            yield row.run_id, (dataclasses.replace(row, status=Status.REFUSED, reason=f"{reason}; {remedy}"), alone)
            continue
        flops += row.planned_flops - flops_until(alone, fork)
        steps += row.steps - fork
        branches.append((row, alone))
    train = dataclasses.replace(config.train, branch_steps=tuple(row.steps for row, _ in branches))
    shared = dataclasses.replace(config, train=train)
    shared.validate()
    work = Work(flops=flops, steps=steps, branches=len(branches))
    estimate = price_run(shared, price, train_flops=trunk.planned_flops, tokens=trunk.tokens, spent=work)
    for row, alone in branches:
        free: dict[str, Any] = {name: type(getattr(row, name))(0) for name in SPENT_COLUMNS}
        named: dict[str, Any] = {
            "kind": BRANCH,
            "parent_run_id": shared.run_id,
            "branch": row.steps,
            "warmup_steps": config.optim.warmup_steps,
        }
        yield row.run_id, (dataclasses.replace(row, run_id=alone.run_id, **named, **free), alone)
    spent: dict[str, Any] = {"planned_spent_flops": flops, "planned_spent_steps": steps}
    yield trunk.run_id, (dataclasses.replace(trunk, run_id=shared.run_id, **spent, **estimate.columns()), shared)


def groups(rows: Sequence[PlanRow]) -> dict[tuple[str, str, int], list[PlanRow]]:
    """Admitted rows by arm, size and seed, the shortest first."""
    found: dict[tuple[str, str, int], list[PlanRow]] = {}
    for row in rows:
        if row.admitted and row.kind == "pretrain":
            found.setdefault((row.arm, row.size, row.seed), []).append(row)
    return {key: sorted(group, key=lambda row: row.steps) for key, group in found.items()}
