"""item_pairs.csv: which runs are paired on which items, McNemar by hand, Holm by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.accuracy import accuracies, evaluated
from analysis.collect import collect, collect_into
from analysis.evaluation_kinds import of_own_kind
from analysis.item_table import PAIR_COLUMNS, holm
from analysis.study import read_table
from lst import records
from reports import render
from tests.analysis.study_folder import STEPS, Synthetic, rows, write_study
from tests.analysis.test_collect_evaluations import write_evaluation

STUDY = Synthetic(budgets=(1e18,), sizes=2, stories=False)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write_study(tmp_path, STUDY)


def first_accuracies(study: Path) -> list[dict[str, Any]]:
    return accuracies(of_own_kind(evaluated(read_table(study, "runs.csv"), read_table(study, "results.csv"))), level=0.9)


def run(study: Path, arm: str, size: str = "s0") -> Path:
    return study / "runs" / next(row.run_id for row, _ in rows(STUDY) if (row.arm, row.size) == (arm, size))


def test_an_arm_is_paired_with_the_baseline_of_its_size_on_the_same_items(study: Path) -> None:
    write_evaluation(run(study, "baseline"), "aaa", share=0.25)
    write_evaluation(run(study, "lst_static"), "bbb", share=1.0)
    write_evaluation(run(study, "lst_static", "s1"), "ccc")  # its baseline was not evaluated
    pairs = collect(study).pairs
    assert list(pairs.columns) == PAIR_COLUMNS
    (pair,) = pairs.to_dict("records")
    assert (pair["run_id"], pair["baseline_run_id"]) == (run(study, "lst_static").name, run(study, "baseline").name)
    assert (pair["accuracy"], pair["baseline_accuracy"], pair["difference"], pair["n_items"]) == (1.0, 0.25, 0.75, 4)
    assert (pair["only_arm"], pair["only_baseline"]) == (3, 0)
    assert pair["p_value"] == pytest.approx(2 / 2**3)  # three fair coins alike
    assert (pair["p_holm"], pair["tests"]) == (pair["p_value"], 1)
    assert pair["low"] < 0.75 < pair["high"]


@pytest.mark.parametrize("odd", ["items", "score", "step", "conditional", "excluded", "set"])
def test_what_does_not_compare_makes_no_pair(study: Path, odd: str) -> None:
    write_evaluation(run(study, "baseline"), "aaa")
    folder = write_evaluation(
        run(study, "lst_static"), "bbb", step=20 if odd == "step" else STEPS, **({"items_id": "x"} if odd == "set" else {})
    )
    path = folder / records.ITEM_RECORDS
    change = {"items": {"item": "other"}, "score": {"score": "loglik_sum"}, "conditional": {"conditional": True}}.get(odd, {})
    lines = [record | (change if odd != "items" or place == 0 else {}) for place, record in enumerate(records.read_jsonl(path))]
    path.unlink()
    with records.JsonLinesWriter(path) as file:
        for record in lines:
            file.write(record)
    if odd == "excluded":
        (run(study, "lst_static") / records.EXIT).unlink()
    assert len(collect(study).pairs) == 0


def test_evaluations_are_paired_with_those_of_the_same_options(study: Path) -> None:
    write_evaluation(run(study, "baseline"), "zzz", share=0.25, items=4)
    write_evaluation(run(study, "baseline"), "aaa", share=0.5, items=4, context_tokens=69)
    write_evaluation(run(study, "lst_static"), "bbb", share=1.0, items=4)
    write_evaluation(run(study, "lst_static"), "yyy", share=0.75, items=4, context_tokens=69)
    write_evaluation(run(study, "lst_static"), "ccc", share=0.0, items=4, join="closed")
    found = collect(study).pairs[["evaluation", "baseline_evaluation", "accuracy", "baseline_accuracy"]]
    assert sorted(found.itertuples(index=False, name=None)) == [("bbb", "zzz", 1.0, 0.25), ("yyy", "aaa", 0.75, 0.5)]


def test_runs_that_answered_one_item_set_in_no_common_way_are_told(study: Path) -> None:
    for size in ("s0", "s1"):
        write_evaluation(run(study, "baseline", size), "aaa", items=4, context_tokens=69)
        write_evaluation(run(study, "lst_static", size), "bbb", items=4)
    write_evaluation(run(study, "baseline", "s1"), "ccc", task="other", items=4)
    write_evaluation(run(study, "lst_static", "s1"), "ddd", task="other", items=4)
    collected = collect(study)
    assert set(collected.pairs["task"]) == {"other"}
    told = (
        "hellaswag S->S: 2 pairs of runs (lst_static and baseline) answered one item set by no common score and options, so "
        "item_pairs.csv has no row of them; evaluate both alike."
    )
    assert collected.notes == (told,)
    assert collect_into(study)[1] == [told]
    write_evaluation(run(study, "lst_static"), "eee", items=4, context_tokens=69)
    assert collect(study).notes == (told.replace("2 pairs", "1 pair"),)


def test_the_first_of_several_evaluations_has_most_items_and_is_of_one_kind_in_all_runs(study: Path) -> None:
    for arm, names in (("baseline", "abc"), ("lst_static", "cab")):
        write_evaluation(run(study, arm), names[0], share=0.25, items=2)
        write_evaluation(run(study, arm), names[1], share=1.0, items=4)
        write_evaluation(run(study, arm), names[2], share=0.5, items=4, context_tokens=69)
    collect_into(study)
    scores = first_accuracies(study)
    assert {s["accuracy"] for s in scores} == {0.5}  # of options in their order: "context_tokens" before "items"


ARMS = Synthetic(arms={"lst_aligned": 1.0, "lst_static": 1.0, "lst_curriculum": 1.0}, budgets=(1e18,), sizes=1, stories=False)


def probed(study: Path, arm: str, name: str, labels: str, share: float, *, conditional: bool = False) -> None:
    """What `python -m lst.evals representations` leaves: an item a unit, with the label that is right."""
    run_folder = study / "runs" / next(row.run_id for row, _ in rows(ARMS) if row.arm == arm)
    path = write_evaluation(run_folder, name, task="probe", share=share) / records.ITEM_RECORDS
    items = records.read_jsonl(path)
    path.unlink()
    with records.JsonLinesWriter(path) as file:
        for item, label in zip(items, labels, strict=True):
            file.write(item | {"label": label, "conditional": conditional})


def test_without_a_baseline_arms_are_paired_with_each_other_where_their_items_are_the_same(tmp_path: Path) -> None:
    study = write_study(tmp_path, ARMS)
    probed(study, "lst_static", "aaa", "abcd", 0.5)
    probed(study, "lst_curriculum", "bbb", "abcd", 1.0)
    probed(study, "lst_curriculum", "ccc", "wxyz", 0.75, conditional=True)  # the same run under aligned patches
    probed(study, "lst_aligned", "ddd", "wxyz", 0.25, conditional=True)
    pairs = collect(study).pairs
    compared = [(p["arm"], p["against"], p["conditional"], p["accuracy"], p["baseline_accuracy"]) for _, p in pairs.iterrows()]
    assert compared == [
        ("lst_curriculum", "lst_static", False, 1.0, 0.5),
        ("lst_curriculum", "lst_aligned", True, 0.75, 0.25),
    ]
    assert set(pairs["tests"]) == {2}


def test_units_with_other_labels_are_other_items(tmp_path: Path) -> None:
    study = write_study(tmp_path, ARMS)
    probed(study, "lst_static", "aaa", "abcd", 0.5)
    probed(study, "lst_curriculum", "bbb", "abce", 1.0)
    assert len(collect(study).pairs) == 0


def test_holm_corrects_step_down() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_report_shows_the_pairs_and_how_many_tests_there_are(study: Path) -> None:
    for size in ("s0", "s1"):
        write_evaluation(run(study, "baseline", size), "aaa", share=0.25)
        write_evaluation(run(study, "lst_static", size), "bbb", share=1.0)
    collect_into(study)
    page = render(study)
    told = pd.read_csv(page.parent / "tables" / "item-pairs.csv")
    assert len(told) == 2
    assert set(told["p_holm"]) == {0.5}
    text = " ".join(page.read_text().split())
    assert "2 comparisons item by item: 0 with p below 0.05 taken alone, where luck gives up to about 0.1; 0 after Holm" in text


def test_accuracies_of_item_sets_are_fitted_and_reported_like_those_of_stories(study: Path) -> None:
    for arm in ("baseline", "lst_static"):
        write_evaluation(run(study, arm), "aaa", share=0.5)
        write_evaluation(run(study, arm), "bbb", share=1.0)  # another way of scoring; the first counts
        write_evaluation(run(study, arm), "ccc", task="hellaswag/group", share=1.0)
    collect_into(study)
    scores = first_accuracies(study)
    assert [(s["task"], s["accuracy"], s["chance"], s["n_items"]) for s in scores] == [("hellaswag", 0.5, 0.25, 4)] * 2
    told = pd.read_csv(render(study).parent / "tables" / "stories.csv")
    assert told[["task", "accuracy", "chance"]].to_numpy().tolist() == [["hellaswag", 0.5, 0.25]] * 2
