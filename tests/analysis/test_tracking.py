"""`sync`: one MLflow run a run_id, nothing twice, a store that can be rebuilt. One process touches a fresh store once."""

from __future__ import annotations

import fcntl
import re
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from analysis import tracking
from benchmarks.many_writers import write_and_sync
from lst import records
from lst.errors import FitError
from tests.analysis.study_folder import STEPS, Synthetic, rows, write_run, write_study
from tests.analysis.test_collect_evaluations import write_evaluation

STUDY = Synthetic(budgets=(1e18,), sizes=2, stories=False)


def content(folder: Path) -> dict[str, Any]:
    """What the store says of each run, without MLflow's own random ids: read from the database as it stands on disk."""
    with sqlite3.connect(folder / tracking.STORE) as store:

        def rows_of(query: str) -> dict[str, list[Any]]:
            found: dict[str, list[Any]] = {}
            for key, *values in store.execute(query):
                found.setdefault(key, []).append(tuple(values))
            return found

        runs = store.execute("select run_uuid, status, start_time, end_time, name from runs").fetchall()
        params, tags = dict(rows_of("select run_uuid, key, value from params")), rows_of("select run_uuid, key, value from tags")
        metrics = rows_of("select run_uuid, key, step, timestamp, value from metrics order by key, step")
    store.close()
    found = {}
    for uuid, *about in runs:
        marks = {k: v for k, v in tags[uuid] if not k.startswith("mlflow.") or k == "mlflow.runName"}
        curves: dict[str, list[Any]] = {}
        for key, *point in metrics.get(uuid, []):
            curves.setdefault(key, []).append(tuple(point))
        found[marks["lst.run_id"]] = (*about[:3], dict(params.get(uuid, [])), marks, curves)
    return found


def started(folder: Path, run_id: str, **ended: Any) -> None:
    """One more attempt in the ledger; it has ended where `ended` says how."""
    with records.JsonLinesWriter(folder / "launch" / "ledger.jsonl") as file:
        file.write({"time": 2e9, "run_id": run_id, "event": "started", "attempt": 2, "gpus": 0})
        if ended:
            file.write({"time": 2e9, "run_id": run_id, "event": "ended", "attempt": 2} | ended)


def test_sync_is_idempotent_follows_the_runs_and_can_be_rebuilt(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_study(tmp_path, STUDY)
    (row, loss), failing, whole = rows(STUDY)[0], rows(STUDY)[1][0], rows(STUDY)[2][0].run_id
    unfinished = tmp_path / "runs" / row.run_id
    for file in unfinished.iterdir():
        file.unlink()
    write_run(unfinished, row, loss, steps=10, finished=False)
    started(tmp_path, row.run_id)
    failed = tmp_path / "runs" / failing.run_id
    (failed / records.EXIT).unlink()
    records.write_json(failed / records.FAILURE, {"class": "oom", "cause": "out of memory"})

    first = tracking.sync(tmp_path)
    assert (first.runs, first.created, first.updated) == (4, 4, 0)
    store = content(tmp_path)
    assert {k: v[0] for k, v in store.items()} == {
        r.run_id: {row.run_id: "RUNNING", failing.run_id: "FAILED"}.get(r.run_id, "FINISHED") for r, _ in rows(STUDY)
    }
    _, _, _, params, tags, curves = store[row.run_id]
    assert params["train.steps"] == str(STEPS)
    assert params["plan.arm"] == row.arm
    assert tags["lst.run_id"] == row.run_id
    assert [step for step, _, _ in curves["train/loss"]] == list(range(1, 11))
    done = store[whole][5]
    assert len(done["heldout_speech/S-S/nats_per_token"]) == 1
    assert done["heldout_speech/S-S/nats_per_token.n_items"][0][2] == 1000
    assert done["evaluated/train_flops"][0][2] == 1e18

    before = (tmp_path / tracking.STORE).read_bytes()
    again = tracking.sync(tmp_path)
    assert (again.created, again.updated, again.metrics) == (0, 0, 0)
    assert (tmp_path / tracking.STORE).read_bytes() == before

    # the run was requeued and ends, one that is done is evaluated, and fits are there; the sync dies before its last tags, twice
    for file in unfinished.iterdir():
        file.unlink()
    write_run(unfinished, row, loss, stories=False)
    write_evaluation(tmp_path / "runs" / whole, "aaa", task="swuggy/A & B")
    (tmp_path / "fits.json").write_text("{}")
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "index.html").write_text("<p>")
    with monkeypatch.context() as dying:
        dying.setattr(tracking._Run, "_log", die_before_tags(tracking._Run._log))
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                tracking.sync(tmp_path)
    later = tracking.sync(tmp_path)
    assert (later.created, later.updated) == (1, 2)
    store = content(tmp_path)
    assert store[row.run_id][0] == "FINISHED"
    assert [step for step, _, _ in store[row.run_id][5]["train/loss"]] == list(range(1, STEPS + 1))
    assert len(store[row.run_id][5]["heldout_speech/S-S/nats_per_token"]) == 1
    assert store[whole][5]["evals/aaa/swuggy/A _26_ B/S-S/accuracy"][0][2] == 0.5
    assert '"task": "swuggy/A & B"' in store[whole][4]["lst.about.evals/aaa/swuggy/A _26_ B/S-S"]
    assert len(list((tmp_path / tracking.ARTIFACTS).rglob("fits.json"))) == 1
    assert len(list((tmp_path / tracking.ARTIFACTS).rglob("report/index.html"))) == 1

    (tmp_path / "report" / "index.html").rename(tmp_path / "report" / "other.html")
    tracking.sync(tmp_path)
    store = content(tmp_path)
    (tmp_path / tracking.STORE).unlink()
    subprocess.run(
        [sys.executable, "-m", "analysis.cli", "sync", str(tmp_path)], check=True, capture_output=True
    )  # MLflow keeps files open
    assert content(tmp_path) == store
    assert [f.name for f in (tmp_path / tracking.ARTIFACTS).rglob("*.html")] == ["other.html"]
    assert capfd.readouterr().out == ""
    assert not (Path.cwd() / "mlruns").exists()


def test_a_store_whose_tags_say_less_is_brought_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_study(tmp_path, STUDY)
    run_id = rows(STUDY)[0][0].run_id
    write_evaluation(tmp_path / "runs" / run_id, "aaa", join="closed")
    with monkeypatch.context() as before:
        before.setattr(tracking, "CONSTANT", tuple(name for name in tracking.CONSTANT if name != "options"))
        tracking.sync(tmp_path)
    tag = "lst.about.evals/aaa/hellaswag/S-S"
    assert "join" not in content(tmp_path)[run_id][4][tag]
    assert tracking.sync(tmp_path).updated == 1
    assert '"options": "join=closed"' in content(tmp_path)[run_id][4][tag]
    assert tracking.sync(tmp_path).updated == 0


def die_before_tags(log: Any) -> Any:
    def dying(self: Any, key: str, **what: Any) -> None:
        if "tags" in what:
            raise KeyboardInterrupt
        log(self, key, **what)

    return dying


@pytest.mark.parametrize(
    ("state", "attempt", "status"),
    [
        ("done", {"started": 1.0}, "FINISHED"),
        ("failed", {"started": 1.0, "ended": 2.0}, "FAILED"),
        ("failed", {"started": 3.0}, "RUNNING"),  # requeued
        ("unfinished", {"started": 1.0}, "RUNNING"),
        ("unfinished", {"submitted": 1.0}, "SCHEDULED"),
        ("unfinished", {"started": 1.0, "ended": 2.0, "state": "interrupted"}, "KILLED"),
        ("unfinished", {}, "RUNNING"),  # trained without the launcher
        ("failed", {}, "FAILED"),
    ],
)
def test_status_is_that_of_the_last_attempt(state: str, attempt: dict[str, Any], status: str) -> None:
    assert tracking.mlflow_status(state, attempt) == status


def test_names_keep_to_mlflows_alphabet_and_stay_different() -> None:
    names = [
        tracking.metric_name({"task": task, "direction": "S->S"})
        for task in ("a b", "a&b", "a//b", "/a", "ä", "a.b", "x" * 300, "x" * 301)
    ]
    assert len(set(names)) == len(names)
    for name in names:
        assert len(name) < 130
        assert re.fullmatch(r"[\w\-./ ]+", name, flags=re.ASCII)
        assert Path(name).as_posix() == name


def test_records_are_written_by_many_processes_while_the_store_is_synced(tmp_path: Path) -> None:
    """256 of them: `python -m benchmarks.many_writers`."""
    syncs, values = write_and_sync(tmp_path, writers=6, records=20, pause=0.02, sync=tracking.sync)
    assert syncs >= 1
    assert values == 6 * 20


def test_second_writer_is_refused(tmp_path: Path) -> None:
    write_study(tmp_path, STUDY)
    with (tmp_path / tracking.LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(FitError, match="another sync"):
            tracking.sync(tmp_path)


def test_store_that_is_no_database_is_refused_with_the_remedy(tmp_path: Path) -> None:
    write_study(tmp_path, STUDY)
    (tmp_path / tracking.STORE).write_bytes(b"not a database" * 100)
    with pytest.raises(FitError, match="delete it and sync again"):
        tracking.sync(tmp_path)


def test_full_disk_is_told_with_its_own_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_study(tmp_path, STUDY)

    def full(*_: Any) -> None:
        raise OperationalError("insert into metrics", None, sqlite3.OperationalError("database or disk is full"))

    monkeypatch.setattr(tracking, "_sync", full)
    with pytest.raises(FitError, match=r"disk is full.*; free some space and sync again"):
        tracking.sync(tmp_path)


def test_pages_are_shown_on_this_machine_alone() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(["make", "--dry-run", "mlflow", "DIR=study"], cwd=root, capture_output=True, text=True, check=True)
    (shown,) = [line for line in done.stdout.splitlines() if "mlflow ui" in line]
    assert "--host 127.0.0.1" in shown
    assert f"sqlite:///{root}/study/mlflow.db" in shown


def test_folder_without_a_plan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FitError, match="no plan"):
        tracking.sync(tmp_path)
    assert not (tmp_path / tracking.STORE).exists()
