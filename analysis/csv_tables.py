"""Tables that users bring as CSV files, whole and with as many cells in a row as it has columns, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from lst.errors import FitError


def read_csv(path: Path, **types: Any) -> pd.DataFrame:
    """The table; `types` are pandas' own options for its cells. Raises FitError on what is none, FileNotFoundError."""
    try:
        table: pd.DataFrame = pd.read_csv(path, **types)
    except ValueError as error:  # pandas' parser errors and wrong encodings are ValueErrors
        why = str(error).splitlines()[0]
        raise FitError(f"'{path}' is no readable CSV table ({why}); save it with commas, as UTF-8.") from error
    if not isinstance(table.index, pd.RangeIndex):  # pandas took the first column for names of rows, and shifted the others
        raise FitError(f"'{path}' has rows with more cells than its first line has names (a comma at their end?); correct them.")
    return table
