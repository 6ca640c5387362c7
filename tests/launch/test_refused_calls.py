"""Calls that are refused, and what they leave as it was; the remedy that a stopped study tells, and where it may be used."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from launch import executor
from launch.asked import read_order, resubmission
from launch.cli import main
from launch.cluster import cluster_from_dict, load_cluster
from launch.limits import read_limits
from launch.order import pump
from launch.retries import stop_study, study_stopped
from launch.scheduler import Refused
from launch.submit import Selection
from lst.errors import LaunchError
from tests.launch.study import call, make_study, send
from tests.launch.test_canaries_of_orders import give
from tests.launch.test_orders import NOW, jobs, live, root, small, stopped

__all__ = ["small", "stopped"]  # fixtures


def refuse_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on sbatch refuses jobs of two GPUs."""
    sbatch = executor.sbatch

    def choosy(script: Path, **options: object) -> str:
        if "gpus-per-node=2" in script.read_text():
            raise Refused("sbatch refused the jobs (Requested node configuration is not available).")
        return sbatch(script, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(executor, "sbatch", choosy)


def test_a_refusal_after_some_jobs_were_sent_keeps_their_order_and_their_limits(
    tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tmp_path / "study"
    runs = make_study(study, *[{"steps": n} for n in (7, 8, 9, 10)])
    give(study, "arm", "A", "A", "B", "B")
    give(study, "gpus", 4, 4, 2, 2)
    refuse_pairs(monkeypatch)
    with pytest.raises(LaunchError, match="not available"):
        send(study, limits={"gpu_hours": 1.0})
    assert jobs(study) == {runs[0]: ["4711_0"]}
    assert read_limits(study).gpu_hours == 1.0
    assert (read_order(study).canaries, set(read_order(study).waiting)) == ((runs[0], runs[2]), set(runs))


def test_a_refusal_where_nothing_new_was_asked_for_keeps_what_was_sent_of_what_waited(
    tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tmp_path / "study"
    runs = make_study(study, *[{"steps": n} for n in (7, 8, 9, 10)])
    give(study, "gpus", 2, 2, 4, 4)
    send(study, NOW, limits={"gpus": 4})
    (first,) = jobs(study)
    live(study, first, "interrupted", "budget")
    stop_study(study, "why")
    refuse_pairs(monkeypatch)
    with pytest.raises(LaunchError, match="not available"):
        send(study, NOW, limits={"gpus": 0}, selection=Selection(failed_only=True))
    (second,) = {*runs[2:]} - {first}
    assert jobs(study) == {first: ["4711_0"], second: ["4712_0"]}
    assert (study_stopped(study), read_limits(study).gpus, set(read_order(study).waiting)) == ("", 0, set(runs[:2]))


def test_a_call_that_a_stop_refuses_leaves_the_limits_as_they_were(stopped: tuple[Path, list[str]]) -> None:
    study, _ = stopped
    before = read_limits(study)
    assert main(["submit", str(study), "cluster=slurm", "limit.gpus=1", "limit.gpu_hours=9"]) == 2
    assert read_limits(study) == before


def test_the_remedy_names_the_cluster_that_the_runs_were_ordered_for(tmp_path: Path, slurm: Path) -> None:
    study = tmp_path / "a study"
    make_study(study, {"steps": 7})
    assert resubmission(study) == f"submit-sweep resubmit '{study}' --failed"
    words = ["cluster=slurm", NOW, "cluster.partition=gpu", "cluster.options.begin=16:00", "cluster.options.no-kill=true"]
    send(study, *words[1:])
    told = shlex.split(resubmission(study))
    assert told[:5] == ["submit-sweep", "resubmit", str(study), "--failed", "cluster=slurm"]
    assert load_cluster(told[4:]) == load_cluster(words) == cluster_from_dict(read_order(study).cluster)


@pytest.mark.parametrize("cluster", ["local", "debug"])
def test_a_stopped_study_whose_runs_wait_for_slurm_is_not_resubmitted_elsewhere(
    stopped: tuple[Path, list[str]], cluster: str
) -> None:
    study, _ = stopped
    before, order = study_stopped(study), read_order(study)
    code, _, err = call("resubmit", study, "--failed", f"cluster={cluster}")
    assert code == 2
    assert f"2 of its runs wait for SLURM: {resubmission(study)}; or" in err
    assert (study_stopped(study), read_order(study)) == (before, order)


def test_a_stopped_study_that_is_taken_back_from_slurm_goes_on_here(stopped: tuple[Path, list[str]], slurm: Path) -> None:
    study, runs = stopped
    live(study, runs[3], "interrupted", "budget")
    (slurm / "queue.txt").write_text("")
    assert call("cancel", study)[0] == 0
    code, _, err = call("resubmit", study, "--failed", "cluster=local")
    assert (code, err, study_stopped(study)) == (0, "", "")
    pump(study, root(study))
    assert jobs(study)[runs[0]][0] == "4712_0"
    assert not {job for found in jobs(study).values() for job in found if job.startswith("4713")}


def three_died_alike(tmp_path: Path, slurm: Path) -> Path:
    """A study whose jobs found no interpreter, so that no worker had a word."""
    study = tmp_path / "study"
    make_study(study, *[{"steps": n} for n in (7, 8, 9)])
    send(study, NOW)
    (slurm / "queue.txt").write_text("")
    (slurm / "ended.txt").write_text("".join(f"4711_{n}|FAILED|NonZeroExitCode\n" for n in range(3)))
    return study


def test_failures_alike_that_submit_itself_finds_stop_the_study_and_send_nothing_again(tmp_path: Path, slurm: Path) -> None:
    study = three_died_alike(tmp_path, slurm)
    with pytest.raises(LaunchError, match=r"the study is stopped: 3 attempts failed alike.*resubmit"):
        send(study, NOW)
    assert all(len(found) == 1 for found in jobs(study).values())
    assert "3 attempts failed alike" in study_stopped(study)


def test_a_stop_that_resubmit_itself_finds_is_told_before_anything_is_sent_again(tmp_path: Path, slurm: Path) -> None:
    study = three_died_alike(tmp_path, slurm)
    again = Selection(failed_only=True)
    with pytest.raises(LaunchError, match="the study is stopped: 3 attempts failed alike"):
        send(study, NOW, selection=again)
    assert send(study, NOW, selection=again).endswith("3 submitted")
