"""What status tells of rows that wait while nothing of their study may start."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from launch.asked import read_order
from launch.cli import main
from launch.ledger import append_event, read_attempts
from launch.retries import stop_study
from tests.launch.study import NO_CANARY, make_study, send, status


@pytest.fixture
def waiting(tmp_path: Path, slurm: Path) -> tuple[Path, str, str]:
    """A study, the run that has a job, and the run that waits for its place."""
    study = tmp_path / "study"
    runs = make_study(study, {"steps": 7}, {"steps": 8})
    (slurm / "queue.txt").write_text("4711_0 RUNNING\n")
    send(study, *NO_CANARY, limits={"gpus": 1, "flops": 5e6})
    (first,), (other,) = read_attempts(study), read_order(study).waiting
    assert {first, other} == set(runs)
    assert status(study)[other]["state"] == "queued"
    return study, first, other


def test_status_tells_that_a_study_is_stopped_and_calls_nothing_queued_that_no_job_will_submit(
    waiting: tuple[Path, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    study, first, other = waiting
    stop_study(study, "a canary failed")
    found = status(study)
    assert (found[other]["state"], found[other]["cause"]) == ("planned", "the study is stopped: a canary failed")
    assert found[first]["state"] == "running"
    assert main(["status", str(study)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "the study is stopped: a canary failed"


def test_status_tells_that_what_waits_is_kept_back_by_a_limit(waiting: tuple[Path, str, str]) -> None:
    study, first, other = waiting
    append_event(study, "started", first, attempt=1, job_id="4711_0", cluster="slurm", gpus=1)
    record = {"step": 6, "train_flops": 6e6, "time": time.time() + 1}
    (study / "runs" / first / "train.jsonl").write_text(f"{json.dumps(record)}\n")
    found = status(study)
    assert found[other]["state"] == "planned"
    assert "the limit of 5e+06 FLOPs is reached" in found[other]["cause"]
