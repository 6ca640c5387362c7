"""Colours of budgets and parts of FLOPs, and axes, of the study's figures: Okabe and Ito's colour-blind-safe set.

Not here: panels, SVG and the arms' colours (lst/drawing.py), what a figure shows (`figures`, `diagnostics`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from lst.drawing import PAPER
from reports.numbers import Formatter, is_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ON_COLOUR = "#101010"  # text on a light colour; the same in dark mode
BUDGET_COLOURS = ("#c4a000", "#5aae61", "#1b9e9e", "#2f6db5", "#5e3c99", "#3b1f5e")
BUDGET_MARKERS = ("o", "s", "^", "D", "v", "P")
GROUP_COLOURS = {
    "embedding": "#999999",
    "encoder": "#e69f00",
    "global": "#0072b2",
    "decoder": "#009e73",
    "head": "#cc79a7",
}
LABEL_BOX = {"facecolor": PAPER, "edgecolor": "none", "pad": 1.0, "alpha": 0.85}
"""Under a label that may cross a line."""


def budget_style(index: int) -> tuple[str, str]:
    """Colour and marker of the index-th budget, from small to large."""
    return BUDGET_COLOURS[index % len(BUDGET_COLOURS)], BUDGET_MARKERS[index % len(BUDGET_MARKERS)]


def log_ticks(low: float, high: float) -> list[float]:
    """Two to six round values on a log axis from `low` to `high`."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for ladder in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        ticks = [m * 10.0**d for d in decades for m in ladder if low <= m * 10.0**d <= high]
        if len(ticks) >= 3:
            return ticks[:: math.ceil(len(ticks) / 6)]
    rough = (high - low) / 4  # less than a factor of about three: equal steps read better
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
    return [step * k for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def log_x(axes: Axes, values: Iterable[float], formatter: Formatter, *, pad: float = 0.06) -> None:
    """A log x axis around `values` with plain, readable ticks."""
    finite = [v for v in values if is_number(v) and v > 0]
    if not finite:
        return
    low, high = math.log10(min(finite)), math.log10(max(finite))
    margin = max(pad * (high - low), 0.06)
    axes.set_xscale("log")
    axes.set_xlim(10 ** (low - margin), 10 ** (high + margin))
    axes.set_xticks(log_ticks(*axes.get_xlim()))
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(lambda value, _: formatter(value))
