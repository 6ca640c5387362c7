"""The report of what `analysis` itself fits to a known truth: both sides agree on fits.json, and the truth is inside."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from analysis.study import FitOptions, fit_study, write_fits
from lst.errors import DataError
from reports import answer, sections
from reports.stories import story_scores
from reports.study import read_study
from tests.reports.known_truth import EFFICIENCY


def test_fitted_study_is_read_whole_and_finds_the_truth(make_study: Callable[..., Path]) -> None:
    folder = make_study()
    content = fit_study(folder, FitOptions(resamples=40))
    write_fits(folder, content)
    study = read_study(folder)
    assert len(study.fits.arms) == len(content["fits"]) == 12
    assert study.fits.level == 0.9
    found = answer.leading_comparison(study, "mixture", "lst_static")
    assert found is not None
    assert found.curve
    assert found.multiplier.low <= EFFICIENCY <= found.multiplier.high
    assert "lst_static reaches baseline's mixture loss with" in answer.multiplier_sentence(study, "mixture")
    pairs = answer.matched_pairs(study, "mixture", "lst_static")
    assert pairs is not None
    assert pairs.mean.has_interval
    assert "in 12 of 12 pairs" in answer.pairs_sentence(study, "mixture")
    mine = {(s.run_id, s.task, s.direction): (s.low, s.high) for s in story_scores(study)}
    for theirs in content["accuracies"]:
        low, high = mine[theirs["run_id"], theirs["task"], theirs["direction"]]
        assert abs(low - theirs["interval"][0]) + abs(high - theirs["interval"][1]) < 1e-9
    kinds = {
        block.kind
        for section in (sections.fits_section(study), sections.multiplier_section(study, "mixture"))
        for block in section.blocks
    }
    assert "gap" not in kinds


def test_laws_of_other_tables_than_those_beside_them_are_told(make_study: Callable[..., Path]) -> None:
    folder = make_study()
    write_fits(folder, fit_study(folder, FitOptions(resamples=0)))
    told = "fits.json was fitted to another results.csv"
    assert not any(told in gap for gap in read_study(folder).gaps)
    table = (folder / "results.csv").read_text()
    (folder / "results.csv").write_text(table[: table.rstrip().rindex("\n") + 1])
    assert any(told in gap for gap in read_study(folder).gaps)


@pytest.mark.parametrize("content", ["[1]", '{"fits": null}', '{"fits": [1]}', '{"comparisons": {}}'])
def test_fits_of_another_shape_are_one_sentence(make_study: Callable[..., Path], content: str) -> None:
    folder = make_study()
    (folder / "fits.json").write_text(content)
    with pytest.raises(DataError, match=r"does not have the shape of docs/fitting\.md.*write it again with fit-scaling fit"):
        read_study(folder)
