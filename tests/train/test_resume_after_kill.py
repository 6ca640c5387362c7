"""A run that SIGKILL ends at random moments, saves included, ends like one that nothing disturbed: to the bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lst.records import read_json, read_jsonl
from tests.train.tiny_run import ROOT, records, tiny_config, write_run

RUNNER = Path(__file__).with_name("kill_runner.py")
SEED = 11
POLICY = {"bad_step": "skip", "max_skipped_steps": 100, "spike_factor": 1.0001, "spike_memory_steps": 2}  # skips what rises
BRANCHED: dict[str, Any] = {
    "optim": {"schedule": "wsd", "decay_share": 0.3, "warmup_steps": 2, "lr": 3e-3},
    "train": {"steps": 20, "batch_sequences": 2, "branch_steps": [8, 13], **POLICY},
}
PLAIN: dict[str, Any] = {"train": {"steps": 20}}


def outcome(run_dir: Path) -> dict[str, object]:
    """All that a run leaves but wall clock and attempts."""
    ended = read_json(run_dir / "exit.json") or {}
    root = run_dir / "checkpoints"
    files = {str(p.relative_to(root)): p for p in root.rglob("*") if p.is_file()}
    return {
        "files": sorted(files),
        "weights": {name: p.read_bytes() for name, p in files.items() if p.suffix == ".safetensors" or p.name == "tag.json"},
        "moments": read_json(run_dir / "moments.json"),
        "records": records(run_dir),
        "exit": {k: v for k, v in ended.items() if k not in ("seconds", "attempts")},
    }


def run_killed(run_dir: Path, kills: int) -> dict[str, Any]:
    environment = dict(os.environ) | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(RUNNER), str(run_dir), str(SEED), str(kills)]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    report: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    print(f"seed {SEED}: {report}")
    assert report["exit_code"] == 0
    return report


@pytest.mark.parametrize(
    ("arm", "overrides", "kills", "in_background"),
    [("lst_mixed", BRANCHED, 22, False), ("lst_mixed", BRANCHED, 12, True), ("lst_curriculum", PLAIN, 16, False)],
    ids=["branches", "branches-async", "plain"],
)
def test_killed_run_ends_like_an_undisturbed_one(
    tmp_path: Path, tiny_data: Path, arm: str, overrides: dict[str, Any], kills: int, in_background: bool
) -> None:
    evaluation = {"heldout_documents": 4, "context_tokens": 48, "points": 2, "story_items": 2}
    calm = write_run(tmp_path / "calm", tiny_config(arm, tiny_data, evaluation=evaluation, **overrides))
    # A save after each step: most of the time is spent saving.
    often = {"execution": {"checkpoint_every_seconds": 1e-6, "checkpoint_async": in_background}}
    harried = write_run(tmp_path / "harried", tiny_config(arm, tiny_data, evaluation=evaluation, **overrides, **often))
    run_killed(calm, 0)
    report = run_killed(harried, kills)
    assert sum(report["killed"].values()) == kills
    assert "step" in report["killed"], report  # between saves,
    in_saves = report["killed"].keys() - {"step", "start"}  # and in their writes, flushes, renames
    assert len(in_saves) >= (2 if in_background else 3), report  # a few kills in a thread's saves find fewer places
    expected = outcome(calm)
    rows = records(calm)["train.jsonl"]
    assert len({(r.get("branch"), r["step"]) for r in rows}) == len(rows)
    if overrides is BRANCHED:
        assert any("skipped" in r for r in rows)
        assert {r.get("branch") for r in rows} == {None, 8, 13}
    for folder in map(Path, report["folders"]):
        found = outcome(folder)
        for name, value in expected.items():
            assert found[name] == value, (folder, name)
        assert len(read_jsonl(folder / "train.jsonl")) == len(rows)
