"""Evaluations in RUN/evals come into results.csv and items.parquet, each once, whole, and of its own run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from analysis.collect import collect
from lst import records
from tests.analysis.study_folder import STEPS, Synthetic, rows, write_study

STUDY = Synthetic(budgets=(1e18,), sizes=2, stories=False)


def write_evaluation(
    run: Path, name: str, *, task: str = "hellaswag", step: int = STEPS, share: float = 0.5, **about: Any
) -> Path:
    """What `python -m lst.evals choices` leaves: a card, metrics and items."""
    folder = run / "evals" / f"{task}-{name}".replace("/", " ")
    folder.mkdir(parents=True)
    decided = {"run_id": run.name, "task": task, "items_id": "items01"} | about
    records.write_json(folder / "evaluation.json", {"evaluation_id": name, "decided_by": decided})
    spent = {"step": step, "train_flops": 1e18, "units": 10, "text_tokens": 5, "speech_tokens": 5}
    named = {"task": task, "direction": "S->S", "score": "loglik_per_token", "patching": "static", "conditional": False}
    with records.JsonLinesWriter(folder / records.EVAL_RECORDS) as file:
        for metric, value in (("accuracy", share), ("chance", 0.25)):
            file.write(
                spent | named | {"metric": metric, "value": value, "n_items": 4, "evaluation_id": name, "join": "straddle"}
            )
    with records.JsonLinesWriter(folder / records.ITEM_RECORDS) as file:
        for item in range(4):
            answer = {"item": f"i{item}", "correct": item < 4 * share, "scores": [-1.0, -2.0, -3.0, -4.0], "right": 0}
            file.write({"step": step} | named | answer)
    return folder


def runs_of(folder: Path) -> list[Path]:
    return [folder / "runs" / row.run_id for row, _ in rows(STUDY)]


def test_metrics_and_items_of_an_evaluation_stand_beside_the_trainers(tmp_path: Path) -> None:
    run = runs_of(write_study(tmp_path, STUDY))[0]
    before = collect(tmp_path)
    write_evaluation(run, "aaa")
    after = collect(tmp_path)
    assert after.notes == ()
    found = after.results[after.results["evaluation"].notna()]
    assert found[
        ["run_id", "step", "task", "direction", "metric", "value", "n_items", "evaluation", "items_id"]
    ].to_numpy().tolist() == [
        [run.name, STEPS, "hellaswag", "S->S", "accuracy", 0.5, 4, "aaa", "items01"],
        [run.name, STEPS, "hellaswag", "S->S", "chance", 0.25, 4, "aaa", "items01"],
    ]
    assert set(found["score"]) == {"loglik_per_token"}
    assert after.results[after.results["evaluation"].isna()].reset_index(drop=True).equals(before.results)
    items = after.items.to_pylist()
    assert [(i["item"], i["correct"], i["evaluation"], i["score"]) for i in items] == [
        (f"i{n}", n < 2, "aaa", "loglik_per_token") for n in range(4)
    ]
    assert after.runs.equals(before.runs)


def test_the_options_that_decide_stand_with_metrics_and_items_without_the_model_the_task_and_the_items(tmp_path: Path) -> None:
    run = runs_of(write_study(tmp_path, STUDY))[0]
    of_model = {"weights": "w", "data_id": "d", "patching": "static", "directions": ["S->S"]}
    named = {"join": "closed", "items": 4, "boundary_noise_ms": [20, 40], "phones": "a folder", "static_fallback": False}
    write_evaluation(run, "aaa", **of_model, **named)
    collected = collect(tmp_path)
    text = 'boundary_noise_ms=[20,40] items=4 join=closed phones="a folder" static_fallback=false'
    told = collected.results[["evaluation", "options"]].drop_duplicates().to_numpy().tolist()
    assert told == [[None, None], ["aaa", text]]
    assert {item["options"] for item in collected.items.to_pylist()} == {text}


def test_two_checkpoints_and_two_ways_of_scoring_are_rows_of_their_own(tmp_path: Path) -> None:
    run = runs_of(write_study(tmp_path, STUDY))[0]
    write_evaluation(run, "aaa")
    write_evaluation(run, "bbb", step=20, share=0.25)
    write_evaluation(run, "ccc", share=0.75)
    found = collect(tmp_path).results
    found = found[found["metric"] == "accuracy"]
    assert found[["step", "evaluation", "value"]].to_numpy().tolist() == [
        [20, "bbb", 0.25],
        [STEPS, "aaa", 0.5],
        [STEPS, "ccc", 0.75],
    ]


def test_what_is_no_finished_evaluation_of_the_run_is_left_out_and_told(tmp_path: Path) -> None:
    first, second = runs_of(write_study(tmp_path, STUDY))[:2]
    kept = write_evaluation(first, "aaa")
    shutil.copytree(kept, kept.with_name("copy"))
    shutil.copytree(kept, second / "evals" / "moved")
    shutil.copytree(kept, kept.with_name(".hellaswag-bbb.work"))
    (torn := kept.with_name("torn")).mkdir()
    (torn / "evaluation.json").write_text('{"evaluation_id": "ddd", "decided')
    kept.with_name("empty").mkdir()
    collected = collect(tmp_path)
    assert len(collected.results[collected.results["evaluation"].notna()]) == 2
    told = " ".join(collected.notes)
    assert len(collected.notes) == 3
    assert "is the evaluation" in told
    assert f"is of run {first.name}" in told
    assert "is no evaluation's card" in told


def test_an_evaluation_of_a_branch_stands_under_its_number_of_steps(tmp_path: Path) -> None:
    run = runs_of(write_study(tmp_path, STUDY))[0]
    folder = write_evaluation(run, "aaa")
    lines = records.read_jsonl(folder / records.EVAL_RECORDS)
    (folder / records.EVAL_RECORDS).unlink()
    with records.JsonLinesWriter(folder / records.EVAL_RECORDS) as file:
        for record in lines:
            file.write(record | {"branch": 20, "step": 20})
    found = collect(tmp_path).results
    assert found[found["evaluation"].notna()][["branch", "step"]].to_numpy().tolist() == [[20, 20], [20, 20]]
