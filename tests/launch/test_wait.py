"""What waits is sent though SLURM does not answer, or is full, for a while: by a job at its end, and by `submit --wait`."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from launch import follow as follow_module
from launch import order as order_module
from launch import worker
from launch.asked import read_order
from launch.cluster import load_cluster
from launch.display import Display
from launch.interrupt import Interrupts
from launch.job import WorkerJob
from launch.retries import stop_study
from launch.rows import read_rows
from launch.submit import submit
from tests.launch.study import make_study, send
from tests.launch.test_orders import NOW, jobs, live, root, small

__all__ = ["small"]  # a fixture


@pytest.fixture
def passed(tmp_path: Path, slurm: Path) -> tuple[Path, list[str]]:
    """A study whose canary has passed just now, while squeue fails."""
    study = tmp_path / "study"
    runs = make_study(study, {"steps": 7}, {"steps": 8})
    send(study)
    live(study, runs[0], "interrupted", "canary")
    (slurm / "queue.txt").write_text("")
    (slurm / "squeue-is-down").touch()
    return study, runs


class Told(io.StringIO):
    """Has squeue answer again once it was told of twice."""

    def __init__(self, slurm: Path) -> None:
        super().__init__()
        self.slurm = slurm

    def write(self, text: str) -> int:
        if self.getvalue().count("squeue failed") > 1:
            (self.slurm / "squeue-is-down").unlink(missing_ok=True)
        return super().write(text)


def test_a_job_at_its_end_asks_again_where_slurm_does_not_answer(
    passed: tuple[Path, list[str]], slurm: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study, runs = passed
    pump = order_module.pump

    def once(*arguments: object, **options: object) -> None:
        try:
            pump(*arguments, **options)  # type: ignore[arg-type]
        finally:
            (slurm / "squeue-is-down").unlink(missing_ok=True)

    monkeypatch.setattr(order_module, "pump", once)
    monkeypatch.setattr(worker, "FEED_AGAIN_SECONDS", 0.1)
    worker._feed(WorkerJob(study=str(study), run_id=runs[0], root=str(root(study)), cluster="slurm"), [])
    assert "what waits was not submitted: squeue failed" in capsys.readouterr().err
    assert len(jobs(study)) == 2


def test_a_job_at_its_end_does_not_ask_for_ever(
    passed: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study, runs = passed
    monkeypatch.setattr(worker, "FEED_SECONDS", 0.5)
    monkeypatch.setattr(worker, "FEED_AGAIN_SECONDS", 0.1)
    worker._feed(WorkerJob(study=str(study), run_id=runs[0], root=str(root(study)), cluster="slurm"), [])
    assert "not submitted" in capsys.readouterr().err


def test_who_waits_stays_where_slurm_does_not_answer(
    passed: tuple[Path, list[str]], slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, _ = passed
    monkeypatch.setattr(follow_module, "FOLLOW_SECONDS", 0.1)
    with Interrupts() as interrupts:
        follow_module.follow(study, read_rows(study), Display(Told(slurm)), interrupts, root(study), None)
    assert len(jobs(study)) == 2


def test_who_waits_stays_while_others_fill_slurm_and_who_does_not_is_told_so(
    tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tmp_path / "study"
    make_study(study, {"steps": 7}, {"steps": 8})
    (slurm / "limit").write_text("0")
    assert "2 wait for SLURM's limit on submitted jobs; no job of the study is there to submit them" in send(study, NOW)
    monkeypatch.setattr(follow_module, "FOLLOW_SECONDS", 0.1)
    pump, tried = follow_module.pump, []

    def later(*arguments: object, **options: object) -> None:
        tried.append(1)
        if len(tried) == 3:
            (slurm / "limit").unlink()
        pump(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(follow_module, "pump", later)
    submit(study, load_cluster(["cluster=slurm", NOW]), display=Display(io.StringIO()), wait=True)
    assert (len(jobs(study)), read_order(study).waiting) == (2, ())


def test_who_waits_leaves_a_study_that_is_stopped(tmp_path: Path, slurm: Path) -> None:
    study = tmp_path / "study"
    make_study(study, {"steps": 7}, {"steps": 8})
    (slurm / "limit").write_text("0")
    send(study, NOW)
    assert follow_module.is_to_come(study, read_rows(study))
    stop_study(study, "a canary failed")
    assert not follow_module.is_to_come(study, read_rows(study))
