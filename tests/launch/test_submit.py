"""submit-sweep as a user has it: processes of its own, real leases and signals; only the training is a stand-in."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launch.ledger import append_event, read_attempts
from launch.snapshot import PACKAGES
from lst.records import read_json, read_jsonl
from tests.launch.study import ROOT, alive, call, finish, lives, make_study, start, status, steps, wait_for

LONG = {"steps": 400, "seconds_per_step": 0.05}


def ledger(study: Path, event: str, **fields: Any) -> list[dict[str, Any]]:
    events = [e for e in read_jsonl(study / "launch/ledger.jsonl") if e["event"] == event]
    return [e for e in events if all(e.get(key) == value for key, value in fields.items())]


def test_submitting_twice_runs_each_row_once(tmp_path: Path) -> None:
    runs = make_study(tmp_path, {"steps": 2}, {"steps": 3}, {"steps": 4})
    code, out, err = call("submit", tmp_path, "cluster=local", "parallel=2")
    assert (code, err) == (0, "")
    assert "3 runs submitted; 3 runs: 3 done" in out
    assert "\x1b" not in out
    code, out, _ = call("submit", tmp_path, "cluster=local")
    assert code == 0
    assert out.startswith("nothing to submit")
    assert [len(lives(tmp_path, run)) for run in runs] == [1, 1, 1]
    assert {run["state"] for run in status(tmp_path).values()} == {"done"}


def test_the_longest_run_starts_first_and_no_more_run_than_there_are_slots(tmp_path: Path) -> None:
    runs = make_study(tmp_path, {"steps": 2}, {"steps": 9, "seconds_per_step": 0.02}, {"steps": 4, "seconds_per_step": 0.05})
    assert call("submit", tmp_path, "parallel=1")[0] == 0
    events = read_jsonl(tmp_path / "launch/ledger.jsonl")
    assert [e["run_id"] for e in events if e["event"] == "started"] == [runs[1], runs[2], runs[0]]
    assert [e["event"] for e in events] == ["submitted", "started", "ended"] * 3


def test_two_submitters_at_once_run_each_row_once(tmp_path: Path) -> None:
    runs = make_study(tmp_path, *[{"steps": n + 1, "seconds_per_step": 0.05} for n in range(4)], {"die_at": 1, "how": "raise"})
    results = [finish(process) for process in [start("submit", tmp_path, "cluster=local") for _ in range(2)]]
    assert [len(lives(tmp_path, run)) for run in runs] == [1] * 5
    assert len(ledger(tmp_path, "started")) == len(ledger(tmp_path, "ended")) == 5
    assert [code for code, _, _ in results] == [1, 1]  # both tell of the failed run
    assert sum("is submitting this study already" in out for _, out, _ in results) == 1


def test_a_killed_trainer_is_tried_once_more_and_told_and_submitting_again_finishes_the_run(tmp_path: Path) -> None:
    (run,) = make_study(tmp_path, {"steps": 5, "die_at": 2, "how": "kill", "bad_lives": 2})
    code, _, err = call("submit", tmp_path)
    assert code == 1
    assert f"failed: {run} (baseline, tiny, step 2 of 5): killed: the trainer was killed by SIGKILL" in err
    assert "Traceback" not in err
    failure = read_json(tmp_path / "runs" / run / "failure.json")
    assert failure is not None
    assert (failure["class"], failure["attempt"], failure["step"], failure["node"]) == ("killed", 2, 2, os.uname().nodename)
    found = status(tmp_path)[run]
    assert (found["state"], found["step"], found["attempts"]) == ("failed", 2, 2)
    assert call("submit", tmp_path)[0] == 0
    assert steps(tmp_path, run) == [1, 2, 3, 4, 5]
    assert status(tmp_path)[run] | {"seconds": 0} == found | {
        "state": "done", "cause": "", "step": 5, "attempts": 3, "seconds": 0, "source": "exit.json",
        "loss": 1.0, "job_id": ledger(tmp_path, "submitted", attempt=3)[0]["job_id"],
    }  # fmt: skip


def test_a_failing_run_stops_no_other_and_is_tried_once_a_call(tmp_path: Path) -> None:
    bad, *good = make_study(tmp_path, {"steps": 9, "die_at": 0, "how": "raise"}, {"steps": 2}, {"steps": 2})
    code, _, err = call("submit", tmp_path, "parallel=1")
    assert code == 1
    assert f"failed: {bad}" in err
    assert "RuntimeError: the loss went up a tree" in err
    assert len(lives(tmp_path, bad)) == 1
    assert [status(tmp_path)[run]["state"] for run in (bad, *good)] == ["failed", "done", "done"]
    assert call("submit", tmp_path)[0] == 1
    assert len(lives(tmp_path, bad)) == 2
    assert [len(lives(tmp_path, run)) for run in good] == [1, 1]


def test_the_trainers_own_failure_record_is_kept(tmp_path: Path) -> None:
    (run,) = make_study(tmp_path, {"die_at": 2, "how": "nan"})
    assert call("submit", tmp_path)[0] == 1
    assert status(tmp_path)[run]["cause"] == "nan: the loss is nan at step 2."


def test_resubmit_runs_failed_runs_of_a_class_and_nothing_else(tmp_path: Path) -> None:
    killed, nan, planned = make_study(
        tmp_path, {"die_at": 1, "how": "kill", "bad_lives": 2}, {"die_at": 1, "how": "nan", "bad_lives": 1}, {"steps": 2}
    )
    assert call("submit", tmp_path, "--run", killed, "--run", nan)[0] == 1
    code, out, _ = call("resubmit", tmp_path, "--failed", "--class", "nan")
    assert "1 run submitted" in out
    assert code == 1  # the killed one is still failed
    assert [status(tmp_path)[run]["state"] for run in (killed, nan, planned)] == ["failed", "done", "planned"]
    code, _, err = call("resubmit", tmp_path, "--class", "zzz")
    assert (code, err.count("lost")) == (2, 1)


def test_a_trainer_that_asks_to_be_run_again_is_restarted_but_not_for_ever(tmp_path: Path) -> None:
    patient, stubborn = make_study(
        tmp_path, {"steps": 4, "die_at": 2, "how": "again", "bad_lives": 2}, {"steps": 4, "die_at": 2, "how": "again"}
    )
    assert call("submit", tmp_path)[0] == 1
    found = status(tmp_path)
    assert (found[patient]["state"], len(lives(tmp_path, patient))) == ("done", 3)
    assert steps(tmp_path, patient) == [1, 2, 3, 4]
    assert (found[stubborn]["state"], found[stubborn]["attempts"]) == ("failed", 1)
    assert "without a new step" in found[stubborn]["cause"]


def test_ctrl_c_leaves_no_process_behind_and_a_second_submit_completes(tmp_path: Path) -> None:
    runs = make_study(tmp_path, LONG, LONG, {"steps": 2})
    process = start("submit", tmp_path, "parallel=2", start_new_session=True)
    wait_for(lambda: all(steps(tmp_path, run) for run in runs[:2]), "two runs to train")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the whole foreground group
    code, out, err = finish(process)
    assert (code, err) == (130, "")
    assert "stopping: 2 running save and leave" in out
    trainers = [life["pid"] for run in runs for life in lives(tmp_path, run)]
    assert len(trainers) == 2
    assert not any(alive(pid) for pid in trainers)
    found = status(tmp_path)
    assert {found[run]["state"] for run in runs} == {"planned"}
    assert found[runs[0]]["cause"].startswith("stopped by SIGTERM; goes on from its checkpoint")
    for run in runs[:2]:
        behaviour = tmp_path / "runs" / run / "behaviour.json"
        behaviour.write_text(json.dumps(LONG | {"seconds_per_step": 0.0}))
    assert call("submit", tmp_path)[0] == 0
    assert steps(tmp_path, runs[0]) == list(range(1, 401))
    assert len(ledger(tmp_path, "ended", state="interrupted")) == 2


def test_a_second_ctrl_c_kills_runs_that_do_not_leave(tmp_path: Path) -> None:
    (run,) = make_study(tmp_path, {"steps": 2, "seconds_per_step": 600})
    process = start("submit", tmp_path)
    (life,) = wait_for(lambda: lives(tmp_path, run), "the trainer")
    process.send_signal(signal.SIGINT)
    wait_for(lambda: "stopping" in (process.stdout.readline() if process.stdout else ""), "the first one to be noticed")
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] == 130
    wait_for(lambda: not alive(life["pid"]), "the trainer to be gone")
    assert status(tmp_path)[run]["state"] == "planned"


def test_runs_of_a_killed_submitter_are_waited_for_and_not_run_twice(tmp_path: Path) -> None:
    runs = make_study(tmp_path, {"steps": 40, "seconds_per_step": 0.05}, {"steps": 2})
    process = start("submit", tmp_path, "parallel=1")
    wait_for(lambda: steps(tmp_path, runs[0]), "the first run to train")
    process.kill()
    process.communicate()
    assert status(tmp_path)[runs[0]]["state"] == "running"
    assert call("submit", tmp_path, "parallel=1")[0] == 0
    assert [len(lives(tmp_path, run)) for run in runs] == [1, 1]
    assert {run["state"] for run in status(tmp_path).values()} == {"done"}


def test_a_killed_worker_leaves_its_trainer_the_run_until_it_ends(tmp_path: Path) -> None:
    (run,) = make_study(tmp_path, {"steps": 30, "seconds_per_step": 0.05})
    process = start("submit", tmp_path)
    wait_for(lambda: steps(tmp_path, run), "the run to train")
    lease = read_json(tmp_path / "runs" / run / "lease.json")
    assert lease is not None
    os.kill(lease["process"][0], signal.SIGKILL)
    assert status(tmp_path)[run]["state"] == "running"
    assert finish(process)[0] == 0
    assert status(tmp_path)[run]["state"] == "done"
    assert len(lives(tmp_path, run)) == 1
    assert [e["state"] for e in ledger(tmp_path, "ended")] == ["done"]


def test_a_lost_run_is_told_as_lost_and_submitted_again(tmp_path: Path) -> None:
    (run,) = make_study(tmp_path, {"steps": 30, "seconds_per_step": 0.05})
    process = start("submit", tmp_path)
    wait_for(lambda: steps(tmp_path, run), "the run to train")
    lease = read_json(tmp_path / "runs" / run / "lease.json")
    assert lease is not None
    process.kill()  # all at once, as when a machine goes down
    os.killpg(lease["process"][0], signal.SIGKILL)
    process.communicate()
    wait_for(lambda: status(tmp_path)[run]["state"] == "lost", "the loss to be seen")
    assert call("submit", tmp_path)[0] == 0
    assert steps(tmp_path, run) == list(range(1, 31))
    assert [e["state"] for e in ledger(tmp_path, "ended")] == ["lost", "done"]


def test_cancel_stops_the_submitter_and_its_runs(tmp_path: Path) -> None:
    run, waiting = make_study(tmp_path, LONG, LONG)
    process = start("submit", tmp_path, "parallel=1")
    wait_for(lambda: steps(tmp_path, run) or steps(tmp_path, waiting), "a run to train")
    assert sorted(s["state"] for s in status(tmp_path).values()) == ["queued", "running"]
    code, out, _ = call("cancel", tmp_path)
    assert code == 0
    assert "2 runs save and leave" in out
    assert finish(process)[0] == 130
    assert {s["state"] for s in status(tmp_path).values()} == {"planned"}


def test_logs_show_failed_runs_first(tmp_path: Path) -> None:
    bad, good = make_study(tmp_path, {"die_at": 1, "how": "raise"}, {"steps": 2})
    call("submit", tmp_path)
    code, out, _ = call("logs", tmp_path)
    assert code == 0
    assert "the loss went up a tree" in out
    assert good not in out
    assert "life 1 begins after step 0" in call("logs", tmp_path, good[:6])[1]
    assert bad in out
    assert call("logs", tmp_path, "zzz")[0] == 2


def test_jobs_run_the_code_as_it_was_at_submit(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    study = tmp_path / "study"
    first, second = make_study(study, {"steps": 20, "seconds_per_step": 0.05}, {"steps": 2})
    process = start("submit", study, "parallel=1", root=source)
    wait_for(lambda: lives(study, first), "the first run to start")
    (source / "lst/__init__.py").write_text('__version__ = "edited"\n')
    (source / "lst/records.py").write_text("raise SystemExit('edited')\n")
    assert finish(process)[0] == 0
    (life,) = lives(study, second)
    assert life["version"] != "edited"
    assert Path(life["lst"]).is_relative_to(study / "launch/snapshot")


def test_jobs_see_only_the_allowed_environment(tmp_path: Path) -> None:
    (run,) = make_study(tmp_path, {"steps": 1})
    secret = {"MY_TOKEN": "secret", "SITE_CACHE": "kept"}
    assert call("submit", tmp_path, "cluster=local", "threads=2", "cluster.environment=SITE_*", env=secret)[0] == 0
    (life,) = lives(tmp_path, run)
    seen = life["environment"]
    assert "MY_TOKEN" not in seen
    assert seen["SITE_CACHE"] == "kept"
    assert (seen["OMP_NUM_THREADS"], seen["MKL_NUM_THREADS"], seen["PYTHONSAFEPATH"]) == ("2", "2", "1")
    assert seen["CUDA_VISIBLE_DEVICES"] == ""


def test_refused_rows_are_not_submitted(tmp_path: Path) -> None:
    make_study(tmp_path, {"status": "refused", "reason": "too large for the memory"}, {"steps": 1})
    assert call("submit", tmp_path)[0] == 0
    assert sorted((s["state"], s["cause"]) for s in status(tmp_path).values()) == [
        ("done", ""),
        ("refused", "too large for the memory"),
    ]


def test_a_torn_ledger_line_is_tolerated(tmp_path: Path) -> None:
    runs = make_study(tmp_path, {"steps": 1}, {"steps": 2})
    assert call("submit", tmp_path, "--run", runs[0])[0] == 0
    with (tmp_path / "launch/ledger.jsonl").open("a") as file:
        file.write('{"time":1.0,"run_id":"' + runs[1])
    assert {s["state"] for s in status(tmp_path).values()} == {"done", "planned"}
    assert call("submit", tmp_path)[0] == 0
    found = status(tmp_path)
    assert [found[run]["attempts"] for run in runs] == [1, 1]
    assert len(ledger(tmp_path, "ended")) == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["cluster=locl"], "error: cluster='locl' is unknown; did you mean 'local'?"),
        (["paralel=2"], "error: unknown key 'cluster.paralel'; did you mean 'parallel'?"),
        (["parallel=two"], "error: cluster.parallel='two' must be of type int, not str."),
        (["parallel=-1"], "error: cluster.parallel=-1 must not be negative."),
        (["--run", "zz"], "error: run 'zz' is not in the plan;"),
    ],
)
def test_wrong_input_is_one_sentence_and_exit_code_2(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    make_study(tmp_path, {"steps": 1})
    code, out, err = call("submit", tmp_path, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(sentence)
    assert err.count("\n") == 1
    assert not (tmp_path / "launch/ledger.jsonl").exists()


def test_a_folder_without_a_plan_or_with_another_versions_is_refused(tmp_path: Path) -> None:
    code, _, err = call("submit", tmp_path)
    assert code == 2
    assert "has no plan.csv" in err
    (run,) = make_study(tmp_path, {"steps": 1})
    config = tmp_path / "runs" / run / "run.yaml"
    config.write_text(config.read_text().replace("lr: ", "lr: 1"))
    code, _, err = call("submit", tmp_path)
    assert code == 2
    assert "it was edited, or planned by another version" in err
    (tmp_path / "plan.csv").write_text("run_id,arm\n")
    code, _, err = call("submit", tmp_path)
    assert code == 2
    assert "lacks the columns size, steps" in err
    assert not (tmp_path / "launch/snapshot").exists()


@contextlib.contextmanager
def standing_still(study: Path, run: str) -> Iterator[None]:
    """The run, planned with `hold_at`, does nothing meanwhile."""
    wait_for(lambda: steps(study, run), "the run to train")
    try:
        yield
    finally:
        (study / "runs" / run / "go").touch()


def test_a_worker_that_was_killed_alone_leaves_an_account_of_what_its_trainer_spent(tmp_path: Path) -> None:
    (run,) = make_study(tmp_path, {"steps": 40, "hold_at": 1})
    process = start("submit", tmp_path)
    with standing_still(tmp_path, run):
        lease = read_json(tmp_path / "runs" / run / "lease.json")
        assert lease is not None
        os.kill(lease["process"][0], signal.SIGKILL)
    assert finish(process)[0] == 0
    (attempt,) = read_attempts(tmp_path)[run]
    assert (attempt.state, attempt.step, attempt.flops) == ("done", 40, 40e6)


def test_a_queued_run_that_is_cancelled_does_not_start_in_its_turn(tmp_path: Path) -> None:
    first, second = make_study(tmp_path, {"steps": 40, "hold_at": 1}, {"steps": 2})
    process = start("submit", tmp_path, "parallel=1")
    with standing_still(tmp_path, first):
        assert "1 run saves and leaves" in call("cancel", tmp_path, "--run", second)[1]
    assert finish(process)[0] == 1  # not all are done
    assert {run: s["state"] for run, s in status(tmp_path).items()} == {first: "done", second: "planned"}
    assert call("submit", tmp_path)[0] == 0
    assert status(tmp_path)[second]["state"] == "done"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["limit.gpus=-1"], "must not be negative"),
        (["limit.gpuz=1"], "did you mean 'gpus'"),
        (["--run", "zz"], "'zz' is not in the plan"),
        (["limit.flops=1e-9"], "is reached"),  # the detached one itself refuses
    ],
)
def test_what_a_detached_submitter_refuses_is_told_at_once(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    (run,) = make_study(tmp_path, {"steps": 2})
    (tmp_path / "launch").mkdir()
    append_event(tmp_path, "started", run, attempt=1, job_id="7")
    append_event(tmp_path, "ended", run, attempt=1, job_id="7", state="interrupted", flops=1.0)
    code, _, err = call("submit", tmp_path, "--detach", *arguments)
    assert (code, sentence in err) == (2, True)


def test_runs_that_the_plan_refuses_are_told_by_name(tmp_path: Path) -> None:
    refused, _ = make_study(tmp_path / "a", {"status": "refused", "reason": "too large"}, {"steps": 1})
    code, _, err = call("submit", tmp_path / "a", "--run", refused)
    assert (code, err) == (2, f"error: run {refused} is refused by the plan (too large); plan the study anew.\n")
    make_study(tmp_path / "b", {"status": "refused", "reason": "too large"})
    assert "every run is refused by the plan (too large)" in call("submit", tmp_path / "b")[2]


def test_a_shell_inside_a_job_hands_nothing_of_that_job_to_a_local_run(tmp_path: Path) -> None:
    (run,) = make_study(tmp_path / "study", {"steps": 2})
    flag = tmp_path / "flag"
    flag.write_text("TERM\n")
    inside = {"LST_STOP_FLAG": str(flag), "LST_LEASE": "7-abc", "SLURM_RESTART_COUNT": "3", "SLURM_PROCID": "1"}
    assert call("submit", tmp_path / "study", env=inside)[0] == 0
    (life,) = lives(tmp_path / "study", run)
    assert not {"SLURM_RESTART_COUNT", "SLURM_PROCID"} & set(life["environment"])
    assert flag.exists()
