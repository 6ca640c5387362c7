"""Records survive kills and full disks: whole lines or none, each step once."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lst.records import JsonLinesWriter, read_json, read_jsonl, write_atomically


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
    with JsonLinesWriter(path, last_step=3) as writer:
        writer.write({"step": 4})
    assert [r["step"] for r in read_jsonl(path)] == [1, 2, 3, 4]


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
