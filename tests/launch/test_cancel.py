"""After a cancel nobody submits what was asked for before it, until the next call of submit asks again."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launch import cancel as cancel_module
from launch import executor
from launch import order as order_module
from launch import submit as submit_module
from launch.asked import read_order
from launch.cancel import cancel
from launch.job import WorkerJob
from launch.lease import Lease
from launch.ledger import read_attempts
from launch.order import pump
from launch.scheduler import sbatch
from launch.status import lock_path
from launch.submit import Selection
from launch.withdrawn import withdraw
from launch.worker import Outcome, Runner, run_job
from lst.errors import LaunchError
from lst.records import read_json, write_json
from tests.launch.study import ROOT, make_study, send, status
from tests.launch.test_orders import NOW, end, jobs, live, root, small, start

__all__ = ["small"]  # a fixture


def during_sbatch(study: Path, runs: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[list[threading.Thread], list[str]]:
    """Have somebody cancel all runs while the first sbatch takes its time; the thread in which it does, and what it is told."""
    found: list[threading.Thread] = []
    told: list[str] = []

    def slow(script: Path, *, test: bool = False, **options: object) -> str:
        if not found and not test:
            found.append(threading.Thread(target=lambda: told.extend(cancel(study, selection=Selection(run_ids=tuple(runs))))))
            found[0].start()
            time.sleep(1.5)
        return sbatch(script, test=test, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(executor, "sbatch", slow)
    return found, told


@pytest.mark.parametrize("words", [(NOW, "max_array_size=1"), ()], ids=["chunks", "canary"])
def test_what_a_submitter_has_not_sent_yet_is_not_sent_and_what_it_sends_is_cancelled(
    tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    study = tmp_path / "study"
    runs = make_study(study, *[{"steps": n} for n in (7, 8, 9, 10)])
    (slurm / "queue.txt").write_text("4711_0 PENDING\n")
    canceller, told = during_sbatch(study, runs, monkeypatch)
    sent = send(study, *words)
    canceller[0].join()
    assert sent.endswith("1 submitted")
    assert "wait" not in sent
    assert told == runs
    assert "scancel --quiet 4711_0" in (slurm / "calls.txt").read_text()
    assert read_order(study).waiting == ()
    pump(study, root(study))  # as the cancelled job does at its end
    assert [job for tried in jobs(study).values() for job in tried] == ["4711_0"]
    assert {found["state"] for found in status(study).values()} == {"planned"}
    monkeypatch.setattr(executor, "sbatch", sbatch)
    assert send(study, NOW).endswith("4 submitted")  # who asks again gets it


def test_who_waited_for_the_lock_when_it_was_cancelled_submits_nothing(
    tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tmp_path / "study"
    runs = make_study(study, {"steps": 7}, {"steps": 8}, {"steps": 9})
    take_lock = submit_module._take_lock

    def after(study: Path, *arguments: object) -> Lease | None:
        cancel(study, selection=Selection(run_ids=tuple(runs[:2])))
        return take_lock(study, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(submit_module, "_take_lock", after)
        assert send(study, NOW).endswith("1 submitted")
    assert list(jobs(study)) == runs[2:]
    (slurm / "queue.txt").write_text("4711_0 PENDING\n")
    assert send(study, NOW).endswith("2 submitted")


@pytest.mark.parametrize("how", ["cancel", "Ctrl-C"])
@pytest.mark.parametrize("step", ["_choose", "_ask"])
def test_who_is_stopped_before_its_first_sbatch_submits_nothing(
    tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch, how: str, step: str
) -> None:
    study = tmp_path / "study"
    runs = make_study(study, {"steps": 7}, {"steps": 8})
    real: Callable[..., object] = getattr(submit_module, step)

    def then(*arguments: object, **options: object) -> object:
        found = real(*arguments, **options)
        if how == "Ctrl-C":
            os.kill(os.getpid(), signal.SIGINT)
        else:
            monkeypatch.setattr(cancel_module, "LOCK_SECONDS", 0.1)
            with pytest.raises(LaunchError, match="cancel once more"):
                cancel(study, selection=Selection(run_ids=tuple(runs)))
        return found

    with monkeypatch.context() as patch:
        patch.setattr(submit_module, step, then)
        assert send(study, NOW).endswith("0 submitted")
    assert (jobs(study), read_order(study).waiting) == ({}, ())
    assert send(study, NOW).endswith("2 submitted")


def test_cancel_finds_the_jobs_of_a_submitter_that_was_killed_before_it_could_say_so(
    tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tmp_path / "study"
    runs = make_study(study, {"steps": 7}, {"steps": 8})

    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(order_module, "_record", die)
        with pytest.raises(Killed):
            send(study, NOW)
    (slurm / "queue.txt").write_text("4711_0 PENDING\n4711_1 PENDING\n")
    assert cancel(study) == runs
    assert (slurm / "queue.txt").read_text() == ""
    assert [a.failure for tries in read_attempts(study).values() for a in tries] == ["cancelled"] * 2


def test_cancel_says_so_where_slurm_does_not_tell_of_a_killed_submitters_jobs(tmp_path: Path, slurm: Path) -> None:
    study = tmp_path / "study"
    make_study(study, {"steps": 7})
    send(study, NOW)
    next((study / "launch/jobs").glob("*/accepted")).unlink()
    (study / "launch/ledger.jsonl").unlink()
    (slurm / "squeue-is-down").touch()
    with pytest.raises(LaunchError, match="may be queued, and are not cancelled"):
        cancel(study)


def test_a_run_whose_job_is_gone_does_not_go_on_after_a_cancel(tmp_path: Path, slurm: Path) -> None:
    study = tmp_path / "study"
    runs = make_study(study, {"steps": 7}, {"steps": 8})
    send(study, NOW)
    (gone,), (other,) = (jobs(study)[run] for run in runs)
    start(study, runs[0], gone)
    start(study, runs[1], other)
    (slurm / "queue.txt").write_text(f"{other} RUNNING\n")
    (slurm / "ended.txt").write_text(f"{gone}|NODE_FAIL|None\n")
    assert runs[1] in cancel(study)
    end(study, runs[1], "interrupted", "cancelled", other)
    pump(study, root(study))  # as its worker does at its end
    assert jobs(study) == {runs[0]: [gone], runs[1]: [other]}
    assert read_attempts(study)[runs[0]][0].failure == "cancelled"
    (slurm / "queue.txt").write_text("")
    assert send(study, NOW).endswith("2 submitted")


def test_what_waits_though_no_job_is_open_is_taken_off_the_order(tmp_path: Path, slurm: Path) -> None:
    study = tmp_path / "study"
    runs = make_study(study, {"steps": 7}, {"steps": 8}, {"steps": 9})
    send(study, NOW, limits={"gpus": 1})
    (first,) = jobs(study)
    live(study, first, "failed", "nan")
    (slurm / "queue.txt").write_text("")
    waited = [run for run in runs if run != first]
    assert cancel(study) == waited
    assert send(study, NOW, limits={"gpus": 0}, selection=Selection(run_ids=(waited[0],))).endswith("1 submitted")
    assert waited[1] not in jobs(study)


def test_somebody_who_submits_on_and_on_is_told_of_and_what_runs_is_stopped(
    tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tmp_path / "study"
    (run,) = make_study(study, {"steps": 7})
    send(study, NOW)
    start(study, run)
    (slurm / "queue.txt").write_text("4711_0 RUNNING\n")
    monkeypatch.setattr(cancel_module, "LOCK_SECONDS", 0.1)
    lock = Lease.acquire(lock_path(study))
    assert lock is not None
    with pytest.raises(LaunchError, match="cancel once more"):
        cancel(study)
    lock.release()
    assert (study / "launch/stop/4711_0.cancelled").exists()


def test_a_job_that_was_called_off_before_anybody_knew_of_it_trains_nothing(
    tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sbatch gave no clear answer, SLURM lists nothing yet, `cancel` is called: the job, when it starts, looks itself."""
    study = tmp_path / "study"
    (run,) = make_study(study, {"steps": 7})
    send(study, NOW)
    (token,) = {a.token for a in read_attempts(study)[run]}
    withdraw(study, [])
    job = WorkerJob(study=str(study), run_id=run, root=str(ROOT), cluster="slurm", token=token)
    monkeypatch.setenv("LST_JOB_ID", "4711_0")

    class Never(Runner):
        def attempt_once(self) -> Outcome:
            raise AssertionError("it trains")

    assert run_job(job, runner=Never) == Outcome(state="interrupted", cause="cancelled", failure="cancelled")
    assert [a.failure for a in read_attempts(study)[run]] == ["cancelled"]


def test_an_order_of_the_earlier_version_is_not_cancelled_by_calls_before_it(tmp_path: Path, slurm: Path) -> None:
    study = tmp_path / "study"
    runs = make_study(study, {"steps": 7}, {"steps": 8})
    send(study, NOW, limits={"gpus": 1})
    assert len(read_order(study).waiting) == 1
    withdraw(study, [])
    order = read_json(study / "launch/order.json")
    assert order is not None
    write_json(study / "launch/order.json", {k: v for k, v in order.items() if k != "cancels"} | {"waiting": runs[1:]})
    assert list(read_order(study).waiting) == runs[1:]
