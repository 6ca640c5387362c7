"""The round trip: a plan is made and written, its runs get losses from a law that is known, and the fit finds the law again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analysis.collect import collect_into
from analysis.laws import LossSurface
from analysis.results import IsoflopFit, SharedFit, SurfaceFit
from analysis.study import FitOptions, fit_study
from lst import records
from lst.records import write_json
from sweeps.columns import PlanRow
from sweeps.plan import plan, read_plan
from sweeps.propose import propose
from sweeps.spend import SpendConfig

TRUTH = LossSurface(E=1.7, A=400.0, B=410.0, alpha=0.34, beta=0.28)
GAIN = 1.25  # LST's loss is the baseline's with so many times the data: its compute multiplier at every budget
STUDY = {"name": "isoflop", "data": "paper", "budgets": [1e19, 1e20, 1e21], "dtype": "bfloat16", "recipe": {"name": "step_law"}}
SIZES = ["64M", "100M", "200M", "420M", "630M", "810M", "1.1B", "1.8B", "7B"]


def train(folder: Path, row: PlanRow, data: float) -> None:
    """What the trainer leaves of a run whose final loss the law decides, by its parameters and data."""
    loss = float(TRUTH.predict(row.num_params, data * (GAIN if row.arm == "lst_static" else 1.0)))
    spent = {name: getattr(row, name) for name in ("units", "tokens", "text_tokens", "text_only_tokens", "speech_tokens")}
    with records.JsonLinesWriter(folder / records.TRAIN_RECORDS) as file:
        for share in (0.25, 0.5, 0.75, 1.0):
            so_far = {name: share * value for name, value in spent.items()} | {"train_flops": share * row.planned_flops}
            known = {"step": round(share * row.steps), "loss": loss / share, "lr": row.lr, "grad_norm": 1.0, "time": 1e9 + share}
            file.write(known | so_far)
    named = {"task": "heldout_mixture", "direction": "ST->ST", "metric": "nats_per_token", "value": loss, "n_items": 1000}
    with records.JsonLinesWriter(folder / records.EVAL_RECORDS) as file:
        file.write({"step": row.steps, "train_flops": row.planned_flops} | spent | named)
    ended = {"run_id": row.run_id, "status": "done", "step": row.steps, "train_flops": row.planned_flops, "seconds": 1.0}
    records.write_json(folder / records.EXIT, ended | spent | {"attempts": 1, "versions": {}, "num_params": {}})


def trained_study(folder: Path, data_of: Callable[[PlanRow], float]) -> tuple[Path, dict[str, Any]]:
    """A study's folder, planned and written, with every run done, and its fits."""
    planned = plan({**STUDY, "sizes": SIZES, "spend": {"sizes_per_budget": 5}})
    planned.write(folder)
    for row in planned.rows:
        train(folder / "runs" / row.run_id, row, data_of(row))
    collect_into(folder)
    return folder, fit_study(folder, FitOptions(resamples=0))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The law counts tokens, as a loss surface does."""
    return trained_study(tmp_path_factory.mktemp("trip") / "study", lambda row: row.tokens)


def entry(content: dict[str, Any], kind: str, arm: str) -> dict[str, Any]:
    (found,) = (e for e in content[kind] if (e["arm"], e["target"]) == (arm, "mixture"))
    return dict(found)


def test_the_fit_recovers_the_law(trained: tuple[Path, dict[str, Any]]) -> None:
    law = SurfaceFit.from_json(entry(trained[1], "fits", "baseline")["loss_surface"]).law
    for name in ("E", "A", "B", "alpha", "beta"):
        assert getattr(law, name) == pytest.approx(getattr(TRUTH, name), rel=0.01), name


def test_the_fit_recovers_the_compute_multiplier_and_the_minima(tmp_path: Path) -> None:
    """The law counts C / (6 N), as a comparison by compute does."""
    _, fits = trained_study(tmp_path / "study", lambda row: row.planned_flops / 6 / row.num_params)
    shared = SharedFit.from_json(entry(fits, "comparisons", "lst_static")["shared"])
    assert shared.efficiencies["lst_static"]["compute"] == pytest.approx(GAIN, rel=0.01)
    inside = [p for p in IsoflopFit.from_json(entry(fits, "fits", "baseline")["isoflop"]).profiles if p.status == "interior"]
    assert len(inside) >= 2


def test_the_next_rows_are_planned_from_the_law_that_was_found(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, fits = trained
    write_json(folder / "fits.json", fits)
    found = propose(read_plan(folder), SpendConfig(total_flops=2.1e22))
    assert found.optimum.startswith("fits.json: N* = ")
    new = [one for one in found.chosen if one.place.budget > 1e21]
    assert {one.place.budget for one in new} == {1e22}
    assert float(new[0].why.split()[-2]) == pytest.approx(TRUTH.optimal(1e22).num_params, rel=0.02)
    assert all(row.status == "admitted" for one in new for row in one.rows)
