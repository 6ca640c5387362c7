"""Accuracy as a law, on the page: sigmoids in the loss and in ln C side by side, and the compute multiplier in accuracy.

    p = chance + (1 - chance) / (1 + exp(-slope (x - midpoint))),   x the held-out loss or ln C

Only laws that were fitted are drawn, with the runs that they were fitted to; of a refused law its reason stands, and no point.
Not here: reading them (`reports.accuracy_laws`), accuracies with their intervals alone (`reports.figures.story_panels`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.form_results import AccuracyMultiplier, FormFit
from lst.drawing import MUTED, Panel, arm_style, drawing, legend_below, new_panel, slug
from reports.accuracy_laws import OF_FLOPS, OF_LOSS, AccuracyComparison, AccuracyLaw, Band
from reports.blocks import Block, Section, figure_block, gap, paragraph
from reports.figures import BAND, LOSS_LABEL, flops_label
from reports.fit_tables import marked_warnings
from reports.numbers import count, fixed, general, interval, level_name, listed, percent, plural, scientific
from reports.stories import StoryScore
from reports.study import Study
from reports.style import log_ticks, log_x
from reports.tables import DIRECTION, Column, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Point = tuple[float, StoryScore]
REFUSED = "no "
"""How the warning of a refusal begins (`analysis.study`)."""
NAMES = {"no law of accuracy in loss": "in the loss", "no law of accuracy in flops": "in FLOPs"}
LARGEST = re.compile(r"; the largest is [^)]*")
"""A number of one arm's in a reason that others share."""
WIDEST = 10.0
"""A multiplier's axis goes at most so many times beyond the curves: bands that are open leave it."""


def section(study: Study, scores: Sequence[StoryScore]) -> Section:
    laws, comparisons = study.fits.accuracy_laws, study.fits.accuracy_comparisons
    blocks: tuple[Block, ...]
    if not laws:
        why = "no choice task has a recorded chance level." if study.fits.present else "fits.json is missing."
        blocks = (gap(f"No law of accuracy: {why}"),)
    else:
        blocks = (paragraph(_formula(study)), *_law_blocks(study, laws, scores), *_multiplier_blocks(comparisons))
    return Section(anchor="accuracy", title="Laws of accuracy", blocks=blocks)


def _formula(study: Study) -> str:
    return (
        "An arm's accuracy p on a task is fitted twice, by binomial likelihood, with the task's chance as the floor: "
        "p = chance + (1 − chance) / (1 + exp(−slope (x − midpoint))), once with x the held-out loss of the direction's modality "
        f"(speech for S→S, text for T→T, else interleaved), once with x = ln C, C: {flops_label(study)}. The first says how "
        "far the loss alone explains the accuracy, the second what compute buys."
    )


def _law_blocks(study: Study, laws: Sequence[AccuracyLaw], scores: Sequence[StoryScore]) -> Iterable[Block]:
    """The two figures, the table of what was fitted, and the reasons of what was not."""
    levels = listed(sorted({level_name(law.level) for entry in laws for law in entry.of.values() if law is not None}))
    shown = f"bars and bands are {levels} intervals, Wilson's of an accuracy over its items and the bootstrap's of the law"
    words = {OF_LOSS: "the held-out loss", OF_FLOPS: "training FLOPs"}
    for against, what in words.items():
        caption = (
            f"Accuracy against {what}, a panel a task and direction, of arms whose law was fitted: points are final "
            f"checkpoints, lines the sigmoids over the runs' range; {shown}. The dashed line is chance."
        )
        if panels := law_panels(study, laws, scores, against):
            yield figure_block(panels, caption, "", "accuracy_laws")
    table = laws_table(laws)
    if table.rows:
        yield Block(kind="table", table=table)
    refused = refusals([(f"{e.arm}, {place(e)}", e.warnings) for e in laws])
    if refused:
        yield gap(f"{plural(len(laws) * 2 - len(table.rows), 'law')} of {len(laws) * 2} refused, with these reasons.")
        yield Block(kind="list", lines=tuple(refused))


def place(entry: AccuracyLaw | AccuracyComparison) -> str:
    """Task and direction."""
    return f"{entry.task} {entry.direction.replace('->', '→')}"


def refusals(found: Iterable[tuple[str, tuple[str, ...]]]) -> list[str]:
    """Each reason once, with the arms, tasks and laws that it is about."""
    about: dict[str, dict[str, list[str]]] = {}
    for who, warnings in found:
        for what, _, reason in (warning.partition(": ") for warning in warnings if warning.startswith(REFUSED)):
            reason = LARGEST.sub("", reason).rstrip(".")
            about.setdefault(reason, {}).setdefault(who, []).append(NAMES.get(what, what.removeprefix(REFUSED)))
    shown = {reason: "; ".join(f"{who} ({listed(laws)})" for who, laws in of.items()) for reason, of in about.items()}
    return [f"{reason[:1].upper()}{reason[1:]}. So it is for {who}." for reason, who in shown.items()]


def law_panels(study: Study, laws: Sequence[AccuracyLaw], scores: Sequence[StoryScore], against: str) -> list[Panel]:
    """A panel a task and direction that has a law against OF_LOSS or OF_FLOPS."""
    panels = []
    with drawing():
        for key in dict.fromkeys((e.task, e.direction) for e in laws):
            here = [e for e in laws if (e.task, e.direction) == key and e.of[against] is not None]
            if here:
                panels.append(_law_panel(study, here, scores, against))
    return panels


def _law_panel(study: Study, laws: Sequence[AccuracyLaw], scores: Sequence[StoryScore], against: str) -> Panel:
    first = laws[0]
    label = f"{first.loss_target}: {LOSS_LABEL}" if against == OF_LOSS else flops_label(study)
    figure, axes = new_panel(place(first), label, "accuracy (%)")
    drawn: list[Point] = []
    for entry in laws:
        points = points_of(study, entry, scores, against)
        law = entry.of[against]
        assert law is not None
        _draw_law(axes, entry.arm, law, entry.bands.get(against), points)
        drawn += points
    axes.axhline(100 * first.chance, color=MUTED, linewidth=1.2, dashes=(6, 2), label=f"chance {percent(0)(first.chance)}")
    low, high = axes.get_ylim()
    axes.set_ylim(max(0, min(low, 100 * first.chance - 3)), min(101, high))
    if against == OF_FLOPS:
        log_x(axes, [x for x, _ in drawn], scientific)
    legend_below(figure, axes, columns=2)
    words = [f"{e.arm} has midpoint {_middle(e.of[against], against)}" for e in laws]
    name = f"accuracy-of-{against}-{slug(first.task)}-{slug(first.direction.replace('->', '-to-').lower())}"
    what = f"{first.loss_target} loss" if against == OF_LOSS else "training FLOPs"
    return Panel(name, f"Accuracy on {place(first)} against {what}, {plural(len(drawn), 'run')}: {listed(words)}.", figure)


def points_of(study: Study, entry: AccuracyLaw, scores: Sequence[StoryScore], against: str) -> list[Point]:
    """The runs that a law was fitted to: x (loss, or C in the fits' convention) and score, by x."""
    final = study.final(entry.loss_target).set_index("run_id")["loss" if against == OF_LOSS else "flops"]
    here = [s for s in scores if (s.arm, s.task, s.direction) == (entry.arm, entry.task, entry.direction)]
    found = [(float(final[s.run_id]), s) for s in here if s.run_id in final.index]
    return sorted(found, key=lambda point: point[0])


def _draw_law(axes: Axes, arm: str, law: FormFit, band: Band | None, points: Sequence[Point]) -> None:
    colour, marker = arm_style(arm)
    x, y = [p for p, _ in points], [100 * s.accuracy for _, s in points]
    errors = [[100 * (s.accuracy - s.low) for _, s in points], [100 * (s.high - s.accuracy) for _, s in points]]
    axes.errorbar(x, y, yerr=errors, fmt=marker, color=colour, elinewidth=0.8, markersize=4.5, alpha=0.7)
    at = np.geomspace(*next(iter(law.ranges.values())), 60)
    axes.plot(at, 100 * law.predict(at, extrapolate=True), color=colour, marker=marker, markevery=[], label=arm)
    if band is not None:
        axes.fill_between(band.at, 100 * np.array(band.low), 100 * np.array(band.high), color=colour, alpha=BAND, linewidth=0)


def _middle(law: FormFit | None, against: str) -> str:
    """The midpoint in the units of the axis."""
    value = law.law.to_json()["midpoint"] if law is not None else math.nan
    return f"{fixed(3)(value)} nats" if against == OF_LOSS else f"{_flops(value)} FLOPs"


def _flops(log_flops: float) -> str:
    """exp(ln C), which may lie far outside the data, as a power of ten."""
    exponent = log_flops / math.log(10)
    return scientific(10**exponent) if abs(exponent) < 300 else f"10^{exponent:.0f}"


def laws_table(laws: Sequence[AccuracyLaw]) -> Table:
    """A row a fitted law."""
    rows: list[dict[str, Any]] = []
    for entry in laws:
        for against, law in entry.of.items():
            if law is None:
                continue
            midpoint, slope = (law.law.to_json()[name] for name in ("midpoint", "slope"))
            band = {name: law.intervals.get(name, (math.nan, math.nan)) for name in ("midpoint", "slope")}
            show = general if against == OF_LOSS else _flops
            rows.append(
                {"arm": entry.arm, "task": entry.task, "direction": entry.direction, "runs": law.n, "chance": entry.chance}
                | {"x": f"{entry.loss_target} loss" if against == OF_LOSS else "6 N D" if entry.six_nd else "FLOPs"}
                | {"midpoint": midpoint, "midpoint_shown": show(midpoint), "slope": slope, "level": law.level}
                | {"midpoint_interval": interval(*band["midpoint"], show), "slope_interval": interval(*band["slope"], general)}
                | {"dispersion": law.extra.get("dispersion"), "warnings": law.warnings}
            )
    warnings, notes = marked_warnings(rows)
    columns = (
        Column("arm", "arm", numeric=False),
        Column("task", "task", numeric=False),
        DIRECTION,
        Column("x", "in", numeric=False),
        Column("runs", "runs", count),
        Column("chance", "chance", percent(0)),
        Column("midpoint_shown", "midpoint (nats, or FLOPs)"),
        Column("midpoint_interval", "interval", numeric=False),
        Column("slope", "slope (per nat, or per ln FLOPs)", general),
        Column("slope_interval", "interval", numeric=False),
        Column("dispersion", "dispersion", fixed(2)),
        Column("level", "level", percent(0)),
        warnings,
    )
    caption = (
        "Laws of accuracy. The midpoint is where the accuracy is half way from chance to 1; dispersion is Pearson's X² over its "
        "degrees of freedom: 1 where runs scatter as their items alone would."
    )
    return Table("accuracy_laws", caption, columns, tuple(rows), notes)


def _multiplier_blocks(comparisons: Sequence[AccuracyComparison]) -> Iterable[Block]:
    """The multiplier in accuracy: figure, table, and what was refused."""
    table = multipliers_table(comparisons)
    levels = listed(sorted({level_name(c.curve.level) for c in comparisons if c.curve is not None}))
    caption = (
        "Compute multiplier in accuracy: FLOPs that the baseline needs for an accuracy over the arm's, only inside the overlap "
        "of accuracies; above 1 the arm needs fewer. From each budget's run of least loss, on the scale of the sigmoid; bands "
        f"({levels}) hold the items' noise and the choice of scale, but no scatter between seeds. A band that leaves the panel "
        "is open."
    )
    if panels := multiplier_panels(comparisons):
        yield figure_block(panels, caption, "", "accuracy_multipliers")
    if table.rows:
        yield Block(kind="table", table=table)
    refused = refusals([(f"{c.arm}, {place(c)}", c.warnings) for c in comparisons])
    if refused:
        yield gap("Comparisons in accuracy that were refused, with their reasons.")
        yield Block(kind="list", lines=tuple(refused))


def multiplier_panels(comparisons: Sequence[AccuracyComparison]) -> list[Panel]:
    """A panel a task and direction in which some arm has a multiplier."""
    panels = []
    with drawing():
        for key in dict.fromkeys((c.task, c.direction) for c in comparisons):
            found = [(c, c.curve) for c in comparisons if (c.task, c.direction) == key and c.curve is not None]
            if found:
                panels.append(_multiplier_panel(found))
    return panels


def _multiplier_panel(found: Sequence[tuple[AccuracyComparison, AccuracyMultiplier]]) -> Panel:
    first = found[0][0]
    figure, axes = new_panel(place(first), "accuracy (%)", "compute multiplier (×)")
    axes.axhline(1, color=MUTED, linewidth=1.2)
    for c, curve in found:
        colour, marker = arm_style(c.arm)
        x = 100 * np.array(curve.accuracies)
        axes.fill_between(x, curve.low, curve.high, color=colour, alpha=BAND, linewidth=0)
        axes.plot(x, curve.multiplier, color=colour, marker=marker, markevery=0.25, label=c.arm)
    values = [1.0, *(v for _, curve in found for v in curve.multiplier)]
    ends = [v for _, curve in found for v in (*curve.low, *curve.high)]
    low, high = max(min(ends), min(values) / WIDEST), min(max(ends), max(values) * WIDEST)
    axes.set_yscale("log")
    axes.set_ylim(min(low, min(values)) / 1.08, max(high, max(values)) * 1.08)
    axes.set_yticks(log_ticks(*axes.get_ylim()))
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    legend_below(figure, axes)
    said = [f"{c.arm} {curve.mean:.2f} {_bounds(curve.mean_interval)}" for c, curve in found]
    name = f"accuracy-multiplier-{slug(first.task)}-{slug(first.direction.replace('->', '-to-').lower())}"
    return Panel(name, f"Compute multiplier in accuracy on {place(first)}, over the overlap: {listed(said)}.", figure)


def _bounds(ends: tuple[float, float]) -> str:
    """An interval of a multiplier; an end that says nothing is named so."""
    low = "0" if ends[0] < 1e-6 else general(ends[0])
    return f"[{low}, {'∞' if ends[1] > 1e6 else general(ends[1])}]"


def multipliers_table(comparisons: Sequence[AccuracyComparison]) -> Table:
    """A row a comparison: the multiplier, and the difference on the same items; dashes where refused."""
    share, rows = percent(1), []
    for c in comparisons:
        row: dict[str, Any] = {"arm": c.arm, "baseline": c.baseline, "task": c.task, "direction": c.direction, "warnings": ()}
        if c.curve is not None:
            low, high = c.curve.slope_interval
            row |= {"multiplier": c.curve.mean, "interval": _bounds(c.curve.mean_interval), "level": c.curve.level}
            row |= {"overlap": interval(*c.curve.overlap, share), "warnings": c.curve.warnings}
            row |= {"scales": ", ".join(f"{name} {fixed(2)(v)}" for name, v in c.curve.by_scale.items())}
            row |= {"slope": interval(low, high, general) if max(-low, high) < 1e3 else "open"}
        if c.items is not None:
            band = c.items.interval or (math.nan, math.nan)
            row |= {"pairs": c.items.pairs, "items": c.items.items, "difference": c.items.difference, "level": c.items.level}
            row |= {"difference_interval": interval(*band, share)}
        if c.curve is not None or c.items is not None:
            rows.append(row)
    warnings, notes = marked_warnings(rows)
    columns = (
        Column("arm", "arm", numeric=False),
        Column("baseline", "against", numeric=False),
        Column("task", "task", numeric=False),
        DIRECTION,
        Column("multiplier", "compute multiplier (×)", fixed(2)),
        Column("interval", "interval", numeric=False),
        Column("overlap", "overlap of accuracies", numeric=False),
        Column("scales", "by scale (×)", numeric=False),
        Column("slope", "slope on ln C", numeric=False),
        Column("pairs", "matched pairs", count),
        Column("items", "items", count),
        Column("difference", "accuracy difference", share),
        Column("difference_interval", "interval", numeric=False),
        Column("level", "level", percent(0)),
        warnings,
    )
    caption = (
        "Arms against the baseline in accuracy: the compute multiplier over the overlap, and the mean difference of matched runs "
        "on the same items, with an interval over pairs and items."
    )
    return Table("accuracy_multipliers", caption, columns, tuple(rows), notes)
