"""Every arm and option of patching trains, is evaluated, saves and loads: 20 steps of a tiny network, end to end."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from lst.model import load_checkpoint
from lst.records import read_jsonl
from lst.train.__main__ import main
from tests.train.tiny_run import tiny_config, write_run

CASES: list[tuple[str, dict[str, Any]]] = [
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
