"""What a table cannot say is refused or told: too few cells, copies, mixed kinds, corners of the ranges, JSON of others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis import (
    FormFit,
    IsoflopFit,
    LossSurface,
    MultiplierCurve,
    PowerLawFit,
    SharedFit,
    SurfaceFit,
    compute_multiplier,
    exponent_test,
    fit_isoflop,
    fit_loss_surface,
    fit_power_law,
    fit_shared_exponents,
)
from analysis.study import FitOptions
from lst.errors import FitError

TRUTH = LossSurface(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)


def grid(budgets: int = 4, sizes: int = 5, seeds: int = 1, noise: float = 0.004, away: float = 1.0) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    c = np.repeat(np.geomspace(1e18, 1e20, budgets), sizes)
    n = np.concatenate([away * TRUTH.optimal(b).num_params * np.geomspace(0.25, 4, sizes) for b in np.unique(c)])
    c, n = np.repeat(c, seeds), np.repeat(n, seeds)
    loss = TRUTH.predict(n, c / 6 / n) * np.exp(noise * rng.standard_normal(len(n)))
    return pd.DataFrame({"num_params": n, "tokens": c / 6 / n, "loss": loss, "train_flops": c, "flops_budget": c})


def two_arms(**columns: list[str]) -> pd.DataFrame:
    sides = [grid().assign(arm=arm, **{k: v[i] for k, v in columns.items()}) for i, arm in enumerate(("baseline", "lst"))]
    return pd.concat(sides, ignore_index=True)


def test_repeats_of_four_cells_do_not_fix_five_parameters() -> None:
    table = grid(2, 2, seeds=6)
    with pytest.raises(FitError, match=r"24 points at 4 different N and D cannot fix the 5 parameters"):
        fit_loss_surface(table, resamples=0)


def test_repeats_do_not_make_a_small_design_a_large_one() -> None:
    fit = fit_loss_surface(grid(2, 3, seeds=4), resamples=40)
    assert "design kept" in fit.interval_method
    assert any("24 runs at 6 cells for 5 parameters" in w for w in fit.warnings)
    assert any("5 cells for 5 parameters" in w for w in fit_loss_surface(grid(5, 1, seeds=6).pipe(bent), resamples=0).warnings)


def bent(table: pd.DataFrame) -> pd.DataFrame:
    """Off one line in (ln N, ln D): the third budget's model is three times as large."""
    n = table["num_params"].where(table["flops_budget"].rank(method="dense") != 3, 3 * table["num_params"])
    tokens = table["train_flops"] / 6 / n
    return table.assign(num_params=n, tokens=tokens, loss=TRUTH.predict(n, tokens) * table["loss"] / table["loss"].mean())


def test_copies_to_the_last_digit_are_told() -> None:
    table = grid()
    assert not any("repeat another's" in w for w in fit_loss_surface(table, resamples=0).warnings)
    twice = fit_loss_surface(pd.concat([table, table]), resamples=0)
    assert any("20 rows repeat another's N, D and loss" in w for w in twice.warnings)


@pytest.mark.parametrize("spread", [0.0, 1e-12])
def test_constant_losses_have_no_profiles_and_no_multiplier(spread: float) -> None:
    table = grid().assign(loss=2.5 + spread * np.arange(20))
    with pytest.raises(FitError, match="constant loss"):
        fit_isoflop(table, resamples=0)
    arms = pd.concat([table.assign(arm="baseline"), table.assign(arm="lst")])
    with pytest.raises(FitError, match="constant loss"):
        compute_multiplier(arms, "lst", resamples=0)


def test_a_power_law_is_of_one_arm() -> None:
    with pytest.raises(FitError, match=r"mixes 2 values of arm \(baseline, lst\)"):
        fit_power_law(two_arms(), resamples=0)
    unnamed = two_arms()
    unnamed.loc[:3, "arm"] = None
    unnamed.loc[20:, "arm"] = "baseline"
    with pytest.raises(FitError, match=r"mixes 2 values of arm \(baseline, none\)"):
        fit_loss_surface(unnamed, resamples=0)


@pytest.mark.parametrize(("name", "values"), [("data_id", ["d1", "d2"]), ("flops_convention", ["exact", "six_nd"])])
@pytest.mark.parametrize(
    "compare",
    [
        lambda t: compute_multiplier(t, "lst", resamples=0),
        lambda t: fit_shared_exponents(t, resamples=0),
        lambda t: exponent_test(t, "lst", resamples=1),
    ],
)
def test_arms_of_different_data_are_not_compared(compare: Callable[[pd.DataFrame], object], name: str, values: list[str]) -> None:
    with pytest.raises(FitError, match=f"mixes 2 values of {name}"):
        compare(two_arms(**{name: values}))


def test_comparisons_without_flops_say_that_they_know_of_no_savings() -> None:
    table = two_arms().drop(columns=["train_flops", "flops_budget"])
    for found in (compute_multiplier(table, "lst", resamples=0), fit_shared_exponents(table, resamples=0)):
        assert any("no train_flops" in w for w in found.warnings)


def test_arms_may_be_numbers_and_must_have_names() -> None:
    table = two_arms().replace({"arm": {"baseline": 0, "lst": 1}})
    found = fit_shared_exponents(table, baseline=0, resamples=0)  # type: ignore[arg-type]
    assert set(found.efficiencies) == {"1"}
    named = two_arms()
    named.loc[3, "arm"] = None
    with pytest.raises(FitError, match="row 4 names no arm"):
        compute_multiplier(named, "lst", resamples=0)


def test_a_corner_of_the_ranges_is_beyond_the_data() -> None:
    fit = fit_loss_surface(grid(), resamples=0)
    n, d = fit.ranges["num_params"][1], fit.ranges["tokens"][1]
    with pytest.raises(FitError, match="6 x num_params x tokens"):
        fit.predict(n, d)
    assert fit.predict(n, d, extrapolate=True) > 0
    with pytest.raises(FitError, match=r"num_params=-1 is not positive"):
        fit.predict(-1, d, extrapolate=True)


def test_an_optimum_far_from_the_sizes_tried_needs_the_flag() -> None:
    fit = fit_loss_surface(grid(away=40.0), resamples=0)
    with pytest.raises(FitError, match="the optimal num_params"):
        fit.optimal(1e19)
    assert fit.optimal(1e19, extrapolate=True).num_params < fit.ranges["num_params"][0]


def test_a_handful_of_resamples_is_told() -> None:
    assert any("2 resamples are too few for 90%" in w for w in fit_loss_surface(grid(), resamples=2).warnings)
    with pytest.raises(FitError, match="whole number of 0 to 1,000,000"):
        fit_loss_surface(grid(), resamples=10**11)


def test_sizes_are_counted_and_not_runs() -> None:
    assert "5 sizes, 10 runs" in repr(fit_isoflop(grid(seeds=2), resamples=0))


@pytest.mark.parametrize("kind", [SurfaceFit, PowerLawFit, IsoflopFit, MultiplierCurve, SharedFit, FormFit])
@pytest.mark.parametrize("content", [{}, "text", None, {"E": 1, "A": 1, "B": 1, "alpha": 1, "beta": 1, "form": "overtraining"}])
def test_json_of_something_else_is_one_sentence(kind: Any, content: Any) -> None:
    with pytest.raises(FitError):
        kind.from_json(content)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: pd.concat([t, t[["loss"]]], axis=1), "two columns 'loss'"),
        (lambda t: t.assign(loss=t["loss"] + 1j), "no real numbers"),
        (lambda t: t.assign(loss=pd.Timestamp("2024-01-01")), "no real numbers"),
        (lambda t: t.to_dict("list"), "a dict is no table"),
    ],
)
def test_what_is_no_table_of_numbers_is_refused(change: Callable[[pd.DataFrame], Any], sentence: str) -> None:
    with pytest.raises(FitError, match=sentence):
        fit_loss_surface(change(grid()), resamples=0)


@pytest.mark.parametrize(
    "wrong",
    [{"loss": "hubber"}, {"level": 2.0}, {"resamples": -1}, {"delta": -1.0}, {"delta": float("inf")}]
    + [{name: "foo"} for name in ("curvature", "shape", "method")],
)
def test_options_are_judged_before_anything_is_fitted(wrong: dict[str, Any]) -> None:
    with pytest.raises(FitError):
        FitOptions(**wrong).validate()


def test_a_term_of_the_shared_law_that_is_0_is_told() -> None:
    """No size matters: A is 0, or alpha as small as it may be, and there is no best N."""
    table = two_arms()
    flat = table.assign(loss=1.7 + 400 * table["tokens"] ** -0.28 * np.exp(0.001 * np.random.default_rng(1).standard_normal(40)))
    found = fit_shared_exponents(flat, resamples=0)
    assert found.law.A == 0 or found.law.alpha == pytest.approx(0.01)
    assert any("ended on its bound" in w for w in found.warnings)


def test_repeats_of_a_cell_are_drawn_together() -> None:
    """They share how far the law misses their cell: four seeds of each are no four times as many places."""
    rng = np.random.default_rng(1)
    table = grid(seeds=4, noise=0.0)
    missed = np.repeat(0.004 * rng.standard_normal(20), 4) + 0.0005 * rng.standard_normal(80)
    table["loss"] *= np.exp(missed)
    fit = fit_loss_surface(table, resamples=200)
    one = fit_loss_surface(table.iloc[::4], resamples=200)
    assert "over cells" in fit.interval_method
    widths = [float(np.diff(f.intervals["alpha"])[0]) for f in (fit, one)]
    assert widths[0] == pytest.approx(widths[1], rel=0.3)


def test_seconds_times_parameters_are_no_flops() -> None:
    fit = fit_loss_surface(grid().rename(columns={"tokens": "speech_seconds"}), tokens="speech_seconds", resamples=0)
    with pytest.raises(FitError, match="flops_per_token"):
        fit.optimal(1e19)
    assert fit.optimal(1e19, lambda n: 6 * n).num_params > 0


def test_an_interval_of_an_optimum_needs_an_optimum() -> None:
    fit = fit_loss_surface(grid(away=40.0), resamples=20)
    with pytest.raises(FitError, match="the optimal num_params"):
        fit.interval("optimal_params", flops=1e19)


def test_seeds_that_end_a_few_tokens_apart_are_one_cell() -> None:
    table = grid(seeds=6, noise=0.004)
    few = table.groupby(["num_params", "tokens"]).ngroup() < 4
    jittered = table[few].assign(tokens=lambda t: t["tokens"] * (1 + 1e-4 * np.random.default_rng(0).standard_normal(len(t))))
    with pytest.raises(FitError, match="24 points at 4 different N and D"):
        fit_loss_surface(jittered, resamples=0)


def test_budgets_of_two_sizes_tell_nothing_of_how_curvature_changes() -> None:
    """Of sizes 4, 2, 2 only one curvature is known, seeds or not."""
    table = grid(budgets=3, sizes=4, noise=0.001)
    keep = (table["flops_budget"] == table["flops_budget"].min()) | (table.groupby("flops_budget").cumcount() < 2)
    table = pd.concat([table[keep].assign(seed=1), table[keep].assign(seed=2, loss=lambda t: t["loss"] * 1.0005)])
    assert fit_isoflop(table, resamples=0).curvature == "shared"
    with pytest.raises(FitError, match="curvature=trend: add sizes, or choose curvature=shared"):
        fit_isoflop(table, curvature="trend", resamples=0)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("loss", None),
        ("loss", "x"),
        ("delta", "x"),
        ("objective", "x"),
        ("level", float("nan")),
        ("resamples", "x"),
        ("failed", True),
    ],
)
def test_edited_json_of_a_fit_is_refused_when_it_is_read(key: str, value: object) -> None:
    content = fit_loss_surface(grid(), resamples=0).to_json()
    with pytest.raises(FitError, match=f"{key}="):
        SurfaceFit.from_json(content | {key: value})


@pytest.mark.parametrize(
    "call",
    [
        lambda t: fit_power_law(None),
        lambda t: compute_multiplier(None, "lst"),
        lambda t: exponent_test(None, "lst"),
        lambda t: fit_loss_surface(t, delta="a"),
        lambda t: fit_loss_surface(t, objective=None),
        lambda t: fit_loss_surface(t, resamples=True),
        lambda t: fit_loss_surface(t.assign(loss=t["loss"].astype(object) + 1j), resamples=0),
    ],
)
def test_arguments_of_another_kind_are_one_sentence(call: Callable[[pd.DataFrame], Any]) -> None:
    with pytest.raises(FitError):
        call(grid())
