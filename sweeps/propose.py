"""Rows to run next: given a study's results and a budget, run these (`plan-sweep propose DIR total_flops=1e21`).

    places     a budget, size and seed, with every arm of the study that is planned there: arms are compared at one place
    worth      the variance that a place saves in the quantities of power.json, a FLOP (`fit-scaling power DIR`): of a row that is
               planned and not run, from the errors without it; of a run that the plan lacks, from its candidates
    optimum    N*(C) of the baseline's loss surface in fits.json, else the rule of spend.tokens_per_param: sizes around it that
               the plan lacks, and the next budget, follow without a worth of their own

Places are taken in this order while the rest of the budget pays for them, each priced by planning its rows. Not here: what a
study would tell (`fit-scaling power`), or the first ladder of one that has no results (`sweeps.spend`).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lst.errors import PlanError
from lst.flops import num_params
from lst.ladder import SIZES
from lst.records import EXIT, read_json
from sweeps.arms import arm_model
from sweeps.build import build_runs
from sweeps.columns import PLAN_TABLE, PlanRow
from sweeps.folder import RUNS
from sweeps.measure import Measure, open_measure
from sweeps.plan import StoredPlan
from sweeps.spend import SpendConfig, expected_optimum, sizes_around
from sweeps.spending import Level, row_cost
from sweeps.study import Length, StudyConfig
from sweeps.variants import arm_of

FITS, POWER = "fits.json", "power.json"
TARGET = "mixture"  # of the fits: the loss over the training mixture
NEAR_OPTIMUM = 5  # sizes around an optimum


@dataclass(frozen=True)
class Place:
    """Where runs are compared."""

    budget: float
    size: str
    seed: int


@dataclass(frozen=True)
class Proposed:
    """A place to run, with its rows."""

    place: Place
    rows: tuple[PlanRow, ...]
    planned: bool  # whether the study's plan has them already
    why: str
    worth: float | None  # variance saved, a FLOP; None where power.json does not tell it
    cost: float  # in the proposal's currency


@dataclass(frozen=True)
class Proposal:
    """What to run for a budget."""

    chosen: tuple[Proposed, ...]
    total: float
    currency: str
    optimum: str  # where N*(C) is from
    notes: tuple[str, ...]

    @property
    def left(self) -> float:
        return self.total - math.fsum(proposed.cost for proposed in self.chosen)


@dataclass(frozen=True)
class _Wish:
    place: Place
    arms: tuple[str, ...]
    why: str
    worth: float | None
    rows: tuple[PlanRow, ...] = ()  # where they are planned


def propose(stored: StoredPlan, spend: SpendConfig) -> Proposal:
    """The rows that a total (spend.total_flops, total_gpu_hours or total_money) should go to.

    Raises PlanError on a study without budgets, with shared trunks, or where the total pays for no place.
    """
    study, total = stored.study, spend.total
    if not total:
        raise PlanError("nothing to spend; give total_flops, total_gpu_hours or total_money.")
    if study.length is not Length.BUDGETS or study.recipe.share_trunk:
        what = "shares trunks" if study.recipe.share_trunk else f"has the length axis {study.length}"
        raise PlanError(f"the plan in '{stored.folder}' {what}; rows are proposed for runs of FLOP budgets alone.")
    measure = open_measure(study.data)
    optimum, source = _optimum(stored, study)
    power, notes = _power(stored)
    wishes = _ordered([*_not_run(stored, power), *_candidates(stored, study, measure, power)])
    known = {wish.place for wish in wishes} | {_place(row) for row in _pretraining(stored.rows)}
    wishes += [wish for wish in _around(stored, study, measure, optimum, spend) if wish.place not in known]
    chosen: list[Proposed] = []
    left, cheapest = total, math.inf
    for wish in wishes:
        rows = wish.rows or _built(study, measure, wish)
        cost = math.fsum(row_cost(row, spend.currency) for row in rows)
        if not all(row.admitted for row in rows):
            continue
        cheapest = min(cheapest, cost)
        if cost <= left:
            left -= cost
            chosen.append(Proposed(wish.place, rows, bool(wish.rows), wish.why, wish.worth, cost))
    if not chosen:
        reach = f"the cheapest costs {cheapest:.3g}" if cheapest < math.inf else "the study has none left"
        raise PlanError(f"{total:.3g} {spend.currency} pay for no place that is worth a run; {reach}.")
    return Proposal(tuple(chosen), total, spend.currency, source, tuple(notes))


def _pretraining(rows: Sequence[PlanRow]) -> list[PlanRow]:
    return [row for row in rows if row.kind == "pretrain" and row.admitted]


def _place(row: PlanRow) -> Place:
    return Place(row.flops_budget, row.size, row.seed)


def _optimum(stored: StoredPlan, study: StudyConfig) -> tuple[Callable[[float], float], str]:
    """N*(C), and where it is from: argmin of E + A / N^alpha + B / D^beta over C = 6 N D."""
    content = read_json(stored.folder / FITS) or {}
    for entry in content.get("fits", ()):
        surface = entry.get("loss_surface")
        same = (entry.get("arm"), entry.get("target"), entry.get("n_kind")) == (study.reference_arm, TARGET, "num_params")
        if same and isinstance(surface, Mapping) and min(surface["A"], surface["B"], surface["alpha"], surface["beta"]) > 0:
            alpha, beta = surface["alpha"], surface["beta"]
            factor = (alpha * surface["A"] / (beta * surface["B"])) ** (1 / (alpha + beta))
            share = beta / (alpha + beta)
            law = functools.partial(_power_law, factor, share)
            return law, f"{FITS}: N* = {factor:.3g} (C/6)^{share:.3f}"
    per_param = study.spend.tokens_per_param
    return lambda budget: expected_optimum(budget, per_param), f"no fit yet: {per_param:g} tokens a parameter"


def _power_law(factor: float, exponent: float, budget: float) -> float:
    return float(factor * (budget / 6) ** exponent)


def _power(stored: StoredPlan) -> tuple[dict[str, Any], list[str]]:
    """power.json of this very plan, else nothing; and what is to be told of it."""
    content, ask = read_json(stored.folder / POWER), f"run: fit-scaling power {stored.folder}"
    if content is None:
        return {}, [f"there is no {POWER}, so no place's worth is known; {ask}"]
    if content.get("plan_sha256") != hashlib.sha256((stored.folder / PLAN_TABLE).read_bytes()).hexdigest():
        return {}, [f"{POWER} is of another plan, so it is left out; {ask}"]
    return content, [str(warning) for warning in content.get("warnings", ())]


def _not_run(stored: StoredPlan, power: Mapping[str, Any]) -> Iterator[_Wish]:
    """Places of the plan of which a run is missing. Rows that have run cost nothing any more."""
    told = {row["run_id"]: row for row in power.get("rows", ())}
    places: dict[Place, list[PlanRow]] = {}
    for row in _pretraining(stored.rows):
        ended = read_json(stored.folder / RUNS / row.run_id / EXIT)
        if ended is None or ended.get("status") != "done":
            places.setdefault(_place(row), []).append(row)
    for place, rows in places.items():
        saved = [_saved(told[row.run_id]["without"]) for row in rows if row.run_id in told]
        worth = math.fsum(saved) / math.fsum(row.planned_flops for row in rows) if saved else None
        yield _Wish(place, tuple(row.arm for row in rows), "planned, not run yet", worth, tuple(rows))


def _saved(without: Mapping[str, float | None]) -> float:
    """The mean share of variance that a row saves, given the errors without it over those with it (null: not determined)."""
    shares = [1.0 if ratio is None else 1 - 1 / ratio**2 for ratio in without.values()]
    return math.fsum(shares) / len(shares) if shares else 0.0


def _candidates(stored: StoredPlan, study: StudyConfig, measure: Measure, power: Mapping[str, Any]) -> Iterator[_Wish]:
    """Places that power.json proposes; a size that the plan lacks is taken to be the nearest rung."""
    planned = {_place(row) for row in _pretraining(stored.rows)}
    found: dict[Place, list[tuple[float, float]]] = {}
    why: dict[Place, str] = {}
    for entry in power.get("candidates", ()):
        size = entry["size"] or _nearest(study, measure, entry["arm"], entry["num_params"])
        place = Place(float(entry["flops_budget"]), size, int(entry["seed"]))
        if place not in planned:
            found.setdefault(place, []).append((entry["gain_per_flop"] * entry["planned_flops"], entry["planned_flops"]))
            why[place] = "another seed" if entry["size"] else "a size that the budget lacks"
    for place, gains in found.items():
        worth = math.fsum(gain for gain, _ in gains) / math.fsum(flops for _, flops in gains)
        if arms := _arms(study, place.size):
            yield _Wish(place, arms, why[place], worth)


def _nearest(study: StudyConfig, measure: Measure, arm: str, params: float) -> str:
    named = study.sizes + tuple(size for size in SIZES if size not in study.sizes and not _twin(size, study.sizes))
    counts = {size: num_params(arm_model(study, measure, size, arm_of(arm))) for size in named}
    return min(counts, key=lambda size: abs(math.log(counts[size] / params)))


def _twin(size: str, sizes: Sequence[str]) -> bool:
    """Whether a size is another name of one of `sizes`."""
    return any(SIZES[size] == SIZES[other] for other in sizes)


def _arms(study: StudyConfig, size: str) -> tuple[str, ...]:
    """Arms that the study would plan at a size, the one that others are matched to among them."""
    arms = tuple(arm for arm in study.ordered_arms if size in study.arm_sizes.get(arm, (size,)))
    return arms if all(study.of_arm(arm).reference_arm in arms for arm in arms) else ()


def _ordered(wishes: Sequence[_Wish]) -> list[_Wish]:
    """The worthiest first; without a worth the cheapest budget first, in the plan's order."""
    return sorted(wishes, key=lambda wish: (wish.worth is None, -(wish.worth or 0.0), wish.place.budget))


def _around(
    stored: StoredPlan, study: StudyConfig, measure: Measure, optimum: Callable[[float], float], spend: SpendConfig
) -> Iterator[_Wish]:
    """Sizes around each budget's optimum, and around that of the next budget."""
    budgets = sorted({row.flops_budget for row in _pretraining(stored.rows)})
    step = budgets[-1] / budgets[-2] if len(budgets) > 1 else spend.step
    params = {size: num_params(arm_model(study, measure, size, arm_of(study.reference_arm))) for size in study.sizes}
    for budget in [*budgets, float(f"{budgets[-1] * step:.2g}")] if budgets else []:
        place_of = "the next budget's optimum" if budget > budgets[-1] else "the budget's optimum"
        for size in sizes_around(optimum(budget), params, min(NEAR_OPTIMUM, len(params))):
            if arms := _arms(study, size):
                why = f"around {place_of} of {optimum(budget):.3g} parameters"
                yield _Wish(Place(budget, size, study.seeds[0]), arms, why, None)


def _built(study: StudyConfig, measure: Measure, wish: _Wish) -> tuple[PlanRow, ...]:
    """The rows of a place that is not planned yet."""
    place = wish.place
    sizes = study.sizes if place.size in study.sizes else (place.size,)
    alone = dataclasses.replace(
        study,
        arms=wish.arms,
        sizes=sizes,
        arm_sizes={},
        budgets=(place.budget,),
        seeds=(place.seed,),
        spend=SpendConfig(),
    )
    runs, _ = build_runs(alone, measure, [Level(place.budget, (place.size,))])
    return tuple(run.row for run in runs)


def read_spend(overrides: Mapping[str, str]) -> SpendConfig:
    """The total of `plan-sweep propose`. Raises ConfigError on another key, or on what is no amount."""
    from lst.errors import ConfigError, did_you_mean

    keys = ("total_flops", "total_gpu_hours", "total_money")
    values = {}
    for key, text in overrides.items():
        name = key.removeprefix("spend.")
        if name not in keys:
            raise ConfigError(f"unknown key '{key}'; {did_you_mean(name, keys)}")
        try:
            values[name] = float(text)
        except ValueError as error:
            raise ConfigError(f"{key}={text} is no number.") from error
    spend = SpendConfig(**values)  # type: ignore[arg-type]  # the three keys are numbers
    spend.validate()
    return spend
