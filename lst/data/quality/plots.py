"""The plots of a data set's page: tokens by rank, lengths of documents, words, silences and patches.

Drawn by the rules of lst/drawing.py; counts come from measure.py. No text of the data (an id, a word) enters a plot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lst.data.quality.measure import Measures
from lst.data.quality.tally import LengthCounts
from lst.data.vocab import FRAMES_PER_SECOND
from lst.drawing import INK, MUTED, Panel, drawing, legend_below, new_panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WORDS, SILENCES, DOCUMENTS = "#0072b2", "#d55e00", "#009e73"
BARS = 40  # at most, of a histogram


def panels(measures: Measures) -> list[Panel]:
    """The panels that the data have something for."""
    with drawing():
        found = [_ranks(measures), _documents(measures)]
        if measures.words.words:
            words = _durations("words", "Word durations", measures.words.durations, WORDS)
            found += [words, _durations("silences", "Silences", measures.words.silences, SILENCES), _patches(measures)]
    return found


def _ranks(measures: Measures) -> Panel:
    counts = np.sort(measures.tokens.counts)[::-1]
    share = counts / max(1, counts.sum())
    used = int((counts > 0).sum())
    figure, axes = new_panel("Speech tokens by rank", "rank of the token", "share of all tokens")
    axes.plot(np.arange(1, used + 1), share[:used], color=WORDS, label="measured")
    axes.axhline(1 / len(counts), color=MUTED, linestyle="--", linewidth=1.2, label="all alike")
    axes.set_yscale("log")
    if used:
        axes.set_ylim(max(float(share[:used].min()), 1e-7) / 2, float(share[0]) * 3)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
    axes.set_xlim(0, len(counts) + 1)
    legend_below(figure, axes)
    said = f"Share of each of {used} used tokens of {len(counts)}, from the commonest, {100 * share[0]:.2g}%, on a log axis."
    return Panel("token-ranks", said, figure)


def _documents(measures: Measures) -> Panel:
    lengths = measures.tokens.lengths
    figure, axes = new_panel("Document lengths", "seconds", "spoken documents")
    _histogram(axes, lengths, DOCUMENTS)
    return Panel("document-lengths", _said("documents", lengths), figure)


def _durations(name: str, title: str, lengths: LengthCounts, colour: str) -> Panel:
    figure, axes = new_panel(title, "seconds", name)
    _histogram(axes, lengths, colour)
    return Panel(f"{name}-durations", _said(name, lengths), figure)


def _said(name: str, lengths: LengthCounts) -> str:
    quantiles = ", ".join(f"{lengths.quantile(q) / FRAMES_PER_SECOND:.2f} s at {100 * q:.0f}%" for q in (0.01, 0.5, 0.99))
    return f"Histogram of {lengths.number:,} {name} by length: {quantiles}."


def _histogram(axes: Axes, lengths: LengthCounts, colour: str) -> None:
    """Bars over seconds up to the 99.5th percentile; the last bar holds all that is longer."""
    if not lengths.number:
        axes.text(0.5, 0.5, "none", ha="center", va="center", transform=axes.transAxes)
        return
    width = -(-(lengths.quantile(0.995) + 1) // BARS)  # frames a bar
    bars = lengths.quantile(0.995) // width + 1
    counts = np.add.reduceat(lengths.counts, np.arange(0, bars * width, width))
    left = np.arange(bars) * width / FRAMES_PER_SECOND
    axes.bar(left, counts, width / FRAMES_PER_SECOND, align="edge", color=colour, linewidth=0)
    median = (lengths.quantile(0.5) + 0.5) / FRAMES_PER_SECOND
    axes.axvline(median, color=INK, linewidth=1)
    axes.set_ylim(0, 1.12 * float(counts.max()))
    axes.annotate(f"median {median:.2g} s", (median, axes.get_ylim()[1]), xytext=(4, -3), textcoords="offset points", va="top")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def _patches(measures: Measures) -> Panel:
    """Where the frames lie: share of all frames in patches of each length, when words and silences are patches."""
    words, silences = measures.words.durations, measures.words.silences
    most = max(words.quantile(0.995), silences.quantile(0.995), 8)
    frames = np.arange(1, most + 1)
    total = max(1, words.total + silences.total)
    figure, axes = new_panel("Aligned patches", "speech tokens of a patch", "share of all speech tokens")
    bottom: NDArray[np.float64] = np.zeros(most)
    for label, lengths, colour in (("words", words, WORDS), ("silences", silences, SILENCES)):
        share = lengths.counts[1 : most + 1] * frames / total
        axes.bar(frames, share, 0.85, bottom=bottom, color=colour, linewidth=0, label=label)
        bottom = bottom + share
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
    axes.set_xticks(range(0, most + 1, max(1, round(most / 8))))
    legend_below(figure, axes)
    said = (
        f"Share of speech tokens by the length of their patch: words, mean {words.mean:.2f}, silences, mean {silences.mean:.2f}."
    )
    return Panel("patch-lengths", said, figure)
