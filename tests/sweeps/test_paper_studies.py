"""The paper's experiments by name: its token accounting from the configuration alone, and its contradictions unaided."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest

from sweeps.accounting import BINARY_BILLION, accounts
from sweeps.cli import main
from sweeps.columns import PlanRow
from sweeps.contradictions import contradictions
from sweeps.plan import Plan, plan
from sweeps.show import assumptions_touched
from sweeps.stated_file import SPEECH_TOKENS_PER_HOUR, read_stated
from sweeps.study import load_study, study_names
from sweeps.text import WIDTH

NAMES = [name for name in study_names() if name.startswith("lst_")]
SENTENCES = {
    1: "524,288 x 200,000 = 0.105 trillion",
    2: "500,000 steps of 524,288",
    3: "lst_static table7_1b saves 5.5% at equal data (by units 19.3%) and spends +17.1% at equal units",
    4: "lst_curriculum 109.0 + 217.9 B",
    5: "baseline table7_1b 4.5 (passes over the corpus 13.6), lst_static table7_1b 5.6",
    6: "4.1 gives 200,000 hours of speech, Table 1 sums to 164,783.",
}


@cache
def planned(name: str) -> Plan:
    return plan(name)


def rows(name: str) -> dict[str, PlanRow]:
    return {row.arm: row for row in planned(name).rows if row.kind == "pretrain"}


def billions(row: PlanRow) -> tuple[int, int]:
    return round(row.interleaved_tokens / 1e9), round(row.text_only_tokens / 1e9)


def test_every_experiment_of_the_paper_has_a_study() -> None:
    wanted = "alignment_noise figure4a figure4b figure6 table10 table12 table3 table4 table5_asr table5_tts table6 table8 table9"
    assert {f"lst_{name}" for name in wanted.split()} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_is_planned_from_stated_statistics_at_100_columns(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"study={name}", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "unique speech, in B = 2^30 tokens: LibriLight 44,174 h = 3.7;" in text
    assert [row.reason for row in planned(name).rows if row.kind == "pretrain" and not row.admitted] == []


def test_table_3_reproduces_its_tokens() -> None:
    """524,288 x 500,000 units: 262 B; 87 + 175, 95 + 190 and 108 + 217 B."""
    table = rows("lst_table3")
    assert {row.steps for row in table.values()} == {500_000}
    assert {round(row.units / 1e9) for row in table.values()} == {262}
    assert billions(table["baseline"]) == (87, 175)
    assert billions(table["bpe"]) == (95, 190)
    assert billions(table["lst_static"]) == (108, 217)
    assert round(table["lst_static"].tokens / 1e9) == 325
    assert [round(table[arm].speech_epochs, 1) for arm in ("baseline", "lst_static")] == [4.5, 5.6]


def test_the_other_arms_are_counted_from_their_own_statistics_with_the_difference() -> None:
    """Half of a curriculum's sequences are aligned: 2.23 + (0.19 + 0.77 / 4.764) / 2 units per 3 tokens."""
    study = planned("lst_table3")
    found = {line.row.arm: line for line in accounts(study.study, study.rows)}
    aligned = 2.23 + 0.77 / 4.764383561643836
    for arm, units in (("lst_aligned", aligned), ("lst_mixed", (aligned + 2.42) / 2), ("lst_curriculum", (aligned + 2.42) / 2)):
        line = found[arm]
        assert line.row.tokens == pytest.approx(262.144e9 * 3 / units, rel=1e-4)
        assert line.off == pytest.approx((line.row.interleaved_tokens / 1e9 - 108, line.row.text_only_tokens / 1e9 - 217))
        assert min(gap for gap in line.off if gap is not None) > 0.5


def test_table_4_saves_what_the_paper_prints() -> None:
    study = planned("lst_table4")
    saved = {line.row.arm: line.units_saved for line in accounts(study.study, study.rows)}
    assert saved["baseline"] is None
    assert saved["bpe"] == pytest.approx(0.082, abs=5e-4)
    assert saved["lst_static"] == pytest.approx(0.193, abs=5e-4)
    assert saved["lst_curriculum"] == pytest.approx(0.197, abs=2e-3)
    table = rows("lst_table4")
    assert table["lst_static"].tokens == pytest.approx(rows("lst_table3")["lst_static"].tokens, rel=1e-5)
    assert billions(table["lst_static"]) == (108, 217)


@pytest.mark.parametrize("name", ["lst_table6", "lst_table8", "lst_table9", "lst_figure4b"])
def test_the_fixed_budget_is_104_9_billion_units(name: str) -> None:
    for row in planned(name).rows:
        assert round(row.units / 1e9, 1) == 104.9
        assert row.steps * row.units_per_step == row.units == 104_857_600_000


def test_7b_has_its_batch_its_steps_and_69_9_billion_text_tokens() -> None:
    table = rows("lst_figure4b")
    assert {(row.batch_units, row.steps) for row in table.values()} == {(4_194_304, 25_000)}
    assert round(table["baseline"].text_only_tokens / 1e9, 1) == 69.9
    assert rows("lst_table9")["lst_static"].text_only_tokens / 1e9 == pytest.approx(86.7, abs=0.05)


def test_epochs_at_the_fixed_budget() -> None:
    table = rows("lst_table9")
    assert [round(table[arm].speech_epochs, 1) for arm in ("baseline", "lst_static")] == [1.8, 2.2]


def test_table_1_counts_in_two_to_the_thirty() -> None:
    hours = read_stated("paper").speech_hours
    assert [round(h * SPEECH_TOKENS_PER_HOUR / BINARY_BILLION, 1) for h in hours.values()] == [3.7, 1.2, 4.2, 4.6]
    assert sum(hours.values()) == 164_783
    assert read_stated("paper").unique_speech_tokens == pytest.approx(14.83e9, rel=1e-4)


def test_compute_optimal_runs_read_20_text_and_10_interleaved_tokens_a_parameter() -> None:
    found = [row for row in planned("lst_figure4a").rows if row.arm == "baseline"]
    assert [row.size for row in found] == ["420M", "630M", "810M", "1.1B", "1.4B", "1.8B"]
    for row in found:
        assert row.text_only_tokens / row.num_params == pytest.approx(20, rel=1e-3)
        assert row.interleaved_tokens / row.num_params == pytest.approx(10, rel=1e-3)


def test_three_seeds_of_table_9_and_shared_runs_between_tables() -> None:
    table = planned("lst_table9").rows
    for arm in ("baseline", "lst_static", "lst_curriculum"):
        assert [row.seed for row in table if row.arm == arm] == [0, 1, 2]
    assert {row.run_id for row in planned("lst_table8").rows} < {row.run_id for row in table}


def test_variants_of_table_6_and_figure_6_are_runs_of_their_own() -> None:
    for name, count in (("lst_table6", 7), ("lst_figure6", 6), ("lst_table10", 4)):
        table = planned(name).rows
        assert len({row.run_id for row in table}) == len({row.arm for row in table}) == len(table) == count
    lengths = {row.arm: row.mean_patch_length for row in planned("lst_table6").rows}
    assert lengths["lst_static:size9"] == pytest.approx(9)
    assert lengths["lst_aligned:merged"] == pytest.approx(9.4)
    groups = {row.arm: row.match_group for row in planned("lst_figure6").rows}
    for ratio in (":1to3", ":1to1", ""):
        assert groups[f"lst_curriculum{ratio}"] == groups[f"baseline{ratio}"]
    assert len(set(groups.values())) == 3


def test_alignment_noise_is_a_variant_of_the_aligned_arm_alone() -> None:
    study = planned("lst_alignment_noise")
    noise = {row.arm: study.run_configs[row.run_id].patching.boundary_noise_ms for row in study.rows}
    assert noise == {"lst_aligned": (0, 0), "lst_aligned:noise20": (20, 20), "lst_aligned:noise40": (40, 40)}
    assert len({row.run_id for row in study.rows}) == 3
    assert {row.arm: row.run_id for row in study.rows}["lst_aligned"] == rows("lst_table6")["lst_aligned"].run_id
    assert "alignment noise" in {a.name for a in assumptions_touched(study.study)}
    assert "alignment noise" not in {a.name for a in assumptions_touched(planned("lst_table6").study)}


def test_figure_5_looks_into_the_runs_of_other_tables() -> None:
    found = {row.arm: row.run_id for row in planned("lst_figure5").rows}
    table6, table9 = rows("lst_table6"), {row.arm: row for row in planned("lst_table9").rows if row.seed == 0}
    assert found == {
        "lst_aligned": table6["lst_aligned"].run_id,
        "lst_static": table9["lst_static"].run_id,
        "lst_curriculum": table9["lst_curriculum"].run_id,
    }


def test_speech_to_text_ratios_change_the_speech_and_not_the_mixture() -> None:
    table = rows("lst_figure6")
    epochs = [table[arm].speech_epochs for arm in ("baseline:1to3", "baseline", "baseline:1to1")]
    assert epochs == sorted(epochs)
    # one text word in two is spoken: 9.4 speech tokens for each 9.4 / 2 x 0.23 / 0.77 of text
    even = table["baseline:1to1"]
    assert even.speech_tokens / even.interleaved_tokens == pytest.approx(1.54 / (1.54 + 0.23), rel=1e-4)
    assert even.interleaved_tokens == pytest.approx(table["baseline"].interleaved_tokens, rel=1e-4)


@pytest.mark.parametrize(("name", "steps"), [("lst_table5_asr", [1000, 2000, 4000]), ("lst_table5_tts", [20000])])
def test_fine_tuning_is_a_run_after_its_parent(name: str, steps: list[int]) -> None:
    found = planned(name)
    parents = {row.run_id: row for row in found.rows if row.kind == "pretrain"}
    tuned = [row for row in found.rows if row.kind == "finetune"]
    assert len(tuned) == len(parents) * len(steps)
    for row in tuned:
        assert row.arm == parents[row.parent_run_id].arm
        assert row.steps in steps
        assert row.units == row.steps * 4 * 4096
        assert row.admitted
        assert found.run_configs[row.run_id].train.init_from == f"run:{row.parent_run_id}"
    by_arm = {row.arm: row for row in tuned if row.steps == steps[-1]}
    lst, base = by_arm["lst_curriculum"], by_arm["baseline"]
    speech_units = lst.speech_tokens / lst.mean_patch_length
    assert speech_units / lst.speech_tokens == pytest.approx(0.25, abs=0.005)  # the paper's 0.25x units of speech
    assert base.speech_tokens / base.text_tokens == pytest.approx(lst.speech_tokens / lst.text_tokens)
    assert found.totals.admitted == len(found.rows)


def test_an_evaluation_without_its_items_names_its_parent_and_costs_nothing_that_is_known() -> None:
    found = planned("lst_table12").rows
    parents = {row.run_id: row.steps for row in found if row.kind == "pretrain"}
    evaluated = [row for row in found if row.kind == "eval"]
    assert {row.parent_run_id: row.steps for row in evaluated} == parents  # the step whose weights are evaluated
    assert all(row.planned_flops == row.planned_spent_flops == row.planned_spent_steps == row.gap == 0 for row in evaluated)
    assert len({row.run_id for row in found}) == len(found)


def test_what_the_paper_leaves_open_of_a_study_is_among_its_assumptions() -> None:
    names = {name: {a.name for a in assumptions_touched(planned(name).study)} for name in ("lst_table3", "lst_table5_tts")}
    assert {"document lengths", "mean patch lengths"} <= names["lst_table3"]
    assert names["lst_table5_tts"] - names["lst_table3"] == {"fine-tuning"}
    assert "document lengths" not in {a.name for a in assumptions_touched(load_study("demo"))}


@pytest.mark.parametrize(("gap", "sentence"), SENTENCES.items())
def test_table_3_prints_the_papers_contradictions_unaided(gap: int, sentence: str) -> None:
    texts = {found.gap: found.text for found in contradictions(planned("lst_table3"))}
    assert sentence in texts[gap]


def gaps_of(name: str, **changes: Any) -> set[int]:
    study = load_study(name)
    return {found.gap for found in contradictions(plan({**json.loads(json.dumps(_plain(study))), **changes}))}


def _plain(study: Any) -> dict[str, Any]:
    from sweeps.study import study_to_dict

    return study_to_dict(study)


def test_a_contradiction_is_printed_where_it_touches_a_study_only() -> None:
    found = {name: {f.gap for f in contradictions(planned(name))} for name in NAMES}
    assert found["lst_table3"] == {1, 2, 3, 4, 5, 6, 7, 9, 10}
    assert 2 not in found["lst_table8"]  # 200,000 steps
    assert 1 not in found["lst_figure4b"]  # not the 1B model
    assert 4 not in found["lst_table9"]
    assert all({6, 10} <= gaps for gaps in found.values())
    texts = {name: " ".join(f.text for f in contradictions(planned(name))) for name in NAMES}
    assert "Figure 6 has 49.7" in texts["lst_figure6"]
    assert "Figure 6 has 49.7" in texts["lst_table8"]
    assert "Figure 6 has 49.7" not in texts["lst_table3"]
    assert "share tokens or units" in texts["lst_figure4a"]
    assert "baseline 69.9, lst_curriculum 87.2" in texts["lst_figure4b"]


def test_numbers_of_contradictions_follow_the_plan() -> None:
    """Half the steps are half the units, and no longer more than A.3's steps."""
    assert 2 not in gaps_of("lst_table3", units=[524288.0 * 200_000])
    changed = plan({**_plain(load_study("lst_table3")), "model": {"local_text": False}})
    text = next(found.text for found in contradictions(changed) if found.gap == 3)
    assert "lst_static table7_1b saves 15.2% at equal data (by units 19.3%) and spends +5.1% at equal units" in text


def test_the_json_holds_the_contradictions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study=lst_table8", "--dry-run", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert {found["gap"] for found in content["contradictions"]} >= {1, 3, 6}
