"""Variants of an arm: their own runs under their own names, matched to the arm they name, and never an arm twice."""

from __future__ import annotations

from typing import Any

import pytest

from lst.errors import ConfigError
from sweeps.measure import Measurements
from sweeps.plan import plan_with
from sweeps.study import StudyConfig, study_to_dict

VARIANTS: dict[str, Any] = {
    "lst_static:size6": {"patching": {"patch_size": 6}},
    "lst_static:mean": {"model": {"pooling": "mean"}},
}


@pytest.fixture(scope="module")
def study(small_study: dict[str, Any]) -> dict[str, Any]:
    arms = ["lst_static:mean", "baseline", "lst_static:size6", "lst_static"]
    rules = small_study["admission"] | {"max_match_gap": 0.05}
    few = {"arms": arms, "arm_sizes": {}, "sizes": ["tiny"], "budgets": [2e9], "admission": rules}
    return small_study | few | {"variants": VARIANTS}


def test_a_variant_is_the_arm_with_its_options(study: dict[str, Any], measure: Measurements) -> None:
    planned = plan_with(StudyConfig.from_dict(study), measure)
    assert [row.arm for row in planned.rows] == ["baseline", "lst_static", "lst_static:mean", "lst_static:size6"]
    assert len({row.run_id for row in planned.rows}) == 4
    by_arm = {row.arm: row for row in planned.rows}
    configs = {arm: planned.run_configs[row.run_id] for arm, row in by_arm.items()}
    assert configs["lst_static:size6"].patching.patch_size == 6
    assert configs["lst_static:mean"].model.pooling == "mean"
    assert {config.model.arm.value for config in configs.values()} == {"baseline", "lst_static"}
    assert by_arm["lst_static:size6"].patch_size == 6


def test_variants_beside_it_leave_an_arms_ids_alone(study: dict[str, Any], measure: Measurements) -> None:
    alone = plan_with(StudyConfig.from_dict(study | {"arms": ["baseline", "lst_static"], "variants": {}}), measure)
    together = plan_with(StudyConfig.from_dict(study), measure)
    assert [row.run_id for row in alone.rows] == [row.run_id for row in together.rows if ":" not in row.arm]
    as_study = plan_with(
        StudyConfig.from_dict(study | {"arms": ["lst_static"], "variants": {}, "patching": {"patch_size": 6}}), measure
    )
    assert as_study.rows[0].run_id == next(row.run_id for row in together.rows if row.arm == "lst_static:size6")


def test_a_variant_is_matched_to_the_reference_that_it_names(study: dict[str, Any], measure: Measurements) -> None:
    variants = {
        "baseline:more": {"mixture": {"speech_per_text_words": 1.0}, "reference": "baseline:more"},
        "lst_static:more": {"mixture": {"speech_per_text_words": 1.0}, "reference": "baseline:more"},
    }
    arms = ["baseline", "lst_static", *variants]
    changed = study | {"arms": arms, "variants": variants, "matching": "data", "budgets": [1e10], "seq_len_units": 64}
    rows = {row.arm: row for row in plan_with(StudyConfig.from_dict(changed), measure).rows}
    assert rows["lst_static"].match_group == rows["baseline"].match_group
    assert (
        rows["lst_static:more"].match_group
        == rows["baseline:more"].match_group
        == f"{rows['baseline'].match_group} with baseline:more"
    )
    for name in ("", ":more"):
        assert rows[f"lst_static{name}"].tokens == pytest.approx(rows[f"baseline{name}"].tokens, rel=0.005)
    assert rows["baseline:more"].speech_epochs > 1.2 * rows["baseline"].speech_epochs


def test_variants_of_the_network_are_counted_apart(study: dict[str, Any], measure: Measurements) -> None:
    """Pairs of the local modules differ where they run on speech alone, though all else of the sequences is the same."""
    variants = {"lst_static:speech": {"model": {"local_text": False}}}
    together = plan_with(StudyConfig.from_dict(study | {"arms": ["lst_static", *variants], "variants": variants}), measure)
    alone = plan_with(StudyConfig.from_dict(study | {"arms": list(variants), "variants": variants}), measure)
    assert together.rows[1] == alone.rows[0]
    assert together.rows[1].flops_per_step < together.rows[0].flops_per_step


def test_a_study_with_variants_reads_back(study: dict[str, Any]) -> None:
    config = StudyConfig.from_dict(study)
    assert StudyConfig.from_dict(study_to_dict(config)) == config


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"arms": ["baseline", "lst_static:size7"]}, "did you mean 'lst_static:size6'"),
        ({"variants": {"size6": {}}}, "a variant is named ARM:NAME"),
        ({"variants": {"lst_statc:x": {}}}, "did you mean 'lst_static'"),
        ({"variants": {"lst_static:x": {"patchin": {}}}}, "did you mean 'patching'"),
        ({"variants": {"lst_static:x": {"patching": 3}}}, "must be a mapping"),
        ({"variants": {"lst_static:x": []}}, "is no mapping"),
        (
            {"variants": VARIANTS | {"lst_static:size6": {"patching": {"patch_siz": 3}}}},
            "variants.lst_static:size6.patching.patch_siz",
        ),
        ({"variants": VARIANTS | {"lst_static:size6": {"reference": "lst_mixed"}}, "matching": "unit"}, "is not among arms"),
        ({"variants": VARIANTS | {"lst_static:mean": {"reference": "lst_static"}}, "matching": "unit"}, "give it no reference"),
    ],
)
def test_a_wrong_variant_is_one_sentence(study: dict[str, Any], changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        StudyConfig.from_dict(study | changes)
    assert says in str(error.value)


def test_variants_of_a_conditional_arm_are_conditional() -> None:
    from analysis.study import is_conditional as in_analysis
    from reports.study import is_conditional as in_reports

    names = ("lst_aligned", "lst_aligned:merged", "lst_static:lst_aligned", "baseline")
    assert [in_analysis(name) for name in names] == [in_reports(name) for name in names] == [True, True, False, False]
