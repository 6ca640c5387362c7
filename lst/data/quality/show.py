"""Statistics and checks as plain tables that read well at 100 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lst.data.quality.summary import PATCHINGS
from lst.data.shards import Dataset

WIDTH = 100
MOST_REASONS = 10


@dataclass(frozen=True)
class Grid:
    """A table as text cells; `text_last`: all columns are text, else numbers stand right behind the first."""

    title: str
    heading: list[str]
    rows: list[list[str]]
    text_last: bool = False

    def __str__(self) -> str:
        return table(self.heading, self.rows, left=len(self.heading) if self.text_last else 1)


def table(heading: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Columns in line: the first `left` to the left, the others to the right; long cells of the last column wrap."""
    widths = [max(len(row[i]) for row in [heading, *rows]) for i in range(len(heading))]
    if left == len(heading):
        widths[-1] = max(20, WIDTH - sum(widths[:-1]) - 2 * (len(widths) - 1))
    lines = []
    for row in [heading, ["-" * w for w in widths], *rows]:
        wrapped = textwrap.wrap(row[-1], widths[-1]) or [""] if left == len(heading) else [row[-1]]
        for number, last in enumerate(wrapped):
            cells = [*row[:-1], last] if number == 0 else [*[""] * (len(row) - 1), last]
            aligned = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
            lines.append("  ".join(aligned).rstrip())
    return "\n".join(lines)


def summary_text(dataset: Dataset, summary: dict[str, Any], budgets: Sequence[dict[str, Any]]) -> str:
    """What `prepare-data statistics` prints."""
    grids = [sizes_grid(summary), patching_grid(summary), refused_grid(summary["refused"])]
    if budgets:
        grids.append(_budgets(budgets))
    return "\n\n".join([f"{dataset.path}: data_id {summary['data_id']}", *(f"{grid.title}\n\n{grid}" for grid in grids)])


def sizes_grid(summary: dict[str, Any]) -> Grid:
    """Documents, tokens and hours by split."""
    speech, text = summary["speech"], summary["text"]

    def row(name: str, *values: float, digits: int = 0) -> list[str]:
        total = sum(values)
        return [name, *[f"{v:,.{digits}f}" for v in (*values, total)]]

    splits = ("train", "heldout")
    of_speech = {
        "spoken documents": "documents",
        "  with words": "documents_with_words",
        "  speech tokens": "speech_tokens",
        "  words": "words",
        "  their text tokens": "text_tokens",
    }
    rows = [row(name, *(speech[s][key] for s in splits)) for name, key in of_speech.items()]
    rows.insert(3, row("  hours at 25 Hz", *(speech[s]["seconds"] / 3600 for s in splits), digits=2))
    rows.append(row("text documents", *(text[s]["documents"] for s in splits)))
    rows.append(row("  text tokens", *(text[s]["text_tokens"] for s in splits)))
    return Grid("Sizes", ["", "training", "held out", "together"], rows)


def patching_grid(summary: dict[str, Any]) -> Grid:
    """Mean patch lengths and units by patching and split."""
    splits = [summary["speech"][s]["patching"] for s in ("train", "heldout")]
    names = [name for name in PATCHINGS if any(name in split for split in splits)]
    rows = []
    for name in names:
        row = [name]
        for key in ("mean_patch_length", "units_per_document"):
            row += [f"{split[name][key]:.3f}" if name in split else "-" for split in splits]
        rows.append(row)
    heading = ["", "patch length: training", "held out", "units a document: training", "held out"]
    return Grid("Mean patch length and units of spoken documents", heading, rows)


def _budgets(budgets: Sequence[dict[str, Any]]) -> Grid:
    counts = ("units", "tokens", "speech_tokens", "text_tokens")
    rows = [
        [
            b["arm"],
            *[_count(b[key]) for key in counts],
            f"{b['mean_patch_length']:.2f}",
            f"{b['speech_epochs']:.2f}",
            f"{b['text_epochs']:.2f}",
        ]
        for b in budgets
    ]
    head = ["arm", "units", "tokens", "speech", "text", "patch", "speech ep.", "text ep."]
    return Grid("Runs at this budget, a third of the tokens interleaved", head, rows)


def _count(value: float) -> str:
    return f"{value:,.0f}" if value < 1e9 else f"{value / 1e9:,.2f} B"


def refused_grid(refused: dict[str, int] | None) -> Grid:
    """Refusals by reason, the most frequent first."""
    ranked = sorted((refused or {}).items(), key=lambda pair: (-pair[1], pair[0]))
    rows = [[f"{count:,}", reason] for reason, count in ranked[:MOST_REASONS]]
    if len(ranked) > MOST_REASONS:
        rows.append([f"{sum(count for _, count in ranked[MOST_REASONS:]):,}", f"for {len(ranked) - MOST_REASONS} other reasons"])
    return Grid("Refused records", ["records", "reason"], rows or [["none" if refused is not None else "not recorded", ""]], True)
