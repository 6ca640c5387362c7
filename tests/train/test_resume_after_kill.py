"""A run that SIGKILL ends at random moments, saves included, ends like one that nothing disturbed: to the bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lst.records import read_json
from tests.train.tiny_run import ROOT, records, tiny_config, train, write_run

RUNNER = Path(__file__).with_name("kill_runner.py")


def outcome(run_dir: Path) -> dict[str, object]:
    """All that a run leaves but wall clock and attempts."""
    ended = read_json(run_dir / "exit.json") or {}
    final = run_dir / "checkpoints" / "final"
    return {
        "weights": (final / "model.safetensors").read_bytes(),
        "records": records(run_dir),
        "exit": {k: v for k, v in ended.items() if k not in ("seconds", "attempts")},
        "checkpoints": sorted(p.name for p in (run_dir / "checkpoints").iterdir()),
    }


@pytest.mark.parametrize(("arm", "kills"), [("lst_curriculum", 9), ("baseline", 6)])
def test_killed_run_ends_like_an_undisturbed_one(tmp_path: Path, tiny_data: Path, arm: str, kills: int) -> None:
    execution = {"checkpoint_every_seconds": 1e-6}  # after each step: most of the time is spent saving
    calm = write_run(tmp_path / "calm", tiny_config(arm, tiny_data, train={"steps": 20}))
    harried = write_run(tmp_path / "harried", tiny_config(arm, tiny_data, train={"steps": 20}, execution=execution))
    assert train(calm).returncode == 0
    environment = dict(os.environ) | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(RUNNER), str(harried), "11", str(kills)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=170, check=False)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout.splitlines()[-1])
    assert report["exit_code"] == 0
    assert sum(report["killed"].values()) >= 5, report
    assert len(report["killed"]) >= 2, report  # between steps, and inside writes, flushes or renames
    assert outcome(harried) == outcome(calm)
    assert [r["step"] for r in records(harried)["train.jsonl"]] == list(range(1, 21))
