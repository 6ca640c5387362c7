"""Two evaluations paired by item: counts and test by hand, and what may not be compared."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from analysis.item_pairs import main, paired_accuracies
from lst.errors import FitError


def write(folder: Path, correct: list[int], **changes: Any) -> Path:
    folder.mkdir()
    rows = [
        {"task": "t", "direction": "S->S", "item": str(i), "score": "loglik_sum", "correct": bool(c)} | changes
        for i, c in enumerate(correct)
    ]
    (folder / "items.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


def test_the_split_of_differing_items_is_tested_by_fair_coins(tmp_path: Path) -> None:
    # 100 items: both right 40, a alone 14, b alone 4, neither 42
    a = write(tmp_path / "a", [1] * 40 + [1] * 14 + [0] * 4 + [0] * 42)
    b = write(tmp_path / "b", [1] * 40 + [0] * 14 + [1] * 4 + [0] * 42)
    (found,) = paired_accuracies(a, b)
    assert (found.only_a, found.only_b, found.n_items) == (14, 4, 100)
    assert (found.accuracy_a, found.accuracy_b, found.difference) == (0.54, 0.44, pytest.approx(0.10, abs=1e-12))
    tail = sum(math.comb(18, k) for k in range(5)) / 2**18
    assert found.p_value == pytest.approx(2 * tail, abs=1e-12)
    # Normal approximation: variance of the mean of n differences in {-1, 0, 1}
    half = 1.96 * math.sqrt((18 / 100 - 0.1**2) / 100)
    assert found.interval == pytest.approx((0.10 - half, 0.10 + half), abs=0.012)
    assert found.student == pytest.approx([0.10 - half, 0.10 + half], abs=0.002)


def test_pairing_tells_apart_what_two_shares_cannot(tmp_path: Path) -> None:
    """A difference of 5 points on 200 items: hopeless for two independent shares, plain where it is the same items."""
    a, b = [1] * 110 + [0] * 90, [1] * 100 + [0] * 100
    (found,) = paired_accuracies(write(tmp_path / "a", a), write(tmp_path / "b", b))
    assert found.interval[0] > 0
    assert found.p_value == pytest.approx(2 / 2**10, abs=1e-12)
    (apart,) = paired_accuracies(write(tmp_path / "c", a), write(tmp_path / "d", b[::-1]))
    assert apart.difference == found.difference
    assert apart.interval[0] < 0 < apart.p_value


def test_equal_answers_have_no_difference(tmp_path: Path) -> None:
    (found,) = paired_accuracies(write(tmp_path / "a", [1, 0, 1]), write(tmp_path / "b", [1, 0, 1]))
    assert (found.difference, found.interval, found.p_value) == (0.0, (0.0, 0.0), 1.0)


def test_a_runs_last_step_is_taken(tmp_path: Path) -> None:
    a = write(tmp_path / "a", [0, 0])
    lines = (a / "items.jsonl").read_text()
    later = "".join(json.dumps(json.loads(line) | {"step": 5, "correct": True}) + "\n" for line in lines.splitlines())
    (a / "items.jsonl").write_text(lines + later)
    (found,) = paired_accuracies(a, write(tmp_path / "b", [0, 1]))
    assert (found.accuracy_a, found.only_a) == (1.0, 1)


def test_an_evaluation_of_a_branch_is_compared_and_a_runs_branches_are_not(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", [1, 1], branch=20), write(tmp_path / "b", [0, 1])
    with pytest.raises(FitError, match="has no items"):
        paired_accuracies(a, b)
    (a / "evaluation.json").write_text("{}")
    (found,) = paired_accuracies(a, b)
    assert (found.accuracy_a, found.only_a) == (1.0, 1)


@pytest.mark.parametrize(
    ("other", "changes", "reason"),
    [
        ([1, 0], {}, "item '2' of t S->S is in one of"),
        ([1, 0, 1], {"score": "loglik_gain"}, "decides by loglik_sum and .* by loglik_gain"),
        ([1, 0, 1], {"task": "u"}, "share no task and direction"),
        ([1, 0, 1], {"right": 1}, "item '0' of t S->S asks for another answer"),
        ([1, 0, 1], {"label": "word"}, "item '0' of t S->S asks for another answer"),
    ],
)
def test_what_is_not_the_same_is_not_compared(tmp_path: Path, other: list[int], changes: dict[str, Any], reason: str) -> None:
    a, b = write(tmp_path / "a", [1, 1, 0]), write(tmp_path / "b", other, **changes)
    with pytest.raises(FitError, match=reason):
        paired_accuracies(a, b)
    assert main([str(a), str(b)]) == 2


def card(folder: Path, **decided: Any) -> Path:
    about = {"run_id": folder.name, "weights": folder.name, "patching": folder.name, "items_id": "one", "join": "straddle"}
    (folder / "evaluation.json").write_text(json.dumps({"decided_by": about | decided}))
    return folder


def test_other_item_sets_are_refused_and_other_options_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b, c, d = (write(tmp_path / name, [1, 0]) for name in "abcd")
    assert paired_accuracies(card(a), card(b))[0].otherwise == ()
    assert main([str(a), str(card(c, join="closed"))]) == 0
    assert "scored otherwise (join: straddle and closed)" in capsys.readouterr().out
    with pytest.raises(FitError, match=r"is of other items than .*items_id one and two"):
        paired_accuracies(a, card(d, items_id="two"))


def test_stories_of_another_data_set_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their ids and right endings may be the same: data sets of one corpus by two quantizers."""
    a, b, c, d = (write(tmp_path / name, [1, 0]) for name in "abcd")
    for folder, data in ((a, "one"), (b, "one"), (c, "two")):
        (folder / "run.yaml").write_text(f"run_id: {folder.name}\nconfig:\n  data:\n    data_id: {data}\n")
    assert paired_accuracies(a, b)[0].otherwise == ()
    with pytest.raises(FitError, match=r"is of other items than .*data_id one and two"):
        paired_accuracies(a, c)
    (d / "run.yaml").write_text("config: [}")
    assert main([str(a), str(d)]) == 2
    assert "run.yaml' cannot be read; copy the run's folder again" in capsys.readouterr().err


def test_conditional_scores_are_called_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(write(tmp_path / "a", [1, 0])), str(write(tmp_path / "b", [0, 0], conditional=True))]) == 0
    printed = capsys.readouterr().out
    assert "t S->S: 50.0% against 0.0% of 2 items by loglik_sum" in printed
    assert "no fair comparison" in printed
    assert main([str(tmp_path / "a"), str(tmp_path / "b"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["only_a"] == 1
