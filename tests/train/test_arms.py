"""Every arm and option of patching trains, is evaluated, saves and loads: 20 steps of a tiny network, end to end."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lst.errors import CheckpointError
from lst.model import build_model, load_checkpoint, make_batch
from lst.model.export import export_checkpoint, read_pieces
from lst.model.huggingface import from_llama, to_llama
from lst.records import file_sha256, read_jsonl
from lst.train.__main__ import main
from tests.train.tiny_run import ROOT, SPEECH_BPE_VOCAB, tiny_config, write_run

CASES: list[tuple[str, dict[str, Any]]] = [
    ("bpe", {}),
    ("lst_aligned", {"patching": {"silence": "merged"}}),
    ("lst_aligned", {"patching": {"silence": "merged", "merge_side": "next"}}),
    ("lst_aligned", {"patching": {"aligned_unit": "bpe"}}),
    ("lst_aligned", {"patching": {"aligned_unit": "bpe", "silence": "merged"}}),
    ("lst_mixed", {"patching": {"draw": "step", "aligned_unit": "bpe"}}),
    ("lst_curriculum", {"patching": {"draw": "step", "silence": "merged"}}),
]


@pytest.mark.parametrize(("arm", "options"), CASES, ids=[f"{a}-{json.dumps(o)}" for a, o in CASES])
def test_arm_trains_learns_and_is_evaluated(
    tmp_path: Path, tiny_data: Path, restore_process: None, arm: str, options: dict[str, Any]
) -> None:
    config = tiny_config(arm, tiny_data, train={"steps": 20}, evaluation={"points": 1, "story_items": 3}, **options)
    run_dir = write_run(tmp_path / "run", config)
    assert main([str(run_dir)]) == 0
    steps = read_jsonl(run_dir / "train.jsonl")
    assert len(steps) == 20
    assert steps[-1]["loss"] < steps[0]["loss"] - 0.2
    metrics = {(r["task"], r["direction"], r["metric"]): r["value"] for r in read_jsonl(run_dir / "eval.jsonl")}
    assert all(math.isfinite(value) for value in metrics.values())
    for key in (("heldout_speech", "S->S", "bits_per_second"), ("heldout_text", "T->T", "bits_per_byte")):
        assert metrics[key] > 0
    assert ("story_later", "T->T", "accuracy") in metrics
    assert (("story_later", "S->S", "accuracy") in metrics) == (arm != "lst_aligned")
    _, loaded = load_checkpoint(run_dir)
    assert loaded == config


USE_ALONE = """
import sys
from lst.model import build_model, load_checkpoint, make_batch
from lst.model.export import export_checkpoint, read_pieces
model, config = load_checkpoint(sys.argv[1])
batch = make_batch([[("text", [12, 7]), ("speech", [3, 3, 9, 4, 7, 7]), ("text", [5])]], config)
print(model(batch).isfinite().all().item(), batch.ids_BT.tolist())
"""


def test_bpe_checkpoint_is_usable_without_its_data(tmp_path: Path, tiny_data: Path, restore_process: None) -> None:
    """In a process that finds neither the data set nor kept pieces; a checkpoint without its pieces is refused."""
    run_dir = write_run(tmp_path / "run", tiny_config("bpe", tiny_data, train={"steps": 2}, evaluation={"story_items": 0}))
    assert main([str(run_dir)]) == 0
    folder = tmp_path / "elsewhere"
    shutil.copytree(run_dir / "checkpoints" / "final", folder)
    content = json.loads((folder / "config.json").read_text())
    content["execution"]["data_path"] = str(tmp_path / "gone")
    (folder / "config.json").write_text(json.dumps(content))
    sums = {f.name: file_sha256(f) for f in folder.iterdir() if f.name != "manifest.json"}
    (folder / "manifest.json").write_text(json.dumps({"sha256": sums}))
    environment = {**os.environ, "LST_CACHE": str(tmp_path / "empty")}
    command = [sys.executable, "-c", USE_ALONE, str(folder)]
    alone = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert alone.stdout.startswith("True"), alone.stderr
    model, config = load_checkpoint(run_dir)
    batch = make_batch([[("text", [12, 7]), ("speech", [3, 3, 9, 4, 7, 7]), ("text", [5])]], config)
    assert alone.stdout.split(maxsplit=1)[1].strip() == str(batch.ids_BT.tolist())
    assert model(batch).shape[-1] == 90 + SPEECH_BPE_VOCAB + 2

    to_llama(run_dir, tmp_path / "llama")
    again, same = from_llama(tmp_path / "llama")
    assert same == config
    assert (tmp_path / "llama" / "speech_bpe.model").is_file()
    torch.testing.assert_close(again(batch), model(batch))

    (folder / "speech_bpe.model").unlink()
    with pytest.raises(CheckpointError, match=r"speech_bpe\.model"):
        load_checkpoint(folder)


@pytest.mark.parametrize("wrong", ["", "0" * 12])
def test_run_of_other_speech_pieces_is_refused_in_one_sentence(
    tmp_path: Path, tiny_data: Path, restore_process: None, capsys: pytest.CaptureFixture[str], wrong: str
) -> None:
    config = tiny_config("bpe", tiny_data, data={"speech_bpe_id": wrong})
    assert main([str(write_run(tmp_path / "run", config))]) == 2
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0
    assert "plan the run" in error if not wrong else f"the run wants {wrong}" in error


def test_checkpoint_whose_pieces_are_of_another_size_is_refused(tmp_path: Path, tiny_data: Path) -> None:
    config = tiny_config("bpe", tiny_data)
    folder = export_checkpoint(build_model(config), config, tmp_path / "out")
    other = dataclasses.replace(config, model=dataclasses.replace(config.model, speech_bpe_vocab=SPEECH_BPE_VOCAB + 1))
    with pytest.raises(CheckpointError, match=rf"speech_bpe\.model' is not of its configuration: .* are {SPEECH_BPE_VOCAB} of"):
        read_pieces(folder, other)
