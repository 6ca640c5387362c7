"""What is tried again by itself, what was in the folder of an attempt that ended without a word, and when a study stops."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import watch
from launch.cluster import load_cluster
from launch.failures import FailureClass, judge_death
from launch.job import WorkerJob, flag_path, raise_flag, write_jobs
from launch.ledger import Attempt, append_event, read_attempts
from launch.past import close, close_finished, close_former_life, of_former_life
from launch.retries import POLICIES, fruitless, may_go_on, stop_if_alike, study_stopped
from launch.watch import Watch, parse_limit
from lst.errors import ConfigError
from lst.records import write_json
from tests.launch.study import ROOT, call, lives, make_study, status


def ended(number: int, failure: str, step: int, state: str = "failed") -> Attempt:
    return Attempt(attempt=number, started=1.0, ended=2.0, state=state, failure=failure, step=step)


def test_every_failure_class_has_a_policy() -> None:
    assert set(POLICIES) == set(FailureClass)


def test_the_docs_table_of_failures_tells_the_policies() -> None:
    table = (ROOT / "docs" / "cluster.md").read_text().partition("## Failures")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| `")]
    told = {name.strip("`"): cells[-1] for cells in rows for name in cells[0].split(", ")}
    assert told == {c.value: {0: "no", 1: "once"}.get(p.retries, str(p.retries)) for c, p in POLICIES.items()}


def test_an_attempt_without_a_new_step_uses_up_a_retry_and_a_new_step_gives_it_back() -> None:
    first, stuck, further = ended(1, "killed", 5), ended(2, "killed", 5), ended(2, "killed", 9)
    assert may_go_on([first])
    assert not may_go_on([first, stuck])
    assert may_go_on([first, further])
    assert fruitless([first, stuck, ended(3, "oom", 5)]) == 1


@pytest.mark.parametrize("failure", ["oom", "nan", "disk_full", "config", "data", "import", "error", "cancelled", "budget"])
def test_what_would_fail_again_is_not_tried_again(failure: str) -> None:
    assert not may_go_on([ended(1, failure, 5)])


def test_a_run_that_is_preempted_for_ever_without_a_step_is_given_up() -> None:
    attempts = [ended(n, "preempted", 0, "interrupted") for n in range(1, 5)]
    assert [may_go_on(attempts[:n]) for n in (1, 2, 3, 4)] == [True, True, True, False]


@pytest.mark.parametrize(
    ("left", "failure"), [("", "node_failure"), ("TERM", "preempted"), ("worker was killed (exit status 137)", "lost")]
)
def test_what_ended_a_former_life_is_told_by_what_it_left(tmp_path: Path, left: str, failure: str) -> None:
    (tmp_path / "launch").mkdir()
    if left:
        raise_flag(flag_path(tmp_path, "7_0", 0), left)
    assert of_former_life(tmp_path, "7_0", 0)[0] == failure


def test_three_equal_failures_before_the_first_step_stop_the_study(tmp_path: Path) -> None:
    runs = make_study(tmp_path, *[{"steps": 9, "die_at": 0, "how": "raise"}] * 5)
    code, _, err = call("submit", tmp_path, "parallel=1")
    assert code == 1
    assert sum(len(lives(tmp_path, run)) for run in runs) == 3
    assert sorted(s["state"] for s in status(tmp_path).values()) == ["failed"] * 3 + ["planned"] * 2
    assert "3 attempts failed alike before their first step" in study_stopped(tmp_path)
    assert "the study is stopped" in err
    assert "the study is stopped" in call("submit", tmp_path)[2]
    assert sum(len(lives(tmp_path, run)) for run in runs) == 3
    assert call("resubmit", tmp_path, "--failed", "parallel=1")[0] == 1  # mended or not: it is tried again
    assert sum(len(lives(tmp_path, run)) for run in runs) == 6


def test_different_failures_and_failures_after_a_step_do_not_stop_a_study(tmp_path: Path) -> None:
    (tmp_path / "launch").mkdir()
    for n, (cause, step) in enumerate([("error: a", 0), ("error: b", 0), ("error: a", 0), ("error: a", 7), ("error: a", 3)]):
        append_event(
            tmp_path, "ended", f"r{n}", attempt=1, job_id="7", state="failed", cause=cause, step=step, **{"class": "error"}
        )
    assert stop_if_alike(tmp_path) == ""
    append_event(tmp_path, "ended", "r9", attempt=1, job_id="7", state="failed", cause="error: a", step=0, **{"class": "error"})
    assert "alike" in stop_if_alike(tmp_path)


def test_the_time_limit_counts_from_the_allocations_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LST_JOB_START", "1000")
    job = WorkerJob(study=str(tmp_path), run_id="r", root=str(ROOT), timeout_minutes=10, signal_seconds=100)
    looking = Watch(job)
    assert looking.deadline == 1000 + 600 - 100
    found = looking.reason()  # 1970 is long ago
    assert found is not None
    assert (found.failure, found.again) == ("timeout", True)


def test_slurms_time_limits_are_read() -> None:
    texts = ("1:00", "20:00", "3:20:05", "2-03:00:00", "UNLIMITED", "INVALID", "")
    assert [parse_limit(text) for text in texts] == [60.0, 1200.0, 12005.0, 183600.0, None, None, None]


def test_a_signal_for_a_limit_that_was_lowered_meanwhile_is_told_as_the_time_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LST_STOP_FLAG", str(tmp_path / "flag"))
    ends = iter([time.time() + 3600, time.time() + 3600, time.time() - 5])
    monkeypatch.setattr(watch, "find_deadline", lambda job: next(ends))
    looking = Watch(WorkerJob(study=str(tmp_path), run_id="r", root=str(ROOT)))
    assert looking.reason() is None
    (tmp_path / "flag").write_text("USR2\n")
    found = [looking.reason(), looking.reason()]  # before and after somebody lowered it
    assert [stop.failure for stop in found if stop] == ["preempted", "timeout"]


def test_a_look_at_the_budget_that_comes_to_nothing_stops_no_run(tmp_path: Path) -> None:
    def damaged() -> tuple[str, float]:
        raise ConfigError("limits.json is damaged.")

    assert Watch(WorkerJob(study=str(tmp_path), run_id="r", root=str(ROOT)), look=damaged).reason() is None


def test_a_job_whose_file_was_altered_does_not_run(tmp_path: Path) -> None:
    (run,) = make_study(tmp_path, {"steps": 1})
    (tmp_path / "launch").mkdir()
    sha256 = write_jobs(tmp_path / "launch/jobs/t", [WorkerJob(study=str(tmp_path), run_id=run, root=str(ROOT))])
    spec = tmp_path / "launch/jobs/t/jobs.json"
    spec.write_text(spec.read_text().replace(str(ROOT), "/elsewhere"))
    argv = [sys.executable, "-m", "launch.worker", str(spec), "0", sha256]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "was altered after submitting" in done.stderr
    assert status(tmp_path)[run]["attempts"] == 0


def test_a_lost_attempt_is_paid_for_until_its_last_beat(tmp_path: Path) -> None:
    (run,) = make_study(tmp_path, {"steps": 2})
    (tmp_path / "launch").mkdir()
    for number in (1, 2):
        append_event(tmp_path, "started", run, attempt=number, job_id=f"{number}", time=1e6, gpus=8)
    write_json(tmp_path / "runs" / run / "lease.json", {"beats": True, "attempt": 2, "beat": 1e6 + 45})
    job = WorkerJob(study=str(tmp_path), run_id=run, root=str(ROOT))
    assert close_former_life(tmp_path, job, read_attempts(tmp_path)[run], {"attempt": 1, "beat": 1e6 + 30})
    first, second = read_attempts(tmp_path)[run]
    assert (first.state, first.seconds(0.0), second.seconds(0.0)) == ("lost", 30.0, 0.0)  # only the first one was heard of
    second = dataclasses.replace(second, ended=None)
    close(tmp_path, tmp_path / "runs" / run, second, FailureClass.LOST, "gone")
    assert read_attempts(tmp_path)[run][1].seconds(0.0) == 45.0


def test_an_attempt_whose_worker_died_after_the_runs_end_is_closed_as_done(tmp_path: Path) -> None:
    (run,) = make_study(tmp_path, {"steps": 2})
    (tmp_path / "launch").mkdir()
    append_event(tmp_path, "started", run, attempt=1, job_id="7", time=1e6, gpus=8, flops=0.0)
    (tmp_path / "runs" / run / "train.jsonl").write_text(f'{{"step": 2, "train_flops": 5.0, "time": {1e6 + 60}}}\n')
    close_finished(tmp_path)
    assert read_attempts(tmp_path)[run][0].ended is None
    write_json(tmp_path / "runs" / run / "exit.json", {"run_id": run, "status": "done"})
    close_finished(tmp_path)
    close_finished(tmp_path)
    (attempt,) = read_attempts(tmp_path)[run]
    assert (attempt.state, attempt.seconds(0.0), attempt.flops) == ("done", 60.0, 5.0)
    assert not (tmp_path / "runs" / run / "failure.json").exists()


def test_a_time_limit_without_room_for_a_step_is_an_error_of_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LST_JOB_START", "1000")
    job = WorkerJob(study=str(tmp_path), run_id="r", root=str(ROOT), timeout_minutes=2, signal_seconds=120)
    assert "leaves no time to train" in Watch(job).too_short()
    assert Watch(dataclasses.replace(job, signal_seconds=60)).too_short() == ""
    assert Watch(dataclasses.replace(job, timeout_minutes=0)).too_short() == ""
    with pytest.raises(ConfigError, match=r"timeout_min=2 leaves no time.*signal_seconds=120"):
        load_cluster(["cluster=slurm", "timeout_min=2"])


def test_a_trainer_that_slurm_takes_away_while_it_starts_is_no_defect() -> None:
    words = "srun: error: Unable to create step for job 7: Job/step already completing or completed\n"
    failure, cause = judge_death(1, f"srun: Cancelled pending job step with signal 15\n{words}")
    assert (failure, cause) == (FailureClass.LOST, words.strip())
    assert may_go_on([ended(1, failure, 0)])
    expired = "srun: error: Slurm job 5 has expired\nsrun: Check SLURM_JOB_ID environment variable. Expired or invalid job 5\n"
    assert judge_death(1, expired)[0] == FailureClass.LOST


def test_a_cause_is_the_line_that_tells_it() -> None:
    gone = "/spool/job7/slurm_script: line 31: /venv/bin/python: No such file or directory"
    assert judge_death(1, f"{gone}\n") == (FailureClass.IMPORT, gone)
    words = "OSError: [Errno 28] No space left on device\nsrun: launch/slurm: _step_signal: Terminating StepId=7.0\n"
    assert judge_death(1, words) == (FailureClass.DISK_FULL, "OSError: [Errno 28] No space left on device")
