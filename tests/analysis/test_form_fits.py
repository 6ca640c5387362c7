"""Fits of over-training, repeated data, accuracy, cubic profiles and least absolute deviation: known truths and refusals."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from analysis import FormFit, IsoflopFit, fit_accuracy, fit_isoflop, fit_loss_surface, fit_overtraining, fit_repetition
from analysis.forms import ChanceSigmoid, OvertrainingLaw, RepetitionLaw
from analysis.laws import IsoflopCubic
from lst.errors import FitError
from tests.analysis.tables import TRUTH, isoflop_table

OVER = OvertrainingLaw(E=1.7, a=150.0, b=420.0, eta=0.15)
REPEATED = RepetitionLaw(E=1.87, A=521.0, B=1488.0, alpha=0.35, beta=0.35, data_decay=15.0, params_decay=5.0)
ENDINGS = ChanceSigmoid(midpoint=2.6, slope=-3.0, chance=0.25)


def over_table(noise: float = 0.0) -> pd.DataFrame:
    c, m = (g.ravel() for g in np.meshgrid(np.geomspace(1e18, 1e20, 4), np.array([20.0, 80.0, 320.0])))
    n = np.sqrt(c / 6 / m)
    scatter = np.exp(noise * np.random.default_rng(0).standard_normal(len(n)))
    return pd.DataFrame({"num_params": n, "tokens": m * n, "train_flops": c, "loss": OVER.predict(c, m) * scatter})


def repeated_table(noise: float = 0.0) -> pd.DataFrame:
    rows = [(n, d, 1e13) for n in (1e8, 4e8, 1.6e9) for d in (2e9, 8e9, 3.2e10)]
    rows += [(n, epochs * 4e9, 4e9) for n in (1e8, 4e8, 3e9) for epochs in (2, 6, 20, 60)]
    n, d, u = np.array(rows).T
    scatter = np.exp(noise * np.random.default_rng(1).standard_normal(len(n)))
    return pd.DataFrame({"num_params": n, "tokens": d, "unique_tokens": u, "loss": REPEATED.predict(n, d, u) * scatter})


def accuracy_table(items: int, runs: int = 16, law: ChanceSigmoid = ENDINGS, seed: int = 0) -> pd.DataFrame:
    losses = np.linspace(2.0, 3.6, runs)
    share = np.random.default_rng(seed).binomial(items, law.predict(losses)) / items
    flops = 1e18 * np.exp((3.6 - losses) * 5)
    return pd.DataFrame({"loss": losses, "train_flops": flops, "accuracy": share, "n_items": items})


@pytest.mark.parametrize("objective", ["huber", "squares"])
def test_overtraining_is_recovered_from_points_without_noise(objective: str) -> None:
    fit = fit_overtraining(over_table(), objective=objective, resamples=0)
    np.testing.assert_allclose(fit.law.values(), OVER.values(), rtol=1e-5)
    assert fit.extra["best_ratio"] == pytest.approx(OVER.best_ratio, rel=1e-4)


def test_overtraining_predicts_another_ratio_with_an_interval_and_through_json() -> None:
    fit = fit_overtraining(over_table(noise=0.003), objective="squares", resamples=200)
    low, high = fit.interval("value", 1e20, 200.0)
    assert low < OVER.predict(1e20, 200.0) < high
    with pytest.raises(FitError, match="tokens_per_param=640 lies outside"):
        fit.predict(1e20, 640.0)
    assert fit.predict(1e20, 640.0, extrapolate=True) == pytest.approx(float(OVER.predict(1e20, 640.0)), rel=0.02)
    again = FormFit.from_json(json.loads(json.dumps(fit.to_json())))
    assert again == fit
    assert again.interval("value", 1e20, 200.0) == (low, high)
    assert "eta" in repr(fit)


def test_overtraining_at_one_ratio_is_refused() -> None:
    table = over_table()
    with pytest.raises(FitError, match="two ratios"):
        fit_overtraining(table[np.isclose(table["tokens"] / table["num_params"], 20.0)])


def test_decays_of_repeated_data_are_recovered_and_the_surface_comes_from_unrepeated_runs() -> None:
    fit = fit_repetition(repeated_table(), objective="squares", resamples=0)
    np.testing.assert_allclose(fit.law.values(), REPEATED.values(), rtol=1e-3)
    given = fit_repetition(repeated_table(noise=0.002), base=REPEATED.surface, resamples=100)
    low, high = given.intervals["data_decay"]
    assert low < 15 < high
    assert given.law.surface == REPEATED.surface
    assert "held" in repr(given)
    assert any("surface of unrepeated data is held" in w for w in given.warnings)


def test_repetition_without_repeats_is_refused() -> None:
    table = repeated_table()
    with pytest.raises(FitError, match="0 runs saw a token twice"):
        fit_repetition(table[table["tokens"] <= table["unique_tokens"]])


def test_accuracy_law_is_recovered_from_exact_shares() -> None:
    table = accuracy_table(1000).assign(accuracy=lambda t: ENDINGS.predict(t["loss"]))
    fit = fit_accuracy(table, chance=0.25, resamples=0)
    np.testing.assert_allclose(fit.law.values(), ENDINGS.values(), rtol=1e-6)
    assert fit.extra["dispersion"] == pytest.approx(0, abs=1e-8)
    direct = fit_accuracy(table, chance=0.25, against="flops", resamples=0)
    assert direct.law.slope == pytest.approx(3.0 / 5, rel=1e-6)
    assert direct.predict(table["train_flops"][3]) == pytest.approx(ENDINGS.predict(table["loss"][3]), rel=1e-6)


@pytest.mark.parametrize("runs", [8, 16])
def test_accuracy_intervals_cover_the_midpoint(runs: int) -> None:
    """Nominal 90%, 60 studies: between 80% and 98% is what a right interval gives nearly always."""
    covered = 0
    for seed in range(60):
        fit = fit_accuracy(accuracy_table(400, runs=runs, seed=seed), chance=0.25, resamples=150)
        low, high = fit.intervals["midpoint"]
        covered += low <= 2.6 <= high
    assert 48 <= covered <= 59


def test_more_scatter_than_binomial_is_told() -> None:
    table = accuracy_table(2000)
    table["accuracy"] += np.resize([0.05, -0.05], len(table))
    fit = fit_accuracy(table, chance=0.25, resamples=0)
    assert fit.extra["dispersion"] > 5
    assert any("times as much as binomial" in w for w in fit.warnings)


def test_accuracy_at_chance_is_refused() -> None:
    flat = replace(ENDINGS, midpoint=-5.0)
    with pytest.raises(FitError, match="no accuracy can be told from chance"):
        fit_accuracy(accuracy_table(200, law=flat), chance=0.25)


@pytest.mark.parametrize(
    ("change", "options", "sentence"),
    [
        ({"accuracy": 45.0}, {}, "shares in 0..1, not percent"),
        ({}, {"chance": 1.0}, "chance=1.0"),
        ({}, {"against": "los"}, "did you mean 'loss'"),
        ({"loss": 2.5}, {}, "1 distinct value of loss"),
    ],
)
def test_unusable_accuracies_are_refused(change: dict[str, float], options: dict[str, object], sentence: str) -> None:
    with pytest.raises(FitError, match=sentence):
        fit_accuracy(accuracy_table(200).assign(**change), **({"chance": 0.25} | options))  # type: ignore[arg-type]


def test_accuracy_that_falls_with_the_loss_is_refused() -> None:
    table = accuracy_table(2000)
    with pytest.raises(FitError, match="does not rise as the loss falls"):
        fit_accuracy(table.assign(accuracy=table["accuracy"].to_numpy()[::-1]), chance=0.25)


def test_cubic_profiles_find_a_skewed_minimum_that_parabolas_miss() -> None:
    table = isoflop_table(budgets=(1e18, 1e19, 1e20), sizes=7)
    best = table["flops_budget"].map({c: TRUTH.optimal(c).num_params for c in table["flops_budget"].unique()})
    law = IsoflopCubic(floor=2.5, curvature=0.08, skew=0.02, log_optimal_params=0.0)
    table["loss"] = law.predict(np.exp(np.log(table["num_params"] / best)))
    cubic, parabola = (fit_isoflop(table, shape=shape, curvature="shared", resamples=0) for shape in ("cubic", "parabola"))
    for budget, mine, theirs in zip((1e18, 1e19, 1e20), cubic.profiles, parabola.profiles, strict=True):
        truth = TRUTH.optimal(budget).num_params
        assert mine.optimal_params == pytest.approx(truth, rel=1e-6)
        assert mine.parabola is not None
        assert mine.parabola.values()[:3] == pytest.approx([2.5, 0.08, 0.02], rel=1e-5)
        assert theirs.optimal_params != pytest.approx(truth, rel=0.02)
    assert IsoflopFit.from_json(json.loads(json.dumps(cubic.to_json()))) == cubic
    assert "skew" in repr(cubic)


def test_cubic_without_an_interior_minimum_is_a_status_and_needs_four_sizes() -> None:
    falling = isoflop_table(budgets=(1e18, 1e19), sizes=5)
    falling["loss"] = 5 - 0.1 * np.log(falling["num_params"])
    with pytest.raises(FitError, match="no budget has an interior minimum"):
        fit_isoflop(falling, shape="cubic", resamples=0)
    with pytest.raises(FitError, match="a cubic needs a budget with four"):
        fit_isoflop(isoflop_table(sizes=3), shape="cubic", resamples=0)
    with pytest.raises(FitError, match="did you mean 'cubic'"):
        fit_isoflop(isoflop_table(), shape="cubik", resamples=0)


def test_least_absolute_deviation_ignores_an_outlier_and_reports_the_sum_of_deviations() -> None:
    table = isoflop_table(sizes=6)
    table.loc[7, "loss"] *= 1.1
    fit = fit_loss_surface(table, objective="absolute", resamples=0)
    np.testing.assert_allclose(fit.law.values(), TRUTH.values(), rtol=1e-4)
    assert fit.objective == pytest.approx(np.log(1.1), rel=1e-4)
    assert fit.delta is None
    assert "least absolute deviation" in repr(fit)


def test_runs_of_one_budget_have_no_law_of_compute() -> None:
    """Their FLOPs differ by rounding of steps; what more FLOPs would do they cannot say."""
    flops = [1e18, 1.001e18, 1.002e18, 1.0005e18]
    table = pd.DataFrame({"train_flops": flops, "accuracy": [0.4, 0.45, 0.5, 0.42], "n_items": 1000})
    with pytest.raises(FitError, match=r"1 distinct value of flops, to 5.0%"):
        fit_accuracy(table, chance=0.25, against="flops", resamples=0)


def test_a_slope_that_may_be_0_leaves_the_midpoint_without_an_interval() -> None:
    losses = np.linspace(2.2, 2.4, 6)
    table = pd.DataFrame({"loss": losses, "accuracy": [0.42, 0.38, 0.41, 0.36, 0.40, 0.37], "n_items": 200})
    fit = fit_accuracy(table, chance=0.25, resamples=200)
    assert set(fit.intervals) == {"slope"}
    assert fit.intervals["slope"][0] <= 0 <= fit.intervals["slope"][1]
    assert "cannot tell whether accuracy rises" in fit.warnings[0]
    assert "held" not in next(line for line in repr(fit).splitlines() if "midpoint" in line)
