"""Jobs that are lost before their run has begun, on a real SLURM: tried again by the policy of how they ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.ledger import Attempt, read_attempts
from lst.records import read_json
from tests.slurm import faults
from tests.slurm.lab import (
    SECONDS,
    LabStudy,
    call,
    job_ids,
    make_study,
    require_whole,
    slurm,
    start,
    status,
    wait_for,
    wait_until_done,
)

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(600)]
ON_SLURM = ("cluster=slurm", "canary_steps=0")


def ends(study: LabStudy) -> list[tuple[str, str, bool]]:
    """State, class, and whether it began, of each attempt of the first run."""
    found: list[Attempt] = read_attempts(study.folder)[study.run_ids[0]]
    return [(a.state, a.failure, a.started is not None) for a in found]


def test_jobs_that_a_signal_ends_before_their_first_line_are_submitted_anew_by_what_is_left_of_the_study(
    tmp_path: Path, data: Path, alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(tmp_path / "study", data, rows=1)
    before = tmp_path / "before.sh"  # bash reads it before the script
    before.write_text(f"[ -e {tmp_path}/second ] || {{ mv {tmp_path}/first {tmp_path}/second; kill -USR2 $$; }}\n")
    (tmp_path / "first").touch()
    monkeypatch.setenv("BASH_ENV", str(before))
    call("submit", study.folder, *ON_SLURM, "environment=BASH_ENV", "--wait")
    wait_until_done(study)
    require_whole(study, alone)
    assert ends(study) == [("lost", "lost", False), ("done", "", True)]
    first, second = read_attempts(study.folder)[study.run_ids[0]]
    assert first.cause.startswith("it ended before the run had begun (SLURM: FAILED, ")
    assert first.job_id != second.job_id


def test_a_job_that_nobody_is_left_to_submit_anew_is_told_as_lost_and_resubmit_runs_it(
    tmp_path: Path, data: Path, alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(tmp_path / "study", data, rows=1)
    (tmp_path / "before.sh").write_text("kill -USR2 $$\n")
    with monkeypatch.context() as context:
        context.setenv("BASH_ENV", str(tmp_path / "before.sh"))
        call("submit", study.folder, *ON_SLURM, "environment=BASH_ENV")
    wait_until_done(study)
    found = status(study)[study.run_ids[0]]
    assert (found["state"], found["attempts"]) == ("lost", 0)
    assert found["cause"] == "its job ended before the run had begun; submit again"
    assert "1 run submitted" in call("resubmit", study.folder, "--class", "lost", *ON_SLURM)
    wait_until_done(study)
    require_whole(study, alone)
    assert ends(study) == [("lost", "lost", False), ("done", "", True)]


def test_a_job_that_slurm_cannot_launch_and_holds_is_taken_back_and_submitted_anew(
    tmp_path: Path, data: Path, alone: Path
) -> None:
    study = make_study(tmp_path / "study", data, rows=1)
    with faults.prolog("exit 1\n"):
        call("submit", study.folder, *ON_SLURM)
        wait_for(lambda: "holds it" in status(study)[study.run_ids[0]]["cause"], "SLURM to give up")
    faults.cluster("up")  # the node whose prolog failed was drained
    process = start("submit", study.folder, *ON_SLURM, "--wait")
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, err
    wait_until_done(study)
    require_whole(study, alone)
    assert ends(study) == [("lost", "node_failure", False), ("done", "", True)]
    assert not (study.run_dir(study.run_ids[0]) / "failure.json").exists()  # of a run that is done


def test_a_node_that_dies_while_a_job_starts_costs_no_attempt(tmp_path: Path, data: Path, alone: Path) -> None:
    study = make_study(tmp_path / "study", data, rows=1)
    with faults.prolog("sleep 600\n"):
        call("submit", study.folder, *ON_SLURM)
        (job,) = job_ids(study)

        def place() -> str:
            return slurm("squeue", "--noheader", f"--jobs={job}", "--states=R,CF", "--format=%N").strip()

        node = wait_for(place, "the job to be given a node")
        faults.cluster("kill-node", node.removeprefix("node"))
        wait_for(lambda: place() != node, "SLURM to notice")
    faults.cluster("up")
    wait_until_done(study)
    require_whole(study, alone)
    assert ends(study) == [("done", "", True)]
    assert read_json(study.folder / f"runs/{study.run_ids[0]}/failure.json") is None
