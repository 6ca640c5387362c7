"""Runs that start from another run's weights are started after it, on this machine and on a (fake) SLURM."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from launch.rows import read_rows, waits_for
from lst.records import write_json
from tests.launch.fake_slurm import install
from tests.launch.study import call, lives, make_study, status

CHILD = {"steps": 9, "parent": 0}


def make_families(folder: Path, *behaviours: dict[str, object]) -> list[str]:
    """As `make_study`; `parent` is the place of the run that a run starts from."""
    runs = make_study(folder, *behaviours)
    path = folder / "plan.csv"
    rows = list(csv.DictReader(path.read_text().splitlines()))
    for row, behaviour in zip(rows, behaviours, strict=True):
        parent = behaviour.get("parent")
        row["kind"], row["parent_run_id"] = ("pretrain", "") if parent is None else ("finetune", runs[int(str(parent))])
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return runs


def test_a_child_starts_after_its_parent_though_it_is_longer_and_a_slot_is_free(tmp_path: Path) -> None:
    parent, child = make_families(tmp_path, {"steps": 4, "seconds_per_step": 0.05}, CHILD)
    assert status(tmp_path)[child]["cause"] == f"starts from run {parent}, which is not done"
    code, out, err = call("submit", tmp_path, "cluster=local", "parallel=2")
    assert (code, err) == (0, "")
    assert "2 runs: 2 done" in out
    (ended,) = lives(tmp_path, parent)
    (started,) = lives(tmp_path, child)
    assert started["time"] > ended["time"] + 4 * 0.05


def test_a_child_of_a_failed_run_is_not_started_and_that_is_told(tmp_path: Path) -> None:
    parent, child = make_families(tmp_path, {"steps": 4, "die_at": 0, "how": "raise", "bad_lives": 1}, CHILD)
    code, out, err = call("submit", tmp_path, "cluster=local", "parallel=2")
    assert code == 1
    assert f"not started yet: 1, the first waits for run {parent}, from whose weights it starts" in out + err
    assert lives(tmp_path, child) == []
    assert status(tmp_path)[child]["state"] == "planned"
    assert call("submit", tmp_path, "cluster=local")[0] == 0
    assert {run["state"] for run in status(tmp_path).values()} == {"done"}


def test_slurm_gets_a_child_when_its_parent_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in install(tmp_path / "slurm").items():
        monkeypatch.setenv(name, value)
    study = tmp_path / "study"
    parent, child = make_families(study, {"steps": 2}, CHILD)
    _, out, err = call("submit", study, "cluster=slurm")
    assert "not started yet: 1" in out + err
    assert [status(study)[run]["job_id"] != "" for run in (parent, child)] == [True, False]
    write_json(study / "runs" / parent / "exit.json", {"run_id": parent, "status": "done", "step": 2})
    assert "1 run submitted" in call("submit", study, "cluster=slurm")[1]
    assert status(study)[child]["job_id"] != ""


def test_the_child_of_a_branch_waits_for_the_run_that_yields_it(tmp_path: Path) -> None:
    trunk, branch, child = make_families(tmp_path, {"steps": 4}, {"steps": 2, "parent": 0}, {"steps": 3, "parent": 1})
    text = (tmp_path / "plan.csv").read_text().replace(f"finetune,{trunk}", f"branch,{trunk}")
    (tmp_path / "plan.csv").write_text(text)
    rows = {row.run_id: row for row in read_rows(tmp_path)}
    assert branch not in rows
    assert waits_for(tmp_path, rows[child]) == trunk
    write_json(tmp_path / "runs" / trunk / "exit.json", {"run_id": trunk, "status": "done"})
    assert waits_for(tmp_path, rows[child]) == ""
