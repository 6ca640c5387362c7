"""Fine-tuning rows: what they start from, what they read, what they cost, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lst.config import Format, Patching
from lst.data.stream import Stream
from lst.errors import ConfigError
from lst.flops import training_flops
from sweeps.measure import Measurements
from sweeps.plan import Plan, plan, plan_with, read_plan
from sweeps.reprice import reprice
from sweeps.show import matching_text
from sweeps.study import StudyConfig

ARMS = ["baseline", "lst_curriculum"]


def tuned_plan(measure: Measurements, study: dict[str, Any], arms: list[str] | None = None, **after: Any) -> Plan:
    options = {"kind": "finetune", "task": "asr", "steps": [30], "batch_sequences": 4} | after
    changes = {"budgets": [2e9], "sizes": ["tiny"], "arms": arms or ["baseline"], "after": options, "arm_sizes": {}}
    return plan_with(StudyConfig.from_dict(study | changes), measure)


@pytest.mark.parametrize(("task", "first"), [("asr", "speech"), ("tts", "text")])
def test_fine_tuning_reads_pairs_of_speech_and_text_from_its_parents_weights(measure, small_study, task, first) -> None:
    arms = ARMS if task == "asr" else ARMS[:1]
    found = tuned_plan(measure, small_study, arms, task=task)
    rows = {row.run_id: row for row in found.rows}
    tuned = [row for row in found.rows if row.kind == "finetune"]
    assert [row.arm for row in tuned] == arms
    for row in tuned:
        config, parent = found.run_configs[row.run_id], found.run_configs[row.parent_run_id]
        assert config.train.init_from == f"run:{rows[row.parent_run_id].run_id}"
        assert config.model == parent.model
        assert config.patching.evaluation_kind is parent.patching.evaluation_kind
        assert config.optim.lr == pytest.approx(parent.optim.lr / 10)
        stream = Stream(measure.dataset, config)
        patched, formats = zip(*(stream.outline(index) for index in range(40)), strict=True)
        assert set(formats) == {Format(task)}
        assert set(patched) == {parent.patching.evaluation_kind}
        row_of = stream.row(0)
        markers = [i for i in row_of.ids.tolist() if i in (stream.vocabulary.text_marker, stream.vocabulary.speech_marker)]
        assert markers[0] == (stream.vocabulary.speech_marker if first == "speech" else stream.vocabulary.text_marker)


def test_fine_tunings_flops_are_those_of_the_very_sequences(measure, small_study) -> None:
    found = tuned_plan(measure, small_study, ["baseline", "lst_curriculum"])
    row = next(row for row in found.rows if row.kind == "finetune" and row.arm == "lst_curriculum")
    config = found.run_configs[row.run_id]
    stream = Stream(measure.dataset, config)
    counts = [stream.row(index).counts(stream.local) for index in range(30 * 4)]
    total = counts[0]
    for other in counts[1:]:
        total = total + other
    assert row.planned_flops == training_flops(config, total).total
    assert row.tokens == total.tokens
    assert row.speech_epochs == row.corpus_passes == total.speech_tokens / measure.unique_speech_tokens


def test_equal_steps_of_every_arm_belong_together(measure, small_study) -> None:
    found = tuned_plan(measure, small_study, ARMS, steps=[30, 60])
    groups = {(row.match_group, row.steps) for row in found.rows if row.kind == "finetune"}
    assert len(groups) == 2
    tuned = [row for row in found.rows if row.kind == "finetune"]
    assert {row.matching for row in tuned} == {"unit"}  # the parents are matched in FLOPs
    assert len({(row.steps, row.units) for row in tuned}) == 2
    shown = matching_text(found.study, found.rows).split("\n\n")[1]
    ratios = {row.steps: row.planned_flops for row in tuned if row.arm == "lst_curriculum"}
    plain = {row.steps: row.planned_flops for row in tuned if row.arm == "baseline"}
    assert ratios[30] / plain[30] > 1.1
    assert f"{min(ratios[s] / plain[s] for s in ratios):.3f}" in shown
    assert found.totals.planned_flops == pytest.approx(sum(row.planned_flops for row in found.rows))


def test_a_branch_is_a_parent_like_any_run() -> None:
    """The branch stands under the id of the run that it equals: by that its weights are found (lst.parent_run)."""
    study = {
        "name": "tuned", "data": "paper", "units": [1e11, 5e10], "matching": "unit", "sizes": ["420M"], "arms": ["lst_static"],
        "reference_arm": "lst_static", "recipe": {"name": "paper", "schedule": "wsd", "share_trunk": True},
        "after": {"kind": "finetune", "task": "asr", "steps": [300], "batch_sequences": 4},
    }  # fmt: skip
    found = plan(study)
    kinds = {row.run_id: row.kind for row in found.rows}
    assert [kinds[row.parent_run_id] for row in found.rows if row.kind == "finetune"] == ["branch", "pretrain"]
    for row in found.rows:
        if row.kind == "finetune":
            assert found.run_configs[row.run_id].train.branch_steps == ()


def test_other_data_is_read_where_it_is_named(measure, small_study, toy_dataset: Path) -> None:
    found = tuned_plan(measure, small_study, data=str(toy_dataset))
    row = next(row for row in found.rows if row.kind == "finetune")
    assert found.run_configs[row.run_id].execution.data_path == str(toy_dataset.resolve())


@pytest.mark.parametrize(
    ("after", "message"),
    [
        ({"data": "paper"}, "after.data='paper' and data='.*' must both be prepared data sets"),
        ({"data": "embedded"}, "after.data='embedded' has text_vocab=.*, the study's data has .*; prepare it with the same"),
        ({"warmup_steps": 31}, "after.warmup_steps=31 must lie between 0 and the fewest of after.steps"),
        ({"warmup_steps": -1}, "after.warmup_steps=-1 must lie"),
        ({"steps": []}, "after.kind=finetune needs after.steps"),
        ({"steps": [30, 30]}, r"after.steps=\[30, 30\] has a length twice"),
        ({"kind": ""}, "after.task='asr' has no meaning without after.kind"),
    ],
)
def test_what_cannot_be_is_refused(measure, small_study, after, message) -> None:
    with pytest.raises(ConfigError, match=message):
        tuned_plan(measure, small_study, **after)


def test_too_few_steps_and_a_small_batch_are_refused_with_their_reason(measure, small_study) -> None:
    found = tuned_plan(measure, small_study, steps=[3], batch_sequences=1)
    tuned = [row for row in found.rows if row.kind == "finetune"]
    assert {row.status for row in tuned} == {"refused"}
    assert all("3 steps are fewer than admission.min_steps=20" in row.reason for row in tuned)
    assert all("16 units a batch are under" in row.reason for row in tuned)
    assert not {row.run_id for row in tuned} & set(found.run_configs)


def test_a_stated_plan_prices_fine_tuning_on_as_many_gpus_as_its_batch_has_sequences(tmp_path: Path) -> None:
    found = plan("lst_table5_tts")
    found.write(tmp_path / "study")
    stored = read_plan(tmp_path / "study")
    assert reprice(stored, stored.study.price) == stored.rows
    for row in found.rows:
        if row.kind == "finetune":
            assert row.speech_epochs == row.corpus_passes == 0.0
            assert row.gpus == 4  # of 32: a sequence of the batch for each
            assert found.run_configs[row.run_id].patching.aligned_probability(0.0) == 0.0
            assert found.run_configs[row.run_id].patching.kind in (Patching.TOKEN, Patching.CURRICULUM)
