"""Limits on a real SLURM: a hard budget, of which failed and preempted attempts count and a run overruns by a step; places."""

from __future__ import annotations

import itertools
import subprocess
import time
from pathlib import Path

import pytest

from launch.ledger import read_attempts
from launch.limits import spent
from launch.scheduler import slurm_queue
from lst.records import read_jsonl
from tests.slurm.lab import (
    SECONDS,
    LabStudy,
    call,
    held,
    job_ids,
    make_study,
    recorded_flops,
    require_accounts,
    require_whole,
    slurm,
    start,
    status,
    wait_for,
    wait_until_done,
)

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(600)]
ONE_AT_A_TIME = ("cluster=slurm", "canary_steps=0", "limit.gpus=1")


def told(study: LabStudy, run_id: str) -> bool:
    """Whether the run's job, in whatever life, was told that the budget is spent."""
    job = read_attempts(study.folder)[run_id][-1].job_id
    return any(path.read_text().strip() == "budget" for path in (study.folder / "launch/stop").glob(f"{job}.*"))


def flops_spent(study: LabStudy) -> float:
    return spent(study.folder, read_attempts(study.folder), time.time()).flops


def wait_for_attempt(study: LabStudy, run_id: str, number: int) -> None:
    wait_for(lambda: len(read_attempts(study.folder)[run_id]) == number, f"attempt {number}")


def test_a_spent_budget_stops_the_grid_and_a_higher_one_lets_it_go_on(tmp_path: Path, data: Path, alone: Path) -> None:
    study = make_study(tmp_path / "study", data, rows=3, checkpoint_every_seconds=1e6)  # what a kill interrupts is lost whole
    first, second, third = study.run_ids
    call("submit", study.folder, *ONE_AT_A_TIME)
    with held(study, first) as (trainer,):
        subprocess.run(["kill", "-KILL", str(trainer)], check=True)
    wait_for_attempt(study, first, 2)
    with held(study, first):
        slurm("scancel", "--batch", "--signal=USR2", job_ids(study)[0])
        wait_for(lambda: (study.folder / f"launch/stop/{job_ids(study)[0]}.0").exists(), "the job to be told to stop")
    wait_for_attempt(study, first, 3)
    with held(study, first):
        killed, preempted, _ = read_attempts(study.folder)[first]
        assert [(a.failure, a.flops > 0) for a in (killed, preempted)] == [("killed", True), ("preempted", True)]
        recorded = recorded_flops(study.run_dir(first))
        before = flops_spent(study)
        assert before == pytest.approx(recorded + killed.flops)
        limit = recorded + killed.flops / 2  # without the failed attempt's, or the preempted one's, it were not reached
        code, told_of = refused(study, f"limit.flops={limit}")
        assert (code, "FLOPs is reached" in told_of, "raise it with" in told_of) == (2, True, True)
        wait_for(lambda: told(study, first), "the run to be told")
    wait_until_done(study)
    require_accounts(study)
    records = read_jsonl(study.run_dir(first) / "train.jsonl")
    a_step = max(b["train_flops"] - a["train_flops"] for a, b in itertools.pairwise(records))
    assert flops_spent(study) <= before + a_step * (1 + 1e-9)
    found = status(study)
    assert [s["state"] for s in found.values()] == ["planned"] * 3
    assert "FLOPs is reached" in found[first]["cause"]
    assert set(read_attempts(study.folder)) == {first}
    assert f"limit.flops={limit:.3g}: {flops_spent(study):.3g} spent, 0 left" in call("status", study.folder)
    saved = read_attempts(study.folder)[first][-1].step

    call("submit", study.folder, *ONE_AT_A_TIME, "limit.flops=0")
    with held(study, second):  # its job's time goes on meanwhile
        refused(study, f"limit.gpu_hours={spent(study.folder, read_attempts(study.folder), time.time()).gpu_hours + 2 / 3600}")
        wait_for(lambda: told(study, second), "the run to be told")
    wait_until_done(study)
    found = status(study)
    assert [s["state"] for s in found.values()] == ["done", "planned", "planned"]
    assert "GPU-hours is reached" in found[second]["cause"]
    assert third not in read_attempts(study.folder)
    assert read_attempts(study.folder)[first][-1].step_before == saved > 0
    call("submit", study.folder, *ONE_AT_A_TIME, "limit.gpu_hours=0")
    wait_for(lambda: all(s["state"] == "done" for s in status(study).values()), "all rows")
    wait_until_done(study)
    require_whole(study, alone)
    assert [(a.state, a.failure) for a in read_attempts(study.folder)[second]] == [("interrupted", "budget"), ("done", "")]


def refused(study: LabStudy, limit: str) -> tuple[int, str]:
    """Submit with a limit: exit code and complaint."""
    process = start("submit", study.folder, *ONE_AT_A_TIME, limit)
    _, err = process.communicate(timeout=SECONDS)
    return process.returncode, err


def test_a_lowered_limit_leaves_the_array_s_other_tasks_in_the_queue(tmp_path: Path, data: Path) -> None:
    study = make_study(tmp_path / "study", data, rows=4)
    later = ("cluster=slurm", "canary_steps=0", "cluster.options.begin=now+600")
    call("submit", study.folder, *later, "limit.gpus=4")
    jobs = job_ids(study)
    assert "2 queued jobs beyond limit.gpus are taken back" in call("submit", study.folder, *later, "limit.gpus=2")
    assert sorted(set(slurm_queue()) & set(jobs)) == sorted(jobs)[:2]
    assert sorted(a.failure for tries in read_attempts(study.folder).values() for a in tries) == [""] * 4
    call("cancel", study.folder)
    wait_for(lambda: not set(slurm_queue()) & set(job_ids(study)), "the jobs to leave")
