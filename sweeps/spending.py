"""The rows of a study that gives one total instead of budgets: the ladder is chosen, its rows are built, their sum is checked.

The first ladder rests on an estimate of each cell's cost; the rows that come of it tell the true one, and the ladder is
chosen anew until its rows' sum lies just below the total. Not here: the choice itself (`sweeps.spend`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lst.config import Arm
from lst.errors import ConfigError, PlanError
from lst.flops import num_params
from lst.ladder import BaselineMatch
from sweeps.arms import arm_model
from sweeps.columns import PlanRow
from sweeps.measure import Measure
from sweeps.spend import LEAST_SIZES, Ladder, expected_optimum, sizes_around, spread
from sweeps.study import Length, StudyConfig

ROUNDS = 8
GOOD_ENOUGH = 0.95  # of the total: two significant digits of a budget leave a few percent


@dataclass(frozen=True)
class Level:
    """One length of the study and the sizes that it is crossed with."""

    length: float
    sizes: tuple[str, ...]


def size_params(study: StudyConfig, measure: Measure) -> dict[str, int]:
    """Parameters of the baseline at each of the study's sizes, whatever baseline_match says: what a size's optimum is told by."""
    plain = dataclasses.replace(study, baseline_match=BaselineMatch.GLOBAL_SHAPE.value)
    sizes = {size for arm in study.arms for size in study.sizes_of(arm)}
    return {size: num_params(arm_model(plain, measure, size, Arm.BASELINE)) for size in study.sizes if size in sizes}


def levels_of(study: StudyConfig, measure: Measure) -> tuple[Level, ...]:
    """The lengths that the study names, each with all its sizes, or with those around its expected optimum."""
    params = size_params(study, measure)
    if study.length is not Length.BUDGETS or not study.spend.window:
        return tuple(Level(length, tuple(params)) for length in study.lengths)
    per_param = study.spend.tokens_per_param
    return tuple(
        Level(budget, sizes_around(expected_optimum(budget, per_param), params, study.spend.window)) for budget in study.lengths
    )


def edges(study: StudyConfig, measure: Measure, levels: Sequence[Level]) -> dict[float, str]:
    """Why the minimum of a budget's profile may lie at the grid's edge: its expected optimum lies outside its sizes."""
    if study.length is not Length.BUDGETS:
        return {}
    params, found = size_params(study, measure), {}
    for level in levels:
        optimum = expected_optimum(level.length, study.spend.tokens_per_param)
        counts = sorted(params[size] for size in level.sizes)
        if len(counts) >= LEAST_SIZES and not counts[0] < optimum < counts[-1]:
            found[level.length] = (
                f"its budget has its expected optimum at {optimum:.3g} parameters ({study.spend.tokens_per_param:g} tokens "
                f"each), outside its sizes ({counts[0]:.3g} to {counts[-1]:.3g}): the profile may have its minimum at the edge"
            )
    return found


def edge_warnings(study: StudyConfig, measure: Measure, levels: Sequence[Level]) -> list[str]:
    """A sentence for each budget of `edges`."""
    return [f"{why.replace('its budget', f'budget {length:.3g}', 1)}." for length, why in edges(study, measure, levels).items()]


Build = Callable[[Sequence[Level]], Sequence[PlanRow]]


def choose_ladder(study: StudyConfig, measure: Measure, build: Build) -> Ladder:
    """The ladder whose rows, as `build` makes them, cost at most the total. Raises ConfigError or PlanError where none does."""
    spend, params = study.spend, size_params(study, measure)
    unit = _unit_cost(study)
    runs = {size: len(study.seeds) * sum(size in study.sizes_of(arm) for arm in study.arms) for size in params}
    per_flop = {size: unit * runs[size] for size in params}  # what a FLOP of the budget costs in all runs of a cell
    allowance, best = spend.total, None
    for _ in range(ROUNDS):
        chosen = spread(spend, params, per_flop, allowance)
        rows = build(ladder_levels(chosen))
        ladder = _with_costs(chosen, rows, spend.currency, spend.total)
        if ladder.cost <= spend.total and ladder.rungs[-1].cost <= spend.largest_share * spend.total:
            best = ladder if best is None or ladder.cost > best.cost else best
            if ladder.cost >= GOOD_ENOUGH * spend.total or chosen.cost < GOOD_ENOUGH * allowance:
                break
        else:
            allowance *= 0.98
        per_flop |= _per_flop(rows, spend.currency)
    if best is None:
        raise PlanError(
            f"no ladder's rows cost less than {spend.total:.3g} {spend.currency}; give more, or budgets=[...] by hand."
        )
    return best


def ladder_levels(ladder: Ladder) -> tuple[Level, ...]:
    """The ladder's budgets with their sizes."""
    return tuple(Level(rung.budget, rung.sizes) for rung in ladder.rungs)


def require_within(study: StudyConfig, rows: Sequence[PlanRow]) -> None:
    """Raises PlanError where a study that names its lengths itself costs more than its total."""
    cost = math.fsum(row_cost(row, study.spend.currency) for row in rows)
    if cost > study.spend.total:
        raise PlanError(
            f"the study's rows cost {cost:.4g} {study.spend.currency}, over the total of {study.spend.total:.4g}; take "
            f"{study.length.value}=[...] away, so that the total chooses them, or give fewer."
        )


def row_cost(row: PlanRow, currency: str) -> float:
    """What a row spends, refused or not."""
    return {"FLOPs": row.planned_spent_flops, "GPU-hours": row.est_gpu_hours, "money": row.est_dollars}[currency]


def _with_costs(ladder: Ladder, rows: Sequence[PlanRow], currency: str, total: float) -> Ladder:
    """The ladder with what its rows really cost."""
    costs: dict[float, list[float]] = {}
    for row in rows:
        nearest = min(ladder.rungs, key=lambda rung: abs(math.log(rung.budget / row.flops_budget)))
        costs.setdefault(nearest.budget, []).append(row_cost(row, currency))
    rungs = tuple(dataclasses.replace(rung, cost=math.fsum(costs.get(rung.budget, []))) for rung in ladder.rungs)
    return Ladder(rungs, total)


def _per_flop(rows: Sequence[PlanRow], currency: str) -> dict[str, float]:
    """By size: what all runs of a cell cost over its budget, where that is most."""
    cells: dict[tuple[str, float], float] = {}
    for row in rows:
        key = row.size, row.flops_budget
        cells[key] = cells.get(key, 0.0) + row_cost(row, currency)
    most: dict[str, float] = {}
    for (size, budget), cost in cells.items():
        most[size] = max(most.get(size, 0.0), cost / budget)
    return most


def _unit_cost(study: StudyConfig) -> float:
    """A first estimate of what a FLOP costs. Raises ConfigError where the price knows no such currency."""
    spend, price = study.spend, study.price
    if spend.currency == "FLOPs":
        return 1.0
    if price.gpu is None:
        raise ConfigError(
            f"spend.{_key(spend.currency)}={spend.total:g} needs GPUs to count; give price.device, for example h100."
        )
    hours = 1 / (price.flops_per_second(1, study.dtype) * 3600)
    if spend.currency == "GPU-hours":
        return hours
    if not price.dollars:
        raise ConfigError(f"spend.total_money={spend.total:g} needs a price; give price.dollars_per_gpu_hour.")
    return hours * price.dollars


def _key(currency: str) -> str:
    return {"FLOPs": "total_flops", "GPU-hours": "total_gpu_hours", "money": "total_money"}[currency]
