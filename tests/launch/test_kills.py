"""A submitter that is killed between any two of its deeds loses no run, and leaves none to be submitted twice."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launch import scheduler
from launch import submit as submit_module
from launch.asked import read_order
from launch.cancel import cancel
from launch.ledger import read_attempts
from launch.order import pump
from launch.scheduler import slurm_queue
from launch.submit import Selection
from tests.launch import fake_slurm
from tests.launch.study import make_study, send

ENDED = "4711_0|FAILED|RaisedSignal:12\n4711_1|NODE_FAIL|None\n"
ROOT = "0" * 16
HELD = "4711_2 PENDING launch_failed_requeued_held\n"


class Killed(BaseException):
    """As SIGKILL: nothing that catches errors sees it."""


class Kills:
    """Counts what a process does to the outside, and ends it before the deed of that number."""

    def __init__(self) -> None:
        self.number = -1  # before which it is killed; -1 = never
        self._deeds = itertools.count()

    def before(self, number: int) -> None:
        self.number, self._deeds = number, itertools.count()

    def guard(self, real: Callable[..., object]) -> Callable[..., object]:
        def deed(*arguments: object, **options: object) -> object:
            self.look()
            return real(*arguments, **options)

        return deed

    def look(self) -> None:
        if next(self._deeds) == self.number:
            raise Killed


@pytest.fixture
def kills(tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch) -> Kills:
    """Every write of the launcher's, and every change of SLURM's, is a deed; SLURM itself answers within this process."""
    found = Kills()

    def run(argv: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        if argv[0] in ("sbatch", "scancel"):
            found.look()
        gone = slurm_list(slurm) if argv[0] == "scancel" else []
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = fake_slurm.main(argv[0], argv[1:])
        if (job := re.search(r"batch job (\d+)", out.getvalue())) is not None:
            (last,) = re.findall(r"--array=0-(\d+)", Path(argv[-1]).read_text())
            with (slurm / "queue.txt").open("a") as queue:
                queue.writelines(f"{job[1]}_{task} PENDING\n" for task in range(int(last) + 1))
        with (slurm / "ended.txt").open("a") as ended:
            ended.writelines(f"{job}|CANCELLED|None\n" for job in gone if job not in slurm_list(slurm))
        return subprocess.CompletedProcess(argv, code, out.getvalue(), err.getvalue())

    root = tmp_path / ROOT  # copying and checking the code is none of this, and takes its time
    root.mkdir()
    monkeypatch.setattr(submit_module, "take_snapshot", lambda _: root)
    monkeypatch.setattr(submit_module, "check_run", lambda *_: None)
    monkeypatch.setenv("FAKE_SLURM", str(slurm))
    monkeypatch.setattr(scheduler.subprocess, "run", run)
    monkeypatch.setattr(os, "write", found.guard(os.write))  # the ledger
    monkeypatch.setattr(Path, "replace", found.guard(Path.replace))  # order.json, failure.json and the like
    monkeypatch.setattr(Path, "write_text", found.guard(Path.write_text))  # a submission's files
    return found


def slurm_list(slurm: Path) -> list[str]:
    return [line.split()[0] for line in (slurm / "queue.txt").read_text().splitlines()]


def copies(tmp_path: Path, slurm: Path, kills: Kills, act: Callable[[Path], object]) -> Iterator[Path]:
    """Copies of tmp_path/study, in each of which `act` was killed before another deed; the last one was not killed."""
    texts = {path: path.read_text() for path in slurm.iterdir()}
    for number in itertools.count():
        study = tmp_path / f"study-{number}"
        kills.before(-1)
        for path in set(slurm.iterdir()) - set(texts):
            path.unlink()
        for path, text in texts.items():
            path.write_text(text)
        shutil.copytree(tmp_path / "study", study)
        kills.before(number)
        try:
            act(study)
        except Killed:
            kills.before(-1)
            yield study
        else:
            kills.before(-1)
            yield study
            return


@pytest.mark.parametrize(
    "act",
    [lambda study: pump(study, study.parent / ROOT), lambda study: send(study, "canary_steps=0")],
    ids=["a worker at its end", "submit"],
)
def test_runs_whose_jobs_are_gone_wait_or_are_submitted_wherever_a_submitter_is_killed(
    tmp_path: Path, slurm: Path, kills: Kills, act: Callable[[Path], object]
) -> None:
    runs = make_study(tmp_path / "study", {"steps": 9}, {"steps": 8}, {"steps": 7})
    (slurm / "queue.txt").touch()
    send(tmp_path / "study", "canary_steps=0")
    (slurm / "queue.txt").write_text(HELD)
    (slurm / "ended.txt").write_text(ENDED)
    tried = 0
    for study in copies(tmp_path, slurm, kills, act):
        pump(study, tmp_path / ROOT)
        attempts, queue = read_attempts(study), slurm_queue()
        assert {run: [(a.failure, a.job_id in queue) for a in attempts[run]] for run in runs} == {
            run: [(failure, False), ("", True)]
            for run, failure in zip(runs, ("lost", "node_failure", "node_failure"), strict=True)
        }
        assert (read_order(study).waiting, len(queue)) == ((), 3)
        tried += 1
    assert tried > 12


def test_jobs_that_are_taken_back_wait_or_are_queued_wherever_a_submitter_is_killed(
    tmp_path: Path, slurm: Path, kills: Kills
) -> None:
    runs = make_study(tmp_path / "study", {"steps": 9}, {"steps": 8}, {"steps": 7})
    (slurm / "queue.txt").touch()
    send(tmp_path / "study", "canary_steps=0")
    tried = 0
    for study in copies(tmp_path, slurm, kills, lambda study: send(study, "canary_steps=0", limits={"gpus": 1})):
        pump(study, tmp_path / ROOT)
        attempts, queue, waiting = read_attempts(study), slurm_queue(), read_order(study).waiting
        assert [sum(a.job_id in queue for a in attempts[run]) + (run in waiting) for run in runs] == [1, 1, 1]
        tried += 1
    assert len(waiting) == 2
    assert tried > 5


def test_a_canary_that_is_taken_back_stays_one_wherever_a_submitter_is_killed(tmp_path: Path, slurm: Path, kills: Kills) -> None:
    running, canary, _ = make_study(tmp_path / "study", {"steps": 9}, {"steps": 2}, {"steps": 7})
    (slurm / "queue.txt").touch()
    send(tmp_path / "study", "canary_steps=0", selection=Selection(run_ids=(running,)))
    (slurm / "queue.txt").write_text("4711_0 RUNNING\n")
    send(tmp_path / "study", "canary_steps=5")
    assert read_attempts(tmp_path / "study")[canary][0].job_id == "4712_0"
    for study in copies(tmp_path, slurm, kills, lambda study: send(study, "canary_steps=5", limits={"gpus": 1})):
        pump(study, tmp_path / ROOT)
        assert read_order(study).canaries == (canary,)
        assert canary in read_order(study).waiting
    assert [a.cause for a in read_attempts(study)[canary]] == ["taken back: limit.gpus=1"]


def test_what_is_cancelled_is_not_submitted_until_it_is_asked_for_wherever_cancel_is_killed(
    tmp_path: Path, slurm: Path, kills: Kills
) -> None:
    runs = make_study(tmp_path / "study", {"steps": 9}, {"steps": 8}, {"steps": 7})
    (slurm / "queue.txt").touch()
    send(tmp_path / "study", "canary_steps=0", limits={"gpus": 2})
    tried = 0
    for study in copies(tmp_path, slurm, kills, cancel):
        before = len(slurm_queue())
        pump(study, tmp_path / ROOT)
        assert len(slurm_queue()) <= before or not (study / "launch/cancels.jsonl").exists()
        cancel(study)
        pump(study, tmp_path / ROOT)
        assert (slurm_queue(), read_order(study).waiting) == ({}, ())
        send(study, "canary_steps=0")
        attempts, queue, waiting = read_attempts(study), slurm_queue(), read_order(study).waiting
        assert [sum(a.job_id in queue for a in attempts.get(run, ())) + (run in waiting) for run in runs] == [1, 1, 1]
        tried += 1
    assert (len(waiting), before) == (1, 0)
    assert tried > 3
