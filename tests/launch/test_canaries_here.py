"""Canaries of cluster=local: only one that has trained its steps passes, and what waits behind them can be cancelled."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from launch import cancel as cancel_module
from launch.cancel import cancel
from launch.ledger import read_attempts
from launch.submit import Selection
from lst.records import read_json
from tests.launch.study import call, finish, lives, make_study, start, status, steps, wait_for


def begin(study: Path, *words: str) -> tuple[list[str], subprocess.Popen[str]]:
    """Three runs that hold at their first step, the canary of two steps among them at it."""
    runs = make_study(study, *[{"steps": n, "hold_at": 1, "seconds_per_step": 0.3} for n in (7, 8, 9)])
    process = start("submit", study, "cluster=local", "parallel=1", "canary_steps=2", *words)
    wait_for(lambda: steps(study, runs[0]), "the canary")
    return runs, process


def told_to_leave(study: Path) -> bool:
    """Whether a worker has raised its trainer's flag."""
    return any((study / "launch/stop").glob("*.0"))


def let_go(study: Path, runs: list[str], process: subprocess.Popen[str]) -> int:
    for run in runs:
        (study / "runs" / run / "go").touch()
    return finish(process)[0]


def ends(study: Path, run: str) -> list[str]:
    return [attempt.failure for attempt in read_attempts(study).get(run, [])]


def test_a_canary_that_somebody_cancels_gives_its_place_to_the_next_one_and_is_left_alone(tmp_path: Path) -> None:
    runs, process = begin(tmp_path)
    assert call("cancel", tmp_path, "--run", runs[0])[0] == 0
    wait_for(lambda: told_to_leave(tmp_path), "its flag")
    assert let_go(tmp_path, runs, process) == 1
    assert [ends(tmp_path, run) for run in runs] == [["cancelled"], ["canary", ""], [""]]
    assert [found["state"] for found in status(tmp_path).values()] == ["planned", "done", "done"]


def test_a_canary_whose_worker_was_killed_is_tried_again_before_the_grid(tmp_path: Path) -> None:
    runs, process = begin(tmp_path)
    worker = (read_json(tmp_path / "runs" / runs[0] / "lease.json") or {})["process"][0]
    for pid in (worker, lives(tmp_path, runs[0])[0]["pid"]):
        os.kill(pid, signal.SIGKILL)
    assert let_go(tmp_path, runs, process) == 0
    assert [ends(tmp_path, run) for run in runs] == [["lost", "canary", ""], [""], [""]]


def test_a_canary_that_a_limit_stopped_has_not_passed(tmp_path: Path) -> None:
    runs, process = begin(tmp_path, "limit.flops=1e6")
    wait_for(lambda: told_to_leave(tmp_path), "the limit")
    assert let_go(tmp_path, runs, process) == 1
    assert read_json(tmp_path / "launch/canary.json") is None
    assert [ends(tmp_path, run) for run in runs] == [["budget"], [], []]
    assert call("submit", tmp_path, "cluster=local", "parallel=1", "canary_steps=2", "limit.flops=0")[0] == 0
    assert [ends(tmp_path, run) for run in runs] == [["budget", "canary", ""], [""], [""]]


@pytest.mark.parametrize("single", [False, True])
def test_what_waits_behind_canaries_is_cancelled_from_another_machine_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, single: bool
) -> None:
    runs, process = begin(tmp_path)
    assert [found["state"] for found in status(tmp_path).values()] == ["running", "queued", "queued"]
    monkeypatch.setattr(cancel_module, "signal_holder", lambda *_: False)  # it reaches processes of its own machine alone
    meant = runs[1:2] if single else runs
    assert cancel(tmp_path, selection=Selection(run_ids=tuple(meant) if single else ())) == meant
    if not single:
        wait_for(lambda: told_to_leave(tmp_path), "the canary's flag")
    assert let_go(tmp_path, runs, process) == 1
    assert {run: found["state"] for run, found in status(tmp_path).items()} == {
        run: "planned" if run in meant else "done" for run in runs
    }
    assert [len(lives(tmp_path, run)) for run in runs] == ([2, 0, 1] if single else [1, 0, 0])
