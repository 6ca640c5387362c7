"""The picture of Figure 5: occurrences of words as points, a colour and a marker a word (lst/drawing.py)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lst.drawing import ARM_COLOURS, drawing, legend_below, new_panel, svg_file

COLOURS, MARKERS = tuple(ARM_COLOURS.values()), "osDP^vX<>*"


def word_picture(places_N2: NDArray[np.float64], words: Sequence[str], title: str) -> str:
    """SVG of a t-SNE. `words` are the points' labels."""
    with drawing():
        figure, axes = new_panel(f"Words as patches: {title}", "t-SNE 1", "t-SNE 2", size=(6.4, 6.4))
        for number, word in enumerate(dict.fromkeys(words)):
            own = np.array([w == word for w in words])
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number // len(COLOURS) % len(MARKERS)]
            axes.scatter(
                places_N2[own, 0], places_N2[own, 1], s=18, color=colour, marker=marker, alpha=0.75, linewidths=0, label=word
            )
        axes.set_xticks([])
        axes.set_yticks([])
        legend_below(figure, axes, columns=6)
    return svg_file(figure, "words")
