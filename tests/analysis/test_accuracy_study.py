"""Accuracies in a study: laws and comparisons in fits.json, matched runs item by item, which N, D and C."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.accuracy_study import accuracy_parts
from analysis.collect import ITEMS, RESULTS, RUNS, collect_into
from analysis.evaluation_kinds import choices, of_common_kind, of_own_kind, ranked, with_kinds
from analysis.form_results import AccuracyMultiplier, FormFit
from analysis.forms import ChanceSigmoid
from analysis.item_pairs import paired_by_item
from analysis.results import SurfaceFit
from analysis.study import TARGETS, FitOptions, final_losses, fit_study, read_table
from lst.errors import FitError
from tests.analysis.study_folder import TRUTH, Synthetic, write_study

TASK, ITEM_COUNT = "story_elsewhere", 4000
KIND_OF_ALL = {"items_id": "a", "options": "join=straddle", "score": "loglik_sum", "conditional": False}
OF_LOSS = ChanceSigmoid(midpoint=3.2, slope=-3.0, chance=0.25)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study whose accuracies follow a sigmoid of the speech loss, 4,000 items; two arms, the second 1.3 times as efficient."""
    made = write_study(tmp_path_factory.mktemp("stories"), Synthetic(noise=0.0))
    collect_into(made)
    rng = np.random.default_rng(0)
    results = pd.read_csv(made / "results.csv")
    speech = results[results["task"] == "heldout_speech"].set_index("run_id")["value"]
    items = []
    for index, row in results[results["task"] == TASK].iterrows():
        right = rng.random(ITEM_COUNT) < OF_LOSS.predict(speech[row["run_id"]])
        share = float(right.mean()) if row["metric"] == "accuracy" else OF_LOSS.chance
        results.loc[index, ["value", "n_items"]] = [share, ITEM_COUNT]  # type: ignore[index]
        if row["metric"] == "accuracy":
            about = {name: row[name] for name in ("run_id", "arm", "size", "step", "task", "direction")}
            answers = {"item": [str(i) for i in range(ITEM_COUNT)], "correct": right, "branch": None}
            items.append(pd.DataFrame(about | answers | KIND_OF_ALL))
    results = results.astype(dict.fromkeys(KIND_OF_ALL, object))
    results.loc[results["task"] == TASK, list(KIND_OF_ALL)] = list(KIND_OF_ALL.values())
    results.to_csv(made / "results.csv", index=False)
    pd.concat(items).to_parquet(made / ITEMS)
    return made


@pytest.fixture(scope="module")
def fits(folder: Path) -> dict[str, Any]:
    return fit_study(folder, FitOptions(resamples=30))


def test_each_arm_has_accuracy_as_a_law_of_its_loss_and_of_compute(fits: dict[str, Any]) -> None:
    assert [(e["arm"], e["loss_target"], e["chance"]) for e in fits["accuracy_laws"]] == [
        ("baseline", "speech", 0.25),
        ("lst_static", "speech", 0.25),
    ]
    for entry in fits["accuracy_laws"]:
        of_loss, of_flops = (FormFit.from_json(entry[name]) for name in ("of_loss", "of_flops"))
        assert of_loss.law.midpoint == pytest.approx(OF_LOSS.midpoint, abs=0.1)  # type: ignore[union-attr]
        assert of_flops.law.slope > 0  # type: ignore[union-attr]
        assert (entry["warnings"], entry["flops_convention"]) == ([], "exact")
    json.dumps(fits, allow_nan=False)


def test_an_arm_is_compared_by_compute_and_item_by_item(fits: dict[str, Any]) -> None:
    (entry,) = fits["accuracy_comparisons"]
    assert (entry["baseline"], entry["arm"], entry["direction"]) == ("baseline", "lst_static", "S->S")
    curve = AccuracyMultiplier.from_json(entry["curve"])
    assert curve.mean_interval[0] < 1.3 < curve.mean_interval[1]
    assert AccuracyMultiplier.from_json(json.loads(json.dumps(curve.to_json()))) == curve
    assert (entry["items"]["pairs"], entry["items"]["n_items"]) == (12, ITEM_COUNT)
    low, high = entry["items"]["interval"]
    assert 0 < low < entry["items"]["difference"] < high


@pytest.fixture
def other(folder: Path, tmp_path: Path) -> Path:
    """A copy of the study, to be changed."""
    return Path(shutil.copytree(folder, tmp_path / "other"))


def of_accuracy(study: Path, *, resamples: int = 0) -> dict[str, Any]:
    """What fits.json has of accuracies, without fitting all that it has of losses."""
    runs, results, options = read_table(study, RUNS), read_table(study, RESULTS), FitOptions(resamples=resamples)
    tables = {target: options.prepared(final_losses(runs, results, target)) for target in TARGETS}
    return accuracy_parts(study, runs, results, tables, ["lst_static"], options)


def changed(study: Path, arm: str, change: dict[str, Any], *, sizes: tuple[str, ...] = (), added: bool = False) -> None:
    """The arm's answers are of another kind; `added`: it has them so as well, each answer turned round."""
    for name in ("results.csv", ITEMS):
        table = read_table(study, name) if name.endswith(".csv") else pd.read_parquet(study / name)
        of = (table["arm"] == arm) & (table["task"] == TASK) & (table["size"].isin(sizes) if sizes else True)
        if added:
            more = table[of].assign(**change)
            if "correct" in more:
                more["correct"] = ~more["correct"]
            else:
                accuracy = more["metric"] == "accuracy"
                more.loc[accuracy, "value"] = 1 - more.loc[accuracy, "value"]
            table = pd.concat([more, table])
        else:
            table.loc[of, list(change)] = list(change.values())
        table.to_csv(study / name, index=False) if name.endswith(".csv") else table.to_parquet(study / name)


@pytest.mark.parametrize(
    "change", [{"items_id": "b"}, {"options": "join=closed"}, {"score": "loglik_gain"}, {"conditional": True}]
)
def test_arms_that_were_evaluated_in_no_common_way_are_not_compared(other: Path, change: dict[str, Any]) -> None:
    changed(other, "lst_static", change)
    content = of_accuracy(other)
    (entry,) = content["accuracy_comparisons"]
    assert (entry["evaluated"], entry["curve"], entry["items"]) == (None, None, None)
    (told,) = entry["warnings"]
    assert "were evaluated in no common way (baseline: items a, join=straddle, by loglik_sum; lst_static: " in told
    assert [law["of_loss"] is None for law in content["accuracy_laws"]] == [False, False]
    assert "was evaluated in 2 ways" in content["warnings"][-1]


def test_ids_of_digits_with_an_e_are_no_numbers(other: Path) -> None:
    """As numbers both are infinite, and so the same."""
    for arm, items_id in (("baseline", "123e45678901"), ("lst_static", "987e65432109")):
        changed(other, arm, {"items_id": items_id})
    (entry,) = of_accuracy(other)["accuracy_comparisons"]
    assert entry["curve"] is None
    assert "baseline: items 123e45678901, " in entry["warnings"][0]
    changed(other, "baseline", {"items_id": "012345678901"})
    changed(other, "lst_static", {"items_id": "012345678901"})
    (entry,) = of_accuracy(other)["accuracy_comparisons"]
    assert entry["evaluated"] == "items 012345678901, join=straddle, by loglik_sum"
    assert entry["items"]["pairs"] == 12


def test_evaluations_that_do_not_say_their_options_are_not_mixed(other: Path) -> None:
    """As in a store of MLflow that was written before there was that column."""
    for arm in ("baseline", "lst_static"):
        changed(other, arm, {"evaluation": "aaa", "options": None})
        changed(other, arm, {"evaluation": "bbb"}, added=True)
    assert of_accuracy(other)["warnings"] == [
        "story_elsewhere S->S was evaluated in 2 ways; of each arm counts one that saw no alignment, then the one that most of "
        "its runs have: "
        "items a, unknown options of evaluation aaa, by loglik_sum (of baseline, lst_static: 24 runs)"
    ]


def test_of_several_ways_that_counts_which_most_runs_have_in_whatever_order_they_stand(fits: dict[str, Any], other: Path) -> None:
    changed(other, "lst_static", {"options": "context_tokens=69"}, added=True)  # before the others in both tables
    content = of_accuracy(other, resamples=30)
    for name in ("accuracies", "accuracy_laws", "accuracy_comparisons"):
        assert content[name] == fits[name]
    assert fits["warnings"] == []
    assert content["warnings"] == [
        "story_elsewhere S->S was evaluated in 2 ways; of each arm counts one that saw no alignment, then the one that most of "
        "its runs have: "
        "items a, join=straddle, by loglik_sum (of baseline, lst_static: 24 runs)"
    ]


def in_kinds(counts: dict[str, dict[str, int]]) -> pd.DataFrame:
    """Accuracies of so many runs of each arm in each kind, by its options."""
    rows = [
        {"run_id": f"{arm}{i}", "arm": arm, "task": TASK, "direction": "S->S", "n_items": 9, "evaluation": kind, "options": kind}
        for arm, kinds in counts.items()
        for kind, runs in kinds.items()
        for i in range(runs)
    ]
    return ranked(with_kinds(pd.DataFrame(rows)))


def test_one_stray_evaluation_does_not_take_an_arms_law_or_a_comparison_over() -> None:
    """20 runs and 12 by two kinds, and an arm of 12 by the second that has one run by the first, which is the commonest."""
    rows = in_kinds({"baseline": {"a": 20, "b": 12}, "third": {"a": 20}, "arm": {"b": 12, "a": 1}})
    taken = of_own_kind(rows).groupby("arm")["options"].agg(["first", "size"])
    assert taken.T.to_dict("list") == {"arm": ["b", 12], "baseline": ["a", 20], "third": ["a", 20]}
    common = of_common_kind(rows, ["baseline", "arm"])
    assert common.groupby("arm")["options"].agg(["first", "size"]).T.to_dict("list") == {"arm": ["b", 12], "baseline": ["b", 12]}
    (told,) = choices(rows)
    assert told.endswith("runs have: a (of baseline, third: 40 runs); b (of arm: 12 runs)")


def test_where_as_many_runs_have_two_kinds_the_one_that_more_runs_of_all_arms_have_counts() -> None:
    rows = in_kinds({"baseline": {"a": 12, "b": 12}, "arm": {"a": 12, "b": 12}, "third": {"b": 1}})
    assert set(of_own_kind(rows)["options"]) == set(of_common_kind(rows, ["baseline", "arm"])["options"]) == {"b"}


def test_runs_that_were_evaluated_otherwise_only_are_left_out_and_named(other: Path) -> None:
    changed(other, "lst_static", {"options": "limit=15"}, sizes=("s0",))
    content = of_accuracy(other)
    law = next(e for e in content["accuracy_laws"] if e["arm"] == "lst_static")
    lost = sorted(pd.read_csv(other / "runs.csv").query("arm == 'lst_static' and size == 's0'")["run_id"])
    assert law["warnings"][0] == f"{len(lost)} runs were evaluated otherwise only, and left out: {', '.join(lost)}"
    assert law["evaluated"] == "items a, join=straddle, by loglik_sum"
    (entry,) = content["accuracy_comparisons"]
    assert entry["items"]["pairs"] == 12 - len(lost)


def test_the_plans_own_evaluation_comes_first_where_as_many_runs_have_another(other: Path) -> None:
    for arm in ("baseline", "lst_static"):
        changed(other, arm, {"evaluation": "aaa", "options": "context_tokens=69"}, added=True)
    (told,) = of_accuracy(other)["warnings"]
    assert told.endswith("items a, join=straddle, by loglik_sum (of baseline, lst_static: 24 runs)")


def test_an_accuracy_multiplier_from_foreign_json_is_refused() -> None:
    with pytest.raises(FitError, match=r"accuracies.*write it with to_json"):
        AccuracyMultiplier.from_json({"mean": 1.0})


def test_accuracies_that_do_not_rise_leave_a_sentence_and_no_law(tmp_path: Path) -> None:
    made = write_study(tmp_path / "study", Synthetic(sizes=2))  # 3 of 4 items right in every run
    collect_into(made)
    content = fit_study(made, FitOptions(resamples=0))
    assert [e["of_loss"] for e in content["accuracy_laws"]] == [None, None]
    assert all("no law of accuracy in loss" in e["warnings"][0] for e in content["accuracy_laws"])
    assert content["accuracy_comparisons"][0]["curve"] is None


def pairs_of(answers: np.ndarray) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(2, m, n) right answers of arm and baseline -> items and matched runs."""
    sides, pairs, items = np.indices(answers.shape)
    runs = np.char.add(sides.astype(str), pairs.astype(str))
    rows = pd.DataFrame({"run_id": runs.ravel(), "item": items.astype(str).ravel(), "correct": answers.ravel()})
    names = range(answers.shape[1])
    return rows, pd.DataFrame({"run_id": [f"0{p}" for p in names], "run_id_baseline": [f"1{p}" for p in names]})


def test_one_pair_has_mcnemars_test_and_no_interval() -> None:
    answers = np.array([[[True] * 8 + [False] * 2], [[False] * 6 + [True] * 4]])
    found = paired_by_item(*pairs_of(answers), level=0.9)
    assert (found["only_arm"], found["only_baseline"], found["interval"]) == (6, 2, None)
    assert found["difference"] == pytest.approx(0.4)
    assert found["mcnemar_p"] == pytest.approx(2 * (1 + 8 + 28) / 256)  # by hand: 2 P(at most 2 heads of 8 fair coins)


def test_pairs_by_hand() -> None:
    """d = [[1, 0], [1, 1]]: the pairs' means are 1/2 and 1, the items' 1 and 1/2; variances 1/8, each over 2. The interval
    ends at 1, the largest difference that two accuracies can have."""
    answers = np.array([[[True, False], [True, True]], [[False, False], [False, False]]])
    found = paired_by_item(*pairs_of(answers), level=0.5)
    half = np.sqrt(0.125 / 2 + 0.125 / 2)  # Student's 75% quantile with one degree of freedom is 1
    np.testing.assert_allclose(found["interval"], [0.75 - half, 1.0])
    turned = paired_by_item(*pairs_of(answers[::-1]), level=0.5)
    np.testing.assert_allclose(turned["interval"], [-1.0, half - 0.75])


def test_alike_arms_are_told_apart_no_more_often_than_they_should_be() -> None:
    """A/A, 150 studies of 5 pairs on 60 shared items: seeds move a run's accuracy, items differ in difficulty; level 5%."""
    rng = np.random.default_rng(0)
    rejected = 0
    for _ in range(150):
        logit = rng.normal(0, 1, 60) + rng.normal(0, 0.3, (2, 5, 1))
        found = paired_by_item(*pairs_of(rng.random((2, 5, 60)) < 1 / (1 + np.exp(-logit))), level=0.95)
        rejected += found["p"] < 0.05
    assert rejected <= 0.07 * 150


def test_matched_runs_without_common_items_are_refused() -> None:
    items, matched = pairs_of(np.ones((2, 1, 3), dtype=bool))
    with pytest.raises(FitError, match="no two matched runs"):
        paired_by_item(items.iloc[:3], matched, level=0.9)
    with pytest.raises(FitError, match="no answers to single items"):
        paired_by_item(items.iloc[:0], matched, level=0.9)
    items.loc[items["run_id"] == "10", "item"] = ["a", "b", "c"]
    with pytest.raises(FitError, match="no item in common"):
        paired_by_item(items, matched, level=0.9)


def test_seconds_of_speech_and_six_nd_are_options_told_with_every_entry(folder: Path) -> None:
    seconds = fit_study(folder, FitOptions(resamples=0, d="seconds"))
    entry = next(e for e in seconds["fits"] if (e["arm"], e["target"]) == ("baseline", "mixture"))
    assert (entry["n_kind"], entry["d_kind"]) == ("num_params", "speech_seconds")
    law = SurfaceFit.from_json(entry["loss_surface"])
    assert "D = speech_seconds" in repr(law)
    assert law.law.beta == pytest.approx(TRUTH.beta, abs=0.01)  # half the tokens are speech, 25 a second: B alone changes
    np.testing.assert_allclose(law.law.B, TRUTH.B / 50**TRUTH.beta, rtol=0.05)
    runs = pd.read_csv(folder / "runs.csv")
    rows = FitOptions(c="six_nd", n="non_embedding").prepared(final_losses(runs, pd.read_csv(folder / "results.csv"), "text"))
    np.testing.assert_allclose(rows["train_flops"], 3 * rows["num_params"] * rows["tokens"], rtol=1e-6)
    with pytest.raises(FitError, match="six_nd"):
        FitOptions(c="six_nd", d="seconds").validate()


def test_interleaved_losses_are_a_target_where_they_are_evaluated(folder: Path) -> None:
    results = pd.read_csv(folder / "results.csv")
    again = results[results["task"] == "heldout_text"].assign(task="heldout_interleaved", direction="ST->ST")
    runs = pd.read_csv(folder / "runs.csv")
    assert len(final_losses(runs, pd.concat([results, again]), "interleaved")) == len(runs)
    assert len(final_losses(runs, results, "interleaved")) == 0
