"""What to run next: the worthiest places that a total pays for, from power.json; around the fitted optimum without it."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest

from analysis.power import PowerOptions, study_power
from analysis.power import write_power as write_power_of
from lst.records import write_json
from sweeps.cli import main
from sweeps.plan import StoredPlan, plan, read_plan
from sweeps.propose import propose
from sweeps.spend import SpendConfig

STUDY: dict[str, Any] = {
    "name": "isoflop", "data": "paper", "sizes": ["200M", "420M", "630M", "810M"], "budgets": [1e19, 1e20], "dtype": "bfloat16",
    "recipe": {"name": "step_law"}, "price": {"device": "h100", "gpus": "auto", "dollars_per_gpu_hour": 2.0},
}  # fmt: skip
LAW = {"E": 1.7, "A": 400.0, "B": 400.0, "alpha": 0.34, "beta": 0.28}


@pytest.fixture
def stored(tmp_path: Path) -> StoredPlan:
    plan(STUDY).write(tmp_path / "study")
    return read_plan(tmp_path / "study")


def finish(stored: StoredPlan, *budgets: float) -> None:
    for row in stored.rows:
        if row.flops_budget in budgets:
            write_json(stored.folder / "runs" / row.run_id / "exit.json", {"run_id": row.run_id, "status": "done"})


def write_power(stored: StoredPlan, worth: dict[str, float], candidates: list[dict[str, Any]] = []) -> None:  # noqa: B006
    """power.json in which the rows of a size save so much variance each."""
    rows = [{"run_id": row.run_id, "without": {"alpha": (1 - worth[row.size]) ** -0.5}} for row in stored.rows]
    digest = hashlib.sha256((stored.folder / "plan.csv").read_bytes()).hexdigest()
    write_json(
        stored.folder / "power.json", {"plan_sha256": digest, "rows": rows, "candidates": candidates, "warnings": ["a word"]}
    )


def test_without_any_result_the_planned_rows_come_first_the_cheapest_before(stored: StoredPlan) -> None:
    found = propose(stored, SpendConfig(total_flops=9e19))
    assert [(one.place.budget, one.planned, len(one.rows)) for one in found.chosen[:4]] == [(1e19, True, 2)] * 4
    assert math.fsum(one.cost for one in found.chosen) <= 9e19
    assert found.left == pytest.approx(9e19 - math.fsum(row.planned_flops for one in found.chosen for row in one.rows))
    assert "there is no power.json" in found.notes[0]
    assert found.optimum == "no fit yet: 20 tokens a parameter"


def test_the_rows_that_matter_most_a_flop_come_first(stored: StoredPlan) -> None:
    finish(stored, 1e19)
    write_power(stored, {"200M": 0.1, "420M": 0.2, "630M": 0.9, "810M": 0.5})
    found = propose(stored, SpendConfig(total_flops=4.2e20))
    assert [one.place.size for one in found.chosen] == ["630M", "810M"]
    assert [one.worth for one in found.chosen] == [pytest.approx(w * 2 / 2e20, rel=1e-3) for w in (0.9, 0.5)]
    assert all(one.why == "planned, not run yet" and one.place.budget == 1e20 for one in found.chosen)
    assert "a word" in found.notes


def test_a_worthy_place_that_the_plan_lacks_is_planned_with_every_arm(stored: StoredPlan) -> None:
    finish(stored, 1e19, 1e20)
    row = next(row for row in stored.rows if row.size == "420M" and row.flops_budget == 1e20)
    seed = {
        "arm": "baseline",
        "size": "420M",
        "num_params": row.num_params,
        "flops_budget": 1e20,
        "planned_flops": 1e20,
        "seed": 1,
    }
    size = {"arm": "baseline", "size": "", "num_params": 1.1e9, "flops_budget": 1e20, "planned_flops": 1e20, "seed": 0}
    write_power(stored, dict.fromkeys(STUDY["sizes"], 0.1), [{**seed, "gain_per_flop": 1e-21}, {**size, "gain_per_flop": 9e-21}])
    found = propose(stored, SpendConfig(total_flops=4.2e20))
    assert [(one.place.size, one.place.seed, one.why) for one in found.chosen] == [
        ("1.1B", 0, "a size that the budget lacks"),
        ("420M", 1, "another seed"),
    ]
    alone = plan({**STUDY, "sizes": ["1.1B"], "budgets": [1e20]})
    assert [row.run_id for row in found.chosen[0].rows] == [row.run_id for row in alone.rows]


def test_the_optimum_is_the_fits_and_leads_to_the_next_budget(stored: StoredPlan) -> None:
    finish(stored, 1e19, 1e20)
    entry = {"arm": "baseline", "target": "mixture", "n_kind": "num_params", "loss_surface": LAW}
    write_json(stored.folder / "fits.json", {"fits": [entry]})
    found = propose(stored, SpendConfig(total_flops=1e22))
    factor = (0.34 / 0.28) ** (1 / 0.62)
    assert found.optimum == f"fits.json: N* = {factor:.3g} (C/6)^{0.28 / 0.62:.3f}"
    assert {one.place.budget for one in found.chosen} == {1e21}
    assert f"of {factor * (1e21 / 6) ** (0.28 / 0.62):.3g} parameters" in found.chosen[0].why


def test_what_fit_scaling_power_writes_is_read(stored: StoredPlan) -> None:
    write_power_of(stored.folder, study_power(stored.folder, PowerOptions(simulations=20, extra_seeds=0)))
    finish(stored, 1e19)
    found = propose(stored, SpendConfig(total_flops=6e20))
    worths = [one.worth for one in found.chosen if one.worth is not None]
    assert len(worths) >= 2
    assert worths == sorted(worths, reverse=True)
    assert not [note for note in found.notes if "power.json" in note]


@pytest.mark.parametrize(("key", "currency"), [("total_gpu_hours", "GPU-hours"), ("total_money", "money")])
def test_hours_and_money_pay_as_the_plan_prices_them(stored: StoredPlan, key: str, currency: str) -> None:
    found = propose(stored, SpendConfig(**{key: 40.0}))
    column = {"GPU-hours": "est_gpu_hours", "money": "est_dollars"}[currency]
    assert found.currency == currency
    assert math.fsum(getattr(row, column) for one in found.chosen for row in one.rows) <= 40
    assert found.left < 40


def test_power_of_another_plan_is_left_out_and_that_is_told(stored: StoredPlan) -> None:
    write_json(stored.folder / "power.json", {"plan_sha256": "0", "rows": [], "candidates": []})
    assert "power.json is of another plan" in propose(stored, SpendConfig(total_flops=1e20)).notes[0]


def test_the_command_prints_a_table_and_what_to_type(stored: StoredPlan, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["propose", str(stored.folder), "total_flops=9e20"]) == 0
    text = capsys.readouterr().out
    assert max(len(line) for line in text.splitlines()) <= 100 + len(str(stored.folder))
    assert "submit-sweep submit" in text
    assert main(["propose", str(stored.folder), "total_flops=9e20", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["currency"] == "FLOPs"
    assert sum(one["cost"] for one in content["proposed"]) + content["left"] == pytest.approx(9e20)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ([], "nothing to spend; give total_flops"),
        (["total_flops=1e9"], "pay for no place that is worth a run; the cheapest costs"),
        (["total_flops=x"], "total_flops=x is no number"),
        (["total_flops=-1"], "spend.total_flops=-1.0 must be a finite number"),
        (["total_flop=1"], "unknown key 'total_flop'; did you mean 'total_flops'?"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    stored: StoredPlan, overrides: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["propose", str(stored.folder), *overrides]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_a_study_without_budgets_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan({**STUDY, "budgets": [], "tokens": [1e10]}).write(tmp_path / "s")
    assert main(["propose", str(tmp_path / "s"), "total_flops=1e20"]) == 2
    assert "has the length axis tokens; rows are proposed for runs of FLOP budgets alone" in capsys.readouterr().err
