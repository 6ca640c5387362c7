"""A row of kind eval as a command: what is run for it, what is refused, and that it is no canary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launch.canary import canaries
from launch.evaluations import evaluation_words
from launch.prepare import task_of
from launch.rows import Row, read_rows, waits_for
from lst.errors import LaunchError
from lst.evals.__main__ import read_options
from lst.evals.item_set import SMOKE
from lst.evals.tasks import TASKS
from lst.plain import from_dict
from lst.records import write_json
from sweeps.plan import plan

STUDY: dict[str, Any] = {
    "name": "judged", "data": "paper", "sizes": ["420M"], "arms": ["baseline"], "units": [5e10], "matching": "unit",
    "recipe": {"name": "paper"}, "price": {"device": "h100"},
    "after": {"kind": "eval", "task": "choices", "items": [SMOKE], "options": {"limit": 4, "score": "loglik_sum"}, "shards": 2},
}  # fmt: skip


@pytest.fixture
def study(tmp_path: Path) -> Path:
    plan(STUDY).write(tmp_path / "study")
    return tmp_path / "study"


def first_evaluation(study: Path) -> Row:
    return next(row for row in read_rows(study) if row.kind == "eval")


def test_the_command_is_one_that_lst_evals_takes(study: Path) -> None:
    row = first_evaluation(study)
    module, verb, source, *options = task_of(study, row)
    assert (module, verb, source) == ("lst.evals", "choices", str(study / "runs" / row.parent))
    kind = TASKS[verb].options
    values = read_options(options, kind)
    from_dict(kind, values)
    content = json.loads((study / "runs" / row.run_id / "eval.json").read_text())
    out = study / "runs" / row.parent / "evals" / content["out"]
    assert values == {"limit": 4, "score": "loglik_sum", "items": SMOKE, "shard": "1/2", "out": str(out)}


@pytest.mark.parametrize("task", ["asr", "tts", "representations"])
def test_a_task_without_shards_has_a_command_too(tmp_path: Path, task: str) -> None:
    plan(STUDY | {"after": {"kind": "eval", "task": task, "options": {"utterances": 3}}}).write(tmp_path / "study")
    _, verb, _, *options = task_of(tmp_path / "study", first_evaluation(tmp_path / "study"))
    kind = TASKS[verb].options
    from_dict(kind, read_options(options, kind))
    assert [option.partition("=")[0] for option in options] == ["utterances", "out"]


def test_it_waits_for_its_parent_and_is_no_canary(study: Path) -> None:
    rows = read_rows(study)
    pretrained, *evaluations = rows
    assert {waits_for(study, row) for row in evaluations} == {pretrained.run_id}
    write_json(study / "runs" / pretrained.run_id / "exit.json", {"status": "done", "run_id": pretrained.run_id})
    assert {waits_for(study, row) for row in evaluations} == {""}
    assert canaries(study, evaluations, "code") == []


def test_weights_kept_on_the_way_are_evaluated_while_the_run_goes_on(tmp_path: Path) -> None:
    after = STUDY["after"] | {"every_steps": 30_000, "shards": 1}
    plan(STUDY | {"after": after}).write(tmp_path / "study")
    study = tmp_path / "study"
    pretrained, *evaluations = read_rows(study)
    assert evaluations[0].steps == 30_000
    kept = study / "runs" / pretrained.run_id / "checkpoints" / "kept-30000"
    assert {waits_for(study, row) for row in evaluations} == {pretrained.run_id}
    kept.mkdir(parents=True)
    assert [waits_for(study, row) for row in evaluations] == ["", *[pretrained.run_id] * (len(evaluations) - 1)]
    assert task_of(study, evaluations[0])[2] == str(kept)


@pytest.mark.parametrize(
    "change",
    [
        {"run": "../../elsewhere"},
        {"checkpoint": "../final"},
        {"checkpoint": "kept-../4"},
        {"out": "a/../../b"},
        {"shard": "2/2"},
        {"items": 3},
        {"evaluation": {"task": "choices", "options": {}}},
        {"evaluation": None},
    ],
)
def test_a_file_that_was_altered_is_refused(study: Path, change: dict[str, Any]) -> None:
    row = first_evaluation(study)
    path = row.folder(study) / "eval.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | change))
    with pytest.raises(LaunchError, match="is missing, or not as it was planned; plan the study again"):
        evaluation_words(study, row)
    path.unlink()
    with pytest.raises(LaunchError, match="is missing"):
        evaluation_words(study, row)
