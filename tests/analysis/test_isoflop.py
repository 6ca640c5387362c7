"""isoFLOP profiles: exact parabolas, statuses, power laws through minima, refusals."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from analysis import IsoflopFit, fit_isoflop
from lst.errors import FitError
from tests.analysis.tables import TRUTH, isoflop_table

BUDGETS = np.array([1e18, 1e19, 1e20])


def parabolas(
    *, offsets: tuple[float, ...] = (-1.2, -0.4, 0.4, 1.2), curvatures: tuple[float, ...] = (0.08, 0.08, 0.08), shift: float = 0.0
) -> pd.DataFrame:
    """Exact parabolas with N* = 0.1 C^0.48, floors 30 C^-0.06; `shift` moves the sizes away from the minima (in ln N)."""
    rows = []
    for c, k in zip(BUDGETS, curvatures, strict=True):
        best = 0.1 * c**0.48
        for x in offsets:
            n = best * np.exp(x + shift)
            rows.append((n, c / 6 / n, 30 * c**-0.06 + k * (x + shift) ** 2, c))
    return pd.DataFrame(rows, columns=["num_params", "tokens", "loss", "train_flops"])


@pytest.mark.parametrize("curvature", ["shared", "auto"])
def test_exact_parabolas_are_recovered(curvature: str) -> None:
    fit = fit_isoflop(parabolas(), curvature=curvature, resamples=50)
    assert fit.curvature == {"shared": "shared", "auto": "trend"}[curvature]
    for profile, c in zip(fit.profiles, BUDGETS, strict=True):
        assert profile.status == "interior"
        assert profile.optimal_params == pytest.approx(0.1 * c**0.48, rel=1e-8)
        assert profile.optimal_loss == pytest.approx(30 * c**-0.06, rel=1e-8)
        assert profile.optimal_tokens == pytest.approx(c / 6 / (0.1 * c**0.48), rel=1e-8)
        assert profile.parabola is not None
        assert profile.parabola.curvature == pytest.approx(0.08)
    assert fit.optimal_params is not None
    assert fit.optimal_params.law.exponent == pytest.approx(0.48, rel=1e-8)
    assert fit.optimal_tokens is not None
    assert fit.optimal_tokens.law.exponent == pytest.approx(0.52, rel=1e-8)


def test_curvatures_on_a_line_in_ln_c_need_two_parameters() -> None:
    """Profiles flatten as scale grows: one curvature for all takes that for noise, a trend does not."""
    table = parabolas(curvatures=(0.10, 0.08, 0.06))
    fit = fit_isoflop(table, resamples=0)
    assert fit.curvature == "trend"
    assert [p.parabola.curvature for p in fit.profiles if p.parabola] == pytest.approx([0.10, 0.08, 0.06])
    assert fit_isoflop(table, curvature="shared", resamples=0).objective > 1e-5 > 1e-20 > fit.objective


def test_curvatures_that_differ_need_their_own() -> None:
    table = parabolas(offsets=(-1.2, -0.6, 0.1, 0.6, 1.2), curvatures=(0.05, 0.08, 0.12))
    fit = fit_isoflop(table, resamples=0)
    assert fit.curvature == "per_budget"
    assert [p.parabola.curvature for p in fit.profiles if p.parabola] == pytest.approx([0.05, 0.08, 0.12])
    assert fit_isoflop(table, curvature="shared", resamples=0).objective > 1e-6 > fit.objective


def test_minimum_outside_the_sizes_is_a_status_of_its_budget() -> None:
    table = parabolas()
    late = table["train_flops"] == 1e20
    table.loc[late, "num_params"] *= np.exp(-1.5)
    fit = fit_isoflop(table, resamples=0)
    assert [p.status for p in fit.profiles] == ["interior", "interior", "interior"]  # losses moved along with the sizes
    table = parabolas()
    table.loc[late, "loss"] = 30 * 1e20**-0.06 + 0.08 * (np.array([-1.2, -0.4, 0.4, 1.2]) - 2.0) ** 2
    fit = fit_isoflop(table, resamples=0)
    assert [p.status for p in fit.profiles] == ["interior", "interior", "above_largest"]
    assert fit.profiles[2].optimal_params is None
    assert fit.optimal_params is not None
    assert fit.optimal_params.n == 2
    assert any("1e+20" in w and "above_largest" in w for w in fit.warnings)


@pytest.mark.parametrize(("shift", "status"), [(3.0, "below_smallest"), (-3.0, "above_largest")])
def test_no_interior_minimum_at_all_is_refused(shift: float, status: str) -> None:
    with pytest.raises(FitError, match=f"no budget has an interior minimum.*{status}"):
        fit_isoflop(parabolas(shift=shift), resamples=0)


def test_curves_that_bend_down_are_refused() -> None:
    with pytest.raises(FitError, match="not_convex"):
        fit_isoflop(parabolas(curvatures=(-0.05, -0.05, -0.05)), resamples=0)


def test_two_sizes_a_budget_are_refused_and_one_budget_of_one_size_is_a_status() -> None:
    with pytest.raises(FitError, match=r"have \[2, 2, 2\] sizes"):
        fit_isoflop(parabolas(offsets=(-1, 1)), resamples=0)
    table = parabolas()
    kept = table[(table["train_flops"] < 1e20) | (table.index == len(table) - 1)]
    assert [p.status for p in fit_isoflop(kept, resamples=0).profiles] == ["interior", "interior", "too_few_sizes"]


def test_unknown_curvature_is_refused() -> None:
    with pytest.raises(FitError, match="did you mean 'shared'"):
        fit_isoflop(parabolas(), curvature="sharde")


def test_budgets_are_told_apart_by_gaps_where_no_column_names_them() -> None:
    table = parabolas()
    table["train_flops"] *= np.tile([1.0, 1.002, 0.998, 1.001], 3)
    fit = fit_isoflop(table, resamples=0)
    assert [p.flops_budget for p in fit.profiles] == pytest.approx(BUDGETS, rel=1e-3)


def test_six_nd_stands_in_for_missing_flops_and_says_so() -> None:
    fit = fit_isoflop(parabolas().drop(columns="train_flops"), resamples=0)
    assert any("6ND" in w for w in fit.warnings)
    assert not any("6ND" in w for w in fit_isoflop(parabolas(), resamples=0).warnings)


def test_result_goes_through_json_and_prints_each_budget() -> None:
    fit = fit_isoflop(isoflop_table(noise=0.01), resamples=50)
    again = IsoflopFit.from_json(json.loads(json.dumps(fit.to_json())))
    assert again.profiles == fit.profiles
    assert repr(fit).count("interior") == 3
    inside = fit.profiles[1]
    assert inside.optimal_params is not None
    assert inside.optimal_params_interval is not None
    assert inside.optimal_params_interval[0] < inside.optimal_params < inside.optimal_params_interval[1]
    assert inside.optimal_params == pytest.approx(TRUTH.optimal(1e19).num_params, rel=0.3)
