"""More of what happens on a real SLURM: dead nodes and controllers, time limits, signals that come early, full disks, bugs."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from launch.ledger import read_attempts
from launch.retries import study_stopped
from launch.snapshot import PACKAGES
from lst.records import read_json, read_jsonl
from tests.slurm import faults
from tests.slurm.lab import (
    ROOT,
    LabStudy,
    call,
    job_ids,
    make_study,
    require_whole,
    slurm,
    start,
    status,
    wait_for,
    wait_for_step,
    wait_until_done,
)

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(400)]
ON_SLURM = "cluster=slurm"


def test_a_dead_node_costs_an_attempt_and_nothing_else(tmp_path: Path, data: Path, alone: Path) -> None:
    study = make_study(tmp_path / "study", data, rows=1)
    call("submit", study.folder, ON_SLURM)
    wait_for_step(study, study.run_ids[0], 20)
    node = slurm("squeue", "--noheader", f"--jobs={job_ids(study)[0]}", "--format=%N").strip().removeprefix("node")
    faults.kill_node(int(node))
    wait_until_done(study)
    require_whole(study, alone)
    first, second = read_attempts(study.folder)[study.run_ids[0]]
    assert (first.failure, second.state, first.job_id) == ("node_failure", "done", second.job_id)


def test_the_controller_may_restart_in_the_middle(tmp_path: Path, data: Path, alone: Path) -> None:
    study = make_study(tmp_path / "study", data, rows=1)
    call("submit", study.folder, ON_SLURM)
    wait_for_step(study, study.run_ids[0], 20)
    faults.cluster("restart-ctld")
    wait_until_done(study)
    require_whole(study, alone)
    assert len(read_attempts(study.folder)[study.run_ids[0]]) == 1


def test_a_killed_worker_is_queued_again_by_the_batch_script(tmp_path: Path, data: Path, alone: Path) -> None:
    study = make_study(tmp_path / "study", data, rows=1)
    call("submit", study.folder, ON_SLURM)
    wait_for_step(study, study.run_ids[0], 20)
    assert faults.kill(faults.workers(study)) == 1
    wait_until_done(study)
    require_whole(study, alone)
    first, second = read_attempts(study.folder)[study.run_ids[0]]
    assert (first.failure, second.state) == ("lost", "done")


def test_a_time_limit_saves_and_queues_again(tmp_path: Path, data: Path, alone: Path) -> None:
    study = make_study(tmp_path / "study", data, rows=1, steps=1500)
    call("submit", study.folder, ON_SLURM, "timeout_min=1", "signal_seconds=45")
    wait_until_done(study)
    require_whole(study, alone)
    attempts = read_attempts(study.folder)[study.run_ids[0]]
    assert {a.failure for a in attempts[:-1]} == {"timeout"}
    assert all(a.seconds(0.0) < 60 for a in attempts)


@pytest.mark.parametrize("name", ["USR1", "USR2"])
def test_a_signal_before_python_is_up_is_not_lost(tmp_path: Path, data: Path, alone: Path, name: str) -> None:
    study = make_study(tmp_path / "study", data, rows=1, steps=40)
    call("submit", study.folder, ON_SLURM)
    (job,) = job_ids(study)
    wait_for(lambda: faults.catches(job, name), "the batch shell to catch the signal")
    slurm("scancel", "--batch", f"--signal={name}", job)
    wait_until_done(study)
    require_whole(study, alone)
    assert (study.folder / f"launch/stop/{job}.0").read_text().strip() in (name, "preempted")
    assert read_attempts(study.folder)[study.run_ids[0]][-1].job_id == job


def test_a_killed_submitter_leaves_nothing_behind_that_is_submitted_twice(tmp_path: Path, data: Path, alone: Path) -> None:
    study = make_study(tmp_path / "study", data, rows=2, steps=40)
    for pause in (1.5, 2.0, 2.5, 3.0):
        process = start("submit", study.folder, ON_SLURM)
        time.sleep(pause)
        process.kill()
        process.communicate()
    call("submit", study.folder, ON_SLURM)
    wait_until_done(study)
    require_whole(study, alone)
    assert {len(attempts) for attempts in read_attempts(study.folder).values()} == {1}


def test_a_disk_full_in_a_save_is_told_and_resubmit_mends_it(tmp_path: Path, data: Path, alone: Path) -> None:
    study = make_study(tmp_path / "study", data, rows=1)
    call("submit", study.folder, ON_SLURM)
    wait_for_step(study, study.run_ids[0], 20)
    (trainer,) = faults.pids(faults.trainers(study))
    subprocess.run(["prlimit", f"--pid={trainer}", "--fsize=100000:100000"], check=True)
    wait_until_done(study)
    found = status(study)[study.run_ids[0]]
    assert (found["state"], found["cause"].partition(":")[0]) == ("failed", "disk_full")
    failure = read_json(study.run_dir(study.run_ids[0]) / "failure.json")
    assert failure is not None
    assert failure["node"].startswith("node")
    call("resubmit", study.folder, "--failed", "--class", "disk_full", ON_SLURM)
    wait_until_done(study)
    require_whole(study, alone)


def test_a_bug_in_every_row_costs_the_canaries(tmp_path: Path, data: Path) -> None:
    study = make_study(tmp_path / "study", data, rows=6, steps=40, data_path=str(tmp_path / "nowhere"))
    call("submit", study.folder, ON_SLURM)
    wait_for(lambda: study_stopped(study.folder), "the study to stop")
    wait_until_done(study)
    states = [s["state"] for s in status(study).values()]
    assert (states.count("failed"), states.count("planned")) == (2, 4)  # one of each arm
    assert "canary" in start("submit", study.folder, ON_SLURM).communicate(timeout=120)[1]


def test_what_is_queued_runs_the_code_and_configuration_of_its_submission(tmp_path: Path, data: Path, alone: Path) -> None:
    source = tmp_path / "source"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    study = make_study(tmp_path / "study", data, rows=1, steps=40)
    call("submit", study.folder, ON_SLURM, "options.hold=true", root=source)
    (source / "lst/records.py").write_text("raise SystemExit('edited')\n")
    slurm("scontrol", "release", job_ids(study)[0])
    wait_until_done(study)
    require_whole(study, alone)
    edited = make_study(tmp_path / "edited", data, rows=1, steps=40)
    call("submit", edited.folder, ON_SLURM, "options.hold=true")
    run = edited.run_dir(edited.run_ids[0]) / "run.yaml"
    run.write_text(run.read_text().replace('"steps": 40', '"steps": 41'))
    slurm("scontrol", "release", job_ids(edited)[0])
    wait_until_done(edited)
    assert "it was edited" in status(edited)[edited.run_ids[0]]["cause"]


def most_at_once(study: LabStudy) -> int:
    """The largest number of attempts that ran at one time."""
    attempts = [a for tries in read_attempts(study.folder).values() for a in tries]
    changes = sorted([(a.started or 0.0, 1) for a in attempts] + [(a.ended or 0.0, -1) for a in attempts])
    return max(itertools.accumulate(change for _, change in changes))


def test_more_rows_than_an_array_may_have_all_run_under_one_cap(tmp_path: Path, data: Path, alone: Path) -> None:
    study = make_study(tmp_path / "study", data, rows=14, steps=3)
    call("submit", study.folder, ON_SLURM, "canary_steps=0", "limit.gpus=12")
    wait_for(lambda: all(s["state"] == "done" for s in status(study).values()), "all rows")
    wait_until_done(study)
    assert most_at_once(study) <= 12
    require_whole(study, alone)
    arrays = {attempts[0].job_id.partition("_")[0] for attempts in read_attempts(study.folder).values()}
    assert len(arrays) >= 2
    assert {len(attempts) for attempts in read_attempts(study.folder).values()} == {1}


def test_two_nodes_of_two_ranks_are_preempted_and_end_as_if_undisturbed(tmp_path: Path, data: Path) -> None:
    options = (ON_SLURM, "partition=low", "gpus_per_node=2", "cpus_per_task=4", "canary_steps=0")
    calm = make_study(tmp_path / "calm", data, rows=1, steps=120, gpus=4)
    call("submit", calm.folder, *options)
    wait_until_done(calm)
    study = make_study(tmp_path / "study", data, rows=1, steps=120, gpus=4)
    call("submit", study.folder, *options)
    wait_for_step(study, study.run_ids[0], 10)
    faults.take_node(2)
    wait_until_done(study)
    (run_id,) = study.run_ids
    folders = calm.run_dir(run_id), study.run_dir(run_id)
    weights = [(folder / "checkpoints/final/model.safetensors").read_bytes() for folder in folders]
    assert weights[0] == weights[1]
    records = read_jsonl(folders[1] / "train.jsonl")
    assert [r["step"] for r in records] == list(range(1, 121))
    assert {r["processes"] for r in records} == {4}
    first, *_, last = read_attempts(study.folder)[run_id]
    assert (first.failure, last.state) == ("preempted", "done")
    assert "done" in {a.state for a in read_attempts(calm.folder)[run_id]}
