"""Many small robust fits at once: sums of non-negative power-law columns on the log of the loss.

The model of a point i, with x = ln N and y = ln D centred on their means and the loss divided by its geometric mean:

    Lhat_i = sum_j c_j m_ij phi_j(i),   phi = 1 (constant), exp(-alpha x_i) or exp(-beta y_i),   c_j >= 0
    r_i = ln L_i - ln Lhat_i,           objective = sum_i w_i h(r_i),  h(r) = r^2/2 if |r| <= delta else delta (|r| - delta/2)

One surface has the columns (1, N, D); a power law in compute (1, N); several arms with shared exponents have columns of
their own, told apart by the 0/1 memberships m. `projected_starts` is variable projection (Golub and Pereyra 1973): for each
(alpha, beta) of a grid the coefficients are a linear problem. `minimise` is a damped Newton method with the exact Hessian,
on a batch of problems, with the faces c_j = 0 and the exponents' bounds as active constraints. numpy only; knows no tables,
arms or files (`analysis.fit` does).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.laws import Floats, floats

CONSTANT, IN_N, IN_D = 0, 1, 2
EXPONENT_BOUNDS = (0.01, 4.0)
CACHED = 2**15  # points of the problems that are worked on together: their arrays should stay in the processor's cache


def chunk_rows(points: int) -> int:
    """Problems of `points` points each that are worked on together."""
    return min(max(CACHED // points, 64), 1024)


COARSE, FINE = ((100, 12), (10, 12)), ((1, 150),)  # multiples of Huber's delta, and the Newton steps spent at each


@dataclass(frozen=True)
class Problem:
    """The design of one fit, without its losses: n points, J columns, p = J + 2 parameters (c, alpha, beta)."""

    x: Floats  # (n,) ln N, centred
    y: Floats  # (n,) ln D, centred
    members: Floats  # (n, J) 1 where the column counts for the point
    kinds: tuple[int, ...]  # J of CONSTANT, IN_N, IN_D
    delta: float  # Huber's threshold on log residuals; inf = least squares

    @property
    def size(self) -> int:
        return len(self.kinds) + 2

    def columns_of(self, kind: int) -> list[int]:
        return [j for j, k in enumerate(self.kinds) if k == kind]

    def bounds(self) -> tuple[Floats, Floats]:
        low = floats([0.0] * len(self.kinds) + [EXPONENT_BOUNDS[0]] * 2)
        high = floats([np.inf] * len(self.kinds) + [EXPONENT_BOUNDS[1]] * 2)
        return low, high

    def unused(self) -> list[int]:
        """Indices of exponents that no column has: they are held where they are."""
        return [len(self.kinds) + k for k, kind in enumerate((IN_N, IN_D)) if kind not in self.kinds]

    @property
    def free_parameters(self) -> int:
        return self.size - len(self.unused())


@dataclass(frozen=True)
class Solutions:
    """A batch's end points: theta (P, p), objective (P,), converged (P,)."""

    theta: Floats
    objective: Floats
    converged: np.ndarray

    def take(self, rows: np.ndarray) -> Solutions:
        return Solutions(self.theta[rows], self.objective[rows], self.converged[rows])


def huber(residual: Floats, delta: float) -> Floats:
    """h(r) above, elementwise."""
    size = np.abs(residual)
    if not np.isfinite(delta):
        return 0.5 * size * size
    core = np.minimum(size, delta)
    return core * (size - 0.5 * core)


def model(problem: Problem, theta: Floats) -> tuple[Floats, Floats]:
    """Lhat (P, n) and dLhat/dtheta (P, n, p) at theta (P, p)."""
    count = len(problem.kinds)
    alpha, beta = theta[:, count, None], theta[:, count + 1, None]
    powers = {CONSTANT: np.ones((len(theta), len(problem.x)))}
    powers[IN_N] = np.exp(-alpha * problem.x)
    powers[IN_D] = np.exp(-beta * problem.y)
    slope = np.zeros((len(theta), len(problem.x), problem.size))
    for j, kind in enumerate(problem.kinds):
        slope[:, :, j] = powers[kind] * problem.members[:, j]
    value = np.einsum("pnj,pj->pn", slope[:, :, :count], theta[:, :count])
    for k, (kind, log) in enumerate(((IN_N, problem.x), (IN_D, problem.y))):
        for j in problem.columns_of(kind):
            slope[:, :, count + k] -= theta[:, j, None] * slope[:, :, j] * log
    return np.maximum(value, 1e-300), slope


def objective(problem: Problem, theta: Floats, log_loss: Floats, weight: Floats, delta: float) -> Floats:
    """The objective (P,) at theta (P, p); log_loss and weight are (P, n)."""
    count = len(problem.kinds)
    value = np.zeros_like(log_loss)
    for kind, power in (
        (CONSTANT, np.ones((1, 1))),
        (IN_N, np.exp(-theta[:, count, None] * problem.x)),
        (IN_D, np.exp(-theta[:, count + 1, None] * problem.y)),
    ):
        columns = problem.columns_of(kind)
        if columns:
            value = value + power * (theta[:, columns] @ problem.members[:, columns].T)
    result: Floats = (weight * huber(log_loss - np.log(np.maximum(value, 1e-300)), delta)).sum(1)
    return result


def derivatives(problem: Problem, theta: Floats, log_loss: Floats, weight: Floats, delta: float) -> tuple[Floats, Floats, Floats]:
    """Gradient (P, p), exact Hessian (P, p, p) and a positive scale for its diagonal (P, p) of the objective.

    With f = ln Lhat and psi = h'(r):  gradient = -sum w psi f',  Hessian = sum w (h'' + psi) f' f'^T - sum w psi Lhat'' / Lhat.
    """
    count = len(problem.kinds)
    value, slope = model(problem, theta)
    residual = log_loss - np.log(value)
    size = np.abs(residual)
    psi = weight * np.clip(residual, -delta, delta)
    inside = weight * (size <= delta)
    unit = slope / value[:, :, None]
    gradient = -np.einsum("pn,pnk->pk", psi, unit)
    hessian = np.matmul(np.swapaxes(unit * (inside + psi)[:, :, None], 1, 2), unit)
    for k, (kind, log) in enumerate(((IN_N, problem.x), (IN_D, problem.y))):
        mixed = psi * log
        for j in problem.columns_of(kind):
            cross = (mixed * unit[:, :, j]).sum(1)
            hessian[:, j, count + k] += cross
            hessian[:, count + k, j] += cross
            hessian[:, count + k, count + k] -= theta[:, j] * (mixed * log * unit[:, :, j]).sum(1)
    reweighted = weight * np.minimum(1.0, delta / np.maximum(size, 1e-300))
    scale = np.einsum("pn,pnk->pk", reweighted, unit * unit)
    return gradient, hessian, np.maximum(scale, 1e-14 * scale.max(1, keepdims=True) + 1e-300)


def minimise(
    problem: Problem,
    start: Floats,
    log_loss: Floats,
    weight: Floats,
    *,
    tolerance: float = 1e-14,
    stages: tuple[tuple[int, int], ...] = COARSE + FINE,
) -> Solutions:
    """Local minima from `start` (P, p); log_loss and weight are (P, n); `tolerance` is relative, on the objective.

    Huber's delta shrinks through the stages, so that the nearly absolute deviation is met with the right points inside.
    """
    parts = []
    size = chunk_rows(len(problem.x))
    for first in range(0, len(start), size):
        rows = slice(first, first + size)
        theta = start[rows]
        for stage, steps in stages if np.isfinite(problem.delta) else FINE:
            part = _newton(problem, theta, log_loss[rows], weight[rows], problem.delta * stage, steps, tolerance)
            theta = part.theta
        parts.append(part)
    return Solutions(*(np.concatenate([getattr(p, f) for p in parts]) for f in ("theta", "objective", "converged")))


def _newton(
    problem: Problem, start: Floats, log_loss: Floats, weight: Floats, delta: float, steps: int, tolerance: float
) -> Solutions:
    """Levenberg-Marquardt damping of the exact Newton step, projected on the bounds; a problem leaves when it stands still."""
    low, high = problem.bounds()
    theta = np.clip(start, low, high)
    value = objective(problem, theta, log_loss, weight, delta)
    damping = np.full(len(theta), 1e-3)
    still = np.zeros(len(theta), dtype=int)
    active = np.arange(len(theta))
    for _ in range(steps):
        now, losses, weights = theta[active], log_loss[active], weight[active]
        step = _step(problem, now, derivatives(problem, now, losses, weights, delta), damping[active])
        new = np.clip(now + step, low, high)
        reached = objective(problem, new, losses, weights, delta)
        before = value[active]
        better = reached < before
        small = np.abs(new - now).max(1) < 1e-12
        done = np.where(better, before - reached <= tolerance * before, small | (damping[active] > 1e9)) | (before < 1e-28)
        theta[active[better]], value[active[better]] = new[better], reached[better]
        damping[active] = np.where(better, np.maximum(damping[active] * 0.15, 1e-13), damping[active] * 5)
        still[active] = np.where(done, still[active] + 1, 0)
        active = active[still[active] < 2]
        if not len(active):
            break
    converged = np.ones(len(theta), dtype=bool)
    converged[active] = False
    return Solutions(theta, value, converged)


def _step(problem: Problem, theta: Floats, parts: tuple[Floats, Floats, Floats], damping: Floats) -> Floats:
    """The damped Newton step; parameters held at a bound (the gradient points outwards) do not move."""
    gradient, hessian, scale = parts
    low, high = problem.bounds()
    held = ((theta <= low) & (gradient > 0)) | ((theta >= high) & (gradient < 0))
    held[:, problem.unused()] = True
    for k, kind in enumerate((IN_N, IN_D)):  # an exponent whose columns are all 0 has no slope
        columns = problem.columns_of(kind)
        if columns:
            held[:, len(problem.kinds) + k] |= (theta[:, columns] == 0).all(1)
    free = ~held
    diagonal = np.arange(problem.size)
    system = hessian * free[:, :, None] * free[:, None, :]
    system[:, diagonal, diagonal] += np.where(free, damping[:, None] * scale, 1.0)
    try:
        step = np.linalg.solve(system, -(gradient * free)[:, :, None])[:, :, 0]
    except np.linalg.LinAlgError:  # an exactly singular one in the batch: the diagonal alone still descends
        step = -(gradient * free) / (scale * (1 + damping[:, None]))
    uphill = (step * gradient).sum(1) > 0  # an indefinite Hessian: follow the scaled gradient instead
    step[uphill] = -(gradient * free / scale)[uphill] / (1 + damping[uphill, None])
    largest = np.abs(step[:, -2:]).max(1)  # exponents move by at most 0.5, so that no power overflows on the way
    result: Floats = step * np.minimum(1, 0.5 / np.maximum(largest, 1e-300))[:, None]
    return result


def exponent_grid(problem: Problem, points: int) -> Floats:
    """(cells, 2) pairs of exponents, denser where laws have them; one value for an exponent that no column has."""
    axis = np.geomspace(0.03, 2.5, points)
    axes = [axis if kind in problem.kinds else floats([1.0]) for kind in (IN_N, IN_D)]
    return np.stack([g.ravel() for g in np.meshgrid(*axes, indexing="ij")], axis=1)


def projected_starts(problem: Problem, log_loss: Floats, weight: Floats, *, keep: int, points: int = 20) -> Floats:
    """(R, keep, p) starts by variable projection, best first: the local minima of the projected sum of squares on the grid.

    The linear problem is in the loss with weights w / L^2, which is the log residual to first order.
    """
    grid = exponent_grid(problem, points)
    shape = tuple(points if kind in problem.kinds else 1 for kind in (IN_N, IN_D))
    count = len(problem.kinds)
    _, slope = model(problem, np.concatenate([np.ones((len(grid), count)), grid], axis=1))
    basis = slope[:, :, :count]  # (cells, n, J)
    products = np.einsum("gnj,gnk->ngjk", basis, basis).reshape(len(problem.x), -1)
    flat = basis.transpose(1, 0, 2).reshape(len(problem.x), -1)
    starts = []
    size = chunk_rows(len(problem.x)) // 4 + 1
    for first in range(0, len(log_loss), size):
        loss = np.exp(log_loss[first : first + size])
        scaled = weight[first : first + size] / loss**2
        gram = (scaled @ products).reshape(len(loss), len(grid), count, count)
        moment = ((scaled * loss) @ flat).reshape(len(loss), len(grid), count)
        coefficient = _non_negative(gram, moment)
        squares = ((coefficient[:, :, None, :] @ gram)[:, :, 0, :] * coefficient - 2 * moment * coefficient).sum(-1)
        chosen = _local_minima(squares.reshape(len(loss), *shape), keep)
        rows = np.arange(len(loss))[:, None]
        exponents = np.broadcast_to(grid, (len(loss), *grid.shape))
        starts.append(np.concatenate([coefficient[rows, chosen], exponents[rows, chosen]], axis=-1))
    return np.concatenate(starts)


def _non_negative(gram: Floats, moment: Floats) -> Floats:
    """Least squares with c >= 0, nearly: columns that come out negative are left out and the rest is solved again."""
    count = gram.shape[-1]
    diagonal = np.arange(count)
    inside = np.ones(moment.shape, dtype=bool)
    ridge = 1e-11 * gram[..., diagonal, diagonal]
    for _ in range(count):
        system = gram * inside[..., :, None] * inside[..., None, :]
        system[..., diagonal, diagonal] += np.where(inside, ridge, 1.0) + 1e-300
        solution = np.linalg.solve(system, (moment * inside)[..., None])[..., 0]
        negative = inside & (solution < 0)
        if not negative.any():
            break
        inside &= ~negative
    result: Floats = np.maximum(solution, 0)
    return result


def _local_minima(squares: Floats, keep: int) -> np.ndarray:
    """(R, keep) flat cell indices of the lowest local minima of each (R, a, b) map, filled up with the lowest other cells."""
    padded = np.pad(squares, ((0, 0), (1, 1), (1, 1)), constant_values=np.inf)
    lowest = np.ones(squares.shape, dtype=bool)
    rows, columns = squares.shape[1:]
    for down in (0, 1, 2):
        for right in (0, 1, 2):
            lowest &= squares <= padded[:, down : down + rows, right : right + columns]
    span = np.ptp(squares, axis=(1, 2), keepdims=True) + 1
    score = np.where(lowest, squares, squares + span).reshape(len(squares), -1)
    order: np.ndarray = np.argsort(score, axis=1)[:, :keep]
    return order
