"""Which jobs hold their places under limit.gpus, and which are taken back from the queue."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.asked import read_order
from launch.ledger import read_attempts
from launch.order import pump
from lst.records import write_json
from tests.launch.study import make_study, send
from tests.launch.test_orders import NOW, end, jobs, live, root, small, start

__all__ = ["small"]  # a fixture


@pytest.mark.parametrize("listed", ["RUNNING", "COMPLETING", "CONFIGURING", "PENDING"])
@pytest.mark.parametrize(("state", "failure"), [("interrupted", "preempted"), ("interrupted", "timeout"), ("failed", "killed")])
def test_a_job_that_is_about_to_go_on_keeps_its_place(tmp_path: Path, slurm: Path, listed: str, state: str, failure: str) -> None:
    study = tmp_path / "study"
    make_study(study, {"steps": 7}, {"steps": 8})
    send(study, NOW, limits={"gpus": 1})
    (first,) = jobs(study)
    live(study, first, state, failure)
    (slurm / "queue.txt").write_text(f"4711_0 {listed}\n")
    pump(study, root(study))
    assert jobs(study) == {first: ["4711_0"]}
    assert len(read_order(study).waiting) == 1
    (slurm / "queue.txt").write_text("")
    end(study, first, "interrupted", "cancelled", attempt=2)
    pump(study, root(study))
    assert len(jobs(study)) == 2


def test_a_job_that_leaves_for_good_gives_its_place(tmp_path: Path, slurm: Path) -> None:
    study = tmp_path / "study"
    make_study(study, {"steps": 7}, {"steps": 8})
    send(study, NOW, limits={"gpus": 1})
    (first,) = jobs(study)
    live(study, first, "failed", "nan")
    (slurm / "queue.txt").write_text("4711_0 RUNNING\n")
    pump(study, root(study))
    assert len(jobs(study)) == 2


def test_a_job_of_a_run_that_is_done_is_not_taken_back(tmp_path: Path, slurm: Path) -> None:
    study = tmp_path / "study"
    runs = make_study(study, {"steps": 7}, {"steps": 8})
    send(study, NOW)
    (done,), (other,) = (jobs(study)[run] for run in runs)
    live(study, runs[0], "done", "", done)
    write_json(study / "runs" / runs[0] / "exit.json", {"run_id": runs[0], "status": "done", "step": 7})
    start(study, runs[1], other)
    (slurm / "queue.txt").write_text(f"{done} PENDING\n{other} RUNNING\n")  # its worker was killed while it pumped
    assert "taken back" not in send(study, NOW, limits={"gpus": 1})
    assert [a.state for a in read_attempts(study)[runs[0]]] == ["done"]
