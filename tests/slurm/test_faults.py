"""More of what happens on a real SLURM: dead nodes and controllers, kills, time limits, early signals, full disks, bugs."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from launch.ledger import read_attempts
from launch.retries import study_stopped
from launch.snapshot import PACKAGES
from lst.records import read_json
from tests.slurm import faults
from tests.slurm.lab import (
    ROOT,
    SECONDS,
    call,
    held,
    job_ids,
    make_study,
    require_whole,
    slurm,
    start,
    status,
    wait_for,
    wait_for_flag,
    wait_until_done,
)

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(600)]
ON_SLURM = "cluster=slurm"


def test_a_dead_node_costs_an_attempt_and_nothing_else(tmp_path: Path, data: Path, alone: Path) -> None:
    study = make_study(tmp_path / "study", data, rows=1)
    call("submit", study.folder, ON_SLURM)
    with held(study, study.run_ids[0]):
        (job,) = job_ids(study)
        node = slurm("squeue", "--noheader", f"--jobs={job}", "--format=%N").strip()
        faults.cluster("kill-node", node.removeprefix("node"))
    wait_for(lambda: slurm("squeue", "--noheader", f"--jobs={job}", "--format=%N").strip() != node, "SLURM to notice")
    faults.cluster("up")
    wait_until_done(study)
    require_whole(study, alone)
    first, second = read_attempts(study.folder)[study.run_ids[0]]
    assert (first.failure, second.state, first.job_id) == ("node_failure", "done", second.job_id)


def test_the_controller_restarts_in_the_middle_and_a_plain_requeue_goes_on_from_the_checkpoint(
    tmp_path: Path, data: Path, alone: Path
) -> None:
    study = make_study(tmp_path / "study", data, rows=1)
    call("submit", study.folder, ON_SLURM)
    with held(study, study.run_ids[0]):
        faults.cluster("restart-ctld")
        assert len(read_attempts(study.folder)[study.run_ids[0]]) == 1
        slurm("scontrol", "requeue", job_ids(study)[0])
    wait_until_done(study)
    require_whole(study, alone)
    assert {a.job_id for a in read_attempts(study.folder)[study.run_ids[0]]} == {job_ids(study)[0]}


def test_a_killed_rank_is_tried_again_at_once_and_a_killed_worker_by_the_batch_script(
    tmp_path: Path, data: Path, alone: Path
) -> None:
    study = make_study(tmp_path / "study", data, rows=1)
    (run_id,) = study.run_ids
    call("submit", study.folder, ON_SLURM)
    with held(study, run_id) as (trainer,):
        subprocess.run(["kill", "-KILL", str(trainer)], check=True)
    wait_for(lambda: len(read_attempts(study.folder)[run_id]) == 2, "the second attempt")
    with held(study, run_id) as (second,):
        assert second != trainer
        assert faults.kill(faults.workers(study)) == 1
    wait_until_done(study)
    require_whole(study, alone)
    attempts = read_attempts(study.folder)[run_id]
    assert [(a.state, a.failure) for a in attempts] == [("failed", "killed"), ("lost", "lost"), ("done", "")]
    assert len({a.job_id for a in attempts}) == 1


def test_a_time_limit_saves_and_queues_again(tmp_path: Path, data: Path, alone: Path) -> None:
    study = make_study(tmp_path / "study", data, rows=1)
    call("submit", study.folder, ON_SLURM, "timeout_min=60", "signal_seconds=1500")
    (job,) = job_ids(study)
    with held(study, study.run_ids[0]):  # in the middle the limit comes near, so that no run is too fast or too slow for it
        slurm("scontrol", "update", f"jobid={job}", "timelimit=20")
        wait_for_flag(study, job)
    wait_for(lambda: read_attempts(study.folder)[study.run_ids[0]][0].ended, "the first attempt's end")
    slurm("scontrol", "update", f"jobid={job}", "timelimit=60")
    wait_until_done(study)
    require_whole(study, alone)
    first, second = read_attempts(study.folder)[study.run_ids[0]]
    assert (first.failure, first.job_id, second.state, second.job_id) == ("timeout", job, "done", job)
    assert second.step_before == first.step > 0


def test_signals_before_python_is_up_are_not_lost(tmp_path: Path, data: Path, alone: Path) -> None:
    study = make_study(tmp_path / "study", data, rows=2)
    call("submit", study.folder, ON_SLURM, "options.hold=true")
    jobs = dict(zip(("USR1", "USR2"), job_ids(study), strict=True))
    for name, job in jobs.items():
        slurm("scontrol", "release", job)
        wait_for(lambda name=name, job=job: faults.catches(job, name), "the batch shell to catch the signal")
        slurm("scancel", "--batch", f"--signal={name}", job)
    wait_until_done(study)
    require_whole(study, alone)
    for name, job in jobs.items():
        assert (study.folder / f"launch/stop/{job}.0").read_text().strip() in (name, "preempted")
    assert job_ids(study) == list(jobs.values())


def test_a_task_that_is_queued_again_leaves_the_others_of_its_array_alone(tmp_path: Path, data: Path, alone: Path) -> None:
    study = make_study(tmp_path / "study", data, rows=2)
    call("submit", study.folder, ON_SLURM, "canary_steps=0")
    array = job_ids(study)[0].partition("_")[0]

    def running() -> dict[str, str]:  # SLURM's own number -> the task's id
        lines = slurm("squeue", "--noheader", f"--jobs={array}", "--states=R", "--format=%A %i").splitlines()
        return dict(line.split() for line in lines)

    wait_for(lambda: len(running()) == 2, "both tasks to run")
    job = running()[array]  # one task has the array's own number
    told, other = sorted(study.run_ids, key=lambda run_id: read_attempts(study.folder)[run_id][0].job_id != job)
    with held(study, other):
        with held(study, told):
            slurm("scancel", "--batch", "--signal=USR2", job)
            wait_for_flag(study, job)
        wait_for(lambda: len(read_attempts(study.folder)[told]) == 2, "the task to run again")
    wait_until_done(study)
    require_whole(study, alone)
    assert [len(read_attempts(study.folder)[run_id]) for run_id in (told, other)] == [2, 1]


def test_a_disk_full_in_a_save_is_told_and_resubmit_mends_it(tmp_path: Path, data: Path, alone: Path) -> None:
    study = make_study(tmp_path / "study", data, rows=1)
    call("submit", study.folder, ON_SLURM)
    with held(study, study.run_ids[0]) as (trainer,):
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


def test_a_bug_in_every_row_costs_the_canaries_and_once_mended_resubmit_runs_them_all(
    tmp_path: Path, data: Path, alone: Path
) -> None:
    nowhere = tmp_path / "nowhere"
    study = make_study(tmp_path / "study", data, rows=3, data_path=str(nowhere))
    call("submit", study.folder, ON_SLURM)
    wait_for(lambda: study_stopped(study.folder), "the study to stop")
    wait_until_done(study)
    *canaries, third = status(study).values()
    assert (
        "failed" in {s["state"] for s in canaries} <= {"failed", "planned"}
    )  # planned: the other one had stopped the study first
    assert (third["state"], third["attempts"]) == ("planned", 0)
    assert "canary" in start("submit", study.folder, ON_SLURM).communicate(timeout=SECONDS)[1]
    nowhere.symlink_to(data)
    call("resubmit", study.folder, "--failed", ON_SLURM)
    wait_for(lambda: all(s["state"] == "done" for s in status(study).values()), "the canaries, and then the rest")
    wait_until_done(study)
    require_whole(study, alone)


def test_what_is_queued_runs_the_code_and_configuration_of_its_submission(tmp_path: Path, data: Path, alone: Path) -> None:
    source = tmp_path / "source"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    studies = [make_study(tmp_path / name, data, rows=1) for name in ("study", "edited")]
    for study in studies:
        call("submit", study.folder, ON_SLURM, "options.hold=true", root=source)
    (source / "lst/records.py").write_text("raise SystemExit('edited')\n")
    run = studies[1].run_dir(studies[1].run_ids[0]) / "run.yaml"
    run.write_text(run.read_text().replace(f'"steps": {studies[1].steps}', '"steps": 41'))
    for study in studies:
        slurm("scontrol", "release", job_ids(study)[0])
    for study in studies:
        wait_until_done(study)
    require_whole(studies[0], alone)
    assert "it was edited" in status(studies[1])[studies[1].run_ids[0]]["cause"]
