"""A run that goes on from another run's weights: all of them, once, and not before that run is done."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lst.config import RunConfig
from lst.errors import CheckpointError, ConfigError
from lst.model import build_model, load_checkpoint
from lst.model.warm_start import warm_start
from lst.records import read_json, read_jsonl, write_json
from lst.train.__main__ import main
from tests.train.tiny_run import tiny_config, write_run

Family = tuple[Path, RunConfig, RunConfig]
PAIRS = {"interleaved_token_share": 1 / 3, "mixture": {"asr": 1.0}} | {
    f"mixture_sequences_{kind}": [0.0, 0.0, 1.0, 0.0, 0.0] for kind in ("static", "aligned")
}


def child_of(parent: RunConfig, data: Path, **overrides: Any) -> RunConfig:
    sections: dict[str, Any] = {
        "train": {"steps": 3, "init_from": f"run:{parent.run_id}"},
        "optim": {"warmup_steps": 0, "lr": 3e-4},
        "data": PAIRS,
        "evaluation": {"story_items": 0, "points": 1},
    }
    return tiny_config(
        "lst_static", data, **{name: sections.get(name, {}) | more for name, more in (sections | overrides).items()}
    )


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Family:
    """A study's folder `runs` with a finished parent of 3 steps, and the configuration of a child."""
    runs = tmp_path_factory.mktemp("study") / "runs"
    parent = tiny_config("lst_static", tiny_data, train={"steps": 3}, evaluation={"story_items": 0, "points": 1})
    assert main([str(write_run(runs / parent.run_id, parent))]) == 0
    return runs, parent, child_of(parent, tiny_data)


def test_a_child_begins_with_all_weights_of_its_parent(family: Family) -> None:
    runs, parent, child = family
    model = build_model(child)
    record = warm_start(model, child, runs / child.run_id)
    theirs, _ = load_checkpoint(runs / parent.run_id)
    assert record["random"] == 0
    assert sum(record["loaded"].values()) == sum(p.numel() for p in model.parameters())
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_a_child_is_trained_and_says_from_what(family: Family, capfd: pytest.CaptureFixture[str]) -> None:
    runs, parent, child = family
    assert main([str(write_run(runs / child.run_id, child))]) == 0
    ended = read_json(runs / child.run_id / "exit.json")
    assert ended is not None
    assert ended["warm_start"]["init_from"] == f"run:{parent.run_id}"
    losses = [[r["loss"] for r in read_jsonl(runs / run.run_id / "train.jsonl")] for run in (parent, child)]
    assert losses[1][0] < losses[0][0]  # it knows something already
    assert ended["text_tokens"] > 0
    assert ended["speech_tokens"] > 0


def test_the_parent_is_part_of_the_identity_and_its_place_is_not(family: Family, tiny_data: Path) -> None:
    _, parent, child = family
    assert child.run_id != child_of(child, tiny_data).run_id
    assert child.run_id == child_of(parent, tiny_data, execution={"init_path": "/elsewhere"}).run_id


def test_a_parent_elsewhere_is_found_by_its_path(family: Family, tiny_data: Path, tmp_path: Path) -> None:
    runs, parent, _ = family
    child = child_of(parent, tiny_data, execution={"init_path": str(runs / parent.run_id)})
    assert warm_start(build_model(child), child, tmp_path / child.run_id)["random"] == 0


def test_the_weights_of_a_branch_are_those_of_the_run_that_it_equals(family: Family, tmp_path: Path) -> None:
    runs, parent, child = family
    budget = tmp_path / "runs" / "0123456789ab" / "checkpoints" / "budget-00000003"
    shutil.copytree(runs / parent.run_id / "checkpoints" / "final", budget)
    write_json(budget / "tag.json", {"equal_run_id": parent.run_id})
    assert warm_start(build_model(child), child, tmp_path / "runs" / child.run_id)["random"] == 0


def refusal(child: RunConfig, run_dir: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        warm_start(build_model(child), child, run_dir)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_a_missing_an_unfinished_and_another_parent_are_one_sentence(
    family: Family, tiny_data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    runs, parent, child = family
    what = f"this run starts from the weights of run {parent.run_id}, and "
    folder = write_run(tmp_path / "runs" / child.run_id, child)
    there = tmp_path / "runs" / parent.run_id
    assert main([str(folder)]) == 2
    error = capfd.readouterr().err
    assert f"error: {what}'{there}' does not exist; train it there, or give execution.init_path." in error
    assert "Traceback" not in error
    shutil.copytree(runs / parent.run_id, there)
    (there / "exit.json").unlink()
    assert refusal(child, folder) == f"{what}that run is not finished in '{there}'; train it to its end first."
    elsewhere = child_of(parent, tiny_data, execution={"init_path": str(runs / child.run_id)})
    write_json(there / "exit.json", {"run_id": "0123456789ab", "status": "done"})
    assert refusal(child, folder).startswith(f"{what}'{there}' holds run 0123456789ab; point execution.init_path")
    assert refusal(elsewhere, folder).startswith(what)


def test_a_parent_of_another_network_is_refused_by_the_first_number_that_differs(family: Family, tiny_data: Path) -> None:
    runs, parent, _ = family
    child = child_of(parent, tiny_data, model={"pooling": "mean"})
    assert "have model.pooling=max, the run that starts from them has mean; a run goes on" in refusal(child, runs / child.run_id)


@pytest.mark.parametrize("name", ["run:", "run:xyz", "run:0123456789AB", "fun:0123456789ab"])
def test_what_names_no_run_is_refused(name: str, tiny_data: Path) -> None:
    with pytest.raises(ConfigError, match=r"is no content hash; give what .* prints, or run:<run_id>"):
        tiny_config("baseline", tiny_data, train={"init_from": name})
