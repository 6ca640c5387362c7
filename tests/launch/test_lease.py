"""One run, one runner: who may take a run over, and that a runner that lost its run writes nothing more."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launch import lease as lease_module
from launch.lease import Lease, holder
from lst.records import Position, read_json, read_jsonl
from lst.train.fence import VARIABLE, Fenced, require_lease
from lst.train.run_records import FencedWriter
from tests.launch.study import wait_for
from tests.train.tiny_run import ROOT, records, tiny_config, train, write_run, write_tiny_dataset


def elsewhere(path: Path, **changes: object) -> None:
    """Make the lease at `path` look like that of another machine, with `changes`."""
    content = json.loads(path.read_text()) | {"host": "other", "job_id": "1_0"} | changes
    path.write_text(json.dumps(content))


def test_a_token_rises_with_every_taking_and_owners_differ(tmp_path: Path) -> None:
    owners = []
    for number in (1, 2, 3):
        lease = Lease.acquire(tmp_path / "lease.json", beats=True)
        assert lease is not None
        assert lease.content["token"] == number
        owners.append(lease.owner)
        lease.release()
    assert len(set(owners)) == 3


def test_a_holder_elsewhere_that_is_heard_of_keeps_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lease.json"
    lease = Lease.acquire(path, beats=True)
    assert lease is not None
    os.close(lease.file)  # no lock reaches here from the other machine
    elsewhere(path)
    found = holder(path)
    assert found is not None
    assert not found["locked"]
    beats = iter(range(1, 9))

    def pause(_: float) -> None:
        elsewhere(path, beat=lease.content["beat"] + next(beats))

    monkeypatch.setattr(lease_module.time, "sleep", pause)
    assert Lease.acquire(path, beats=True) is None


def test_a_holder_elsewhere_that_fell_silent_is_displaced_and_fenced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, log = tmp_path / "lease.json", tmp_path / "train.jsonl"
    old = Lease.acquire(path, beats=True)
    assert old is not None
    monkeypatch.setenv(VARIABLE, old.owner)
    writer = FencedWriter(log, position=Position())
    writer.write({"step": 1})
    elsewhere(path, beat=0.0)
    assert holder(path) is not None  # its lock still stands, as a lock of a machine that hangs does
    monkeypatch.setattr(lease_module, "CONFIRM_SECONDS", 0.05)
    new = Lease.acquire(path, beats=True)
    assert new is not None
    assert (old.held(), old.beat(), new.held()) == (False, False, True)
    with pytest.raises(Fenced, match="taken over by another runner"):
        writer.write({"step": 2})
    os.write(writer._file, b'{"step": 99}\n')  # in the moment between the look and the write
    assert [r["step"] for r in read_jsonl(log)] == [1]
    monkeypatch.setenv(VARIABLE, new.owner)
    require_lease(tmp_path)
    assert Lease.acquire(path, beats=True, wait=0.05) is None


class Listening:
    """A clock of its own for who listens; `beat`, if given, is what the holder does in each pause."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, beat: Callable[[float], None] = lambda now: None) -> None:
        self.now, self.beat = 0.0, beat
        monkeypatch.setattr(lease_module.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(lease_module.time, "sleep", self.pause)

    def pause(self, seconds: float) -> None:
        self.now += seconds
        self.beat(self.now)


def held_elsewhere(path: Path, *, ahead: float, locked: bool = False) -> float:
    """A lease whose holder is on a machine with its clock `ahead` by so many seconds; its beat by ours."""
    lease = Lease.acquire(path, beats=True)
    assert lease is not None
    if not locked:
        os.close(lease.file)
    beat = float(lease.content["beat"])
    elsewhere(path, beat=beat + ahead)
    return beat


@pytest.mark.parametrize("locked", [True, False])
@pytest.mark.parametrize("ahead", [-7200.0, 7200.0])
def test_a_clock_that_is_off_takes_no_run_from_a_holder_that_beats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: float, locked: bool
) -> None:
    path = tmp_path / "lease.json"
    beat = held_elsewhere(path, ahead=ahead, locked=locked)
    Listening(monkeypatch, lambda now: elsewhere(path, beat=beat + ahead + now // 5))
    assert Lease.acquire(path, beats=True) is None


@pytest.mark.parametrize(("ahead", "seconds"), [(-7200.0, 15.0), (7200.0, 60.0)])
def test_a_silent_holder_elsewhere_is_displaced_whatever_its_clock_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: float, seconds: float
) -> None:
    path = tmp_path / "lease.json"
    held_elsewhere(path, ahead=ahead)
    clock = Listening(monkeypatch)
    again = Lease.acquire(path, beats=True)
    assert again is not None
    assert again.former["host"] == "other"
    assert seconds <= clock.now < seconds + 1


def test_a_runner_killed_between_its_lease_and_its_first_beat_leaves_the_run_free(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    code = (
        "import os, sys; from pathlib import Path; from launch.lease import Lease\n"
        "Lease.acquire(Path(sys.argv[1]), beats=True, job_id='1_0'); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, check=False).returncode == -9
    again = Lease.acquire(path, beats=True, job_id="2_0")
    assert again is not None
    assert again.content["token"] == 2


def test_the_next_life_of_the_same_job_takes_the_run_over_at_once(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    lease = Lease.acquire(path, beats=True, job_id="1_0")
    assert lease is not None
    os.close(lease.file)
    elsewhere(path)
    again = Lease.acquire(path, beats=True, job_id="1_0")
    assert again is not None
    assert again.content["token"] == 2


def test_a_trainer_that_lost_its_run_leaves_without_a_word_in_the_folder(tmp_path: Path) -> None:
    data = write_tiny_dataset(tmp_path / "data")
    config = tiny_config("baseline", data, train={"steps": 4000}, execution={"checkpoint_every_seconds": 0.5})
    run_dir = write_run(tmp_path / "run", config)
    (run_dir / "lease.json").write_text('{"owner": "1-a"}')
    process = subprocess.Popen(
        [sys.executable, "-m", "lst.train", str(run_dir)], cwd=ROOT, env={**os.environ, VARIABLE: "1-a"}, stderr=subprocess.PIPE
    )
    wait_for(lambda: (run_dir / "checkpoints/latest").exists(), "a checkpoint")
    aside = tmp_path / "lease.json"
    aside.write_text('{"owner": "2-b"}')
    aside.replace(run_dir / "lease.json")
    assert b"taken over by another runner" in process.communicate(timeout=60)[1]
    assert process.returncode == 76
    assert not (run_dir / "failure.json").exists()


def test_a_stop_flag_stops_a_trainer_and_without_it_the_run_ends_as_if_undisturbed(tmp_path: Path) -> None:
    data = write_tiny_dataset(tmp_path / "data")
    run_dir = write_run(tmp_path / "run", tiny_config("baseline", data, train={"steps": 40}))
    flag = tmp_path / "flag"
    flag.write_text("USR2\n")
    argv = [sys.executable, "-m", "lst.train", str(run_dir)]
    environment = {**os.environ, "LST_STOP_FLAG": str(flag)}
    told = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, check=False, timeout=60)
    assert told.returncode == 75
    assert train(run_dir).returncode == 0
    alone = write_run(tmp_path / "alone", tiny_config("baseline", data, train={"steps": 40}))
    assert train(alone).returncode == 0
    assert records(run_dir) == records(alone)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_to_the_batch_script_before_python_is_up_is_not_lost(tmp_path: Path, number: signal.Signals) -> None:
    """The script's own lines, with a worker that is long in starting and then does what the real one does with a flag."""
    from launch.executor import AFTER, first_lines

    flagged = "import os, sys, time; time.sleep(1); sys.exit(75 if os.path.exists(os.environ['LST_STOP_FLAG']) else 0)"
    worker = f'{sys.executable} -S -c "{flagged}" &'
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\necho $@ >> {tmp_path}/asked\n")
    (tmp_path / "scontrol").chmod(0o755)
    text = "\n".join([*first_lines(tmp_path), "echo up", worker, AFTER])
    names = {"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "6", "SLURM_ARRAY_TASK_ID": "0", "SLURM_RESTART_COUNT": "2"}
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", **names}
    script = subprocess.Popen(["bash", "-c", text], env=environment, stdout=subprocess.PIPE, text=True)
    assert script.stdout is not None
    script.stdout.readline()
    script.send_signal(number)
    assert script.wait(30) == 0
    assert (tmp_path / "6_0.2").read_text() == f"{number.name.removeprefix('SIG')}\n"
    assert (tmp_path / "asked").read_text() == "requeue 6_0\n"


def test_lease_content_survives_a_shorter_description(tmp_path: Path) -> None:
    lease = Lease.acquire(tmp_path / "lease.json", waiting=["a" * 500])
    assert lease is not None
    lease.describe(waiting=[])
    found = read_json(tmp_path / "lease.json")
    assert found is not None
    assert found["waiting"] == []
