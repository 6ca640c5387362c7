"""Bad steps: what is bad, what the policy does, and that a run with skipped steps resumes to the bit."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lst.config import RunConfig
from lst.records import read_json, read_jsonl
from lst.train.__main__ import main
from lst.train.bad_steps import judge_step
from lst.train.checkpoint import TrainState
from lst.train.failures import Diverged
from lst.train.losses import LossSums
from lst.train.trainer import Trainer
from tests.train.tiny_run import records, tiny_config, write_run

SKIP = {"bad_step": "skip", "max_skipped_steps": 2}


pytestmark = pytest.mark.usefixtures("restore_process")


@pytest.fixture
def config(tiny_data: Path) -> Callable[..., RunConfig]:
    return lambda **train: tiny_config("baseline", tiny_data, train=train)


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[int, float]], None]:
    """Multiply the loss of the given steps (1-based); a factor that is no finite number spoils the gradients too."""
    gradients = Trainer._gradients

    def at(factors: dict[int, float]) -> None:
        def spoiled(self: Trainer, *arguments: Any) -> LossSums:
            losses = gradients(self, *arguments)
            factor = factors.get(self.state.step + 1, 1.0)
            if not math.isfinite(factor):
                next(iter(self.optimizer.parameters.values())).grad.mul_(factor)  # type: ignore[union-attr]
            return dataclasses.replace(losses, nats=losses.nats * factor)

        monkeypatch.setattr(Trainer, "_gradients", spoiled)

    return at


def judged(config: RunConfig, losses: list[float], **options: Any) -> tuple[list[str], TrainState]:
    """The verdicts over steps with these losses."""
    state, reasons = TrainState(run_id=config.run_id), []
    for loss in losses:
        reasons.append(judge_step(state, loss=loss, grad_norm=1.0, config=config, **options))
        state.step += 1
    return reasons, state


def test_spike_is_a_loss_far_above_the_running_mean_of_good_steps(config: Callable[..., RunConfig]) -> None:
    spiky = config(**SKIP, spike_factor=1.5, spike_memory_steps=4)
    reasons, _ = judged(spiky, [4.0, 40.0, 2.0, 2.0, 17.5, 17.0, 21.0])
    assert reasons == [""] * 7  # against means of 12, 13.4, 14.3: nothing is 1.5 times above
    reasons, state = judged(spiky, [4.0, 4.0, 4.0, 4.0, 6.1, 5.9, 4.475])
    assert reasons == ["", "", "", "", "spike", "", ""]
    assert state.skipped == [5]
    assert state.loss_mean == 4.475  # (4 + (5.9 - 4) / 4), then a loss that is the mean
    assert state.losses_seen == 6


def test_no_spike_is_seen_where_none_is_looked_for_or_too_little_is_known(config: Callable[..., RunConfig]) -> None:
    assert judged(config(**SKIP), [1.0] * 60 + [1e9])[0] == [""] * 61
    assert judged(config(**SKIP, spike_factor=2.0, spike_memory_steps=4), [1.0, 1.0, 1.0, 9.0])[0] == [""] * 4


def test_more_than_the_allowed_skips_halt(config: Callable[..., RunConfig]) -> None:
    with pytest.raises(Diverged, match=r"the loss of step 4 is nan .*train.max_skipped_steps=2 steps were skipped already"):
        judged(config(**SKIP), [1.0, math.nan, math.inf, math.nan])


def test_spike_halts_too_where_nothing_may_be_skipped(config: Callable[..., RunConfig]) -> None:
    with pytest.raises(Diverged, match=r"the loss of step 3 is 9 .*above train.spike_factor=2 times the running mean 1;"):
        judged(config(spike_factor=2.0, spike_memory_steps=2), [1.0, 1.0, 9.0])


def test_every_process_is_asked_once_a_step_and_what_one_sees_binds_all(config: Callable[..., RunConfig]) -> None:
    asked: list[bool] = []

    def agree(bad: bool) -> bool:
        asked.append(bad)
        return bad or len(asked) == 2

    reasons, state = judged(config(**SKIP), [1.0, 1.0, math.nan, 1.0], agree=agree)
    assert asked == [False, False, True, False]
    assert reasons == ["", "elsewhere", "loss", ""]
    assert state.skipped == [2, 3]


def test_skipped_step_leaves_weights_and_moments_and_keeps_its_number_and_batch(
    tmp_path: Path, config: Callable[..., RunConfig], spoil: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    calm = write_run(tmp_path / "calm", config(**SKIP))
    assert main([str(calm)]) == 0
    spoil({4: math.nan, 9: math.inf})
    run_dir = write_run(tmp_path / "run", config(**SKIP))
    seen: dict[int, list[torch.Tensor]] = {}
    train_step = Trainer.train_step

    def watched(self: Trainer) -> dict[str, Any]:
        record = train_step(self)
        tensors = (*self.model.state_dict().values(), *self.optimizer.tensors().values())
        seen[self.state.step] = [t.clone() for t in tensors]
        return record

    monkeypatch.setattr(Trainer, "train_step", watched)
    assert main([str(run_dir)]) == 0
    for step in (4, 9):
        assert all(torch.equal(a, b) for a, b in zip(seen[step - 1], seen[step], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(seen[4], seen[5], strict=True))
    rows, twins = read_jsonl(run_dir / "train.jsonl"), read_jsonl(calm / "train.jsonl")
    assert {r["step"]: r["skipped"] for r in rows if "skipped" in r} == {4: "loss", 9: "loss"}
    assert not {"loss", "grad_norm"} & rows[3].keys()
    for name in ("step", "batch_hash", "train_flops", "tokens", "lr"):
        assert [r[name] for r in rows] == [r[name] for r in twins]
    ended = read_json(run_dir / "exit.json")
    assert ended is not None
    assert (ended["skipped_steps"], ended["step"]) == (2, 12)


def test_run_with_skipped_steps_and_a_running_mean_resumes_to_the_bit(
    tmp_path: Path, config: Callable[..., RunConfig], spoil: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil({5: 9.0, 9: 1.9, 11: math.nan})
    spiky = config(bad_step="skip", spike_factor=1.6, spike_memory_steps=3)
    calm, stopped = write_run(tmp_path / "calm", spiky), write_run(tmp_path / "stopped", spiky)
    assert main([str(calm)]) == 0
    train_step = Trainer.train_step

    def signalled(self: Trainer) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGTERM)
        return train_step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", signalled)
        codes = [main([str(stopped)]) for _ in range(10)]
    assert codes == [75] * 10  # an attempt a step
    assert main([str(stopped)]) == 0
    assert records(stopped) == records(calm)
    assert [(r["step"], r["skipped"]) for r in records(calm)["train.jsonl"] if "skipped" in r] == [
        (5, "spike"), (9, "spike"), (11, "loss"),
    ]  # fmt: skip
    weights = [(d / "checkpoints" / "final" / "model.safetensors").read_bytes() for d in (calm, stopped)]
    assert weights[0] == weights[1]
