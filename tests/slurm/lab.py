"""Small real studies on the lab cluster, what disturbs them, and what must hold afterwards whatever did."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.ledger import read_attempts
from launch.status import as_json, gather
from lst.records import read_json, read_jsonl
from tests.launch.study import plan_real_runs
from tests.launch.study import wait_for as wait_in
from tests.train.tiny_run import records, tiny_config, train

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 300.0  # how long a test waits for anything: SLURM looks at time limits on 30 s ticks
SLOW_STEPS = 400  # long enough to be disturbed in the middle


@dataclass(frozen=True)
class LabStudy:
    """A planned study, and the folder of the runs that nobody disturbed."""

    folder: Path
    run_ids: list[str]
    steps: int

    def run_dir(self, run_id: str) -> Path:
        return self.folder / "runs" / run_id


def make_study(folder: Path, data: Path, *, rows: int = 2, steps: int = SLOW_STEPS, gpus: int = 0, **overrides: Any) -> LabStudy:
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


def wait_for_step(study: LabStudy, run_id: str, step: int) -> None:
    """Until the run has trained `step` steps."""
    wait_for(lambda: status(study)[run_id]["step"] >= step, f"run {run_id} to reach step {step}")


def wait_until_done(study: LabStudy) -> None:
    """Until no run is open and no job is left (a job's last words come after its run's exit.json), submitting nothing."""
    wait_for(lambda: not {"queued", "running"} & {s["state"] for s in status(study).values()}, "the study to end")
    ids = {a.job_id for attempts in read_attempts(study.folder).values() for a in attempts}
    wait_for(lambda: not ids & set(slurm("squeue", "--noheader", "--array", "--format=%i").split()), "the study's jobs to leave")


def job_ids(study: LabStudy) -> list[str]:
    """The ids of the last jobs of those runs that have had any, in the plan's order."""
    attempts = read_attempts(study.folder)
    return [attempts[run_id][-1].job_id for run_id in study.run_ids if run_id in attempts]


def require_whole(study: LabStudy, alone: Path, run_ids: Sequence[str] | None = None) -> None:
    """Every run is done, its records hold each step once, and weights and records are an undisturbed run's."""
    for run_id in run_ids or study.run_ids:
        run_dir = study.run_dir(run_id)
        ended = read_json(run_dir / "exit.json")
        assert ended is not None, f"{run_id} left no exit.json: {status(study)[run_id]}"
        assert (ended["status"], ended["step"]) == ("done", study.steps)
        assert [r["step"] for r in read_jsonl(run_dir / "train.jsonl")] == list(range(1, study.steps + 1))
        undisturbed = _undisturbed(study, run_id, alone)
        assert records(run_dir) == records(undisturbed)
        assert _final_weights(run_dir) == _final_weights(undisturbed)
    for attempts in read_attempts(study.folder).values():
        assert all(a.ended is not None for a in attempts if a.started is not None)


def _undisturbed(study: LabStudy, run_id: str, alone: Path) -> Path:
    folder = alone / run_id
    if not folder.exists():
        folder.mkdir(parents=True)
        (folder / "run.yaml").write_bytes((study.run_dir(run_id) / "run.yaml").read_bytes())
        done = train(folder)
        assert done.returncode == 0, done.stdout
    return folder


def _final_weights(run_dir: Path) -> bytes:
    return (run_dir / "checkpoints" / "final" / "model.safetensors").read_bytes()
