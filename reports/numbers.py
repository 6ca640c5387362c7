"""Numbers as a reader wants them: units, thousands separators, powers of ten in plain Unicode (no math markup needed).

Every figure, table and sentence of the report formats through these functions, so that one quantity looks the same
everywhere. A missing value is an em dash.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

MISSING = "—"
_SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
_SUFFIXES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))

Formatter = Callable[[Any], str]


def is_number(value: object) -> bool:
    """Whether `value` is a finite number (numpy's included); booleans are not."""
    if value is None or isinstance(value, bool | str):
        return False
    try:
        return math.isfinite(float(value))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False


def as_float(value: object) -> float:
    """`value` as a float, not-a-number where it is missing or no number."""
    return float(value) if is_number(value) else math.nan  # type: ignore[arg-type]


def scientific(value: object, digits: int = 2) -> str:
    """3.1e13 as '3.1×10¹³'; an exact power of ten as '10¹³'."""
    number = as_float(value)
    if math.isnan(number):
        return MISSING
    if number == 0:
        return "0"
    mantissa, exponent = f"{number:.{digits - 1}e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    power = "10" + str(int(exponent)).translate(_SUPERSCRIPTS)
    return power if mantissa == "1" else f"{mantissa}×{power}"


def short(value: object) -> str:
    """A count with a suffix: 1,234,567 as '1.23M'."""
    number = as_float(value)
    if math.isnan(number):
        return MISSING
    for size, suffix in _SUFFIXES:
        if abs(number) >= size * 0.9995:
            return f"{number / size:.3g}{suffix}"
    return f"{number:.3g}"


def count(value: object) -> str:
    """A whole number with thousands separators."""
    return MISSING if not is_number(value) else f"{as_float(value):,.0f}"


def fixed(digits: int) -> Formatter:
    """A formatter with `digits` decimals and a true minus sign."""

    def formatted(value: object) -> str:
        return MISSING if not is_number(value) else f"{as_float(value):,.{digits}f}".replace("-", "−")

    return formatted


def general(value: object) -> str:
    """Three significant digits, whatever the magnitude."""
    number = as_float(value)
    if math.isnan(number):
        return MISSING
    if number and not 1e-3 <= abs(number) < 1e5:
        return scientific(number, 3).replace("-", "−")
    return f"{number:.3g}".replace("-", "−")


def percent(digits: int = 1) -> Formatter:
    """A share in [0, 1] as per cent."""

    def formatted(value: object) -> str:
        return MISSING if not is_number(value) else f"{100 * as_float(value):.{digits}f}%".replace("-", "−")

    return formatted


def text(value: object) -> str:
    """Any value as text; missing ones as a dash."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return MISSING
    shown = str(value)
    return MISSING if shown in ("", "nan", "<NA>", "None") else shown


def interval(low: object, high: object, formatter: Formatter) -> str:
    """'[low, high]', or a dash where either end is missing."""
    if not (is_number(low) and is_number(high)):
        return MISSING
    return f"[{formatter(low)}, {formatter(high)}]"


def level_name(level: float) -> str:
    """0.95 as '95%'."""
    return f"{100 * level:.3g}%"


def clipped(words: str, length: int = 24) -> str:
    """`words`, cut to `length` characters with an ellipsis: a label must not crowd out its figure."""
    return words if len(words) <= length else words[: length - 1] + "…"


def plural(number: int, noun: str) -> str:
    """'1 run', '2 runs'."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def listed(names: list[str], *, last: str = "and") -> str:
    """'a', 'a and b', 'a, b and c'."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} {last} {names[-1]}"
