"""Small robust fits: sums of non-negative power-law columns on the log of the loss; the objective and its derivatives.

The model of a point i, with x = ln N and y = ln D centred on their means and the loss divided by its geometric mean:

    Lhat_i = sum_j c_j s_ij,   s_ij = m_ij (constant), m_ij exp(-alpha x_i) or m_ij exp(-beta y_i),   c_j >= 0
    r_i = ln L_i - ln Lhat_i,           objective = sum_i w_i h(r_i),  h(r) = r^2/2 if |r| <= delta else delta (|r| - delta/2)

One surface has the columns (1, N, D); a power law in compute (1, N); several arms with shared exponents have columns of
their own, told apart by the 0/1 memberships m; `tied` holds alpha = beta. Without `logs`, r_i = L_i - Lhat_i. Everything
works on a batch of problems that share a design. Who finds the minimum: `analysis.descent`; starts: `analysis.projection`.
numpy only; knows no tables, arms or files (`analysis.fit` does).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from analysis.laws import Floats, floats, places

CONSTANT, IN_N, IN_D = 0, 1, 2
EXPONENT_BOUNDS = (0.01, 4.0)
FIRST_DELTA = 0.01
"""Where the stages of a delta far below it begin: about the noise of losses."""


@dataclass(frozen=True)
class Group:
    """The columns of one kind."""

    kind: int
    columns: slice  # their places among the coefficients
    slot: int | None  # place of their exponent among the parameters; None for constants
    log: Floats  # (n,) x or y; zeros for constants
    members: Floats | None  # (columns, n); None for one column that counts for all points
    moments: Floats  # (n, 1) of ones, or (n, 3) log^0, log^1, log^2


@dataclass(frozen=True)
class Problem:
    """The design of one fit, without its losses: n points, J columns, p = J + 2 parameters (c, alpha, beta)."""

    x: Floats  # (n,) ln N, centred
    y: Floats  # (n,) ln D, centred
    members: Floats  # (n, J) 1 where the column counts for the point
    kinds: tuple[int, ...]  # J of CONSTANT, IN_N, IN_D, in this order
    delta: float  # Huber's threshold on residuals; inf = least squares
    tied: bool = False  # alpha = beta
    logs: bool = True  # residuals of the log of the loss; else of the loss

    @property
    def size(self) -> int:
        return len(self.kinds) + 2

    def columns_of(self, kind: int) -> list[int]:
        return [j for j, k in enumerate(self.kinds) if k == kind]

    @cached_property
    def bounds(self) -> tuple[Floats, Floats]:
        low = floats([0.0] * len(self.kinds) + [EXPONENT_BOUNDS[0]] * 2)
        high = floats([np.inf] * len(self.kinds) + [EXPONENT_BOUNDS[1]] * 2)
        return low, high

    @cached_property
    def cells(self) -> np.ndarray:
        """(n,) which of the different places a point lies at: repeats tell of noise alone."""
        return places(np.stack([self.x, self.y], axis=1), self.members)

    @cached_property
    def unused(self) -> list[int]:
        """Indices of exponents that are no parameters: no column has them, or (tied) the first stands for both."""
        count = len(self.kinds)
        free = [count + k for k, kind in enumerate((IN_N, IN_D)) if kind not in self.kinds]
        return [count + 1] if self.tied else free

    @property
    def free_parameters(self) -> int:
        return self.size - len(self.unused)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        assert tuple(sorted(self.kinds)) == tuple(self.kinds)
        count, found = len(self.kinds), []
        for kind, log in ((CONSTANT, np.zeros_like(self.x)), (IN_N, self.x), (IN_D, self.y)):
            places = self.columns_of(kind)
            if places:
                members = self.members[:, places]
                every = len(places) == 1 and bool((members == 1).all())
                slot = None if kind == CONSTANT else count if self.tied else count + kind - 1
                moments = np.stack([log**k for k in range(1 if kind == CONSTANT else 3)], axis=1)
                columns = slice(places[0], places[-1] + 1)
                found.append(Group(kind, columns, slot, log, None if every else np.ascontiguousarray(members.T), moments))
        return tuple(found)

    @property
    def stages(self) -> list[float]:
        """Huber's deltas on the way to the problem's own, so that it is met with the right points inside."""
        if not np.isfinite(self.delta):
            return [self.delta]
        wide = [100 * self.delta, 10 * self.delta]
        while wide[0] < 10 * FIRST_DELTA:
            wide.insert(0, 10 * wide[0])
        return [*wide, self.delta]

    def target(self, log_loss: Floats) -> Floats:
        """What the residuals are taken from."""
        return log_loss if self.logs else np.exp(log_loss)


@dataclass(frozen=True)
class Solutions:
    """A batch's end points: theta (P, p), objective (P,), converged (P,)."""

    theta: Floats
    objective: Floats
    converged: np.ndarray

    def take(self, rows: np.ndarray) -> Solutions:
        return Solutions(self.theta[rows], self.objective[rows], self.converged[rows])

    @classmethod
    def join(cls, parts: list[Solutions]) -> Solutions:
        return cls(*(np.concatenate([getattr(p, f) for p in parts]) for f in ("theta", "objective", "converged")))


def huber(residual: Floats, delta: float | Floats) -> Floats:
    """h(r) above, elementwise; `delta` broadcasts."""
    size = np.abs(residual)
    core = np.minimum(size, delta)
    result: Floats = core * (size - 0.5 * core)
    return result


def weighted(residual: Floats, weight: Floats, delta: float | Floats) -> Floats:
    """(P,) sums of w h(r) over the points."""
    terms = huber(residual, delta)
    terms *= weight
    result: Floats = terms.sum(1)
    return result


@dataclass(frozen=True)
class Scratch:
    """Room for the largest arrays of a step, so that no step asks the system for memory: that costs more than arithmetic."""

    columns: Floats  # (P, J, n)
    slope: Floats  # (P, p, n)
    bent: Floats  # (P, p, n)

    @classmethod
    def of(cls, problem: Problem, rows: int) -> Scratch:
        large = (rows, problem.size, len(problem.x))
        return cls(np.empty((rows, len(problem.kinds), len(problem.x))), np.empty(large), np.empty(large))


def shapes(problem: Problem, theta: Floats, scratch: Scratch | None = None) -> tuple[Floats, Floats]:
    """The columns s (P, J, n), in `scratch` if there is one, and Lhat (P, n) at theta (P, p)."""
    scratch = Scratch.of(problem, len(theta)) if scratch is None else scratch
    found = scratch.columns[: len(theta)]
    for group in problem.groups:
        if group.slot is None:
            found[:, group.columns] = 1.0 if group.members is None else group.members
            continue
        power = np.multiply.outer(theta[:, group.slot], -group.log)
        np.exp(power, out=power)
        if group.members is None:
            found[:, group.columns.start] = power
        else:
            np.multiply(power[:, None], group.members, out=found[:, group.columns])
    value: Floats = np.matmul(theta[:, None, : len(problem.kinds)], found)[:, 0]
    return found, np.maximum(value, 1e-300, out=value)


def residuals(problem: Problem, value: Floats, target: Floats) -> Floats:
    """(P, n) r at Lhat `value`, from `Problem.target`'s."""
    result: Floats = target - (np.log(value) if problem.logs else value)
    return result


def model(problem: Problem, theta: Floats) -> tuple[Floats, Floats]:
    """Lhat (P, n) and dLhat/dtheta (P, n, p) at theta (P, p)."""
    columns, value = shapes(problem, theta)
    slope = np.zeros((len(theta), problem.size, len(problem.x)))
    slope[:, : len(problem.kinds)] = columns
    exponent_slopes(problem, theta, slope)
    return value, np.swapaxes(slope, 1, 2)


def exponent_slopes(problem: Problem, theta: Floats, slope: Floats) -> None:
    """Fill the exponents' rows of `slope` (P, p, n) from those of the coefficients: -log sum_j c_j s_j."""
    slope[:, len(problem.kinds) :] = 0.0
    for group in problem.groups:
        if group.slot is not None:
            share = np.matmul(theta[:, None, group.columns], slope[:, group.columns])[:, 0]
            share *= group.log
            slope[:, group.slot] -= share


def objective(problem: Problem, theta: Floats, log_loss: Floats, weight: Floats, delta: float) -> Floats:
    """The objective (P,) at theta (P, p); log_loss and weight are (P, n)."""
    return weighted(residuals(problem, shapes(problem, theta)[1], problem.target(log_loss)), weight, delta)


def derivatives(problem: Problem, theta: Floats, log_loss: Floats, weight: Floats, delta: float) -> tuple[Floats, Floats]:
    """Gradient (P, p) and exact Hessian (P, p, p) of the objective at theta (P, p)."""
    columns, value = shapes(problem, theta)
    residual = residuals(problem, value, problem.target(log_loss))
    return system(problem, theta, columns, value, residual, weight, delta, np.zeros(len(theta)))


def system(
    problem: Problem,
    theta: Floats,
    columns: Floats,
    value: Floats,
    residual: Floats,
    weight: Floats,
    delta: float | Floats,
    damping: Floats,
    *,
    exact: bool = True,
    scratch: Scratch | None = None,
) -> tuple[Floats, Floats]:
    """Gradient (P, p), and the Hessian (P, p, p) plus `damping` (P,) times that of iteratively reweighted least squares.

    With f = ln Lhat (or Lhat), psi = h'(r) and omega = psi / r:  gradient = -sum w psi f',  Hessian = sum w h'' f' f'^T -
    sum w psi f'', where f'' = Lhat'' / Lhat - f' f'^T (or Lhat''). The reweighted one, sum w omega f' f'^T,
    bends upwards everywhere and lies above the objective's own bend; without `exact` it stands alone, 1 + damping times.
    """
    if np.isinf(problem.delta):
        omega, second = weight, weight
    else:
        size = np.abs(residual)
        second = weight * (size <= delta)
        omega = delta / np.maximum(size, delta, out=size)
        omega *= weight
    psi = omega * residual
    bend = omega * (damping[:, None] + (0.0 if exact else 1.0))
    if exact:
        bend += second
        if problem.logs:
            bend += psi
    scratch = Scratch.of(problem, len(theta)) if scratch is None else scratch
    slope, bent = scratch.slope[: len(theta)], scratch.bent[: len(theta)]
    count = len(problem.kinds)
    if problem.logs:
        np.divide(columns, value[:, None], out=slope[:, :count])
    else:
        slope[:, :count] = columns
    exponent_slopes(problem, theta, slope)
    np.multiply(slope, bend[:, None], out=bent)
    hessian: Floats = np.matmul(bent, np.swapaxes(slope, 1, 2))
    gradient = np.zeros_like(theta)
    for group in problem.groups:
        sums = (psi[:, None] * slope[:, group.columns]) @ group.moments  # (P, columns, 1 or 3)
        gradient[:, group.columns] = -sums[:, :, 0]
        if group.slot is None:
            continue
        amount = theta[:, group.columns]
        gradient[:, group.slot] += (amount * sums[:, :, 1]).sum(1)
        if exact:
            hessian[:, group.columns, group.slot] += sums[:, :, 1]
            hessian[:, group.slot, group.columns] += sums[:, :, 1]
            hessian[:, group.slot, group.slot] -= (amount * sums[:, :, 2]).sum(1)
    return gradient, hessian
