"""What patching saves in true FLOPs: the table in the docs, and its figures against arithmetic by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lst.config import arm_config
from sweeps.cli import main
from sweeps.savings import OPTIONS, SIZES, Option, Saving, saving
from sweeps.stated import StatedMeasurements
from sweeps.stated_file import read_stated
from sweeps.text import WIDTH
from tests.shown_output import require_shown

DOCUMENT = Path(__file__).parents[2] / "docs" / "planning.md"


@pytest.fixture(scope="module")
def paper() -> StatedMeasurements:
    return StatedMeasurements(read_stated("paper"))


def by_name(name: str) -> Option:
    return next(option for option in OPTIONS if option.name == name)


def test_units_alone_save_19_3_percent_of_the_global_transformer(paper: StatedMeasurements) -> None:
    """As many tokens are 2.42 / 3.00 of the units, and the global transformer's attention is over as many units a sequence."""
    found = saving("table7_1b", OPTIONS[0], paper)
    assert found.lst["global"] / found.baseline["global"] == pytest.approx(2.42 / 3, rel=1e-5)
    assert found.tokens_per_unit == pytest.approx(3 / 2.42, rel=1e-5)
    assert found.lst["head"] / found.baseline["head"] == pytest.approx(0.5, rel=1e-3)  # half the width


def test_table_7_saves_what_the_papers_shapes_allow(paper: StatedMeasurements) -> None:
    """About 4 to 8% by convention at equal data, and 14 to 17% more at equal units, less on speech alone."""
    everywhere, on_speech = (
        saving("table7_1b", by_name(n), paper) for n in ("as planned: static(4)", "local modules on speech alone")
    )
    assert 0.04 < everywhere.equal_data() < 0.08
    assert 0.14 < everywhere.equal_units() < 0.175
    assert on_speech.equal_units() < 0.06
    assert everywhere.equal_data(head=False) < everywhere.equal_data()


def test_one_unit_a_token_costs_the_decoder_more_where_only_speech_reads(paper: StatedMeasurements) -> None:
    """`preceding` makes a second key and value of all units, and spares the pairs of the tokens that read (docs/planning.md).

    By hand: 9 layers; a key and a value cost 2 x 2 x 2048 x 1024 each unit, a pair 4 x 1024; 0.8067 units a token; forward x 3.
    """
    names = ("as planned: static(4)", "local modules on speech alone", "cross-attention to one unit", "both")
    on_all, on_speech, one_of_all, both = (saving("table7_1b", by_name(name), paper) for name in names)
    counts = paper.mean(arm_config("lst_static", size="table7_1b"))
    on_speech_counts = paper.mean(arm_config("lst_static", size="table7_1b", model={"local_text": False}))
    keys = 3 * 9 * 4 * 2048 * 1024 * counts.units / counts.tokens
    read = [3 * 9 * 4 * 1024 * pairs / counts.tokens for pairs in (counts.cross_pairs, on_speech_counts.cross_pairs)]
    one = 3 * 9 * 4 * 1024 * 2  # two keys of one unit, of each token that reads
    spoken = counts.speech_tokens / counts.tokens
    assert one_of_all.lst["decoder"] - on_all.lst["decoder"] == pytest.approx(keys + one - read[0])
    assert both.lst["decoder"] - on_speech.lst["decoder"] == pytest.approx(keys + one * spoken - read[1])
    whole = sum(on_all.baseline.values())
    assert [round(100 * cost / whole, 2) for cost in (keys, *read)] == [1.95, 2.42, 0.62]


def test_a_matched_baseline_has_about_the_savings_that_units_count(paper: StatedMeasurements) -> None:
    found = saving("table7_1b", by_name("baseline of LST's parameters"), paper)
    assert found.equal_data() > 0.15


def test_both_figures_are_one_ratio_seen_from_two_sides() -> None:
    made = Saving(
        size="x", option="y", baseline={"global": 8.0, "head": 2.0}, lst={"global": 6.0, "head": 1.0}, tokens_per_unit=1.5
    )
    assert (made.equal_data(), made.equal_data(head=False)) == (pytest.approx(0.3), pytest.approx(0.25))
    assert (made.equal_units(), made.equal_units(head=False)) == (pytest.approx(0.05), pytest.approx(0.125))


def test_savings_are_those_of_a_planned_study(paper: StatedMeasurements) -> None:
    from sweeps.plan import plan

    rows = {row.arm: row for row in plan("lst_table3").rows}
    a, b = rows["lst_static"], rows["baseline"]
    planned = 1 - a.planned_flops / a.tokens * b.tokens / b.planned_flops
    assert saving("table7_1b", OPTIONS[0], paper).equal_data() == pytest.approx(planned, abs=1e-6)


def test_the_document_holds_what_the_command_prints(capsys: pytest.CaptureFixture[str], update_golden: bool) -> None:
    assert main(["savings"]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= WIDTH
    require_shown(DOCUMENT, printed, fence="text savings", update=update_golden)


def test_json_has_an_object_for_every_size_and_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["savings", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {(entry["size"], entry["option"]) for entry in found} == {(size, option.name) for size in SIZES for option in OPTIONS}
    assert {"equal_data", "equal_data_head_apart", "equal_units", "equal_units_head_apart"} <= set(found[0])


@pytest.mark.parametrize("share_trunk", [False, True])
@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_a_study_saves_what_the_table_says_by_group_with_and_without_shared_trunks(
    option: Option, share_trunk: bool, paper: StatedMeasurements
) -> None:
    """Two budgets of equal data: on the way to each, and in all that is spent, LST's share is the table's; so is each group's."""
    from sweeps.plan import plan

    data = {"seq_len_units": 4096} | option.data
    found = plan(
        {
            "name": "two",
            "data": "paper",
            "tokens": [6e10, 1.2e11],
            "matching": "data",
            "sizes": ["420M"],
            **data,
            "arms": ["baseline", option.arm],
            "baseline_match": option.baseline_match,
            "model": option.model,
            "patching": option.patching,
            "recipe": {"name": "paper", "schedule": "wsd", "share_trunk": share_trunk},
        }
    )
    assert all(row.admitted for row in found.rows)
    table = saving("420M", option, paper)
    spent = dict.fromkeys(("baseline", option.arm), 0.0)
    for row in found.rows:
        spent[row.arm] += row.planned_spent_flops
        groups = table.baseline if row.arm == "baseline" else table.lst
        for group, per_token in groups.items():
            share = getattr(row, f"flops_share_{group}")
            assert share * row.planned_flops / row.tokens == pytest.approx(per_token, rel=1e-4), group
    both = sum(row.planned_flops for row in found.rows)
    assert (sum(spent.values()) < 0.8 * both) == (share_trunk and option.arm != "lst_curriculum")
    if option.arm != "lst_curriculum":  # which shares none
        assert 1 - spent[option.arm] / spent["baseline"] == pytest.approx(table.equal_data(), abs=1e-4)
