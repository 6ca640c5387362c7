"""What status tells: the contract's keys, the arithmetic of time and GPU-hours, and the lines for humans."""

from __future__ import annotations

import errno
import io
import json
import os
import stat
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from launch.cli import main
from launch.display import Display, bar, duration, summary, table
from launch.failures import judge_death, last_record
from launch.ledger import append_event, read_attempts
from launch.rows import read_rows
from launch.snapshot import PACKAGES, code_hash, make_private, take_snapshot
from launch.status import RunStatus, eta_seconds, gather
from lst.errors import LaunchError
from lst.records import write_json
from tests.launch.study import call, make_study, status

CONTRACT = {"run_id", "arm", "size", "state", "cause", "step", "steps", "attempts", "gpu_hours"}


def test_status_json_is_a_list_with_the_contracts_keys(tmp_path: Path) -> None:
    runs = make_study(tmp_path, {"steps": 2}, {"steps": 7})
    code, out, err = call("status", tmp_path, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert [run["run_id"] for run in found] == runs
    assert all(set(run) >= CONTRACT for run in found)
    assert {key: found[1][key] for key in CONTRACT} == {
        "run_id": runs[1], "arm": "baseline", "size": "tiny", "state": "planned", "cause": "",
        "step": 0, "steps": 7, "attempts": 0, "gpu_hours": 0.0,
    }  # fmt: skip


def test_gpu_hours_add_up_over_attempts(tmp_path: Path) -> None:
    (run,) = make_study(tmp_path, {"steps": 2})
    (tmp_path / "launch").mkdir()
    for attempt, seconds in ((1, 1800.0), (2, 900.0)):
        append_event(tmp_path, "started", run, attempt=attempt, job_id="7", time=1e6, gpus=8, cluster="local")
        append_event(tmp_path, "ended", run, attempt=attempt, job_id="7", time=1e6 + seconds, state="failed", cause="oom: x")
    found = status(tmp_path)[run]
    assert (found["attempts"], found["gpu_hours"], found["state"], found["cause"]) == (2, 6.0, "failed", "oom: x")


def test_done_needs_the_runs_own_exit_record(tmp_path: Path) -> None:
    run, other = make_study(tmp_path, {"steps": 2}, {"steps": 3})
    (tmp_path / "launch").mkdir()
    for name in (run, other):
        append_event(tmp_path, "started", name, attempt=1, job_id="7", cluster="local")
        append_event(tmp_path, "ended", name, attempt=1, job_id="7", state="done", cause="")
    write_json(tmp_path / "runs" / run / "exit.json", {"run_id": run, "status": "done"})
    write_json(tmp_path / "runs" / other / "exit.json", {"run_id": run, "status": "done"})
    assert [s["state"] for s in status(tmp_path).values()] == ["done", "lost"]


def test_the_time_left_follows_the_speed_so_far(tmp_path: Path) -> None:
    make_study(tmp_path, {"steps": 10}, {"steps": 10}, {"steps": 20})
    rows = read_rows(tmp_path)

    def seen(row: int, state: str, step: int, seconds: float) -> RunStatus:
        of = rows[row]
        return RunStatus(
            run_id=of.run_id,
            arm="a",
            size="s",
            state=state,
            cause="",
            step=step,
            steps=of.steps,
            attempts=1,
            gpu_hours=0.0,
            seconds=seconds,
        )

    statuses = [seen(0, "done", 10, 100.0), seen(1, "running", 5, 50.0), seen(2, "planned", 0, 0.0)]
    assert eta_seconds(rows, statuses, 1) == pytest.approx(250.0)  # 10 s a step: 5 steps and 20 steps
    assert eta_seconds(rows, statuses, 2) == pytest.approx(200.0)  # never less than the longest one left
    assert eta_seconds(rows, [seen(n, "planned", 0, 0.0) for n in range(3)], 1) is None


def test_the_last_record_is_found_from_the_end_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    assert last_record(path) is None
    path.write_text("")
    assert last_record(path) is None
    long = json.dumps({"step": 2, "text": "x" * 20_000})
    path.write_text('{"step": 1}\n' + long + "\n" + '{"step": 3')
    found = last_record(path)
    assert found is not None
    assert found["step"] == 2


def test_deaths_are_classed() -> None:
    assert judge_death(-9, "")[0] == "killed"
    assert judge_death(-9, "", oom_kills=1)[0] == "oom"
    assert judge_death(1, "x\nModuleNotFoundError: No module named 'y'\n") == (
        "import",
        "ModuleNotFoundError: No module named 'y'",
    )
    assert judge_death(1, "OSError: [Errno 28] No space left on device")[0] == "disk_full"
    assert judge_death(2, "error: key 'x' is unknown\n") == ("config", "error: key 'x' is unknown")
    assert judge_death(0, "")[1] == "the trainer ended with 0 and left no exit.json."
    assert judge_death(3, "") == ("error", "the trainer ended with 3 and printed nothing.")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_is_live_on_a_terminal_and_absent_elsewhere() -> None:
    screen, file = Terminal(), io.StringIO()
    for stream in (screen, file):
        display = Display(stream)
        display.progress(1, 4, 2, 0.5, 90.0)
        display.note("a line")
    assert "50%  1/4 ended  2 running  ETA 1 min 30 s" in screen.getvalue()
    assert screen.getvalue().endswith("\r\x1b[Ka line\n")
    assert file.getvalue() == "a line\n"


def test_numbers_read_well(tmp_path: Path) -> None:
    assert [duration(s) for s in (0.4, 59, 61, 7265)] == ["0 s", "59 s", "1 min 1 s", "2 h 1 min"]
    assert bar(0.5, 4) == "██░░"
    make_study(tmp_path, {"steps": 2000}, {"status": "refused", "reason": "too large"})
    statuses = gather(tmp_path)
    assert summary(statuses, None) == "2 runs: 1 planned, 1 refused; 0 s of process time"
    assert "0/2,000" in table(statuses)[1]
    assert table(statuses)[2].endswith("too large")


def test_a_snapshot_is_taken_once_and_an_altered_one_refused(tmp_path: Path) -> None:
    root = take_snapshot(tmp_path)
    assert root.name == code_hash(root)
    assert take_snapshot(tmp_path) == root
    module = root / "lst/errors.py"
    assert module.stat().st_mode & 0o222 == 0
    module.chmod(0o644)
    module.write_text("# altered\n")
    with pytest.raises(LaunchError, match="was altered; delete it and submit again"):
        take_snapshot(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("id_rsa", b"x", "looks like a secret key"),
        ("notes.txt", b"-----BEGIN OPENSSH " + b"PRIVATE KEY-----", "looks like a secret key"),
        ("keys.py", b"TOKEN = 'hf_" + b"a" * 34 + b"'", "looks like a secret key"),
        ("keys.json", b'{"key": "github_' + b"pat_" + b"a" * 30 + b'"}', "looks like a secret key"),
        ("keys.txt", b"s" + b"k-" + b"a" * 30, "looks like a secret key"),
        ("aws.json", b'{"aws_secret_' + b'access_key": "' + b"a" * 40 + b'"}', "looks like a secret key"),
        ("weights.bin", b"\0" * (33 * 2**20), "has more than 32 MiB"),
    ],
)
def test_a_snapshot_refuses_secrets_and_large_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: bytes, sentence: str
) -> None:
    root = tmp_path / "code"
    for package in PACKAGES:
        (root / package).mkdir(parents=True)
    (root / "lst" / name).write_bytes(text)
    monkeypatch.setattr("launch.snapshot.code_root", lambda: root)
    with pytest.raises(LaunchError, match=sentence):
        take_snapshot(tmp_path / "launch")
    assert not (tmp_path / "launch").exists()


def test_the_launchers_folder_is_its_owners_alone_even_where_it_was_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "launch"
    folder.mkdir(mode=0o777)
    assert stat.S_IMODE(make_private(folder).stat().st_mode) == 0o700
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(LaunchError, match="belongs to another user"):
        make_private(folder)


def test_a_full_disk_is_one_sentence_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_study(tmp_path, {"steps": 2})
    with monkeypatch.context() as patch:
        patch.setattr("launch.submit.shutil.disk_usage", lambda _: SimpleNamespace(free=5 * 2**20))
        assert main(["submit", str(tmp_path)]) == 2
    assert "has 5 MiB of free space, less than 64" in capsys.readouterr().err

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "launch/ledger.jsonl"))

    monkeypatch.setattr("launch.submit.take_snapshot", full)
    assert main(["submit", str(tmp_path)]) == 2
    assert "free some space and call again" in capsys.readouterr().err
    assert not (tmp_path / "launch/ledger.jsonl").exists()


def test_five_thousand_runs_take_one_call_of_squeue_and_little_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.status_speed import measure

    monkeypatch.setenv("PATH", os.environ["PATH"])  # the benchmark puts its own squeue before it
    found = measure(1000)
    assert found["scheduler_calls"] <= 2
    assert found["lines"] == 1002
    assert found["processor_seconds"] < 3.0 / 5


def test_a_run_whose_end_is_told_does_not_run_for_the_minute_that_its_last_beat_counts(tmp_path: Path, slurm: Path) -> None:
    """Killed with all it had started on another machine: no lock is seen from here, and SLURM says that the job is cancelled."""
    study = tmp_path / "study"
    (run,) = make_study(study, {"steps": 2})
    call("submit", study, "cluster=slurm", "canary_steps=0")
    append_event(study, "started", run, attempt=1, job_id="4711_0", cluster="slurm", host="node9")
    lease = {"beats": True, "host": "node9", "process": [1, 1], "beat": time.time(), "job_id": "4711_0", "owner": "a-1"}
    write_json(study / "runs" / run / "lease.json", lease)
    (slurm / "queue.txt").write_text("4711_0 RUNNING\n")
    assert status(study)[run]["state"] == "running"
    (slurm / "queue.txt").write_text("")
    (slurm / "ended.txt").write_text("4711_0|CANCELLED|None\n")
    assert "1 run submitted" in call("submit", study, "cluster=slurm", "canary_steps=0")[1]
    assert [a.failure for a in read_attempts(study)[run]] == ["cancelled", ""]
