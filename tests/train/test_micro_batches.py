"""A lack of memory: the micro-batch gives way and nothing else, or the run tells what it had and was thought to need."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lst.records import read_json, read_jsonl
from lst.train import trainer
from lst.train.__main__ import main
from lst.train.micro_batches import MicroBatches
from lst.train.trainer import Trainer
from tests.train.tiny_run import ROOT, tiny_config, write_run

CPU_TEXT = "[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes. Error code 12"
ERRORS = (RuntimeError(CPU_TEXT), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), MemoryError())

LIMITED = """
import resource, sys, faulthandler; faulthandler.enable()
from pathlib import Path
from lst.train.__main__ import main
from lst.train.trainer import Trainer

train_step = Trainer.train_step

def limited(self):
    if self.state.step == 0:
        self.rows.batch(0), self.evaluation._documents  # what threads they and Arrow need is reserved before the limit
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + int(sys.argv[2]) * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return train_step(self)

Trainer.train_step = limited
sys.exit(main([sys.argv[1]]))
"""


pytestmark = pytest.mark.usefixtures("restore_process")


@pytest.fixture
def new_run(tmp_path: Path, tiny_data: Path) -> Callable[..., Path]:
    def new(name: str, tokens: int, **overrides: Any) -> Path:
        config = tiny_config("baseline", tiny_data, execution={"micro_batch_tokens": tokens}, **overrides)
        return write_run(tmp_path / name, config)

    return new


def weights(run_dir: Path) -> bytes:
    return (run_dir / "checkpoints" / "final" / "model.safetensors").read_bytes()


def fail_above(monkeypatch: pytest.MonkeyPatch, tokens: int, *, from_call: int = 1, error: BaseException = ERRORS[0]) -> None:
    """From the given forward on, one of more than `tokens` padded tokens finds no memory, after it has left gradients behind."""
    accumulate, calls = trainer.accumulate_gradients, []

    def limited(model: Any, batch: Any, **options: Any) -> Any:
        calls.append(1)
        losses = accumulate(model, batch, **options)
        if len(calls) >= from_call and batch.ids_BT.numel() > tokens:
            raise error
        return losses

    monkeypatch.setattr(trainer, "accumulate_gradients", limited)


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_step_is_done_again_with_a_micro_batch_that_fits(
    new_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """Four rows of 96 tokens: one micro-batch of 384, then of 192, as a run that was given 192 from the start."""
    small, large = new_run("small", 192), new_run("large", 768)
    assert main([str(small)]) == 0
    with monkeypatch.context() as patch:
        fail_above(patch, 200, error=error)
        assert main([str(large)]) == 0
    assert weights(large) == weights(small)
    assert {r["micro_batch_tokens"] for r in read_jsonl(large / "train.jsonl")} == {192}
    assert not any("micro_batch_tokens" in r for r in read_jsonl(small / "train.jsonl"))
    for run_dir, events in ((small, []), (large, [{"attempt": 1, "step": 1, "micro_batch_tokens": 192}])):
        assert read_json(run_dir / "exit.json")["out_of_memory"] == events  # type: ignore[index]


def test_later_lack_of_memory_changes_the_run_only_by_rounding(
    new_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    calm, run_dir = new_run("calm", 384), new_run("run", 384)
    assert main([str(calm)]) == 0
    with monkeypatch.context() as patch:
        fail_above(patch, 100, from_call=5)
        assert main([str(run_dir)]) == 0
    rows = read_jsonl(run_dir / "train.jsonl")
    assert [r["loss"] for r in rows] == pytest.approx([r["loss"] for r in read_jsonl(calm / "train.jsonl")], rel=1e-4)
    assert [r.get("micro_batch_tokens") for r in rows] == [None] * 4 + [96] * 8
    assert [e["step"] for e in read_json(run_dir / "exit.json")["out_of_memory"]] == [5, 5]  # type: ignore[index]


def test_row_that_does_not_fit_alone_fails_with_the_estimate_beside_the_peak(
    new_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = new_run("run", 384)
    fail_above(monkeypatch, 50)
    assert main([str(run_dir)]) == 1
    failure = read_json(run_dir / "failure.json")
    assert failure is not None
    assert (failure["class"], failure["step"]) == ("oom", 0)
    assert "out of memory on cpu with micro-batches of 96 tokens: the peak was " in failure["cause"]
    assert "the estimate is " in failure["cause"]
    assert "use a device with more memory" in failure["cause"]
    assert capsys.readouterr().err == f"error: {failure['cause']}\n"


def test_several_processes_fail_rather_than_disagree(new_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = new_run("run", 384)
    fail_above(monkeypatch, 200)
    monkeypatch.setattr(trainer, "MicroBatches", lambda tokens, processes: MicroBatches(tokens, processes=processes + 1))
    assert main([str(run_dir)]) == 1
    assert read_json(run_dir / "failure.json")["class"] == "oom"  # type: ignore[index]


def test_other_errors_are_not_tried_again(new_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = new_run("run", 384)
    fail_above(monkeypatch, 0, error=RuntimeError("shapes do not match"))
    assert main([str(run_dir)]) == 1
    assert read_json(run_dir / "failure.json")["class"] == "error"  # type: ignore[index]


def test_evaluation_that_does_not_fit_fails_with_the_estimate_too(
    new_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    run_dir = new_run("run", 384)
    monkeypatch.setattr(Trainer, "_evaluate_if_due", full)
    assert main([str(run_dir)]) == 1
    failure = read_json(run_dir / "failure.json")
    assert failure is not None
    assert failure["class"] == "oom"
    assert "the estimate is" in failure["cause"]


@pytest.mark.parametrize(("mib", "code"), [(60, 0), (8, 1)])
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel must enforce RLIMIT_AS")
def test_real_limit_of_the_address_space(new_run: Callable[..., Path], mib: int, code: int) -> None:
    """16 rows of 1,024 tokens want about 230 MiB at once and 25 MiB one by one; the kernel gives 60 more than the start, or 8."""
    shape = {"data": {"seq_len_units": 1024}, "train": {"steps": 2, "batch_sequences": 16}}
    run_dir = new_run("run", 100_000, evaluation={"heldout_documents": 2, "points": 1, "story_items": 0}, **shape)
    command = [sys.executable, "-c", LIMITED, str(run_dir), str(mib)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == code, result.stderr
    if code:
        assert read_json(run_dir / "failure.json")["class"] == "oom"  # type: ignore[index]
        assert "the estimate is" in result.stderr
    else:
        events = read_json(run_dir / "exit.json")["out_of_memory"]  # type: ignore[index]
        assert events[0]["micro_batch_tokens"] < 100_000
        assert len(read_jsonl(run_dir / "train.jsonl")) == 2
