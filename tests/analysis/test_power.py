"""`fit-scaling power`: widths from simulated studies, rows by their information, the command and its refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.cli import main
from analysis.laws import LossSurface
from analysis.planned import Cell, alternatives, noise_of, planned_cells
from analysis.power import POWER, Assumed, PowerOptions, importance, proposed, quantities, simulated, study_power
from lst.errors import FitError
from tests.analysis.study_folder import TRUTH, Synthetic, write_study

QUICK = PowerOptions(simulations=100, loss="squares", extra_seeds=1)


def cells_of(*, budgets: tuple[float, ...] = (1e18, 1e19, 1e20), sizes: int = 5) -> tuple[Cell, ...]:
    found = []
    for budget in budgets:
        for k, n in enumerate(TRUTH.optimal(budget).num_params * np.geomspace(0.3, 3.2, sizes)):
            for arm in ("baseline", "lst"):
                place = {"num_params": float(n), "flops_budget": budget, "planned_flops": budget, "cost_flops": budget}
                found.append(Cell(key=f"{arm}{k}{budget}", arm=arm, size=f"s{k}", gpu_hours=1.0, seed=0, **place))
    return tuple(found)


def assumed(multiplier: float = 1.2) -> Assumed:
    return Assumed(TRUTH, "test", {"baseline": 1.0, "lst": multiplier})


def width(entry: dict[str, Any], name: str) -> float:
    value = entry["quantities"][name]["width"]
    assert value is not None
    return float(value)


def test_truth_of_the_simulation_is_the_assumed_law() -> None:
    cells = cells_of()
    problem, theta, log_loss = assumed(1.3).problem(cells, np.inf)
    found = {name: float(v[0]) for name, v in quantities(problem, theta[None], cells, ["baseline", "lst"]).items()}
    assert found["alpha"] == pytest.approx(TRUTH.alpha)
    assert np.exp(found["multiplier.lst"]) == pytest.approx(1.3)
    assert np.exp(found["optimal_params"]) == pytest.approx(TRUTH.optimal(1e20).num_params)
    predicted = TRUTH.predict(cells[1].num_params, 1.3 * cells[1].six_nd_tokens)
    assert log_loss[1] - log_loss[0] == pytest.approx(
        np.log(predicted / TRUTH.predict(cells[0].num_params, cells[0].six_nd_tokens))
    )


def test_more_seeds_narrow_every_width_by_the_root_of_their_number_and_cost_in_proportion() -> None:
    plan, more = (d for d in alternatives(cells_of(), 1) if d.name in ("as planned", "1 more seed everywhere"))
    entries = [simulated(d, assumed(), PowerOptions(simulations=400, loss="squares", seed_noise=0.001)) for d in (plan, more)]
    assert more.cost_flops == pytest.approx(2 * plan.cost_flops)
    for name in ("alpha", "beta", "optimal_exponent"):
        assert width(entries[1], name) / width(entries[0], name) == pytest.approx(2**-0.5, rel=0.15), name
    logs = [np.log(width(e, "multiplier.lst")) for e in entries]
    assert logs[1] / logs[0] == pytest.approx(2**-0.5, rel=0.15)


def test_dropping_the_ends_of_the_ladder_widens_the_exponents_most() -> None:
    entries = {d.name: simulated(d, assumed(), QUICK) for d in alternatives(cells_of(), 0)}
    plan = width(entries["as planned"], "optimal_exponent")
    assert width(entries["without budget 1e+20"], "optimal_exponent") > 1.2 * plan
    assert width(entries["one larger budget"], "optimal_exponent") < plan
    assert entries["without budget 1e+20"]["cost_flops"] < entries["as planned"]["cost_flops"]


def test_common_runs_share_their_noise_between_designs() -> None:
    cells = cells_of()
    np.testing.assert_array_equal(noise_of(cells[3:], 5, 1), noise_of(cells, 5, 1)[:, 3:])
    assert abs(noise_of(cells[:1], 4000, 0).std() - 1) < 0.05


def test_importance_agrees_with_simulation_and_repeats_never_harm() -> None:
    """Small noise: the delta method's standard error without the largest budget's smallest baseline equals the simulation's."""
    cells = cells_of()
    rows, candidates = importance(cells, proposed(cells), assumed())
    assert [r["run_id"] for r in rows] == [c.key for c in cells]
    for row in rows:
        assert all(v <= 1 + 1e-9 for v in row["with"].values())
        assert all(v is None or v >= 1 - 1e-9 for v in row["without"].values())
    options = PowerOptions(simulations=2000, loss="squares", seed_noise=2e-4, evaluation_noise=0.0)
    plan = alternatives(cells, 0)[0]
    left = type(plan)("one less", "none", tuple(c for c in cells if c.key != rows[-2]["run_id"]))
    ratio = width(simulated(left, assumed(), options), "alpha") / width(simulated(plan, assumed(), options), "alpha")
    assert ratio == pytest.approx(rows[-2]["without"]["alpha"], rel=0.06)
    assert [c["gain_per_flop"] for c in candidates] == sorted((c["gain_per_flop"] for c in candidates), reverse=True)


def test_width_is_that_of_the_fits_own_intervals(tmp_path: Path) -> None:
    """Across many studies of the plan the estimates' central 90% is what a 90% interval must have: checked by hand for alpha."""
    cells = cells_of(sizes=8)
    options = PowerOptions(simulations=300, loss="squares", seed_noise=0.002, evaluation_noise=0.0)
    entry = simulated(alternatives(cells, 0)[0], assumed(), options)
    problem, theta, _ = assumed().problem(cells, np.inf)
    from analysis.solver import model

    value, slope = model(problem, theta[None])
    score = slope[0] / value[0][:, None]
    error = 0.002 * np.sqrt(np.linalg.inv(score.T @ score)[-2, -2])
    assert width(entry, "alpha") == pytest.approx(2 * 1.645 * error, rel=0.15)


def test_command_writes_power_json_twice_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_study(tmp_path / "study", Synthetic(sizes=4))
    arguments = ["power", str(folder), "simulations=40", "extra_seeds=1", "loss=squares", "multiplier=1.1"]
    assert main(arguments) == 0
    first = (folder / POWER).read_bytes()
    shown = capsys.readouterr().out
    assert "as planned" in shown
    assert "multiplier.lst_static" in shown
    assert main([*arguments, "--json"]) == 0
    assert (folder / POWER).read_bytes() == first
    content = json.loads(capsys.readouterr().out)
    assert content == json.loads(first)
    assert content["designs"][0]["runs"] == len(content["rows"]) == 24
    assert content["law"]["multipliers"] == {"baseline": 1.0, "lst_static": 1.1}
    assert any("literature's" in w for w in content["warnings"])
    assert {c["arm"] for c in content["candidates"]} == {"baseline", "lst_static"}


def test_fits_of_another_shape_are_refused(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", Synthetic(sizes=3))
    (folder / "fits.json").write_text(json.dumps({"fits": None}))
    with pytest.raises(FitError, match=r"does not have the shape of docs/fitting\.md"):
        study_power(folder, QUICK)


def test_fitted_law_of_the_study_is_used_where_there_is_one(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", Synthetic(sizes=3))
    law = LossSurface(E=1.5, A=300.0, B=500.0, alpha=0.3, beta=0.3)
    entry = {"arm": "baseline", "target": "mixture", "n_kind": "num_params", "loss_surface": law.to_json()}
    (folder / "fits.json").write_text(json.dumps({"fits": [entry]}))
    content = study_power(folder, QUICK)
    assert content["law"]["source"].startswith("fits.json")
    assert content["law"]["alpha"] == 0.3
    assert study_power(folder, PowerOptions(simulations=20, law="hoffmann", extra_seeds=0))["law"]["alpha"] == 0.34


def test_design_that_cannot_be_fitted_says_why(tmp_path: Path) -> None:
    entry = simulated(alternatives(cells_of(budgets=(1e18,), sizes=2), 0)[0], assumed(), QUICK)
    assert "leave no degree of freedom" in entry["refused"]
    assert entry["quantities"] == {}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["multiplier=0"], "multiplier=0"),
        (["simulations=3"], "simulations=3"),
        (["baseline=base"], "baseline=base has no admitted run"),
        (["sed_noise=0.1"], "did you mean 'seed_noise'"),
        (["law=mine"], "law is fits or hoffmann"),
        (["evaluation_noise=-1"], "must be 0 or more"),
    ],
)
def test_wrong_options_are_one_sentence(
    words: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_study(tmp_path / "study", Synthetic(sizes=3))
    assert main(["power", str(folder), *words]) == 2
    assert sentence in capsys.readouterr().err
    assert not (folder / POWER).exists()


def test_plan_without_admitted_runs_is_refused(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", Synthetic(sizes=3))
    plan = folder / "plan.csv"
    plan.write_text(plan.read_text().replace("admitted", "refused"))
    with pytest.raises(FitError, match="plans no admitted"):
        planned_cells(folder, "num_params")
