"""Records that are whole JSON and make no sense: which runs they cost, and what is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from analysis.collect import collect, collect_into
from analysis.study import final_losses, read_table
from lst import records
from tests.analysis.study_folder import Synthetic, rows, write_study

SMALL = Synthetic(budgets=(1e18,), sizes=2)


@pytest.mark.parametrize(
    ("value", "reason", "left"),
    [
        (float("nan"), "diverged: heldout_mixture ST->ST ends at nan nats per token", 4),
        (float("inf"), "diverged: heldout_mixture ST->ST ends at inf nats per token", 4),
        (-1.0, "no loss: heldout_mixture ST->ST ends at -1 nats per token", 5),
        (0, "no loss: heldout_mixture ST->ST ends at 0 nats per token", 5),
    ],
)
def test_run_whose_held_out_loss_no_law_describes_is_excluded_and_the_others_are_fitted(
    tmp_path: Path, value: float, reason: str, left: int
) -> None:
    first = rows(SMALL)[0][0]
    home = write_study(tmp_path, SMALL) / "runs" / first.run_id
    text = (home / records.EVAL_RECORDS).read_text().splitlines(keepends=True)
    text[0] = json.dumps(json.loads(text[0]) | {"value": value}) + "\n"
    (home / records.EVAL_RECORDS).write_text("".join(text))
    runs, notes = collect_into(tmp_path)
    assert list(runs["excluded"]) == [reason, "", "", ""]
    assert notes == ([] if left == 5 else [f"run {first.run_id}: 1 evaluations without a finite value were left out."])
    results = read_table(tmp_path, "results.csv")
    assert list(results["run_id"]).count(first.run_id) == left
    assert len(final_losses(read_table(tmp_path, "runs.csv"), results, "mixture")) == 3


@pytest.mark.parametrize("data", [None, b"", b"\x00\xff" * 100])
def test_complete_run_without_training_records_is_excluded(tmp_path: Path, data: bytes | None) -> None:
    home = write_study(tmp_path, SMALL) / "runs" / rows(SMALL)[0][0].run_id
    ended = records.read_json(home / records.EXIT)
    assert ended is not None
    records.write_json(home / records.EXIT, {name: value for name, value in ended.items() if name != "tokens"})
    (home / records.TRAIN_RECORDS).unlink()
    if data is not None:
        (home / records.TRAIN_RECORDS).write_bytes(data)
    assert list(collect(tmp_path).runs["excluded"]) == [
        "no tokens in its records: train.jsonl or exit.json is missing or damaged", "", "", "",
    ]  # fmt: skip


def test_field_of_another_type_in_exit_json_is_taken_from_the_last_record(tmp_path: Path) -> None:
    home = write_study(tmp_path, SMALL) / "runs" / rows(SMALL)[0][0].run_id
    ended = records.read_json(home / records.EXIT)
    assert ended is not None
    records.write_json(home / records.EXIT, ended | {"train_flops": "x", "seconds": "long"})
    run = collect(tmp_path).runs.iloc[0]
    assert (run["train_flops"], run["seconds"], run["excluded"]) == (1e18, None, "")


def test_folders_that_the_plan_does_not_know_are_told(tmp_path: Path) -> None:
    runs = write_study(tmp_path, SMALL) / "runs"
    shutil.copytree(next(runs.iterdir()), runs / "copied")
    (runs / ".hidden").mkdir()
    (runs / "notes.txt").write_text("")
    assert collect(tmp_path).notes == (f"'{runs}' has folders that are no row of plan.csv, so they were left out: copied.",)
    assert collect_into(tmp_path)[1] == [f"'{runs}' has folders that are no row of plan.csv, so they were left out: copied."]


def test_damage_that_python_cannot_hold_costs_the_damaged_line_alone(tmp_path: Path) -> None:
    home = write_study(tmp_path, SMALL) / "runs" / rows(SMALL)[0][0].run_id
    whole = collect(tmp_path).runs
    (tmp_path / "launch").mkdir(exist_ok=True)
    with (tmp_path / "launch" / "ledger.jsonl").open("a") as ledger:
        ledger.write('{"run_id": [1], "event": "started", "attempt": 1}\n')
    evaluation = json.loads((home / records.EVAL_RECORDS).read_text().splitlines()[0])
    with (home / records.EVAL_RECORDS).open("a") as file:
        file.write(json.dumps(evaluation | {"step": 1, "value": 10**400}) + "\n")
    with (home / records.TRAIN_RECORDS).open("a") as file:
        file.write("[" * 100_000 + "\n")
    assert collect(tmp_path).runs.equals(whole)
