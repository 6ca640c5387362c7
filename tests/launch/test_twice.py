"""Nothing twice on SLURM: killed submitters, names given twice, other names in the environment, cancelled and requeued jobs."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from launch import cancel as cancel_module
from launch.asked import read_order, write_order
from launch.job import WorkerJob, cancel_path, flag_path, raise_flag
from launch.lease import Lease
from launch.ledger import append_event, read_attempts
from launch.order import pump
from launch.past import ended_in_order
from launch.worker import run_job
from lst.errors import LaunchError
from tests.launch.study import NO_CANARY, ROOT, call, make_study, send, status


def scripts(slurm: Path) -> int:
    return len(list(slurm.glob("script-*.sh")))


def test_rows_whose_submitter_was_killed_before_it_could_say_so_are_not_submitted_behind_another(
    tmp_path: Path, slurm: Path
) -> None:
    study = tmp_path / "study"
    runs = make_study(study, {"steps": 1}, {"steps": 2}, {"steps": 3})
    call("submit", study, *NO_CANARY, "--run", runs[0], "--run", runs[1])
    (study / "launch/ledger.jsonl").unlink()
    (accepted,) = (study / "launch/jobs").glob("*/accepted")
    accepted.unlink()
    write_order(study, dataclasses.replace(read_order(study), waiting=tuple(runs[:2])))
    (slurm / "queue.txt").write_text("4711_[0-1] PENDING\n")
    assert "1 run submitted" in call("submit", study, *NO_CANARY, "--run", runs[2])[1]
    assert sorted(a.job_id for tries in read_attempts(study).values() for a in tries) == ["4711_0", "4711_1", "4712_0"]
    assert read_order(study).waiting == ()


def test_a_job_that_finds_its_run_held_takes_its_own_attempt_back(
    tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run,) = make_study(tmp_path / "study", {"steps": 1})
    study = tmp_path / "study"
    (study / "launch").mkdir()
    append_event(study, "started", run, attempt=1, job_id="1_0", cluster="slurm", gpus=1)
    append_event(study, "submitted", run, attempt=2, job_id="2_0", cluster="slurm")
    assert Lease.acquire(study / "runs" / run / "lease.json", beats=True, job_id="1_0") is not None
    monkeypatch.setenv("LST_JOB_ID", "2_0")
    assert run_job(WorkerJob(study=str(study), run_id=run, root=str(ROOT), cluster="slurm")).state == "elsewhere"
    assert [a.job_id for a in read_attempts(study)[run]] == ["1_0"]
    append_event(study, "submitted", run, attempt=2, job_id="3_0", cluster="slurm")
    assert [(a.job_id, a.state) for a in read_attempts(study)[run]] == [("1_0", ""), ("3_0", "")]


def test_cancel_reaches_every_open_job_of_a_run(tmp_path: Path, slurm: Path) -> None:
    study = tmp_path / "study"
    (run,) = make_study(study, {"steps": 1})
    (study / "launch").mkdir()
    append_event(study, "started", run, attempt=1, job_id="1_0", cluster="slurm", gpus=1)
    append_event(study, "submitted", run, attempt=2, job_id="2_0", cluster="slurm")
    (slurm / "queue.txt").write_text("1_0 RUNNING\n2_0 RUNNING\n")
    call("cancel", study)
    assert [cancel_path(study, job).exists() for job in ("1_0", "2_0")] == [True, True]


def test_a_run_named_twice_is_one_run(tmp_path: Path, slurm: Path) -> None:
    study = tmp_path / "study"
    (run,) = make_study(study, {"steps": 1})
    assert "1 run submitted" in call("submit", study, *NO_CANARY, "--run", run, "--run", run[:6])[1]
    assert "--array=0-0%1" in (slurm / "script-0.sh").read_text()


def test_slurm_is_asked_for_the_jobs_of_the_user_who_asks_whatever_the_environment_calls_him(
    tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "daemon")
    study = tmp_path / "study"
    make_study(study, {"steps": 1})
    call("submit", study, *NO_CANARY)
    call("status", study)
    asked = [line for line in (slurm / "calls.txt").read_text().splitlines() if line.startswith("squeue")]
    assert asked
    assert all(f"--user {os.geteuid()} " in line for line in asked)


def test_what_is_submitted_while_it_is_being_cancelled_starts_behind_the_cancelled_job(tmp_path: Path, slurm: Path) -> None:
    study = tmp_path / "study"
    (run,) = make_study(study, {"steps": 1})
    call("submit", study, *NO_CANARY)
    append_event(study, "started", run, attempt=1, job_id="4711_0", cluster="slurm")
    (slurm / "queue.txt").write_text("4711_0 RUNNING\n")
    call("cancel", study)
    out = call("submit", study, *NO_CANARY)[1]
    assert "1 wait for the end of jobs that are cancelled" in out
    assert (read_order(study).waiting, scripts(slurm)) == ((run,), 1)
    append_event(
        study, "ended", run, attempt=1, job_id="4711_0", state="interrupted", cause="cancelled", **{"class": "cancelled"}
    )
    (root,) = (study / "launch/snapshot").iterdir()
    pump(study, root)  # as the cancelled job does at its end, while SLURM has it still
    assert (read_order(study).waiting, scripts(slurm)) == ((), 2)
    (slurm / "queue.txt").write_text("4712_0 PENDING\n")
    assert status(study)[run]["state"] == "queued"


@pytest.mark.parametrize(
    ("failure", "state", "flag", "over"),
    [
        ("canary", "interrupted", "canary", True),
        ("cancelled", "interrupted", "cancelled", True),
        ("oom", "failed", "", True),
        ("preempted", "interrupted", "USR2", False),
        ("cancelled", "interrupted", "TERM", False),  # as `scontrol requeue` by hand ends it
    ],
)
def test_a_job_whose_worker_was_killed_after_its_last_word_does_not_begin_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: str, state: str, flag: str, over: bool
) -> None:
    (run,) = make_study(tmp_path, {"steps": 9})
    (tmp_path / "launch").mkdir()
    monkeypatch.setenv("LST_JOB_ID", "7_0")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    append_event(tmp_path, "started", run, attempt=1, job_id="7_0", cluster="slurm")
    append_event(tmp_path, "ended", run, attempt=1, job_id="7_0", state=state, **{"class": failure})
    if flag:
        raise_flag(flag_path(tmp_path, "7_0", 0), flag)
    assert (ended_in_order(tmp_path, read_attempts(tmp_path)[run]) is not None) is over
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    assert ended_in_order(tmp_path, read_attempts(tmp_path)[run]) is None


@pytest.mark.parametrize("name", ["per%cent", "back\\slash", "line\nbreak"])
def test_a_folder_that_sbatch_would_misread_is_refused_in_one_sentence(tmp_path: Path, slurm: Path, name: str) -> None:
    study = tmp_path / name
    make_study(study, {"steps": 1})
    code, _, err = call("submit", study, *NO_CANARY)
    assert (code, err.count("\n"), "rename it" in err) == (2, 1, True)
    assert not (study / "launch").exists()


def test_a_canary_that_is_cancelled_gives_its_place_to_another_run_of_its_arm(tmp_path: Path, slurm: Path) -> None:
    study = tmp_path / "study"
    runs = make_study(study, {"steps": 1}, {"steps": 2}, {"steps": 3})
    call("submit", study, "cluster=slurm")
    assert read_order(study).canaries == (runs[0],)
    (slurm / "queue.txt").write_text("4711_0 PENDING\n")
    call("cancel", study, "--run", runs[0])
    order = read_order(study)
    assert (order.canaries, set(order.waiting)) == ((runs[1],), set(runs[1:]))
    (root,) = (study / "launch/snapshot").iterdir()
    pump(study, root)
    assert [scripts(slurm), read_attempts(study)[runs[1]][0].job_id, runs[2] in read_attempts(study)] == [2, "4712_0", False]


def test_on_a_full_disk_cancel_ends_jobs_all_the_same(tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = tmp_path / "study"
    (run,) = make_study(study, {"steps": 1})
    call("submit", study, *NO_CANARY)
    append_event(study, "started", run, attempt=1, job_id="4711_0", cluster="slurm")
    (slurm / "queue.txt").write_text("4711_0 RUNNING\n")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cancel_module, "raise_flag", full)
    with pytest.raises(LaunchError, match=r"cannot be written \(No space left on device\): jobs are ended"):
        cancel_module.cancel(study)
    assert "scancel --quiet 4711_0" in (slurm / "calls.txt").read_text()


def canary_of_three(tmp_path: Path) -> tuple[Path, list[str], Path]:
    """A study whose cheapest run is its canary, and submitted as 4711_0; its runs and code."""
    study = tmp_path / "study"
    runs = make_study(study, {"steps": 7}, {"steps": 8}, {"steps": 9})
    send(study)
    (root,) = (study / "launch/snapshot").iterdir()
    return study, runs, root


@pytest.mark.parametrize("listed", ["", "4711_0 COMPLETING\n"], ids=["gone", "leaving"])
def test_a_canary_that_is_ended_by_scancel_is_not_sent_again(tmp_path: Path, slurm: Path, listed: str) -> None:
    study, runs, root = canary_of_three(tmp_path)
    append_event(study, "started", runs[0], attempt=1, job_id="4711_0", cluster="slurm", life=0)
    word = {"state": "interrupted", "cause": "stopped by SIGTERM", "class": "cancelled"}
    append_event(study, "ended", runs[0], attempt=1, job_id="4711_0", **word)
    (slurm / "queue.txt").write_text(listed)
    pump(study, root)
    assert (read_order(study).canaries, read_order(study).waiting) == ((runs[1],), (runs[2], runs[1]))
    assert {run: [a.job_id for a in tries] for run, tries in read_attempts(study).items()} == {
        runs[0]: ["4711_0"],
        runs[1]: ["4712_0"],
    }
    (slurm / "queue.txt").write_text("4712_0 PENDING\n")
    assert status(study)[runs[0]]["state"] == "planned"


def test_a_queued_canary_that_is_ended_by_scancel_is_not_sent_again(tmp_path: Path, slurm: Path) -> None:
    study, runs, root = canary_of_three(tmp_path)
    (slurm / "ended.txt").write_text("4711_0|CANCELLED|None\n")
    pump(study, root)
    assert (read_order(study).canaries, len(read_attempts(study)[runs[0]])) == ((runs[1],), 1)


def test_a_canary_that_is_queued_again_by_hand_stays_one_and_has_one_job(tmp_path: Path, slurm: Path) -> None:
    study, runs, root = canary_of_three(tmp_path)
    append_event(study, "started", runs[0], attempt=1, job_id="4711_0", cluster="slurm", life=0)
    word = {"state": "interrupted", "cause": "stopped by SIGTERM", "class": "cancelled"}
    append_event(study, "ended", runs[0], attempt=1, job_id="4711_0", **word)
    (slurm / "queue.txt").write_text("4711_0 COMPLETING\n")
    (slurm / "restarts").write_text("1")
    pump(study, root)  # as its worker does at its end
    assert (read_order(study).canaries, scripts(slurm)) == ((runs[0],), 1)


@pytest.mark.parametrize("failure", ["preempted", "timeout"])
def test_a_canary_whose_job_is_about_to_be_queued_again_has_one_job(tmp_path: Path, slurm: Path, failure: str) -> None:
    study, runs, root = canary_of_three(tmp_path)
    append_event(study, "started", runs[0], attempt=1, job_id="4711_0", cluster="slurm")
    append_event(study, "ended", runs[0], attempt=1, job_id="4711_0", state="interrupted", **{"class": failure})
    (slurm / "queue.txt").write_text("4711_0 RUNNING\n")
    pump(study, root)  # as another canary's worker does in the same second
    assert (read_order(study).canaries, scripts(slurm)) == ((runs[0],), 1)
