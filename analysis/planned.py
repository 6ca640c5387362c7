"""A plan's runs as the points of a study that has not been run, and the studies that it could become. Fits nothing.

    cells = planned_cells(folder)        # plan.csv: admitted pretraining rows
    designs = alternatives(cells, ...)   # without a budget, with one more seed, with a larger budget, with half the sizes ...

A point's D is C / (6N) with the planned exact FLOPs, as in fits with shared exponents (`analysis.shared`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from analysis.collect import read_plan
from analysis.study import is_conditional
from lst.errors import FitError

KINDS = ("pretrain", "branch", "")
"""Rows that end with a held-out loss of pretraining; fine-tuning and evaluation have none that a law describes."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One planned run: its place in the design and its price."""

    key: str  # run_id; of a proposed run ARM/SIZE/BUDGET/SEED
    arm: str
    size: str
    num_params: float
    flops_budget: float
    planned_flops: float
    cost_flops: float  # planned_spent_flops: what its run trains on all paths, 0 for a branch
    gpu_hours: float | None
    seed: int
    added: bool = False

    @property
    def six_nd_tokens(self) -> float:
        return self.planned_flops / (6 * self.num_params)

    def to_json(self) -> dict[str, Any]:
        names = ("arm", "size", "num_params", "flops_budget", "planned_flops", "seed")
        return {name: getattr(self, name) for name in names} | {"tokens_six_nd": self.six_nd_tokens}


@dataclass(frozen=True)
class Design:
    """A study: the plan's, or one near it."""

    name: str
    change: str  # none | drop_budget | drop_seed | drop_sizes | add_seed | add_budget
    cells: tuple[Cell, ...]

    @property
    def cost_flops(self) -> float:
        return sum(cell.cost_flops for cell in self.cells)

    @property
    def gpu_hours(self) -> float | None:
        hours = [cell.gpu_hours for cell in self.cells]
        return None if any(h is None for h in hours) else float(sum(h for h in hours if h is not None))


def planned_cells(folder: Path, n_column: str) -> tuple[Cell, ...]:
    """The admitted pretraining rows of DIR/plan.csv. Raises FitError where there is none, or a number cannot be read."""
    found = []
    for row in read_plan(folder):
        if row.get("status", "admitted") != "admitted" or row.get("kind", "") not in KINDS or is_conditional(row["arm"]):
            continue
        try:
            flops = float(row["planned_flops"])
            cell = Cell(
                key=row["run_id"],
                arm=row["arm"],
                size=row["size"],
                num_params=float(row[n_column]),
                flops_budget=float(row["flops_budget"]) or flops,
                planned_flops=flops,
                cost_flops=float(row.get("planned_spent_flops") or flops),
                gpu_hours=float(row["est_gpu_hours"]) if float(row.get("gpus") or 0) else None,
                seed=int(row["seed"]),
            )
        except (KeyError, ValueError) as error:
            raise FitError(
                f"row {row['run_id']} of '{folder / 'plan.csv'}' lacks a number ({error}); plan the study again."
            ) from error
        if not (cell.planned_flops > 0 and cell.num_params > 0):
            raise FitError(
                f"row {cell.key} has planned_flops={cell.planned_flops:g}, {n_column}={cell.num_params:g}; both must be positive."
            )
        found.append(cell)
    if not found:
        raise FitError(f"'{folder}' plans no admitted pretraining run, so there is nothing to simulate; see the column `reason`.")
    return tuple(found)


def repeated(cell: Cell, seeds: Sequence[int]) -> Cell:
    """The same run with a seed that is not among `seeds`."""
    seed = max(seeds) + 1
    return replace(
        cell, key=f"{cell.arm}/{cell.size}/{cell.flops_budget:g}/{seed}", seed=seed, added=True, cost_flops=cell.planned_flops
    )


def alternatives(cells: tuple[Cell, ...], extra_seeds: int) -> list[Design]:
    """The plan, then the plan less and more: budgets, seeds and sizes."""
    budgets = sorted({c.flops_budget for c in cells})
    seeds = sorted({c.seed for c in cells})
    found = [Design("as planned", "none", cells)]
    if len(budgets) > 1:
        for budget in budgets:
            kept = tuple(c for c in cells if c.flops_budget != budget)
            found.append(Design(f"without budget {budget:.4g}", "drop_budget", kept))
    if len(seeds) > 1:
        found.append(Design(f"seed {seeds[0]} alone", "drop_seed", tuple(c for c in cells if c.seed == seeds[0])))
    thinned = tuple(c for c in cells if c.num_params in kept_sizes(cells, c))
    if len(thinned) < len(cells):
        found.append(Design("every other size", "drop_sizes", thinned))
    first = [c for c in cells if c.seed == seeds[0]]
    for count in range(1, extra_seeds + 1):
        more = [repeated(c, [seeds[-1] + k]) for k in range(count) for c in first]
        found.append(Design(f"{count} more seed{'s' * (count > 1)} everywhere", "add_seed", (*cells, *more)))
    for budget in budgets:
        more = [repeated(c, seeds) for c in first if c.flops_budget == budget]
        found.append(Design(f"one more seed at {budget:.4g}", "add_seed", (*cells, *more)))
    if len(budgets) > 1:
        found.append(Design("one larger budget", "add_budget", (*cells, *larger_budget(cells, budgets))))
    return found


def kept_sizes(cells: tuple[Cell, ...], like: Cell) -> set[float]:
    """Every other size of a cell's arm and budget, from the smallest; all where there are fewer than four."""
    sizes = sorted({c.num_params for c in cells if (c.arm, c.flops_budget) == (like.arm, like.flops_budget)})
    return set(sizes if len(sizes) < 4 else sizes[::2])


def larger_budget(cells: tuple[Cell, ...], budgets: list[float]) -> list[Cell]:
    """The largest budget's runs once more, one step of the plan further: FLOPs times r, parameters times sqrt(r)."""
    ratio = budgets[-1] / budgets[-2]
    return [
        replace(
            c,
            key=f"{c.arm}/{c.size}*{ratio**0.5:.3g}/{budgets[-1] * ratio:g}/{c.seed}",
            size=f"{c.size}*{ratio**0.5:.3g}",
            num_params=c.num_params * ratio**0.5,
            flops_budget=c.flops_budget * ratio,
            planned_flops=c.planned_flops * ratio,
            cost_flops=c.planned_flops * ratio,
            gpu_hours=None if c.gpu_hours is None else c.gpu_hours * ratio,
            added=True,
        )
        for c in cells
        if c.flops_budget == budgets[-1]
    ]


def noise_of(cells: Sequence[Cell], simulations: int, seed: int) -> np.ndarray:
    """(simulations, cells) standard normal draws: a run's own by its key, so that two designs share those of common runs."""
    draws = []
    for cell in cells:
        digest = hashlib.sha256(f"{seed}/{cell.key}".encode()).digest()
        draws.append(np.random.default_rng(list(digest)).standard_normal(simulations))
    return np.array(draws).T
