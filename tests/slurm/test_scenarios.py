"""What happens to a study on a real SLURM, and that afterwards nothing is lost and nothing was done twice."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from launch.ledger import read_attempts
from tests.slurm.lab import (
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


def test_an_array_with_a_cap_runs_each_row_once(tmp_path: Path, data: Path, alone: Path) -> None:
    study = make_study(tmp_path / "study", data, rows=4, steps=40)
    call("submit", study.folder, "cluster=slurm", "cluster.array_parallelism=1", "canary_steps=0")
    ids = set(job_ids(study))
    most = 0
    while any(s["state"] in ("queued", "running") for s in status(study).values()):
        running = slurm("squeue", "--noheader", "--array", "--states=R", "--format=%i").split()
        most = max(most, len(ids.intersection(running)))
        time.sleep(0.3)
    assert most == 1
    wait_until_done(study)
    require_whole(study, alone)
    assert {len(attempts) for attempts in read_attempts(study.folder).values()} == {1}


def test_twenty_submitters_five_at_once_submit_each_row_once(tmp_path: Path, data: Path, alone: Path) -> None:
    study = make_study(tmp_path / "study", data, rows=3, steps=40)
    for _ in range(4):
        processes = [start("submit", study.folder, "cluster=slurm", "canary_steps=0") for _ in range(5)]
        for process in processes:
            _, err = process.communicate(timeout=120)
            assert process.returncode == 0, err
    wait_until_done(study)
    require_whole(study, alone)
    assert {len(attempts) for attempts in read_attempts(study.folder).values()} == {1}


def test_a_preempted_run_saves_is_queued_again_and_ends_as_if_undisturbed(tmp_path: Path, data: Path, alone: Path) -> None:
    study = make_study(tmp_path / "study", data, rows=1)
    call("submit", study.folder, "cluster=slurm", "cluster.partition=low", "cluster.nodelist=node1", "cluster.cpus_per_task=8")
    wait_for_step(study, study.run_ids[0], 20)
    other = slurm(
        "sbatch",
        "--parsable",
        "--partition=high",
        "--nodelist=node1",
        "--cpus-per-task=8",
        "--output=/dev/null",
        "--wrap=sleep 2",
    ).strip()
    wait_for(lambda: other not in slurm("squeue", "--noheader", "--format=%i").split(), "the higher job to end")
    wait_until_done(study)
    require_whole(study, alone)
    attempts = read_attempts(study.folder)[study.run_ids[0]]
    assert [a.state for a in attempts] == ["interrupted", "done"]
    assert attempts[0].job_id == attempts[1].job_id


def test_a_plain_requeue_loses_at_most_what_came_after_the_last_checkpoint(tmp_path: Path, data: Path, alone: Path) -> None:
    study = make_study(tmp_path / "study", data, rows=1)
    call("submit", study.folder, "cluster=slurm")
    wait_for_step(study, study.run_ids[0], 60)
    slurm("scontrol", "requeue", job_ids(study)[0])
    wait_until_done(study)
    require_whole(study, alone)


def test_a_killed_rank_is_a_failure_and_is_tried_once_more_by_itself(tmp_path: Path, data: Path, alone: Path) -> None:
    study = make_study(tmp_path / "study", data, rows=1)
    call("submit", study.folder, "cluster=slurm")
    wait_for_step(study, study.run_ids[0], 20)
    subprocess.run(["pkill", "-KILL", "-f", f"python[^ ]* -m lst.train {study.run_dir(study.run_ids[0])}"], check=True)
    wait_until_done(study)
    require_whole(study, alone)
    first, second = read_attempts(study.folder)[study.run_ids[0]]
    assert (first.state, first.failure, second.state) == ("failed", "killed", "done")
    assert first.job_id == second.job_id


def test_a_cancelled_study_goes_on_when_submitted_again(tmp_path: Path, data: Path, alone: Path) -> None:
    study = make_study(tmp_path / "study", data, rows=2)
    call("submit", study.folder, "cluster=slurm", "cluster.array_parallelism=1")
    wait_for_step(study, study.run_ids[0], 20)
    call("cancel", study.folder)
    wait_until_done(study)
    assert {s["state"] for s in status(study).values()} == {"planned"}
    call("submit", study.folder, "cluster=slurm")
    wait_until_done(study)
    require_whole(study, alone)
