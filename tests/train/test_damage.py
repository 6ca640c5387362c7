"""Damaged run.yaml and records: told in one sentence, exit code 2, nothing written over. (Checkpoints: test_checkpoint.)"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lst.config import RunConfig
from lst.errors import LstError
from lst.records import read_json
from lst.train.__main__ import main
from lst.train.folder import read_run_config
from lst.train.trainer import Trainer
from tests.train.tiny_run import tiny_config, write_run

pytestmark = pytest.mark.usefixtures("restore_process")


@pytest.fixture
def new_run(tmp_path: Path, tiny_data: Path) -> Callable[..., Path]:
    def new(**overrides: Any) -> Path:
        return write_run(tmp_path / "run", tiny_config("lst_static", tiny_data, **overrides))

    return new


def run_config(run_dir: Path) -> RunConfig:
    return RunConfig.from_dict(json.loads((run_dir / "run.yaml").read_text())["config"])


def refusal(run_dir: Path, run_id: str) -> str:
    """The sentence with which run.yaml is refused; empty where it still is run `run_id`."""
    try:
        assert read_run_config(run_dir).run_id == run_id
    except LstError as error:
        return str(error)
    return ""


def test_flipped_bit_of_run_yaml_changes_no_result(new_run: Callable[..., Path]) -> None:
    """Each is refused in one sentence, or leaves what decides the result as it was (execution, or how the file is laid out)."""
    file = new_run() / "run.yaml"
    run_id, good = run_config(file.parent).run_id, file.read_bytes()
    told = []
    for place in range(0, 8 * len(good), 41):
        damaged = bytearray(good)
        damaged[place // 8] ^= 1 << place % 8
        file.write_bytes(damaged)
        sentence = refusal(file.parent, run_id)
        assert "\n" not in sentence
        told.append(sentence)
        assert file.read_bytes() == damaged
    assert sum(map(bool, told)) > 0.5 * len(told)


@pytest.mark.parametrize("name", ["train.jsonl", "eval.jsonl", "items.jsonl"])
@pytest.mark.parametrize("how", ["flipped", "cut"])
def test_damaged_records_are_refused_and_nothing_is_written_over(
    new_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, how: str
) -> None:
    run_dir = new_run(evaluation={"points": 2})
    train_to_end = Trainer._train_to_end

    def saved(self: Trainer) -> None:
        train_to_end(self)
        self.save()

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_to_end", saved)
        patch.setattr(Trainer, "_finish", lambda self: None)  # as if it had been killed between its last step and its exit record
        assert main([str(run_dir)]) == 0
    file = run_dir / name
    data = file.read_bytes()
    assert len(data) > 200
    file.write_bytes(data[:-1] if how == "cut" else data[:100] + bytes([data[100] ^ 1]) + data[101:])
    before = {p: p.read_bytes() for p in run_dir.rglob("*") if p.is_file() and p.name != ".lock"}
    assert main([str(run_dir)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: '{file}' ")
    assert "that the checkpoint counts on; restore it" in error
    assert error.count("\n") == 1
    assert read_json(run_dir / "failure.json")["class"] == "config"  # type: ignore[index]
    after = {p: p.read_bytes() for p in run_dir.rglob("*") if p.is_file() and p.name not in (".lock", "failure.json")}
    assert before == after


def lock_folder(run_dir: Path, _: pytest.MonkeyPatch) -> None:
    (run_dir / ".lock").mkdir()


def lock_without_count(run_dir: Path, _: pytest.MonkeyPatch) -> None:
    (run_dir / ".lock").write_text('{"attempt": "x"}')


def latest_folder(run_dir: Path, _: pytest.MonkeyPatch) -> None:
    (run_dir / "checkpoints" / "latest").mkdir(parents=True)


def read_only(run_dir: Path, patch: pytest.MonkeyPatch) -> None:
    really_open = os.open

    def refuse(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if flags & os.O_CREAT and Path(path).is_relative_to(run_dir):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return really_open(path, flags, *rest, **options)

    patch.setattr(os, "open", refuse)


@pytest.mark.parametrize(
    ("damage", "code", "sentence"),
    [
        (lock_folder, 2, "/.lock' is a folder, where"),
        (lock_without_count, 2, "/.lock' has attempt='x', which counts no attempts; delete the file."),
        (latest_folder, 2, "/checkpoints/latest' is a folder, where"),
        (read_only, 1, "/.lock' cannot be written (Read-only file system)"),
    ],
)
def test_folder_in_which_no_run_can_be_is_told_in_one_sentence(
    new_run: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path, pytest.MonkeyPatch], None],
    code: int,
    sentence: str,
) -> None:
    run_dir = new_run()
    with monkeypatch.context() as patch:
        damage(run_dir, patch)
        assert main([str(run_dir)]) == code
    error = capsys.readouterr().err
    assert sentence in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
