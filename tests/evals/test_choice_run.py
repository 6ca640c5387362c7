"""`python -m lst.evals choices`: an item set on a real checkpoint, resumed, refused, and equal to the records by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from analysis.run_files import item_rows
from lst.data.prepare import main as prepare_main
from lst.data.shards import open_dataset
from lst.data.text import TextTokenizer
from lst.errors import LstError
from lst.evals import choice_run
from lst.evals.__main__ import main
from lst.evals.choice_run import run_choices
from lst.evals.choices import ChoiceOptions, score_choices
from lst.evals.item_set import open_item_set
from lst.evals.make_items import prepare_items
from lst.evals.scoring import Scorer
from lst.model import build_model, export_checkpoint
from lst.records import read_jsonl
from tests.evals.item_files import spoken_items, write_card, write_lines
from tests.train.tiny_run import ROOT, tiny_config

Options = dict[str, Any]


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("items")
    prepare_items({"eval": str(write_lines(folder / "cloze.jsonl", spoken_items(10))), "out": str(folder / "set")})
    return folder / "set"


@pytest.fixture(scope="module")
def checkpoints(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    made = {}
    for arm in ("baseline", "bpe", "lst_static", "lst_aligned"):
        torch.manual_seed(3)
        config = tiny_config(arm, tiny_data)
        made[arm] = export_checkpoint(build_model(config), config, folder / arm)
    return made


@pytest.mark.parametrize("arm", ["baseline", "bpe", "lst_static", "lst_aligned"])
def test_one_command_scores_an_item_set_in_all_directions(
    checkpoints: dict[str, Path], items: Path, tmp_path: Path, arm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results"
    assert main(["choices", str(checkpoints[arm]), f"items={items}", f"out={out}"]) == 0
    assert {p.name for p in out.iterdir()} == {"evaluation.json", "eval.jsonl", "items.jsonl"}
    assert list(tmp_path.glob(".*")) == []
    records, metrics = read_jsonl(out / "items.jsonl"), read_jsonl(out / "eval.jsonl")
    assert {r["direction"] for r in records} == {"S->S", "T->T", "S->T", "T->S"}
    assert len(records) == 40
    for metric in (m for m in metrics if m["metric"] == "accuracy" and m["task"] == "cloze"):
        rows = [r for r in records if r["direction"] == metric["direction"]]
        assert metric["value"] == sum(r["correct"] for r in rows) / 10
        assert (metric["score"], metric["items_id"]) == ("loglik_per_token", open_item_set(str(items)).items_id)
        assert metric["conditional"] == (arm == "lst_aligned" and "S" in metric["direction"])
    assert {m["task"] for m in metrics} == {"cloze", "cloze/a", "cloze/b"}
    card = json.loads((out / "evaluation.json").read_text())
    assert (card["arm"], card["decided_by"]["directions"]) == (arm, ["S->S", "T->T", "S->T", "T->S"])
    assert "% of 10 items by loglik_per_token, chance 50.0%" in capsys.readouterr().out


def test_records_are_those_of_score_choices(checkpoints: dict[str, Path], items: Path, tiny_data: Path, tmp_path: Path) -> None:
    run_choices(
        checkpoints["lst_static"], {"items": str(items), "out": str(tmp_path / "o"), "directions": "S->S", "dtype": "float64"}
    )
    torch.manual_seed(3)
    config = tiny_config("lst_static", tiny_data)
    scorer = Scorer(build_model(config).double(), config, device=torch.device("cpu"), dtype="float64")
    chosen = open_item_set(str(items)).choices("S->S", open_dataset(tiny_data).tokenizer)
    expected = score_choices(scorer, chosen, ChoiceOptions())
    assert [r["scores"] for r in read_jsonl(tmp_path / "o" / "items.jsonl")] == [
        pytest.approx(r["scores"], abs=1e-9) for r in expected
    ]


def test_an_interrupted_evaluation_goes_on_to_the_same_bytes(
    checkpoints: dict[str, Path], items: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice_run, "PART", 4)
    options = {"items": str(items), "directions": "S->S,T->T"}
    run_choices(checkpoints["lst_static"], options | {"out": str(tmp_path / "whole")})
    calls = 0

    def stops(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return score_choices(*arguments)

    monkeypatch.setattr("lst.evals.choices.score_choices", stops)
    with pytest.raises(KeyboardInterrupt):
        run_choices(checkpoints["lst_static"], options | {"out": str(tmp_path / "cut")})
    assert not (tmp_path / "cut").exists()
    parts = sorted((tmp_path / ".cut.work" / "parts").glob("*.jsonl"))
    assert [len(read_jsonl(part)) for part in parts] == [4, 4]
    parts[1].write_bytes(parts[1].read_bytes()[:-9])  # torn
    run_choices(checkpoints["lst_static"], options | {"out": str(tmp_path / "cut")})
    assert calls == 3 + 5  # six parts, of which one is done and whole
    for name in ("eval.jsonl", "items.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert "there already" in run_choices(checkpoints["lst_static"], options | {"out": str(tmp_path / "cut")})


def test_a_runs_evaluation_goes_into_its_folder_and_names_its_options(
    checkpoints: dict[str, Path], items: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "final").symlink_to(checkpoints["baseline"])
    (run / "run.yaml").write_text("{}")
    (run / "exit.json").write_text(json.dumps({"step": 12, "train_flops": 5.0, "units": 7}))
    for score in ("loglik_sum", "loglik_gain"):
        run_choices(run, {"items": str(items), "directions": "T->T", "score": score})
    folders = sorted((run / "evals").iterdir())
    assert len(folders) == 2
    assert all(f.name.startswith("cloze-") for f in folders)
    rows = [read_jsonl(f / "eval.jsonl")[0] for f in folders]
    assert {r["score"] for r in rows} == {"loglik_sum", "loglik_gain"}
    assert all((r["step"], r["train_flops"], r["units"]) == (12, 5.0, 7) for r in rows)
    items_of = [item_rows(f) for f in folders]  # as a study is collected: an item without its step would be lost
    assert [len(found) for found in items_of] == [10, 10]
    assert {row["step"] for found in items_of for row in found} == {12}


@pytest.mark.parametrize(
    ("exit_file", "reason"),
    [('{"run_id": "000000000000"}', "is of run 000000000000, the weights in .* are of run"), ("[1", "is damaged")],
)
def test_weights_of_another_run_than_the_folders_are_refused(
    checkpoints: dict[str, Path], items: Path, tmp_path: Path, exit_file: str, reason: str
) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "final").symlink_to(checkpoints["baseline"])
    (tmp_path / "run" / "exit.json").write_text(exit_file)
    with pytest.raises(LstError, match=reason):
        run_choices(tmp_path / "run", {"items": str(items), "out": str(tmp_path / "o"), "directions": "T->T"})


WRONG = [
    ("baseline", {"items": "nowhere"}, "items='nowhere' has no manifest.json"),
    ("baseline", {}, "give items=DIR"),
    ("baseline", {"directions": "S->X"}, "directions='S->X' is unknown; did you mean"),
    ("baseline", {"score": "loglik_per_second", "directions": "T->T"}, "score=loglik_per_second is not defined for item"),
    ("baseline", {"patching": "static"}, "arm 'baseline' has no patches"),
    ("lst_static", {"boundary_noise_ms": "20,40"}, "moves the borders of aligned patches, and these are static"),
    ("lst_aligned", {"boundary_noise_ms": "20"}, "is no LEAST,MOST of milliseconds"),
    ("lst_aligned", {"boundary_noise_ms": "40,20"}, "is no range of milliseconds"),
    ("baseline", {"dtype": "float16"}, "dtype=float16 is unknown"),
    ("baseline", {"data": "embedded"}, "the checkpoint was trained on"),
    ("baseline", {"directions": "S->S,T-"}, "ends where a shell takes '>' for a file"),
    ("baseline", {"directions": "T->T,T->T"}, "directions=T->T,T->T has a direction twice"),
    ("baseline", {"score": "loglik_per_second"}, "score=loglik_per_second is not defined for item 'i0' of cloze T->T"),
    ("baseline", {"context_tokens": 8}, "context_tokens=8 has no room for an ending"),
    ("baseline", {"scores": "x"}, "unknown key 'scores'; did you mean 'score'"),
    ("baseline", {"out": ""}, "is no run's folder, so say where the results go"),
]  # fmt: skip


@pytest.mark.parametrize(("arm", "options", "reason"), WRONG)
def test_what_cannot_be_evaluated_is_one_sentence(
    checkpoints: dict[str, Path], items: Path, tmp_path: Path, arm: str, options: Options, reason: str
) -> None:
    given = {"items": str(items), "out": str(tmp_path / "o")} | options if options else {}
    with pytest.raises(LstError, match=reason.replace("(", r"\(")):
        run_choices(checkpoints[arm], given)
    assert list(tmp_path.iterdir()) == []  # refused before anything was scored


def test_an_out_below_a_file_is_one_sentence(
    checkpoints: dict[str, Path], items: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "afile").write_text("mine")
    (tmp_path / "items.jsonl").write_text('{"id": "x", "endings": ["a", "b"], "label": 0}\n')
    out = f"out={tmp_path / 'afile' / 'x'}"
    for command in (
        lambda: main(["choices", str(checkpoints["baseline"]), f"items={items}", out]),
        lambda: prepare_main([f"eval={tmp_path / 'items.jsonl'}", out]),
    ):
        assert command() == 2
        assert f"lies under '{tmp_path / 'afile'}', which is a file; give another folder." in capsys.readouterr().err
    assert {path.name: path.read_text() for path in tmp_path.iterdir() if path.name != "items.jsonl"} == {"afile": "mine"}


def test_the_order_of_directions_is_no_other_evaluation(checkpoints: dict[str, Path], items: Path, tmp_path: Path) -> None:
    for name, directions in (("a", "S->S,T->T"), ("b", "T->T,S->S")):
        run_choices(checkpoints["baseline"], {"items": str(items), "out": str(tmp_path / name), "directions": directions})
    one, other = (json.loads((tmp_path / name / "evaluation.json").read_text())["evaluation_id"] for name in "ab")
    assert one == other


def test_a_part_without_a_token_is_refused_before_anything_is_scored(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [{"id": "x", "prompt": "ab", "endings": ["cd", "ef"], "label": 0}]
    prepare_items({"eval": str(write_lines(tmp_path / "t.jsonl", lines)), "out": str(tmp_path / "set")})
    whole = TextTokenizer.encode
    monkeypatch.setattr(TextTokenizer, "encode", lambda self, text: [] if text == "ef" else whole(self, text))
    with pytest.raises(LstError, match="item 'x' of t T->T: its ending 1 has no token"):
        run_choices(checkpoints["baseline"], {"items": str(tmp_path / "set"), "out": str(tmp_path / "o")})


def test_items_of_another_speech_tokenizer_are_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    source = write_lines(tmp_path / "c.jsonl", spoken_items(2))
    prepare_items({"eval": str(source), "out": str(tmp_path / "set"), "card": str(write_card(tmp_path / "card.json"))})
    with pytest.raises(LstError, match=r"has another speech tokenizer than data .*\(layer: 3 and None\)"):
        run_choices(checkpoints["baseline"], {"items": str(tmp_path / "set"), "out": str(tmp_path / "o")})
    run_choices(checkpoints["baseline"], {"items": str(tmp_path / "set"), "out": str(tmp_path / "o"), "directions": "T->T"})


def test_aligned_patches_need_word_spans(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    lines = spoken_items(2)
    for part in [p for item in lines for p in (item["prompt"], *item["endings"])]:
        del part["words"]
    prepare_items({"eval": str(write_lines(tmp_path / "c.jsonl", lines)), "out": str(tmp_path / "set")})
    given = {"items": str(tmp_path / "set"), "out": str(tmp_path / "o")}
    with pytest.raises(LstError, match=r"directions=S->S,S->T,T->S: aligned patches need the words' frames"):
        run_choices(checkpoints["lst_aligned"], given)
    run_choices(checkpoints["lst_aligned"], given | {"patching": "static"})
    rows = read_jsonl(tmp_path / "o" / "eval.jsonl")
    assert {(r["patching"], r["conditional"]) for r in rows} == {("static", False), ("", False)}


@pytest.mark.parametrize(("step", "spans"), [(1, [[1, 3], [5, 7]]), (-1, [[0, 1], [3, 5]]), (9, [[5, 5], [7, 7]])])
def test_borders_of_words_are_moved_inside_their_part(
    items: Path, monkeypatch: pytest.MonkeyPatch, step: int, spans: list[list[int]]
) -> None:
    """Words at 0..2 and 4..6 of eight frames; borders stay inside, in order, a frame apart."""
    from lst.evals import item_set

    monkeypatch.setattr(item_set, "frame_moves", lambda starts, frames, noise: np.full(frames + 1, step))
    assert item_set._moved(np.array([[0, 2], [4, 6]]), 8, (40, 40)).tolist() == spans


def test_alignment_noise_moves_aligned_patches_alike_for_all_endings_and_is_stated(
    checkpoints: dict[str, Path], items: Path, tiny_data: Path, tmp_path: Path
) -> None:
    given = {"items": str(items), "directions": "S->S"}
    for noise in ("auto", "0,0", "40,80"):
        run_choices(checkpoints["lst_aligned"], given | {"boundary_noise_ms": noise, "out": str(tmp_path / noise)})
    rows = {noise: read_jsonl(tmp_path / noise / "items.jsonl") for noise in ("auto", "0,0", "40,80")}
    assert rows["auto"] == rows["0,0"]
    assert all(a["context_tokens"] == b["context_tokens"] for a, b in zip(rows["auto"], rows["40,80"], strict=True))
    assert any(a["scores"] != b["scores"] for a, b in zip(rows["auto"], rows["40,80"], strict=True))
    stated = [read_jsonl(tmp_path / noise / "eval.jsonl")[0].get("boundary_noise_ms") for noise in rows]
    assert stated == [None, None, [40, 80]]
    ids = [json.loads((tmp_path / noise / "evaluation.json").read_text())["evaluation_id"] for noise in rows]
    assert ids[0] == ids[1] != ids[2]
    torch.manual_seed(3)
    config = tiny_config("lst_aligned", tiny_data, patching={"boundary_noise_ms": [40, 80]})
    own = export_checkpoint(build_model(config), config, tmp_path / "trained-with-noise")
    run_choices(own, given | {"out": str(tmp_path / "own")})
    assert read_jsonl(tmp_path / "own" / "items.jsonl") == rows["40,80"]  # by default as in the run


def test_a_result_that_cannot_be_written_is_one_sentence_of_wrong_input(
    checkpoints: dict[str, Path], items: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its name is as long as one may be, that of the folder in which it is made longer."""
    assert main(["choices", str(checkpoints["baseline"]), f"items={items}", f"out={tmp_path / ('n' * 250)}"]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {tmp_path / '.nnn'}")
    assert told.endswith("cannot be read or written (File name too long).\n")


def test_help_is_quick_and_imports_no_torch() -> None:
    code = (
        "import sys; from lst.evals.__main__ import main\n"
        "try: main(['choices', '--help'])\nexcept SystemExit: assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, timeout=60)
