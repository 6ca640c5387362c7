"""How figures look, and how they become SVG that is the same bytes each time and recolours with the page.

Colours: Okabe and Ito's colour-blind-safe set, one colour and one marker an arm everywhere. A figure is drawn once, in
the light colours; for the page each of its colours becomes a CSS variable (`var(--c-0072b2, #0072b2)`), so that dark mode and
print restyle it without a second drawing. Text stays text in the reader's system font.
Panels are 4.8 inches wide with 10.5 point text: two beside each other on a screen, one on a phone, readable in both.
Not here: what a figure shows (`figures`, `diagnostics`).
"""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reports.numbers import Formatter, is_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER = "#1b1b1b", "#5f6368", "#dfe1e5", "#fefefe"
ON_COLOUR = "#101010"  # text on a light colour; the same in dark mode
ARM_COLOURS = {
    "baseline": "#0072b2",
    "bpe": "#56b4e9",
    "lst_static": "#d55e00",
    "lst_aligned": "#b8860b",
    "lst_mixed": "#aa4499",
    "lst_curriculum": "#009e73",
}
ARM_MARKERS = {"baseline": "o", "bpe": "v", "lst_static": "s", "lst_aligned": "D", "lst_mixed": "P", "lst_curriculum": "^"}
OTHER_COLOURS = ("#444466", "#7a5c3e", "#996699")
BUDGET_COLOURS = ("#c4a000", "#5aae61", "#1b9e9e", "#2f6db5", "#5e3c99", "#3b1f5e")
BUDGET_MARKERS = ("o", "s", "^", "D", "v", "P")
GROUP_COLOURS = {
    "embedding": "#999999",
    "encoder": "#e69f00",
    "global": "#0072b2",
    "decoder": "#009e73",
    "head": "#cc79a7",
}
FONT_STACK = "'Helvetica Neue', Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans'"
LABEL_BOX = {"facecolor": PAPER, "edgecolor": "none", "pad": 1.0, "alpha": 0.85}
"""Under a label that may cross a line."""
PANEL = (4.8, 3.7)  # inches


def arm_style(arm: str) -> tuple[str, str]:
    """Colour and marker of an arm; arms this module doesn't know get one by their name, always the same."""
    fallback = OTHER_COLOURS[sum(arm.encode()) % len(OTHER_COLOURS)]
    return ARM_COLOURS.get(arm, fallback), ARM_MARKERS.get(arm, "X")


def budget_style(index: int) -> tuple[str, str]:
    """Colour and marker of the index-th budget, from small to large."""
    return BUDGET_COLOURS[index % len(BUDGET_COLOURS)], BUDGET_MARKERS[index % len(BUDGET_MARKERS)]


@contextmanager
def drawing() -> Iterator[None]:
    """Matplotlib's settings for a figure; outside of it nothing of matplotlib's state changes."""
    import matplotlib

    settings: Any = {
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 10.5,
        "axes.titlesize": 11.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.labelsize": 10.5,
        "xtick.labelsize": 10,
        "ytick.labelsize": 10,
        "legend.fontsize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": MUTED,
        "axes.linewidth": 0.8,
        "axes.labelcolor": INK,
        "axes.titlecolor": INK,
        "text.color": INK,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": GRID,
        "grid.linewidth": 0.7,
        "lines.linewidth": 1.6,
        "lines.markersize": 5.5,
        "legend.frameon": False,
        "legend.handlelength": 1.6,
        "svg.fonttype": "none",
        "figure.constrained_layout.use": True,
        "savefig.transparent": True,
    }
    with matplotlib.rc_context(settings):
        yield


def new_panel(title: str, xlabel: str, ylabel: str, *, size: tuple[float, float] = PANEL) -> tuple[Figure, Axes]:
    """An empty panel. A Figure made without pyplot: no global state, no display."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    return figure, axes


@dataclass(frozen=True)
class Panel:
    """A drawn figure: `name` (file name and id), `description` (for screen readers)."""

    name: str
    description: str
    figure: Figure


def slug(name: str) -> str:
    """`name` as part of a file name and id: other characters than a-z, 0-9, _ . - become a hash of the name."""
    plain = re.sub(r"[^a-z0-9_.-]+", "", name.lower())
    return plain if plain == name else f"{plain[:24]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


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


def legend_below(figure: Figure, axes: Axes, *, columns: int = 3) -> None:
    """The panel's legend under the axes, where it hides no data."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(handles)), columnspacing=1.2)


def svg_file(figure: Figure, name: str) -> str:
    """The figure as an SVG document: no date, no random ids, no metadata, ids prefixed by `name`."""
    import matplotlib

    buffer = io.StringIO()
    with drawing(), matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = re.sub(r"<metadata>.*?</metadata>|<!DOCTYPE[^>]*>|<!--.*?-->", "", buffer.getvalue(), flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{name}-", svg)
    svg = re.sub(r'\b(d|x|y|points|transform)="[^"]*"', _shorter, svg)
    svg = svg.replace("'DejaVu Sans'", FONT_STACK)
    return "\n".join(line.strip() for line in svg.splitlines() if line.strip()) + "\n"


def svg_inline(svg: str, description: str) -> str:
    """`svg_file`'s document as an element of the page: labelled, scaled by CSS, coloured by CSS variables."""
    from markupsafe import escape

    head, body = svg[svg.index("<svg") :].split(">", 1)
    view = re.search(r'viewBox="([^"]+)"', head)
    assert view, "matplotlib writes a viewBox"
    width, height = view.group(1).split()[2:]
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL).replace("xlink:href", "href")
    body = re.sub(r'style="[^"]*"', _recoloured, body).replace(f"font-family: {FONT_STACK}, sans-serif; ", "")
    return (
        f'<svg viewBox="{view.group(1)}" width="{float(width):.0f}" height="{float(height):.0f}" role="img" '
        f'aria-label="{escape(description)}">{body}'
    )


def _shorter(match: re.Match[str]) -> str:
    """Coordinates to a hundredth of a point, on one line: half the bytes, the same picture."""
    numbers = re.sub(r"-?\d+\.\d{3,}", lambda m: f"{float(m.group()):.2f}".rstrip("0").rstrip("."), match.group())
    return " ".join(numbers.split())


def _recoloured(match: re.Match[str]) -> str:
    return re.sub(r"#([0-9a-fA-F]{6})\b", lambda m: f"var(--c-{m.group(1).lower()}, #{m.group(1).lower()})", match.group())
