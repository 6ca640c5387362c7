"""From a DataFrame to points that can be fitted: columns found, values checked, budgets told apart. Fits nothing.

A table needs `num_params`, `tokens`, `loss`; `train_flops` and `flops_budget` are used where they are there.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import fsum

import numpy as np
import pandas as pd

from analysis.laws import Floats, places
from lst.errors import FitError, did_you_mean

BUDGET_GAP = 1.25
"""FLOPs that differ by less than this factor count as one budget where no column names the budget."""
FARTHEST = 1e60
"""Largest value of a column, and smallest as 1 over it: powers of what lies beyond would overflow."""
SAME_IN_A_COMPARISON = ("data_id", "flops_convention")
SAME_RAY = 0.02
"""Scatter of ln D about a line in ln N under which the two cannot be told apart (2%)."""


@dataclass(frozen=True)
class Points:
    """Columns of one fit, as arrays of equal length."""

    num_params: Floats
    tokens: Floats
    loss: Floats
    flops: Floats  # train_flops, or 6ND where the table has none
    budget: np.ndarray  # index of the budget, 0 = the smallest
    budget_flops: Floats  # (budgets,) as named in the table, or the geometric mean
    exact_flops: bool  # whether `flops` are train_flops

    def __len__(self) -> int:
        return len(self.loss)

    def cells(self, member: np.ndarray | None = None) -> int:
        """Different pairs of N and D (of each arm, with `member` an index of arms): repeats of a cell tell of noise alone."""
        return int(self.cell_of(member).max()) + 1

    def cell_of(self, member: np.ndarray | None = None) -> np.ndarray:
        """(n,) the cell of each row."""
        arm = np.zeros(len(self)) if member is None else member
        return places(np.log([self.num_params, self.tokens]).T, arm[:, None])

    def copies(self, member: np.ndarray | None = None) -> int:
        """Rows whose N, D and loss (and arm) equal another's to the last digit."""
        arm = np.zeros(len(self)) if member is None else member
        return len(self) - len(np.unique(np.stack([self.num_params, self.tokens, self.loss, arm]), axis=1).T)


def require_table(table: object) -> None:
    """Raises FitError on what is no DataFrame."""
    if not isinstance(table, pd.DataFrame):
        raise FitError(f"a {type(table).__name__} is no table; give a pandas DataFrame with a row a run.")


def column(table: pd.DataFrame, name: str) -> Floats:
    """A positive, finite column as float64; a FitError names the first row that is not."""
    require_table(table)
    if name not in table.columns:
        raise FitError(f"the table has no column '{name}'; {did_you_mean(name, [str(c) for c in table.columns])}")
    if list(table.columns).count(name) > 1:
        raise FitError(f"the table has two columns '{name}'; keep one.")
    kind = table[name].dtype.kind
    if kind in "cmM" or (kind == "O" and any(isinstance(cell, complex | np.complexfloating) for cell in table[name])):
        raise FitError(f"{name} holds {table[name].dtype} and no real numbers; convert the column, or choose another.")
    values = pd.to_numeric(table[name], errors="coerce").to_numpy(dtype=np.float64)
    wrong = ~(np.isfinite(values) & (values > 0))
    if not wrong.any() and len(values) and not 1 / FARTHEST < values.min() <= values.max() < FARTHEST:
        raise FitError(f"{name} spans {values.min():g} to {values.max():g}; give it in units that keep it in 1e-60 to 1e60.")
    if wrong.any():
        row = int(np.argmax(wrong))
        raise FitError(f"{name}={table[name].iloc[row]} in row {row + 1} is not positive and finite; drop the row or correct it.")
    return values


def read_points(table: pd.DataFrame, *, params: str = "num_params", tokens: str = "tokens", loss: str = "loss") -> Points:
    """The points of `table`. Raises FitError on an empty table, a missing column, or a value that no law can have."""
    if isinstance(table, pd.DataFrame) and not len(table):
        raise FitError("the table has no rows; give at least as many runs as the law has parameters.")
    n, d, losses = column(table, params), column(table, tokens), column(table, loss)
    exact = "train_flops" in table.columns
    flops = column(table, "train_flops") if exact else 6 * n * d
    budget, budget_flops = budgets(table, flops)
    return Points(n, d, losses, flops, budget, budget_flops, exact)


def arm_rows(table: pd.DataFrame, arm: str) -> pd.DataFrame:
    """The rows of one arm. Raises FitError on an unknown one."""
    require_table(table)
    if "arm" not in table.columns:
        raise FitError("the table has no column 'arm'; name each row's arm to compare them.")
    if table["arm"].isna().any():
        raise FitError(
            f"row {int(table['arm'].isna().to_numpy().argmax()) + 1} names no arm; fill the column in, or drop the row."
        )
    rows = table[table["arm"] == arm]
    if not len(table):
        raise FitError("the table has no rows; add runs.")
    if not len(rows):
        raise FitError(f"arm='{arm}' has no rows; {did_you_mean(arm, sorted(set(table['arm'].astype(str))))}")
    return rows


def named_arms(table: pd.DataFrame) -> pd.DataFrame:
    """`table` with its arms' names as text; a missing one stays missing."""
    if not isinstance(table, pd.DataFrame) or "arm" not in table.columns:
        return table
    return table.assign(arm=table["arm"].astype(object).where(table["arm"].isna(), table["arm"].astype(str)))


def require_one_kind(table: pd.DataFrame) -> None:
    """One law is of one arm, one data set and one way of counting FLOPs. Raises FitError on a table that mixes them."""
    _require_one(table, ("arm", *SAME_IN_A_COMPARISON))


def require_comparable(table: pd.DataFrame) -> None:
    """Arms are compared on one data set and by one way of counting FLOPs. Raises FitError on a table that mixes them."""
    _require_one(table, SAME_IN_A_COMPARISON)


def _require_one(table: pd.DataFrame, names: tuple[str, ...]) -> None:
    for name in names:
        given = table[name] if isinstance(table, pd.DataFrame) and name in table.columns else pd.Series(dtype=str)
        values = sorted(set(given.dropna().astype(str))) + ["none"] * bool(given.notna().any() and given.isna().any())
        if len(values) > 1:
            raise FitError(
                f"the table mixes {len(values)} values of {name} ({', '.join(values)}); fit the rows of one at a time."
            )


def budgets(table: pd.DataFrame, flops: Floats) -> tuple[np.ndarray, Floats]:
    """Each row's budget as an index in rising order, and the budgets: by column flops_budget, else by gaps in the FLOPs."""
    named = table["flops_budget"] if "flops_budget" in table.columns else pd.Series(dtype=float)
    if len(named) and named.notna().all():
        values, index = np.unique(column(table, "flops_budget"), return_inverse=True)
        return index, values
    order = np.argsort(flops, kind="stable")
    steps = np.diff(np.log(flops[order])) > np.log(BUDGET_GAP)
    index = np.empty(len(flops), dtype=int)
    index[order] = np.concatenate([[0], np.cumsum(steps)])
    return index, np.array([np.exp(np.log(flops[index == b]).mean()) for b in range(index.max() + 1)])


def require_points(points: Points, parameters: int, law: str, member: np.ndarray | None = None) -> None:
    """Fewer points than parameters, fewer cells (of each arm, with `member`), or losses that are all equal, are refused."""
    if len(points) < parameters:
        raise FitError(f"{len(points)} points cannot fix the {parameters} parameters of {law}; add runs or choose a smaller law.")
    if (cells := points.cells(member)) < parameters:
        raise FitError(
            f"{len(points)} points at {cells} different N and D cannot fix the {parameters} parameters of {law}: repeats of a "
            "cell tell of noise alone; add sizes or lengths."
        )
    require_varying(points)


def require_varying(points: Points) -> None:
    """Refuse losses that are all equal."""
    if np.ptp(np.log(points.loss)) < 1e-9:
        raise FitError(
            f"all {len(points)} losses equal {points.loss[0]:g}: a constant loss tells nothing of scaling; check the column."
        )


def require_spread(points: Points) -> None:
    """L(N, D) needs three sizes, three lengths, and points off any one line in (ln N, ln D)."""
    x, y = np.log(points.num_params), np.log(points.tokens)
    for name, values in (("num_params", x), ("tokens", y)):
        distinct = len(np.unique(np.round(values, 6)))
        if distinct < 3:
            raise FitError(
                f"{name} takes only {distinct} distinct value(s); L(N, D) needs three or more to tell asymptote from slope."
            )
    away, above = x - x.mean(), y - y.mean()
    scatter = float(np.std(above - (away @ above) / (away @ away) * away))
    if scatter < SAME_RAY or float(np.std(y - x)) < SAME_RAY:
        ratio = float(np.exp(np.mean(y - x)))
        raise FitError(
            f"all points lie on one ray of tokens against parameters (about {ratio:.3g} to 1, scatter {scatter:.2g} "
            "in ln D): N and D cannot be told apart; add runs at another ratio, or fit loss against FLOPs."
        )


@dataclass(frozen=True)
class Frame:
    """The solver's coordinates of a table: centred logs, loss over its geometric mean; and the way back."""

    x: Floats
    y: Floats
    log_loss: Floats
    x_mean: float
    y_mean: float
    loss_mean: float

    @classmethod
    def of(cls, points: Points) -> Frame:
        x, y, log_loss = np.log(points.num_params), np.log(points.tokens), np.log(points.loss)
        means = fsum(x) / len(x), fsum(y) / len(y), fsum(log_loss) / len(x)  # the same whatever the order of the rows
        return cls(x - means[0], y - means[1], log_loss - means[2], *means)

    def surface(self, theta: Floats) -> Floats:
        """(P, 5) E, A, B, alpha, beta in the table's units, from theta (P, 5) of the columns (1, N, D)."""
        scale = np.exp(self.loss_mean)
        alpha, beta = theta[:, 3], theta[:, 4]
        a = theta[:, 1] * scale * np.exp(alpha * self.x_mean)
        b = theta[:, 2] * scale * np.exp(beta * self.y_mean)
        return np.stack([theta[:, 0] * scale, a, b, alpha, beta], axis=1)
