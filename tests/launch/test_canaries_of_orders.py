"""Whose word counts for an order's canaries: of which code, of which arms, and how an attempt ended."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launch.asked import read_order
from launch.ledger import append_event, read_attempts
from launch.order import pump
from launch.retries import stop_if_alike, study_stopped
from launch.submit import Selection
from lst.records import read_json
from tests.launch.study import make_study, send
from tests.launch.test_orders import NOW, end, jobs, live, root, small

__all__ = ["small"]  # a fixture


def edit(study: Path, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
    """Change the rows of plan.csv."""
    with (study / "plan.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with (study / "plan.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(change(rows))


def give(study: Path, column: str, *values: object) -> None:
    """Give the rows of the plan these values."""
    edit(study, lambda rows: [row | {column: value} for row, value in zip(rows, values, strict=True)])


def begin(study: Path, run: str, code: str, job: str, attempt: int = 1) -> None:
    append_event(study, "started", run, attempt=attempt, job_id=job, cluster="slurm", life=0, code=code)


def sent(study: Path) -> dict[str, list[tuple[str, int]]]:
    """Code and canary's steps of every job that was submitted, by run."""
    told: dict[str, list[tuple[str, int]]] = {}
    for path in sorted((study / "launch/jobs").glob("*/jobs.json"), key=lambda path: path.stat().st_mtime_ns):
        for job in (read_json(path) or {})["jobs"]:
            told.setdefault(job["run_id"], []).append((job["code"], job["canary_steps"]))
    return told


@pytest.mark.parametrize(("state", "failure"), [("interrupted", "canary"), ("failed", "error"), ("interrupted", "cancelled")])
def test_a_canary_that_was_queued_with_other_code_says_nothing_of_this_code(
    tmp_path: Path, slurm: Path, state: str, failure: str
) -> None:
    study = tmp_path / "study"
    runs = make_study(study, *[{"steps": n} for n in (7, 8, 9)])
    send(study)
    (slurm / "queue.txt").write_text("4711_0 PENDING\n")
    old = root(study)
    (tmp_path / "code/lst/__init__.py").write_text("# mended\n")
    send(study)
    new = read_order(study).code
    assert new != old.name
    assert read_order(study).canaries == (runs[0],)
    begin(study, runs[0], old.name, "4711_0")
    end(study, runs[0], state, failure, "4711_0")
    (slurm / "queue.txt").write_text("")
    pump(study, old)
    assert study_stopped(study) == ""
    assert sent(study) == {runs[0]: [(old.name, 5), (new, 5)]}
    begin(study, runs[0], new, "4712_0", attempt=2)
    end(study, runs[0], "interrupted", "canary", "4712_0", attempt=2)
    pump(study, old)
    assert read_json(study / "launch/canary.json") == {"code": new, "arms": ["baseline"]}
    assert sent(study) == {runs[0]: [(old.name, 5), (new, 5), (new, 0)], runs[1]: [(new, 0)], runs[2]: [(new, 0)]}


def test_a_canary_that_its_worker_tries_again_neither_stops_the_study_nor_gets_a_second_job(tmp_path: Path, slurm: Path) -> None:
    study = tmp_path / "study"
    runs = make_study(study, *[{"steps": n} for n in (7, 8, 9)])
    send(study)
    (slurm / "queue.txt").write_text("4711_0 RUNNING\n")
    live(study, runs[0], "failed", "killed")
    pump(study, root(study))
    assert (study_stopped(study), jobs(study)) == ("", {runs[0]: ["4711_0"]})
    live(study, runs[0], "failed", "killed", attempt=2)
    pump(study, root(study))
    assert study_stopped(study).startswith(f"canary {runs[0]} (baseline, tiny) failed: killed")


def test_a_canary_that_was_killed_with_its_worker_is_sent_again(tmp_path: Path, slurm: Path) -> None:
    study = tmp_path / "study"
    runs = make_study(study, *[{"steps": n} for n in (7, 8, 9)])
    send(study)
    live(study, runs[0], "failed", "killed")
    pump(study, root(study))
    assert (study_stopped(study), jobs(study)) == ("", {runs[0]: ["4711_0", "4712_0"]})


def test_an_arm_that_joins_while_another_ones_canary_is_pending_gets_its_own(tmp_path: Path, slurm: Path) -> None:
    study = tmp_path / "study"
    runs = make_study(study, *[{"steps": n} for n in (7, 8, 9, 10, 11)])
    give(study, "arm", "A", "A", "B", "B", "B")
    send(study, selection=Selection(run_ids=tuple(runs[:2])))
    (slurm / "queue.txt").write_text("4711_0 RUNNING\n")
    send(study)
    assert read_order(study).canaries == (runs[0], runs[2])
    live(study, runs[0], "interrupted", "canary")
    (slurm / "queue.txt").write_text("4712_0 PENDING\n")
    pump(study, root(study))
    assert {run: [steps for _, steps in told] for run, told in sent(study).items()} == {runs[0]: [5], runs[2]: [5]}
    live(study, runs[2], "interrupted", "canary", "4712_0")
    (slurm / "queue.txt").write_text("")
    pump(study, root(study))
    assert (read_json(study / "launch/canary.json") or {})["arms"] == ["A", "B"]
    assert all(told[-1][1] == 0 for told in sent(study).values())
    assert len(sent(study)) == 5


def test_a_failed_run_that_joins_as_its_arms_canary_is_judged_by_its_new_attempt(tmp_path: Path, slurm: Path) -> None:
    study = tmp_path / "study"
    runs = make_study(study, *[{"steps": n} for n in (7, 8, 9, 10)])
    give(study, "arm", "A", "A", "B", "B")
    (slurm / "queue.txt").write_text("4711_0 PENDING\n")
    send(study, NOW, selection=Selection(run_ids=(runs[2],)))
    send(study, selection=Selection(run_ids=tuple(runs[:2])))
    live(study, runs[2], "failed", "nan")  # since the canaries were asked for
    (slurm / "queue.txt").write_text("4712_0 PENDING\n")
    send(study)
    assert set(read_order(study).canaries) == {runs[0], runs[2]}
    (slurm / "queue.txt").write_text("4712_0 PENDING\n4713_0 PENDING\n")
    pump(study, root(study))
    assert study_stopped(study) == ""
    assert len(read_attempts(study)[runs[2]]) == 2


def test_after_a_stop_queued_jobs_are_taken_back_and_wait_behind_the_new_canary(tmp_path: Path, slurm: Path) -> None:
    study = tmp_path / "study"
    make_study(study, *[{"steps": n} for n in range(7, 13)])
    send(study, NOW)
    by_job = {found[0]: run for run, found in jobs(study).items()}
    for number in range(3):
        live(study, by_job[f"4711_{number}"], "failed", "import", f"4711_{number}")
    assert "alike" in stop_if_alike(study)
    (slurm / "queue.txt").write_text("4711_3 RUNNING\n4711_4 PENDING\n4711_5 PENDING\n")
    (tmp_path / "code/lst/__init__.py").write_text("# mended\n")
    assert "2 queued jobs are taken back, and wait" in send(study, selection=Selection(failed_only=True))
    order = read_order(study)
    assert (slurm / "queue.txt").read_text() == "4711_3 RUNNING\n"
    assert {by_job["4711_4"], by_job["4711_5"]} <= set(order.waiting)
    assert (study_stopped(study), len(order.canaries)) == ("", 1)
    assert [told[1:] for told in sent(study).values() if told[1:]] == [[(order.code, 5)]]


def test_a_canary_that_the_plan_has_no_more_gives_its_place_to_another(tmp_path: Path, slurm: Path) -> None:
    study = tmp_path / "study"
    runs = make_study(study, *[{"steps": n} for n in (7, 8, 9)])
    (slurm / "queue.txt").write_text("4711_0 RUNNING\n")
    send(study)
    edit(study, lambda rows: rows[1:])
    pump(study, root(study))
    assert read_json(study / "launch/canary.json") is None
    assert (read_order(study).canaries, jobs(study)) == ((runs[1],), {runs[0]: ["4711_0"], runs[1]: ["4712_0"]})
