"""Starts by variable projection (Golub and Pereyra 1973): given the exponents, the coefficients are a linear problem.

For each (alpha, beta) of a grid the coefficients c >= 0 minimise sum_i w_i ((L_i - Lhat_i) / L_i)^2, which is the sum of squared
log residuals to first order (without `logs`: of L_i - Lhat_i, exactly); the local minima over the grid are starts of
`analysis.descent`. All resamples and all cells at once: sums over points are matrix products. numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from analysis.descent import chunk_rows
from analysis.laws import Floats, floats
from analysis.solver import CONSTANT, IN_D, IN_N, Problem

EXPONENTS = (0.03, 2.5)
"""Ends of the grid, denser where laws have them."""
SPREAD = 500
"""Points times starts all over the grid: few points are cheap, and have more minima."""


@cache
def exponent_axis(points: int) -> Floats:
    """(points,) exponents of the grid; read-only, as all fits share it."""
    axis = floats(np.geomspace(*EXPONENTS, points))
    axis.flags.writeable = False
    return axis


def exponent_grid(problem: Problem, points: int) -> Floats:
    """(cells, 2) pairs of exponents; one value for an exponent that no column has; equal ones where they are tied."""
    axis = exponent_axis(points)
    if problem.tied:
        return np.stack([axis, axis], axis=1)
    axes = [axis if kind in problem.kinds else floats([1.0]) for kind in (IN_N, IN_D)]
    return np.stack([g.ravel() for g in np.meshgrid(*axes, indexing="ij")], axis=1)


def projected_starts(
    problem: Problem, log_loss: Floats, weight: Floats, *, keep: int, points: int = 20, fill: bool = True
) -> Floats:
    """(R, keep, p) starts, best first: local minima of the projected sum of squares on the grid; log_loss and weight are (R, n).

    Where there are fewer than `keep` the lowest other cells stand in; without `fill` (one fit only) they are left out.
    """
    sums = _Sums(problem, points)
    starts = []
    step = chunk_rows(len(problem.x))
    for first in range(0, len(log_loss), step):
        rows = slice(first, first + step)
        gram, moment = sums.of(log_loss[rows], weight[rows])
        starts.append(sums.starts(gram, moment, range(len(problem.kinds)), keep, fill=fill))
    return np.concatenate(starts)


def starts_and_faces(problem: Problem, log_loss: Floats, *, keep: int, points: int = 20) -> tuple[Floats, Floats]:
    """Starts of one fit (n,): `keep` local minima and cells all over the grid, more where points are few and minima many; and the
    best point of each face c_j = 0, (J, p), none where there is one column."""
    sums = _Sums(problem, points)
    gram, moment = sums.of(log_loss[None], np.ones((1, len(log_loss))))
    every = range(len(problem.kinds))
    lattice = sums.lattice(int(np.clip(np.sqrt(SPREAD / len(log_loss)), 1, 9)))
    starts = sums.starts(gram, moment, every, keep, fill=False, beside=lattice)[0]
    faces = [sums.starts(gram, moment, [k for k in every if k != j], 1, fill=False)[0, 0] for j in every if len(every) > 1]
    return starts, floats(faces).reshape(-1, problem.size)


class _Sums:
    """The sums over points that the projection needs, on the grid of one problem."""

    def __init__(self, problem: Problem, points: int) -> None:
        self.problem = problem
        self.grid = exponent_grid(problem, points)
        shape = tuple(points if kind in problem.kinds else 1 for kind in (IN_N, IN_D))
        self.shape = (points, 1) if problem.tied else shape
        axis = exponent_axis(points)
        logs = {CONSTANT: np.zeros_like(problem.x), IN_N: problem.x, IN_D: problem.y}
        self.axes = [{CONSTANT: None, IN_N: 0, IN_D: 0 if problem.tied else 1}[kind] for kind in problem.kinds]
        # each column (n, exponents) along its own axis of the grid; one value for the constants
        self.columns = [
            np.exp(-np.outer(logs[kind], axis if along is not None else [0.0])) * problem.members[:, j, None]
            for j, (kind, along) in enumerate(zip(problem.kinds, self.axes, strict=True))
        ]

    def of(self, log_loss: Floats, weight: Floats) -> tuple[dict[tuple[int, int], Floats], list[Floats]]:
        """Gram matrix and moments (R, a, b) of weighted squares: of L - Lhat over L, or of L - Lhat itself without `logs`."""
        loss = np.exp(log_loss)
        scaled = weight / loss**2 if self.problem.logs else weight
        count = len(self.columns)
        gram = {(j, k): self._product(j, k, scaled) for j in range(count) for k in range(j, count)}
        return gram, [self._along(self.axes[j], (scaled * loss) @ self.columns[j]) for j in range(count)]

    def _product(self, j: int, k: int, scaled: Floats) -> Floats:
        one, other, axes = self.columns[j], self.columns[k], {self.axes[j], self.axes[k]}
        if axes == {0, 1}:  # kinds are in order: j is along the first axis
            crossed: Floats = (scaled[:, None, :] * one.T) @ other
            return crossed
        return self._along(1 if 1 in axes else 0 if 0 in axes else None, scaled @ (one * other))

    @staticmethod
    def _along(axis: int | None, sums: Floats) -> Floats:
        return sums[:, None, :] if axis == 1 else sums[:, :, None]

    def lattice(self, side: int) -> np.ndarray:
        """Flat indices of cells in the middle of `side` equal parts of each axis."""
        places = [np.unique((np.arange(side) + 0.5) * size // side).astype(int) for size in self.shape]
        result: np.ndarray = np.ravel_multi_index(np.meshgrid(*places, indexing="ij"), self.shape).ravel()
        return result

    def starts(
        self,
        gram: dict[tuple[int, int], Floats],
        moment: list[Floats],
        columns: Sequence[int],
        keep: int,
        *,
        fill: bool,
        beside: np.ndarray | None = None,
    ) -> Floats:
        """(R, keep + beside, p) the best cells and those `beside`, with only `columns` in the model."""
        place = {j: i for i, j in enumerate(columns)}
        own = {(place[j], place[k]): g for (j, k), g in gram.items() if j in place and k in place}
        rows = len(moment[0])
        coefficient, squares = non_negative(own, [moment[j] for j in columns], (rows, *self.shape))
        chosen = _local_minima(squares, keep, fill)
        if beside is not None:
            chosen = np.concatenate([chosen, np.broadcast_to(beside, (rows, len(beside)))], axis=1)
        found = np.zeros((*chosen.shape, self.problem.size))
        found[:, :, len(self.problem.kinds) :] = self.grid[chosen]
        for j, values in zip(columns, coefficient, strict=True):
            found[:, :, j] = np.take_along_axis(values.reshape(rows, -1), chosen, axis=1)
        return found


def non_negative(
    gram: dict[tuple[int, int], Floats], moment: list[Floats], shape: tuple[int, ...]
) -> tuple[list[Floats], Floats]:
    """Least squares with c >= 0, nearly: columns that come out negative are left out and the rest is solved again.

    gram[j, k] (j <= k) and moment[j] broadcast to `shape`; returns the coefficients and c'Gc - 2 m'c.
    """
    count = len(moment)
    solution = [np.broadcast_to(s, shape).copy() for s in _eliminate(gram, moment)]
    inside = [np.ones(shape, dtype=bool) for _ in moment]
    flat = {key: np.broadcast_to(g, shape).ravel() for key, g in gram.items()}
    flat_moment = [np.broadcast_to(m, shape).ravel() for m in moment]
    for _ in range(count):
        negative = [inside[j] & (solution[j] < 0) for j in range(count)]
        rows = np.flatnonzero(np.any(negative, axis=0))
        if not len(rows):
            break
        for j in range(count):
            inside[j] &= ~negative[j]
        kept = [i.ravel()[rows] for i in inside]
        some = {(j, k): g[rows] * (kept[j] & kept[k]) for (j, k), g in flat.items()}
        for j in range(count):
            some[j, j] = np.where(kept[j], some[j, j], 1.0)
        again = _eliminate(some, [m[rows] * kept[j] for j, m in enumerate(flat_moment)])
        for j in range(count):
            solution[j].ravel()[rows] = again[j]
    solution = [np.maximum(s, 0) for s in solution]
    squares: Floats = np.zeros(shape)
    for (j, k), g in gram.items():
        squares = squares + (1 if j == k else 2) * g * solution[j] * solution[k]
    for j, m in enumerate(moment):
        squares = squares - 2 * m * solution[j]
    return solution, squares


def _eliminate(gram: dict[tuple[int, int], Floats], moment: list[Floats]) -> list[Floats]:
    """Solve G c = m by L D L' elimination, elementwise over cells, with a ridge of 1e-11 of the diagonal."""
    count = len(moment)
    g = {key: value * (1 + 1e-11) + 1e-300 if key[0] == key[1] else value for key, value in gram.items()}
    m = list(moment)
    for j in range(count):
        for k in range(j + 1, count):
            factor = g[j, k] / g[j, j]
            for end in range(k, count):
                g[k, end] = g[k, end] - factor * g[j, end]
            m[k] = m[k] - factor * m[j]
        for k in range(j + 1, count):  # rounding may leave nothing of a column that others span
            g[k, k] = np.maximum(g[k, k], 1e-13 * gram[k, k] + 1e-300)
    for j in reversed(range(count)):
        for k in range(j + 1, count):
            m[j] = m[j] - g[j, k] * m[k]
        m[j] = m[j] / g[j, j]
    return m


def _local_minima(squares: Floats, keep: int, fill: bool) -> np.ndarray:
    """(R, keep) flat cell indices of the lowest local minima of each (R, a, b) map, filled up with the lowest other cells."""
    flat = squares.reshape(len(squares), -1)
    if keep == 1:
        lowest_cell: np.ndarray = flat.argmin(1)[:, None]
        return lowest_cell
    padded = np.pad(squares, ((0, 0), (1, 1), (1, 1)), constant_values=np.inf)
    lowest = np.ones(squares.shape, dtype=bool)
    rows, columns = squares.shape[1:]
    for down in (0, 1, 2):
        for right in (0, 1, 2):
            lowest &= squares <= padded[:, down : down + rows, right : right + columns]
    span = np.ptp(squares, axis=(1, 2), keepdims=True) + 1
    score = np.where(lowest, squares, squares + span).reshape(len(squares), -1)
    order: np.ndarray = np.argsort(score, axis=1)[:, :keep]
    return order if fill else order[:, : min(keep, int(lowest.sum()))]
