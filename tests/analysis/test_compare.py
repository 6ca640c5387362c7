"""Compute multiplier and shared exponents of arms whose efficiency is known; refusals."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from analysis import MultiplierCurve, SharedFit, compute_multiplier, fit_shared_exponents
from analysis.compare import _falling_inverse, _inverse
from lst.errors import FitError
from tests.analysis.tables import TRUTH, isoflop_table

DENSE = tuple(np.geomspace(1e18, 1e20, 9))


def two_arms(
    efficiency: float, *, noise: float = 0.0, budgets: tuple[float, ...] = DENSE, sizes: int = 5, seed: int = 0
) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    base = isoflop_table(noise=noise, budgets=budgets, sizes=sizes, rng=rng)
    arm = isoflop_table(noise=noise, budgets=budgets, sizes=sizes, rng=rng, efficiency=efficiency, arm="lst")
    return pd.concat([base, arm], ignore_index=True)


@pytest.mark.parametrize("method", ["envelope", "law"])
@pytest.mark.parametrize("efficiency", [0.7, 1.0, 1.4])
def test_multiplier_of_a_known_efficiency(efficiency: float, method: str) -> None:
    """An arm that makes e times of its tokens needs C / e FLOPs at the optimum. 3% is the parabolas' misfit."""
    curve = compute_multiplier(two_arms(efficiency), "lst", method=method, resamples=200)
    assert curve.mean == pytest.approx(efficiency, rel=0.03)
    assert np.allclose(curve.multiplier, efficiency, rtol=0.06)
    assert all(low <= m <= high for low, m, high in zip(curve.low, curve.multiplier, curve.high, strict=True))
    assert curve.predict(np.mean(curve.overlap)) == pytest.approx(efficiency, rel=0.06)


def test_curve_stays_inside_the_overlap() -> None:
    table = two_arms(1.4)
    curve = compute_multiplier(table, "lst", resamples=0)
    best = table.groupby(["arm", "flops_budget"])["loss"].min()
    assert curve.overlap[0] >= best["baseline"].min() * 0.99
    assert curve.overlap[1] <= best["lst"].max() * 1.01
    assert max(curve.losses) == pytest.approx(curve.overlap[1])
    assert np.isnan(curve.predict(curve.overlap[0] * 0.9))
    assert max(curve.baseline_flops) <= DENSE[-1] * 1.001


def test_identical_arms_have_an_interval_that_holds_one() -> None:
    curve = compute_multiplier(two_arms(1.0, noise=0.005), "lst", resamples=300)
    interval = curve.interval()
    assert interval is not None
    assert interval[0] < 1 < interval[1]
    assert any("cannot tell the arms apart" in w for w in curve.warnings)


def test_large_gain_has_an_interval_above_one() -> None:
    curve = compute_multiplier(two_arms(1.5, noise=0.005), "lst", resamples=300)
    assert curve.mean_interval is not None
    assert curve.mean_interval[0] > 1
    assert not any("cannot tell" in w for w in curve.warnings)


def test_arm_with_one_size_is_compared_with_a_warning() -> None:
    table = two_arms(1.3, noise=0.002, budgets=(1e18, 1e19, 1e20), sizes=4)
    thin = table[(table["arm"] == "baseline") | (table.groupby(["arm", "flops_budget"]).cumcount() == 1)]
    curve = compute_multiplier(thin, "lst", resamples=200)
    told = " ".join(curve.warnings)
    assert "too few sizes" in told
    assert "3 budgets" in told
    assert "noise of one arm is taken from the other" in told
    assert curve.low


def test_no_degree_of_freedom_gives_no_band() -> None:
    table = two_arms(1.3, budgets=(1e18, 1e20), sizes=1)
    curve = compute_multiplier(table, "lst", resamples=200)
    assert curve.low == ()
    assert curve.mean_interval is None
    assert any("no band" in w for w in curve.warnings)


def test_losses_that_do_not_overlap_are_refused() -> None:
    table = two_arms(1.0)
    table.loc[table["arm"] == "lst", "loss"] *= 0.5
    with pytest.raises(FitError, match="do not overlap"):
        compute_multiplier(table, "lst")


def test_baseline_with_one_budget_is_refused() -> None:
    table = two_arms(1.2)
    with pytest.raises(FitError, match="one budget only"):
        compute_multiplier(table[(table["arm"] == "lst") | (table["flops_budget"] == DENSE[0])], "lst")


@pytest.mark.parametrize(("arm", "options"), [("lts", {}), ("lst", {"method": "envelop"}), ("lst", {"baseline": "basline"})])
def test_unknown_names_are_refused_with_the_nearest(arm: str, options: dict[str, str]) -> None:
    with pytest.raises(FitError, match="did you mean"):
        compute_multiplier(two_arms(1.2), arm, **options)  # type: ignore[arg-type]


def test_table_without_arms_is_refused() -> None:
    with pytest.raises(FitError, match="no column 'arm'"):
        compute_multiplier(isoflop_table().drop(columns="arm"), "lst")


@pytest.mark.parametrize("factors", ["compute", "separate"])
def test_shared_exponents_recover_a_known_efficiency(factors: str) -> None:
    table = two_arms(1.4, budgets=(1e18, 1e19, 1e20), sizes=4)
    fit = fit_shared_exponents(table, factors=factors, resamples=0)
    assert fit.efficiencies["lst"]["compute"] == pytest.approx(1.4, rel=1e-4)
    if factors == "separate":
        assert fit.efficiencies["lst"]["params"] == pytest.approx(1, rel=1e-4)
        assert fit.efficiencies["lst"]["data"] == pytest.approx(1.4, rel=1e-4)
    np.testing.assert_allclose(fit.law.values(), TRUTH.values(), rtol=1e-3)


def test_shared_compute_factor_is_in_true_flops_where_an_arm_costs_more_a_token() -> None:
    """The arm learns as the baseline does, but each token costs 1.25 times 6N: its compute multiplier is 1 / 1.25."""
    table = two_arms(1.0, budgets=(1e18, 1e19, 1e20), sizes=4)
    dear = table["arm"] == "lst"
    table.loc[dear, ["train_flops", "flops_budget"]] *= 1.25
    fit = fit_shared_exponents(table, resamples=0)
    assert fit.efficiencies["lst"]["compute"] == pytest.approx(0.8, rel=1e-4)
    assert fit.tokens_meaning.startswith("train_flops")


def test_shared_separate_refuses_an_arm_with_one_size_a_budget() -> None:
    table = two_arms(1.3, budgets=(1e18, 1e19, 1e20), sizes=4)
    thin = table[(table["arm"] == "baseline") | (table.groupby(["arm", "flops_budget"]).cumcount() == 1)]
    with pytest.raises(FitError, match="one size a budget"):
        fit_shared_exponents(thin, factors="separate", resamples=0)
    assert fit_shared_exponents(thin, resamples=0).efficiencies["lst"]["compute"] == pytest.approx(1.3, rel=1e-3)


def test_shared_needs_a_second_arm() -> None:
    with pytest.raises(FitError, match="no arm beside"):
        fit_shared_exponents(isoflop_table(), resamples=0)


def test_results_go_through_json() -> None:
    table = two_arms(1.3, noise=0.003, budgets=(1e18, 1e19, 1e20), sizes=4)
    curve = compute_multiplier(table, "lst", resamples=50)
    assert MultiplierCurve.from_json(json.loads(json.dumps(curve.to_json()))) == curve
    shared = fit_shared_exponents(table, resamples=50)
    assert SharedFit.from_json(json.loads(json.dumps(shared.to_json()))) == shared
    assert "lst: compute 1.3" in repr(shared)
    assert "MultiplierCurve" in repr(curve)


def test_curves_are_inverted_together_as_one_by_one() -> None:
    log_flops, at = np.log(np.array(DENSE)), np.linspace(0.8, 1.3, 9)
    falling = 1.3 - 0.06 * np.arange(9) + 0.01 * np.random.default_rng(0).random((5, 9))
    together = _falling_inverse(log_flops, falling, at)
    np.testing.assert_allclose(together, [_inverse(log_flops, row, at) for row in falling])
    np.testing.assert_allclose(np.interp(together[0], log_flops, falling[0])[2:-1], at[2:-1])


def test_curve_that_rises_counts_its_lowest_loss_so_far() -> None:
    log_flops, losses = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 0.8, 0.9, 0.6])
    np.testing.assert_allclose(_inverse(log_flops, losses, np.array([0.9, 0.8, 0.7])), [1.5, 2.0, 3.0])
