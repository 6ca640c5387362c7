"""Starts by variable projection (Golub and Pereyra 1973): given the exponents, the coefficients are a linear problem.

For each (alpha, beta) of a grid the coefficients c >= 0 minimise sum_i w_i ((L_i - Lhat_i) / L_i)^2, which is the sum of squared
log residuals to first order; the local minima over the grid are starts of `analysis.solver`. All resamples and all cells
at once: the sums over points are one matrix product. numpy only.
"""

from __future__ import annotations

import numpy as np

from analysis.laws import Floats, floats
from analysis.solver import CONSTANT, IN_D, IN_N, Problem, chunk_rows

EXPONENTS = (0.03, 2.5)
"""Ends of the grid, denser where laws have them."""


def exponent_axis(points: int) -> Floats:
    return floats(np.geomspace(*EXPONENTS, points))


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
    """(R, keep, p) starts, best first: local minima of the projected sum of squares on the grid.

    Where there are fewer than `keep` the lowest other cells stand in; without `fill` (one fit only) they are left out.
    """
    axis = exponent_axis(points)
    shape = tuple(points if kind in problem.kinds else 1 for kind in (IN_N, IN_D))
    shape = (points, 1) if problem.tied else shape
    columns = _columns(problem, axis)
    count = len(problem.kinds)
    products = {(j, k): columns[j] * columns[k] for j in range(count) for k in range(j, count)}
    table = np.concatenate([a.reshape(len(problem.x), -1) for a in (*products.values(), *columns)], axis=1)
    sizes = [a.shape[1:] for a in (*products.values(), *columns)]
    ends = np.cumsum([a * b for a, b in sizes])
    starts = []
    step = chunk_rows(len(problem.x))
    for first in range(0, len(log_loss), step):
        loss = np.exp(log_loss[first : first + step])
        scaled = weight[first : first + step] / loss**2
        half = ends[len(products) - 1]
        sums = np.concatenate([scaled @ table[:, :half], (scaled * loss) @ table[:, half:]], axis=1)
        parts = [s.reshape(len(loss), *size) for s, size in zip(np.split(sums, ends[:-1], axis=1), sizes, strict=True)]
        gram = dict(zip(products, parts[: len(products)], strict=True))
        coefficient, squares = non_negative(gram, parts[len(products) :], (len(loss), *shape))
        chosen = _local_minima(squares, keep, fill)
        rows = np.arange(len(loss))[:, None]
        flat = np.stack([np.broadcast_to(c, squares.shape).reshape(len(loss), -1)[rows, chosen] for c in coefficient], axis=-1)
        starts.append(np.concatenate([flat, exponent_grid(problem, points)[chosen]], axis=-1))
    return np.concatenate(starts)


def _columns(problem: Problem, axis: Floats) -> list[Floats]:
    """Each column on the grid: (n, a, 1) for those in N, (n, 1, b) for those in D (on the first axis where tied), (n, 1, 1)."""
    in_n, in_d = (np.exp(-np.outer(log, axis)) for log in (problem.x, problem.y))
    shapes = {
        CONSTANT: np.ones((len(problem.x), 1, 1)),
        IN_N: in_n[:, :, None],
        IN_D: in_d[:, :, None] if problem.tied else in_d[:, None, :],
    }
    return [shapes[kind] * problem.members[:, j, None, None] for j, kind in enumerate(problem.kinds)]


def non_negative(
    gram: dict[tuple[int, int], Floats], moment: list[Floats], shape: tuple[int, ...]
) -> tuple[list[Floats], Floats]:
    """Least squares with c >= 0, nearly: columns that come out negative are left out and the rest is solved again.

    gram[j, k] (j <= k) and moment[j] broadcast to `shape`; returns the coefficients and c'Gc - 2 m'c.
    """
    count = len(moment)
    solution = [np.broadcast_to(s, shape).copy() for s in _eliminate(gram, moment)]
    inside = [np.ones(shape, dtype=bool) for _ in moment]
    for _ in range(count):
        negative = [inside[j] & (solution[j] < 0) for j in range(count)]
        rows = np.flatnonzero(np.any(negative, axis=0))
        if not len(rows):
            break
        for j in range(count):
            inside[j] &= ~negative[j]
        kept = [i.ravel()[rows] for i in inside]
        some = {(j, k): np.broadcast_to(g, shape).ravel()[rows] * (kept[j] & kept[k]) for (j, k), g in gram.items()}
        for j in range(count):
            some[j, j] = np.where(kept[j], some[j, j], 1.0)
        again = _eliminate(some, [np.broadcast_to(m, shape).ravel()[rows] * kept[j] for j, m in enumerate(moment)])
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
