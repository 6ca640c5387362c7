"""Matched rows agree in what is matched, and what the planner counted is what the stream holds."""

from __future__ import annotations

from typing import Any

import pytest

from lst.data.shards import open_dataset
from lst.data.stream import Stream
from lst.errors import PlanError
from lst.flops import SequenceCounts, training_flops
from sweeps.allocate import Quantity, Target, allocate
from sweeps.columns import PlanRow
from sweeps.measure import Measurements
from sweeps.plan import Plan, plan_with
from sweeps.plan import plan as plan_study
from sweeps.study import StudyConfig


def planned(study: dict[str, Any], measure: Measurements, **changes: Any) -> Plan:
    return plan_with(StudyConfig.from_dict({**study, **changes}), measure)


def pairs(plan: Plan) -> list[tuple[PlanRow, PlanRow]]:
    references = {row.match_group: row for row in plan.rows if row.arm == "baseline"}
    return [(row, references[row.match_group]) for row in plan.rows if row.arm != "baseline"]


def test_flop_matched_rows_land_on_the_budget(small_plan: Plan) -> None:
    assert len(small_plan.rows) == 10
    for row in small_plan.rows:
        assert row.planned_flops == pytest.approx(row.flops_budget, rel=0.005)


def test_planned_flops_are_those_of_the_sequences_that_the_stream_makes(small_plan: Plan) -> None:
    """Every batch of a baseline, a static and a curriculum run, added up as the trainer adds them."""
    dataset = open_dataset(small_plan.study.data)
    for row in small_plan.rows[:3]:
        config = small_plan.run_configs[row.run_id]
        stream = Stream(dataset, config)
        spent = SequenceCounts()
        for step in range(row.steps):
            spent += stream.batch(step).counts
        assert training_flops(config, spent).total == pytest.approx(row.planned_flops, rel=1e-9)
        assert (spent.tokens, spent.units, spent.speech_tokens) == (row.tokens, row.units, row.speech_tokens)


def test_the_nearest_whole_number_of_sequences_is_taken(small_plan: Plan) -> None:
    """Off the budget by at most the half of one of the run's longer sequences."""
    for row in small_plan.rows:
        sequences = row.batch_sequences * (row.steps - 1) + (row.final_batch_sequences or row.batch_sequences)
        assert abs(row.planned_flops - row.flops_budget) <= 1.5 * row.planned_flops / sequences


def test_unit_matched_rows_share_steps_units_and_batches(small_study: dict[str, Any], measure: Measurements) -> None:
    plan = planned(small_study, measure, matching="unit")
    assert pairs(plan)
    for row, reference in pairs(plan):
        for name in ("steps", "batch_sequences", "final_batch_sequences", "units", "units_per_step", "flops_budget"):
            assert getattr(row, name) == getattr(reference, name)
        assert reference.planned_flops == pytest.approx(reference.flops_budget, rel=0.005)
        assert row.planned_flops != pytest.approx(reference.planned_flops, rel=0.005)
        assert row.tokens > reference.tokens


def test_data_matched_rows_share_tokens(small_study: dict[str, Any], measure: Measurements) -> None:
    plan = planned(small_study, measure, matching="data", sizes=["tiny"], budgets=[1e10], seq_len_units=64)
    assert len(pairs(plan)) == 2
    for row, reference in pairs(plan):
        assert row.tokens == pytest.approx(reference.tokens, rel=0.005)
        assert row.speech_tokens == pytest.approx(reference.speech_tokens, rel=0.1)
        assert row.units < reference.units


def test_data_matching_warns_where_a_modality_differs(small_study: dict[str, Any], measure: Measurements) -> None:
    """In sequences of 16 units a patched arm gets further into a document, and so to more speech."""
    plan = planned(small_study, measure, matching="data", budgets=[2e9], arms=["baseline", "lst_static"])
    gaps = [row.speech_tokens / reference.speech_tokens - 1 for row, reference in pairs(plan)]
    assert max(gaps) > 0.05
    assert any("speech tokens differ by up to" in warning for warning in plan.warnings)


@pytest.mark.parametrize("axis", ["tokens", "units"])
def test_a_length_in_tokens_or_units_is_met_by_the_reference(
    axis: str, small_study: dict[str, Any], measure: Measurements
) -> None:
    plan = planned(small_study, measure, budgets=[], **{axis: [8000]})
    for row, reference in pairs(plan):
        assert getattr(reference, axis) == pytest.approx(8000, rel=0.005)
        assert row.planned_flops == pytest.approx(reference.planned_flops, rel=0.005)
        assert row.flops_budget == reference.planned_flops


def test_tokens_per_param_scale_with_the_reference_size(small_study: dict[str, Any], measure: Measurements) -> None:
    plan = planned(small_study, measure, budgets=[], tokens_per_param=[0.5], arms=["baseline"])
    for row in plan.rows:
        assert row.tokens_per_param == pytest.approx(0.5, rel=0.005)
    assert plan.rows[0].tokens < plan.rows[1].tokens


def test_context_match_tokens_gives_patched_arms_shorter_sequences(small_study: dict[str, Any], measure: Measurements) -> None:
    plan = planned(small_study, measure, context_match="tokens", seq_len_units=64)
    for row, reference in pairs(plan):
        assert row.seq_len_units < reference.seq_len_units == 64
        tokens = [r.tokens / r.units * r.seq_len_units for r in (row, reference)]
        if row.admitted:  # a refused one has some forty sequences, too few for the mixture to hold
            assert tokens[0] == pytest.approx(tokens[1], rel=0.03)
    assert any(row.admitted for row, _ in pairs(plan))


def test_a_run_longer_than_is_counted_is_matched_in_the_mean(small_plan: Plan, measure: Measurements) -> None:
    config = next(c for c in small_plan.run_configs.values() if c.model.arm == "lst_static")
    long = allocate(config, measure, batch_sequences=64, target=Target(quantity=Quantity.FLOPS, value=1e15))
    assert long.sequences > 100 * measure.count_limit(config)
    assert long.flops == pytest.approx(1e15, rel=1e-5)


def test_a_sequence_too_coarse_for_the_budget_is_refused_with_the_reason(
    small_study: dict[str, Any], measure: Measurements
) -> None:
    """Half a sequence is over 0.5% of the budget, and few steps remain: the rows stay in the plan, refused."""
    plan = planned(small_study, measure, budgets=[1e9], seq_len_units=256)
    assert plan.totals.refused == len(plan.rows) == 5
    assert plan.run_configs == {}
    assert any("off by" in row.reason for row in plan.rows)
    assert all("steps are fewer" in row.reason for row in plan.rows)
    assert plan.warnings[0].startswith("5 of 5 rows are refused")


def test_a_budget_under_half_a_sequence_is_an_error(small_study: dict[str, Any], measure: Measurements) -> None:
    with pytest.raises(PlanError, match="less than half of one sequence"):
        planned(small_study, measure, budgets=[10.0])


def test_budgets_that_round_to_one_run_are_an_error(small_study: dict[str, Any], measure: Measurements) -> None:
    with pytest.raises(PlanError, match="round to the same run"):
        planned(small_study, measure, budgets=[2e9, 2.00001e9], arms=["baseline"])


def test_what_a_row_gets_does_not_depend_on_the_rest_of_the_plan(
    small_study: dict[str, Any], toy_dataset: Any, small_plan: Plan
) -> None:
    """Planned alone, with nothing counted before, the rows of one budget keep their ids."""
    alone = planned(small_study, Measurements(open_dataset(toy_dataset)), budgets=[2e9])
    assert [row.run_id for row in alone.rows] == [row.run_id for row in small_plan.rows if row.flops_budget == 2e9]


def test_price_threads_and_names_leave_ids_alone(small_study: dict[str, Any], measure: Measurements, small_plan: Plan) -> None:
    other = planned(small_study, measure, name="other", price={"cpu_flops_per_second": 1e9}, execution={"threads": 2})
    assert [row.run_id for row in other.rows] == [row.run_id for row in small_plan.rows]
    assert other.totals.process_minutes > small_plan.totals.process_minutes


def test_patch_size_changes_the_ids_of_patched_arms_only(
    small_study: dict[str, Any], measure: Measurements, small_plan: Plan
) -> None:
    other = planned(small_study, measure, patching={"patch_size": 3})
    same = {row.arm for row, old in zip(other.rows, small_plan.rows, strict=True) if row.run_id == old.run_id}
    assert same == {"baseline"}


def test_options_of_aligned_patches_change_the_ids_of_the_arms_that_have_them(
    small_study: dict[str, Any], measure: Measurements
) -> None:
    study = small_study | {"arms": ["lst_static", "lst_curriculum"], "arm_sizes": {}, "sizes": ["tiny"], "budgets": [2e9]}
    before = {row.arm: row.run_id for row in planned(study, measure).rows}
    changed = {}
    for key, value in (("aligned_unit", "bpe"), ("silence", "merged"), ("draw", "step"), ("merge_side", "next")):
        plan = planned(study, measure, patching={key: value})
        changed[key] = [row.arm for row in plan.rows if row.run_id != before[row.arm]]
    assert changed.pop("merge_side") == []  # silence is separate: there is no side
    assert list(changed.values()) == [["lst_curriculum"]] * 3


@pytest.mark.parametrize("arm", ["lst_mixed", "lst_curriculum"])
def test_a_patching_drawn_by_the_step_is_planned_as_it_is_trained(
    small_study: dict[str, Any], measure: Measurements, arm: str
) -> None:
    options = {"draw": "step", "aligned_unit": "bpe", "silence": "merged"}
    plan = planned(small_study, measure, arms=["baseline", arm], arm_sizes={}, sizes=["tiny"], patching=options)
    dataset = open_dataset(plan.study.data)
    row = next(row for row in plan.rows if row.arm == arm)
    config = plan.run_configs[row.run_id]
    spent = SequenceCounts()
    for step in range(row.steps):
        spent += Stream(dataset, config).batch(step).counts
    assert training_flops(config, spent).total == pytest.approx(row.planned_flops, rel=1e-9)
    assert row.mean_patch_length == pytest.approx(spent.mean_patch_length)


ALL_ARMS = ["baseline", "bpe", "lst_static", "lst_aligned", "lst_mixed", "lst_curriculum"]


@pytest.mark.parametrize("matching", ["flop", "unit", "data"])
def test_every_arm_is_matched_and_planned_as_it_is_trained(
    small_study: dict[str, Any], measure: Measurements, matching: str
) -> None:
    """Speech in pieces too: FLOPs and units of positions, tokens by content."""
    changes = {"arm_sizes": {}, "sizes": ["tiny"], "budgets": [4e9], "model": {"speech_bpe_vocab": 160}}
    plan = planned(small_study, measure, arms=ALL_ARMS, matching=matching, **changes)
    assert [row.arm for row in plan.rows] == ALL_ARMS
    rows = {row.arm: row for row in plan.rows}
    column = {"flop": "planned_flops", "unit": "units", "data": "tokens"}[matching]
    for row in plan.rows:
        assert getattr(row, column) == pytest.approx(getattr(rows["baseline"], column), rel=0.005)
        assert row.interleaved_tokens / row.tokens == pytest.approx(1 / 3, abs=0.03)
    bpe, baseline = rows["bpe"], rows["baseline"]
    assert bpe.num_params - baseline.num_params == 2 * 32 * (160 - 100)  # rows of embedding and head
    assert bpe.num_non_embedding_params == baseline.num_non_embedding_params
    assert bpe.patch_size == baseline.patch_size == 1 < bpe.mean_patch_length
    assert bpe.units < bpe.tokens
    config = plan.run_configs[bpe.run_id]
    stream, spent = Stream(open_dataset(plan.study.data), config), SequenceCounts()
    for step in range(bpe.steps):
        spent += stream.batch(step).counts
    assert training_flops(config, spent).total == pytest.approx(bpe.planned_flops, rel=1e-9)
    assert (spent.tokens, spent.units, spent.speech_tokens) == (bpe.tokens, bpe.units, bpe.speech_tokens)
    assert bpe.speech_epochs == pytest.approx(spent.speech_tokens / measure.unique_speech_tokens)


@pytest.mark.parametrize("matching", ["flop", "unit", "data"])
def test_rows_over_a_tenth_of_a_percent_off_say_so_and_no_others(
    small_study: dict[str, Any], measure: Measurements, matching: str
) -> None:
    """Short and long runs of each arm: of its reference, and of its target, which for the reference is the budget."""
    changes: dict[str, Any] = {"arm_sizes": {}, "sizes": ["tiny"], "budgets": [1e9, 1.6e10], "arms": ALL_ARMS[:1] + ALL_ARMS[2:]}
    plan = planned(small_study, measure, matching=matching, **changes)
    column = {"flop": "planned_flops", "unit": "units", "data": "tokens"}[matching]
    references = {row.match_group: row for row in plan.rows if row.arm == "baseline"}
    told = []
    for row in plan.rows:
        reference = references[row.match_group]
        budget = matching == "flop" or row is reference
        gaps = {
            "the target": row.gap if budget else getattr(row, column) / getattr(reference, column) - 1,
            "the reference arm's": getattr(row, column) / getattr(reference, column) - 1,
        }
        for what, gap in gaps.items():
            assert (f"{gap:+.2%} from {what}" in row.reason) == (abs(gap) > 0.001 and row.admitted), (row.reason, what, gap)
        told += [row] * (row.admitted and max(map(abs, gaps.values())) > 0.001)
    assert len(told) < len(plan.rows)
    warned = [warning for warning in plan.warnings if "off in what is matched" in warning]
    assert len(warned) == bool(told)
    assert not told or warned[0].startswith(f"{len(told)} of {len(plan.rows)} rows are more than 0.10% off")
    assert bool(told) == (matching != "unit")


def test_long_runs_are_matched_within_a_tenth_of_a_percent() -> None:
    for matching, column in (("flop", "planned_flops"), ("unit", "units"), ("data", "tokens")):
        study = {"name": "long", "data": "paper", "sizes": ["420M"], "arms": ALL_ARMS, "budgets": [1e19], "matching": matching}
        rows = plan_study(study | {"recipe": {"name": "step_law"}}).rows
        values = [getattr(row, column) for row in rows]
        assert max(values) / min(values) - 1 < 1e-3
        assert not any("from the" in row.reason for row in rows)


def test_speech_pieces_change_the_ids_of_bpe_only(small_study: dict[str, Any], measure: Measurements) -> None:
    plans = [
        planned(small_study, measure, arms=["baseline", "bpe"], sizes=["tiny"], arm_sizes={}, model={"speech_bpe_vocab": n})
        for n in (150, 160)
    ]
    ids = [{(row.arm, row.match_group): row.run_id for row in plan.rows} for plan in plans]
    assert {arm for arm, group in ids[0] if ids[0][arm, group] == ids[1][arm, group]} == {"baseline"}


def test_rows_are_ordered_by_budget_size_arm_seed(small_study: dict[str, Any], measure: Measurements) -> None:
    plan = planned(small_study, measure, budgets=[4e9, 2e9], seeds=[1, 0], sizes=["w48", "tiny"], arms=["lst_static", "baseline"])
    sizes, arms = ["tiny", "w48"], ["baseline", "lst_static"]
    keys = [(row.flops_budget, sizes.index(row.size), arms.index(row.arm), row.seed) for row in plan.rows]
    assert keys == sorted(keys)
    assert len(set(keys)) == 16


def test_epochs_and_passes_follow_from_the_unique_tokens(small_plan: Plan, measure: Measurements) -> None:
    for row in small_plan.rows:
        assert row.speech_epochs == pytest.approx(row.speech_tokens / measure.unique_speech_tokens)
        assert row.corpus_passes == pytest.approx(3 * row.speech_epochs)  # a third of the words stays speech


def test_recipe_hands_its_schedule_to_every_run(small_study: dict[str, Any], measure: Measurements) -> None:
    recipe = {**small_study.get("recipe", {}), "schedule": "wsd", "decay_share": 0.3, "decay_shape": "linear"}
    cosine, wsd = planned(small_study, measure), planned(small_study, measure, recipe=recipe)
    assert [row.planned_flops for row in wsd.rows] == [row.planned_flops for row in cosine.rows]
    assert not {row.run_id for row in wsd.rows} & {row.run_id for row in cosine.rows}
    for config in wsd.run_configs.values():
        assert (config.optim.schedule, config.optim.decay_share, config.optim.decay_shape) == ("wsd", 0.3, "linear")
