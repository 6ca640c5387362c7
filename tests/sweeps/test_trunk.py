"""Several budgets from one run: what it saves by hand, the rows of the plan, and the same study trained and collected."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from analysis.collect import collect, collect_into
from analysis.study import final_losses, read_table, spending_warnings
from launch.rows import read_rows
from lst.config import OptimConfig
from lst.errors import ConfigError
from lst.records import read_json
from lst.schedule import fork_step
from sweeps.allocate import flops_until
from sweeps.measure import Measurements
from sweeps.plan import Plan, plan_with, read_plan
from sweeps.reprice import reprice
from sweeps.study import StudyConfig
from sweeps.trunk import savings

ROOT = Path(__file__).parents[2]
RECIPE = {"schedule": "wsd", "share_trunk": True, "decay_share": 0.25, "batch_sequences": 4, "warmup_steps": 2}


@pytest.fixture(scope="module")
def study(small_study: dict[str, Any]) -> dict[str, Any]:
    loose = {
        "min_steps": 2,
        "min_batch_units": 1,
        "max_warmup_share": 1.0,
        "max_match_gap": 0.2,
        "max_speech_epochs": 1e9,
        "warn_speech_epochs": 1e9,
    }
    return small_study | {"sizes": ["tiny"], "arm_sizes": {}, "recipe": RECIPE, "admission": loose, "budgets": [2e9, 3e9, 4e9]}


@pytest.fixture(scope="module")
def planned(study: dict[str, Any], measure: Measurements) -> Plan:
    return plan_with(StudyConfig.from_dict(study), measure)


def test_saving_by_hand(small_plan: Plan) -> None:
    """Runs of 40 and 100 steps, decay over a quarter: the shorter one saves 30 of its 40 steps."""
    row = dataclasses.replace(small_plan.rows[0], status="admitted", arm="baseline", size="tiny", seed=0)
    short = dataclasses.replace(row, run_id="a", steps=40, planned_flops=4e9, est_gpu_hours=2.0)
    long = dataclasses.replace(row, run_id="b", steps=100, planned_flops=1e10, est_gpu_hours=5.0)
    (saving,) = savings([short, long], 0.25)
    assert (saving.budgets, saving.flops, saving.saved_flops, saving.saved_gpu_hours) == (2, 1.4e10, 3e9, 1.5)
    assert savings([short], 0.25) == []
    curriculum = [dataclasses.replace(r, arm="lst_curriculum") for r in (short, long)]
    assert savings(curriculum, 0.25) == []


def test_each_budget_keeps_a_row_and_the_total_counts_the_trunk_once(planned: Plan, measure: Measurements) -> None:
    for arm in ("baseline", "lst_static"):
        *branches, trunk = [row for row in planned.rows if row.arm == arm]
        config = planned.run_configs[trunk.run_id]
        assert config.train.branch_steps == tuple(row.steps for row in branches)
        assert [row.kind for row in branches] == ["branch", "branch"]
        assert {row.parent_run_id for row in branches} == {trunk.run_id}
        assert all(row.run_id not in planned.run_configs for row in branches)
        assert all(row.planned_spent_flops == row.est_minutes == row.est_kept_gib == 0 for row in branches)
        assert all(row.final_batch_sequences == 0 and row.branch == row.steps for row in branches)
        for row in branches:
            assert abs(row.gap) < 0.5 * row.flops_per_step / row.flops_budget + 0.01  # to the nearest whole batch
        flops = flops_until(measure)
        shared = sum(flops(config, fork_step(row.steps, config.optim)) for row in branches)
        apart = sum(row.planned_flops for row in (*branches, trunk))
        assert trunk.planned_spent_flops == pytest.approx(apart - shared, rel=1e-12)
    curriculum = [row for row in planned.rows if row.arm == "lst_curriculum"]
    assert {row.kind for row in curriculum} == {"pretrain"}
    assert any("lst_curriculum tiny seed 0 shares no trunk" in warning for warning in planned.warnings)
    assert (
        planned.totals.planned_flops
        == sum(row.planned_spent_flops for row in planned.rows)
        < sum(row.planned_flops for row in planned.rows)
    )


def test_a_branch_inside_the_warm_up_is_refused(study: dict[str, Any], measure: Measurements) -> None:
    """Warm-ups are 5% of the steps: the longest budget's is longer than the whole way to a budget 20 times as small."""
    recipe = {name: value for name, value in RECIPE.items() if name != "warmup_steps"}
    short, long = plan_with(
        StudyConfig.from_dict(study | {"arms": ["baseline"], "recipe": recipe, "budgets": [2e8, 4e9]}), measure
    ).rows
    assert fork_step(short.steps, OptimConfig(decay_share=0.25)) < long.warmup_steps
    assert (short.status, long.status) == ("refused", "admitted")
    assert "in the trunk's warm-up" in short.reason
    assert long.planned_spent_flops == long.planned_flops


def test_a_cosine_shares_no_trunk(study: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"recipe\.share_trunk=true needs recipe\.schedule=wsd"):
        StudyConfig.from_dict(study | {"recipe": {"share_trunk": True}})


def test_a_trained_trunk_gives_each_budget_its_row(planned: Plan, tmp_path: Path) -> None:
    out = tmp_path / "study"
    planned.write(out)
    stored = read_plan(out)
    assert reprice(stored, planned.study.price) == planned.rows
    *branches, trunk = [row for row in planned.rows if row.arm == "baseline"]
    submitted = [row.run_id for row in read_rows(out)]
    assert trunk.run_id in submitted
    assert not {row.run_id for row in branches} & set(submitted)
    subprocess.run([sys.executable, "-m", "lst.train", str(out / "runs" / trunk.run_id)], cwd=ROOT, check=True, timeout=170)
    ended = read_json(out / "runs" / trunk.run_id / "exit.json")
    assert ended is not None
    assert ended["spent_flops"] == pytest.approx(trunk.planned_spent_flops, rel=1e-9)
    collected = collect(out)
    collect_into(out)
    runs = collected.runs.set_index("run_id")
    for row in (*branches, trunk):
        found = runs.loc[row.run_id]
        assert (found["state"], found["excluded"], found["step"]) == ("done", "", row.steps)
        assert found["train_flops"] == pytest.approx(row.planned_flops, rel=1e-9)
    for row in branches:
        tag = json.loads((out / "runs" / trunk.run_id / "checkpoints" / f"budget-{row.steps}" / "tag.json").read_text())
        assert tag["equal_run_id"] == row.run_id
    table = read_table(out, "runs.csv")
    losses = final_losses(table, read_table(out, "results.csv"), "mixture")
    assert sorted(losses["run_id"]) == sorted(row.run_id for row in (*branches, trunk))
    assert losses["loss"].nunique() == 3
    assert spending_warnings(table) == []
