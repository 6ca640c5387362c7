"""The bootstrap: its draws, its coverage in small simulations, its reproducibility."""

from __future__ import annotations

import numpy as np
import pytest

from analysis import fit_loss_surface, uncertainty
from analysis.descent import minimise
from analysis.isoflop import Regression
from analysis.optimum import solve
from analysis.projection import projected_starts
from analysis.solver import CONSTANT, IN_D, IN_N, Problem, objective
from analysis.table import Frame, read_points
from analysis.uncertainty import PAIRS, RESIDUAL, leverages, refit, residual_errors, stratified_counts
from tests.analysis.tables import TRUTH, isoflop_table, three_arms


def test_each_stratum_keeps_its_size_and_small_ones_are_pooled() -> None:
    strata = np.array([0, 0, 0, 0, 1, 1, 1, 2, 3, 3])
    counts = stratified_counts(strata, 500, np.random.default_rng(0))
    assert (counts[:, :4].sum(1) == 4).all()
    assert (counts[:, 4:7].sum(1) == 3).all()
    assert (counts[:, 7:].sum(1) == 3).all()
    assert set(counts[:, 7]) > {0.0, 1.0}  # a stratum of one would always be drawn once
    np.testing.assert_allclose(counts.mean(0), 1, atol=0.15)


def test_leverages_are_the_hat_matrix_and_ignore_dead_columns() -> None:
    design = np.random.default_rng(0).standard_normal((10, 3)) * [1, 1e6, 1e-6]
    expected = np.diag(design @ np.linalg.pinv(design, rcond=1e-15))
    np.testing.assert_allclose(leverages(design), expected, rtol=1e-6)
    np.testing.assert_allclose(leverages(np.column_stack([design, np.zeros(10)])), expected, rtol=1e-6)


def test_residual_errors_have_the_variance_of_the_noise_widened_for_few_degrees_of_freedom() -> None:
    rng = np.random.default_rng(0)
    residual, leverage = rng.standard_normal(11), np.full(11, 5 / 11)
    errors = residual_errors(residual, leverage, 5, 0.9, 4000, rng)
    widening = (1.943 / 1.645) ** 2  # Student's t of 6 degrees of freedom over the normal, at 5%
    assert (errors**2).mean() == pytest.approx((residual**2).sum() / 6 * widening, rel=0.01)
    assert abs(errors.mean()) < 0.05
    assert not residual_errors(residual[:5], leverage[:5], 5, 0.9, 10, rng).any()


def test_few_runs_keep_their_design_and_many_are_resampled() -> None:
    few = fit_loss_surface(isoflop_table(noise=0.01, sizes=3), resamples=20)
    many = fit_loss_surface(isoflop_table(noise=0.01, sizes=8), resamples=20)
    assert few.interval_method == RESIDUAL
    assert many.interval_method == PAIRS
    assert any("9 runs for 5 parameters" in w for w in few.warnings)
    assert not any("runs for 5 parameters" in w for w in many.warnings)


def test_intervals_depend_on_the_generator_alone() -> None:
    table = isoflop_table(noise=0.01, sizes=6)
    first, same, other = (fit_loss_surface(table, resamples=60, rng=np.random.default_rng(s)) for s in (1, 1, 2))
    assert first.intervals == same.intervals
    assert first.intervals != other.intervals
    assert first.law == other.law


def test_refits_without_enough_distinct_runs_are_counted_as_failed() -> None:
    """12 runs at 3 budgets: about one resample in a thousand holds fewer than five of them."""
    problem = Problem(np.zeros(12), np.zeros(12), np.ones((12, 3)), (CONSTANT, IN_N, IN_D), 1e-3)
    strata = np.repeat([0, 1, 2], 4)
    few = (stratified_counts(strata, 3000, np.random.default_rng(0)) > 0).sum(1) < problem.free_parameters
    assert few.any()
    fit = fit_loss_surface(isoflop_table(noise=0.01), resamples=3000, rng=np.random.default_rng(0))
    assert few.sum() <= fit.failed < 60
    assert fit.samples is not None
    assert len(fit.samples) == fit.resamples - fit.failed
    assert any(f"{fit.failed:,} of 3,000" in w for w in fit.warnings)


def test_each_refit_stops_at_its_own_optimum() -> None:
    """60 resamples of 12 noisy runs: nearly none ends over 1e-6 of its objective above the best of eight projected starts."""
    frame = Frame.of(read_points(isoflop_table(noise=0.02)))
    problem = Problem(frame.x, frame.y, np.ones((12, 3)), (CONSTANT, IN_N, IN_D), 1e-3)
    weight = stratified_counts(np.repeat([0, 1, 2], 4), 60, np.random.default_rng(0))
    losses = np.repeat(frame.log_loss[None], 60, axis=0)
    found = refit(problem, solve(problem, frame.log_loss).theta, losses, weight).objective
    starts = projected_starts(problem, losses, weight, keep=8)
    best = np.min([minimise(problem, starts[:, k], losses, weight).objective for k in range(8)], axis=0)
    assert (found <= best * (1 + 1e-6) + 1e-20).mean() >= 0.98


def test_percentile_intervals_of_the_surface_cover_the_truth() -> None:
    """24 runs, 1% noise, nominal 90%, 40 simulated studies: a coverage of 0.9 has a standard error of 0.05."""
    rng = np.random.default_rng(7)
    covered = {"alpha": 0, "loss": 0}
    simulations = 40
    for _ in range(simulations):
        table = isoflop_table(noise=0.01, sizes=8, rng=rng)
        fit = fit_loss_surface(table, objective="squares", resamples=80, rng=rng)
        low, high = fit.intervals["alpha"]
        covered["alpha"] += low <= TRUTH.alpha <= high
        low, high = fit.interval(num_params=3e8, tokens=1e10)
        covered["loss"] += low <= TRUTH.predict(3e8, 1e10) <= high
    for name, count in covered.items():
        assert count / simulations >= 0.75, (name, count)
    assert sum(covered.values()) < 2 * simulations  # intervals that always cover are too wide


def test_five_degrees_of_freedom_get_their_coverage_and_a_wild_bootstrap_would_not() -> None:
    """Exact parabolas of 4 sizes at 3 budgets (7 parameters) with noise; nominal 90%, 400 simulated studies."""
    rng = np.random.default_rng(3)
    base = isoflop_table()
    best = base["flops_budget"].map({c: TRUTH.optimal(c).num_params for c in base["flops_budget"].unique()})
    true_loss = (30 * base["flops_budget"] ** -0.06 + 0.1 * np.log(base["num_params"] / best) ** 2).to_numpy()
    regression = Regression.of(read_points(base), "shared")
    hat = regression.design @ np.linalg.pinv(regression.design)
    truth = np.log(TRUTH.optimal(1e19).num_params) - regression.centre
    covered = {"residuals": 0, "wild": 0}
    for _ in range(400):
        losses = true_loss + 0.005 * rng.standard_normal(12)
        fitted = hat @ losses
        errors = residual_errors(losses - fitted, leverages(regression.design), 7, 0.9, 200, rng)
        scaled = (losses - fitted) / np.sqrt(1 - leverages(regression.design))
        for name, drawn in (("residuals", errors), ("wild", scaled * rng.choice([-1.0, 1.0], size=(200, 12)))):
            low, high = np.quantile(regression.solve(fitted + drawn).lowest_x[:, 1], [0.05, 0.95])
            covered[name] += low <= truth <= high
    assert 0.86 <= covered["residuals"] / 400 <= 0.95
    assert covered["wild"] / 400 < 0.82


def test_refits_of_a_nearly_undetermined_law_end_where_no_small_step_leads_lower() -> None:
    """Over 90% of the refits converge."""
    problem, losses = three_arms(3)
    near, weight = solve(problem, losses[0]).theta, np.ones_like(losses)
    ends = refit(problem, near, losses, weight)
    assert ends.converged.mean() > 0.9
    low, high = problem.bounds
    assert ((ends.theta >= low) & (ends.theta <= high)).all()
    steps = 1e-5 * np.random.default_rng(0).standard_normal((50, problem.size))
    for step in steps:
        moved = np.clip(ends.theta + step, low, high)
        lower = objective(problem, moved, losses, weight, problem.delta) < ends.objective * (1 - 1e-6)
        assert not (lower & ends.converged).any()


def test_a_resamples_own_start_leads_lower_than_the_fits_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth and more of the resamples would end higher if none of their own starts went on."""
    problem, losses = three_arms(3)
    near, weight = solve(problem, losses[0]).theta, np.ones_like(losses)
    raced = refit(problem, near, losses, weight).objective
    monkeypatch.setattr(uncertainty, "RIVAL", 0.0)
    alone = refit(problem, near, losses, weight).objective
    assert (raced <= alone * (1 + 1e-6)).all()
    assert (alone > raced * 1.001).mean() > 0.1


def test_under_heavy_tails_starts_that_pass_wider_deltas_end_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    """20 cells, Student's t of two degrees of freedom: a race at the delta of 0.001 alone ends higher in one refit of fifty."""
    rng = np.random.default_rng([20, 30, 2])
    budgets, ratios = np.repeat(np.geomspace(1e18, 1e21, 4), 5), np.tile(np.geomspace(1 / 4, 4, 5), 4)
    x = np.log(np.sqrt(budgets / 120) * ratios)
    y = np.log(budgets / 6) - x
    losses = np.log(1.69 + 406.4 * np.exp(-0.34 * x) + 410.7 * np.exp(-0.28 * y))
    losses += 0.003 * rng.standard_normal(20) * rng.standard_t(2, 20)
    problem = Problem(x - x.mean(), y - y.mean(), np.ones((20, 3)), (CONSTANT, IN_N, IN_D), 1e-3)
    losses -= losses.mean()
    near, weight = solve(problem, losses).theta, stratified_counts(budgets, 500, np.random.default_rng(5))
    weight = weight[(weight > 0).sum(1) >= problem.free_parameters]
    drawn = np.repeat(losses[None], len(weight), axis=0)
    wide = refit(problem, near, drawn, weight).objective
    monkeypatch.setattr(Problem, "stages", property(lambda self: [self.delta]))
    narrow = refit(problem, near, drawn, weight).objective
    assert (narrow > wide * 1.001).mean() > 0.01
    assert (wide > narrow * 1.001).mean() < 0.005
