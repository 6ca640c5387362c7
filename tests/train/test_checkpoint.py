"""Checkpoints: what is read is what was written, and a damaged, torn or foreign one is never taken for good."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lst.config import RunConfig
from lst.errors import CheckpointError
from lst.model import build_model, make_batch
from lst.model.export import load_checkpoint, load_weights, verify_folder, write_tensors
from lst.train import checkpoint
from lst.train.checkpoint import Snapshot, TrainState, resume, save_checkpoint, save_final
from lst.train.layout import clean_up
from lst.train.optim import AdamW
from tests.train.tiny_run import tiny_config

DOCUMENTS = [[("text", [12, 7]), ("speech", [3, 3, 9, 31, 7, 7]), ("text", [5])]]


@dataclasses.dataclass
class Run:
    folder: Path
    config: RunConfig
    model: torch.nn.Module
    optimizer: AdamW

    def train_to(self, step: int) -> None:
        """Move weights and moments somewhere else, and save."""
        generator = torch.Generator().manual_seed(step)
        for parameter in self.model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        self.optimizer.step(1e-2)
        state = TrainState(run_id=self.config.run_id, step=step, train_flops=step / 3, counts={"units": step})
        snapshot = Snapshot.take(model=self.model, optimizer=self.optimizer, config=self.config, state=state)
        save_checkpoint(self.folder, snapshot)

    def fresh(self) -> Run:
        model = build_model(self.config)
        return Run(self.folder, self.config, model, AdamW(model, self.config.optim))

    def resume(self) -> TrainState:
        return resume(self.folder, model=self.model, optimizer=self.optimizer, config=self.config)

    def tensors(self) -> list[torch.Tensor]:
        return [t.clone() for t in (*self.model.state_dict().values(), *self.optimizer.tensors().values())]


@pytest.fixture
def run(tmp_path: Path, tiny_data: Path) -> Run:
    config = tiny_config("lst_static", tiny_data)
    model = build_model(config)
    return Run(tmp_path, config, model, AdamW(model, config.optim))


def names(run: Run) -> list[str]:
    return sorted(p.name for p in (run.folder / "checkpoints").iterdir())


def flip_bit(file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


def test_resume_gives_back_every_bit(run: Run) -> None:
    run.train_to(5)
    other = run.fresh()
    assert other.resume() == TrainState(run_id=run.config.run_id, step=5, train_flops=5 / 3, counts={"units": 5})
    assert all(torch.equal(a, b) for a, b in zip(run.tensors(), other.tensors(), strict=True))


def test_the_last_two_stay_and_latest_names_the_newest(run: Run) -> None:
    for step in (1, 2, 3, 10):
        run.train_to(step)
    assert names(run) == ["latest", "step-00000003", "step-00000010"]
    assert (run.folder / "checkpoints" / "latest").read_text() == "step-00000010\n"
    assert run.fresh().resume().step == 10


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "config.json", "manifest.json"])
def test_flipped_bit_is_rejected_and_the_one_before_taken(run: Run, name: str, caplog: pytest.LogCaptureFixture) -> None:
    run.train_to(1)
    expected = run.tensors()
    run.train_to(2)
    file = run.folder / "checkpoints" / "step-00000002" / name
    flip_bit(file, file.stat().st_size // 2)
    other = run.fresh()
    with caplog.at_level(logging.WARNING):
        assert other.resume().step == 1
    assert "rejected checkpoint step-00000002" in caplog.text
    assert name in caplog.text or name == "manifest.json"
    assert all(torch.equal(a, b) for a, b in zip(expected, other.tensors(), strict=True))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "config.json", "manifest.json"])
def test_truncated_or_missing_file_is_rejected(run: Run, name: str) -> None:
    run.train_to(1)
    run.train_to(2)
    file = run.folder / "checkpoints" / "step-00000002" / name
    file.write_bytes(file.read_bytes()[:-7])
    assert run.fresh().resume().step == 1
    file.unlink()
    assert run.fresh().resume().step == 1


def test_nothing_that_verifies_means_a_fresh_start(run: Run) -> None:
    run.train_to(1)
    (run.folder / "checkpoints" / "step-00000001" / "model.safetensors").write_bytes(b"")
    other = run.fresh()
    assert other.resume() == TrainState(run_id=run.config.run_id)
    assert all(torch.equal(a, b) for a, b in zip(run.fresh().tensors(), other.tensors(), strict=True))


def test_unfinished_save_is_swept_away(run: Run) -> None:
    run.train_to(1)
    torn = run.folder / "checkpoints" / ".step-00000002"
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"half")
    assert run.fresh().resume().step == 1
    assert names(run) == ["latest", "step-00000001"]


@pytest.mark.parametrize("failing", ["write_config", "write_tensors", "seal_folder"])
def test_full_disk_keeps_the_last_good_checkpoint(run: Run, failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run.train_to(1)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, failing, full)
    with pytest.raises(OSError, match="No space left"):
        run.train_to(2)
    assert names(run) == ["latest", "step-00000001"]
    assert run.fresh().resume().step == 1


def test_checkpoint_of_another_run_is_refused(run: Run, tiny_data: Path) -> None:
    run.train_to(1)
    config = tiny_config("lst_static", tiny_data, train={"seed": 9})
    model = build_model(config)
    with pytest.raises(CheckpointError, match=f"belongs to run {run.config.run_id}, not to {config.run_id}"):
        resume(run.folder, model=model, optimizer=AdamW(model, config.optim), config=config)


def test_final_checkpoint_loads_into_the_same_model(run: Run) -> None:
    run.train_to(3)
    run.model.eval()
    folder = save_final(run.folder, model=run.model, config=run.config)
    batch = make_batch(DOCUMENTS, run.config)
    for path in (folder, run.folder, run.folder / "checkpoints" / "step-00000003"):
        model, config = load_checkpoint(path)
        assert config == run.config
        assert not model.training
        assert torch.equal(model(batch), run.model(batch))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "manifest.json"])
def test_damaged_final_checkpoint_is_refused_with_its_file(run: Run, name: str) -> None:
    folder = save_final(run.folder, model=run.model, config=run.config)
    flip_bit(folder / name, 20)
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(folder)


def test_missing_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        load_checkpoint(tmp_path / "nothing")


def test_weights_of_another_shape_are_refused_by_name(run: Run, tiny_data: Path) -> None:
    folder = save_final(run.folder, model=run.model, config=run.config)
    other = tiny_config("lst_static", tiny_data, model={"speech_vocab": 50})
    text = json.dumps(json.loads((folder / "config.json").read_text()) | {"model": dataclasses.asdict(other.model)})
    files = json.loads((folder / "manifest.json").read_text())["sha256"]
    files["config.json"] = checkpoint.write_file(folder / "config.json", text.encode())
    checkpoint.seal_folder(folder, files)
    verify_folder(folder)
    with pytest.raises(
        CheckpointError, match=r"holds [\d,]+ numbers, its config.json makes [\d,]+; the checkpoint belongs to another"
    ):
        load_checkpoint(folder)
    with pytest.raises(CheckpointError, match=r"tensor 'embedding.weight' .* belongs to another configuration"):
        load_weights(build_model(other), folder / "model.safetensors")


def test_tied_head_is_stored_once_and_comes_back_tied(tmp_path: Path, tiny_data: Path) -> None:
    config = tiny_config("baseline", tiny_data, model={"tied_head": True})
    model = build_model(config)
    folder = save_final(tmp_path, model=model, config=config)
    assert "head.weight" not in load_file(folder / "model.safetensors")
    loaded, _ = load_checkpoint(folder)
    assert loaded.head.weight is loaded.embedding.weight
    assert torch.equal(loaded.head.weight, model.head.weight)


def test_written_tensors_are_what_the_safetensors_library_reads(tmp_path: Path) -> None:
    tensors = {
        "scalar": torch.tensor(2.5),
        "half": torch.randn(3, 5).bfloat16(),
        "strided": torch.arange(12).reshape(3, 4).t(),
        "empty": torch.zeros(0, 4),
        "flags": torch.tensor([True, False]),
        "bytes": torch.arange(7, dtype=torch.uint8),
    }
    digest = write_tensors(tmp_path / "t.safetensors", tensors)
    read = load_file(tmp_path / "t.safetensors")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)
    assert digest == __import__("hashlib").sha256((tmp_path / "t.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("content", [{"sha256": ["a"]}, {"sha256": {"model.safetensors": 1}}, {"sha256": None}, ["a"]])
def test_malformed_manifest_is_rejected_and_the_one_before_taken(run: Run, content: object) -> None:
    run.train_to(1)
    run.train_to(2)
    (run.folder / "checkpoints" / "step-00000002" / "manifest.json").write_text(json.dumps(content))
    assert run.fresh().resume().step == 1


@pytest.mark.parametrize("name", ["optimizer.safetensors", "state.json"])
def test_manifest_that_lists_not_all_of_a_resume_is_rejected(run: Run, name: str, caplog: pytest.LogCaptureFixture) -> None:
    run.train_to(1)
    run.train_to(2)
    manifest = run.folder / "checkpoints" / "step-00000002" / "manifest.json"
    files = json.loads(manifest.read_text())["sha256"]
    del files[name]
    manifest.write_text(json.dumps({"sha256": files}))
    verify_folder(manifest.parent)  # whole as weights alone
    with caplog.at_level(logging.WARNING):
        assert run.fresh().resume().step == 1
    assert f"lists no {name}" in caplog.text


def test_folders_of_other_names_are_neither_opened_counted_nor_removed(run: Run) -> None:
    run.train_to(1)
    root = run.folder / "checkpoints"
    others = ["step-00000009.bak", "step-9", "step-000000009", "step-mine"]
    for other in others:
        shutil.copytree(root / "step-00000001", root / other)
    for step in (2, 3):
        run.train_to(step)
    assert names(run) == sorted(["latest", "step-00000002", "step-00000003", *others])
    shutil.rmtree(root / "step-00000002")
    shutil.copytree(root / "step-00000003", root / "step-00000008")  # a copy under another step's name
    assert run.fresh().resume().step == 3
    clean_up(run.folder)
    assert names(run) == sorted(others)


def test_folder_in_the_place_of_latest_is_refused_and_kept(run: Run) -> None:
    (run.folder / "checkpoints" / "latest").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"latest' is a folder, .*; move it away\.$"):
        run.resume()
    clean_up(run.folder)
    assert names(run) == ["latest"]
