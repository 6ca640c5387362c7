"""The ladder of sizes: names that tell the truth, Table 7 by rule, matched baselines, and the table in the docs."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from lst.config import Arm, arm_config
from lst.errors import ConfigError
from lst.flops import num_non_embedding_params, num_params
from lst.ladder import NAME_TOLERANCE, SIZES, model_shape, named_count
from sweeps.cli import compose_study, main
from sweeps.measure import Measurements
from sweeps.plan import plan_with
from sweeps.show import assumptions_touched
from sweeps.sizes import COUNTED, size_rows
from sweeps.study import StudyConfig
from sweeps.text import WIDTH
from tests.shown_output import require_shown

DOCUMENT = Path(__file__).parents[2] / "docs" / "sizes.md"
PAPER_SIZES = ("420M", "630M", "810M", "1.1B", "1.4B", "1.8B", "7B")
NAMED = [size for size in SIZES if named_count(size) is not None]


@pytest.mark.parametrize("size", NAMED)
def test_a_name_is_within_two_percent_of_the_baselines_parameters(size: str) -> None:
    model = model_shape(size, Arm.BASELINE)
    assert (model.text_vocab, model.speech_vocab, model.tied_head) == (32_000, 501, False)
    assert abs(num_params(model) / named_count(size) - 1) <= NAME_TOLERANCE


def test_the_ladder_reaches_from_a_million_to_seven_billion_in_even_steps() -> None:
    assert set(PAPER_SIZES) <= set(NAMED)
    counts = [named_count(size) for size in NAMED]
    assert counts == sorted(counts)
    assert counts[0] < 1.1e6
    small = [count for count in counts if count <= 2.1e8]
    assert len(small) >= 9
    assert all(1.5 < b / a < 2.5 for a, b in itertools.pairwise(small))


@pytest.mark.parametrize("size", [size for size in NAMED if named_count(size) > 9e6])
def test_shapes_suit_a_gpu(size: str) -> None:
    rung = SIZES[size]
    assert rung.dim % 128 == 0
    assert rung.dim // rung.heads in (64, 128)
    assert rung.local_dim // rung.local_heads == 64
    assert rung.ffn_dim % (256 if rung.dim >= 1024 else 64) == 0
    assert 2.4 < rung.ffn_dim / rung.dim < 2.9


def test_width_over_depth_is_smooth_along_the_ladder() -> None:
    aspects = [SIZES[size].dim / SIZES[size].layers for size in NAMED]
    assert all(0.8 < b / a < 2.1 for a, b in itertools.pairwise(aspects))


def test_the_rule_for_local_modules_gives_table_7() -> None:
    """`1.4B` is made by the rule, `table7_1b` is written down from the paper."""
    assert SIZES["1.4B"] == SIZES["table7_1b"]
    lst = model_shape("table7_1b", Arm.LST_STATIC)
    stacks = [(s.layers, s.dim, s.heads, s.window) for s in (lst.encoder, lst.global_stack, lst.decoder) if s]
    assert stacks == [(1, 1024, 16, 512), (25, 2048, 16, 0), (9, 1024, 16, 512)]


@pytest.mark.parametrize("size", SIZES)
def test_a_baseline_matched_to_lst_has_its_non_embedding_parameters(size: str) -> None:
    lst, plain = model_shape(size, Arm.LST_STATIC), model_shape(size, Arm.BASELINE)
    matched = model_shape(size, Arm.BASELINE, baseline_match="lst_params")
    assert num_non_embedding_params(matched) == pytest.approx(num_non_embedding_params(lst), rel=0.01)
    assert matched.global_stack.dim == plain.global_stack.dim
    assert matched.global_stack.layers > plain.global_stack.layers
    assert model_shape(size, Arm.LST_STATIC, baseline_match="lst_params") == lst


def test_the_match_is_reachable_from_a_configuration() -> None:
    matched = arm_config("baseline", size="420M", baseline_match="lst_params")
    assert matched.model == model_shape("420M", Arm.BASELINE, baseline_match="lst_params")
    assert matched.run_id != arm_config("baseline", size="420M").run_id
    with pytest.raises(ConfigError, match="baseline_match='lst_param' is unknown; did you mean 'lst_params'"):
        arm_config("baseline", baseline_match="lst_param")


def test_the_match_is_reachable_from_a_study(small_study: dict[str, Any], measure: Measurements) -> None:
    few = small_study | {"sizes": ["w48"], "budgets": [4e9], "arms": ["baseline", "lst_static"], "arm_sizes": {}}
    plain, study = (StudyConfig.from_dict(few | {"baseline_match": match}) for match in ("global_shape", "lst_params"))
    before, after = ({row.arm: row for row in plan_with(s, measure).rows} for s in (plain, study))
    assert after["lst_static"].run_id == before["lst_static"].run_id
    assert after["baseline"].run_id != before["baseline"].run_id
    assert after["baseline"].num_non_embedding_params == pytest.approx(after["lst_static"].num_non_embedding_params, rel=0.01)
    names = [{a.name for a in assumptions_touched(s)} for s in (plain, study)]
    assert names[0] - names[1] == {"baseline shape"}
    assert names[1] - names[0] == {"baseline parameters"}


def test_an_unknown_match_in_a_study_is_one_sentence(small_study: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="baseline_match='both' is unknown"):
        StudyConfig.from_dict(small_study | {"baseline_match": "both"})


def test_the_document_holds_what_the_command_prints(capsys: pytest.CaptureFixture[str], update_golden: bool) -> None:
    assert main(["sizes"]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= WIDTH
    require_shown(DOCUMENT, printed, update=update_golden)


def test_json_has_a_whole_object_a_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sizes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [dataclasses.asdict(row) for row in size_rows()]
    for row in size_rows():
        assert sum(row.lst_params_by_group.values()) == row.lst_params
    assert [row.size for row in size_rows()] == list(COUNTED)


def test_sizes_and_the_match_can_be_overridden_on_the_command_line() -> None:
    names = ["1.05M", "21.5M", "420M", "1.1B", "7B", "table7_1b"]
    study = compose_study(
        {"study": "compute_optimal", "sizes": f"[{','.join(names)}]", "recipe.name": "paper", "baseline_match": "lst_params"}
    )
    assert list(study.sizes) == names
    assert study.baseline_match == "lst_params"
    assert "size names" in {a.name for a in assumptions_touched(study)}
