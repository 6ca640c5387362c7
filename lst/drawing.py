"""How the project's figures and pages look: one size of panel, one font, SVG that is the same bytes each time and recolours.

A figure is drawn once, in the light colours; for a page each of its colours becomes a CSS variable (`var(--c-0072b2, #0072b2)`),
so that dark mode and print restyle it without a second drawing. Text stays text in the reader's system font. Panels are 4.8
inches wide with 10.5 point text: two beside each other on a screen, one on a phone, readable in both. Matplotlib is imported
when something is drawn. Not here: what a figure shows (reports/, lst/data/quality/plots.py).
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER = "#1b1b1b", "#5f6368", "#dfe1e5", "#fefefe"
FONT_STACK = "'Helvetica Neue', Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans'"
PANEL = (4.8, 3.7)  # inches
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
"""One colour and marker an arm, of Okabe and Ito's colour-blind-safe set."""


def arm_style(arm: str) -> tuple[str, str]:
    """Colour and marker of an arm; arms this module doesn't know get one by their name, always the same."""
    fallback = OTHER_COLOURS[sum(arm.encode()) % len(OTHER_COLOURS)]
    return ARM_COLOURS.get(arm, fallback), ARM_MARKERS.get(arm, "X")


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


def legend_below(figure: Figure, axes: Axes, *, columns: int = 3) -> None:
    """The panel's legend under the axes, where it hides no data."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(handles)), columnspacing=1.2)


def page_style() -> str:
    """The CSS that all pages share."""
    return (Path(__file__).parent / "templates" / "page.css").read_text(encoding="utf-8")


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
