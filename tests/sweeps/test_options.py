"""Options of a study reach run.yaml, and change the ids of the arms that have them and no others."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from lst.config import RunConfig, arm_config
from lst.errors import ConfigError, PlanError
from sweeps.folder import write_run
from sweeps.measure import Measurements
from sweeps.options import ModelOptions, TrainOptions
from sweeps.plan import Plan, plan_with
from sweeps.study import StudyConfig

ARMS = ["baseline", "bpe", "lst_static"]
WEIGHTS = "0123456789ab"


@pytest.fixture(scope="module")
def few(small_study: dict[str, Any]) -> dict[str, Any]:
    """One row of each kind of arm; a fixed learning rate, for the recipe's hangs on the number of parameters."""
    rules = small_study["admission"] | {"max_match_gap": 0.05}
    return small_study | {"arms": ARMS, "arm_sizes": {}, "sizes": ["tiny"], "budgets": [2e9], "admission": rules}


def planned(study: dict[str, Any], measure: Measurements, **sections: dict[str, Any]) -> Plan:
    merged = {key: {"speech_bpe_vocab": 160} | values if key == "model" else values for key, values in sections.items()}
    return plan_with(StudyConfig.from_dict(study | {"model": {"speech_bpe_vocab": 160}} | merged), measure)


def ids(plan: Plan) -> dict[str, str]:
    return {row.arm: row.run_id for row in plan.rows}


def written_configs(plan: Plan) -> dict[str, dict[str, Any]]:
    """run.yaml's configurations by arm, as files hold them."""
    texts = {name: data.decode() for name, data in plan.files().items() if name.endswith("run.yaml")}
    contents: list[Any] = [OmegaConf.to_container(OmegaConf.create(text)) for text in texts.values()]
    return {content["config"]["model"]["arm"]: content["config"] for content in contents}


@pytest.mark.parametrize(
    ("key", "value", "arms"),
    [
        ("cross_attention", "preceding", ["lst_static"]),
        ("local_text", False, ["lst_static"]),
        ("queries_per_patch", 1, ["lst_static"]),
        ("tied_head", True, ARMS),
        ("rope_theta", 10_000.0, ARMS),
    ],
)
def test_an_option_of_the_network_reaches_the_arms_that_have_it(
    few: dict[str, Any], measure: Measurements, key: str, value: Any, arms: list[str]
) -> None:
    before, after = planned(few, measure), planned(few, measure, model={key: value})
    assert [arm for arm in ARMS if ids(after)[arm] != ids(before)[arm]] == arms
    configs = written_configs(after)
    assert [arm for arm in ARMS if configs[arm]["model"][key] == value] == arms
    assert all(RunConfig.from_dict(config).run_id == ids(after)[arm] for arm, config in configs.items())


@pytest.mark.parametrize("queries", [None, 0, 2])
def test_no_number_of_queries_is_the_rungs(few: dict[str, Any], measure: Measurements, queries: int | None) -> None:
    assert ids(planned(few, measure, model={"queries_per_patch": queries})) == ids(planned(few, measure))


def test_defaults_in_words_leave_every_id_alone(few: dict[str, Any], measure: Measurements) -> None:
    model = {"cross_attention": "all", "local_text": True, "tied_head": False, "rope_theta": 500_000.0}
    train = dataclasses.asdict(TrainOptions())
    assert ids(planned(few, measure, model=model, train=train)) == ids(planned(few, measure))
    assert ModelOptions(**model) == ModelOptions()


@pytest.mark.parametrize(
    "changed",
    [
        {"bad_step": "skip"},
        {"max_skipped_steps": 3},
        {"spike_factor": 4.0},
        {"spike_memory_steps": 20},
        {"init_from": WEIGHTS},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_an_option_of_training_reaches_every_run(
    few: dict[str, Any], measure: Measurements, changed: dict[str, Any], tmp_path: Path
) -> None:
    weights = {"init_path": str(tmp_path / "a" / ".." / "weights")} if "init_from" in changed else {}
    before, after = planned(few, measure), planned(few, measure, train=changed, execution=weights)
    assert not set(ids(before).values()) & set(ids(after).values())
    for config in written_configs(after).values():
        assert {key: config["train"][key] for key in changed} == changed
        # absolute: runs start elsewhere
        assert config["execution"]["init_path"] == (str(tmp_path / "weights") if weights else "")


def test_a_run_by_hand_is_written_once_and_never_over_another(tmp_path: Path) -> None:
    config = arm_config("baseline", optim={"schedule": "wsd"}, train={"branch_steps": [50_000]})
    folder = write_run(config, tmp_path)
    assert folder == tmp_path / "runs" / config.run_id
    assert write_run(config, tmp_path) == folder
    content: Any = OmegaConf.to_container(OmegaConf.load(folder / "run.yaml"))
    assert RunConfig.from_dict(content["config"]) == config
    elsewhere = dataclasses.replace(config, execution=dataclasses.replace(config.execution, threads=2))
    with pytest.raises(PlanError, match="is there and differs"):
        write_run(elsewhere, tmp_path)
    with pytest.raises(ConfigError, match="pooling"):
        write_run(dataclasses.replace(config, model=dataclasses.replace(config.model, pooling="mox")), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(PlanError, match="cannot be written"):
        write_run(config, tmp_path / "file")
