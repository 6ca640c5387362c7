"""A compute multiplier from accuracies at few FLOPs, two an arm at least, as papers print them; with what two points cannot say.

    accuracy_multiplier(table, "lst", chance=0.25, seed_sd=0.005)   # columns arm, train_flops, accuracy, n_items

Between its points an arm's accuracy follows a straight line in ln C on one of three scales, with s = (p - chance) / (1 - chance):

    sigmoid  ln(s / (1 - s))        linear  s        saturating  -ln(1 - s)

    multiplier(p) = C_baseline(p) / C_arm(p),   accuracies p inside the overlap of both arms only

Lines go through two points and are weighted least squares through more. The band draws every accuracy anew from the normal
with variance p (1 - p) / n_items + seed_sd^2 and spans all three scales: two points cannot tell them apart. Draws in which an arm
does not rise count as beyond either end. Items that both arms
share would narrow the difference; they are taken as independent, which widens it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.accuracy_fit import read_shares, require_above_chance
from analysis.basis import Interval
from analysis.diagnose import check_options
from analysis.form_results import AccuracyMultiplier
from analysis.laws import Floats, floats
from analysis.table import arm_rows, column
from lst.errors import FitError

SCALES: dict[str, Callable[[Floats], Floats]] = {
    "sigmoid": lambda s: np.log(s / (1 - s)),
    "linear": lambda s: s,
    "saturating": lambda s: -np.log1p(-s),
}
POINTS = 21
OPEN = float(np.log(1e30))
"""ln of the multiplier at which a band is open: the draws say nothing."""
EDGE = 1e-4
"""Shares are kept this far from chance and from 1: a drawn accuracy below chance has no place on two of the scales."""


def accuracy_multiplier(
    table: pd.DataFrame,
    arm: str,
    *,
    baseline: str = "baseline",
    chance: float,
    seed_sd: float = 0.0,
    flops: str = "train_flops",
    accuracy: str = "accuracy",
    items: str = "n_items",
    draws: int = 4000,
    level: float = 0.9,
    rng: np.random.Generator | None = None,
) -> AccuracyMultiplier:
    """The multiplier of `arm` in accuracy, from two points an arm or more; `seed_sd` is the accuracies' between seeds.

    Raises FitError where an arm has one point, lies at chance or does not rise, or the accuracies do not overlap.
    """
    check_options(draws, level)
    if not (0 <= chance < 1 and seed_sd >= 0 and draws >= 100):
        raise FitError(f"chance={chance}, seed_sd={seed_sd}, draws={draws}: chance is in 0..1, seed_sd >= 0, draws 100 or more.")
    sides = [_Side.read(table, name, chance, seed_sd, (flops, accuracy, items), level) for name in (baseline, arm)]
    low, high = _overlap(sides, chance)
    at = np.linspace(low, high, POINTS)
    rng = np.random.default_rng(0) if rng is None else rng
    drawn = [side.draws(draws, rng) for side in sides]
    exact: dict[str, Floats] = {}
    every: list[Floats] = []
    for scale in SCALES:
        points = [s.log_flops_at(s.share[None], at, scale)[0] for s in sides]
        exact[scale] = points[0] - points[1]
        sampled = [s.log_flops_at(d, at, scale) for s, d in zip(sides, drawn, strict=True)]
        every.append(sampled[0] - sampled[1])
    if not np.abs(exact["sigmoid"]).max() < OPEN:
        raise FitError(
            f"the accuracies of '{baseline}' or '{arm}' hardly rise with FLOPs: any multiplier would fit; add larger runs."
        )
    fine = [np.isfinite(e).all(1) for e in every]
    lost = [float(1 - f.mean()) for f in fine]
    bands = np.array([_band(e[f], u, level) for e, f, u in zip(every, fine, lost, strict=True)])
    means = np.array([_band(e[f].mean(1), u, level) for e, f, u in zip(every, fine, lost, strict=True)])
    away = sides[1].log_flops_at(sides[1].share[None], at, "sigmoid")[0]
    point = np.ptp(away) < 1e-6  # an overlap of one point leaves any slope open
    away = (away - away.mean()) / max(float(len(away) * away.var()), 1e-12)
    slopes = np.array([_band(e[f] @ away, 1.0 if point else u, level) for e, f, u in zip(every, fine, lost, strict=True)])
    found = AccuracyMultiplier(
        accuracies=tuple((chance + (1 - chance) * at).tolist()),
        multiplier=tuple(np.exp(exact["sigmoid"]).tolist()),
        low=tuple(np.exp(bands[:, 0].min(0)).tolist()),
        high=tuple(np.exp(bands[:, 1].max(0)).tolist()),
        mean=float(np.exp(exact["sigmoid"].mean())),
        mean_interval=(float(np.exp(means[:, 0].min())), float(np.exp(means[:, 1].max()))),
        by_scale={s: float(np.exp(np.clip(v.mean(), -OPEN, OPEN))) for s, v in exact.items() if np.isfinite(v).all()},
        slope_interval=(float(slopes[:, 0].min()), float(slopes[:, 1].max())),
        overlap=(float(chance + (1 - chance) * low), float(chance + (1 - chance) * high)),
        level=level,
        draws=draws,
        undetermined=max(lost),
    )
    return _with_warnings(found, sides, seed_sd)


def _band(values: Floats, undetermined: float, level: float) -> Floats:
    """The two ends over draws (R, ...): the share `undetermined` counts as beyond either end, which are open (OPEN) at worst."""
    tail = ((1 - level) / 2 - undetermined) / max(1 - undetermined, 1e-300)
    if tail < 0 or not len(values):
        return floats([np.full(values.shape[1:], end) for end in (-OPEN, OPEN)])
    return np.clip(np.quantile(values, [tail, 1 - tail], axis=0), -OPEN, OPEN)


def _overlap(sides: list[_Side], chance: float) -> Interval:
    """Lowest and highest share that both arms reach. Raises FitError where there is none."""
    low, high = max(float(s.share.min()) for s in sides), min(float(s.share.max()) for s in sides)
    if low >= high:
        ends = [(s.name, chance + (1 - chance) * s.share.min(), chance + (1 - chance) * s.share.max()) for s in sides]
        spans = " and ".join(f"'{name}' ({least:.3g} to {most:.3g})" for name, least, most in ends)
        raise FitError(f"the accuracies of {spans} do not overlap; add sizes so that both reach a common one.")
    return low, high


def _with_warnings(found: AccuracyMultiplier, sides: list[_Side], seed_sd: float) -> AccuracyMultiplier:
    told = []
    few = [f"'{s.name}'" for s in sides if len(s.share) == 2]
    if few:
        told.append(
            f"{' and '.join(few)}: two points leave no degree of freedom; the band has items"
            + (" and seeds" if seed_sd else " alone")
            + ", not the chance that a third point would lie elsewhere"
        )
    if not seed_sd:
        told.append("seed_sd=0: the band knows no scatter between seeds; give it, or repeat runs")
    low, high = found.mean_interval
    if low <= 1 <= high:
        told.append(f"the mean multiplier's interval [{low:.3g}, {high:.3g}] holds 1: these points cannot tell the arms apart")
    if found.slope_interval[0] <= 0 <= found.slope_interval[1]:
        told.append("whether the gain grows with scale is open: the slope's interval holds 0")
    if found.undetermined > 0.01:
        told.append(f"in {found.undetermined:.0%} of the draws an arm does not rise; they count as beyond either end of the band")
    return AccuracyMultiplier(**{**{n: getattr(found, n) for n in found.__dataclass_fields__}, "warnings": tuple(told)})


@dataclass(frozen=True)
class _Side:
    """One arm's points."""

    name: str
    log_flops: Floats  # (k,)
    share: Floats  # (k,) above chance, over what lies above it
    error: Floats  # (k,) standard deviation of share

    @classmethod
    def read(
        cls, table: pd.DataFrame, name: str, chance: float, seed_sd: float, names: tuple[str, str, str], level: float
    ) -> _Side:
        rows = arm_rows(table, name)
        x, p, count = np.log(column(rows, names[0])), read_shares(rows, names[1]), column(rows, names[2])
        if len(np.unique(np.round(x, 6))) < 2:
            raise FitError(f"arm '{name}' has one amount of FLOPs; a line in ln C needs two or more.")
        require_above_chance(p, count, chance, level)
        error = np.sqrt(p * (1 - p) / count + seed_sd**2) / (1 - chance)
        side = cls(name, x, np.clip((p - chance) / (1 - chance), EDGE, 1 - EDGE), error)
        if not np.isfinite(side.log_flops_at(side.share[None], side.share[:1], "sigmoid")).all():
            raise FitError(f"the accuracy of '{name}' does not rise with FLOPs; no FLOPs can be named for an accuracy.")
        return side

    def draws(self, count: int, rng: np.random.Generator) -> Floats:
        result: Floats = np.clip(self.share + self.error * rng.standard_normal((count, len(self.share))), EDGE, 1 - EDGE)
        return result

    def log_flops_at(self, share: Floats, at: Floats, scale: str) -> Floats:
        """(R, len(at)) ln C at which lines through shares (R, k) reach `at`; nan where a line does not rise."""
        to = SCALES[scale]
        y = to(share)
        step = 1e-6
        weight = 1 / (self.error * (to(self.share + step) - to(self.share - step)) / (2 * step)) ** 2
        x_mean = (weight * self.log_flops).sum() / weight.sum()
        y_mean = (y @ weight / weight.sum())[:, None]
        away = self.log_flops - x_mean
        slope = ((y - y_mean) @ (weight * away))[:, None] / float((weight * away) @ away)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(slope > 0, x_mean + (floats(to(at)) - y_mean) / slope, np.nan)
