"""From one total to a ladder: which FLOP budgets a study can pay for, and which sizes belong to each.

The budgets rise in equal log steps to the largest that the total pays for. Each is crossed with the sizes nearest to its
expected optimum N*(C), so that an isoFLOP profile has its minimum inside. The largest budget is the one that fits are tested
on (fit-scaling holds it out), and takes at most a share of the total.

Costs are told by the caller, as FLOPs, GPU-hours or money a FLOP of the budget; the sum never passes the total. Not here:
what a run costs (`sweeps.price`), how its length is solved (`sweeps.allocate`), how the rows come to be (`sweeps.spending`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lst.errors import ConfigError, PlanError

SIGNIFICANT_DIGITS = 2  # of a budget: it is read by people
LEAST_SIZES = 4  # of a profile: a parabola has three coefficients
USUAL_SIZES = 5
MOST_BUDGETS = 100
_SOLVER_STEPS = 60  # halvings of a bracket: far below the digits that are kept


@dataclass(frozen=True, kw_only=True)
class SpendConfig:
    """One total and how it is spread; exactly one of the first three, or none, where the study names its budgets itself."""

    total_flops: float = 0.0  # training FLOPs of all runs
    total_gpu_hours: float = 0.0  # GPU-hours of all runs, by the study's price
    total_money: float = 0.0  # money for all runs, by the study's price
    budgets: int = 7  # rungs, the held-out one included
    step: float = 10**0.5  # factor between two budgets
    largest_share: float = 0.7  # the largest budget's runs cost at most this share of the total
    sizes_per_budget: int = 0  # sizes nearest to the expected optimum; 0 = 5 under a total, else all sizes
    tokens_per_param: float = 20.0  # the expected optimum reads so many tokens a parameter (arXiv 2203.15556)

    @property
    def total(self) -> float:
        """The total that is given, whatever it counts; 0 = none."""
        return self.total_flops or self.total_gpu_hours or self.total_money

    @property
    def window(self) -> int:
        """Sizes of a budget; 0 = all."""
        return self.sizes_per_budget or (USUAL_SIZES if self.total else 0)

    @property
    def currency(self) -> str:
        """What the total counts: FLOPs, GPU-hours or money."""
        return "FLOPs" if self.total_flops else "GPU-hours" if self.total_gpu_hours else "money"

    def validate(self) -> None:
        totals = ("total_flops", "total_gpu_hours", "total_money")
        for key in (*totals, "step", "largest_share", "tokens_per_param"):
            value = getattr(self, key)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"spend.{key}={value} must be a finite number, 0 or more.")
        given = [key for key in totals if getattr(self, key)]
        if len(given) > 1:
            raise ConfigError(f"spend.{given[0]} and spend.{given[1]} are both given; one total decides, so give one.")
        if not 1 <= self.budgets <= MOST_BUDGETS:
            raise ConfigError(f"spend.budgets={self.budgets} must lie between 1 and {MOST_BUDGETS}.")
        if self.step <= 1:
            raise ConfigError(f"spend.step={self.step:g} must be over 1; it is the factor from one budget to the next.")
        if not 0 < self.largest_share <= 1:
            raise ConfigError(f"spend.largest_share={self.largest_share:g} must lie in (0, 1].")
        if self.sizes_per_budget and self.sizes_per_budget < LEAST_SIZES:
            raise ConfigError(
                f"spend.sizes_per_budget={self.sizes_per_budget} is under {LEAST_SIZES}; fewer sizes have no minimum to fit."
            )
        if not self.tokens_per_param:
            raise ConfigError("spend.tokens_per_param=0 must be positive (20 is the usual rule).")


@dataclass(frozen=True)
class Rung:
    """One budget and the sizes that are trained on it."""

    budget: float  # training FLOPs of a run
    optimum: float  # expected optimal parameters
    sizes: tuple[str, ...]  # rising
    cost: float  # of all its runs


@dataclass(frozen=True)
class Ladder:
    """The rungs that a total pays for, rising."""

    rungs: tuple[Rung, ...]
    total: float

    @property
    def cost(self) -> float:
        return math.fsum(rung.cost for rung in self.rungs)

    @property
    def left(self) -> float:
        return self.total - self.cost


def expected_optimum(budget: float, tokens_per_param: float) -> float:
    """N* of `budget` = 6 N D with D = `tokens_per_param` N: sqrt(C / (6 tokens_per_param))."""
    return math.sqrt(budget / (6 * tokens_per_param))


def sizes_around(optimum: float, params: Mapping[str, int], count: int) -> tuple[str, ...]:
    """The `count` sizes nearest to `optimum` in log parameters, at least one on each side where there is one; rising.

    Raises PlanError where there are fewer than `count`.
    """
    rising = sorted(params, key=lambda size: params[size])
    if len(rising) < count:
        raise PlanError(f"{len(rising)} sizes are fewer than the {count} of a budget (spend.sizes_per_budget); give more sizes.")
    nearest = sorted(rising, key=lambda size: abs(math.log(params[size] / optimum)))[:count]
    below, above = ([size for size in rising if (params[size] < optimum) is side] for side in (True, False))
    for neighbour in (*below[-1:], *above[:1]):
        if neighbour not in nearest:
            nearest[-1] = neighbour
    return tuple(sorted(nearest, key=lambda size: params[size]))


def spread(config: SpendConfig, params: Mapping[str, int], per_flop: Mapping[str, float], total: float) -> Ladder:
    """The ladder with the largest top budget that `total` pays for.

    `params` are the sizes' parameters, `per_flop` what all runs of a size cost (every arm and seed) over their budget. Raises
    PlanError where no ladder over these sizes fits.
    """

    def at(top: float) -> Ladder:
        return _ladder(config, params, per_flop, total, top)

    low, high = _reachable(config, params)
    if _affordable(config, at(high)):
        top = high
    elif not _affordable(config, at(low)):
        cheapest = at(low)
        raise PlanError(
            f"a total of {total:.3g} {config.currency} pays for no ladder of {config.budgets} budgets over these sizes: "
            f"the cheapest costs {cheapest.cost:.3g}; give more, smaller sizes, or fewer spend.budgets."
        )
    else:
        for _ in range(_SOLVER_STEPS):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if _affordable(config, at(middle)) else (low, middle)
        top = low
    for candidate in _readable_below(top):
        try:
            ladder = at(candidate)
        except PlanError:
            break
        if _affordable(config, ladder):
            return ladder
    return at(top)


def _ladder(config: SpendConfig, params: Mapping[str, int], per_flop: Mapping[str, float], total: float, top: float) -> Ladder:
    rungs = []
    for place in range(config.budgets):
        budget = readable(top / config.step ** (config.budgets - 1 - place)) if place < config.budgets - 1 else top
        optimum = expected_optimum(budget, config.tokens_per_param)
        sizes = sizes_around(optimum, params, config.window)
        rungs.append(Rung(budget, optimum, sizes, budget * math.fsum(per_flop[size] for size in sizes)))
    return Ladder(tuple(rungs), total)


def _affordable(config: SpendConfig, ladder: Ladder) -> bool:
    return ladder.cost <= ladder.total and ladder.rungs[-1].cost <= config.largest_share * ladder.total


def _reachable(config: SpendConfig, params: Mapping[str, int]) -> tuple[float, float]:
    """Top budgets whose whole ladder has its expected optima inside the sizes: the least and the largest, a little inside."""
    try:
        span = config.step ** (config.budgets - 1)
    except OverflowError:
        span = math.inf
    least, most = (6 * config.tokens_per_param * count**2 for count in (min(params.values()), max(params.values())))
    low, high = least * span * 1.06, most / 1.06
    if low > high:
        raise PlanError(
            f"{config.budgets} budgets {config.step:.3g} apart need sizes {math.sqrt(span):.3g} times apart, and these are "
            f"{max(params.values()) / min(params.values()):.3g}; give more sizes, or fewer spend.budgets."
        )
    return low, high


def readable(value: float) -> float:
    """`value` at two significant digits."""
    return float(f"{value:.{SIGNIFICANT_DIGITS - 1}e}")


def _readable_below(value: float) -> Sequence[float]:
    """The next few numbers of two significant digits at or below `value`, falling."""
    digit = 10.0 ** (math.floor(math.log10(value)) - SIGNIFICANT_DIGITS + 1)
    first = math.floor(value / digit)
    return [float(f"{(first - i) * digit:.{SIGNIFICANT_DIGITS - 1}e}") for i in range(3) if first > i]
