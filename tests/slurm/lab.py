"""Small real studies on the lab cluster, what disturbs them, and what must hold afterwards whatever did."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from launch.failures import last_record
from launch.ledger import read_attempts
from launch.limits import spent
from launch.status import as_json, gather
from lst.records import read_json, read_jsonl
from tests.launch.study import plan_real_runs
from tests.launch.study import wait_for as wait_in
from tests.train.tiny_run import records, tiny_config, train

ROOT = Path(__file__).resolve().parents[2]
STEPS = 60  # long enough to be held in the middle (`held`)
HELD_STEP = 3
FULL = "LST_SOAK" in os.environ  # the scenarios in full, as `make soak` has them
SECONDS = 1500.0 if FULL else 300.0  # how long a test waits for anything: SLURM looks at time limits on 30 s ticks


@dataclass(frozen=True)
class LabStudy:
    """A planned study, and the folder of the runs that nobody disturbed."""

    folder: Path
    run_ids: list[str]
    steps: int

    def run_dir(self, run_id: str) -> Path:
        return self.folder / "runs" / run_id


def make_study(folder: Path, data: Path, *, rows: int = 2, steps: int = STEPS, gpus: int = 1, **overrides: Any) -> LabStudy:
    """Plan `rows` runs of `steps` steps each, baseline and lst_static in turn, each with a seed of its own."""
    arms = ("baseline", "lst_static")
    execution = {"checkpoint_every_seconds": 1.0}
    configs = [
        tiny_config(
            arms[i % 2], data, train={"steps": steps, "seed": i}, execution=execution | overrides, evaluation={"points": 1}
        )
        for i in range(rows)
    ]
    plan_real_runs(folder, configs, gpus=gpus)
    return LabStudy(folder, [config.run_id for config in configs], steps)


def start(*arguments: object, root: Path = ROOT) -> subprocess.Popen[str]:
    """submit-sweep as a user has it, in a process of its own, with the code below `root`."""
    argv = [sys.executable, "-m", "launch.cli", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.Popen(argv, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def call(*arguments: object, root: Path = ROOT) -> str:
    """submit-sweep to its end, which must be a good one; what it printed."""
    process = start(*arguments, root=root)
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, err
    return out


def slurm(*argv: object) -> str:
    """A command of SLURM's own; its output."""
    done = subprocess.run([str(a) for a in argv], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def status(study: LabStudy) -> dict[str, dict[str, Any]]:
    """What `status --json` tells, by run_id."""
    return {found.run_id: as_json(found) for found in gather(study.folder)}


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    """The first true value of `condition`."""
    return wait_in(condition, what, seconds=SECONDS, pause=0.2)


def processes(pattern: str) -> list[int]:
    """Processes whose command line matches."""
    found = subprocess.run(["pgrep", "-f", pattern], capture_output=True, text=True, check=False).stdout
    return [int(word) for word in found.split()]


def trainers(study: LabStudy, run_id: str = "") -> str:
    """The pattern of the trainers of a study, or of one run: srun's command line, which names them too, is left out."""
    return f"^[^ ]*python[^ ]* -m lst.train {study.run_dir(run_id) if run_id else study.folder}"


@contextlib.contextmanager
def held(study: LabStudy, run_id: str) -> Iterator[list[int]]:
    """The run's trainers stand still in the middle of the run, however fast or busy the machine is; their process ids."""

    def trains() -> bool:
        lives = read_attempts(study.folder).get(run_id, [])
        began = lives[-1].started if lives else None
        times = [record["time"] for record in read_jsonl(study.run_dir(run_id) / "train.jsonl")]
        own = sum(began is not None and time >= began for time in times)  # the records of an earlier life may stand there still
        return own >= HELD_STEP and bool(processes(trainers(study, run_id)))

    wait_in(trains, f"run {run_id} to train", seconds=SECONDS, pause=0.02)
    found = processes(trainers(study, run_id))
    _signal(found, signal.SIGSTOP)
    assert len(read_jsonl(study.run_dir(run_id) / "train.jsonl")) < study.steps
    try:
        yield found
    finally:
        _signal(found, signal.SIGCONT)


def _signal(found: Sequence[int], number: signal.Signals) -> None:
    for process in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


def wait_for_flag(study: LabStudy, job: str) -> None:
    """Until the first life of a job was told to stop."""
    wait_for(lambda: (study.folder / f"launch/stop/{job}.0").exists(), f"job {job} to be told to stop")


def wait_until_done(study: LabStudy) -> None:
    """Until no run is open and no job is left (a job's last words come after its run's exit.json), submitting nothing."""
    wait_for(lambda: not {"queued", "running"} & {s["state"] for s in status(study).values()}, "the study to end")
    ids = {a.job_id for attempts in read_attempts(study.folder).values() for a in attempts}
    wait_for(lambda: not ids & set(slurm("squeue", "--noheader", "--array", "--format=%i").split()), "the study's jobs to leave")


def most_at_once(study: LabStudy) -> int:
    """The largest number of attempts that have run at one time so far."""
    attempts = [a for tries in read_attempts(study.folder).values() for a in tries if a.started is not None]
    changes = sorted([(a.started or 0.0, 1) for a in attempts] + [(a.ended, -1) for a in attempts if a.ended is not None])
    return max(itertools.accumulate(change for _, change in changes))


def job_ids(study: LabStudy) -> list[str]:
    """The ids of the last jobs of those runs that have had any, in the plan's order."""
    attempts = read_attempts(study.folder)
    return [attempts[run_id][-1].job_id for run_id in study.run_ids if run_id in attempts]


def recorded_flops(run_dir: Path) -> float:
    """Training FLOPs of the steps that stand in the records."""
    record = last_record(run_dir / "train.jsonl") or {}
    return float(record.get("spent_flops") or record.get("train_flops") or 0.0)


def require_whole(study: LabStudy, alone: Path, compared: Sequence[str] | None = None) -> None:
    """Every run is done, its records hold each step once, its attempts add up; and weights and records are an undisturbed run's.

    `compared` are the runs of which that last one is asked; default: all.
    """
    for run_id in study.run_ids:
        run_dir = study.run_dir(run_id)
        ended = read_json(run_dir / "exit.json")
        assert ended is not None, f"{run_id} left no exit.json: {status(study)[run_id]}"
        assert (ended["status"], ended["step"]) == ("done", study.steps)
        assert [r["step"] for r in read_jsonl(run_dir / "train.jsonl")] == list(range(1, study.steps + 1))
    require_accounts(study)
    for run_id in study.run_ids if compared is None else compared:
        calm = undisturbed(study, run_id, alone)
        assert records(study.run_dir(run_id)) == records(calm)
        assert _final_weights(study.run_dir(run_id)) == _final_weights(calm)


def require_accounts(study: LabStudy) -> None:
    """Attempts follow each other; what they have spent is what status tells, and what the records cost beside what was lost."""
    attempts, gpu_seconds, flops = read_attempts(study.folder), 0.0, 0.0
    for run_id, tries in attempts.items():
        assert [a.attempt for a in tries] == list(range(1, len(tries) + 1))
        lives = [a for a in tries if a.started is not None]
        assert all(a.ended is not None for a in lives), f"{run_id}: an attempt has no end"
        for before, after in itertools.pairwise(lives):
            assert (after.started or 0.0) >= (before.ended or 0.0) - 0.01, f"{run_id}: two attempts overlap"
        lost = [b.flops_before + b.flops - a.flops_before for b, a in itertools.pairwise(lives)]  # after the last checkpoint
        assert min(lost, default=0.0) >= 0.0
        own = sum(a.flops for a in lives)
        assert own == pytest.approx(recorded_flops(study.run_dir(run_id)) + sum(lost), rel=1e-9)
        gpu_seconds += sum(a.gpus * ((a.ended or 0.0) - (a.since or a.started or 0.0)) for a in lives)
        flops += own
    found = spent(study.folder, attempts, time.time())
    assert (found.gpu_hours, found.flops) == (pytest.approx(gpu_seconds / 3600, abs=1e-9), pytest.approx(flops))
    assert sum(s["gpu_hours"] for s in status(study).values()) == pytest.approx(gpu_seconds / 3600, abs=1e-6 * len(attempts))


def undisturbed(study: LabStudy, run_id: str, alone: Path) -> Path:
    """The folder of the same run below `alone`, trained there without SLURM unless it is there already."""
    folder = alone / run_id
    if not folder.exists():
        folder.mkdir(parents=True)
        (folder / "run.yaml").write_bytes((study.run_dir(run_id) / "run.yaml").read_bytes())
        done = train(folder)
        assert done.returncode == 0, done.stdout
    return folder


def _final_weights(run_dir: Path) -> bytes:
    return (run_dir / "checkpoints" / "final" / "model.safetensors").read_bytes()
