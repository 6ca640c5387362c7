"""What happens to a study on a real SLURM, and that afterwards nothing is lost and nothing was done twice."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from launch.ledger import read_attempts
from lst.records import read_jsonl
from tests.slurm import faults
from tests.slurm.lab import (
    FULL,
    SECONDS,
    call,
    held,
    job_ids,
    make_study,
    most_at_once,
    require_accounts,
    require_whole,
    slurm,
    start,
    status,
    wait_for,
    wait_for_flag,
    wait_until_done,
)

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(1800 if FULL else 600)]
ON_SLURM = "cluster=slurm"


def test_an_array_with_a_cap_runs_each_row_once(tmp_path: Path, data: Path, alone: Path) -> None:
    study = make_study(tmp_path / "study", data, rows=2)
    call("submit", study.folder, ON_SLURM, "cluster.array_parallelism=1", "canary_steps=0")
    ids = set(job_ids(study))
    with held(study, study.run_ids[0]):
        running = slurm("squeue", "--noheader", "--array", "--states=R", "--format=%i").split()
        assert len(ids.intersection(running)) == 1
    wait_until_done(study)
    require_whole(study, alone)
    assert most_at_once(study) == 1
    assert {len(attempts) for attempts in read_attempts(study.folder).values()} == {1}


def test_twenty_submitters_five_at_once_submit_each_row_once(tmp_path: Path, data: Path, alone: Path) -> None:
    study = make_study(tmp_path / "study", data, rows=2)
    for _ in range(4):
        processes = [start("submit", study.folder, ON_SLURM, "canary_steps=0") for _ in range(5)]
        for process in processes:
            _, err = process.communicate(timeout=SECONDS)
            assert process.returncode == 0, err
    wait_until_done(study)
    require_whole(study, alone)
    assert {len(attempts) for attempts in read_attempts(study.folder).values()} == {1}


def test_a_killed_submitter_leaves_nothing_behind_that_is_submitted_twice(tmp_path: Path, data: Path, alone: Path) -> None:
    study = make_study(tmp_path / "study", data, rows=2)
    for pause in (0.5, 1.0, 1.5, 2.0):
        process = start("submit", study.folder, ON_SLURM)
        time.sleep(pause)
        process.kill()
        process.communicate()
    call("submit", study.folder, ON_SLURM)
    wait_until_done(study)
    require_whole(study, alone)
    assert {len(attempts) for attempts in read_attempts(study.folder).values()} == {1}


def test_a_preempted_run_saves_is_queued_again_and_ends_as_if_undisturbed(tmp_path: Path, data: Path, alone: Path) -> None:
    study = make_study(tmp_path / "study", data, rows=1)
    call("submit", study.folder, ON_SLURM, "cluster.partition=low", "cluster.nodelist=node1", "cluster.cpus_per_task=8")
    (job,) = job_ids(study)
    with held(study, study.run_ids[0]):
        faults.take_node(1)
        wait_for_flag(study, job)
    wait_until_done(study)
    require_whole(study, alone)
    attempts = read_attempts(study.folder)[study.run_ids[0]]
    assert [(a.state, a.failure) for a in attempts] == [("interrupted", "preempted"), ("done", "")]
    assert {a.job_id for a in attempts} == {job}


def test_a_cancelled_study_goes_on_when_submitted_again(tmp_path: Path, data: Path, alone: Path) -> None:
    study = make_study(tmp_path / "study", data, rows=2)
    call("submit", study.folder, ON_SLURM, "cluster.array_parallelism=1")
    with held(study, study.run_ids[0]):
        call("cancel", study.folder)
        wait_for_flag(study, job_ids(study)[0])
    wait_until_done(study)
    assert {s["state"] for s in status(study).values()} == {"planned"}
    require_accounts(study)
    call("submit", study.folder, ON_SLURM)
    wait_until_done(study)
    require_whole(study, alone)


def test_a_canary_ended_by_scancel_gives_its_place_to_another_run(tmp_path: Path, data: Path, alone: Path) -> None:
    study = make_study(tmp_path / "study", data, rows=3)
    call("submit", study.folder, ON_SLURM, "canary_steps=50")
    ended, *others = study.run_ids
    with held(study, ended):
        (job,) = {a.job_id for a in read_attempts(study.folder)[ended]}
        slurm("scancel", job)
    wait_for(lambda: all(status(study)[run_id]["state"] == "done" for run_id in others), "the other runs")
    wait_until_done(study)
    assert status(study)[ended]["state"] == "planned"
    assert {a.job_id for a in read_attempts(study.folder)[ended]} == {job}
    call("submit", study.folder, ON_SLURM)
    wait_until_done(study)
    require_whole(study, alone)


def test_more_rows_than_an_array_may_have_all_run_under_one_cap_that_changes(tmp_path: Path, data: Path, alone: Path) -> None:
    most = int(slurm("scontrol", "show", "config").partition("MaxArraySize")[2].split()[1])
    study = make_study(tmp_path / "study", data, rows=100 if FULL else most + 2, steps=3)
    call("submit", study.folder, ON_SLURM, "canary_steps=0", "limit.gpus=2")
    wait_for(lambda: any(s["state"] == "done" for s in status(study).values()), "a first row")
    assert most_at_once(study) <= 2
    call("submit", study.folder, "limit.gpus=12", ON_SLURM, "canary_steps=0")
    wait_for(lambda: all(s["state"] == "done" for s in status(study).values()), "all rows")
    wait_until_done(study)
    assert most_at_once(study) <= 12
    require_whole(study, alone, study.run_ids[:2])
    arrays = {attempts[0].job_id.partition("_")[0] for attempts in read_attempts(study.folder).values()}
    assert len(arrays) >= 2
    assert {len(attempts) for attempts in read_attempts(study.folder).values()} == {1}


def test_two_nodes_of_two_ranks_are_preempted_and_end_as_if_undisturbed(tmp_path: Path, data: Path) -> None:
    options = (ON_SLURM, "partition=low", "gpus_per_node=2", "cpus_per_task=4", "canary_steps=0")
    studies = [make_study(tmp_path / name, data, rows=1, steps=20, gpus=4) for name in ("calm", "disturbed")]
    calm, study = studies
    (run_id,) = study.run_ids
    for one in studies:
        call("submit", one.folder, *options)
        if one is study:
            with held(study, run_id) as ranks:
                assert len(ranks) == 4
                faults.take_node(2)
                wait_for_flag(study, job_ids(study)[0])
        wait_until_done(one)
    folders = calm.run_dir(run_id), study.run_dir(run_id)
    weights = [(folder / "checkpoints/final/model.safetensors").read_bytes() for folder in folders]
    assert weights[0] == weights[1]
    records = read_jsonl(folders[1] / "train.jsonl")
    assert [r["step"] for r in records] == list(range(1, study.steps + 1))
    assert {r["processes"] for r in records} == {4}
    require_accounts(study)
    first, *_, last = read_attempts(study.folder)[run_id]
    assert (first.failure, last.state, first.gpus) == ("preempted", "done", 4)
