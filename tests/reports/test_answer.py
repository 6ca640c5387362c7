"""The sentences say what the numbers of a known truth say, and no more."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from reports import answer, item_pairs
from reports.study import read_study

MakeStudy = Callable[..., Path]


def test_multiplier_of_the_truth_is_said_with_its_interval(make_study: MakeStudy) -> None:
    said = answer.multiplier_sentence(read_study(make_study(multiplier=(1.3, 1.18, 1.42))), "mixture")
    assert "lst_static reaches baseline's mixture loss with 77% of its FLOPs" in said  # 1 / 1.3
    assert "compute multiplier 1.30×, 90% interval [1.18, 1.42]" in said


def test_multiplier_below_one_is_said_as_more_flops(make_study: MakeStudy) -> None:
    said = answer.multiplier_sentence(read_study(make_study(multiplier=(0.8, 0.7, 0.9))), "mixture")
    assert "lst_static needs 125% of the FLOPs of baseline" in said


def test_interval_that_holds_one_cannot_tell(make_study: MakeStudy) -> None:
    said = answer.multiplier_sentence(read_study(make_study(multiplier=(1.1, 0.8, 1.5))), "mixture")
    assert "so few small runs cannot tell whether lst_static needs fewer FLOPs than baseline" in said
    assert "[0.80, 1.50]" in said
    assert "reaches" not in said


def test_missing_overlap_cannot_tell_and_gives_the_reason(make_study: MakeStudy) -> None:
    said = answer.multiplier_sentence(read_study(make_study(multiplier=None)), "mixture")
    assert "cannot tell how many FLOPs lst_static needs" in said
    assert "the losses of the two arms do not overlap" in said


def test_missing_fits_cannot_tell(make_study: MakeStudy) -> None:
    folder = make_study()
    (folder / "fits.json").unlink()
    assert "no fits have been made" in answer.multiplier_sentence(read_study(folder), "mixture")


def test_one_arm_has_nothing_to_compare(make_study: MakeStudy) -> None:
    study = read_study(make_study(arms=("baseline",)))
    assert "nothing to compare" in answer.multiplier_sentence(study, "mixture")
    assert answer.question(study, "mixture").startswith("How does the held-out mixture loss of baseline fall")


def test_question_counts_usable_runs(make_study: MakeStudy) -> None:
    study = read_study(make_study(failed=("baseline/w48/1",), refused=("lst_static/w96/2", "lst_static/w32/0")))
    asked = answer.question(study, "mixture")
    assert asked.startswith(
        "Do lst_static and lst_curriculum reach a lower held-out mixture loss than baseline at equal training FLOPs?"
    )
    assert "24 of 27 planned runs can be used" in asked
    assert "4 sizes from 70k to 1.32M parameters and 3 budgets of 10¹³ to 10¹⁴ FLOPs" in asked


@pytest.mark.parametrize(("matching", "words"), [("unit", "equal steps and units"), ("data", "equal tokens")])
def test_question_names_the_matching(make_study: MakeStudy, matching: str, words: str) -> None:
    assert words in answer.question(read_study(make_study(matching=matching)), "mixture")


def test_aligned_arm_is_never_compared(make_study: MakeStudy) -> None:
    study = read_study(make_study(arms=("baseline", "lst_aligned")))
    assert answer.compared_arms(study) == []
    assert {v.arm for v in answer.reference_verdicts(study)} == {"baseline"}


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([-1.0, -1.0, -1.0], 0.25),  # 2 * 1/8
        ([-1.0] * 12, 2 / 4096),
        ([-1.0, 1.0], 1.0),
        ([-1.0] * 9 + [1.0], 2 * 11 / 1024),  # (10 choose 9) + (10 choose 10) = 11
    ],
)
def test_sign_test(differences: list[float], p: float) -> None:
    assert answer.sign_test(differences) == pytest.approx(p)


def test_pairs_without_a_fit_are_counted_from_the_losses(make_study: MakeStudy) -> None:
    study = read_study(make_study(failed=("baseline/w48/1",)))
    pairs = answer.matched_pairs(study, "mixture", "lst_static")
    assert pairs is not None
    assert len(pairs.differences) == 11  # 12 cells, one without its baseline
    assert "in 11 of 11 pairs" in answer.pairs_sentence(study, "mixture")
    assert "no interval" in answer.pairs_sentence(study, "mixture")


def write_matched(folder: Path, differences: list[float], mean: float, interval: list[float]) -> None:
    content = json.loads((folder / "fits.json").read_text())
    pairs = [{"difference": d} for d in differences]
    content["comparisons"][0]["matched"] = {"pairs": pairs, "mean": mean, "interval": interval, "level": 0.9}
    (folder / "fits.json").write_text(json.dumps(content))


def test_paired_interval_decides(make_study: MakeStudy) -> None:
    folder = make_study(arms=("baseline", "lst_static"))
    write_matched(folder, [-0.1, 0.05, -0.02], -0.023, [-0.15, 0.1])
    said = answer.pairs_sentence(read_study(folder), "mixture")
    assert "2 of 3 pairs" in said
    assert "90% interval [−0.150, 0.100], which holds 0: too few or too noisy to tell" in said
    write_matched(folder, [-0.1, -0.1, -0.1], -0.1, [-0.12, -0.08])
    assert "which excludes 0, though the pairs are few" in answer.pairs_sentence(read_study(folder), "mixture")


def test_references_are_judged_in_each_modality(make_study: MakeStudy) -> None:
    references = {"speech": {"unigram": 9.0, "trigram": 1.0, "n_items": 30_000}, "text": {"unigram": 9.0, "trigram": 4.44}}
    study = read_study(make_study(arms=("baseline", "lst_static"), references=references))
    said = answer.reference_sentence(study)
    verdicts = {(v.modality, v.reference, v.arm): v for v in answer.reference_verdicts(study)}
    assert len(verdicts) == 8
    assert not verdicts["speech", "trigram", "baseline"].beaten
    best = min(v.loss for (m, _, a), v in verdicts.items() if (m, a) == ("speech", "baseline"))
    final = study.final("speech")
    at_largest = final[(final["arm"] == "baseline") & (final["flops_budget"] == 1e14)]
    assert best == at_largest["loss"].min()
    assert "in speech (30,000 held-out tokens) the unigram reference is beaten by every arm" in said
    assert "the trigram reference is beaten by none (the nearest stays" in said
    assert "in text the unigram reference is beaten by every arm" in said
    assert "the trigram reference is beaten by lst_static but not by baseline" in said


def test_missing_references_are_said(make_study: MakeStudy) -> None:
    folder = make_study()
    (folder / "references.json").unlink()
    assert "is not known" in answer.reference_sentence(read_study(folder))


def test_head_and_local_modules_are_said_to_dominate_only_where_they_do(make_study: MakeStudy) -> None:
    from reports.diagnostics import group_shares

    shares = group_shares(read_study(make_study(arms=("baseline", "lst_static"))).plan, "flops_share")
    said = answer.shares_sentence(shares, "planned training FLOPs")
    assert "The head dominates baseline's smallest model: outside the global transformer lie 65% at w32 (head 65%)" in said
    assert "Head and local modules dominate lst_static's smallest model" in said
    assert "80% at w32 (encoder 10%, decoder 20% and head 50%)" in said
    big = shares.assign(**{"global": 0.9, "head": 0.1, "encoder": 0.0, "decoder": 0.0})
    assert "The head does not dominate baseline's smallest model" in answer.shares_sentence(big, "FLOPs")


@pytest.mark.parametrize(("conditional", "shown"), [(["True", "False"], ["aligned", ""]), (["", "True"], ["", "aligned"])])
def test_pairs_under_aligned_patches_are_told_apart(make_study: MakeStudy, conditional: list[str], shown: list[str]) -> None:
    folder = make_study()
    pair = {"arm": "lst_aligned", "run_id": "a", "against": "baseline", "baseline_run_id": "b", "size": "s", "n_items": 9}
    pair |= {"task": "stories", "direction": "S->S", "accuracy": 0.7, "baseline_accuracy": 0.6, "difference": 0.1, "level": 0.9}
    pair |= {"low": 0.0, "high": 0.2, "p_value": 0.5, "p_holm": 0.5, "tests": 2}
    pd.DataFrame([pair | {"conditional": text} for text in conditional]).to_csv(folder / "item_pairs.csv", index=False)
    assert [row["patches"] for row in item_pairs.table(read_study(folder)).rows] == shown
