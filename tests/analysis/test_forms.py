"""Over-training, repeated data, accuracy: gradients against finite differences, identities with L(N, D), published figures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from analysis.forms import ChanceSigmoid, OvertrainingLaw, RepetitionLaw
from analysis.laws import IsoflopCubic, LossSurface

C4 = RepetitionLaw(E=1.87, A=521.0, B=1488.0, alpha=0.35, beta=0.35, data_decay=15.4, params_decay=5.3)
N, D, U = np.array([1e8, 2e9, 3e10]), np.array([5e10, 4e10, 9e10]), np.array([1e10, 8e10, 1e9])
CASES = [
    (OvertrainingLaw(E=1.7, a=150.0, b=220.0, eta=0.16), (np.array([1e18, 3e20]), np.array([20.0, 640.0])), 4),
    (C4, (N, D, U), 7),
    (replace(C4, alpha=0.31, beta=0.4), (N, D, U), 7),
    (ChanceSigmoid(midpoint=2.3, slope=-3.0, chance=0.25), (np.array([2.0, 2.9]),), 2),
    (IsoflopCubic(floor=2.5, curvature=0.08, skew=0.01, log_optimal_params=19.0), (np.array([1e8, 4e8]),), 4),
]


@pytest.mark.parametrize(("law", "at", "free"), CASES, ids=lambda c: type(c).__name__)
def test_gradient_equals_central_differences(law: Any, at: tuple[np.ndarray, ...], free: int) -> None:
    gradient = law.gradient(*at)
    assert gradient.shape == (len(at[0]), free)
    for k, name in enumerate(law.names()[:free]):
        step = 1e-6 * max(abs(getattr(law, name)), 1e-3)
        ends = [replace(law, **{name: getattr(law, name) + side * step}).predict(*at) for side in (1, -1)]
        np.testing.assert_allclose(gradient[:, k], (ends[0] - ends[1]) / (2 * step), rtol=5e-6, atol=1e-10)


@pytest.mark.parametrize("law", [c[0] for c in CASES], ids=lambda c: type(c).__name__)
def test_json_there_and_back(law: Any) -> None:
    assert type(law).from_json(law.to_json()) == law


def test_overtraining_is_the_surface_with_equal_exponents() -> None:
    surface = LossSurface(E=1.7, A=400.0, B=410.0, alpha=0.3, beta=0.3)
    law = OvertrainingLaw(E=1.7, a=400 * 6**0.15, b=410 * 6**0.15, eta=0.15)
    n, d = np.array([1e8, 1e9]), np.array([2e9, 6e11])
    np.testing.assert_allclose(law.predict(6 * n * d, d / n), surface.predict(n, d), rtol=1e-12)
    best = surface.optimal(1e20)
    assert law.best_ratio == pytest.approx(best.tokens / best.num_params, rel=1e-9)


def test_data_seen_once_by_a_model_no_larger_than_its_optimum_obeys_the_plain_law() -> None:
    best = C4.surface.optimal(1e21)
    n, d = best.num_params * np.array([0.1, 0.5, 0.999]), best.tokens
    np.testing.assert_allclose(C4.predict(n, d, d), C4.surface.predict(n, d), rtol=1e-12)
    np.testing.assert_allclose(C4.effective(n, d, 10 * d)[1], d)


def test_size_from_which_parameters_are_excess_is_the_optimum_of_the_unique_tokens() -> None:
    best = C4.surface.optimal(1e21)
    fine, excess = (C4.effective(best.num_params * factor, best.tokens, best.tokens)[0] for factor in (0.99, 1.5))
    assert fine == pytest.approx(0.99 * best.num_params)
    assert excess < 1.5 * best.num_params


def test_repeated_tokens_are_worth_less_and_less() -> None:
    """With r = 15.4, four epochs are worth 1 + r (1 - exp(-3 / r)) = 3.73 of them, and no number more than 1 + r = 16.4."""
    worth = [float(C4.effective(1e8, epochs * 1e10, 1e10)[1]) / 1e10 for epochs in (1, 4, 1e6)]
    assert worth == pytest.approx([1.0, 3.7259, 16.4], rel=1e-3)


def test_sigmoid_lies_between_chance_and_ceiling_and_inverts() -> None:
    law = ChanceSigmoid(midpoint=2.3, slope=-3.0, chance=0.25, ceiling=0.9)
    assert law.predict(99.0) == pytest.approx(0.25)
    assert law.predict(-99.0) == pytest.approx(0.9)
    assert law.predict(2.3) == pytest.approx((0.25 + 0.9) / 2)
    np.testing.assert_allclose(law.inverse(law.predict([2.0, 2.7])), [2.0, 2.7])
    assert np.isnan(law.inverse([0.25, 0.95])).all()


def test_cubic_has_its_minimum_where_it_says() -> None:
    law = IsoflopCubic(floor=2.5, curvature=0.08, skew=0.01, log_optimal_params=19.0)
    at = np.exp(19.0 + np.linspace(-2, 2, 401))
    assert law.predict(at).argmin() == 200
    assert law.predict(np.exp(19.0)) == pytest.approx(2.5)
