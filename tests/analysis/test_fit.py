"""L(N, D) and L(C): recovery of known truths, the optimum of published points, faces, refusals, results."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from analysis import LossSurface, SurfaceFit, fit_loss_surface, fit_power_law
from analysis.descent import minimise
from analysis.optimum import least_squares, projected_gradient, solve
from analysis.projection import projected_starts
from analysis.results import PowerLawFit
from analysis.solver import CONSTANT, IN_D, IN_N, Problem, derivatives, objective
from analysis.table import Frame, read_points
from lst.errors import FitError
from tests.analysis.tables import TRUTH, isoflop_table

SOUGHT = [p / "shared" / "data" / "chinchilla_points.csv" for p in Path(__file__).resolve().parents]
CHINCHILLA = next((p for p in SOUGHT if p.is_file()), SOUGHT[0])


def problem_of(table: pd.DataFrame, delta: float = 1e-3) -> tuple[Problem, Frame]:
    frame = Frame.of(read_points(table))
    return Problem(frame.x, frame.y, np.ones((len(table), 3)), (CONSTANT, IN_N, IN_D), delta), frame


@pytest.mark.parametrize("loss", ["huber", "squares", "loss_squares"])
@pytest.mark.parametrize("law", [TRUTH, LossSurface(E=0.4, A=5e3, B=40.0, alpha=0.5, beta=0.15)], ids=["usual", "skewed"])
def test_noise_free_points_give_back_the_law(law: LossSurface, loss: str) -> None:
    fit = fit_loss_surface(isoflop_table(law=law), objective=loss, resamples=0)
    np.testing.assert_allclose(fit.law.values(), law.values(), rtol=1e-6)
    assert fit.objective < 1e-20
    assert not fit.on_bound


def test_five_points_are_enough_and_leave_no_interval() -> None:
    """A golden with as many points as parameters: the law goes through all of them."""
    n = np.array([1e7, 1e8, 1e9, 1e7, 1e9])
    d = np.array([1e9, 3e9, 1e10, 1e11, 1e9])
    fit = fit_loss_surface(pd.DataFrame({"num_params": n, "tokens": d, "loss": TRUTH.predict(n, d)}))
    np.testing.assert_allclose(fit.predict(n, d), TRUTH.predict(n, d), rtol=1e-8)
    assert fit.intervals == {}
    assert any("no degree of freedom" in w for w in fit.warnings)


def test_solver_gradient_and_hessian_equal_central_differences() -> None:
    table = isoflop_table(noise=0.02)
    problem, frame = problem_of(table, delta=0.015)
    theta = np.array([0.55, 0.2, 0.22, 0.4, 0.3])
    losses, weight = frame.log_loss[None], np.linspace(0.5, 2, 12)[None]
    gradient, hessian = derivatives(problem, theta[None], losses, weight, problem.delta)
    for k in range(5):
        move = np.zeros(5)
        move[k] = 1e-6
        ends = [(theta + side * move)[None] for side in (1, -1)]
        slope = [objective(problem, e, losses, weight, problem.delta)[0] for e in ends]
        assert gradient[0, k] == pytest.approx((slope[0] - slope[1]) / 2e-6, rel=1e-5, abs=1e-9)
        bend = [derivatives(problem, e, losses, weight, problem.delta)[0][0] for e in ends]
        np.testing.assert_allclose(hessian[0, k], (bend[0] - bend[1]) / 2e-6, rtol=1e-4, atol=1e-7)


def test_least_squares_of_the_loss_itself_is_what_scipy_finds() -> None:
    table = isoflop_table(noise=0.02, sizes=8)
    fit = fit_loss_surface(table, objective="loss_squares", resamples=0)
    n, d, loss = (table[name].to_numpy() for name in ("num_params", "tokens", "loss"))

    def residual(p: np.ndarray) -> np.ndarray:
        return p[0] + p[1] * (n / 1e8) ** -p[3] + p[2] * (d / 1e10) ** -p[4] - loss

    start = [fit.law.E, fit.law.A * 1e8**-fit.law.alpha, fit.law.B * 1e10**-fit.law.beta, fit.law.alpha, fit.law.beta]
    end = optimize.least_squares(residual, start, xtol=1e-14, ftol=1e-14, gtol=1e-14)
    assert fit.objective == pytest.approx(end.cost, rel=1e-9)
    assert fit.objective == pytest.approx(((fit.law.predict(n, d) - loss) ** 2).sum() / 2, rel=1e-9)
    assert "least squares of the loss itself" in repr(fit)


@pytest.mark.parametrize("delta", [1e-3, 1e-2, np.inf])
def test_no_start_of_many_ends_below_the_optimum(delta: float) -> None:
    """Few points, heavy tails, noise up to 10%: tables of several minima, each solved from 60 starts all over as well."""
    rng = np.random.default_rng(3)
    for points, noise in ((6, 0.02), (8, 0.1), (12, 0.005), (16, 0.1), (24, 0.02)):
        n, d = np.exp(rng.uniform(np.log(1e7), np.log(1e10), points)), np.exp(rng.uniform(np.log(1e8), np.log(1e12), points))
        loss = TRUTH.predict(n, d) * np.exp(noise * np.clip(rng.standard_t(2, points), -10, 10))
        problem, frame = problem_of(pd.DataFrame({"num_params": n, "tokens": d, "loss": loss}), delta)
        best = solve(problem, frame.log_loss).objective
        starts = np.concatenate([rng.uniform(0, 1.2, (60, 3)), np.exp(rng.uniform(np.log(0.02), np.log(3), (60, 2)))], axis=1)
        losses = np.broadcast_to(frame.log_loss, (60, points))
        ends = minimise(problem, starts, losses, np.ones_like(losses))
        assert best <= ends.objective.min() * (1 + 1e-6)


TABLES = st.integers(6, 14).flatmap(
    lambda n: st.tuples(
        *[st.lists(st.floats(low, high), min_size=n, max_size=n) for low, high in ((16, 23), (18, 28), (-0.3, 0.3))]
    )
)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(TABLES, st.sampled_from(["huber", "squares", "loss_squares"]), st.randoms(use_true_random=False))
def test_any_table_is_fitted_or_refused_whatever_its_rows_order_and_units(
    logs: tuple[list[float], ...], objective: str, random: Random
) -> None:
    """Noise up to 35%: no traceback, no number that JSON lacks, the same fit of shuffled rows and in thousands."""
    n, d, noise = (np.array(values) for values in logs)
    table = pd.DataFrame({"num_params": np.exp(n), "tokens": np.exp(d)})
    table["loss"] = TRUTH.predict(table["num_params"], table["tokens"]) * np.exp(noise)
    try:
        fit = fit_loss_surface(table, objective=objective, resamples=5)
    except FitError:
        return
    json.dumps(fit.to_json(), allow_nan=False)
    order = list(range(len(table)))
    random.shuffle(order)
    shuffled = fit_loss_surface(table.iloc[order], objective=objective, resamples=0)
    np.testing.assert_allclose(shuffled.law.values(), fit.law.values(), rtol=1e-12)
    thousands = table.assign(num_params=table["num_params"] / 1e3, tokens=table["tokens"] / 1e3)
    scaled = fit_loss_surface(thousands, objective=objective, resamples=0)
    assert scaled.objective == pytest.approx(fit.objective, rel=1e-6, abs=1e-18)


@pytest.mark.parametrize("factor", [1e80, 1e-80])
def test_values_that_overflow_are_refused(factor: float) -> None:
    table = isoflop_table()
    with pytest.raises(FitError, match="units"):
        fit_loss_surface(table.assign(loss=table["loss"] * factor))


def test_projected_start_of_noise_free_points_is_near_the_optimum() -> None:
    problem, frame = problem_of(isoflop_table())
    start = projected_starts(problem, frame.log_loss[None], np.ones((1, 12)), keep=1, points=40)[0, 0]
    assert abs(start[3] - TRUTH.alpha) < 0.06
    assert abs(start[4] - TRUTH.beta) < 0.06


def test_solution_meets_its_conditions_and_is_not_above_scipy_from_many_starts() -> None:
    problem, frame = problem_of(isoflop_table(noise=0.02, sizes=8), delta=1e-2)
    best = solve(problem, frame.log_loss)
    assert np.abs(projected_gradient(problem, best.theta, frame.log_loss)).max() < 1e-6
    for alpha in (0.1, 0.3, 0.8):
        for beta in (0.1, 0.3, 0.8):
            end = least_squares(problem, np.array([0.5, 0.2, 0.2, alpha, beta]), frame.log_loss)
            value = objective(problem, end[None], frame.log_loss[None], np.ones((1, 24)), problem.delta)[0]
            assert best.objective <= value * (1 + 1e-9)


@pytest.mark.skipif(
    not CHINCHILLA.is_file(), reason="the published points have no licence file, so the project does not ship them"
)
@pytest.mark.parametrize(
    ("objective", "expected", "digits"),
    [
        ("huber", {"E": 1.817218, "A": 477.826, "B": 2143.417, "alpha": 0.347311, "beta": 0.367172}, 2e-6),
        ("absolute", {"E": 1.8169, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}, 2e-4),
    ],
)
def test_optimum_of_the_published_chinchilla_points(objective: str, expected: dict[str, float], digits: float) -> None:
    """240 points of Besiroglu et al. 2024 (the five highest losses dropped): Huber on log loss, delta 1e-3; and theirs."""
    raw = pd.read_csv(CHINCHILLA)
    table = pd.DataFrame({"num_params": raw["Model Size"], "loss": raw["loss"]})
    table["tokens"] = raw["Training FLOP"] / 6 / table["num_params"]
    fit = fit_loss_surface(table.sort_values("loss").iloc[:-5], objective=objective, resamples=0)
    assert fit.n == 240
    if objective == "huber":
        assert fit.objective == pytest.approx(0.001018274017801, rel=1e-6)
    for name, value in expected.items():
        assert getattr(fit.law, name) == pytest.approx(value, rel=digits), name


@pytest.mark.parametrize("name", ["E", "A", "B"])
def test_truth_on_a_face_is_found_and_told(name: str) -> None:
    law = LossSurface(**(TRUTH.to_json() | {name: 0.0}))
    n, d = (g.ravel() for g in np.meshgrid(np.geomspace(1e7, 1e9, 4), np.geomspace(1e9, 1e11, 4)))
    fit = fit_loss_surface(pd.DataFrame({"num_params": n, "tokens": d, "loss": law.predict(n, d)}), resamples=0)
    np.testing.assert_allclose(fit.predict(n, d), law.predict(n, d), rtol=1e-6)
    scale = {"E": 1.0, "A": 1e7**-fit.law.alpha, "B": 1e9**-fit.law.beta}[name]
    assert getattr(fit.law, name) * scale < 1e-4
    if getattr(fit.law, name) == 0:
        assert any(w.startswith(f"{name} ended on its bound") for w in fit.warnings)


def test_loss_below_the_face_ends_on_it_with_a_warning() -> None:
    """Losses that fall faster than any positive asymptote allows: E must be exactly 0."""
    n, d = (g.ravel() for g in np.meshgrid(np.geomspace(1e7, 1e9, 5), np.geomspace(1e9, 1e11, 5)))
    loss = 30 * n**-0.1 + 30 * d**-0.1 - 0.6
    fit = fit_loss_surface(pd.DataFrame({"num_params": n, "tokens": d, "loss": loss}), resamples=0)
    assert fit.law.E == 0
    assert "E" in fit.on_bound
    assert any("E ended on its bound" in w for w in fit.warnings)


def one_value(column: str, value: float) -> pd.DataFrame:
    table = isoflop_table()
    table.loc[3, column] = value
    return table


REFUSED = {
    "fewer points than parameters": (isoflop_table().iloc[:4], "4 points cannot fix the 5 parameters"),
    "constant loss": (isoflop_table().assign(loss=2.5), "all 12 losses equal 2.5"),
    "nan": (one_value("loss", float("nan")), "loss=nan in row 4"),
    "zero": (one_value("num_params", 0.0), "num_params=0.0 in row 4"),
    "negative": (one_value("tokens", -1.0), "tokens=-1.0 in row 4"),
    "one ray": (isoflop_table().assign(tokens=lambda t: 20 * t["num_params"]), "one ray"),
    "one size": (isoflop_table().assign(num_params=1e8), "num_params takes only 1"),
    "missing column": (isoflop_table().drop(columns="loss"), "no column 'loss'"),
    "two arms": (isoflop_table().assign(arm=["baseline", "lst"] * 6), r"mixes 2 values of arm \(baseline, lst\)"),
    "two data sets": (isoflop_table().assign(data_id=["a", "b"] * 6), "mixes 2 values of data_id"),
    "no rows": (isoflop_table().iloc[:0], "no rows"),
}


@pytest.mark.parametrize("case", REFUSED, ids=lambda c: c.replace(" ", "-"))
def test_table_that_cannot_support_a_surface_is_refused(case: str) -> None:
    table, sentence = REFUSED[case]
    with pytest.raises(FitError, match=sentence):
        fit_loss_surface(table, resamples=0)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"objective": "hubre"}, "did you mean 'huber'"),
        ({"delta": 0.0}, "delta=0.0"),
        ({"level": 1.5}, "level=1.5"),
        ({"resamples": -1}, "resamples=-1"),
    ],
)
def test_option_out_of_range_is_refused(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(FitError, match=sentence):
        fit_loss_surface(isoflop_table(), **options)  # type: ignore[arg-type]


def test_result_predicts_prints_and_goes_through_json() -> None:
    table = isoflop_table(noise=0.01, sizes=8)
    fit = fit_loss_surface(table, resamples=100)
    again = SurfaceFit.from_json(json.loads(json.dumps(fit.to_json())))
    assert again == fit
    assert again.interval(num_params=1e8, tokens=1e10) == fit.interval(num_params=1e8, tokens=1e10)
    low, high = fit.interval("optimal_params", flops=1e19)
    assert low < fit.optimal(1e19).num_params < high
    assert fit.interval("alpha") == fit.intervals["alpha"]
    assert fit.beyond_data(1e21) == pytest.approx(10, rel=1e-6)
    shown = repr(fit)
    assert "alpha" in shown
    assert "24 points" in shown
    light = SurfaceFit.from_json(fit.to_json(samples=False))
    with pytest.raises(FitError, match="no bootstrap samples"):
        light.interval(num_params=1e8, tokens=1e10)
    with pytest.raises(FitError, match="lacks"):
        SurfaceFit.from_json({k: v for k, v in fit.to_json().items() if k != "objective"})


def test_fine_delta_against_the_noise_is_told() -> None:
    fit = fit_loss_surface(isoflop_table(noise=0.05, sizes=10), resamples=0)
    assert any("Huber's delta" in w for w in fit.warnings)
    assert not any(
        "Huber's delta" in w for w in fit_loss_surface(isoflop_table(noise=0.05), objective="squares", resamples=0).warnings
    )


def test_influence_of_an_outlier_is_bounded_by_delta() -> None:
    """An outlier pulls with force delta at most: a tenth of the delta, a tenth of the error; least squares is pulled far."""
    table = isoflop_table(sizes=6)
    table.loc[7, "loss"] *= 1.1
    wide, narrow = (abs(fit_loss_surface(table, delta=d, resamples=0).law.alpha - TRUTH.alpha) for d in (1e-3, 1e-4))
    squares = abs(fit_loss_surface(table, objective="squares", resamples=0).law.alpha - TRUTH.alpha)
    assert narrow == pytest.approx(wide / 10, rel=0.1)
    assert squares > 10 * wide


def test_power_law_with_and_without_asymptote() -> None:
    c = np.geomspace(1e17, 1e21, 6)
    with_asymptote = fit_power_law(pd.DataFrame({"train_flops": c, "loss": 1.5 + 900 * c**-0.15}), resamples=0)
    np.testing.assert_allclose(with_asymptote.law.values(), [900, -0.15, 1.5], rtol=1e-6)
    plain = fit_power_law(pd.DataFrame({"train_flops": c, "loss": 60 * c**-0.07}), asymptote=False, resamples=50)
    np.testing.assert_allclose(plain.law.values(), [60, -0.07, 0], rtol=1e-6)
    assert PowerLawFit.from_json(json.loads(json.dumps(plain.to_json()))) == plain
    assert plain.interval(flops=1e19) == pytest.approx((60 * 1e19**-0.07,) * 2, rel=1e-4)


def test_power_law_refuses_too_few_budgets() -> None:
    table = pd.DataFrame({"train_flops": [1e18, 1e18, 1e19], "loss": [3.0, 3.1, 2.5]})
    with pytest.raises(FitError, match="fewer than 3 distinct"):
        fit_power_law(table)
