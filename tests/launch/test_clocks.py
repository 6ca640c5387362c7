"""Clocks of nodes that are an hour ahead of the submitter's, or behind: what came before what is told by the ledger's lines."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from launch.asked import read_order
from launch.ledger import append_event, attempts_of, count_lines, read_attempts
from launch.order import pump
from launch.retries import stop_if_alike, study_stopped
from launch.submit import Selection
from lst.records import read_json
from tests.launch.study import make_study, send

FAILED = Selection(failed_only=True)
SKEWS = pytest.mark.parametrize("skew", [-3600.0, 3600.0], ids=["behind", "ahead"])


def tell(study: Path, run: str, skew: float, *, attempt: int, job: str, **end: object) -> None:
    """An attempt from its start to its end, as a node tells it whose clock is off by `skew` seconds."""
    now = time.time() + skew
    append_event(study, "started", run, attempt=attempt, job_id=job, time=now, cluster="slurm", gpus=1)
    append_event(study, "ended", run, attempt=attempt, job_id=job, time=now + 1, **end)


def root(study: Path) -> Path:
    (found,) = (study / "launch/snapshot").iterdir()
    return found


@SKEWS
def test_canaries_that_passed_on_a_node_are_followed_by_the_grid(tmp_path: Path, slurm: Path, skew: float) -> None:
    study = tmp_path / "study"
    canary, other = make_study(study, {"steps": 8}, {"steps": 9})
    send(study)
    tell(study, canary, skew, attempt=1, job="4711_0", state="interrupted", step=5, **{"class": "canary"})
    pump(study, root(study))
    assert read_order(study).canaries == ()
    assert sorted(tries[-1].job_id for tries in read_attempts(study).values()) == ["4712_0", "4712_1"]
    assert read_json(study / "launch/canary.json") == {"code": root(study).name, "arms": ["baseline"]}
    assert other in read_attempts(study)


@SKEWS
def test_a_canarys_failure_of_an_earlier_order_stops_nothing_and_one_of_this_order_does(
    tmp_path: Path, slurm: Path, skew: float
) -> None:
    study = tmp_path / "study"
    canary, _ = make_study(study, {"steps": 8}, {"steps": 9})
    send(study)
    tell(study, canary, skew, attempt=1, job="4711_0", state="failed", cause="error: x", **{"class": "error"})
    pump(study, root(study))
    assert f"canary {canary}" in study_stopped(study)
    send(study, selection=FAILED)
    assert study_stopped(study) == ""
    (slurm / "queue.txt").write_text("4712_0 PENDING\n")
    pump(study, root(study))
    assert study_stopped(study) == ""
    assert [a.job_id for a in read_attempts(study)[canary]] == ["4711_0", "4712_0"]


@SKEWS
def test_a_run_that_failed_on_a_node_is_tried_once_more_by_a_later_call(tmp_path: Path, slurm: Path, skew: float) -> None:
    study = tmp_path / "study"
    (run,) = make_study(study, {"steps": 8})
    send(study, "canary_steps=0")
    tell(study, run, skew, attempt=1, job="4711_0", state="failed", cause="error: x", **{"class": "error"})
    assert "1 submitted" in send(study, "canary_steps=0", selection=FAILED)


@SKEWS
def test_failures_alike_are_counted_since_the_last_order(tmp_path: Path, slurm: Path, skew: float) -> None:
    study = tmp_path / "study"
    runs = make_study(study, *[{"steps": n} for n in range(5, 9)])
    send(study, "canary_steps=0")
    end = {"state": "failed", "cause": "import: x", "class": "import"}
    for number, run in enumerate(runs[:2]):
        tell(study, run, skew, attempt=1, job=f"4711_{number}", **end)
    send(study, "canary_steps=0")
    tell(study, runs[2], skew, attempt=1, job="4711_2", **end)
    assert stop_if_alike(study) == ""  # the third in all, the first since that call
    for number, run in enumerate(runs[:2]):
        tell(study, run, skew, attempt=2, job=f"4712_{number}", **end)
    assert "3 attempts failed alike" in stop_if_alike(study)


def test_an_attempt_knows_the_line_of_its_start(tmp_path: Path) -> None:
    first = {"run_id": "r", "attempt": 1, "job_id": "7_0"}
    events = [
        first | {"time": 9.0, "event": "submitted"},
        {"what": "is no event"},
        first | {"time": 5.0, "event": "started", "life": 2},
        first | {"time": 1.0, "event": "ended", "state": "lost"},
        {"run_id": "r", "attempt": 2, "job_id": "8_0", "time": 3.0, "event": "submitted"},
    ]
    assert [(a.line, a.life) for a in attempts_of(events)["r"]] == [(2, 2), (4, 0)]
    assert count_lines(tmp_path) == 0
