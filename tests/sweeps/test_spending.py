"""A study that gives one total: its rows cost no more, the same study by hand has the same rows, each row has its reason."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from lst.errors import ConfigError, PlanError
from sweeps.cli import compose_study, main
from sweeps.plan import Plan, plan
from sweeps.recipe import RECIPES, Situation
from sweeps.spending import row_cost
from tests.shown_output import require_shown

DOCUMENT = Path(__file__).parents[2] / "docs/planning.md"
TOTALS: list[tuple[str, str, dict[str, str]]] = [
    ("total_flops", "5e22", {}),
    ("total_gpu_hours", "20000", {"price.device": "h100"}),
    ("total_money", "40000", {"price.device": "h100", "price.dollars_per_gpu_hour": "2.5"}),
]


def planned(**overrides: str) -> Plan:
    """The packaged isoFLOP study with one total instead of its budgets."""
    return plan(compose_study({"study": "isoflop", "budgets": "[]", **overrides}))


@pytest.mark.parametrize(("key", "total", "price"), TOTALS)
def test_the_rows_of_a_total_cost_no_more_and_little_less(key: str, total: str, price: dict[str, str]) -> None:
    found = planned(**{f"spend.{key}": total, "spend.budgets": "5", **price})
    cost = sum(row_cost(row, found.study.spend.currency) for row in found.rows)
    assert 0.9 * float(total) < cost <= float(total)
    assert found.ladder is not None
    assert found.ladder.cost == pytest.approx(cost)
    assert found.ladder.left == pytest.approx(float(total) - cost)
    assert len(found.ladder.rungs) == 5
    assert found.ladder.rungs[-1].cost <= 0.7 * float(total)
    groups = {(row.flops_budget, row.size): set() for row in found.rows}
    for row in found.rows:
        groups[row.flops_budget, row.size].add(row.arm)
    assert set(map(frozenset, groups.values())) == {frozenset({"baseline", "lst_static"})}


def test_the_ladder_written_by_hand_is_the_same_plan(capsys: pytest.CaptureFixture[str]) -> None:
    call = ["study=isoflop", "budgets=[]", "spend.total_flops=5e22", "spend.budgets=4", "--dry-run"]
    assert main(call) == 0
    text = " ".join(capsys.readouterr().out.split())
    by_hand = text.partition("the same by hand: ")[2].split(" ")[:2]
    overrides = dict(word.split("=", 1) for word in by_hand)
    chosen = planned(**{"spend.total_flops": "5e22", "spend.budgets": "4"})
    hand = plan(compose_study({"study": "isoflop", **overrides}))
    assert [row.run_id for row in hand.rows] == [row.run_id for row in chosen.rows]


def test_a_study_with_budgets_of_its_own_is_held_to_its_total() -> None:
    with pytest.raises(PlanError, match=r"rows cost .* FLOPs, over the total of 1e\+21"):
        plan(compose_study({"study": "isoflop", "spend.total_flops": "1e21"}))


@pytest.mark.parametrize(
    ("overrides", "error", "sentence"),
    [
        ({"spend.total_gpu_hours": "100", "price.device": "cpu", "price.gpus": "1"}, ConfigError, "give price.device"),
        ({"spend.total_money": "100"}, ConfigError, "give price.dollars_per_gpu_hour"),
        ({"spend.total_flops": "1e10"}, PlanError, "pays for no ladder"),
        ({}, ConfigError, r"exactly one length axis of .*, or a total \(spend\); this one has none"),
    ],
)
def test_a_total_that_cannot_be_is_one_sentence(overrides: dict[str, str], error: Any, sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        planned(**overrides)


def test_every_row_says_why_it_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study=isoflop", "budgets=[]", "spend.total_flops=5e22", "spend.budgets=4", "--dry-run", "explain=true"]) == 0
    text = re.sub(r"\n {20,}", " ", capsys.readouterr().out)  # a reason goes on in the next line
    rows = planned(**{"spend.total_flops": "5e22", "spend.budgets": "4"}).rows
    explained = {line.split()[0]: line for line in text.splitlines() if line[:12] in {row.run_id for row in rows}}
    assert len(explained) == len(rows)
    last = max(rows, key=lambda row: row.flops_budget)
    assert "rung 4 of 4, the one that fits are tested on" in explained[last.run_id]
    assert all(("matched to baseline" in explained[r.run_id]) == (r.arm == "lst_static") for r in rows)


def test_an_optimum_beyond_the_largest_size_is_warned_of() -> None:
    found = plan(compose_study({"study": "isoflop"}))
    assert [warning for warning in found.warnings if warning.startswith("budget 1e+22 has its expected optimum at 9.13e+09")]
    assert not [warning for warning in found.warnings if warning.startswith("budget 3.2e+21")]


def test_published_recipes_give_their_formulas_values() -> None:
    situation = Situation(
        size="", num_params=1_100_000_000, num_non_embedding_params=1_000_000_000, width=2048, tokens=2e10, seq_len_units=4096
    )
    # by hand: 10^(log10 1.79 - 0.713 * 9 + 0.307 * 10.30103) and 10^(log10 0.58 + 0.571 * 10.30103)
    assert RECIPES["step_law"].lr(situation) == pytest.approx(9.963e-4, rel=2e-3)
    assert RECIPES["step_law"].batch_units(situation) == pytest.approx(4.418e5, rel=2e-3)
    # C = 6e9 * 2e10 = 1.2e20: 10^(log10 0.3118 - 0.125 * 20.07918) and 10^(log10 0.292 + 0.3271 * 20.07918)
    assert RECIPES["deepseek"].lr(situation) == pytest.approx(9.64e-4, rel=2e-3)
    assert RECIPES["deepseek"].batch_units(situation) == pytest.approx(1.0776e6, rel=5e-3)


@pytest.mark.parametrize(
    ("name", "options", "until"),
    [
        ("one total", ["budgets=[]", "spend.total_gpu_hours=20000"], "\n\n budget  size"),
        ("worked example", ["budgets=[1e19,1e20,1e21]", "spend.sizes_per_budget=4"], "\n\npeak memory"),
    ],
)
def test_the_document_shows_what_the_command_prints(
    name: str, options: list[str], until: str, capsys: pytest.CaptureFixture[str], update_golden: bool
) -> None:
    """.venv/bin/python -m pytest tests/sweeps/test_spending.py --update-golden     writes the tables of docs/planning.md anew"""
    assert main(["study=isoflop", *options, "--dry-run"]) == 0
    printed = capsys.readouterr().out.partition("\n\n")[2].partition(until)[0] + "\n"
    require_shown(DOCUMENT, printed, fence=f"text {name}", update=update_golden)
