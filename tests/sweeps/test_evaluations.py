"""Rows of kind eval: whose weights, which items and options, what they cost, what is frozen, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import lst
from lst.data.shards import open_dataset
from lst.data.text import TextTokenizer
from lst.errors import ConfigError, DataError, LstError, PlanError
from lst.evals.item_set import SMOKE
from lst.evals.make_items import prepare_items
from lst.flops import forward_flops
from sweeps.evaluations import open_items, require_data
from sweeps.plan import Plan, plan, read_plan
from sweeps.reprice import reprice

SET = Path(lst.__file__).parent / "evals" / "embedded"
STUDY: dict[str, Any] = {
    "name": "judged", "data": "paper", "sizes": ["420M"], "arms": ["baseline", "lst_static"], "units": [5e10], "matching": "unit",
    "seq_len_units": 4096, "recipe": {"name": "paper"}, "price": {"device": "h100", "gpus": 8},
}  # fmt: skip
CHOICES = {"kind": "eval", "task": "choices", "items": [SMOKE]}


def judged(after: dict[str, Any], **changes: Any) -> Plan:
    return plan(STUDY | {"after": after} | changes)


def evaluations(found: Plan) -> list[Any]:
    return [row for row in found.rows if row.kind == "eval"]


def test_a_row_an_item_set_and_shard_follows_each_run() -> None:
    found = judged(CHOICES | {"shards": 2})
    parents = [row for row in found.rows if row.kind == "pretrain"]
    rows = evaluations(found)
    assert [row.parent_run_id for row in rows] == [p.run_id for p in parents for _ in range(2)]
    assert [row.arm for row in rows] == ["baseline"] * 2 + ["lst_static"] * 2
    assert len({row.run_id for row in rows}) == 4
    contents = [found.evaluations[row.run_id] for row in rows]
    assert [content["shard"] for content in contents] == ["1/2", "2/2"] * 2
    assert len({content["out"] for content in contents}) == 2  # the shards of one evaluation share its folder
    assert {row.run_id for row in rows}.isdisjoint(found.run_configs)


def test_an_evaluation_trains_nothing_and_spends_a_forward_pass_over_what_is_scored() -> None:
    """By hand: of four endings, each after the prompt and each alone; bytes of text stand for a quarter of a token."""
    found = judged(CHOICES | {"options": {"directions": "S->S", "limit": 50}})
    row, parent = evaluations(found)[0], found.rows[0]
    import pyarrow.parquet as pq

    items = pq.read_table(SET / "items.parquet").to_pylist()
    tokens = sum(4 * len(prompt) + 2 * sum(map(len, endings)) for prompt, *endings in (item["speech"] for item in items))
    assert open_items(SMOKE).tokens["S->S"] == tokens
    a_token = parent.planned_flops / parent.tokens / 3
    assert row.planned_spent_flops == pytest.approx(tokens * 50 / 200 * a_token)
    assert (row.planned_flops, row.tokens, row.planned_spent_steps, row.flops_budget) == (0.0, 0.0, 0, 0.0)
    assert (row.gpus, row.est_gpu_hours) == (1, pytest.approx(row.est_minutes / 60, rel=1e-3))
    assert found.totals.planned_flops == pytest.approx(sum(r.planned_spent_flops for r in found.rows))
    config = found.run_configs[parent.run_id]
    assert a_token == pytest.approx(forward_flops(config.model, found._measure.mean(config)).total / 4096, rel=0.01)  # type: ignore[attr-defined]


def test_ids_follow_items_and_options_and_not_places(tmp_path: Path) -> None:
    copied = shutil.copytree(SET, tmp_path / "copied")
    first = [row.run_id for row in evaluations(judged(CHOICES))]
    assert [row.run_id for row in evaluations(judged(CHOICES | {"items": [str(copied)]}))] == first
    others = [
        CHOICES | {"options": {"score": "loglik_sum"}},
        CHOICES | {"options": {"limit": 5}},
        {"kind": "eval", "task": "asr"},
    ]
    for other in others:
        assert not set(first) & {row.run_id for row in evaluations(judged(other))}


def test_a_fine_tuned_run_is_evaluated_on_its_task() -> None:
    after = {"kind": "finetune", "task": "asr", "steps": [300], "batch_sequences": 4, "evaluate": True, "options": {"beams": 4}}
    found = judged(after)
    kinds = [row.kind for row in found.rows]
    assert kinds == ["pretrain", "pretrain"] + ["finetune", "eval"] * 2
    for row in evaluations(found):
        tuned = next(r for r in found.rows if r.run_id == row.parent_run_id)
        assert tuned.kind == "finetune"
        assert found.evaluations[row.run_id]["run"] == tuned.run_id
        assert found.evaluations[row.run_id]["evaluation"]["options"] == {"beams": 4}


def test_a_branch_is_evaluated_in_the_folder_of_its_trunk() -> None:
    shared = {"units": [1e11, 5e10], "recipe": {"name": "paper", "schedule": "wsd", "share_trunk": True}, "arms": ["baseline"]}
    found = judged(CHOICES, **shared)
    rows = {row.run_id: row for row in found.rows}
    of_branch, of_trunk = (found.evaluations[row.run_id] for row in evaluations(found))
    branch = rows[of_branch["evaluation"]["parent"]]
    assert branch.kind == "branch"
    assert (of_branch["run"], of_branch["checkpoint"]) == (branch.parent_run_id, f"budget-{branch.branch}")
    assert (of_trunk["run"], of_trunk["checkpoint"]) == (branch.parent_run_id, "final")


@pytest.mark.parametrize("every", [{"every_steps": 30_000}, {"every_flops": 5e19}])
def test_weights_on_the_way_are_kept_and_evaluated(every: dict[str, Any]) -> None:
    """And no id of a run changes by it: execution is no part of one."""
    plain, found = judged(CHOICES), judged(CHOICES | every)
    parent, *rows = [row for row in found.rows if row.arm == "baseline"]
    kept = found.run_configs[parent.run_id].execution.keep_steps
    between = every.get("every_steps") or every["every_flops"] / parent.flops_per_step
    assert kept == tuple(round(place * between) for place in range(1, 100) if round(place * between) < parent.steps)
    assert len(kept) > 1
    assert [row.steps for row in rows] == [*kept, parent.steps]
    assert [found.evaluations[row.run_id]["checkpoint"] for row in rows] == [*(f"kept-{step}" for step in kept), "final"]
    before = {row.run_id: row for row in plain.rows}
    assert {row.run_id for row in found.rows} >= set(before)
    weights = 4 * parent.num_params / 2**30
    assert parent.est_kept_gib - before[parent.run_id].est_kept_gib == pytest.approx(len(kept) * weights, rel=0.02)


def test_weights_that_no_run_is_long_enough_to_keep_are_told() -> None:
    found = judged(CHOICES | {"every_steps": 10_000_000})
    assert any("after.every_steps=1e+07 is no less than the longest run's" in warning for warning in found.warnings)


def test_what_is_to_be_done_is_frozen_and_planning_again_changes_no_byte(tmp_path: Path) -> None:
    found = judged(CHOICES)
    assert found.write(tmp_path / "study") == "new"
    before = {path: path.read_bytes() for path in sorted((tmp_path / "study").rglob("*")) if path.is_file()}
    for row in evaluations(found):
        assert json.loads((tmp_path / "study" / "runs" / row.run_id / "eval.json").read_text()) == found.evaluations[row.run_id]
    assert judged(CHOICES).write(tmp_path / "study") == "unchanged"
    assert {path: path.read_bytes() for path in before} == before
    assert judged(CHOICES | {"items": [SMOKE], "shards": 1}, seeds=[0, 1]).write(tmp_path / "study", widen=True) == "widened"
    with pytest.raises(PlanError, match="holds another plan: 4 of its 8 runs are not in this one"):
        judged({}, seeds=[0, 1]).write(tmp_path / "study", widen=True)


def test_evaluations_are_priced_again_at_another_price(tmp_path: Path) -> None:
    found = judged(CHOICES)
    found.write(tmp_path / "study")
    stored = read_plan(tmp_path / "study")
    assert reprice(stored, stored.study.price) == stored.rows
    dear = reprice(stored, dataclasses.replace(stored.study.price, dollars_per_gpu_hour=2.0))
    for row in dear:
        assert row.est_dollars == pytest.approx(2 * row.est_gpu_hours, rel=1e-2)
        assert row.est_dollars > 0


def test_items_of_another_tokenizer_than_the_datas_are_refused_before_anything_trains(toy_dataset: Path) -> None:
    for data in ("embedded", str(toy_dataset)):
        data_id = open_dataset(data).data_id
        if data == "embedded":
            require_data("choices", (), SMOKE, data, data_id)
        else:
            with pytest.raises(DataError, match=r"after.items: item set .* has another speech tokenizer than data"):
                require_data("choices", (), SMOKE, data, data_id)
    require_data("choices", (), SMOKE, "paper", "")  # stated data have no tokens


WITHOUT_PATCHES = "after.options.patching=%s: arm 'baseline' has no patches; leave patching out"
WITHOUT_BORDERS = (
    "after.options.boundary_noise_ms=20,40 moves the borders of aligned patches, and these are %s; give patching=aligned"
)
OF_AN_ARM: list[tuple[dict[str, Any], dict[str, str]]] = [
    (CHOICES | {"options": {"patching": "aligned"}}, {"baseline": WITHOUT_PATCHES % "aligned"}),
    (CHOICES | {"options": {"patching": "static"}}, {"baseline": WITHOUT_PATCHES % "static"}),
    (
        CHOICES | {"options": {"boundary_noise_ms": "20,40"}},
        {"baseline": WITHOUT_BORDERS % "token", "lst_static": WITHOUT_BORDERS % "static"},
    ),
    (CHOICES | {"options": {"boundary_noise_ms": "20,40", "patching": "aligned"}}, {"baseline": WITHOUT_PATCHES % "aligned"}),
    (
        {"kind": "eval", "task": "tts"},
        {"lst_aligned": "after.options: direction='T->S' generates speech, and arm 'lst_aligned' knows no alignment"},
    ),
    ({"kind": "eval", "task": "tts", "options": {"static_fallback": True}}, {}),
    ({"kind": "eval", "task": "asr", "options": {"beams": 2}}, {}),
    ({"kind": "eval", "task": "representations"}, {}),
    ({"kind": "eval", "task": "representations", "options": {"patching": "aligned"}}, {"baseline": WITHOUT_PATCHES % "aligned"}),
]


@pytest.mark.parametrize(("after", "reasons"), OF_AN_ARM)
def test_what_an_arm_can_never_be_asked_is_refused_of_this_arm_alone(after: dict[str, Any], reasons: dict[str, str]) -> None:
    arms = ["baseline", "lst_static", "lst_aligned"]
    found = judged(after, arms=arms)
    rows = {row.arm: row for row in evaluations(found)}
    assert {arm: row.status for arm, row in rows.items()} == {a: "refused" if a in reasons else "admitted" for a in arms}
    for arm, row in rows.items():
        assert row.reason.startswith(reasons.get(arm, "")), arm
        assert (row.reason == "") == (arm not in reasons)
        assert (row.run_id in found.evaluations) == (arm not in reasons)
        assert (row.planned_spent_flops > 0) == (arm not in reasons)


def item_set(folder: Path, line: dict[str, Any]) -> str:
    (folder / "t.jsonl").write_text(json.dumps(line) + "\n")
    prepare_items({"eval": str(folder / "t.jsonl"), "out": str(folder / "set")})
    return str(folder / "set")


def test_items_without_the_frames_of_words_are_refused_of_an_aligned_arm(tmp_path: Path) -> None:
    parts = {"prompt": {"speech_tokens": [1, 2]}, "endings": [{"speech_tokens": [3]}, {"speech_tokens": [4]}]}
    items = item_set(tmp_path, {"id": "x", "label": 0, **parts})
    found = judged(CHOICES | {"items": [items]}, arms=["baseline", "lst_static", "lst_aligned"])
    _, static, aligned = evaluations(found)
    assert (static.status, aligned.status) == ("admitted", "refused")
    assert aligned.reason.startswith("after.options.directions=S->S: aligned patches need the words' frames, which item set ")


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("choices", {"data": "nowhere"}, "after.options.data=nowhere: data 'nowhere' has no manifest.json; prepare it with"),
        ("asr", {"data": "nowhere"}, "after.options.data=nowhere: data 'nowhere' has no manifest.json; prepare it with"),
        ("asr", {"test": "nowhere"}, "after.options.test=nowhere: data 'nowhere' has no manifest.json; prepare it with"),
        ("tts", {"test": "nowhere"}, "after.options.test=nowhere: data 'nowhere' has no manifest.json; prepare it with"),
        (
            "tts",
            {"recognisers": "pocketsphinx,nowhere"},
            "after.options.recognisers=nowhere has no config.json .*; give a Whisper",
        ),
        ("representations", {"phones": "nowhere"}, "after.options.phones=nowhere must be a folder of"),
        ("choices", {"context_tokens": 5}, "after.options.context_tokens=5 has no room for an ending of .*; give more"),
    ],
)
def test_what_options_name_and_is_not_there_is_refused_beside_data_that_are(
    task: str, options: dict[str, Any], message: str
) -> None:
    """A plan of stated data is one of another place or time: what its options name may come."""
    after = {"kind": "eval", "task": task, "options": options} | ({"items": [SMOKE]} if task == "choices" else {})
    data_id = open_dataset("embedded").data_id
    with pytest.raises(LstError, match=message):
        require_data(task, tuple(options.items()), SMOKE if task == "choices" else "", "embedded", data_id)
    assert {row.status for row in evaluations(judged(after))} == {"admitted"}


def test_a_plan_refuses_a_recogniser_that_is_not_there(toy_dataset: Path) -> None:
    small = {"data": str(toy_dataset), "sizes": ["w24"], "arms": ["baseline"], "units": [150_000], "seq_len_units": 256}
    small |= {"dtype": "float32", "recipe": {"name": "small"}, "price": {"device": "cpu"}}
    after = {"kind": "eval", "task": "tts", "options": {"recognisers": "nowhere"}}
    with pytest.raises(DataError, match=r"after.options.recognisers=nowhere has no config.json .*; give a Whisper"):
        judged(after, **small)


def test_data_of_another_id_than_the_runs_are_refused(toy_dataset: Path) -> None:
    with pytest.raises(DataError, match=r"after.options: data '.*' has data_id=.*, the checkpoint was trained on"):
        require_data("asr", (("data", str(toy_dataset)),), "", "embedded", open_dataset("embedded").data_id)


def test_an_item_without_a_token_is_refused_before_anything_trains(
    toy_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = item_set(tmp_path, {"id": "x", "prompt": "ab", "endings": ["cd", "ef"], "label": 0})
    toy, whole = open_dataset(toy_dataset), TextTokenizer.encode
    monkeypatch.setattr(TextTokenizer, "encode", lambda self, text: [] if text == "ef" else whole(self, text))
    with pytest.raises(DataError, match=r"after.items: item 'x' of t T->T: its ending 1 has no token"):
        require_data("choices", (), items, str(toy_dataset), toy.data_id)
    require_data("choices", (), items, "paper", "")  # stated data have no tokenizer


def test_choices_without_items_stay_in_the_plan_refused() -> None:
    found = plan("lst_table12")
    rows = evaluations(found)
    assert {(row.status, row.reason.partition(";")[0]) for row in rows} == {("refused", "after.items is empty")}
    assert len(rows) == 2
    assert found.evaluations == {}


@pytest.mark.parametrize(
    ("after", "message"),
    [
        ({"kind": "eval", "task": "choicse"}, "after.task='choicse' is unknown .*did you mean 'choices'"),
        (CHOICES | {"options": {"scroe": "x"}}, "unknown key 'after.options.scroe'; did you mean 'score'"),
        (CHOICES | {"options": {"limit": "many"}}, "after.options.limit='many' must be of type int"),
        (CHOICES | {"options": {"out": "x"}}, "after.options.out is set by the plan"),
        (CHOICES | {"options": {"dtype": "float8"}}, "after.options.dtype=float8 is unknown; use float32, float64, bfloat16"),
        (CHOICES | {"options": {"device": "tpu"}}, "after.options.device='tpu' is unknown; did you mean 'cpu'"),
        (CHOICES | {"options": {"batch_tokens": -1}}, "after.options.batch_tokens=-1 must not be negative"),
        (CHOICES | {"options": {"boundary_noise_ms": "40,20"}}, r"after.options.boundary_noise_ms=\[40, 20\] is no range"),
        (CHOICES | {"options": {"boundary_noise_ms": "some"}}, "after.options.boundary_noise_ms=some is no LEAST,MOST of"),
        ({"kind": "eval", "task": "asr", "options": {"dtype": "float8"}}, "after.options.dtype=float8 is unknown"),
        ({"kind": "eval", "task": "tts", "options": {"device": "tpu"}}, "after.options.device='tpu' is unknown"),
        ({"kind": "eval", "task": "representations", "options": {"device": "gpu0"}}, "after.options.device='gpu0' is unknown"),
        (CHOICES | {"options": {"directions": "S->S,S->X"}}, "after.options.directions='S->X' is unknown"),
        (CHOICES | {"options": {"score": "loglik_per_second"}}, "score=loglik_per_second is not defined for T->T of item set"),
        (CHOICES | {"items": [SMOKE, SMOKE]}, "has an item set twice"),
        ({"kind": "eval", "task": "representations", "shards": 2}, "representations are made by one process"),
        ({"kind": "eval", "task": "representations", "options": {"leters": 3}}, "did you mean 'letters'"),
        (CHOICES | {"shards": 0}, "after.shards=0 must lie between 1 and 1,000"),
        (CHOICES | {"shards": 1_000_000}, "after.shards=1000000 must lie between 1 and 1,000"),
        ({"kind": "eval", "task": "asr", "options": {"utterances": -1}}, "after.options.utterances"),
        ({"kind": "eval", "task": "tts", "options": {"top_p": 0.0}}, "after.options.top_p"),
        (CHOICES | {"steps": [3]}, "have no meaning for after.kind='eval'"),
        ({"kind": "eval", "task": "asr", "items": [SMOKE]}, "after.items has no meaning for after.task='asr'"),
        (CHOICES | {"every_steps": 1}, "keeps the weights of about .* steps of run .*, more than 100"),
        (CHOICES | {"every_steps": 10, "every_flops": 1e18}, "are given both; give one of them"),
        (CHOICES | {"every_flops": -1.0}, "must be finite numbers, 0 or more"),
        ({"every_steps": 10}, "have no meaning for after.kind=''"),
        ({"items": [SMOKE]}, "have no meaning without an evaluation"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(after: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        judged(after)


@pytest.mark.parametrize("damage", ["missing", "manifest", "table"])
def test_a_damaged_item_set_is_refused(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "set"
    if damage != "missing":
        shutil.copytree(SET, folder)
        file = folder / ("manifest.json" if damage == "manifest" else "items.parquet")
        file.write_bytes(file.read_bytes().replace(b"2", b"3") if damage == "manifest" else b"PAR1")
    with pytest.raises(DataError, match="which is no whole item set"):
        judged(CHOICES | {"items": [str(folder)]})
