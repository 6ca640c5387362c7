"""Records survive kills and full disks: whole lines or none, each step once."""

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lst.errors import CheckpointError
from lst.records import JsonLinesWriter, Position, read_json, read_jsonl, write_atomically


def test_a_torn_last_line_is_ignored_and_then_cut_off(tmp_path):
    path = tmp_path / "train.jsonl"
    with JsonLinesWriter(path) as writer:
        writer.write({"step": 1})
        writer.write({"step": 2})
    with path.open("a") as file:
        file.write('{"step": 3, "lo')
    assert read_jsonl(path) == [{"step": 1}, {"step": 2}]
    with JsonLinesWriter(path) as writer:
        writer.write({"step": 3})
    assert [r["step"] for r in read_jsonl(path)] == [1, 2, 3]


def test_records_past_the_checkpoint_are_dropped_on_resume(tmp_path):
    path = tmp_path / "train.jsonl"
    with JsonLinesWriter(path) as writer:
        for step in range(1, 6):
            writer.write({"step": step})
            if step == 3:
                position = writer.position
    with JsonLinesWriter(path, position=position) as writer:
        assert writer.dropped == [{"step": 4}, {"step": 5}]
        writer.write({"step": 4})
    assert [r["step"] for r in read_jsonl(path)] == [1, 2, 3, 4]
    with JsonLinesWriter(path) as writer:
        assert writer.position == Position(path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
    with JsonLinesWriter(path, position=Position()):
        assert path.read_bytes() == b""


@pytest.mark.parametrize("cut", [0, 5, 11, 21])
def test_records_that_the_checkpoint_counts_on_and_are_gone_are_told_and_left_alone(tmp_path, cut):
    path = tmp_path / "train.jsonl"
    with JsonLinesWriter(path) as writer:
        writer.write({"step": 1})
        writer.write({"step": 2})
    position = writer.position
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match="is shorter than the 22 bytes that the checkpoint counts on; restore it"):
        JsonLinesWriter(path, position=position)
    assert path.stat().st_size == cut


def test_every_flipped_bit_of_the_records_that_a_checkpoint_counts_on_is_found(tmp_path):
    path = tmp_path / "train.jsonl"
    with JsonLinesWriter(path) as writer:
        writer.write({"step": 1})
    good = path.read_bytes()
    for place in range(8 * len(good)):
        damaged = bytearray(good)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged + b'{"step": 2}\n')
        with pytest.raises(CheckpointError, match="does not begin with"):
            JsonLinesWriter(path, position=writer.position)
        assert path.read_bytes() == damaged + b'{"step": 2}\n'


@given(st.integers(0, 200))
def test_a_file_cut_anywhere_gives_whole_records_only(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("cut") / "r.jsonl"
    with JsonLinesWriter(path) as writer:
        for step in range(8):
            writer.write({"step": step, "loss": 1.5})
    path.write_bytes(path.read_bytes()[:cut])
    records = read_jsonl(path)
    assert [r["step"] for r in records] == list(range(len(records)))
    assert all(r["loss"] == 1.5 for r in records)


def test_a_failed_write_leaves_no_half_line(tmp_path, monkeypatch):
    import os

    path = tmp_path / "r.jsonl"
    writer = JsonLinesWriter(path)
    writer.write({"step": 1})
    real = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: real(handle, data[:4]))
    with pytest.raises(OSError, match="no space left"):
        writer.write({"step": 2})
    monkeypatch.undo()
    writer.write({"step": 2})
    assert read_jsonl(path) == [{"step": 1}, {"step": 2}]


def test_non_finite_numbers_are_refused_rather_than_written_as_no_json(tmp_path):
    with JsonLinesWriter(tmp_path / "r.jsonl") as writer, pytest.raises(ValueError, match="Out of range"):
        writer.write({"step": 1, "loss": float("nan")})


def test_an_atomic_write_that_fails_keeps_the_old_file(tmp_path, monkeypatch):
    import os

    path = tmp_path / "exit.json"
    write_atomically(path, json.dumps({"status": "old"}).encode())

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert read_json(path) == {"status": "old"}
    assert [p.name for p in tmp_path.iterdir()] == ["exit.json"]
