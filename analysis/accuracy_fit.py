"""Accuracy as a law: a sigmoid with the task's chance as its floor, in the loss or in ln C, by binomial likelihood.

    fit_accuracy(table, chance=0.25)                    # columns loss, accuracy, n_items
    fit_accuracy(table, chance=0.25, against="flops")   # columns train_flops, accuracy, n_items

    p = chance + (ceiling - chance) s(eta),  eta = slope (x - midpoint),  s the logistic function
    maximise sum_i n_i (k_i ln p_i + (1 - k_i) ln(1 - p_i)),  k_i the share of n_i items that run i gets right

Items are drawn once for all runs and seeds differ too, so that runs scatter more than a binomial says: Pearson's
X^2 = sum n (k - p)^2 / (p (1 - p)) over its degrees of freedom is told as `dispersion`. Wilson's intervals of single
accuracies: `analysis.accuracy`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from analysis.accuracy import wilson_interval
from analysis.basis import Interval, percentile_interval
from analysis.diagnose import check_options, extent, interval_warnings, robust_spread
from analysis.form_results import FormFit
from analysis.forms import ChanceSigmoid
from analysis.laws import Floats
from analysis.scoring import minimise_by_scoring
from analysis.table import column, require_one_kind
from analysis.uncertainty import PAIRS, RESIDUAL_BELOW
from lst.errors import FitError, did_you_mean

BINOMIAL = "binomial"
PARAMETRIC = "parametric bootstrap: binomial counts with the dispersion found, t-scaled"
AGAINST = {"loss": "accuracy_of_loss", "flops": "accuracy_of_flops"}
SCATTERED = 2.0
FLAT, STEEPEST = 1e-6, 60.0
"""Slopes over the range of the data: what is none but for rounding, and the bound: a step."""
APART = {"loss": 1e-3, "flops": 0.05}
"""Natural logs of x that differ by less are one: runs of one budget tell nothing of what more FLOPs would do."""


def fit_accuracy(
    table: pd.DataFrame,
    *,
    chance: float,
    ceiling: float = 1.0,
    against: str = "loss",
    loss: str = "loss",
    flops: str = "train_flops",
    accuracy: str = "accuracy",
    items: str = "n_items",
    resamples: int = 1000,
    level: float = 0.9,
    rng: np.random.Generator | None = None,
) -> FormFit:
    """The sigmoid of a table's accuracies (shares in 0..1 of `items`) in the loss or in ln C.

    Raises FitError where an accuracy is no share, fewer than three distinct x are given, no accuracy can be told from chance, or
    accuracy does not rise as the loss falls (as FLOPs grow).
    """
    check_options(resamples, level)
    require_one_kind(table)
    raw, share, count = _columns(table, chance, ceiling, against, loss if against == "loss" else flops, accuracy, items)
    x = raw if against == "loss" else np.log(raw)
    require_above_chance(share, count, chance, level)
    rng = np.random.default_rng(0) if rng is None else rng
    centre, width = float(x.mean()), float(np.ptp(x))
    z = (x - centre) / width
    best = _solve(z, share[None], count[None], chance, ceiling, None)[0][0]
    if abs(best[1]) < FLAT or (best[1] > 0) != (against == "flops"):
        how = "the loss falls" if against == "loss" else "FLOPs grow"
        raise FitError(f"accuracy does not rise as {how}: no such law holds here.")
    midpoint, slope = _law(best[None], centre, width)[0].tolist()
    law = ChanceSigmoid(midpoint, slope, chance, ceiling)
    expected = law.predict(x)
    dispersion = float((count * (share - expected) ** 2 / (expected * (1 - expected))).sum() / (len(x) - 2))
    shares, counts, method = _resampled(share, count, expected, max(dispersion, 1.0), resamples, level, rng)
    samples = np.empty((0, 2))
    if len(shares):
        drawn, converged = _solve(z, shares, counts, chance, ceiling, best)
        samples = _law(drawn[converged & (np.abs(drawn[:, 1]) > FLAT)], centre, width)
    intervals = _intervals(samples, level)
    return FormFit(
        form=AGAINST[against],
        law=law,
        intervals=intervals,
        ranges={against: extent(raw)},
        extra={"dispersion": dispersion},
        samples=np.insert(samples, 2, [[chance], [ceiling]], axis=1) if len(samples) else None,
        n=len(x),
        loss=BINOMIAL,
        delta=None,
        objective=float(_deviance(share, expected, count)),
        residual_spread=robust_spread(share - expected),
        level=level,
        interval_method=method if len(samples) else "none",
        resamples=len(shares),
        failed=len(shares) - len(samples),
        warnings=_warnings(best[1], intervals, dispersion, len(x), len(shares), len(samples), resamples),
    )


def _intervals(samples: Floats, level: float) -> dict[str, Interval]:
    """Of midpoint and slope; where the slope's holds 0 the midpoint may lie anywhere, and has none."""
    names = ("midpoint", "slope") if len(samples) else ()
    found = {name: percentile_interval(samples[:, i], level) for i, name in enumerate(names)}
    return {"slope": found["slope"]} if found and _holds_0(found) else found


def _holds_0(intervals: dict[str, Interval]) -> bool:
    low, high = intervals.get("slope", (1.0, 1.0))
    return low <= 0 <= high


def distinct(x: Floats, apart: float) -> int:
    """How many of the values can be chosen so that their logs lie at least `apart`."""
    found, last = 0, -np.inf
    for value in np.sort(np.log(x)):
        if value - last >= apart:
            found, last = found + 1, value
    return found


def _warnings(
    slope: float, intervals: dict[str, Interval], dispersion: float, n: int, done: int, kept: int, asked: int
) -> tuple[str, ...]:
    told = interval_warnings(n, 2, done, done - kept, asked)
    if _holds_0(intervals):
        told.insert(0, "the slope's interval holds 0: these runs cannot tell whether accuracy rises, nor where its midpoint lies")
    if dispersion > SCATTERED:
        told.insert(0, f"runs scatter {dispersion:.2g} times as much as binomial items would")
    if abs(slope) >= STEEPEST * (1 - 1e-6):
        told.insert(0, "slope ended on its bound (a step): the data do not determine it")
    return tuple(told)


def _columns(
    table: pd.DataFrame, chance: float, ceiling: float, against: str, column_of_x: str, accuracy: str, items: str
) -> tuple[Floats, Floats, Floats]:
    """x as given, shares and counts, checked."""
    if against not in AGAINST:
        raise FitError(f"against='{against}' is unknown; {did_you_mean(against, AGAINST)}")
    if not 0 <= chance < ceiling <= 1:
        raise FitError(f"chance={chance}, ceiling={ceiling}: give 0 <= chance < ceiling <= 1, as 0.25 for four endings.")
    x = column(table, column_of_x)
    if (told := distinct(x, APART[against])) < 3:
        values = f"{told} distinct value{'s' * (told != 1)} of {against}"
        raise FitError(f"{values}, to {APART[against]:.1%}: a sigmoid needs three or more; add runs.")
    return x, read_shares(table, accuracy), column(table, items)


def read_shares(table: pd.DataFrame, accuracy: str) -> Floats:
    if accuracy not in table.columns:
        raise FitError(f"the table has no column '{accuracy}'; {did_you_mean(accuracy, [str(c) for c in table.columns])}")
    share = pd.to_numeric(table[accuracy], errors="coerce").to_numpy(dtype=np.float64)
    wrong = ~((share >= 0) & (share <= 1))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise FitError(f"{accuracy}={table[accuracy].iloc[row]} in row {row + 1} is no share; give shares in 0..1, not percent.")
    return share


def require_above_chance(share: Floats, count: Floats, chance: float, level: float) -> None:
    """Refuse accuracies that are all at chance: neither one run's Wilson interval (Bonferroni) nor the pool's lies above it."""
    each = max(
        wilson_interval(p, n, 1 - (1 - level) / len(share))[0] for p, n in zip(share.tolist(), count.tolist(), strict=True)
    )
    pooled = wilson_interval(float((share * count).sum() / count.sum()), float(count.sum()), level)[0]
    if max(each, pooled) <= chance:
        raise FitError(
            f"no accuracy can be told from chance ({chance:g}; the largest is {share.max():.3g}): a law in accuracy means "
            "nothing here; use the loss, or larger runs."
        )


def _solve(
    z: Floats, share: Floats, count: Floats, chance: float, ceiling: float, near: Floats | None
) -> tuple[Floats, np.ndarray]:
    """(R, 2) intercept and slope of eta = a + b z for shares and counts (R, n); from a grid, or from `near`."""
    count = np.broadcast_to(count, share.shape)

    def evaluate(theta: Floats, rows: np.ndarray) -> tuple[Floats, Floats, Floats]:
        s = 0.5 * (1 + np.tanh(0.5 * (theta[:, :1] + theta[:, 1:] * z)))
        p = np.clip(chance + (ceiling - chance) * s, 1e-12, 1 - 1e-12)
        bell = (ceiling - chance) * s * (1 - s)
        force = count[rows] * (share[rows] - p) / (p * (1 - p)) * bell
        curved = count[rows] * bell**2 / (p * (1 - p))
        gradient = -np.stack([force.sum(1), (force * z).sum(1)], axis=1)
        sums = [curved.sum(1), (curved * z).sum(1), (curved * z * z).sum(1)]
        information = np.stack([sums[0], sums[1], sums[1], sums[2]], axis=1).reshape(-1, 2, 2)
        return _deviance(share[rows], p, count[rows]), gradient, information + 1e-12 * np.eye(2)

    low, high = np.array([-3 * STEEPEST, -STEEPEST]), np.array([3 * STEEPEST, STEEPEST])
    if near is not None:
        theta, _, converged = minimise_by_scoring(evaluate, np.repeat(near[None], len(share), axis=0), low, high)
        return theta, converged
    slopes = np.array([-16.0, -6.0, -2.0, -0.5, 0.5, 2.0, 6.0, 16.0])
    start = np.array([[-b * m, b] for b in slopes for m in (-1.0, -0.5, 0.0, 0.5, 1.0)])
    share, count = np.repeat(share, len(start), axis=0), np.repeat(count, len(start), axis=0)
    theta, value, converged = minimise_by_scoring(evaluate, start, low, high)
    best = int(value.argmin())
    return theta[best : best + 1], converged[best : best + 1]


def _deviance(share: Floats, p: Floats, count: Floats) -> Floats:
    """Half the binomial deviance, summed over the last axis."""
    with np.errstate(divide="ignore", invalid="ignore"):
        right = np.where(share > 0, share * np.log(share / p), 0.0)
        wrong = np.where(share < 1, (1 - share) * np.log((1 - share) / (1 - p)), 0.0)
    result: Floats = (count * (right + wrong)).sum(-1)
    return result


def _law(theta: Floats, centre: float, width: float) -> Floats:
    """(P, 2) midpoint and slope in x from intercept and slope in z."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.stack([centre - width * theta[:, 0] / theta[:, 1], theta[:, 1] / width], axis=1)


def _resampled(
    share: Floats, count: Floats, expected: Floats, dispersion: float, resamples: int, level: float, rng: np.random.Generator
) -> tuple[Floats, Floats, str]:
    """Shares and counts (R, n): runs drawn with replacement, or (few runs) new counts about the law, dispersed and t-scaled."""
    n = len(share)
    if n >= RESIDUAL_BELOW:
        drawn = rng.multinomial(n, np.full(n, 1 / n), size=resamples)
        return np.repeat(share[None], resamples, axis=0), count * drawn, PAIRS
    tail = 0.5 + level / 2
    wide = dispersion * (stats.t.ppf(tail, n - 2) / stats.norm.ppf(tail)) ** 2
    error = np.sqrt(wide * expected * (1 - expected) / count) * rng.standard_normal((resamples, n))
    return np.clip(expected + error, 0, 1), np.repeat(count[None], resamples, axis=0), PARAMETRIC
