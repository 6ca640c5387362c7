"""Many small robust fits at once: sums of non-negative power-law columns on the log of the loss.

The model of a point i, with x = ln N and y = ln D centred on their means and the loss divided by its geometric mean:

    Lhat_i = sum_j c_j m_ij phi_j(i),   phi = 1 (constant), exp(-alpha x_i) or exp(-beta y_i),   c_j >= 0
    r_i = ln L_i - ln Lhat_i,           objective = sum_i w_i h(r_i),  h(r) = r^2/2 if |r| <= delta else delta (|r| - delta/2)

One surface has the columns (1, N, D); a power law in compute (1, N); several arms with shared exponents have columns of
their own, told apart by the 0/1 memberships m; `tied` holds alpha = beta. `minimise` is a damped Newton method with the exact
Hessian, on a batch of problems, with the faces c_j = 0 and the exponents' bounds as active constraints. Sums over points are
matrix products with fixed tables, so that no array has an axis for both points and parameters. Starts: `analysis.projection`.
numpy only; knows no tables, arms or files (`analysis.fit` does).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from analysis.laws import Floats, floats

CONSTANT, IN_N, IN_D = 0, 1, 2
EXPONENT_BOUNDS = (0.01, 4.0)
CACHED = 2**15  # points of the problems that are worked on together: their arrays should stay in the processor's cache
FIRST_DELTA = 0.01
"""Where the stages of a delta far below it begin: about the noise of losses."""
COARSE_STEPS, FINE_STEPS, COARSE_TOLERANCE = 12, 150, 1e-4


def chunk_rows(points: int) -> int:
    """Problems of `points` points each that are worked on together."""
    return min(max(CACHED // points, 32), 1024)


@dataclass(frozen=True)
class Group:
    """The columns of one kind, and the tables that sum over points."""

    columns: np.ndarray  # their places among theta
    slot: int | None  # place of their exponent; None for constants
    log: Floats  # (n,) x or y; zeros for constants
    members: Floats  # (n, J)

    @property
    def powers(self) -> int:
        """Powers of `log` in a first derivative: 1 for constants, 2 where there is an exponent."""
        return 1 if self.slot is None else 2

    @cached_property
    def first(self) -> Floats:
        """(n, (powers + 1) J) members times log^k."""
        count = 1 if self.slot is None else 3
        return np.concatenate([self.members * self.log[:, None] ** k for k in range(count)], axis=1)

    def second(self, other: Group) -> Floats:
        """(n, powers J x powers' J') products of two groups' first derivatives, in the order that `lift` takes."""
        own, others = (g.first[:, : g.powers * g.members.shape[1]] for g in (self, other))
        return (own[:, :, None] * others[:, None, :]).reshape(len(self.log), -1)

    @cached_property
    def places(self) -> np.ndarray:
        """Places of the group's parameters among theta."""
        return self.columns if self.slot is None else np.append(self.columns, self.slot)


@dataclass(frozen=True)
class Problem:
    """The design of one fit, without its losses: n points, J columns, p = J + 2 parameters (c, alpha, beta)."""

    x: Floats  # (n,) ln N, centred
    y: Floats  # (n,) ln D, centred
    members: Floats  # (n, J) 1 where the column counts for the point
    kinds: tuple[int, ...]  # J of CONSTANT, IN_N, IN_D
    delta: float  # Huber's threshold on log residuals; inf = least squares
    tied: bool = False  # alpha = beta

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
        """Indices of exponents that are no parameters: no column has them, or (tied) the first stands for both."""
        count = len(self.kinds)
        free = [count + k for k, kind in enumerate((IN_N, IN_D)) if kind not in self.kinds]
        return [count + 1] if self.tied else free

    @property
    def free_parameters(self) -> int:
        return self.size - len(self.unused())

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        count, found = len(self.kinds), []
        for kind, log in ((CONSTANT, np.zeros_like(self.x)), (IN_N, self.x), (IN_D, self.y)):
            columns = self.columns_of(kind)
            if columns:
                slot = None if kind == CONSTANT else count + kind - 1
                found.append(Group(np.array(columns), slot, log, self.members[:, columns]))
        return tuple(found)

    @cached_property
    def pairs(self) -> tuple[tuple[int, int, Floats, slice], ...]:
        """Each pair of groups with its table, and where its sums stand among those of all pairs."""
        found, end = [], 0
        for i, group in enumerate(self.groups):
            for k in range(i, len(self.groups)):
                table = group.second(self.groups[k])
                found.append((i, k, table, slice(end, end + table.shape[1])))
                end += table.shape[1]
        return tuple(found)

    @cached_property
    def features(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """First derivatives as features phi m_j log^k of all groups, q of them: (q, q) where the sums of each two stand among
        those of all pairs, and the parameter (q,), coefficient (q,; -1: none) and sign (q,) of each feature's share."""
        sizes = [g.powers * g.members.shape[1] for g in self.groups]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        index = np.empty((starts[-1], starts[-1]), dtype=int)
        for i, k, _, where in self.pairs:
            block = np.arange(where.start, where.stop).reshape(sizes[i], sizes[k])
            index[starts[i] : starts[i + 1], starts[k] : starts[k + 1]] = block
            index[starts[k] : starts[k + 1], starts[i] : starts[i + 1]] = block.T
        parameter, amount, sign = [], [], []
        for g in self.groups:
            parameter += [*g.columns, *([g.slot] * len(g.columns) if g.slot is not None else [])]
            amount += [-1] * len(g.columns) + (list(g.columns) if g.slot is not None else [])
            sign += [1.0] * len(g.columns) + ([-1.0] * len(g.columns) if g.slot is not None else [])
        return index, np.array(parameter), np.array(amount), np.array(sign)

    def lift(self, theta: Floats) -> Floats:
        """(P, p, q): dLhat / dtheta in terms of the features, m_j for c_j and -c_j log m_j for an exponent."""
        _, parameter, amount, sign = self.features
        found = np.zeros((len(theta), self.size, len(parameter)))
        found[:, parameter, np.arange(len(parameter))] = sign * np.where(amount < 0, 1.0, theta[:, amount])
        return found

    @property
    def stages(self) -> list[float]:
        """Huber's deltas on the way to the problem's own, so that it is met with the right points inside."""
        if not np.isfinite(self.delta):
            return [self.delta]
        wide = [100 * self.delta, 10 * self.delta]
        while wide[0] < 10 * FIRST_DELTA:
            wide.insert(0, 10 * wide[0])
        return [*wide, self.delta]


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


def huber(residual: Floats, delta: float) -> Floats:
    """h(r) above, elementwise."""
    size = np.abs(residual)
    if not np.isfinite(delta):
        return 0.5 * size * size
    core = np.minimum(size, delta)
    return core * (size - 0.5 * core)


def _weighted(residual: Floats, weight: Floats, delta: float) -> Floats:
    result: Floats = np.einsum("pn,pn->p", weight, huber(residual, delta))
    return result


@dataclass
class State:
    """What derivatives need at theta: phi of each group (None for constants), Lhat and the residuals, all (P, n)."""

    phi: list[Floats | None]
    value: Floats
    residual: Floats

    @classmethod
    def at(cls, problem: Problem, theta: Floats, log_loss: Floats) -> State:
        phi: list[Floats | None] = []
        value: Floats = np.zeros(1)
        for group in problem.groups:
            amount = theta[:, group.columns]
            part = amount if (group.members == 1).all() and len(group.columns) == 1 else amount @ group.members.T
            power = None if group.slot is None else np.exp(theta[:, group.slot, None] * -group.log)
            phi.append(power)
            value = value + (part if power is None else part * power)
        value = np.maximum(np.broadcast_to(value, log_loss.shape), 1e-300)
        return cls(phi, value, log_loss - np.log(value))

    def arrays(self) -> Iterator[Floats]:
        yield from (p for p in self.phi if p is not None)
        yield self.value
        yield self.residual

    def take(self, rows: np.ndarray) -> State:
        return State([None if p is None else p[rows] for p in self.phi], self.value[rows], self.residual[rows])

    def accept(self, other: State, rows: np.ndarray) -> State:
        """`other` where `rows`, else this."""
        if rows.all():
            return other
        for mine, theirs in zip(self.arrays(), other.arrays(), strict=True):
            mine[rows] = theirs[rows]
        return self


def model(problem: Problem, theta: Floats) -> tuple[Floats, Floats]:
    """Lhat (P, n) and dLhat/dtheta (P, n, p) at theta (P, p)."""
    count = len(problem.kinds)
    slope = np.zeros((len(theta), len(problem.x), problem.size))
    for group in problem.groups:
        power = np.ones((len(theta), 1)) if group.slot is None else np.exp(theta[:, group.slot, None] * -group.log)
        slope[:, :, group.columns] = power[:, :, None] * group.members
        if group.slot is not None:
            slope[:, :, group.slot] = -(slope[:, :, group.columns] @ theta[:, group.columns, None])[:, :, 0] * group.log
    value = np.matmul(slope[:, :, :count], theta[:, :count, None])[:, :, 0]
    return np.maximum(value, 1e-300), slope


def objective(problem: Problem, theta: Floats, log_loss: Floats, weight: Floats, delta: float) -> Floats:
    """The objective (P,) at theta (P, p); log_loss and weight are (P, n)."""
    return _weighted(State.at(problem, theta, log_loss).residual, weight, delta)


def derivatives(problem: Problem, theta: Floats, log_loss: Floats, weight: Floats, delta: float) -> tuple[Floats, Floats, Floats]:
    """Gradient (P, p), exact Hessian (P, p, p) and a positive scale for its diagonal (P, p) of the objective.

    With f = ln Lhat and psi = h'(r):  gradient = -sum w psi f',  Hessian = sum w (h'' + psi) f' f'^T - sum w psi Lhat'' / Lhat.
    """
    return _derivatives(problem, theta, State.at(problem, theta, log_loss), weight, delta)


def _derivatives(problem: Problem, theta: Floats, state: State, weight: Floats, delta: float) -> tuple[Floats, Floats, Floats]:
    if np.isfinite(delta):
        clipped = np.clip(state.residual, -delta, delta)
        psi = weight * clipped
        curved = weight * (clipped == state.residual) + psi
        reweighted = np.divide(psi, state.residual, out=weight.copy(), where=state.residual != 0)
    else:
        psi, reweighted = weight * state.residual, weight
        curved = weight + psi
    inverse = 1 / state.value
    unit = [inverse if p is None else p * inverse for p in state.phi]
    bent = [curved * u for u in unit]
    index = problem.features[0]
    sums, own = np.zeros((2, len(theta), int(index.max()) + 1))
    for i, k, table, where in problem.pairs:
        sums[:, where] = (bent[i] * unit[k]) @ table
        if i == k:
            own[:, where] = (reweighted * unit[i] * unit[i]) @ table
    lift = problem.lift(theta)
    hessian = lift @ sums[:, index] @ np.swapaxes(lift, 1, 2)
    scale = ((lift @ own[:, index]) * lift).sum(2)
    gradient = np.zeros_like(theta)
    for group, u in zip(problem.groups, unit, strict=True):
        _slopes(group, theta, (psi * u) @ group.first, gradient, hessian)
    return gradient, hessian, np.maximum(scale, 1e-14 * scale.max(1, keepdims=True) + 1e-300)


def _slopes(group: Group, theta: Floats, sums: Floats, gradient: Floats, hessian: Floats) -> None:
    """Add what is linear in psi, of the gradient and the Hessian; `sums` (P, 3 J) are those of psi phi m log^k / Lhat."""
    count = len(group.columns)
    gradient[:, group.columns] = -sums[:, :count]
    if group.slot is None:
        return
    amount, once, twice = theta[:, group.columns], sums[:, count : 2 * count], sums[:, 2 * count :]
    gradient[:, group.slot] = (amount * once).sum(1)
    hessian[:, group.columns, group.slot] += once
    hessian[:, group.slot, group.columns] += once
    hessian[:, group.slot, group.slot] -= (amount * twice).sum(1)


def minimise(
    problem: Problem,
    start: Floats,
    log_loss: Floats,
    weight: Floats,
    *,
    tolerance: float = 1e-14,
    skip: int = 0,
    coarse: int = COARSE_STEPS,
    fine: bool = True,
) -> Solutions:
    """Local minima from `start` (P, p); log_loss and weight are (P, n); `tolerance` is relative, on the objective.

    `coarse` steps are spent at each of the wider deltas (0: none) but the first `skip`; `fine` ends at the problem's own.
    """
    stages = [(delta, coarse, COARSE_TOLERANCE) for delta in problem.stages[skip:-1] if coarse]
    stages += [(problem.delta, FINE_STEPS, tolerance)] * fine
    parts = []
    size = chunk_rows(len(problem.x))
    for first in range(0, len(start), size):
        rows = slice(first, first + size)
        part = Solutions(start[rows], np.empty(0), np.empty(0))
        for delta, steps, until in stages:
            part = _newton(problem, part.theta, log_loss[rows], weight[rows], delta, steps, until)
        parts.append(part)
    return Solutions.join(parts)


def _newton(
    problem: Problem, start: Floats, log_loss: Floats, weight: Floats, delta: float, steps: int, tolerance: float
) -> Solutions:
    """Levenberg-Marquardt damping of the exact Newton step, projected on the bounds; a problem leaves when it stands still."""
    low, high = problem.bounds()
    end = np.clip(start, low, high)
    now = end.copy()
    state = State.at(problem, now, log_loss)
    value = _weighted(state.residual, weight, delta)
    reached_value = value.copy()
    damping, still = np.full(len(now), 1e-3), np.zeros(len(now), dtype=int)
    active = np.arange(len(now))
    for _ in range(steps):
        step = _step(problem, now, _derivatives(problem, now, state, weight, delta), damping)
        new = np.clip(now + step, low, high)
        trial = State.at(problem, new, log_loss)
        reached = _weighted(trial.residual, weight, delta)
        better = reached < value
        small = np.abs(new - now).max(1) < 1e-12
        done = np.where(better, value - reached <= tolerance * value, small | (damping > 1e9)) | (value < 1e-28)
        state = state.accept(trial, better)
        now, value = np.where(better[:, None], new, now), np.where(better, reached, value)
        damping = np.where(better, np.maximum(damping * 0.15, 1e-13), damping * 5)
        still = np.where(done, still + 1, 0)
        left = still >= 2
        if left.any():
            end[active[left]], reached_value[active[left]] = now[left], value[left]
            keep = ~left
            active, now, value, damping, still = active[keep], now[keep], value[keep], damping[keep], still[keep]
            state, log_loss, weight = state.take(keep), log_loss[keep], weight[keep]
            if not len(active):
                break
    end[active], reached_value[active] = now, value
    converged = np.ones(len(end), dtype=bool)
    converged[active] = False
    return Solutions(end, reached_value, converged)


def _step(problem: Problem, theta: Floats, parts: tuple[Floats, Floats, Floats], damping: Floats) -> Floats:
    """The damped Newton step; parameters held at a bound (the gradient points outwards) do not move."""
    gradient, hessian, scale = parts
    count = len(problem.kinds)
    if problem.tied:  # one exponent: its derivatives are the sums of the two
        for array in (gradient, scale, hessian, np.swapaxes(hessian, 1, 2)):
            array[:, count] += array[:, count + 1]
    low, high = problem.bounds()
    held = ((theta <= low) & (gradient > 0)) | ((theta >= high) & (gradient < 0))
    held[:, problem.unused()] = True
    for k, kind in enumerate((IN_N, IN_D)):  # an exponent whose columns are all 0 has no slope
        columns = problem.columns_of(kind)
        if columns and not problem.tied:
            held[:, count + k] |= (theta[:, columns] == 0).all(1)
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
    if problem.tied:
        step[:, count + 1] = step[:, count]
    largest = np.abs(step[:, -2:]).max(1)  # exponents move by at most 0.5, so that no power overflows on the way
    result: Floats = step * np.minimum(1, 0.5 / np.maximum(largest, 1e-300))[:, None]
    return result
