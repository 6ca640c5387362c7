"""`sync`: one MLflow run a run_id, nothing twice, a store that can be rebuilt. One process touches a fresh store once."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import Any

import pytest

from analysis import tracking
from lst import records
from lst.errors import FitError
from tests.analysis.study_folder import STEPS, Synthetic, rows, train_record, write_run, write_study

STUDY = Synthetic(budgets=(1e18,), sizes=2, stories=False)


def content(folder: Path) -> dict[str, Any]:
    """What the store says of each run, without MLflow's own random ids."""
    client, experiment = tracking._open(folder, "synthetic")
    found = {}
    for run_id, run in tracking._known_runs(client, experiment).items():
        curves = {
            k: [(m.step, m.timestamp, m.value) for m in client.get_metric_history(run.info.run_id, k)] for k in run.data.metrics
        }
        tags = {k: v for k, v in run.data.tags.items() if not k.startswith("mlflow.") or k == "mlflow.runName"}
        found[run_id] = (run.info.status, run.info.start_time, run.info.end_time, run.data.params, tags, curves)
    return found


def test_sync_is_idempotent_follows_the_runs_and_can_be_rebuilt(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_study(tmp_path, STUDY)
    (row, loss), failing = rows(STUDY)[0], rows(STUDY)[1][0]
    unfinished = tmp_path / "runs" / row.run_id
    for file in unfinished.iterdir():
        file.unlink()
    write_run(unfinished, row, loss, steps=10, finished=False)
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
    done = store[rows(STUDY)[2][0].run_id][5]
    assert len(done["heldout_speech/S-S/nats_per_token"]) == 1

    before = (tmp_path / tracking.STORE).read_bytes()
    again = tracking.sync(tmp_path)
    assert (again.created, again.updated, again.metrics) == (0, 0, 0)
    assert (tmp_path / tracking.STORE).read_bytes() == before

    for file in unfinished.iterdir():
        file.unlink()
    write_run(unfinished, row, loss, stories=False)
    (tmp_path / "fits.json").write_text("{}")
    later = tracking.sync(tmp_path)
    assert (later.created, later.updated) == (1, 1)
    assert later.metrics == 3 + (STEPS - 10) * len([k for k in train_record(row, 1, 1.0) if k not in tracking.NAMES])
    store = content(tmp_path)
    assert store[row.run_id][0] == "FINISHED"
    assert [step for step, _, _ in store[row.run_id][5]["train/loss"]] == list(range(1, STEPS + 1))
    assert list((tmp_path / tracking.ARTIFACTS).rglob("fits.json"))

    (tmp_path / tracking.STORE).unlink()
    tracking.sync(tmp_path)
    assert content(tmp_path) == store
    assert capfd.readouterr().out == ""
    assert not (Path.cwd() / "mlruns").exists()


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


def test_folder_without_a_plan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FitError, match="no plan"):
        tracking.sync(tmp_path)
    assert not (tmp_path / tracking.STORE).exists()
