"""Tables and figures as text that reads well at 100 columns: what every command of the planner prints with."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

WIDTH = 100  # columns


def wrapped(prefix: str, text: str) -> str:
    return textwrap.fill(prefix + text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def aligned(lines: list[list[str]], *, left: set[int]) -> str:
    """Columns padded to their widest cell; those in `left` to the left."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def within(width: int, table: list[list[str]], left_out: Sequence[str]) -> list[list[str]]:
    """The table without as many columns, named in `left_out`, as it takes to read at `width` columns, two blanks between."""
    for name in left_out:
        if name in table[0] and sum(max(map(len, column)) + 2 for column in zip(*table, strict=True)) - 2 > width:
            place = table[0].index(name)
            table = [line[:place] + line[place + 1 :] for line in table]
    return table


def scientific(value: float) -> str:
    """1.00e11"""
    return f"{value:.2e}".replace("e+0", "e").replace("e+", "e")


def short(value: float) -> str:
    """773k, 1.24M, 325B"""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}" if value < 999.5 * size else f"{value / size:,.0f}{unit}"
    return f"{value:.3g}"


def minutes(value: float) -> str:
    return f"{value:,.2f}" if value < 100 else f"{value:,.0f}"
