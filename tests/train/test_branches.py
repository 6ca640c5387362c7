"""A WSD run's branches: each equals a run of its own to the bit, and the trunk does not know of them."""

from __future__ import annotations

import itertools
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from lst.errors import CheckpointError
from lst.model import load_checkpoint
from lst.records import read_json, read_jsonl
from lst.train import trainer
from lst.train.__main__ import main
from lst.train.trainer import Trainer
from tests.train.tiny_run import records, tiny_config, write_run

WSD = {"schedule": "wsd", "decay_share": 0.25, "warmup_steps": 2}
BRANCHES = (5, 6, 9)  # they leave the trunk at 4, 4 and 7
STEPS = 12


pytestmark = pytest.mark.usefixtures("restore_process")


def new_run(folder: Path, data: Path, *, arm: str = "lst_mixed", steps: int = STEPS, **overrides: Any) -> Path:
    train = {"steps": steps} | overrides.pop("train", {})
    return write_run(folder, tiny_config(arm, data, train=train, **{"optim": {**WSD, "lr": 3e-3}, **overrides}))


def branched(folder: Path, data: Path, **overrides: Any) -> Path:
    train = {"branch_steps": list(BRANCHES), "final_batch_sequences": 2}
    return new_run(folder, data, train=train, **overrides)


def weights(run_dir: Path, name: str = "final") -> bytes:
    return (run_dir / "checkpoints" / name / "model.safetensors").read_bytes()


def path_of(run_dir: Path, file: str, branch: int | None) -> list[dict[str, Any]]:
    """The records of one path, without what tells that there are others."""
    own = [r for r in records(run_dir)[file] if r.get("branch") == branch]
    return [{k: v for k, v in r.items() if k not in ("branch", "spent_flops")} for r in own]


def test_each_branch_equals_a_run_of_its_own_and_the_trunk_one_without_branches(tmp_path: Path, tiny_data: Path) -> None:
    run_dir = branched(tmp_path / "run", tiny_data)
    assert main([str(run_dir)]) == 0
    alone = new_run(tmp_path / "alone", tiny_data, train={"final_batch_sequences": 2})
    assert main([str(alone)]) == 0
    assert weights(run_dir) == weights(alone)
    for file in ("train.jsonl", "eval.jsonl", "items.jsonl"):
        assert path_of(run_dir, file, None) == path_of(alone, file, None) != []
    assert [r["step"] for r in path_of(run_dir, "train.jsonl", None)] == list(range(1, STEPS + 1))
    spent = read_json(alone / "exit.json")["train_flops"]  # type: ignore[index]
    for steps, fork in zip(BRANCHES, (4, 4, 7), strict=True):
        twin = new_run(tmp_path / f"twin{steps}", tiny_data, steps=steps)
        assert main([str(twin)]) == 0
        assert weights(run_dir, f"budget-{steps}") == weights(twin)
        ours = path_of(run_dir, "train.jsonl", None)[:fork] + path_of(run_dir, "train.jsonl", steps)
        assert ours == path_of(twin, "train.jsonl", None)
        final = [r for r in path_of(twin, "eval.jsonl", None) if r["step"] == steps]
        assert path_of(run_dir, "eval.jsonl", steps) == final != []
        assert path_of(run_dir, "items.jsonl", steps) == path_of(twin, "items.jsonl", None) != []
        tag = read_json(run_dir / "checkpoints" / f"budget-{steps}" / "tag.json")
        ended = read_json(twin / "exit.json")
        assert tag is not None
        assert ended is not None
        assert tag["equal_run_id"] == ended["run_id"]
        assert (tag["branch"], tag["forked_at"], tag["train_flops"]) == (steps, fork, ended["train_flops"])
        spent += ended["train_flops"] - path_of(twin, "train.jsonl", None)[fork - 1]["train_flops"]
    ended = read_json(run_dir / "exit.json")
    assert ended is not None
    assert ended["spent_flops"] == pytest.approx(spent, rel=1e-12)
    assert [b["steps"] for b in ended["branches"]] == list(BRANCHES)
    assert sorted(p.name for p in (run_dir / "checkpoints").iterdir()) == ["budget-5", "budget-6", "budget-9", "final"]


def test_spent_flops_never_fall_and_count_every_path(tmp_path: Path, tiny_data: Path) -> None:
    run_dir = branched(tmp_path / "run", tiny_data)
    assert main([str(run_dir)]) == 0
    rows = read_jsonl(run_dir / "train.jsonl")
    assert [(r["step"], r.get("branch")) for r in rows] == [
        *((s, None) for s in range(1, 5)), (5, 5), (5, 6), (6, 6), *((s, None) for s in range(5, 8)), (8, 9), (9, 9),
        *((s, None) for s in range(8, 13)),
    ]  # fmt: skip
    steps = [b["spent_flops"] - a["spent_flops"] for a, b in itertools.pairwise(rows)]
    assert min(steps) > 0
    assert rows[3]["spent_flops"] == rows[3]["train_flops"]
    assert rows[-1]["spent_flops"] > rows[-1]["train_flops"]


def test_weights_of_a_budget_load_as_those_of_a_finished_run(tmp_path: Path, tiny_data: Path) -> None:
    run_dir = branched(tmp_path / "run", tiny_data)
    assert main([str(run_dir)]) == 0
    folder = run_dir / "checkpoints" / "budget-5"
    model, config = load_checkpoint(folder)
    assert config.run_id == read_json(folder / "tag.json")["run_id"]  # type: ignore[index]
    final, _ = load_checkpoint(run_dir)
    assert not torch.equal(model.embedding.weight, final.embedding.weight)
    (folder / "tag.json").write_text(json.dumps({"branch": 6}))
    with pytest.raises(CheckpointError, match=r"tag.json' is damaged"):
        load_checkpoint(folder)


def test_log_tells_of_forks_and_of_resumes_where_there_is_one(
    tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def told() -> list[str]:
        lines = [m for m in caplog.messages if m.startswith(("branch", "resumed"))]
        caplog.clear()
        return lines

    def stop_at(moment: tuple[int | None, int]) -> None:
        def signalled(self: Trainer) -> Any:
            record = step(self)
            if (self.state.branch, self.state.step) == moment:
                os.kill(os.getpid(), signal.SIGTERM)
            return record

        monkeypatch.setattr(Trainer, "train_step", signalled)

    step = Trainer.train_step
    caplog.set_level("INFO")
    run_dir = branched(tmp_path / "run", tiny_data)
    stop_at((9, 8))
    assert main([str(run_dir)]) == 75
    assert told() == [
        "branch 5: forked at step 4", "branch 5 is done; back on the trunk at step 4",
        "branch 6: forked at step 4", "branch 6 is done; back on the trunk at step 4", "branch 9: forked at step 7",
    ]  # fmt: skip
    stop_at((None, 9))
    assert main([str(run_dir)]) == 75
    assert told() == ["resumed from step-00000008 of branch 9", "branch 9 is done; back on the trunk at step 7"]
    assert main([str(run_dir)]) == 0
    assert told() == ["resumed from step-00000009"]


@pytest.mark.parametrize("moment", [(5, 5), (9, 8), (9, 9)])
def test_run_stopped_inside_a_branch_goes_on_inside_it(
    tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch, moment: tuple[int, int]
) -> None:
    calm, stopped = branched(tmp_path / "calm", tiny_data), branched(tmp_path / "stopped", tiny_data)
    assert main([str(calm)]) == 0
    step = Trainer.train_step

    def signalled(self: Trainer) -> Any:
        record = step(self)
        if (self.state.branch, self.state.step) == moment:
            os.kill(os.getpid(), signal.SIGTERM)
        return record

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", signalled)
        assert main([str(stopped)]) == 75
    branch, at = moment
    saved = stopped / "checkpoints" / f"branch-{branch:08d}"
    assert (saved / "latest").read_text() == f"step-{at:08d}\n"
    assert main([str(stopped)]) == 0
    assert records(stopped) == records(calm)
    for name in ("final", *(f"budget-{s}" for s in BRANCHES)):
        assert weights(stopped, name) == weights(calm, name)


def test_damaged_fork_is_told_and_the_run_then_goes_on_from_before_it(
    tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calm = branched(tmp_path / "calm", tiny_data)
    assert main([str(calm)]) == 0
    run_dir = branched(tmp_path / "run", tiny_data, execution={"checkpoint_every_seconds": 1e-6})
    save = trainer.save_budget

    def damaging(folder: Path, **options: Any) -> Path:
        (folder / "checkpoints" / "step-00000004" / "optimizer.safetensors").write_bytes(b"x")
        return save(folder, **options)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "save_budget", damaging)
        assert main([str(run_dir)]) == 2
    assert "the checkpoint of step 4, where the branch of 5 steps left, is damaged" in capsys.readouterr().err
    assert main([str(run_dir)]) == 0
    assert records(run_dir) == records(calm)
    assert weights(run_dir) == weights(calm)
    assert weights(run_dir, "budget-5") == weights(calm, "budget-5")
