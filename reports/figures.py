"""The report's figures: each function takes a study's tables and gives panels, drawn with matplotlib and nothing else.

A panel is one small figure that says what it shows by itself (units on the axes, a legend, a description for those who cannot
see it); several panels stand beside each other on a screen and below each other on a phone. No numbers are made here
but those of drawing; the look is `style`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lst.drawing import INK, MUTED, PANEL, PAPER, Panel, arm_style, drawing, legend_below, new_panel, slug
from reports import style
from reports.laws import ArmFit, Comparison, Profile
from reports.numbers import clipped, fixed, interval, is_number, level_name, listed, percent, plural, scientific, short
from reports.stories import StoryScore
from reports.study import TARGETS, Study, is_conditional
from reports.style import log_ticks, log_x

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOSS_LABEL = "held-out loss (nats per token)"
FLOPS_LABEL = "training FLOPs"
PARAMS_LABELS = {
    "num_params": "parameters",
    "num_non_embedding_params": "parameters without embedding and head",
    "num_params_global": "parameters of the global transformer",
}
BAND = 0.16  # opacity of an interval's band


def flops_label(study: Study) -> str:
    """What C is in the fits, for an axis or a sentence."""
    return "6 N D (approximate FLOPs)" if study.fits.six_nd else FLOPS_LABEL


def isoflop_panels(study: Study, target: str) -> list[Panel]:
    """Loss against N, a panel an arm, a colour a budget, with the fitted parabolas or cubics and their minima's intervals."""
    fits = {f.arm: f for f in study.fits.arms if f.target == target and f.isoflop is not None}
    n_kind = next((f.n_kind for f in fits.values()), "num_params")
    final = study.final(target)
    final = final.dropna(subset=["flops_budget", n_kind]) if n_kind in final else final.iloc[:0]
    budgets = sorted(final["flops_budget"].unique())
    panels = []
    with drawing():
        for arm in [a for a in study.arms if sizes_per_budget(final, a) >= 2]:
            rows, profiles = final[final["arm"] == arm], list(fits[arm].profiles()) if arm in fits else []
            figure, axes = new_panel(arm, PARAMS_LABELS.get(n_kind, n_kind), LOSS_LABEL)
            for index, budget in enumerate(budgets):
                colour, marker = style.budget_style(index)
                at = rows[rows["flops_budget"] == budget].sort_values(n_kind)
                axes.plot(at[n_kind], at["loss"], marker, color=colour, label=f"{scientific(budget)} FLOPs")
                for profile in (p for p in profiles if math.isclose(p.budget, budget, rel_tol=0.02)):
                    _draw_profile(axes, profile, at[n_kind].to_numpy(float), colour)
            log_x(axes, final[n_kind], short)
            _same_y(axes, final["loss"])
            legend_below(figure, axes, columns=3 if len(budgets) <= 3 else 2)
            panels.append(Panel(f"isoflop-{target}-{slug(arm)}", _isoflop_description(arm, target, rows, profiles), figure))
    return panels


def sizes_per_budget(final: pd.DataFrame, arm: str) -> int:
    """The largest number of sizes that a budget of `arm` has."""
    counts = final[final["arm"] == arm].groupby("flops_budget")["size"].nunique()
    return int(counts.max()) if len(counts) else 0


def _draw_profile(axes: Axes, profile: Profile, trained: np.ndarray, colour: str) -> None:
    """The fitted curve over the trained sizes, and its minimum with both intervals, if the minimum lies inside."""
    if len(trained) == 0:
        return
    n = np.geomspace(trained.min(), trained.max(), 48)
    axes.plot(n, [profile.loss(v) for v in n], "-", color=colour, linewidth=1.3)
    if not profile.inside:
        return
    errors: dict[str, Any] = {}
    for key, estimate in (("xerr", profile.optimum), ("yerr", profile.minimum)):
        if estimate.has_interval:
            errors[key] = [[max(0.0, estimate.value - estimate.low)], [max(0.0, estimate.high - estimate.value)]]
    at = ([profile.optimum.value], [profile.minimum.value])
    axes.errorbar(*at, **errors, fmt="*", color=INK, markersize=9, elinewidth=1, capsize=2.5, zorder=5)


def _same_y(axes: Axes, values: pd.Series, *, pad: float = 0.08) -> None:
    low, high = float(values.min()), float(values.max())
    margin = max(pad * (high - low), 0.02)
    axes.set_ylim(low - margin, high + margin)


def _isoflop_description(arm: str, target: str, rows: pd.DataFrame, profiles: Sequence[Profile]) -> str:
    said = [
        f"at {scientific(p.budget)} FLOPs the fitted minimum is {p.minimum.value:.3f} nats at {short(p.optimum.value)} parameters"
        for p in profiles
        if p.inside
    ]
    tail = "; ".join(said) if said else "no fitted curve has its minimum inside the trained sizes"
    return f"{target} loss of {arm} against parameters, {plural(len(rows), 'run')}, a colour for each budget: {tail}."


def loss_panels(study: Study) -> list[Panel]:
    """Loss against training FLOPs by arm, a panel a target, with the envelope and the n-gram references."""
    panels = []
    with drawing():
        for target in TARGETS:
            final = study.final(target)
            if final.empty:
                continue
            figure, axes = new_panel(f"{target} loss", flops_label(study), LOSS_LABEL)
            for arm in study.arms:
                rows = final[final["arm"] == arm]
                if len(rows):
                    _draw_arm(axes, study.fits.of(arm, target), arm, rows)
            log_x(axes, final["flops"], scientific)
            _draw_references(axes, study.references.get(target, {}))
            legend_below(figure, axes, columns=2)
            panels.append(Panel(f"loss-{target}", _loss_description(study, target, final), figure))
    return panels


def _draw_arm(axes: Axes, fit: ArmFit | None, arm: str, rows: pd.DataFrame) -> None:
    """Every run, pale; the isoFLOP minima with their band, or the best run of each budget; and the fitted L(C)."""
    colour, marker = arm_style(arm)
    axes.plot(rows["flops"], rows["loss"], marker, color=colour, alpha=0.45, markersize=4.5, markeredgewidth=0)
    minima = sorted((p for p in fit.profiles() if p.inside), key=lambda p: p.flops) if fit else []
    label = f"{arm} (conditional)" if is_conditional(arm) else arm
    fitted = fit is not None and fit.curve is not None
    if minima:
        _draw_minima(axes, minima, colour, marker, f"{label}: minima", joined=not fitted)
    else:
        best = rows.loc[rows.groupby(rows["flops_budget"].fillna(rows["flops"]))["loss"].idxmin()].sort_values("flops")
        dashes = "none" if fitted else "--"
        axes.plot(best["flops"], best["loss"], linestyle=dashes, color=colour, marker=marker, label=f"{label}: best run")
    if fit is not None and fit.curve is not None:
        x = np.geomspace(*fit.curve.range, 40)
        axes.plot(x, fit.curve.predict(x), color=colour)


def _draw_minima(axes: Axes, minima: Sequence[Profile], colour: str, marker: str, label: str, *, joined: bool) -> None:
    """isoFLOP minima with the band of their intervals."""
    x, y = [p.flops for p in minima], [p.minimum.value for p in minima]
    axes.plot(x, y, linestyle="-" if joined else "none", color=colour, marker=marker, label=label)
    if all(p.minimum.has_interval for p in minima):
        low, high = [p.minimum.low for p in minima], [p.minimum.high for p in minima]
        axes.fill_between(x, low, high, color=colour, alpha=BAND, linewidth=0)
        axes.vlines(x, low, high, color=colour, linewidth=1.2)


def _draw_references(axes: Axes, references: dict[str, float]) -> None:
    """Unigram and trigram as labelled lines; the axis is widened to hold them."""
    low, high = axes.get_ylim()
    for name, dashes, side in (("unigram", (6, 2), 1), ("trigram", (2, 2), 0)):
        value = references.get(name)
        if value is None:
            continue
        low, high = min(low, value), max(high, value)
        axes.axhline(value, color=MUTED, linewidth=1.2, dashes=dashes)
        align = ("left", "right")[side]  # losses fall to the right: the high label right, the low one left, where no points are
        _line_label(axes, f"{name} {value:.2f}", (side, value), (4 - 6 * side, 3), align, "bottom")
    margin = 0.08 * (high - low)
    axes.set_ylim(low - margin, high + margin)


def _line_label(axes: Axes, words: str, at: tuple[float, float], shift: tuple[float, float], align: str, vertical: str) -> None:
    """A label of a horizontal line; `at` is (share of the axis, data), `shift` in points."""
    axes.annotate(
        words,
        at,
        xycoords=("axes fraction", "data"),
        xytext=shift,
        textcoords="offset points",
        ha=align,
        va=vertical,
        color=MUTED,
        fontsize=10,
        bbox=style.LABEL_BOX,
    )


def _loss_description(study: Study, target: str, final: pd.DataFrame) -> str:
    best = final.loc[final.groupby("arm")["loss"].idxmin()]
    said = [f"{row.arm} reaches {row.loss:.3f}" for row in best.itertuples()]
    lines = [f"{name} {value:.3f}" for name, value in study.references.get(target, {}).items() if name != "n_items"]
    tail = f" Reference lines: {listed(lines)} nats." if lines else ""
    return f"{target} loss against training FLOPs by arm, {plural(len(final), 'run')}: {listed(said)} nats per token.{tail}"


def story_panels(scores: Sequence[StoryScore]) -> list[Panel]:
    """Story-completion accuracy with binomial intervals and chance: against FLOPs, or by size where there is one budget. Arms
    that were evaluated in different ways have panels of their own."""
    panels: list[Panel] = []
    with drawing():
        for task, direction, evaluated in dict.fromkeys((s.task, s.direction, s.evaluated) for s in scores):
            beside = [s for s in scores if (s.task, s.direction) == (task, direction)]
            here = [s for s in beside if s.evaluated == evaluated]
            figure, axes = new_panel(f"{task} {direction.replace('->', '→')}", "", "accuracy (%)")
            flops = [s.flops for s in here]
            spread = max(flops) / min(flops) > 1.5
            (_stories_by_flops if spread else _stories_by_size)(axes, here)
            chance = here[0].chance
            axes.axhline(100 * chance, color=MUTED, linewidth=1.2, dashes=(6, 2), label=f"chance {percent(0)(chance)}")
            low = min(100 * chance - 6, *(100 * s.low for s in here))
            axes.set_ylim(max(0, low - 2), min(100, max(100 * s.high for s in here) + 3))
            legend_below(figure, axes, columns=2)
            name = f"stories-{slug(task)}-{slug(direction.replace('->', '-to-').lower())}"
            said = _story_description(task, direction, here)
            if len(here) < len(beside):
                name += f"-{1 + sum(panel.name.startswith(name) for panel in panels)}"
                said += f" Evaluated with {evaluated}; other arms otherwise, so they do not stand here."
            panels.append(Panel(name, said, figure))
    return panels


def _stories_by_flops(axes: Axes, scores: Sequence[StoryScore]) -> None:
    arms = list(dict.fromkeys(s.arm for s in scores))
    for index, arm in enumerate(arms):
        rows = sorted((s for s in scores if s.arm == arm), key=lambda s: s.flops)
        dodge = 1.03 ** (index - (len(arms) - 1) / 2)  # intervals would cover each other; the caption says so
        _draw_scores(axes, arm, [s.flops * dodge for s in rows], rows)
    log_x(axes, [s.flops for s in scores], scientific)
    axes.set_xlabel(FLOPS_LABEL)


def _stories_by_size(axes: Axes, scores: Sequence[StoryScore]) -> None:
    sizes = list(dict.fromkeys(s.size for s in sorted(scores, key=lambda s: s.params)))
    arms = list(dict.fromkeys(s.arm for s in scores))
    for index, arm in enumerate(arms):
        rows = [s for s in scores if s.arm == arm]
        dodge = 0.18 * (index - (len(arms) - 1) / 2)
        _draw_scores(axes, arm, [sizes.index(s.size) + dodge for s in rows], rows)
    axes.set_xticks(range(len(sizes)), sizes)
    axes.set_xlim(-0.5, len(sizes) - 0.5)
    axes.set_xlabel("size (parameters grow to the right)")
    axes.grid(visible=False, axis="x")


def _draw_scores(axes: Axes, arm: str, x: list[float], rows: Sequence[StoryScore]) -> None:
    colour, marker = arm_style(arm)
    y = [100 * s.accuracy for s in rows]
    below = [100 * (s.accuracy - s.low) for s in rows]
    above = [100 * (s.high - s.accuracy) for s in rows]
    axes.errorbar(x, y, yerr=[below, above], fmt=marker, color=colour, elinewidth=1.2, capsize=3, label=arm)


def _story_description(task: str, direction: str, scores: Sequence[StoryScore]) -> str:
    best = max(scores, key=lambda s: s.accuracy)
    return (
        f"{task} {direction} accuracy of {len(scores)} runs with {level_name(best.level)} binomial intervals, chance "
        f"{percent(0)(best.chance)}: the highest is {best.arm} {best.size} with {percent(1)(best.accuracy)} "
        f"{interval(best.low, best.high, percent(1))}."
    )


def multiplier_panels(comparisons: Sequence[Comparison], target: str, flops: str = FLOPS_LABEL) -> list[Panel]:
    """The compute multiplier along the overlap, and one summary line a comparison."""
    panels = []
    with drawing():
        curves = [c for c in comparisons if c.target == target and len(c.curve) >= 2]
        if curves:
            panels.append(_multiplier_curve(curves, target, flops))
        estimated = [c for c in comparisons if is_number(c.multiplier.value)]
        if estimated:
            panels.append(_multiplier_forest(estimated))
    return panels


def _multiplier_curve(curves: Sequence[Comparison], target: str, flops: str) -> Panel:
    figure, axes = new_panel(f"along the overlap ({target})", f"{curves[0].baseline}'s {flops}", "compute multiplier (×)")
    axes.axhline(1, color=MUTED, linewidth=1.2)
    for curve in curves:
        colour, marker = arm_style(curve.arm)
        x = [p.flops for p in curve.curve]
        if all(p.multiplier.has_interval for p in curve.curve):
            low, high = [p.multiplier.low for p in curve.curve], [p.multiplier.high for p in curve.curve]
            axes.fill_between(x, low, high, color=colour, alpha=BAND, linewidth=0)
        axes.plot(x, [p.multiplier.value for p in curve.curve], color=colour, marker=marker, markevery=0.25, label=curve.arm)
    log_x(axes, [p.flops for c in curves for p in c.curve], scientific)
    _log_y(axes)
    legend_below(figure, axes)
    ends = [f"{c.arm} from {c.curve[0].multiplier.value:.2f} to {c.curve[-1].multiplier.value:.2f}" for c in curves]
    return Panel("multiplier-curve", f"Compute multiplier along the overlap of {target} losses: {listed(ends)}.", figure)


def _multiplier_forest(comparisons: Sequence[Comparison]) -> Panel:
    """A row an arm and target; full markers from the arms' curves, hollow ones from shared exponents."""
    rows = list(dict.fromkeys((c.arm, c.target) for c in comparisons))
    both = len({c.shared for c in comparisons}) == 2
    size = (PANEL[0], 1.6 + 0.55 * len(rows))
    figure, axes = new_panel("over the whole overlap", "compute multiplier (×)", "", size=size)
    axes.axvline(1, color=MUTED, linewidth=1.2)
    named = set()
    for c in comparisons:
        colour, marker = arm_style(c.arm)
        y = rows.index((c.arm, c.target)) + (0.2 if c.shared else -0.12) * both
        if c.multiplier.has_interval:
            axes.plot([c.multiplier.low, c.multiplier.high], [y, y], "-", color=colour, linewidth=1.3)
        label = "shared exponents" if c.shared else "from the curves"
        face = PAPER if c.shared else colour
        shown = None if label in named else label
        named.add(label)
        axes.plot(
            [c.multiplier.value], [y], marker, color=colour, markerfacecolor=face, markersize=6.5, label=shown, linestyle="none"
        )
    axes.set_yticks(range(len(rows)), [f"{clipped(arm)},\n{target}" for arm, target in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    ends = [v for c in comparisons for v in (c.multiplier.value, c.multiplier.low, c.multiplier.high) if is_number(v) and v > 0]
    log_x(axes, [*ends, 1.0], lambda v: f"{v:.3g}")
    legend_below(figure, axes, columns=2)
    said = [
        f"{c.arm} on {c.target} ({c.method}) {c.multiplier.value:.2f} {interval(c.multiplier.low, c.multiplier.high, fixed(2))}"
        for c in comparisons
    ]
    return Panel("multiplier-summary", f"Compute multipliers with intervals: {listed(said)}.", figure)


def _log_y(axes: Axes) -> None:
    low, high = axes.get_ylim()
    axes.set_yscale("log")
    low, high = max(low, 1e-3), max(high, 1.05)
    axes.set_ylim(low, high)
    axes.set_yticks(log_ticks(low, high))
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
