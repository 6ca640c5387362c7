"""Several processes train one run as one process would: the same batches, the same weights, one voice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lst.data.pack import PackedBatch
from lst.data.shards import open_dataset
from lst.data.stream import Stream
from lst.errors import ConfigError, DataError
from lst.model import build_model
from lst.records import read_json, read_jsonl
from lst.shapes import sharded_shapes
from lst.train.__main__ import main
from lst.train.batches import Prefetch, StepBatch
from lst.train.distributed import LAST_WORDS_SECONDS, Place, Ranks, first_host
from lst.train.folder import RunLock, read_run_config
from lst.train.sharding import row_range
from tests.train.tiny_run import ROOT, records, tiny_config, write_run

RUNNER = Path(__file__).with_name("rank_runner.py")
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
SRUN = {
    "SLURM_STEP_ID": "0", "SLURM_PROCID": "9", "SLURM_NTASKS": "16", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "123456",
    "SLURM_STEP_NODELIST": "gpu[007-008]",
}  # fmt: skip


pytestmark = pytest.mark.usefixtures("restore_process")


@pytest.fixture
def new_run(tmp_path: Path, tiny_data: Path):
    def new(name: str = "run", arm: str = "lst_mixed", **overrides: Any) -> Path:
        small = {
            "train": {"steps": 8, "final_batch_sequences": 1},  # of the last batch one of two ranks has nothing
            "evaluation": {"heldout_documents": 3, "story_items": 2},
            "execution": {"checkpoint_every_seconds": 1e-6, "micro_batch_tokens": 200},
        }
        merged = {k: v | overrides.pop(k, {}) for k, v in small.items()} | overrides
        return write_run(tmp_path / name, tiny_config(arm, tiny_data, **merged))

    return new


def run_jobs(*jobs: dict[str, Any]) -> list[dict[str, Any]]:
    environment = dict(os.environ) | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(RUNNER), json.dumps([job | {"run": str(job["run"])} for job in jobs])]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=170, check=False)
    assert result.returncode == 0, result.stderr
    outcome: list[dict[str, Any]] = json.loads(result.stdout.splitlines()[-1])
    return outcome


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "checkpoints" / "final" / "model.safetensors")


def hashes(run_dir: Path) -> list[tuple[int, str]]:
    return [(r["step"], r["batch_hash"]) for r in read_jsonl(run_dir / "train.jsonl")]


# ---- who is who


def test_without_a_launcher_there_is_one_process() -> None:
    assert Place.read({"PATH": "x", "MASTER_PORT": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"}) == Place()


def test_torchruns_variables_come_first() -> None:
    assert Place.read(SRUN | TORCHRUN) == Place(rank=1, size=4, local=1, host="10.0.0.1", port=29500)


def test_sruns_variables_give_the_first_host_and_a_port_of_the_job() -> None:
    assert Place.read(SRUN) == Place(rank=9, size=16, local=1, host="gpu007", port=20_000 + 123456 % 12_000)
    again = Place.read(SRUN | {"SLURM_STEP_ID": "1"}).port  # tried again after a port that was taken
    assert Place.read(SRUN).port != again < 32_768
    assert Place.read(SRUN | {"MASTER_ADDR": "a", "MASTER_PORT": "7"}).host == "a"
    assert Place.read(SRUN | {"SLURM_NTASKS": "1"}) == Place()


@pytest.mark.parametrize(
    ("nodes", "first"), [("gpu[007-009,12],cpu1", "gpu007"), ("a1,a2", "a1"), ("n[3,5]-ib", "n3-ib"), ("host", "host")]
)
def test_first_host_of_a_node_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({k: v for k, v in TORCHRUN.items() if k != "MASTER_PORT"}, "MASTER_PORT not set"),
        ({"WORLD_SIZE": "2"}, "RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT not set"),
        ({k: v for k, v in SRUN.items() if k != "SLURM_LOCALID"}, "SLURM_LOCALID not set"),
        (TORCHRUN | {"RANK": "4"}, "RANK=4"),
        (TORCHRUN | {"RANK": "one"}, "RANK='one' is no number"),
    ],
)
def test_half_set_environment_is_refused_before_anything_is_written(
    new_run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], environment: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Place.read(environment)
    run_dir = new_run()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main([str(run_dir)]) == 2
    assert message in capsys.readouterr().err
    assert [p.name for p in run_dir.iterdir()] == ["run.yaml"]


def test_more_processes_than_sequences_are_refused_before_anything_is_written(
    new_run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = new_run()
    for name, value in (TORCHRUN | {"WORLD_SIZE": "5", "RANK": "0"}).items():
        monkeypatch.setenv(name, value)
    assert main([str(run_dir)]) == 2  # without waiting for the other four
    error = capsys.readouterr().err
    assert "5 processes cannot share train.batch_sequences=4" in error
    assert error.count("\n") == 1
    assert [p.name for p in run_dir.iterdir()] == ["run.yaml"]
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    monkeypatch.setenv("RANK", "3")
    assert main([str(run_dir)]) == 2
    assert capsys.readouterr().err == ""  # rank 0 said it
    assert waits == [LAST_WORDS_SECONDS]  # and had the time for it


# ---- shares


@pytest.mark.parametrize("size", [2, 3, 4, 7])
def test_shares_make_up_the_batch_and_are_even_in_every_kind_of_row(tiny_data: Path, size: int) -> None:
    stream = Stream(open_dataset(tiny_data), tiny_config("lst_mixed", tiny_data, train={"batch_sequences": 12}))
    whole = stream.batch(3)
    shares = [stream.batch(3, rank=rank, size=size) for rank in range(size)]
    assert sorted(row.digest for share in shares for row in share.rows) == sorted(row.digest for row in whole.rows)
    assert sum(share.digest for share in shares) == whole.digest
    for kind in (True, False):
        counts = [sum(row.interleaved == kind for row in share.rows) for share in shares]
        assert max(counts) - min(counts) <= 2  # one for each patching
    rows = [len(share.rows) for share in shares]
    assert max(rows) - min(rows) <= 1


def test_batch_of_one_process_is_the_whole_one(tiny_data: Path) -> None:
    stream = Stream(open_dataset(tiny_data), tiny_config("lst_static", tiny_data))
    rows = Prefetch(stream, rank=0, size=1, steps=12)
    batch, whole = StepBatch.make(rows, 2, Ranks()), stream.batch(2)
    rows.close()
    assert (batch.counts, batch.hash) == (whole.counts, whole.hash)
    assert stream.batch(1).hash != whole.hash


@pytest.mark.parametrize("steps", [[0, 1, 2, 3], [5, 6, 3, 4, 5, 11], [11, 0]])
def test_prefetched_batches_are_those_of_their_steps_in_any_order(tiny_data: Path, steps: list[int]) -> None:
    """A branch or a resumed run asks for another step than the one that was made ahead."""
    stream = Stream(open_dataset(tiny_data), tiny_config("lst_mixed", tiny_data))
    rows = Prefetch(stream, rank=0, size=1, steps=12)
    assert [rows.batch(step).hash for step in steps] == [stream.batch(step).hash for step in steps]
    rows.close()


def test_what_a_row_raises_ahead_is_raised_where_it_is_asked_for(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Prefetch(Stream(open_dataset(tiny_data), tiny_config("lst_mixed", tiny_data)), rank=0, size=1, steps=12)
    whole = Stream.batch

    def broken(stream: Stream, step: int, **share: int) -> PackedBatch:
        if step == 1:
            raise DataError("a damaged document")
        return whole(stream, step, **share)

    monkeypatch.setattr(Stream, "batch", broken)
    rows.batch(0)
    with pytest.raises(DataError, match="a damaged document"):
        rows.batch(1)
    rows.close()


def test_hash_sees_every_row_twice_too(tiny_data: Path) -> None:
    whole = Stream(open_dataset(tiny_data), tiny_config("lst_static", tiny_data)).batch(0)
    twice = type(whole)([*whole.rows, whole.rows[0], whole.rows[0]])
    assert len({whole.hash, twice.hash, type(whole)(whole.rows[1:]).hash}) == 3
    assert type(whole)(whole.rows[::-1]).hash == whole.hash


@pytest.mark.parametrize(("rows", "size"), [(10, 3), (4, 4), (3, 5), (1, 2), (32503, 8)])
def test_row_ranges_cover_all_rows_once(rows: int, size: int) -> None:
    ranges = [row_range(rows, rank, size) for rank in range(size)]
    assert [i for start, stop in ranges for i in range(start, stop)] == list(range(rows))


# ---- ranks


@pytest.mark.slow
@pytest.mark.parametrize(("arm", "size", "model"), [("lst_static", 2, {}), ("baseline", 3, {"tied_head": True})])
def test_shards_of_the_ranks_are_the_weights_of_one_process(new_run, arm: str, size: int, model: dict[str, Any]) -> None:
    run_dir = new_run(arm=arm, model=model)
    (outcome,) = run_jobs({"run": run_dir, "size": size, "do": "save_parts"})
    assert outcome["codes"] == [0] * size, outcome
    parts = [load_file(run_dir / f"parts-{rank}.safetensors") for rank in range(size)]
    whole = dict(build_model(read_run_config(run_dir)).named_parameters())
    assert all(part.keys() == whole.keys() for part in parts)
    for name, parameter in whole.items():
        assert torch.equal(torch.cat([part[name] for part in parts]), parameter.detach()), name
    held = sum(p.numel() for p in parts[0].values())
    assert held < 0.6 * sum(p.numel() for p in whole.values())
    assert held == sharded_shapes(read_run_config(run_dir).model).on_rank(size)  # what the planner reckons with


@pytest.mark.slow
def test_two_ranks_train_as_one_and_one_goes_on_where_two_stopped(new_run) -> None:
    """2 -> 1 -> 2 against 1 and against 2, all with the same batches; the world sizes differ by rounding alone."""
    alone, both, mixed = new_run("alone"), new_run("both"), new_run("mixed")
    outcomes = run_jobs(
        {"run": alone, "size": 1},
        {"run": both, "size": 2},
        {"run": mixed, "size": 2, "kill": 2},
        {"run": mixed, "size": 1, "kill": 5},
        {"run": mixed, "size": 2},
    )
    assert [o["codes"] for o in outcomes] == [[0], [0, 0], [-9, -9], [-9], [0, 0]], outcomes
    assert [step for step, _ in hashes(alone)] == list(range(1, 9))
    assert hashes(alone) == hashes(both) == hashes(mixed)
    expected = weights(alone)
    for other in (both, mixed):
        assert weights(other).keys() == expected.keys()
        for name, tensor in weights(other).items():
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-5, msg=name)
        for ours, theirs in zip(records(other)["eval.jsonl"], records(alone)["eval.jsonl"], strict=True):
            assert ours["value"] == pytest.approx(theirs["value"], rel=1e-5)
        for ours, theirs in zip(records(other)["train.jsonl"], records(alone)["train.jsonl"], strict=True):
            assert {k: v for k, v in ours.items() if isinstance(v, int)} == {
                k: v for k, v in theirs.items() if isinstance(v, int)
            }
            assert ours["train_flops"] == theirs["train_flops"]
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    assert read_json(mixed / "exit.json")["attempts"] == 3  # type: ignore[index]


@pytest.mark.slow
@pytest.mark.parametrize("execution", [{}, {"checkpoint_async": True, "activation_checkpointing": "layers"}])
def test_two_ranks_killed_and_resumed_end_like_two_undisturbed_ones_to_the_bit(new_run, execution: dict[str, Any]) -> None:
    calm = new_run("calm", execution={"checkpoint_every_seconds": 1e9, "micro_batch_tokens": 200})
    harried = new_run("harried", execution={"checkpoint_every_seconds": 1e-6, "micro_batch_tokens": 200} | execution)
    outcomes = run_jobs(
        {"run": calm, "size": 2},
        {"run": harried, "size": 2, "kill": 3},
        {"run": harried, "size": 2, "kill": 6},
        {"run": harried, "size": 2},
    )
    assert [o["codes"] for o in outcomes] == [[0, 0], [-9, -9], [-9, -9], [0, 0]], outcomes
    for name, tensor in weights(calm).items():
        assert torch.equal(tensor, weights(harried)[name]), name
    assert records(calm) == records(harried)


@pytest.mark.slow
def test_signal_to_one_rank_stops_all_at_one_step(new_run) -> None:
    calm, stopped = new_run("calm"), new_run("stopped", execution={"checkpoint_every_seconds": 1e9, "micro_batch_tokens": 200})
    outcomes = run_jobs(
        {"run": calm, "size": 2},
        {"run": stopped, "size": 2, "signal": "SIGTERM", "rank": 1, "after": 2},
        {"run": stopped, "size": 2},
    )
    assert [o["codes"] for o in outcomes] == [[0, 0], [75, 75], [0, 0]], outcomes
    assert records(calm) == records(stopped)
    assert not (stopped / "failure.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "rank", "kind", "code", "cause"),
    [
        ("broken_data", 1, "data", 2, "rank 1: a record is malformed"),
        ("broken_step", 1, "error", 1, "rank 1: ValueError: a defect"),
        ("full_disk", 0, "disk_full", 1, "no space left to write"),
    ],
)
def test_failure_of_one_rank_ends_all_and_is_told_once(new_run, fault: str, rank: int, kind: str, code: int, cause: str) -> None:
    run_dir = new_run()
    (outcome,) = run_jobs({"run": run_dir, "size": 2, "fault": fault, "rank": rank})
    assert outcome["codes"] == [code, code], outcome
    failure = read_json(run_dir / "failure.json")
    assert failure is not None
    assert (failure["class"], failure["attempt"]) == (kind, 1)
    assert failure["cause"].startswith(cause)
    assert f"error: {failure['cause']}" in outcome["stderr"][0]
    assert "error:" not in outcome["stderr"][1]
    if fault == "full_disk":
        assert (run_dir / "checkpoints" / "latest").read_text() == "step-00000002\n"


@pytest.mark.slow
def test_step_that_is_bad_on_one_rank_is_skipped_by_all(new_run) -> None:
    run_dir = new_run(arm="baseline", train={"steps": 3, "bad_step": "skip"}, evaluation={"points": 1, "story_items": 0})
    (outcome,) = run_jobs({"run": run_dir, "size": 2, "fault": "bad_norm", "rank": 1})
    assert outcome["codes"] == [0, 0], outcome
    skipped = {r["step"]: r["skipped"] for r in records(run_dir)["train.jsonl"] if "skipped" in r}
    assert skipped == {3: "elsewhere"}  # as rank 0, which saw nothing, records it


@pytest.mark.slow
def test_run_that_another_process_trains_is_refused_to_all_ranks(new_run) -> None:
    run_dir = new_run()
    lock = RunLock(run_dir)
    try:
        (outcome,) = run_jobs({"run": run_dir, "size": 2})
    finally:
        lock.release()
    assert outcome["codes"] == [1, 1], outcome
    assert f"is being trained by process {os.getpid()}" in outcome["stderr"][0]
    assert "error:" not in outcome["stderr"][1]
    assert not (run_dir / "failure.json").exists()
