"""`fit-scaling import`: tables, W&B exports and MLflow stores become studies that fit; what cannot is refused by its option."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import tracking
from analysis.cli import main
from analysis.collect import collect, collect_into, read_plan
from analysis.importing import import_runs
from analysis.study import read_table
from lst import records
from lst.errors import FitError
from tests.analysis.study_folder import BUDGETS, STEPS, TRUTH, Synthetic, eval_record, rows, sizes_at, train_record, write_study
from tests.analysis.test_collect_evaluations import write_evaluation

STUDY = Synthetic(budgets=(1e18,), sizes=2, stories=False)


def foreign(path: Path, **more: object) -> Path:
    """A table as W&B exports it: a row a run, names of its own; losses by TRUTH."""
    found = []
    for budget in BUDGETS:
        for index, n in enumerate(np.round(sizes_at(budget, 4))):
            tokens = budget / 6 / n
            found.append(
                {"Name": f"{budget:g}/{index}", "State": "finished", "Created": "2026-01-01", "model.params": n}
                | {"tokens_seen": tokens, "eval/loss": float(TRUTH.predict(n, tokens))}
                | more
            )
    pd.DataFrame(found).to_csv(path, index=False)
    return path


WANDB = {"run_id": "Name", "state": "State", "num_params": "model.params", "tokens": "tokens_seen", "loss": "eval/loss"}


def test_a_wandb_export_becomes_a_study_whose_fit_finds_the_law(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = foreign(tmp_path / "wandb.csv"), tmp_path / "study"
    words = [f"{key}={column}" for key, column in WANDB.items()]
    assert main(["import", str(source), f"out={out}", *words]) == 0
    told = capsys.readouterr()
    assert "12 runs, 12 enter fits" in told.out
    assert "12 runs have no train_flops" in told.err
    assert main(["fit", str(out), "resamples=0", "baseline=imported"]) == 0
    law = json.loads((out / "fits.json").read_text())["fits"][0]["loss_surface"]
    assert [law[name] for name in ("E", "alpha", "beta")] == pytest.approx([1.7, 0.34, 0.28], rel=1e-3)
    assert sorted(set(pd.read_csv(out / "runs.csv")["flops_budget"])) == pytest.approx(BUDGETS)
    capsys.readouterr()
    assert main(["fit", str(out), "resamples=0"]) == 0  # one arm, whatever its name: there is nothing to compare
    assert "has no rows" not in capsys.readouterr().out
    assert json.loads((out / "fits.json").read_text())["comparisons"] == []
    assert main(["import", str(source), f"out={out}", *words]) == 0  # again: the same folder is made anew


def test_runs_that_did_not_finish_are_kept_and_left_out_with_their_state(tmp_path: Path) -> None:
    source = foreign(tmp_path / "wandb.csv")
    table = pd.read_csv(source)
    table.loc[0, ["State", "tokens_seen", "eval/loss"]] = ["crashed", None, None]
    table.loc[1, "eval/loss"] = None
    table.to_csv(source, index=False)
    runs = import_runs(source, tmp_path / "study", WANDB).runs
    assert list(runs["excluded"][:3]) == ["state 'crashed'", "no value of loss", ""]
    assert list(runs["state"][:2]) == ["failed", "done"]


def test_runs_whose_loss_no_law_describes_are_kept_and_left_out(tmp_path: Path) -> None:
    source = foreign(tmp_path / "wandb.csv")
    table = pd.read_csv(source)
    table.loc[0, "eval/loss"] = -1.0
    table.loc[1, "eval/loss"] = np.inf
    table.to_csv(source, index=False)
    runs = import_runs(source, tmp_path / "study", WANDB).runs
    assert list(runs["excluded"][:3]) == [
        "no loss: heldout_mixture ST->ST ends at -1 nats per token",
        "diverged: heldout_mixture ST->ST ends at inf nats per token",
        "",
    ]
    assert len(pd.read_csv(tmp_path / "study" / "results.csv")) == 11


def test_a_history_is_rows_of_checkpoints_and_the_last_loss_is_the_runs(tmp_path: Path) -> None:
    source = tmp_path / "history.csv"
    source.write_text(
        "run,_step,tokens,num_params,val,acc\nb,10,100,1000,3.0,\na,10,100,2000,4.0,0.25\na,20,200,,3.5,0.5\na,30,300,,,\nb,5,50,1000,3.9,\n"
    )
    columns = {"run_id": "run", "step": "_step", "loss": "val", "hellaswag/T->T/accuracy": "acc"}
    runs = import_runs(source, tmp_path / "study", columns).runs
    assert runs[["run_id", "step", "num_params", "tokens"]].to_numpy().tolist() == [["b", 10, 1000, 100], ["a", 20, 2000, 200]]
    results = pd.read_csv(tmp_path / "study" / "results.csv")
    losses = results[results["task"] == "heldout_mixture"]
    assert sorted(losses[["run_id", "step", "value"]].to_numpy().tolist()) == [
        ["a", 10, 4.0], ["a", 20, 3.5], ["b", 5, 3.9], ["b", 10, 3.0],
    ]  # fmt: skip
    assert results[results["task"] == "hellaswag"][["direction", "metric", "value"]].to_numpy().tolist() == [
        ["T->T", "accuracy", 0.25], ["T->T", "accuracy", 0.5],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"loss": "eval_loss"}, r"loss=eval_loss is no column; .*eval/loss"),
        ({"los": "eval/loss"}, "unknown option 'los'; did you mean 'loss'"),
        ({"tokens": "Created"}, r"tokens=Created: '2026-01-01' in row 1 is no number"),
        ({"run_id": "State"}, "run_id 'finished' stands twice; name the column of steps with step=COLUMN"),
        ({"state": "Name"}, "state '1e.18/0' is unknown"),
        ({"tokens": "zero"}, r"tokens=0 of run '1e.18/0' is not positive and finite"),
        ({"loss": None}, "no column for the loss; say which with loss=COLUMN"),
        ({"num_params": None}, "no column for num_params; say which with num_params=COLUMN"),
    ],
)
def test_what_the_map_gets_wrong_is_refused_by_its_option(tmp_path: Path, columns: dict[str, str | None], said: str) -> None:
    source = foreign(tmp_path / "wandb.csv", zero=0)
    chosen = {key: column for key, column in (WANDB | columns).items() if column is not None}
    with pytest.raises(FitError, match=said):
        import_runs(source, tmp_path / "study", chosen)
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is no readable CSV table"),
        (b"\xff\xfe\x00,b\n", "is no readable CSV table"),
        ("num_params,tokens,loss\n1,2,3\n".encode("utf-16"), "save it with commas, as UTF-8"),
        (b"num_params;tokens;loss\n1;2;3\n", "has no commas between its columns"),
        (b"num_params\ttokens\tloss\n1\t2\t3\n", "has no commas between its columns"),
        (b"num_params,tokens,loss\n", "the source has no runs"),
        (b"num_params,tokens,loss\n1,2,3,\n4,5,6\n", "rows with more cells than its first line has names"),
        (b"num_params,tokens,loss\n1,2,3,\n4,5,6,\n", "rows with more cells than its first line has names"),
        (b"num_params,tokens,loss,train_flops\n1,2,3,0\n", "train_flops=0 of run '.*' is not positive and finite"),
        (b"num_params,tokens,loss,flops_budget\n1,2,3,-1\n", "flops_budget=-1 of run '.*' is not positive and finite"),
        (b"Step,a - loss,a - loss__MIN,a - loss__MAX\n1,2,2,2\n", "W&B's export of one panel"),
        (b"SQLite format 3\0 and no more", "no readable MLflow store"),
    ],
)
def test_a_file_that_is_no_table_of_runs_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "source").write_bytes(content)
    with pytest.raises(FitError, match=said):
        import_runs(tmp_path / "source", tmp_path / "study", {})
    assert not (tmp_path / "study").exists()


def test_an_empty_database_is_told_as_one(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"")
    with pytest.raises(FitError, match="is no readable MLflow store"):
        import_runs(tmp_path / "mlflow.db", tmp_path / "study", {})


def test_a_table_of_an_imported_study_that_is_lost_is_imported_again(tmp_path: Path) -> None:
    import_runs(foreign(tmp_path / "wandb.csv"), tmp_path / "study", WANDB)
    (tmp_path / "study" / "results.csv").unlink()
    with pytest.raises(FitError, match="is missing; import its source again"):
        read_table(tmp_path / "study", "results.csv")
    plan = tmp_path / "study" / "plan.csv"
    plan.write_text(plan.read_text().rstrip())
    with pytest.raises(FitError, match=r"is torn .*; import its source again"):
        read_plan(tmp_path / "study")


def test_a_folder_that_is_no_import_is_not_written_into(tmp_path: Path) -> None:
    source = foreign(tmp_path / "wandb.csv")
    study = write_study(tmp_path / "study", STUDY)
    with pytest.raises(FitError, match="holds something else"):
        import_runs(source, study, WANDB)
    import_runs(source, tmp_path / "new", WANDB)
    with pytest.raises(FitError, match="was imported"):
        collect(tmp_path / "new")


@pytest.mark.parametrize("words", [["num_params=a"], ["out=d", "loss"], ["out=d", "out=e"], ["out=d", "loss="]])
def test_words_that_are_no_map_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", "x.csv", *words]) == 2
    assert capsys.readouterr().err.startswith("fit-scaling: ")


def write_mlruns(folder: Path) -> Path:
    """A folder of MLflow's files: two runs of one experiment, one of them deleted, and an empty experiment."""
    for experiment, name in (("0", "Default"), ("1", "scaling")):
        (folder / experiment).mkdir(parents=True)
        (folder / experiment / "meta.yaml").write_text(f"experiment_id: '{experiment}'\nname: {name}\nlifecycle_stage: active\n")
    for run, stage in (("aa", "active"), ("bb", "deleted"), ("cc", "active")):
        home = folder / "1" / run
        for part in ("params", "metrics/val", "tags"):
            (home / part).mkdir(parents=True)
        (home / "meta.yaml").write_text(
            f"run_id: {run}\nrun_name: run {run}\nstatus: 3\nstart_time: {ord(run[0])}\nlifecycle_stage: {stage}\n"
        )
        (home / "params" / "n_params").write_text("1000")
        (home / "metrics" / "tokens").write_text("1 100.0 1\n2 200.0 2\n")
        (home / "metrics" / "val" / "loss").write_text("2 3.5 2\n1 4.0 1\n")
    return folder


def test_a_folder_mlruns_is_read(tmp_path: Path) -> None:
    columns = {"num_params": "n_params", "loss": "val/loss"}
    runs = import_runs(write_mlruns(tmp_path / "mlruns"), tmp_path / "study", columns).runs
    assert runs[["run_id", "num_params", "tokens", "excluded"]].to_numpy().tolist() == [
        ["aa", 1000, 200, ""],
        ["cc", 1000, 200, ""],
    ]
    assert list(pd.read_csv(tmp_path / "study" / "results.csv")["value"]) == [3.5, 3.5]
    with pytest.raises(FitError, match="experiment=scale has no runs in"):
        import_runs(tmp_path / "mlruns", tmp_path / "study", columns, experiment="scale")


@pytest.fixture(scope="module")
def synced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with a branch, skipped steps, an excluded run and evaluations, in a store of its own."""
    folder = write_study(tmp_path_factory.mktemp("synced") / "study", STUDY)
    (first, _), (second, _) = rows(STUDY)[:2]
    home = folder / "runs" / first.run_id
    branch = {"branch": 20, "train_flops": 4e17}
    with records.JsonLinesWriter(home / records.TRAIN_RECORDS) as file:
        file.write(train_record(first, 20, 0.5) | branch)
        file.write(train_record(first, 7, 99.0) | {"skipped": "spike"})
    with records.JsonLinesWriter(home / records.EVAL_RECORDS) as file:
        file.write(eval_record(first, "heldout_mixture", "ST->ST", "nats_per_token", 1.5, 1000) | {"step": 20} | branch)
        file.write(
            eval_record(first, "heldout_mixture", "ST->ST", "nats_per_token", 2.5, 1000) | {"step": 10, "train_flops": 2e17}
        )
    write_evaluation(home, "aaa", join="closed", items=4)
    write_evaluation(home, "bbb", task="swuggy/A & B", step=20, share=0.25)
    (folder / "runs" / second.run_id / records.EXIT).unlink()
    subprocess.run([sys.executable, "-m", "analysis.cli", "sync", str(folder)], check=True, capture_output=True)
    return folder


def test_a_study_synced_to_mlflow_and_imported_has_the_collected_rows(synced: Path, tmp_path: Path) -> None:
    study, back = synced, tmp_path / "back"
    collect_into(study)
    import_runs(study / tracking.STORE, back, {})
    names = ["run_id", "branch", "step", "task", "direction", "metric", "evaluation"]

    def table(folder: Path, name: str) -> pd.DataFrame:
        found = pd.read_csv(folder / name, dtype={"run_id": str})
        return found.sort_values([n for n in names if n in found], kind="stable").reset_index(drop=True)

    pd.testing.assert_frame_equal(table(back, "results.csv"), table(study, "results.csv"), check_dtype=False)
    pd.testing.assert_frame_equal(table(back, "runs.csv"), table(study, "runs.csv"), check_dtype=False)
    curves = [
        pd.read_parquet(folder / "curves.parquet").sort_values(["run_id", "step"]).reset_index(drop=True)
        for folder in (back, study)
    ]
    pd.testing.assert_frame_equal(*curves)
    assert len(curves[0]) == 4 * STEPS - 1


def test_a_store_changes_nothing_when_it_is_read(synced: Path, tmp_path: Path) -> None:
    before = (synced / tracking.STORE).read_bytes()
    import_runs(
        synced / tracking.STORE,
        tmp_path / "back",
        {"num_params": "plan.num_params", "tokens": "train/tokens", "loss": "train/loss"},
    )
    assert (synced / tracking.STORE).read_bytes() == before
