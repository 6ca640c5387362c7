"""isoFLOP profiles: at each compute budget a parabola of the loss in log N, its minimum, and power laws through the minima.

    L_bi = p_b + q_b x_i + k x_i^2,  x = ln N - mean;   N*_b = exp(mean - q_b / (2 k)),  L*_b = p_b - q_b^2 / (4 k)

With shape "cubic" a term s x_i^3 is added, and the minimum is where the slope is 0 and the curvature positive:
x* = -q / (k + sqrt(k^2 - 3 s q)). (Approach 2 of Hoffmann et al. 2022,
section 3.2, with one curvature k for all budgets where sizes are few, else k_b each.)
Least squares on the loss itself, so everything is linear and the intervals come from resampled residuals with the design
kept (`analysis.uncertainty`). N*(C) and D*(C) are power laws fitted apart, in logs, through interior minima only; D* is read off
the budget's own runs (ln D against ln N), not from 6ND. Not here: which runs count (`analysis.exclude`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.basis import percentile_interval
from analysis.diagnose import check_options, interval_warnings, robust_spread
from analysis.laws import Floats, IsoflopCubic, IsoflopParabola, PowerLaw
from analysis.results import IsoflopFit, IsoflopProfile, PowerLawFit
from analysis.table import Points, read_points, require_one_kind, require_varying
from analysis.uncertainty import RESIDUAL, leverages, residual_errors
from lst.errors import FitError, did_you_mean

SHARED, TREND, PER_BUDGET, AUTO = "shared", "trend", "per_budget", "auto"
CURVATURES = (AUTO, SHARED, TREND, PER_BUDGET)
PARABOLA, CUBIC = "parabola", "cubic"
OWN_CURVATURE_SIZES = 5
"""Sizes that every budget must have before each gets a curvature of its own: two degrees of freedom a parabola."""
TREND_BUDGETS = 3
"""Budgets of three sizes from which a shared curvature may change with ln C: as scale grows a law's profiles flatten."""
INTERIOR, BELOW, ABOVE, NOT_CONVEX, TOO_FEW = "interior", "below_smallest", "above_largest", "not_convex", "too_few_sizes"


@dataclass(frozen=True)
class Parabolas:
    """Fitted coefficients of every usable budget, for R draws at once; x is ln N - centre."""

    budgets: np.ndarray  # (B,) indices into Points.budget_flops
    constant: Floats  # (R, B)
    slope: Floats  # (R, B)
    curvature: Floats  # (R, B)
    skew: Floats  # (R, B) of x^3; 0 for parabolas
    smallest: Floats  # (B,) x of the smallest size
    largest: Floats  # (B,)
    centre: float

    @property
    def lowest_x(self) -> Floats:
        """(R, B) where the minimum lies; nan where there is none: no point of zero slope and positive curvature."""
        with np.errstate(divide="ignore", invalid="ignore"):
            root = np.sqrt(self.curvature**2 - 3 * self.skew * self.slope)
            at = -self.slope / (self.curvature + np.where(self.skew == 0, self.curvature, root))
            result: Floats = np.where((self.curvature + 3 * self.skew * at > 0) & np.isfinite(at), at, np.nan)
        return result

    def value(self, x: Floats) -> Floats:
        result: Floats = self.constant + self.slope * x + (self.curvature + self.skew * x) * x * x
        return result

    @property
    def best_in_span(self) -> Floats:
        """(R, B) the least loss over the sizes that were tried: the minimum if it is interior, else the better end."""
        ends = np.fmin(self.value(self.smallest), self.value(self.largest))
        inside = np.clip(np.nan_to_num(self.lowest_x, nan=np.inf), self.smallest, self.largest)
        return np.fmin(ends, self.value(inside))


@dataclass(frozen=True)
class Regression:
    """The one linear problem behind all parabolas of a table."""

    points: Points
    rows: np.ndarray  # rows of usable budgets
    budgets: np.ndarray
    design: Floats  # (rows, q)
    curvature: str  # shared | trend | per_budget
    bends: tuple[Floats, ...]  # (B, k) of x^2, and of a cubic's x^3: the budgets' values from k coefficients
    centre: float

    @classmethod
    def of(cls, points: Points, curvature: str, shape: str = PARABOLA) -> Regression:
        if shape not in (PARABOLA, CUBIC):
            raise FitError(f"shape='{shape}' is unknown; {did_you_mean(shape, (PARABOLA, CUBIC))}")
        if curvature not in CURVATURES:
            raise FitError(f"curvature='{curvature}' is unknown; {did_you_mean(curvature, CURVATURES)}")
        log_n = np.log(points.num_params)
        every = np.arange(len(points.budget_flops))
        sizes = np.array([len(np.unique(np.round(log_n[points.budget == b], 6))) for b in every])
        if curvature == AUTO:
            own, few = (sizes >= OWN_CURVATURE_SIZES).all(), shape == CUBIC or (sizes > 2).sum() < TREND_BUDGETS
            curvature = PER_BUDGET if own else SHARED if few else TREND
        needed = 3 + (shape == CUBIC)
        usable = every[sizes >= (needed if curvature == PER_BUDGET else needed - 1)]
        if not len(usable) or sizes[usable].max() < needed:
            told = "three" if needed == 3 else "four"
            raise FitError(f"the budgets have {sizes.tolist()} sizes; a {shape} needs a budget with {told} or more: add sizes.")
        rows = np.flatnonzero(np.isin(points.budget, usable))
        centre = float(log_n[rows].mean())
        x = log_n[rows] - centre
        member = (points.budget[rows][:, None] == usable).astype(float)
        log_c = np.log(points.budget_flops[usable])
        trend = np.stack([np.ones(len(usable)), log_c - log_c.mean()], axis=1)
        of = {SHARED: np.ones((len(usable), 1)), TREND: trend[:, : len(usable)], PER_BUDGET: np.eye(len(usable))}
        # of a cubic, the skew alone is shared: one curvature at minima in different places is not linear
        bends = {2: of[PER_BUDGET if shape == CUBIC else curvature], 3: of[curvature]}
        columns = [x[:, None] ** power * (member @ bends[power]) for power in range(2, needed)]
        design = np.concatenate([member, member * x[:, None], *columns], axis=1)
        told_apart = int(np.linalg.matrix_rank(design))
        if told_apart < design.shape[1]:
            raise FitError(
                f"budgets of {sizes.tolist()} sizes cannot fix the {design.shape[1]} parameters of isoFLOP parabolas with "
                f"curvature={curvature}: add sizes, or choose curvature={SHARED}."
            )
        return cls(points, rows, usable, design, curvature, tuple(bends[power] for power in range(2, needed)), centre)

    @property
    def losses(self) -> Floats:
        result: Floats = self.points.loss[self.rows]
        return result

    def solve(self, losses: Floats) -> Parabolas:
        """Parabolas of `losses` (R, rows)."""
        coefficient = losses @ np.linalg.pinv(self.design).T
        count = len(self.budgets)
        ends_at = np.cumsum([2 * count, *(b.shape[1] for b in self.bends)])
        found = [coefficient[:, i:j] @ b.T for i, j, b in zip(ends_at, ends_at[1:], self.bends, strict=False)]
        bend, skew = found if len(found) == 2 else (found[0], np.zeros_like(found[0]))
        x = np.log(self.points.num_params) - self.centre
        ends = [[end(x[self.points.budget == b]) for b in self.budgets] for end in (np.min, np.max)]
        smallest, largest = np.array(ends[0]), np.array(ends[1])
        return Parabolas(
            self.budgets, coefficient[:, :count], coefficient[:, count : 2 * count], bend, skew, smallest, largest, self.centre
        )

    def draws(
        self, *, resamples: int, level: float, rng: np.random.Generator, spread: float | None = None
    ) -> tuple[Parabolas, Parabolas]:
        """The fit (R = 1) and its resamples: of its residuals, or with normal errors of standard deviation `spread`."""
        best = self.solve(self.losses[None])
        fitted = self.design @ np.linalg.pinv(self.design) @ self.losses
        residual = self.losses - fitted
        if spread is None:
            errors = residual_errors(residual, leverages(self.design), self.design.shape[1], level, resamples, rng)
        else:
            errors = spread * rng.standard_normal((resamples, len(fitted)))
        return best, self.solve(fitted + errors)

    @property
    def freedom(self) -> int:
        """Degrees of freedom that the parabolas leave."""
        return len(self.rows) - int(self.design.shape[1])

    @property
    def residual(self) -> Floats:
        result: Floats = self.losses - self.design @ (np.linalg.pinv(self.design) @ self.losses)
        return result

    @property
    def noise(self) -> float | None:
        """Standard deviation of a loss about its parabola, or None without a degree of freedom."""
        return float(np.sqrt((self.residual**2).sum() / self.freedom)) if self.freedom > 0 else None


def fit_isoflop(
    table: pd.DataFrame,
    *,
    params: str = "num_params",
    tokens: str = "tokens",
    loss: str = "loss",
    curvature: str = AUTO,
    shape: str = PARABOLA,
    resamples: int = 1000,
    level: float = 0.9,
    rng: np.random.Generator | None = None,
) -> IsoflopFit:
    """isoFLOP profiles of a table with `params`, `tokens`, `loss` and `train_flops` or `flops_budget` (else C = 6ND).

    `curvature`: "shared", "trend" (a straight line in ln C), "per_budget", or "auto" (its own where every budget has five sizes,
    else the trend from three budgets on); `shape`: "parabola" or "cubic".
    Raises FitError where no budget
    has an interior minimum; a single budget without one is a status of its profile.
    """
    check_options(resamples, level)
    require_one_kind(table)
    points = read_points(table, params=params, tokens=tokens, loss=loss)
    require_varying(points)
    regression = Regression.of(points, curvature, shape)
    rng = np.random.default_rng(0) if rng is None else rng
    count = resamples if regression.freedom > 0 else 0
    best, draws = regression.draws(resamples=count, level=level, rng=rng)
    profiles = tuple(_profile(points, b, best, draws, level, shape) for b in range(len(points.budget_flops)))
    inside = [p for p in profiles if p.status == INTERIOR]
    if not inside:
        told = "; ".join(f"{p.flops_budget:.3g} FLOPs: {p.status}" for p in profiles)
        raise FitError(f"no budget has an interior minimum ({told}); add sizes beyond the ones tried.")
    basis: dict[str, Any] = {
        "n": len(regression.rows),
        "loss": "squares",
        "delta": None,
        "objective": float((regression.residual**2).sum() / 2),
        "residual_spread": robust_spread(regression.residual),
        "level": level,
        "interval_method": RESIDUAL if count else "none",
        "resamples": count,
    }
    laws = [_law(name, points, best, draws, profiles, basis) for name in ("optimal_params", "optimal_tokens")]
    return IsoflopFit(
        shape=shape,
        curvature=regression.curvature,
        profiles=profiles,
        optimal_params=laws[0],
        optimal_tokens=laws[1],
        failed=int((~np.isfinite(draws.lowest_x)).any(1).sum()) if count else 0,
        warnings=_warnings(regression, profiles, count, resamples, points.exact_flops),
        **basis,
    )


def _profile(points: Points, budget: int, best: Parabolas, draws: Parabolas, level: float, shape: str) -> IsoflopProfile:
    """One budget's points, parabola, status and intervals."""
    rows = np.flatnonzero(points.budget == budget)
    rows = rows[np.argsort(points.num_params[rows], kind="stable")]
    shared: dict[str, Any] = {
        "flops_budget": float(points.budget_flops[budget]),
        "train_flops": float(np.exp(np.log(points.flops[rows]).mean())),
        "num_params": tuple(points.num_params[rows].tolist()),
        "losses": tuple(points.loss[rows].tolist()),
    }
    if budget not in best.budgets:
        return IsoflopProfile(**shared, parabola=None, status=TOO_FEW)
    b = int(np.flatnonzero(best.budgets == budget)[0])
    x, skew = float(best.lowest_x[0, b]), float(best.skew[0, b])
    bend = float(best.curvature[0, b]) + 3 * skew * x  # half the second derivative at the minimum
    if not bend > 0:
        return IsoflopProfile(**shared, parabola=None, status=NOT_CONVEX)
    floor = float(best.value(best.lowest_x)[0, b])
    place = x + best.centre
    parabola = IsoflopCubic(floor, bend, skew, place) if shape == CUBIC else IsoflopParabola(floor, bend, place)
    low, high = float(best.smallest[b]), float(best.largest[b])
    status = INTERIOR if low < x < high else BELOW if x <= low else ABOVE
    if status != INTERIOR:
        return IsoflopProfile(**shared, parabola=parabola, status=status)
    where = draws.lowest_x[:, b]
    convex = np.isfinite(where)
    told = len(where) > 0 and convex.mean() > 0.5 + level / 2
    return IsoflopProfile(
        **shared,
        parabola=parabola,
        status=status,
        optimal_params=float(np.exp(x + best.centre)),
        optimal_tokens=float(np.exp(_log_tokens(points, budget, np.array([x + best.centre]))[0])),
        optimal_loss=floor,
        optimal_params_interval=percentile_interval(np.exp(where[convex] + best.centre), level) if told else None,
        optimal_loss_interval=percentile_interval(draws.best_in_span[:, b], level) if told else None,
        interior_share=float(((where > low) & (where < high)).mean()) if len(where) else None,
    )


def _log_tokens(points: Points, budget: int, log_n: Floats) -> Floats:
    """ln D at `log_n` among the budget's own runs: linear between sizes; beyond them, the line through all of them."""
    rows = points.budget == budget
    x, y = np.log(points.num_params[rows]), np.log(points.tokens[rows])
    sizes, index = np.unique(x, return_inverse=True)
    means = np.bincount(index, y) / np.bincount(index)
    slope, constant = np.polyfit(sizes, means, 1)
    outside = (log_n < sizes[0]) | (log_n > sizes[-1])
    result: Floats = np.where(outside, constant + slope * log_n, np.interp(log_n, sizes, means))
    return result


def _law(
    quantity: str, points: Points, best: Parabolas, draws: Parabolas, profiles: tuple[IsoflopProfile, ...], basis: dict[str, Any]
) -> PowerLawFit | None:
    """The power law of `quantity` (optimal_params or optimal_tokens) through the interior minima."""
    inside = [b for b, p in enumerate(profiles) if p.status == INTERIOR]
    if len(inside) < 2:
        return None
    log_c = np.log([profiles[b].train_flops for b in inside])
    columns = [int(np.flatnonzero(best.budgets == b)[0]) for b in inside]

    def lines(parabolas: Parabolas) -> Floats:
        log_y = parabolas.lowest_x[:, columns] + parabolas.centre
        log_y = log_y[np.isfinite(log_y).all(1)]
        if quantity == "optimal_tokens" and len(log_y):
            log_y = np.stack([_log_tokens(points, b, log_y[:, i]) for i, b in enumerate(inside)], axis=1)
        slope = (log_y - log_y.mean(1, keepdims=True)) @ (log_c - log_c.mean()) / ((log_c - log_c.mean()) ** 2).sum()
        with np.errstate(over="ignore"):
            scale = np.exp(log_y.mean(1) - slope * log_c.mean())
        return np.stack([scale, slope, np.zeros_like(slope)], axis=1)

    law, samples = PowerLaw(*lines(best)[0].tolist()), lines(draws)
    resamples, level = len(draws.constant), float(basis["level"])
    residual = np.log([getattr(profiles[b], quantity) for b in inside]) - np.log(law.predict(np.exp(log_c)))
    warnings = [f"only {len(inside)} budgets have an interior minimum: the exponent rests on so few"] if len(inside) < 4 else []
    if resamples > len(samples):
        warnings.append(f"{resamples - len(samples):,} of {resamples:,} resamples had no minimum and are left out")
    return PowerLawFit(
        law=law,
        quantity=quantity,
        intervals={k: percentile_interval(samples[:, i], level) for i, k in enumerate(("scale", "exponent"))}
        if len(samples)
        else {},
        range=(float(np.exp(log_c.min())), float(np.exp(log_c.max()))),
        samples=samples if len(samples) else None,
        failed=resamples - len(samples),
        warnings=tuple(warnings),
        **(basis | {"n": len(inside), "residual_spread": robust_spread(residual), "objective": float((residual**2).sum() / 2)}),
    )


def _warnings(
    regression: Regression, profiles: tuple[IsoflopProfile, ...], done: int, asked: int, exact_flops: bool
) -> tuple[str, ...]:
    told = [
        f"budget {p.flops_budget:.3g}: no interior minimum ({p.status}); it is left out of N*(C) and D*(C)"
        for p in profiles
        if p.status != INTERIOR
    ]
    told += [
        f"budget {p.flops_budget:.3g}: only {p.interior_share:.0%} of the resamples have their minimum between the sizes tried"
        for p in profiles
        if p.interior_share is not None and p.interior_share < 0.9
    ]
    if not exact_flops:
        told.append("the table has no train_flops: budgets are told by 6ND, an approximation")
    return (*told, *interval_warnings(len(regression.rows), regression.design.shape[1], done, 0, asked))
