"""`python -m lst.train RUN_DIR`: what it writes, how it stops, and how it fails."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from lst.config import RunConfig
from lst.data.shards import open_dataset
from lst.data.stream import Stream
from lst.errors import DataError
from lst.evals import scoring
from lst.flops import SequenceCounts, training_flops
from lst.model import build_model
from lst.model.export import load_checkpoint
from lst.records import WALL_CLOCK_FIELDS, JsonLinesWriter, read_json, read_jsonl
from lst.train import trainer
from lst.train.__main__ import main
from lst.train.failures import failure_class
from lst.train.folder import RunLock
from lst.train.terminal import CLOSED
from lst.train.trainer import Trainer
from tests.train.tiny_run import ROOT, records, tiny_config, train, write_run

ARMS = ("baseline", "bpe", "lst_static", "lst_aligned", "lst_mixed", "lst_curriculum")
TRAIN_FIELDS = {
    "step", "loss", "loss_text", "loss_speech", "lr", "grad_norm", "train_flops", "units", "tokens", "text_tokens",
    "text_only_tokens", "speech_tokens", "spent_flops", "batch_hash", "time", "seconds", "data_seconds", "data_wait_share",
    "tokens_per_second", "units_per_second", "audio_seconds_per_second", "peak_memory_mib", "unique_speech_tokens",
    "unique_text_tokens", "speech_epochs", "text_epochs",
}  # fmt: skip
EVAL_FIELDS = {
    "step", "train_flops", "units", "text_tokens", "speech_tokens", "task", "direction", "metric", "value", "n_items",
}  # fmt: skip
CHOICE_FIELDS = {"score", "join", "patching", "conditional"}


pytestmark = pytest.mark.usefixtures("restore_process")


@pytest.fixture
def new_run(tmp_path: Path, tiny_data: Path) -> Callable[..., Path]:
    def new(name: str = "run", arm: str = "lst_static", **overrides: Any) -> Path:
        return write_run(tmp_path / name, tiny_config(arm, tiny_data, **overrides))

    return new


def run_config(run_dir: Path) -> RunConfig:
    return RunConfig.from_dict(json.loads((run_dir / "run.yaml").read_text())["config"])


def weights(run_dir: Path) -> bytes:
    return (run_dir / "checkpoints" / "final" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_trains_and_writes_its_records(new_run: Callable[..., Path], arm: str) -> None:
    run_dir = new_run(arm=arm, train={"steps": 4}, evaluation={"points": 2, "story_items": 3})
    assert main([str(run_dir)]) == 0
    steps = read_jsonl(run_dir / "train.jsonl")
    assert [r["step"] for r in steps] == [1, 2, 3, 4]
    assert all(set(r) == TRAIN_FIELDS for r in steps)
    evaluations = read_jsonl(run_dir / "eval.jsonl")
    assert all(set(r) == EVAL_FIELDS | (CHOICE_FIELDS if "story" in r["task"] else set()) for r in evaluations)
    heldout = [r for r in evaluations if r["task"].startswith("heldout_")]
    assert sorted({r["step"] for r in heldout}) == [2, 4]
    stories = {(r["task"], r["direction"]) for r in evaluations if r["task"].startswith("story_")}
    directions = ("T->T",) if arm == "lst_aligned" else ("S->S", "T->T")  # stories have no word spans
    assert stories == {(t, d) for t in ("story_elsewhere", "story_later") for d in directions}
    assert {r["step"] for r in read_jsonl(run_dir / "items.jsonl")} == {4}


def test_totals_are_those_of_the_batches_that_were_trained_on(new_run: Callable[..., Path]) -> None:
    run_dir = new_run(train={"steps": 3, "final_batch_sequences": 2})
    assert main([str(run_dir)]) == 0
    config = run_config(run_dir)
    stream = Stream(open_dataset(config.execution.data_path), config)
    total, flops = SequenceCounts(), 0.0
    for record in read_jsonl(run_dir / "train.jsonl"):
        batch = stream.batch(record["step"] - 1)
        total += batch.counts
        flops += training_flops(config, batch.counts).total
        assert record["batch_hash"] == batch.hash
        assert record["train_flops"] == flops
        for name in ("units", "tokens", "text_tokens", "text_only_tokens", "speech_tokens"):
            assert record[name] == asdict(total)[name]
    ended = read_json(run_dir / "exit.json")
    assert ended is not None
    assert (ended["status"], ended["step"], ended["train_flops"], ended["units"]) == ("done", 3, flops, total.units)
    assert ended["num_params"]["global"] > 0
    assert ended["versions"]["torch"] == torch.__version__


def test_it_learns(new_run: Callable[..., Path]) -> None:
    """The tiny language has words: sixty steps bring the held-out losses well below those of ten."""
    run_dir = new_run(train={"steps": 60}, optim={"lr": 1e-2}, evaluation={"points": 6, "story_items": 0})
    assert main([str(run_dir)]) == 0
    for task in ("heldout_speech", "heldout_text"):
        values = [r["value"] for r in read_jsonl(run_dir / "eval.jsonl") if (r["task"], r["metric"]) == (task, "nats_per_token")]
        assert values[-1] < values[0] - 0.2


def test_final_checkpoint_is_the_only_one_left_and_loads(new_run: Callable[..., Path]) -> None:
    run_dir = new_run(execution={"checkpoint_every_seconds": 1e-6}, train={"steps": 3})
    assert main([str(run_dir)]) == 0
    assert [p.name for p in (run_dir / "checkpoints").iterdir()] == ["final"]
    model, config = load_checkpoint(run_dir)
    assert config.run_id == read_json(run_dir / "exit.json")["run_id"]  # type: ignore[index]
    initial = build_model(config)
    assert not torch.equal(model.embedding.weight, initial.embedding.weight)


def test_complete_run_is_left_alone(new_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = new_run(train={"steps": 2})
    assert main([str(run_dir)]) == 0
    before = {p: p.read_bytes() for p in run_dir.rglob("*") if p.is_file() and p.name != ".lock"}
    monkeypatch.setattr(trainer, "Trainer", None)  # nothing may be built
    assert main([str(run_dir)]) == 0
    assert before == {p: p.read_bytes() for p in run_dir.rglob("*") if p.is_file() and p.name != ".lock"}


def test_the_same_configuration_gives_the_same_weights_and_another_seed_others(new_run: Callable[..., Path]) -> None:
    runs = [new_run("a"), new_run("b", execution={"log_every": 5}), new_run("c", train={"seed": 3})]
    assert [main([str(r)]) for r in runs] == [0, 0, 0]
    assert weights(runs[0]) == weights(runs[1]) != weights(runs[2])
    assert [r["step"] for r in read_jsonl(runs[1] / "train.jsonl")] == [5, 10, 12]


def test_micro_batches_change_a_run_only_by_rounding(new_run: Callable[..., Path]) -> None:
    runs = [new_run("a", execution={"micro_batch_tokens": 1}), new_run("b", execution={"micro_batch_tokens": 100_000})]
    assert [main([str(r)]) for r in runs] == [0, 0]
    losses = [[r["loss"] for r in read_jsonl(run / "train.jsonl")] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_bfloat16_run_stays_near_the_float32_one(new_run: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    """And says so where the processor has to emulate its products."""
    runs = [new_run("a", train={"dtype": "bfloat16"}), new_run("b")]
    caplog.set_level("WARNING")
    assert [main([str(r)]) for r in runs] == [0, 0]
    warned = sum("no fast bfloat16 products" in record.message for record in caplog.records)
    assert warned == (0 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else 1)
    losses = [[r["loss"] for r in read_jsonl(run / "train.jsonl")] for run in runs]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_signal_saves_at_the_step_boundary_and_the_run_goes_on(
    new_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    calm, stopped = new_run("calm"), new_run("stopped")
    assert main([str(calm)]) == 0
    batch = Stream.batch

    def signalled(stream: Stream, step: int, **share: int) -> Any:
        if step == 5:  # made while the step before it is trained
            os.kill(os.getpid(), number)
        return batch(stream, step, **share)

    with monkeypatch.context() as patch:
        patch.setattr(Stream, "batch", signalled)
        assert main([str(stopped)]) == 75
    assert (stopped / "checkpoints" / "latest").read_text() == "step-00000005\n"
    assert not (stopped / "exit.json").exists()
    assert not (stopped / "failure.json").exists()
    assert main([str(stopped)]) == 0
    assert weights(stopped) == weights(calm)
    assert records(stopped) == records(calm)
    assert read_json(stopped / "exit.json")["attempts"] == 2  # type: ignore[index]


@pytest.mark.parametrize("call", [2, 4])
def test_signal_in_an_evaluation_leaves_it_to_the_next_attempt(
    new_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """Evaluation `call` of the document sets is interrupted: the second of the first evaluation, the first of the last."""
    calm, stopped = new_run("calm"), new_run("stopped")
    assert main([str(calm)]) == 0
    score, calls = scoring.Scorer.score, []

    def signalled(scorer: scoring.Scorer, documents: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return score(scorer, documents)

    with monkeypatch.context() as patch:
        patch.setattr(scoring.Scorer, "score", signalled)
        assert main([str(stopped)]) == 75
    step = 6 if call == 2 else 12
    assert (stopped / "checkpoints" / "latest").read_text() == f"step-{step:08d}\n"
    assert {r["step"] for r in read_jsonl(stopped / "eval.jsonl")} == (set() if call == 2 else {6})
    assert main([str(stopped)]) == 0
    assert weights(stopped) == weights(calm)
    assert records(stopped) == records(calm)


def test_second_trainer_of_a_run_is_refused(new_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = new_run()
    lock = RunLock(run_dir)
    try:
        assert main([str(run_dir)]) == 1
    finally:
        lock.release()
    assert f"is being trained by process {os.getpid()}" in capsys.readouterr().err
    assert not (run_dir / "failure.json").exists()


def test_loss_that_is_no_number_halts_the_run(new_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = new_run(optim={"lr": 1e30, "warmup_steps": 0})
    assert main([str(run_dir)]) == 1
    failure = read_json(run_dir / "failure.json")
    assert failure is not None
    assert failure["class"] == "nan"
    assert failure["step"] == len(read_jsonl(run_dir / "train.jsonl")) >= 1
    assert "lower optim.lr=1e+30" in failure["cause"]
    assert capsys.readouterr().err.strip() == f"error: {failure['cause']}"


def test_full_disk_while_recording_keeps_the_checkpoint(new_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    calm, full = new_run("calm"), new_run("full", execution={"checkpoint_every_seconds": 1e-6})
    assert main([str(calm)]) == 0
    write = JsonLinesWriter.write

    def no_space(writer: JsonLinesWriter, record: dict[str, Any]) -> None:
        if record["step"] == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(writer, record)

    with monkeypatch.context() as patch:
        patch.setattr(JsonLinesWriter, "write", no_space)
        assert main([str(full)]) == 1
    failure = read_json(full / "failure.json")
    assert failure is not None
    assert (failure["class"], failure["step"], failure["attempt"]) == ("disk_full", 5, 1)
    assert (full / "checkpoints" / "latest").read_text() == "step-00000004\n"
    assert main([str(full)]) == 0
    assert not (full / "failure.json").exists()
    assert weights(full) == weights(calm)
    assert records(full) == records(calm)


def test_file_size_limit_ends_a_save_as_a_full_disk_would(new_run: Callable[..., Path]) -> None:
    """A real fault: the kernel refuses to let any file grow past 64 KiB, and the weights are larger."""
    run_dir = new_run(execution={"checkpoint_every_seconds": 1e-6})
    result = train(run_dir, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, 65_536)))
    assert result.returncode == 1
    assert "no space left" in result.stderr
    assert "Traceback" not in result.stderr
    failure = read_json(run_dir / "failure.json")
    assert failure is not None
    assert failure["class"] == "disk_full"
    assert list((run_dir / "checkpoints").iterdir()) == []  # nothing half-written


@pytest.mark.parametrize(
    ("change", "message", "kind"),
    [
        (lambda c: c | {"run_id": "0" * 12}, "it was edited", "config"),
        (lambda c: c | {"extra": 1}, "must hold exactly run_id and config", "config"),
        (lambda c: c | {"config": c["config"] | {"optimiser": {}}}, "did you mean 'optim'", "config"),
    ],
)
def test_wrong_run_yaml_is_refused(
    new_run: Callable[..., Path], capsys: pytest.CaptureFixture[str], change: Callable[..., Any], message: str, kind: str
) -> None:
    run_dir = new_run()
    file = run_dir / "run.yaml"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    assert main([str(run_dir)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert read_json(run_dir / "failure.json")["class"] == kind  # type: ignore[index]


@pytest.mark.parametrize("text", ["run_id: [", "- 1\n", "run_id: !!python/object:os.system x\nconfig: {}\n"])
def test_malformed_yaml_is_refused(new_run: Callable[..., Path], capsys: pytest.CaptureFixture[str], text: str) -> None:
    run_dir = new_run()
    (run_dir / "run.yaml").write_text(text)
    assert main([str(run_dir)]) == 2
    assert "run.yaml" in capsys.readouterr().err


def test_missing_folder_and_missing_run_yaml_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nothing")]) == 2
    assert main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "does not exist" in error
    assert "has no run.yaml" in error


def test_other_data_and_other_vocabulary_are_refused(new_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    other_data = new_run("data", data={"data_id": "0" * 12})
    other_words = new_run("words", model={"text_vocab": 91})
    assert main([str(other_data)]) == 2
    assert read_json(other_data / "failure.json")["class"] == "data"  # type: ignore[index]
    assert main([str(other_words)]) == 2
    assert "model.text_vocab=91" in capsys.readouterr().err


def test_failures_are_told_apart() -> None:
    assert failure_class(OSError(errno.ENOSPC, "x")) == "disk_full"
    assert failure_class(OSError(errno.EACCES, "x")) == "error"
    assert failure_class(MemoryError()) == "oom"
    assert failure_class(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")) == "oom"
    assert failure_class(torch.OutOfMemoryError("CUDA out of memory")) == "oom"
    assert failure_class(ModuleNotFoundError("torch")) == "import"
    assert failure_class(DataError("x")) == "data"
    assert failure_class(ValueError("x")) == "error"


def test_defect_is_recorded_with_its_traceback(
    new_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = new_run()

    def broken(*_: object) -> None:
        raise ValueError("a defect\nof two lines")

    monkeypatch.setattr(Trainer, "train_step", broken)
    assert main([str(run_dir)]) == 1
    failure = read_json(run_dir / "failure.json")
    assert failure is not None
    assert (failure["class"], failure["cause"]) == ("error", "ValueError: a defect")
    assert "in broken" in failure["traceback"]
    assert capsys.readouterr().err == "error: ValueError: a defect\n"


def test_wall_clock_fields_are_the_only_ones_a_twin_may_change(new_run: Callable[..., Path]) -> None:
    clock = {
        "time", "seconds", "data_seconds", "data_wait_share", "tokens_per_second", "units_per_second",
        "audio_seconds_per_second", "peak_memory_mib",
    }  # fmt: skip
    assert clock == WALL_CLOCK_FIELDS & TRAIN_FIELDS
    # where the peak is known; after a lack of memory; of several processes
    assert WALL_CLOCK_FIELDS - clock == {"mfu", "micro_batch_tokens", "processes"}


def test_start_is_light(new_run: Callable[..., Path]) -> None:
    """Help needs no torch; a whole run needs neither torch's compiler nor sympy, which take longer to load than a run may."""
    run_dir = new_run(train={"steps": 2})
    program = f"""
import sys
import lst.train.__main__ as command
assert "torch" not in sys.modules
assert command.main([{str(run_dir)!r}]) == 0
heavy = [m for m in ("torch._dynamo", "torch._inductor", "sympy", "hydra", "matplotlib", "scipy") if m in sys.modules]
assert not heavy, heavy
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr


@pytest.fixture
def closed_pipe() -> Iterator[int]:
    """Where writing fails, for nobody can read any more."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.mark.parametrize("together", [False, True])
def test_closed_pipe_does_not_end_the_run_and_is_told_once(
    new_run: Callable[..., Path], closed_pipe: int, together: bool
) -> None:
    """`python -m lst.train RUN | head -1`, and the same with `2>&1`."""
    run_dir = new_run(train={"steps": 4}, evaluation={"points": 4, "story_items": 0})
    command = [sys.executable, "-m", "lst.train", str(run_dir)]
    streams = {"stdout": closed_pipe, "stderr": closed_pipe if together else subprocess.PIPE}
    result = subprocess.run(command, cwd=ROOT, text=True, timeout=120, check=False, **streams)  # type: ignore[call-overload]
    assert result.returncode == 0
    assert (read_json(run_dir / "exit.json") or {})["status"] == "done"
    assert result.stderr == (None if together else CLOSED + "\n")


def test_closed_pipe_leaves_exit_codes_as_they_are(new_run: Callable[..., Path], closed_pipe: int) -> None:
    run_dir = new_run(optim={"lr": 1e30})
    command = [sys.executable, "-m", "lst.train", str(run_dir)]
    both = {"stdout": closed_pipe, "stderr": closed_pipe}
    assert subprocess.run(command, cwd=ROOT, timeout=120, check=False, **both).returncode == 1
    assert (read_json(run_dir / "failure.json") or {})["class"] == "nan"
    assert subprocess.run([*command, "--no-such-option"], cwd=ROOT, timeout=120, check=False, **both).returncode == 2
    command[-1] += "-elsewhere"
    assert subprocess.run(command, cwd=ROOT, timeout=120, check=False, **both).returncode == 2
