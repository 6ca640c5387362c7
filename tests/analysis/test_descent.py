"""The Newton method on a batch: steps along bounds, and what it calls converged."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from analysis import descent
from analysis.descent import minimise
from analysis.optimum import solve
from analysis.solver import CONSTANT, IN_D, IN_N, Problem, derivatives
from analysis.uncertainty import refit, stratified_counts
from tests.analysis.tables import three_arms


def two_arms(seed: int) -> tuple[Problem, np.ndarray, np.ndarray]:
    """18 correlated runs of two arms, least squares of seven parameters: (problem, losses (40, 18), weights (40, 18))."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1.5, 1.5, 18)
    y = 0.8 * x + 0.3 * rng.standard_normal(18)
    arms = np.eye(2)[np.arange(18) % 2]
    problem = Problem(x, y, np.concatenate([np.ones((18, 1)), arms, arms], axis=1), (CONSTANT, IN_N, IN_N, IN_D, IN_D), np.inf)
    losses = np.log(0.05 + 0.2 * np.exp(-0.3 * x) + arms @ [0.3, 0.0] * np.exp(-0.3 * y)) + 0.01 * rng.standard_normal(18)
    return problem, np.repeat(losses[None], 40, axis=0), stratified_counts(np.arange(18) % 2, 40, rng)


def test_from_any_corner_of_the_bounds_a_step_lowers_a_convex_model() -> None:
    """Every parameter on its lower bound, every gradient inwards: Newton's step leaves the bounds on several sides at once."""
    problem = two_arms(0)[0]
    rng, rows = np.random.default_rng(0), 500
    factors = rng.standard_normal((rows, problem.size, problem.size))
    hessian = factors @ factors.transpose(0, 2, 1)
    gradient = -rng.uniform(0.1, 1, (rows, problem.size))
    theta, held = np.repeat(problem.bounds[0][None], rows, axis=0), np.zeros((rows, problem.size), dtype=bool)
    step = -np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]
    assert ((step < 0).sum(1) > 3).any()
    gain = -(step * gradient).sum(1)
    descent._stay_inside(problem, theta, gradient, hessian, held, step, gain)
    assert (theta + step >= problem.bounds[0]).all()
    change = (step * gradient).sum(1) + 0.5 * np.einsum("bi,bij,bj->b", step, hessian, step)
    assert (change < 0).all()
    np.testing.assert_allclose(gain, -2 * change)


def test_refits_that_are_called_converged_have_no_slope_along_a_free_parameter() -> None:
    """Karush, Kuhn and Tucker's conditions: among 40 resamples one meets more than three bounds in one step."""
    problem, losses, weight = two_arms(80)
    ends = refit(problem, solve(problem, losses[0]).theta, losses, weight)
    assert ends.converged.mean() > 0.9
    slope = derivatives(problem, ends.theta, losses, weight, problem.delta)[0]
    low, high = problem.bounds
    outwards = ((ends.theta <= low) & (slope > 0)) | ((ends.theta >= high) & (slope < 0))
    free = np.abs(np.where(outwards, 0.0, slope)).max(1) / ends.objective
    assert free[ends.converged].max() < 0.1


def test_a_start_from_which_every_way_is_barred_is_no_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, losses, weight = two_arms(0)
    start = np.repeat((0.5 * (problem.bounds[0] + np.minimum(problem.bounds[1], 1.0)))[None], len(losses), axis=0)
    assert minimise(problem, start, losses, weight).converged.mean() > 0.9

    def barred(*arrays: object) -> None:
        step, gain = arrays[-2:]
        assert isinstance(step, np.ndarray)
        assert isinstance(gain, np.ndarray)
        step[:], gain[:] = 0.0, 0.0

    monkeypatch.setattr(descent, "_stay_inside", barred)
    assert not minimise(problem, start, losses, weight).converged.any()


def row_steps(problem: Problem, losses: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> int:
    """Steps of all refits from the first one's optimum, 150 at most each."""
    count, advance = 0, descent._advance

    def counted(work: descent.Work, batch: descent.Batch) -> np.ndarray:
        nonlocal count
        count += len(batch.row)
        return advance(work, batch)

    near = np.repeat(solve(problem, losses[0]).theta[None], len(losses), axis=0)
    with monkeypatch.context() as patched:
        patched.setattr(descent, "_advance", counted)
        minimise(problem, near, losses, np.ones_like(losses), tolerance=1e-9, deltas=[problem.delta])
    return count


@pytest.mark.parametrize(
    ("name", "idle"),
    [
        ("_corrected", lambda problem, batch, scratch, moved, hessian, held, rows: moved[0][rows].copy()),
        ("_least_between", lambda before, after, weight, delta: np.ones(len(before))),
    ],
    ids=["bent", "cut"],
)
def test_bent_and_cut_steps_each_save_a_tenth_of_the_steps_along_curved_valleys(
    name: str, idle: Callable[..., np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without bends 1.2 times the steps, without cuts 1.3 times."""
    problem, losses = three_arms(6)
    steps = row_steps(problem, losses, monkeypatch)
    monkeypatch.setattr(descent, name, idle)
    assert row_steps(problem, losses, monkeypatch) > 1.1 * steps
