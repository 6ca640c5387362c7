"""Tokens by source of every arm of a plan, beside what the paper prints for the same experiment.

`B` is 1e9 except where a line says that it is 2^30. Not here: contradictions of the paper (`sweeps.contradictions`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sweeps.columns import PlanRow
from sweeps.stated_file import SPEECH_TOKENS_PER_HOUR, StatedStatistics
from sweeps.text import aligned, wrapped

if TYPE_CHECKING:
    from sweeps.study import StudyConfig

BILLION = 1e9
BINARY_BILLION = 2**30  # Table 1's
_SCALES = ((BILLION, "B = 1e9"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True, kw_only=True)
class Printed:
    """What the paper prints of an arm: B tokens of interleaved data and of text, and the units saved at equal data, in %."""

    interleaved: int | None = None
    text: int | None = None
    saved: float | None = None


_LST = Printed(interleaved=108, text=217)
PRINTED: dict[str, dict[str, Printed]] = {
    "lst_table3": {
        "baseline": Printed(interleaved=87, text=175),
        "bpe": Printed(interleaved=95, text=190),
        **dict.fromkeys(("lst_static", "lst_aligned", "lst_mixed", "lst_curriculum"), _LST),
    },
    "lst_table4": {
        "bpe": Printed(saved=8.2),
        "lst_static": Printed(interleaved=108, text=217, saved=19.3),
        "lst_curriculum": Printed(interleaved=108, text=217, saved=19.7),
    },
    "lst_figure4b": {"baseline": Printed(text=70)},
}


@dataclass(frozen=True, kw_only=True)
class Account:
    """One arm at one size and length: a row's tokens in B, beside the paper's figures."""

    row: PlanRow
    units_saved: float | None  # share of units a token that the arm saves against its reference; None for the reference
    printed: Printed

    @property
    def off(self) -> tuple[float | None, float | None]:
        """How far interleaved and text B lie from the paper's; None where it prints none."""
        row, printed = self.row, self.printed
        interleaved = None if printed.interleaved is None else row.interleaved_tokens / BILLION - printed.interleaved
        return interleaved, None if printed.text is None else row.text_only_tokens / BILLION - printed.text


def accounts(study: StudyConfig, rows: Sequence[PlanRow]) -> list[Account]:
    """A line an arm, size and length, of the first seed."""
    rows = [row for row in rows if row.kind == "pretrain" and row.seed == study.seeds[0]]
    references = {(row.arm, row.match_group): row for row in rows}
    found = []
    for row in rows:
        reference = references.get((study.of_arm(row.arm).reference_arm, row.match_group))
        saved = 1 - row.units / row.tokens * reference.tokens / reference.units if reference and reference is not row else None
        printed = PRINTED.get(study.name, {}).get(row.arm, Printed())
        found.append(Account(row=row, units_saved=saved, printed=printed))
    return found


def accounting_text(study: StudyConfig, rows: Sequence[PlanRow]) -> str:
    """The table that a plan prints."""
    lines = accounts(study, rows)
    compared = any(line.printed != Printed() for line in lines)
    scale, unit = next(((s, u) for s, u in _SCALES if any(line.row.tokens >= s for line in lines)), (1.0, "1"))
    head = ["size", "arm", "units", "interl.", "text", "tokens", "saved %", "epochs"]
    table = [head + (["paper", "off"] if compared else [])]
    for line in lines:
        row = line.row
        counts = (f"{n / scale:.1f}" for n in (row.units, row.interleaved_tokens, row.text_only_tokens, row.tokens))
        printed = "" if line.printed.saved is None else f" ({line.printed.saved:.1f})"
        saved = "" if line.units_saved is None else f"{100 * line.units_saved:.1f}{printed}"
        table.append([row.size, row.arm, *counts, saved, f"{row.speech_epochs:.1f}", *(_compared(line) if compared else [])])
    what = f"tokens in {unit}, of interleaved documents and of text alone; saved: units a token, against the reference"
    what += " (in brackets the paper's); off: from the paper's tokens, interleaved and text" if compared else ""
    return f"{wrapped('', what)}\n{aligned(table, left={0, 1})}"


def speech_text(stated: StatedStatistics) -> str:
    """Hours of unique speech by corpus, as tokens in B of 2^30 (the paper's Table 1) and in all."""
    parts = [
        f"{name} {hours:,.0f} h = {hours * SPEECH_TOKENS_PER_HOUR / BINARY_BILLION:.1f}"
        for name, hours in stated.speech_hours.items()
    ]
    unique = stated.unique_speech_tokens
    total = f"{sum(stated.speech_hours.values()):,.0f} h, {unique / BILLION:.2f}e9 tokens or {unique / BINARY_BILLION:.1f} x 2^30"
    return wrapped("unique speech, in B = 2^30 tokens: ", f"{'; '.join(parts)}; in all {total}")


def _compared(line: Account) -> list[str]:
    printed = line.printed
    figures = [str(figure) for figure in (printed.interleaved, printed.text) if figure is not None]
    off = [f"{gap:+.1f}" for gap in line.off if gap is not None]
    return ["+".join(figures), " ".join(off)]
