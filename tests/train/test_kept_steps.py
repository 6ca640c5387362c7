"""Weights that stay from a run's way (execution.keep_steps): those of the step, whole, and nothing else changes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from lst.config import RunConfig
from lst.errors import ConfigError
from lst.evals.checkpoints import open_checkpoint
from lst.evals.evaluate import Evaluation
from lst.records import read_json
from lst.train import trainer
from lst.train.__main__ import main
from tests.train.tiny_run import records, tiny_config, write_run

pytestmark = pytest.mark.usefixtures("restore_process")


def kept_run(folder: Path, data: Path, *steps: int) -> tuple[Path, RunConfig]:
    config = tiny_config("lst_static", data, execution={"keep_steps": list(steps)})
    return write_run(folder, config), config


def test_kept_weights_are_those_of_their_step_and_the_run_is_the_same(tmp_path: Path, tiny_data: Path) -> None:
    """Held-out losses of what was kept after step 6 equal those that the trainer found there."""
    run_dir, config = kept_run(tmp_path / "kept", tiny_data, 6, 9)
    plain, other = kept_run(tmp_path / "plain", tiny_data)
    assert config.run_id == other.run_id
    for folder in (run_dir, plain):
        assert main([str(folder)]) == 0
    assert records(run_dir) == records(plain)
    assert [path.name for path in sorted((run_dir / "checkpoints").iterdir())] == ["final", "kept-6", "kept-9"]
    assert [path.name for path in (plain / "checkpoints").iterdir()] == ["final"]
    kept = open_checkpoint(run_dir / "checkpoints" / "kept-6", device="cpu")
    found = Evaluation(kept.dataset, kept.config).run(kept.model, kept.device, final=False)
    losses = {(r["task"], r["direction"], r["metric"]): r["value"] for r in records(run_dir)["eval.jsonl"] if r["step"] == 6}
    assert {(m.task, m.direction, m.metric): m.value for m in found.metrics} == losses != {}
    at = next(r for r in records(run_dir)["train.jsonl"] if r["step"] == 6)
    assert kept.spent == {name: at[name] for name in ("step", "train_flops", "units", "text_tokens", "speech_tokens")}


def test_a_full_disk_at_a_kept_step_leaves_nothing_half_done(
    tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, _ = kept_run(tmp_path / "kept", tiny_data, 6)

    def full(*_: Any, **__: Any) -> Path:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(trainer, "save_kept", full)
        assert main([str(run_dir)]) == 1
    failure = read_json(run_dir / "failure.json")
    assert failure is not None
    assert failure["class"] == "disk_full"
    assert not (run_dir / "checkpoints" / "kept-6").exists()
    assert main([str(run_dir)]) == 0
    assert open_checkpoint(run_dir / "checkpoints" / "kept-6", device="cpu").spent["step"] == 6


@pytest.mark.parametrize("steps", [(0,), (4, 3), (4, 4), (-1,)])
def test_steps_that_cannot_be_kept_are_refused(tiny_data: Path, steps: tuple[int, ...]) -> None:
    config = tiny_config("lst_static", tiny_data)
    with pytest.raises(ConfigError, match=r"execution.keep_steps=.* must be positive and rise"):
        dataclasses.replace(config.execution, keep_steps=steps).validate()
