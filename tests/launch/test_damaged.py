"""A study's own files, altered or damaged: a snapshot with more in it is refused, records are passed over or told of."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launch import worker
from launch.asked import read_order
from launch.cluster import LocalCluster
from launch.display import Display
from launch.environment import python_environment
from launch.failures import last_record
from launch.feed import Feeder, Slot
from launch.interrupt import Interrupts
from launch.job import WorkerJob, write_jobs
from launch.lease import Lease, process_mark
from launch.ledger import append_event, read_attempts
from launch.limits import read_limits
from launch.rows import read_rows
from launch.snapshot import altered, take_snapshot
from launch.status import gather
from launch.worker import NO_SPACE
from lst.errors import ConfigError, LaunchError
from lst.records import write_json
from tests.launch.study import call, make_study


def beside(root: Path) -> None:
    (root / "sitecustomize.py").write_text("print('mine')\n")


def compiled(root: Path) -> None:
    (root / "launch/__pycache__").mkdir()
    (root / "launch/__pycache__/lease.cpython-311.pyc").write_bytes(b"")


def hidden(root: Path) -> None:
    (root / "lst/.hidden.py").write_text("")


def link(root: Path) -> None:
    (root / "lst/more.py").symlink_to("/etc/hostname")


def folder(root: Path) -> None:
    (root / "torch").mkdir()


@pytest.mark.parametrize("change", [beside, compiled, hidden, link, folder])
def test_a_snapshot_with_anything_beside_the_code_is_refused(tmp_path: Path, change: Callable[[Path], None]) -> None:
    root = take_snapshot(tmp_path)
    assert not altered(root, root.name)
    change(root)
    assert altered(root, root.name)
    with pytest.raises(LaunchError, match="was altered"):
        take_snapshot(tmp_path)


def test_jobs_leave_no_compiled_files_in_the_snapshot(tmp_path: Path) -> None:
    root = take_snapshot(tmp_path)
    subprocess.run([sys.executable, "-c", "import launch.lease"], env={**os.environ, **python_environment(root)}, check=True)
    assert not altered(root, root.name)


@pytest.mark.parametrize("content", [{"waiting": 5}, {"waiting": [["a"]]}, {"since": "x"}, {"since": 1.5}, {"cluster": "x"}])
def test_a_damaged_order_is_told_in_one_sentence(tmp_path: Path, content: dict[str, object]) -> None:
    make_study(tmp_path, {"steps": 1})
    (tmp_path / "launch").mkdir()
    write_json(tmp_path / "launch/order.json", content)
    for look in (read_order, gather):
        with pytest.raises(LaunchError, match=r"order.json' is damaged; delete it"):
            look(tmp_path)


@pytest.mark.parametrize("text", ["", '{"gpu_hours": 5', "[]"])
def test_torn_limits_are_no_limits_that_were_taken_away(tmp_path: Path, text: str) -> None:
    make_study(tmp_path, {"steps": 1})
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch/limits.json").write_text(text)
    with pytest.raises(ConfigError, match=r"limits.json' is damaged; delete it, and give the limits again"):
        read_limits(tmp_path)
    assert call("submit", tmp_path)[0] == 2


def test_records_of_another_shape_are_passed_over(tmp_path: Path) -> None:
    (run,) = make_study(tmp_path, {"steps": 9})
    (tmp_path / "launch").mkdir()
    good = f'{{"time": 1.0, "run_id": "{run}", "event": "started", "attempt": 1, "job_id": "7"}}\n'
    bad = [good.replace('"attempt": 1', f'"attempt": 2, "{name}": "x"') for name in ("step", "flops", "gpus", "since")]
    (tmp_path / "launch/ledger.jsonl").write_text("".join([good, *bad, good.replace('"attempt": 1', '"attempt": Infinity')]))
    assert [a.attempt for a in read_attempts(tmp_path)[run]] == [1]
    records = tmp_path / "runs" / run / "train.jsonl"
    records.write_text(
        '{"step": 4, "time": 5.0}\n{"step": 5, "time": "x"}\n{"step": 6, "train_flops": [1]}\n{"step": 7, "spent_flops": "1"}\n'
    )
    assert last_record(records) == {"step": 4, "time": 5.0}
    for content in ({"beats": True, "host": socket.gethostname(), "process": []}, {"token": [1]}):
        write_json(tmp_path / "runs" / run / "lease.json", content)
        gather(tmp_path)
        lease = Lease.acquire(tmp_path / "runs" / run / "lease.json", beats=True)
        assert lease is not None
        lease.release()
    write_json(tmp_path / "launch/price.json", {"gpu_hours": {run: "x"}})
    assert gather(tmp_path)[0].planned_gpu_hours == 0.0
    (tmp_path / "plan.csv").write_bytes(b"\xff\xfe\n")
    with pytest.raises(LaunchError, match="is no text"):
        gather(tmp_path)


def test_a_copy_whose_maker_was_killed_is_removed_and_one_that_is_being_made_is_not(tmp_path: Path) -> None:
    host, mine = socket.gethostname(), process_mark(os.getpid())
    gone = subprocess.Popen(["sleep", "600"])
    was = process_mark(gone.pid)
    gone.kill()
    gone.wait()
    folder = tmp_path / "snapshot"
    left = [f".copy-{host}-{was[0]}-{was[1]}-abc", f".copy-{host}-{mine[0]}-{mine[1] - 1}-abc"]  # one had our id before us
    kept = [f".copy-{host}-{mine[0]}-{mine[1]}-abc", f".copy-other-{was[0]}-{was[1]}-abc"]
    for name in (*left, *kept):
        (folder / name / "lst").mkdir(parents=True)
    root = take_snapshot(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == sorted([*kept, root.name])


class Ended:
    """A local job that has ended, with this exit status and these last words."""

    def __init__(self, exit_status: int, words: str) -> None:
        self.job_id, self.exit_status, self._words = "7", exit_status, words

    def complaint(self) -> str:
        return self._words


@pytest.mark.parametrize(
    ("exit_status", "words", "ends"),
    [
        (0, "", []),  # it has found another runner
        (NO_SPACE, "", [("failed", "disk_full")]),
        (-9, "", [("lost", "lost")]),
    ],
)
def test_a_worker_that_could_not_begin_is_told_by_how_it_ended(
    tmp_path: Path, exit_status: int, words: str, ends: list[tuple[str, str]]
) -> None:
    (run,) = make_study(tmp_path, {"steps": 2})
    (tmp_path / "launch").mkdir()
    append_event(tmp_path, "submitted", run, attempt=1, job_id="7", cluster="local")
    rows = read_rows(tmp_path)
    with Interrupts() as interrupts:
        feeder = Feeder(
            tmp_path, LocalCluster(), queue=rows, foreign=[], root=None, display=Display(io.StringIO()), interrupts=interrupts,
            announce=lambda _: None,
        )  # fmt: skip
        feeder._settle(Slot(rows[0], None), Ended(exit_status, words))  # type: ignore[arg-type]
    assert [(a.state, a.failure) for a in read_attempts(tmp_path).get(run, [])] == ends


def test_a_worker_without_space_for_its_lease_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run,) = make_study(tmp_path, {"steps": 2})
    sha256 = write_jobs(tmp_path / "job", [WorkerJob(study=str(tmp_path), run_id=run, root="/")])

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(worker.Lease, "acquire", full)
    with Path("/dev/full").open("w", buffering=1) as log:  # its own words find none either
        monkeypatch.setattr(sys, "stderr", log)
        try:
            assert worker.main([str(tmp_path / "job/jobs.json"), "0", sha256]) == NO_SPACE
        finally:
            with contextlib.suppress(OSError):
                log.close()
