"""What an order keeps: its canaries after a stop, its code, what came before it, and what was cancelled or taken back."""

from __future__ import annotations

import dataclasses
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from launch import asked, canary, gone, snapshot, take_back
from launch import cancel as cancel_module
from launch import submit as submit_module
from launch.asked import forget, read_order, write_order
from launch.cancel import cancel
from launch.lease import Lease, process_mark
from launch.ledger import append_event, attempts_of, count_lines, ledger_path, read_attempts
from launch.order import pump
from launch.retries import stop_if_alike, stop_study, study_stopped
from launch.submit import Selection
from lst.errors import LaunchError
from lst.records import read_json, write_json
from tests.launch.study import make_study, send

FAILED = Selection(failed_only=True)
NOW = "canary_steps=0"
HELD = "PENDING launch_failed_requeued_held"


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code is five packages of a line each, and nothing is priced: neither is what is asked here."""
    for name in snapshot.PACKAGES:
        (tmp_path / "code" / name).mkdir(parents=True)
        (tmp_path / "code" / name / "__init__.py").write_text(f"# {name}\n")
    monkeypatch.setattr(snapshot, "code_root", lambda: tmp_path / "code")
    monkeypatch.setattr(canary, "reprice", lambda _: {})


def root(study: Path) -> Path:
    return min((study / "launch/snapshot").iterdir())


def start(study: Path, run: str, job: str = "4711_0", attempt: int = 1) -> None:
    append_event(study, "started", run, attempt=attempt, job_id=job, cluster="slurm", life=0)


def end(study: Path, run: str, state: str, failure: str, job: str = "4711_0", attempt: int = 1) -> None:
    append_event(
        study, "ended", run, attempt=attempt, job_id=job, state=state, cause=f"{failure}: x", step=0, **{"class": failure}
    )


def live(study: Path, run: str, state: str, failure: str, job: str = "4711_0", attempt: int = 1) -> None:
    start(study, run, job, attempt)
    end(study, run, state, failure, job, attempt)


def jobs(study: Path) -> dict[str, list[str]]:
    return {run: [a.job_id for a in tries] for run, tries in read_attempts(study).items()}


@pytest.fixture
def stopped(tmp_path: Path, slurm: Path) -> tuple[Path, list[str]]:
    """A study whose first row has failed as its canary; the last row has a job that still runs."""
    study = tmp_path / "study"
    runs = make_study(study, *[{"steps": n} for n in (7, 8, 9, 10)])
    (slurm / "queue.txt").write_text("4711_0 RUNNING\n")
    send(study, NOW, selection=Selection(run_ids=(runs[3],)))
    send(study)
    live(study, runs[0], "failed", "error", "4712_0")
    pump(study, root(study))
    assert f"canary {runs[0]}" in study_stopped(study)
    assert jobs(study) == {runs[3]: ["4711_0"], runs[0]: ["4712_0"]}
    return study, runs


def test_after_a_stop_the_grid_waits_for_a_new_canary_though_no_failed_run_is_meant(
    stopped: tuple[Path, list[str]], slurm: Path
) -> None:
    study, runs = stopped
    assert "1 submitted" in send(study, selection=Selection(failed_only=True, classes=("oom",)))
    assert (study_stopped(study), read_order(study).canaries) == ("", (runs[1],))
    (slurm / "queue.txt").write_text("4711_0 RUNNING\n4713_0 PENDING\n")
    live(study, runs[3], "interrupted", "budget")
    pump(study, root(study))
    assert jobs(study) == {runs[3]: ["4711_0"], runs[0]: ["4712_0"], runs[1]: ["4713_0"]}


def refuse(*_: object, **__: object) -> None:
    raise LaunchError("it is refused.")


@pytest.mark.parametrize("where", ["check_run", "place_order", "top_up"])
def test_a_study_stays_stopped_where_its_resubmission_is_refused(
    stopped: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    study, runs = stopped
    before = study_stopped(study)
    with monkeypatch.context() as patch:
        patch.setattr(submit_module, where, refuse)
        with pytest.raises(LaunchError, match="it is refused"):
            send(study, selection=FAILED)
    live(study, runs[3], "interrupted", "budget")
    pump(study, root(study))
    assert study_stopped(study) == before
    assert jobs(study) == {runs[3]: ["4711_0"], runs[0]: ["4712_0"]}
    assert "1 submitted" in send(study, selection=FAILED)
    assert read_order(study).canaries == (runs[0],)


def test_a_stop_where_nothing_waits_ends_with_a_resubmission(tmp_path: Path, slurm: Path) -> None:
    study = tmp_path / "study"
    make_study(study, {"steps": 7})
    (study / "launch").mkdir()
    stop_study(study, "why")
    with pytest.raises(LaunchError, match="is stopped"):
        send(study)
    send(study, selection=FAILED)
    assert "1 submitted" in send(study)


def test_what_waits_runs_with_the_code_it_was_submitted_with_whoever_sends_it(tmp_path: Path, slurm: Path) -> None:
    study = tmp_path / "study"
    runs = make_study(study, *[{"steps": n} for n in (7, 8, 9)])
    send(study)
    code = root(study)
    old = code.with_name("00000000000000ff")
    shutil.copytree(code, old)  # of a job of an earlier call
    live(study, runs[0], "interrupted", "canary")
    pump(study, old)
    told = [read_json(path) or {} for path in sorted((study / "launch/jobs").glob("*/jobs.json"))]
    assert sorted(len(each["jobs"]) for each in told) == [1, 3]
    assert {(job["code"], job["root"]) for each in told for job in each["jobs"]} == {(code.name, str(code))}
    assert read_json(study / "launch/canary.json") == {"code": code.name, "arms": ["baseline"]}


def test_code_that_was_altered_since_it_was_submitted_is_sent_by_nobody(tmp_path: Path, slurm: Path) -> None:
    study = tmp_path / "study"
    make_study(study, *[{"steps": n} for n in (7, 8)])
    send(study, NOW, limits={"gpus": 1})
    code = root(study)
    (code / "lst/__init__.py").chmod(0o644)
    (code / "lst/__init__.py").write_text("")
    with pytest.raises(LaunchError, match="was altered"):
        pump(study, tmp_path / "00000000000000ff")
    assert len(jobs(study)) == 1


def test_what_a_killed_submitter_left_of_a_copy_goes_though_the_code_is_there_already(tmp_path: Path) -> None:
    taken = snapshot.take_snapshot(tmp_path)
    pid, ticks = process_mark(os.getpid())
    alive, dead = (f"{snapshot.COPY}{socket.gethostname()}-{pid}-{start}-x" for start in (ticks, 0))
    for name in (alive, dead):
        (taken.parent / name).mkdir()
    assert snapshot.take_snapshot(tmp_path) == taken
    assert {path.name for path in taken.parent.iterdir()} == {taken.name, alive}


def test_canaries_of_other_code_are_chosen_anew(tmp_path: Path, slurm: Path) -> None:
    study = tmp_path / "study"
    runs = make_study(study, *[{"steps": n} for n in (7, 8, 9)])
    send(study)
    write_order(study, dataclasses.replace(read_order(study), code="00000000000000ff"))
    (slurm / "queue.txt").write_text("4711_0 RUNNING\n")
    start(study, runs[0])
    send(study)
    end(study, runs[0], "interrupted", "canary")  # with the other code
    (slurm / "queue.txt").write_text("")
    pump(study, root(study))
    assert (read_order(study).canaries, jobs(study)) == ((runs[0],), {runs[0]: ["4711_0", "4712_0"]})


def as_earlier_version(study: Path) -> None:
    """order.json as a job of the version before leaves it: with the time alone."""
    content = read_json(study / "launch/order.json") or {}
    write_json(study / "launch/order.json", {k: v for k, v in content.items() if k not in ("since", "asked", "code", "back")})


def test_an_order_of_the_earlier_version_counts_no_failures_of_before(tmp_path: Path, slurm: Path) -> None:
    study = tmp_path / "study"
    runs = make_study(study, *[{"steps": n} for n in range(7, 13)])
    send(study, NOW)
    for number in range(3):
        live(study, runs[number], "failed", "import", f"4711_{number}")
    assert "alike" in stop_if_alike(study)
    (slurm / "queue.txt").write_text("4711_3 RUNNING\n4711_4 RUNNING\n4711_5 RUNNING\n")
    send(study, NOW, selection=FAILED, limits={"gpus": 4})
    since = read_order(study).since
    as_earlier_version(study)
    assert read_order(study).since == since > 0
    pump(study, root(study))
    assert study_stopped(study) == ""


def test_the_grid_follows_its_canary_where_the_ledger_was_cut(tmp_path: Path, slurm: Path) -> None:
    study = tmp_path / "study"
    runs = make_study(study, *[{"steps": n} for n in (7, 8, 9)])
    (study / "launch").mkdir()
    for _ in range(20):
        append_event(study, "x", runs[2], attempt=1, job_id="1")
    send(study)
    ledger_path(study).write_text(ledger_path(study).read_text().splitlines(keepends=True)[-1])
    for job in ("4711_0", "4712_0"):  # the first one may have been of before
        assert read_order(study).canaries == (runs[0],)
        live(study, runs[0], "interrupted", "canary", job, attempt=int(job[3]))
        pump(study, root(study))
    assert read_order(study).canaries == ()
    assert sorted(len(found) for found in jobs(study).values()) == [1, 1, 3]


def test_a_whole_last_record_without_its_newline_is_counted(tmp_path: Path) -> None:
    (tmp_path / "launch").mkdir()
    append_event(tmp_path, "submitted", "r", attempt=1, job_id="7")
    text = ledger_path(tmp_path).read_text()
    for torn, lines in (("", 1), (text[:-1], 2), (text[:9], 1)):
        ledger_path(tmp_path).write_text(text + torn)
        assert count_lines(tmp_path) == lines
        append_event(tmp_path, "submitted", "s", attempt=1, job_id="8")
        assert read_attempts(tmp_path)["s"][0].line == lines


def test_an_attempt_that_has_its_end_alone_knows_its_line() -> None:
    event = {"run_id": "r", "attempt": 1, "job_id": "7_0", "time": 3.0}
    (attempt,) = attempts_of([event | {"run_id": "q", "event": "submitted"}, event | {"event": "ended", "state": "lost"}])["r"]
    assert (attempt.line, attempt.state) == (1, "lost")


def test_a_run_that_is_submitted_while_cancel_waits_for_the_lock_is_cancelled_too(
    tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tmp_path / "study"
    make_study(study, {"steps": 7}, {"steps": 8}, {"steps": 9})
    send(study, NOW, limits={"gpus": 1})
    (first,) = jobs(study)
    start(study, first)
    (slurm / "queue.txt").write_text("4711_0 RUNNING\n")
    lock_now = cancel_module._lock

    def late(study: Path) -> Lease | None:
        end(study, first, "failed", "nan")  # and its worker has the lock, and submits the next run
        (slurm / "queue.txt").write_text("")
        pump(study, root(study))
        (slurm / "queue.txt").write_text("4712_0 PENDING\n")
        return lock_now(study)

    monkeypatch.setattr(cancel_module, "withdraw", lambda *_: None)  # it had looked just before
    monkeypatch.setattr(cancel_module, "_lock", late)
    told = cancel(study)
    (second,) = set(jobs(study)) - {first}
    assert second in told
    assert len(told) == 2  # and the one that waited still
    assert "scancel --quiet 4712_0" in (slurm / "calls.txt").read_text()
    assert (read_attempts(study)[second][0].failure, read_order(study).waiting) == ("cancelled", ())


def test_a_canary_that_was_queued_again_and_ended_by_scancel_gives_its_place_to_another(tmp_path: Path, slurm: Path) -> None:
    study = tmp_path / "study"
    runs = make_study(study, {"steps": 7}, {"steps": 8}, {"steps": 9})
    send(study)
    live(study, runs[0], "interrupted", "preempted")
    (slurm / "queue.txt").write_text("4711_0 PENDING\n")
    pump(study, root(study))
    assert jobs(study) == {runs[0]: ["4711_0"]}
    (slurm / "queue.txt").write_text("")
    (slurm / "ended.txt").write_text("4711_0|CANCELLED|None\n")
    pump(study, root(study))
    (slurm / "queue.txt").write_text("4712_0 PENDING\n")
    pump(study, root(study))
    assert [a.failure for a in read_attempts(study)[runs[0]]] == ["preempted", "cancelled"]
    assert (read_order(study).canaries, jobs(study)[runs[1]]) == ((runs[1],), ["4712_0"])


def test_a_job_that_was_queued_again_and_is_taken_back_is_nobodys_cancellation(tmp_path: Path, slurm: Path) -> None:
    study = tmp_path / "study"
    runs = make_study(study, {"steps": 7}, {"steps": 8})
    send(study, NOW)
    job = jobs(study)[runs[0]][0]
    (other,) = jobs(study)[runs[1]]
    start(study, runs[1], other)
    live(study, runs[0], "interrupted", "preempted", job)
    (slurm / "queue.txt").write_text(f"{job} PENDING\n{other} RUNNING\n")
    (slurm / "ended.txt").write_text(f"{job}|CANCELLED|None\n")
    send(study, NOW, limits={"gpus": 1})
    pump(study, root(study))
    assert [(a.failure, a.cause) for a in read_attempts(study)[runs[0]]] == [
        ("preempted", "preempted: x"),
        ("", "taken back: limit.gpus=1"),
    ]
    assert read_order(study).waiting == (runs[0],)


@pytest.mark.parametrize(("failure", "again"), [("nan", False), ("killed", True)])
def test_a_run_that_failed_before_its_submitter_could_strike_it_out_is_not_sent_again(
    tmp_path: Path, slurm: Path, failure: str, again: bool
) -> None:
    study = tmp_path / "study"
    runs = make_study(study, {"steps": 7}, {"steps": 8})
    send(study, NOW)
    (job,) = jobs(study)[runs[0]]
    write_order(study, dataclasses.replace(read_order(study), waiting=(runs[0],)))  # and there its submitter was killed
    live(study, runs[0], "failed", failure, job)
    pump(study, root(study))
    assert (len(jobs(study)[runs[0]]) > 1, read_order(study).waiting) == (again, ())


def test_a_failed_run_that_is_resubmitted_while_canaries_are_pending_follows_them(tmp_path: Path, slurm: Path) -> None:
    study = tmp_path / "study"
    runs = make_study(study, *[{"steps": n} for n in (7, 8, 9)])
    (slurm / "queue.txt").write_text("4711_0 RUNNING\n")
    send(study, NOW, selection=Selection(run_ids=(runs[2],)))
    send(study)
    live(study, runs[2], "failed", "nan")  # it began after the canaries were asked for
    (slurm / "queue.txt").write_text("4712_0 RUNNING\n")
    send(study, selection=FAILED)
    assert read_order(study).canaries == (runs[0],)
    live(study, runs[0], "interrupted", "canary", "4712_0")
    (slurm / "queue.txt").write_text("")
    pump(study, root(study))
    assert len(jobs(study)[runs[2]]) == 2


def test_an_evaluation_takes_no_canarys_place(tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = tmp_path / "study"
    runs = make_study(study, *[{"steps": n} for n in (7, 8, 9)])
    send(study)
    rows = [
        dataclasses.replace(row, kind="eval", planned_flops=1.0) if row.run_id == runs[2] else row
        for row in asked.read_rows(study)
    ]
    monkeypatch.setattr(asked, "read_rows", lambda _: rows)
    forget(study, [runs[0]])
    assert read_order(study).canaries == (runs[1],)


def test_a_held_job_of_a_run_that_had_begun_costs_one_retry_however_often_scancel_fails(
    tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tmp_path / "study"
    (run,) = make_study(study, {"steps": 7})
    send(study, NOW)
    start(study, run)
    (slurm / "queue.txt").write_text(f"4711_0 {HELD}\n")
    with monkeypatch.context() as patch:
        patch.setattr(gone, "cancel_jobs", refuse)
        for _ in range(4):
            with pytest.raises(LaunchError, match="it is refused"):
                pump(study, root(study))
    assert [a.failure for a in read_attempts(study)[run]] == ["node_failure"]
    pump(study, root(study))
    assert [(a.failure, a.job_id) for a in read_attempts(study)[run]] == [("node_failure", "4711_0"), ("", "4712_0")]


@pytest.fixture
def taking(tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Path, str, str], None]], Path]:
    """Lower limit.gpus, with what happens between the look at the queue and scancel; the study."""

    def lower(meanwhile: Callable[[Path, str, str], None]) -> Path:
        study = tmp_path / "study"
        make_study(study, {"steps": 7}, {"steps": 8})
        send(study, NOW)
        (slurm / "queue.txt").write_text("4711_0 RUNNING\n4711_1 PENDING\n")
        (run,) = [run for run, found in jobs(study).items() if found == ["4711_1"]]
        write_order(study, dataclasses.replace(read_order(study), back=("9_9",)))
        cancel_pending = take_back.cancel_pending

        def late(*arguments: object, **options: object) -> None:
            assert read_order(study).back == ("9_9", "4711_1")
            meanwhile(study, run, "4711_1")
            cancel_pending(*arguments, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(take_back, "cancel_pending", late)
        send(study, NOW, limits={"gpus": 1})
        return study

    return lower


def test_a_job_that_starts_and_ends_while_it_is_taken_back_keeps_its_end(
    taking: Callable[[Callable[[Path, str, str], None]], Path], slurm: Path
) -> None:
    def meanwhile(study: Path, run: str, job: str) -> None:
        live(study, run, "failed", "nan", job)
        (slurm / "queue.txt").write_text("4711_0 RUNNING\n")

    study = taking(meanwhile)
    assert sorted(a.failure for tries in read_attempts(study).values() for a in tries) == ["", "nan"]


def test_a_job_is_taken_back_beside_those_of_before(taking: Callable[[Callable[[Path, str, str], None]], Path]) -> None:
    study = taking(lambda *_: None)
    assert sorted(a.cause for tries in read_attempts(study).values() for a in tries) == ["", "taken back: limit.gpus=1"]
    assert len(read_order(study).waiting) == 1
