"""Jobs that SLURM ended or could not start while their worker had no word: their class, their failure.json, and what goes on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from launch.asked import read_order, write_order
from launch.failures import failure_text, read_failure
from launch.job import cancel_path, raise_flag
from launch.ledger import append_event, attempts_of, read_attempts
from launch.order import end_lost, pump
from launch.retries import study_stopped
from launch.scheduler import job_ends
from tests.launch.study import NO_CANARY, call, make_study, status


def submitted(tmp_path: Path, runs: int = 1) -> tuple[Path, list[str]]:
    """A study whose runs are submitted, in the order of their jobs 4711_0, 4711_1, ..."""
    study = tmp_path / "study"
    make_study(study, *[{"steps": 99 - n} for n in range(runs)])
    assert call("submit", study, *NO_CANARY)[0] == 0
    jobs = {tries[-1].job_id: run_id for run_id, tries in read_attempts(study).items()}
    return study, [jobs[job] for job in sorted(jobs)]


def root(study: Path) -> Path:
    (found,) = (study / "launch/snapshot").iterdir()
    return found


@pytest.mark.parametrize(
    ("line", "state", "failure", "again"),
    [
        ("4711_0|FAILED|RaisedSignal:12(User_defined_signal_2)", "lost", "lost", True),
        ("4711_0|FAILED|JobLaunchFailure", "lost", "lost", True),
        ("4711_0|NODE_FAIL|NodeDown", "lost", "node_failure", True),
        ("4711_0|BOOT_FAIL|None", "lost", "node_failure", True),
        ("4711_0|PREEMPTED|None", "lost", "preempted", True),
        ("4711_0|OUT_OF_MEMORY|OutOfMemory", "failed", "oom", False),
        ("4711_0|CANCELLED|None", "interrupted", "cancelled", False),
        ("4711_0|FAILED|NonZeroExitCode", "failed", "import", False),
        ("", "lost", "lost", False),  # SLURM has forgotten it, and there is no accounting
    ],
)
def test_a_job_that_ended_before_its_run_began_has_the_policy_of_how_it_ended(
    tmp_path: Path, slurm: Path, line: str, state: str, failure: str, again: bool
) -> None:
    study, (run,) = submitted(tmp_path)
    (slurm / "ended.txt").write_text(f"{line}\n")
    (slurm / "queue.txt").write_text("9_9 RUNNING\n")
    token = read_attempts(study)[run][0].token
    words = "Traceback\nModuleNotFoundError: No module named 'torch'\n" if "NonZero" in line else ""
    (study / f"launch/jobs/{token}/4711_0_0_log.err").write_text(words)
    pump(study, root(study))
    first, *more = read_attempts(study)[run]
    assert (first.state, first.failure, first.started, [a.job_id for a in more]) == (state, failure, None, ["4712_0"] * again)
    told = read_failure(study / "runs" / run)
    assert told is not None
    assert (told["class"], told["attempt"]) == (failure, 1)
    assert first.cause in (told["cause"], failure_text(told))
    (slurm / "queue.txt").write_text("4712_0 PENDING\n")
    pump(study, root(study))
    assert len(list(slurm.glob("script-*.sh"))) == 1 + again
    assert status(study)[run]["state"] == ("queued" if again else {"interrupted": "planned"}.get(state, state))


def test_a_job_that_is_lost_each_time_is_given_up_after_its_retries(tmp_path: Path, slurm: Path) -> None:
    study, (run,) = submitted(tmp_path)
    for job in range(4711, 4720):
        (slurm / "ended.txt").write_text(f"{job}_0|FAILED|RaisedSignal:12\n")
        pump(study, root(study))
    assert [(a.state, a.failure) for a in read_attempts(study)[run]] == [("lost", "lost")] * 4
    assert (status(study)[run]["state"], read_order(study).waiting) == ("lost", ())
    assert "1 run submitted" in call("resubmit", study, "--class", "lost", *NO_CANARY)[1]


def test_a_cancelled_run_whose_job_was_killed_does_not_go_on(tmp_path: Path, slurm: Path) -> None:
    study, (run,) = submitted(tmp_path)
    append_event(study, "started", run, attempt=1, job_id="4711_0", cluster="slurm", host="node1", gpus=1)
    raise_flag(cancel_path(study, "4711_0"), "cancel")
    (slurm / "ended.txt").write_text("4711_0|TIMEOUT|TimeLimit\n")
    (slurm / "queue.txt").write_text("9_9 RUNNING\n")
    pump(study, root(study))
    assert [(a.state, a.failure, a.cause) for a in read_attempts(study)[run]] == [("interrupted", "cancelled", "cancelled")]


def test_a_run_stands_in_the_order_once(tmp_path: Path, slurm: Path) -> None:
    study, (run, other) = submitted(tmp_path, 2)
    order = dataclasses.replace(read_order(study), waiting=(run, other, run), canaries=(other, other))
    write_order(study, order)
    assert (read_order(study).waiting, read_order(study).canaries) == ((run, other), (other,))


def test_a_run_that_began_and_was_killed_with_all_it_had_started_goes_on(tmp_path: Path, slurm: Path) -> None:
    study, (run, other) = submitted(tmp_path, 2)
    for name, job in ((run, "4711_0"), (other, "4711_1")):
        append_event(study, "started", name, attempt=1, job_id=job, cluster="slurm", host="node1", gpus=1)
    (slurm / "queue.txt").write_text("4711_1 RUNNING\n")
    (slurm / "ended.txt").write_text("4711_0|NODE_FAIL|NodeDown\n")
    pump(study, root(study))
    assert [(a.state, a.failure) for a in read_attempts(study)[run]] == [("lost", "node_failure"), ("", "")]
    assert [a.state for a in read_attempts(study)[other]] == [""]
    failure = read_failure(study / "runs" / run)
    assert failure is not None
    assert failure["node"] == "node1"


def test_a_job_that_slurm_could_not_launch_and_holds_is_taken_back_and_submitted_anew(tmp_path: Path, slurm: Path) -> None:
    study, (run, other) = submitted(tmp_path, 2)
    (slurm / "queue.txt").write_text("4711_0 PENDING launch failed requeued held\n4711_1 PENDING JobHeldUser\n")
    found = status(study)
    assert (found[run]["state"], found[run]["cause"]) == ("queued", "SLURM could not start its job, and holds it; submit")
    assert found[other]["cause"] == "pending"  # whoever holds it wants it so
    pump(study, root(study))
    assert (slurm / "queue.txt").read_text() == "4711_1 PENDING JobHeldUser\n"
    assert [(a.failure, a.job_id) for a in read_attempts(study)[run]] == [("node_failure", "4711_0"), ("", "4712_0")]
    assert len(read_attempts(study)[other]) == 1


def test_a_held_job_of_a_run_that_was_preempted_before_makes_an_attempt_of_its_own(tmp_path: Path, slurm: Path) -> None:
    study, (run,) = submitted(tmp_path)
    append_event(study, "started", run, attempt=1, job_id="4711_0", cluster="slurm")
    append_event(study, "ended", run, attempt=1, job_id="4711_0", state="interrupted", **{"class": "preempted"})
    (slurm / "queue.txt").write_text("4711_0 PENDING launch_failed_requeued_held\n")
    assert end_lost(study) == [run]
    assert [a.failure for a in read_attempts(study)[run]] == ["preempted", "node_failure"]
    assert end_lost(study) == []


def test_workers_that_cannot_begin_stop_the_study(tmp_path: Path, slurm: Path) -> None:
    study, runs = submitted(tmp_path, 5)
    (slurm / "ended.txt").write_text("".join(f"4711_{n}|FAILED|NonZeroExitCode\n" for n in range(3)))
    (slurm / "queue.txt").write_text("4711_3 RUNNING\n4711_4 PENDING\n")
    pump(study, root(study))
    assert "3 attempts failed alike before their first step" in study_stopped(study)
    assert [status(study)[run]["state"] for run in runs] == ["failed"] * 3 + ["running", "queued"]


def test_a_job_of_another_cluster_is_left_alone_whatever_its_life(tmp_path: Path, slurm: Path) -> None:
    (slurm / "site").write_text("north")
    study, (run,) = submitted(tmp_path)
    append_event(study, "started", run, attempt=1, job_id="4711_0", cluster="slurm")
    append_event(study, "ended", run, attempt=1, job_id="4711_0", state="interrupted", **{"class": "preempted"})
    append_event(study, "started", run, attempt=2, job_id="4711_0", cluster="slurm")
    assert read_attempts(study)[run][1].site == "north"
    (slurm / "site").write_text("south")
    (slurm / "ended.txt").write_text("4711_0|NODE_FAIL|NodeDown\n")
    assert end_lost(study) == []
    assert "cluster north" in status(study)[run]["cause"]


def test_what_slurm_has_forgotten_sacct_may_know(slurm: Path) -> None:
    (slurm / "ended.txt").write_text("1_0|NODE_FAIL|None\n7|COMPLETED|None\n")
    (slurm / "sacct.txt").write_text("2_0|FAILED|0:12\n2_1|CANCELLED by 0|0:0\n2_2|FAILED|1:0\n")
    assert job_ends(["1_0", "2_0", "2_1", "2_2", "2_3"]) == {
        "1_0": ("NODE_FAIL", ""),
        "2_0": ("FAILED", "RaisedSignal:12"),
        "2_1": ("CANCELLED", ""),
        "2_2": ("FAILED", "NonZeroExitCode"),
    }


def test_a_canary_that_is_lost_for_good_stops_the_study(tmp_path: Path, slurm: Path) -> None:
    study = tmp_path / "study"
    runs = make_study(study, {"steps": 4}, {"steps": 5})
    assert call("submit", study, "cluster=slurm")[0] == 0
    for job in range(4711, 4716):
        (slurm / "ended.txt").write_text(f"{job}_0|NODE_FAIL|None\n")
        pump(study, root(study))
    assert f"canary {runs[0]}" in study_stopped(study)
    assert len(read_attempts(study)[runs[0]]) == 4
    assert runs[1] not in read_attempts(study)


def test_a_job_queued_again_is_of_the_submission_of_its_first_life() -> None:
    first = {"cluster": "slurm", "site": "north", "token": "t"}
    events = [
        {"time": 1, "run_id": "r", "event": "submitted", "attempt": 1, "job_id": "7_0", **first},
        {"time": 2, "run_id": "r", "event": "ended", "attempt": 2, "job_id": "7_0", "state": "lost"},
        {"time": 3, "run_id": "r", "event": "ended", "attempt": 3, "job_id": "8_0", "state": "lost"},
    ]
    assert [(a.cluster, a.site, a.token) for a in attempts_of(events)["r"]] == [("slurm", "north", "t")] * 2 + [("", "", "")]


def test_status_asks_the_scheduler_twice_at_most_whatever_the_number_of_runs(tmp_path: Path, slurm: Path) -> None:
    study, _ = submitted(tmp_path, 40)
    (slurm / "queue.txt").write_text("".join(f"4711_{n} RUNNING\n" for n in range(20)))
    (slurm / "calls.txt").unlink()
    assert [s["state"] for s in status(study).values()].count("running") == 20
    assert len((slurm / "calls.txt").read_text().splitlines()) == 2


def lived(study: Path, run: str, failure: str) -> None:
    """The run's job has had a life, which ended so."""
    append_event(study, "started", run, attempt=1, job_id="4711_0", cluster="slurm", life=0)
    append_event(study, "ended", run, attempt=1, job_id="4711_0", state="interrupted", **{"class": failure})


@pytest.mark.parametrize("before", ["preempted", "cancelled"])  # by SLURM, and by scontrol requeue
@pytest.mark.parametrize(
    ("line", "state", "failure", "again"),
    [
        ("4711_0|FAILED|RaisedSignal:12", "lost", "lost", True),
        ("4711_0|NODE_FAIL|None", "lost", "node_failure", True),
        ("4711_0|TIMEOUT|None", "lost", "timeout", True),
        ("4711_0|FAILED|NonZeroExitCode", "failed", "error", False),
    ],
)
def test_a_job_that_was_queued_again_and_left_no_word_ends_as_one_in_its_first_life(
    tmp_path: Path, slurm: Path, before: str, line: str, state: str, failure: str, again: bool
) -> None:
    study, (run,) = submitted(tmp_path)
    lived(study, run, before)
    (slurm / "ended.txt").write_text(f"{line}\n")
    for _ in range(2):
        pump(study, root(study))
        (slurm / "queue.txt").write_text("4712_0 PENDING\n")
    first, second, *more = read_attempts(study)[run]
    assert (first.failure, second.state, second.failure, [a.job_id for a in more]) == (before, state, failure, ["4712_0"] * again)
    assert read_failure(study / "runs" / run) is not None


@pytest.mark.parametrize(("before", "end"), [("cancelled", "CANCELLED"), ("cancelled", "COMPLETED"), ("budget", "COMPLETED")])
def test_a_job_that_left_for_good_and_said_so_is_left_alone(tmp_path: Path, slurm: Path, before: str, end: str) -> None:
    study, (run,) = submitted(tmp_path)
    lived(study, run, before)
    (slurm / "ended.txt").write_text(f"4711_0|{end}|None\n")
    pump(study, root(study))
    assert [a.failure for a in read_attempts(study)[run]] == [before]


def test_a_job_that_was_queued_again_by_hand_and_could_not_be_launched_is_replaced(tmp_path: Path, slurm: Path) -> None:
    study, (run,) = submitted(tmp_path)
    lived(study, run, "cancelled")
    (slurm / "queue.txt").write_text("4711_0 PENDING launch_failed_requeued_held\n")
    pump(study, root(study))
    assert [(a.failure, a.job_id) for a in read_attempts(study)[run]] == [
        ("cancelled", "4711_0"),
        ("node_failure", "4711_0"),
        ("", "4712_0"),
    ]
    assert "4711_0" not in (slurm / "queue.txt").read_text()


@pytest.mark.parametrize("left", ["4711|CANCELLED|None", "4711_1|PENDING|Resources", "4711_[1-2]|PENDING|Resources"])
def test_a_task_that_scancel_ends_before_it_starts_is_cancelled_though_slurm_drops_it(
    tmp_path: Path, slurm: Path, left: str
) -> None:
    study, runs = submitted(tmp_path, 3)
    append_event(study, "started", runs[2], attempt=1, job_id="4711_2", cluster="slurm", gpus=0)
    (slurm / "ended.txt").write_text(f"{left}\n")
    (slurm / "queue.txt").write_text("4711_1 PENDING\n")
    end_lost(study)
    assert (read_attempts(study)[runs[0]][-1].state, read_attempts(study)[runs[0]][-1].failure) == ("interrupted", "cancelled")
    assert (read_attempts(study)[runs[2]][-1].state, read_attempts(study)[runs[2]][-1].failure) == ("lost", "lost")
    assert status(study)[runs[0]]["state"] == "planned"
