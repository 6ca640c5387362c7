"""Closed forms: gradients against finite differences, optima against a search, JSON there and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from analysis.laws import SIX_ND, IsoflopParabola, LossSurface, PowerLaw
from lst.errors import FitError

SURFACE = LossSurface(E=1.7, A=400.0, B=410.0, alpha=0.34, beta=0.28)
CASES = [
    (SURFACE, (np.array([1e7, 3e8]), np.array([2e9, 5e10]))),
    (PowerLaw(scale=60.0, exponent=-0.07, asymptote=1.5), (np.array([1e18, 3e20]),)),
    (IsoflopParabola(floor=2.5, curvature=0.08, log_optimal_params=19.0), (np.array([1e8, 4e8]),)),
]


@pytest.mark.parametrize(("law", "at"), CASES, ids=lambda c: type(c).__name__)
def test_gradient_equals_central_differences(law: Any, at: tuple[np.ndarray, ...]) -> None:
    gradient = law.gradient(*at)
    assert gradient.shape == (2, len(law.names()))
    for k, (name, value) in enumerate(zip(law.names(), law.values(), strict=True)):
        step = 1e-6 * max(abs(value), 1e-3)
        ends = [type(law)(**{**law.to_json(), name: value + side * step}).predict(*at) for side in (1, -1)]
        np.testing.assert_allclose(gradient[:, k], (ends[0] - ends[1]) / (2 * step), rtol=2e-6, atol=1e-12)


def test_optimal_allocation_is_the_least_loss_at_its_budget() -> None:
    best = SURFACE.optimal(1e20)
    assert best.flops_convention == SIX_ND
    assert 6 * best.num_params * best.tokens == pytest.approx(1e20)
    sizes = best.num_params * np.geomspace(0.5, 2, 2001)
    losses = SURFACE.predict(sizes, 1e20 / 6 / sizes)
    assert sizes[losses.argmin()] == pytest.approx(best.num_params, rel=1e-3)
    assert best.loss <= losses.min()


def test_optimal_with_a_function_agrees_with_the_closed_form() -> None:
    closed, searched = SURFACE.optimal(1e20), SURFACE.optimal(1e20, lambda n: 6 * n)
    assert searched.num_params == pytest.approx(closed.num_params, rel=1e-6)
    assert searched.flops_convention == "given"


def test_optimal_with_dearer_tokens_prefers_larger_models() -> None:
    """A constant cost per token (a head) makes tokens dearer, so the best model gets fewer of them."""
    dear = SURFACE.optimal(1e20, lambda n: 6 * n + 5e9)
    assert dear.tokens < SURFACE.optimal(1e20).tokens
    assert dear.num_params * 6 * dear.tokens < 1e20


@pytest.mark.parametrize("flops", [0.0, -1.0, float("nan"), float("inf")])
def test_optimal_refuses_what_is_no_budget(flops: float) -> None:
    with pytest.raises(FitError, match="no compute budget"):
        SURFACE.optimal(flops)


def test_optimal_refuses_a_surface_without_a_data_term() -> None:
    with pytest.raises(FitError, match="B=0"):
        LossSurface(E=1.0, A=400.0, B=0.0, alpha=0.3, beta=0.3).optimal(1e20)


def test_power_law_inverse_undoes_predict_and_never_reaches_the_asymptote() -> None:
    law = PowerLaw(scale=60.0, exponent=-0.07, asymptote=1.5)
    np.testing.assert_allclose(law.inverse(law.predict([1e18, 1e21])), [1e18, 1e21], rtol=1e-9)
    assert np.isinf(law.inverse(1.5))


@pytest.mark.parametrize("law", [c[0] for c in CASES], ids=lambda c: type(c).__name__)
def test_json_there_and_back(law: Any) -> None:
    assert type(law).from_json(law.to_json()) == law


def test_json_without_a_parameter_is_refused() -> None:
    with pytest.raises(FitError, match="beta"):
        LossSurface.from_json({"E": 1, "A": 2, "B": 3, "alpha": 0.3})
