"""Held-out budget, influence, noise parts, tests between arms, slopes, multipliers from a paper's end points."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from analysis import accuracy_multiplier, compute_multiplier, exponent_test, fit_loss_surface, held_out, influence
from analysis.arm_tests import gain_slope
from analysis.checks import influence_warning, noise_parts
from analysis.forms import ChanceSigmoid
from analysis.laws import LossSurface
from lst.errors import FitError
from tests.analysis.tables import TRUTH, isoflop_table

FOUR = (1e18, 4e18, 1.6e19, 6.4e19)


def arms(other: LossSurface, *, efficiency: float = 1.0, noise: float = 0.003, sizes: int = 5, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    base = isoflop_table(budgets=FOUR, sizes=sizes, noise=noise, rng=rng)
    arm = isoflop_table(law=other, budgets=FOUR, sizes=sizes, noise=noise, rng=rng, efficiency=efficiency, arm="lst")
    return pd.concat([base, arm], ignore_index=True)


def test_held_out_budget_is_predicted_within_its_interval_and_distance_is_told() -> None:
    found = held_out(isoflop_table(budgets=FOUR, sizes=6, noise=0.003), objective="squares", resamples=200)
    assert found["flops_budget"] == 6.4e19
    assert found["times_the_next"] == pytest.approx(4)
    assert len(found["runs"]) == 6
    assert found["covered"] >= 0.5
    assert abs(found["mean_error"]) < 0.02


def test_held_out_budget_off_the_law_is_not_covered() -> None:
    table = isoflop_table(budgets=FOUR, sizes=6, noise=0.001)
    table.loc[table["flops_budget"] == 6.4e19, "loss"] *= 1.1
    found = held_out(table, objective="squares", resamples=200)
    assert found["covered"] == 0
    assert found["mean_error"] == pytest.approx(np.log(1.1), abs=0.02)


def test_holding_out_needs_four_budgets() -> None:
    with pytest.raises(FitError, match="3 budgets"):
        held_out(isoflop_table())


def test_most_influential_run_is_the_one_that_was_moved() -> None:
    table = isoflop_table(sizes=6, noise=0.001).assign(run_id=[f"r{k}" for k in range(18)])
    table.loc[17, "loss"] *= 1.05
    rows = influence(table, objective="squares")
    assert rows[0]["run_id"] == "r17"
    without = fit_loss_surface(table.drop(17), objective="squares", resamples=0)
    full = fit_loss_surface(table, objective="squares", resamples=0)
    assert rows[0]["alpha"] == pytest.approx(without.law.alpha - full.law.alpha, rel=1e-4)
    assert any("without run r17" in w for w in influence_warning(rows, half_width=0.01))
    assert influence_warning(rows, half_width=10.0) == []


def test_noise_of_seeds_and_evaluation_is_told_apart_where_runs_repeat() -> None:
    rng = np.random.default_rng(0)
    once = isoflop_table(sizes=6)
    table = pd.concat([once.assign(seed=s) for s in range(4)], ignore_index=True)
    truth = table["loss"].to_numpy()
    table["loss"] = truth * np.exp(0.004 * rng.standard_normal(len(table)) + 0.003 * rng.standard_normal(len(table)))
    table["loss_se"] = 0.003 * truth
    fit = fit_loss_surface(table, objective="squares", resamples=0)
    residual = np.log(table["loss"]) - np.log(fit.predict(table["num_params"], table["tokens"]))
    found = noise_parts(table, residual.to_numpy(), 5)
    assert found is not None
    assert found["repeats"] == 54
    assert found["total_interval"][0] < 0.005 < found["total_interval"][1]
    assert found["evaluation"] == pytest.approx(0.003, rel=0.02)
    assert found["seed"] == pytest.approx(0.004, rel=0.25)
    assert found["lack_of_fit_p"] > 0.01
    bent = noise_parts(table, residual.to_numpy() + 0.02 * np.resize([1, -1, 1], len(table)), 5)
    assert bent is not None
    assert bent["lack_of_fit_p"] < 1e-6
    assert noise_parts(once.assign(seed=0), np.zeros(18), 5) is None


def test_exponent_test_keeps_alike_arms_and_rejects_other_exponents() -> None:
    same = exponent_test(arms(TRUTH, efficiency=1.3), "lst", resamples=200)
    assert same["p"] > 0.05
    other = LossSurface(E=1.7, A=400.0, B=4000.0, alpha=0.34, beta=0.4)
    apart = exponent_test(arms(other, noise=0.001), "lst", resamples=200)
    assert apart["p"] < 0.02
    assert apart["free"]["lst"]["beta"] == pytest.approx(0.4, abs=0.05)


def test_exponent_test_of_laws_that_are_equal_to_the_last_digit_rejects_nothing() -> None:
    for efficiency in (1.3, 1.5, 2.0):
        exact = exponent_test(arms(TRUTH, efficiency=efficiency, noise=0.0), "lst", resamples=50)
        assert (exact["f"], exact["p"]) == (0.0, 1.0)


def test_exponent_test_needs_runs() -> None:
    with pytest.raises(FitError, match="needs six in each arm"):
        exponent_test(arms(TRUTH, sizes=1), "lst")


def test_slope_of_matched_gains_against_scale() -> None:
    flops = np.repeat(np.geomspace(1e18, 1e21, 4), 4)
    growing = -0.01 - 0.005 * np.log(flops / 1e18) + 0.002 * np.random.default_rng(1).standard_normal(16)
    found = gain_slope(growing, flops, 0.9)
    assert found is not None
    assert found["interval"][0] < -0.005 < found["interval"][1] < 0
    assert found["p"] < 0.01
    assert gain_slope(growing[:4], flops[:4], 0.9) is None


def test_curve_tells_that_a_gain_grows_with_scale() -> None:
    """With beta .30 against .28 e ~ D^(.02 / .28) and D* ~ C^.55, so the slope is .039; an arm of constant efficiency has 0."""
    other = LossSurface(E=1.7, A=400.0, B=410.0 * 3e9**0.02, alpha=0.34, beta=0.30)
    budgets = tuple(np.geomspace(1e18, 1e20, 6))
    base = isoflop_table(budgets=budgets, sizes=5)
    growing = compute_multiplier(
        pd.concat([base, isoflop_table(law=other, budgets=budgets, sizes=5, arm="lst")]), "lst", resamples=0
    )
    flat = compute_multiplier(
        pd.concat([base, isoflop_table(budgets=budgets, sizes=5, efficiency=1.3, arm="lst")]), "lst", resamples=0
    )
    assert growing.slope is not None
    assert flat.slope is not None
    assert growing.slope == pytest.approx(0.039, abs=0.005)
    assert abs(flat.slope) < 0.01


def paper(items: int = 10_000) -> pd.DataFrame:
    """HellaSwag S->S at the ends of the paper's Figure 4a: 30 tokens a parameter, so C = 180 N^2 under 6ND."""
    rows = [("baseline", 420e6, 0.284), ("baseline", 1.8e9, 0.353), ("lst", 420e6, 0.292), ("lst", 1.8e9, 0.390)]
    return pd.DataFrame([{"arm": a, "train_flops": 180 * n * n, "accuracy": p, "n_items": items} for a, n, p in rows])


def test_multiplier_from_the_papers_end_points_has_a_wide_band_and_says_how_little_two_points_prove() -> None:
    found = accuracy_multiplier(paper(), "lst", chance=0.25, seed_sd=0.005)
    assert found.overlap == pytest.approx((0.292, 0.353))
    assert 1.2 < found.mean < 2.5
    assert found.mean_interval[0] < found.mean < found.mean_interval[1]
    assert found.mean_interval[1] / found.mean_interval[0] > 1.5
    assert all(low <= m <= high for low, m, high in zip(found.low, found.multiplier, found.high, strict=True))
    told = " ".join(found.warnings)
    assert "two points leave no degree of freedom" in told
    assert "whether the gain grows with scale is open" in told
    assert set(found.by_scale) == {"sigmoid", "linear", "saturating"}
    assert json.loads(json.dumps(found.to_json()))["mean"] == found.mean
    assert "AccuracyMultiplier" in repr(found)


def test_accuracy_multiplier_of_a_known_gain_and_coverage() -> None:
    """A sigmoid in ln C shifted by ln 1.5, four sizes an arm: nearly all bands of 60 studies hold 1.5."""
    law = ChanceSigmoid(midpoint=np.log(1e21), slope=0.5, chance=0.25)
    flops = np.geomspace(1e19, 1e21, 4)
    held = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        parts = []
        for arm, gain in (("baseline", 1.0), ("lst", 1.5)):
            share = rng.binomial(4000, law.predict(np.log(gain * flops))) / 4000
            parts.append(pd.DataFrame({"arm": arm, "train_flops": flops, "accuracy": share, "n_items": 4000}))
        low, high = accuracy_multiplier(pd.concat(parts), "lst", chance=0.25, draws=400, rng=rng).mean_interval
        held += low <= 1.5 <= high
    assert held >= 51


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t[t["train_flops"] < 1e20], "one amount of FLOPs"),
        (lambda t: t.assign(accuracy=0.25), "no accuracy can be told from chance"),
        (lambda t: t.assign(accuracy=t["accuracy"].where(t["arm"] == "lst", 0.9 - t["accuracy"])), "does not rise with FLOPs"),
        (lambda t: t.assign(accuracy=t["accuracy"] + 0.2 * (t["arm"] == "lst")), "do not overlap"),
        (lambda t: t.assign(accuracy=100 * t["accuracy"]), "shares in 0..1"),
    ],
)
def test_end_points_that_say_nothing_are_refused(change: object, sentence: str) -> None:
    with pytest.raises(FitError, match=sentence):
        accuracy_multiplier(change(paper()), "lst", chance=0.25)  # type: ignore[operator]


def test_any_accuracies_give_a_band_that_json_can_hold_or_a_refusal() -> None:
    """Random points: an arm may rise on one scale and not on another, or in no draw; the band is then open, not absent."""
    rng = np.random.default_rng(0)
    opened = 0
    for _ in range(60):
        count = int(rng.integers(4, 20))
        table = pd.DataFrame({"arm": rng.choice(["baseline", "lst"], count), "accuracy": rng.random(count)})
        table = table.assign(train_flops=np.exp(rng.uniform(16, 30, count)), n_items=rng.integers(1, 1000, count))
        try:
            found = accuracy_multiplier(table, "lst", chance=0.25, draws=100)
        except FitError:
            continue
        json.dumps(found.to_json(), allow_nan=False)
        opened += found.mean_interval[1] > 1e29
        assert found.undetermined <= 0.05 or found.mean_interval[1] > 1e29
    assert opened > 0


def test_parabolas_that_fall_below_zero_are_no_losses_to_compare() -> None:
    sizes = pd.DataFrame({"num_params": [1e8, 1.5e8, 1e9], "loss": [2.0, 0.05, 9.0]})
    tables = [sizes.assign(arm=arm, train_flops=flops, tokens=1e9) for arm in ("baseline", "lst") for flops in (1e18, 1e19)]
    with pytest.raises(FitError, match="falls to a loss of -"):
        compute_multiplier(pd.concat(tables, ignore_index=True), "lst", resamples=0)
