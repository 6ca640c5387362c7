"""A user's table of hyperparameters as a recipe: `recipe.name=table recipe.table=FILE.csv` (or .yaml, .json).

    size,budget,lr,batch_units,warmup_steps,weight_decay,tuning_runs
    420M,1e19,1.2e-3,262144,1000,0.1,9
    420M,1e20,9e-4,524288,2000,0.1,9
    1.8B,1e20,6e-4,524288,2000,0.1,9

`size` names rungs of the ladder, or `num_params` counts the baseline's parameters; `budget` (FLOPs of a run, 6 N D of the
baseline) and what stands after `batch_units` may be left out. In YAML the rows stand under `rows`. A value is looked up for the
budget at each size, then for the size: learning rate and batch along straight lines in their logarithms, warm-up and weight
decay along straight lines, over the logarithm of budget or parameters. Outside the table the nearest value holds, and the
plan warns. A table names no arm, so that each is tuned alike. Not here: the published recipes (`sweeps.recipe`).
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from lst.config import Arm
from lst.errors import ConfigError, did_you_mean
from lst.flops import num_params
from lst.ladder import SIZES, model_shape

SUFFIXES = (".csv", ".yaml", ".yml", ".json")
INTERPOLATION = (
    "log-log lines for learning rate and batch, lines over the logarithm for warm-up and weight decay, first over budgets, then "
    "over sizes; outside the table the nearest value"
)


@dataclass(frozen=True, kw_only=True)
class Point:
    """One row of the table."""

    num_params: float  # of the baseline
    lr: float  # peak learning rate
    batch_units: float  # of a global batch
    size: str = ""  # the rung, where the table names it
    budget: float | None = None  # FLOPs of the run that it was tuned for; None in a table without budgets
    warmup_steps: float | None = None  # None in a table without: as the recipe `step_law` has it
    weight_decay: float | None = None  # None in a table without: the paper's 0.1
    tuning_runs: int | None = None  # runs of each arm that its values were chosen by


COLUMNS = tuple(field.name for field in dataclasses.fields(Point))


@dataclass(frozen=True)
class RecipeTable:
    """A table as it was read."""

    name: str  # the file's, without its folder
    digits: str  # of the hash of its content
    points: tuple[Point, ...]

    @property
    def recipe(self) -> str:
        """What the column `recipe` of a plan says."""
        return f"table:{self.name}:{self.digits}"

    @cached_property
    def sizes(self) -> dict[float, list[Point]]:
        """Points by parameters, both rising."""
        found: dict[float, list[Point]] = {}
        for point in sorted(self.points, key=lambda point: (point.num_params, point.budget or 0.0)):
            found.setdefault(point.num_params, []).append(point)
        return found

    def place(self, size: str, num_params: float) -> float:
        """The parameters by which `size` is looked up: those of its name where the table has names (vocabularies differ)."""
        return _rung_params(size) if size in SIZES and self.points[0].size else num_params

    def value(self, key: str, place: float, budget: float) -> float | None:
        """The column `key` there; None where the table has no such column."""
        if getattr(self.points[0], key) is None:
            return None
        logs = key in ("lr", "batch_units")
        of_sizes = []
        for params, points in self.sizes.items():
            values = [float(getattr(point, key)) for point in points]
            budgets = [point.budget or 1.0 for point in points]
            of_sizes.append((params, _between(budgets, values, budget, logs=logs)))
        return _between([p for p, _ in of_sizes], [v for _, v in of_sizes], place, logs=logs)

    def outside(self, place: float, budget: float) -> str:
        """Why a situation lies outside the table; empty where it does not."""
        checks = [("parameters", place, list(self.sizes))]
        if self.points[0].budget is not None:
            checks.append(("FLOPs", budget, [point.budget or 0.0 for point in self.points]))
        return "; ".join(
            f"{value:.3g} {name} lie outside {min(known):.3g} to {max(known):.3g}"
            for name, value, known in checks
            if not 0.999 * min(known) <= value <= 1.001 * max(known)  # budgets are told by 6 N D, rounded
        )

    @property
    def text(self) -> str:
        """Where the values are from, for a reader of the plan."""
        budgets = [point.budget for point in self.points if point.budget is not None]
        spans = f"{min(self.sizes):.3g} to {max(self.sizes):.3g} parameters"
        spans += f", {min(budgets):.3g} to {max(budgets):.3g} FLOPs" if budgets else ", of any budget"
        runs = [point.tuning_runs for point in self.points if point.tuning_runs is not None]
        tuned = f"; {sum(runs)} tuning runs an arm" if runs else "; how many tuning runs is not said"
        return f"table '{self.name}' ({self.digits}), {len(self.points)} points, {spans}{tuned}; between them: {INTERPOLATION}"


def read_recipe_table(path: Path) -> RecipeTable:
    """Raises ConfigError on a file that cannot be read, an unknown or missing column, or a value that cannot be."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"recipe.table={path} cannot be read ({type(error).__name__}); give a CSV, YAML or JSON file."
        ) from error
    rows = _csv_rows(path, text) if path.suffix == ".csv" else _yaml_rows(path)
    if not rows:
        raise ConfigError(f"recipe.table={path} has no rows; give at least one size.")
    columns = set(rows[0])
    for number, row in enumerate(rows, start=1):
        for key in row:
            if key not in COLUMNS:
                raise ConfigError(f"recipe.table={path} has the unknown column '{key}'; {did_you_mean(str(key), COLUMNS)}")
        if set(row) != columns:
            odd = sorted(set(row) ^ columns)[0]
            raise ConfigError(f"recipe.table={path} row {number}: '{odd}' is given in some rows and not in others; fill it in.")
    for key in ("lr", "batch_units"):
        if key not in columns:
            raise ConfigError(f"recipe.table={path} has no column '{key}'; it needs size (or num_params), lr and batch_units.")
    if len({"size", "num_params"} & columns) != 1:
        raise ConfigError(f"recipe.table={path} needs one of the columns size and num_params, not both or neither.")
    points = tuple(_point(path, number, row) for number, row in enumerate(rows, start=1))
    places = [(point.num_params, point.budget) for point in points]
    twice = next((place for number, place in enumerate(places) if place in places[:number]), None)
    if twice is not None:
        raise ConfigError(f"recipe.table={path} has two rows for {twice[0]:.4g} parameters and one budget; keep one of them.")
    return RecipeTable(path.stem, hashlib.sha256(text.encode()).hexdigest()[:6], points)


def _csv_rows(path: Path, text: str) -> list[dict[str, Any]]:
    rows = list(csv.reader(io.StringIO(text)))
    if rows and len(set(rows[0])) != len(rows[0]):
        raise ConfigError(f"recipe.table={path} has a column twice; keep one of them.")
    found = []
    for number, row in enumerate(rows[1:], start=1):
        if len(row) != len(rows[0]):
            raise ConfigError(f"recipe.table={path} row {number} has {len(row)} cells under {len(rows[0])} columns; mend it.")
        found.append({key.strip(): cell.strip() for key, cell in zip(rows[0], row, strict=True)})
    return found


def _yaml_rows(path: Path) -> list[dict[str, Any]]:
    from sweeps.yaml_file import UnreadableError, read_mapping

    try:
        values = read_mapping(path)
    except UnreadableError as error:
        raise ConfigError(f"recipe.table={path} cannot be read ({error}); give a CSV, YAML or JSON file.") from error
    rows = values.get("rows") if values is not None and set(values) == {"rows"} else None
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise ConfigError(f"recipe.table={path} must hold the list `rows` of mappings alone; see docs/planning.md.")
    return [{str(key): value for key, value in row.items()} for row in rows]


def _point(path: Path, number: int, row: Mapping[str, Any]) -> Point:
    values: dict[str, Any] = {}
    for key, cell in row.items():
        if key == "size":
            values[key] = str(cell)
            if values[key] not in SIZES:
                raise ConfigError(f"recipe.table={path} row {number}: size '{cell}' is unknown; {did_you_mean(str(cell), SIZES)}")
            values["num_params"] = _rung_params(values[key])
            continue
        try:
            value = float(cell)
        except (TypeError, ValueError):
            value = math.nan
        least_open = key not in ("warmup_steps", "weight_decay", "tuning_runs")
        if isinstance(cell, bool) or not (math.isfinite(value) and value >= 0) or (least_open and not value):
            what = "a positive number" if least_open else "a number, 0 or more"
            raise ConfigError(f"recipe.table={path} row {number}: {key}={cell!r} must be {what}.")
        if key == "tuning_runs" and value != int(value):
            raise ConfigError(f"recipe.table={path} row {number}: tuning_runs={cell} counts runs; give a whole number.")
        values[key] = int(value) if key == "tuning_runs" else value
    return Point(**values)


def _rung_params(size: str) -> float:
    """Parameters of a rung's baseline at the paper's vocabulary, which its name counts."""
    return float(num_params(model_shape(size, Arm.BASELINE)))


def _between(places: Sequence[float], values: Sequence[float], place: float, *, logs: bool) -> float:
    """`values` at `place` among rising `places`: the nearest at or outside the ends, a line over log(place) between two."""
    if place <= places[0] or len(places) == 1:
        return values[0]
    for (low, first), (high, second) in pairwise(zip(places, values, strict=True)):
        if place <= high:
            share = math.log(place / low) / math.log(high / low)
            return first * (second / first) ** share if logs else first + share * (second - first)
    return values[-1]
