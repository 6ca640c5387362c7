"""The ledger and the leases: what survives torn lines, many writers and killed holders."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from launch.lease import Lease, holder, process_mark, signal_holder
from launch.ledger import Attempt, append_event, attempts_of, next_attempt, read_attempts
from launch.status import gather
from lst.records import read_jsonl
from tests.launch.study import make_study, start, steps, wait_for


def test_events_become_attempts(tmp_path: Path) -> None:
    (tmp_path / "launch").mkdir()
    append_event(tmp_path, "submitted", "r", attempt=1, job_id="7", time=10.0, cluster="slurm", token="t")
    append_event(tmp_path, "started", "r", attempt=1, job_id="7", time=12.0, gpus=4)
    append_event(tmp_path, "ended", "r", attempt=1, job_id="7", time=18.5, state="failed", cause="nan: x")
    append_event(tmp_path, "submitted", "r", attempt=2, job_id="8", time=20.0)
    first, second = read_attempts(tmp_path)["r"]
    assert first == Attempt(
        attempt=1,
        line=1,
        job_id="7",
        submitted=10.0,
        started=12.0,
        ended=18.5,
        state="failed",
        cause="nan: x",
        gpus=4,
        cluster="slurm",
        token="t",
    )
    assert (first.seconds(100.0), second.seconds(100.0)) == (6.5, 0.0)
    assert next_attempt([first, second], "8") == 2
    assert next_attempt([first, second], "9") == 3
    assert next_attempt([]) == 1


def test_a_requeued_job_begins_a_new_attempt() -> None:
    ended = Attempt(attempt=1, job_id="7", submitted=1.0, started=2.0, ended=3.0, state="interrupted")
    assert next_attempt([ended], "7") == 2


def test_a_torn_line_costs_that_line_alone(tmp_path: Path) -> None:
    (tmp_path / "launch").mkdir()
    append_event(tmp_path, "submitted", "a", attempt=1, job_id="1")
    path = tmp_path / "launch/ledger.jsonl"
    with path.open("a") as file:
        file.write('{"time":1.0,"run_id":"a","eve')
    append_event(tmp_path, "started", "a", attempt=1, job_id="1")
    assert [e["event"] for e in read_jsonl(path)] == ["submitted", "started"]


def test_lines_that_are_no_events_are_left_out() -> None:
    events = [{"run_id": "a"}, {"run_id": "a", "attempt": "x", "event": "started", "time": 1}, {"event": "started"}]
    assert attempts_of(events) == {}


def test_many_writers_lose_nothing(tmp_path: Path) -> None:
    (tmp_path / "launch").mkdir()
    code = (
        "import sys; from pathlib import Path; from launch.ledger import append_event\n"
        "for n in range(100): append_event(Path(sys.argv[1]), 'started', 'r' + sys.argv[2], attempt=n, job_id='x' * 200)"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(n)]) for n in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert {run: len(attempts) for run, attempts in read_attempts(tmp_path).items()} == {"r0": 100, "r1": 100, "r2": 100}


def test_a_lease_has_one_holder_and_dies_with_it(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    assert holder(path) is None
    lease = Lease.acquire(path, job_id="7")
    assert lease is not None
    assert Lease.acquire(path, wait=0.05) is None
    found = holder(path)
    assert found is not None
    assert found["job_id"] == "7"
    lease.release()
    assert holder(path) is None
    code = (
        "import os, sys; from pathlib import Path; from launch.lease import Lease\n"
        "Lease.acquire(Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == -9
    assert holder(path) is None
    assert signal_holder(path, 0) is False


def test_a_recycled_process_id_is_not_signalled(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    bystander = subprocess.Popen(["sleep", "60"])
    lease = Lease.acquire(path)
    assert lease is not None
    lease.describe(process=[bystander.pid, 1])
    assert signal_holder(path, 15) is False
    assert bystander.poll() is None
    lease.describe(process=process_mark(bystander.pid))
    assert signal_holder(path, 15) is True
    assert bystander.wait(10) == -15


def test_looking_at_a_study_disturbs_no_run(tmp_path: Path) -> None:
    runs = make_study(tmp_path, *[{"steps": 5, "seconds_per_step": 0.02}] * 4)
    process = start("submit", tmp_path, "parallel=2")
    wait_for(lambda: gather(tmp_path) and process.poll() is not None, "the study to end while it is looked at all the time")
    assert process.communicate()[1] == ""
    assert process.returncode == 0
    assert [steps(tmp_path, run) for run in runs] == [[1, 2, 3, 4, 5]] * 4
