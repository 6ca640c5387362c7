"""One total becomes a ladder that never costs more, with each budget's expected optimum inside its sizes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lst.errors import ConfigError, PlanError
from lst.ladder import SIZES, named_count
from sweeps.spend import Ladder, SpendConfig, expected_optimum, sizes_around, spread

PARAMS = {size: int(count) for size in SIZES if (count := named_count(size)) is not None}


def ladder_of_two_arms(config: SpendConfig, params: dict[str, int] = PARAMS) -> Ladder:
    return spread(config, params, dict.fromkeys(params, 2.0), config.total)


def test_the_expected_optimum_spends_the_budget_at_twenty_tokens_a_parameter() -> None:
    params = expected_optimum(5.88e23, 20)
    assert params == pytest.approx(7e10, rel=0.01)  # arXiv 2203.15556: 70B parameters, 1.4T tokens
    assert 6 * params * 20 * params == pytest.approx(5.88e23)


def test_sizes_are_the_nearest_with_one_on_each_side() -> None:
    params = {"a": 10, "b": 20, "c": 40, "d": 80, "e": 160, "f": 10_000}
    assert sizes_around(45, params, 4) == ("b", "c", "d", "e")
    assert sizes_around(5_000, params, 4) == ("c", "d", "e", "f")
    assert sizes_around(170, params, 4) == ("c", "d", "e", "f")  # f is farther than b, but the only one above


@pytest.mark.parametrize(("optimum", "sizes"), [(5, ("a", "b", "c", "d")), (20_000, ("c", "d", "e", "f"))])
def test_an_optimum_outside_the_sizes_has_the_nearest_on_one_side(optimum: float, sizes: tuple[str, ...]) -> None:
    assert sizes_around(optimum, {"a": 10, "b": 20, "c": 40, "d": 80, "e": 160, "f": 10_000}, 4) == sizes


def test_too_few_sizes_for_a_window_are_refused() -> None:
    with pytest.raises(PlanError, match="3 sizes are fewer than the 4 of a budget"):
        sizes_around(45, {"a": 10, "b": 20, "c": 40}, 4)


@given(
    total=st.floats(1e20, 1e24),
    budgets=st.integers(1, 6),
    share=st.floats(0.3, 1),
    count=st.integers(4, 6),
)
def test_a_ladder_never_costs_more_than_its_total(total: float, budgets: int, share: float, count: int) -> None:
    config = SpendConfig(total_flops=total, budgets=budgets, largest_share=share, sizes_per_budget=count)
    config.validate()
    try:
        ladder = ladder_of_two_arms(config)
    except PlanError:
        return
    assert len(ladder.rungs) == budgets
    assert ladder.cost == pytest.approx(sum(2 * r.budget * len(r.sizes) for r in ladder.rungs))
    assert ladder.cost <= total
    assert ladder.left >= 0
    assert ladder.rungs[-1].cost <= share * total
    for rung in ladder.rungs:
        counts = [PARAMS[size] for size in rung.sizes]
        assert len(counts) == count
        assert counts == sorted(counts)
        assert counts[0] < rung.optimum < counts[-1]
    for low, high in zip(ladder.rungs, ladder.rungs[1:], strict=False):
        assert high.budget / low.budget == pytest.approx(config.step, rel=0.06)  # two digits


def test_the_total_is_used_up_as_far_as_two_digits_allow() -> None:
    config = SpendConfig(total_flops=1e22, budgets=4, largest_share=1.0)
    ladder = ladder_of_two_arms(config)
    assert 0.9 < ladder.cost / ladder.total <= 1.0


def test_the_share_of_the_largest_budget_holds() -> None:
    free = ladder_of_two_arms(SpendConfig(total_flops=1e22, budgets=4, largest_share=1.0))
    capped = ladder_of_two_arms(SpendConfig(total_flops=1e22, budgets=4, largest_share=0.5))
    assert free.rungs[-1].cost > 0.6 * free.total
    assert 0.4 * capped.total < capped.rungs[-1].cost <= 0.5 * capped.total


def test_a_total_that_pays_for_nothing_says_what_the_least_costs() -> None:
    with pytest.raises(PlanError, match=r"pays for no ladder of 7 budgets.* cheapest costs"):
        ladder_of_two_arms(SpendConfig(total_flops=1e15))


def test_more_budgets_than_the_sizes_can_hold_are_refused() -> None:
    near = {"a": 100, "b": 120, "c": 140, "d": 160, "e": 180}
    with pytest.raises(PlanError, match=r"give more sizes, or fewer spend\.budgets"):
        ladder_of_two_arms(SpendConfig(total_flops=1e22), near)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"total_flops": 1e20, "total_money": 5.0}, "spend.total_flops and spend.total_money are both given"),
        ({"total_flops": math.inf}, "spend.total_flops=inf must be a finite number"),
        ({"total_gpu_hours": -1.0}, "spend.total_gpu_hours=-1.0 must be a finite number, 0 or more"),
        ({"step": 1.0}, "spend.step=1 must be over 1"),
        ({"largest_share": 0.0}, "spend.largest_share=0 must lie in"),
        ({"sizes_per_budget": 3}, "spend.sizes_per_budget=3 is under 4"),
        ({"budgets": 0}, "spend.budgets=0 must lie between 1 and 100"),
        ({"budgets": 100_000}, "spend.budgets=100000 must lie between 1 and 100"),
        ({"tokens_per_param": 0.0}, "spend.tokens_per_param=0 must be positive"),
    ],
)
def test_impossible_values_are_named(values: dict[str, float], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        SpendConfig(**values).validate()
