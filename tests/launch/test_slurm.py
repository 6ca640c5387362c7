"""The SLURM path as far as files go: the batch script's text, arrays, the queue, cancelling; the scheduler is a fake.

.venv/bin/python -m pytest tests/launch/test_slurm.py --update-golden     writes tests/golden/sbatch.txt anew
"""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

import pytest

from launch import scheduler
from launch.cluster import load_cluster
from launch.environment import ask_environment
from launch.executor import sbatch_environment
from launch.job import WorkerJob
from launch.ledger import append_event, read_attempts
from launch.retries import study_stopped
from launch.scheduler import expand_job_id, find_by_token
from lst.errors import LaunchError
from lst.records import read_json, read_jsonl
from tests.launch.study import NO_CANARY, ROOT, call, lives, make_study, send, start, status, steps, wait_for

GOLDEN = ROOT / "tests/golden/sbatch.txt"


def scripts(slurm: Path, study: Path) -> list[str]:
    """The batch scripts that sbatch got, with what differs from call to call replaced by names."""
    texts = [path.read_text() for path in sorted(slurm.glob("script-*.sh"))]
    named = [text.replace(str(study), "STUDY").replace(sys.executable, "PYTHON") for text in texts]
    named = [re.sub(r"snapshot/[0-9a-f]{16}", "snapshot/HASH", text) for text in named]
    named = [re.sub(r"\b[0-9a-f]{64}\b", "SHA256", text) for text in named]
    named = [text.replace(str(ROOT), "ROOT") for text in named]
    return [re.sub(r"(jobs/|comment=)[0-9a-f]{12}", r"\1TOKEN", text) for text in named]


def test_batch_scripts_hold_what_is_set_and_nothing_else(tmp_path: Path, slurm: Path, update_golden: bool) -> None:
    study = tmp_path / "study"
    make_study(study, {"steps": 2}, {"steps": 3}, {"steps": 4})
    assert call("submit", study, "cluster=slurm", "canary_steps=0")[0] == 0
    rest = [
        "partition=gpu,long",
        "account=proj",
        "qos=high",
        "timeout_min=90",
        "mem_gb=62.5",
        "cpus_per_task=8",
        "gpus_per_node=1",
    ]
    more = ["constraint=h100", "exclude=node7", "threads=8", "signal_seconds=300", "array_parallelism=2", "job_name=mine"]
    options = ["options.reservation=night", "options.no-kill=true", "options.nice=null", "max_array_size=2"]
    other = tmp_path / "other"
    make_study(other, {"steps": 2}, {"steps": 3}, {"steps": 4})
    assert call("submit", other, "cluster=slurm", "canary_steps=0", *[f"cluster.{o}" for o in rest + more + options])[0] == 0
    found = [text.replace(str(other), "STUDY") for text in scripts(slurm, study)]
    assert len(found) == 3
    text = "\n=====\n".join(found)
    if update_golden:
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def test_rows_are_submitted_once_and_told_as_the_queue_has_them(tmp_path: Path, slurm: Path) -> None:
    study = tmp_path / "study"
    short, long = make_study(study, {"steps": 2}, {"steps": 3})
    (slurm / "queue.txt").write_text("4711_0 RUNNING\n4711_1 PENDING\n")
    assert "2 runs submitted" in call("submit", study, "cluster=slurm", "canary_steps=0")[1]
    assert call("submit", study, "cluster=slurm", "canary_steps=0")[1].startswith("nothing to submit")
    assert call("submit", study, "cluster=local")[1].startswith("nothing to submit")
    assert len(list(slurm.glob("script-*.sh"))) == 1
    found = status(study)
    assert {run: (found[run]["state"], found[run]["job_id"], found[run]["source"]) for run in found} == {
        long: ("running", "4711_0", "squeue"),
        short: ("queued", "4711_1", "squeue"),
    }
    (slurm / "queue.txt").write_text("4711_[0-1%4] PENDING\n")
    assert {s["state"] for s in status(study).values()} == {"queued"}
    (slurm / "queue.txt").write_text("")
    assert {s["state"] for s in status(study).values()} == {"lost"}


def test_a_silent_scheduler_submits_nothing_twice(tmp_path: Path, slurm: Path) -> None:
    study = tmp_path / "study"
    make_study(study, {"steps": 2}, {"steps": 3})
    call("submit", study, "cluster=slurm", "canary_steps=0")
    (slurm / "squeue-is-down").touch()
    assert {(s["state"], s["cause"]) for s in status(study).values()} == {("queued", "squeue does not answer")}
    assert call("submit", study, "cluster=slurm", "canary_steps=0")[1].startswith("nothing to submit")
    assert len(list(slurm.glob("script-*.sh"))) == 1


def test_another_clusters_list_says_nothing_about_this_studys_jobs(tmp_path: Path, slurm: Path) -> None:
    study = tmp_path / "study"
    make_study(study, {"steps": 2}, {"steps": 3})
    (slurm / "site").write_text("north")
    call("submit", study, "cluster=slurm", "canary_steps=0")
    (slurm / "queue.txt").write_text("9999_0 RUNNING\n")
    assert {s["state"] for s in status(study).values()} == {"lost"}
    (slurm / "site").write_text("south")
    (slurm / "queue.txt").write_text("4711_0 RUNNING\n")  # of the same number, and another study's
    assert {(s["state"], s["cause"]) for s in status(study).values()} == {
        ("queued", "its job is on cluster north, this is south")
    }
    assert call("submit", study, "cluster=slurm", "canary_steps=0")[1].startswith("nothing to submit")
    code, _, err = call("cancel", study)
    assert (code, "this is cluster south, and queued jobs are on north" in err) == (2, True)
    assert "scancel" not in (slurm / "calls.txt").read_text()


def test_groups_of_equal_resources_make_arrays_and_cancel_takes_them_back(tmp_path: Path, slurm: Path) -> None:
    study = tmp_path / "study"
    make_study(study, {"steps": 2}, {"steps": 3}, {"steps": 4}, gpus=4)
    plan = study / "plan.csv"
    plan.write_text(plan.read_text().replace(",4,0.0,", ",2,0.0,", 1))
    call("submit", study, "cluster=slurm", "canary_steps=0")
    texts = [path.read_text() for path in sorted(slurm.glob("script-*.sh"))]
    assert ["gpus-per-node=4" in texts[0], "--array=0-1%2" in texts[0]] == [True, True]
    assert ["gpus-per-node=2" in texts[1], "--array=0-0%1" in texts[1]] == [True, True]
    (slurm / "queue.txt").write_text("4711_0 PENDING\n4711_1 PENDING\n4712_0 PENDING\n")
    assert "3 runs" in call("cancel", study)[1]
    cancelled = next(line for line in (slurm / "calls.txt").read_text().splitlines() if line.startswith("scancel"))
    assert sorted(cancelled.split()[2:]) == ["4711_0", "4711_1", "4712_0"]
    (slurm / "queue.txt").write_text("")
    assert {(s["state"], s["cause"].partition(";")[0]) for s in status(study).values()} == {("planned", "cancelled")}


def test_a_run_that_is_queued_again_is_cancelled_and_can_be_submitted_anew(tmp_path: Path, slurm: Path) -> None:
    study = tmp_path / "study"
    (run,) = make_study(study, {"steps": 2})
    call("submit", study, "cluster=slurm", "canary_steps=0")
    append_event(study, "started", run, attempt=1, job_id="4711_0", cluster="slurm")
    end = {"state": "interrupted", "cause": "SLURM takes the job's place", "class": "preempted"}
    append_event(study, "ended", run, attempt=1, job_id="4711_0", **end)
    (slurm / "queue.txt").write_text("4711_0 PENDING\n")
    assert status(study)[run]["state"] == "queued"
    assert "1 run saves and leaves" in call("cancel", study)[1]
    assert "scancel --quiet 4711_0" in (slurm / "calls.txt").read_text()
    (slurm / "queue.txt").write_text("")
    assert status(study)[run]["state"] == "planned"
    assert "1 run submitted" in call("submit", study, "cluster=slurm", "canary_steps=0")[1]


def test_sbatchs_refusal_is_one_sentence(tmp_path: Path, slurm: Path) -> None:
    study = tmp_path / "study"
    make_study(study, {"steps": 2})
    code, _, err = call("submit", study, "cluster=slurm", "canary_steps=0", "partition=nowhere")
    assert code == 2
    assert "invalid partition specified: nowhere" in err
    assert err.count("\n") == 1
    assert {s["state"] for s in status(study).values()} == {"planned"}


def test_without_slurm_the_user_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_study(tmp_path, {"steps": 2})
    monkeypatch.setenv("PATH", "/nowhere")
    code, _, err = call("submit", tmp_path, "cluster=slurm")
    assert code == 2
    assert "needs sbatch and srun on PATH" in err


def test_the_batch_script_trains_the_runs_from_the_snapshot(tmp_path: Path, slurm: Path) -> None:
    (slurm / "runs").touch()
    study = tmp_path / "study"
    runs = make_study(study, {"steps": 2}, {"die_at": 1, "how": "raise"})
    assert call("submit", study, "cluster=slurm", "canary_steps=0", "threads=3")[0] == 0
    wait_for(lambda: (slurm / "calls.txt").read_text().count("srun") == 2, "both jobs to start")
    wait_for(lambda: [e["event"] for e in read_jsonl(study / "launch/ledger.jsonl")].count("ended") == 2, "both jobs to end")
    assert {s["state"] for s in status(study).values()} == {"done", "failed"}
    (life,) = lives(study, runs[0])
    assert Path(life["lst"]).is_relative_to(study / "launch/snapshot")
    assert life["environment"]["OMP_NUM_THREADS"] == "3"
    events = read_jsonl(study / "launch/ledger.jsonl")
    assert {(e["event"], e["attempt"], e["job_id"]) for e in events if e["run_id"] == runs[0]} == {
        (event, 1, "4711_1") for event in ("submitted", "started", "ended")
    }


def test_usr2_saves_and_asks_slurm_to_queue_the_job_again(tmp_path: Path, slurm: Path) -> None:
    (slurm / "runs").touch()
    study = tmp_path / "study"
    (run,) = make_study(study, {"steps": 400, "seconds_per_step": 0.05})
    call("submit", study, "cluster=slurm", "canary_steps=0")
    wait_for(lambda: steps(study, run), "the job to train")
    lease = read_json(study / "runs" / run / "lease.json")
    assert lease is not None
    os.kill(lease["process"][0], signal.SIGUSR2)
    wait_for(lambda: "scontrol requeue 4711" in (slurm / "calls.txt").read_text(), "the requeue")
    (slurm / "queue.txt").write_text("4711_0 PENDING\n")
    assert status(study)[run]["state"] == "queued"


def test_waiting_shows_the_runs_until_they_end(tmp_path: Path, slurm: Path) -> None:
    (slurm / "runs").touch()
    study = tmp_path / "study"
    make_study(study, {"steps": 2}, {"die_at": 1, "how": "nan"})
    (slurm / "queue.txt").write_text("4711_0 PENDING\n4711_1 PENDING\n")
    process = start("submit", study, "cluster=slurm", "canary_steps=0", "--wait")
    wait_for(lambda: {s["state"] for s in status(study).values()} == {"done", "failed"}, "the jobs to end")
    (slurm / "queue.txt").write_text("")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "[2/2]" in out
    assert "nan: the loss is nan" in err


def test_squeues_short_forms_are_spelled_out() -> None:
    assert expand_job_id("12_[0-2,5%4]") == ["12_0", "12_1", "12_2", "12_5"]
    assert expand_job_id("12_[0-6:3]") == ["12_0", "12_3", "12_6"]
    assert expand_job_id("12_3") == ["12_3"]
    assert expand_job_id("12") == ["12"]


def test_jobs_in_a_hidden_partition_are_seen_whatever_the_shell_lets_squeue_list(
    tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("SQUEUE_STATES", "RUNNING"), ("SQUEUE_PARTITION", "debug"), ("SLURM_CLUSTERS", "other")):
        monkeypatch.setenv(name, value)
    (slurm / "hidden").touch()
    (run,) = make_study(tmp_path / "study", {"steps": 7})
    send(tmp_path / "study", *NO_CANARY)
    (slurm / "queue.txt").write_text("4711_0 PENDING\n")
    assert status(tmp_path / "study")[run]["state"] == "queued"
    assert send(tmp_path / "study", *NO_CANARY) == "0 submitted"
    assert find_by_token(re.search("--comment=(.*)", (slurm / "script-0.sh").read_text())[1]) == "4711"


def test_options_of_sbatch_in_the_shell_do_not_count_and_submit_says_so(
    tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_study(tmp_path / "study", {"steps": 7})
    for name in ("SBATCH_PARTITION", "SBATCH_NO_REQUEUE"):
        monkeypatch.setenv(name, "1")
    told = send(tmp_path / "study", *NO_CANARY, "partition=gpu")
    assert "SBATCH_NO_REQUEUE, SBATCH_PARTITION of this shell do not count here" in told
    job = WorkerJob(study="/s", run_id="r", root="/r")
    environment = sbatch_environment(job, load_cluster(["cluster=slurm", "partition=gpu", "environment=SBATCH_*"]))
    assert not [name for name in environment if name.startswith("SBATCH_")]
    monkeypatch.setenv("SQUEUE_FORMAT", "%i")
    assert not [name for name in ask_environment(os.environ) if name.startswith("SQUEUE_")]


def test_a_node_that_is_set_down_while_runs_start_on_it_stops_no_study(tmp_path: Path, slurm: Path) -> None:
    study = tmp_path / "study"
    runs = make_study(study, *[{"steps": 2 + n, "die_at": 0, "how": "node", "bad_lives": 1} for n in range(3)])
    (slurm / "runs").touch()
    call("submit", study, *NO_CANARY)
    wait_for(lambda: (slurm / "calls.txt").read_text().count("scontrol requeue 4711_") == 3, "the requeues")
    (ends,) = {tuple((a.state, a.failure, a.cause) for a in read_attempts(study)[run]) for run in runs}
    assert ends == (("interrupted", "node_failure", "srun: error: Node failure on node1"),)
    assert study_stopped(study) == ""


def test_node_types_are_those_of_nodes_that_jobs_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []

    def answer(argv: list[str], seconds: float = 60) -> str:
        calls.append(argv)
        return "n1\n" if argv[0] == "scontrol" else "n1|(null)|gpu:8|64\nn2|(null)|gpu:8|64\nn3|fat|(null)|128\n"

    monkeypatch.setattr(scheduler, "_call", answer)
    assert scheduler.node_types(None) == {"gpu:8, 64 cores": "n1", "fat, 128 cores": "n3"}
    assert scheduler.node_types(None, nodelist="n[1-3]", exclude="n1") == {"gpu:8, 64 cores": "n2", "fat, 128 cores": "n3"}
    assert "--nodes=n[1-3]" in calls[-1]
    monkeypatch.setattr(scheduler, "_call", lambda argv, seconds=60: "")
    with pytest.raises(LaunchError, match=r"no node that is up under cluster\.nodelist=nope;"):
        scheduler.node_types(None, nodelist="nope")
