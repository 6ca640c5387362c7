"""Small planned studies for the launcher's tests, and the processes that work on them."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from launch.cluster import load_cluster
from launch.display import Display
from launch.rows import NEEDED
from launch.status import as_json, gather
from launch.submit import Selection, submit
from lst.config import RunConfig, arm_config
from lst.plain import to_dict
from lst.records import read_jsonl, write_json
from tests.train.tiny_run import write_run

ROOT = Path(__file__).resolve().parents[2]
STANDIN = [sys.executable, str(Path(__file__).with_name("standin_trainer.py"))]
NO_CANARY = ["cluster=slurm", "canary_steps=0"]
SECONDS = 60.0  # how long a test waits for anything


def make_study(folder: Path, *behaviours: dict[str, Any], gpus: int = 0) -> list[str]:
    """Plan a run for each behaviour (see standin_trainer.py) in `folder`; their run_ids, in the plan's order."""
    rows = []
    for seed, behaviour in enumerate(behaviours):
        steps = behaviour.get("steps", 3)
        config = arm_config("baseline", size="tiny", train={"steps": steps, "seed": seed})
        run_dir = folder / "runs" / config.run_id
        run_dir.mkdir(parents=True)
        OmegaConf.save(OmegaConf.create({"run_id": config.run_id, "config": to_dict(config)}), run_dir / "run.yaml")
        write_json(run_dir / "behaviour.json", behaviour)
        row = {
            "run_id": config.run_id,
            "arm": "baseline",
            "size": "tiny",
            "steps": steps,
            "planned_flops": 1e6 * steps,
            "gpus": gpus,
        }
        rows.append(
            row | {"est_gpu_hours": 0.0, "status": behaviour.get("status", "admitted"), "reason": behaviour.get("reason", "")}
        )
    with (folder / "plan.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, NEEDED)
        writer.writeheader()
        writer.writerows(rows)
    return [row["run_id"] for row in rows]


def start(*arguments: object, root: Path = ROOT, **options: Any) -> subprocess.Popen[str]:
    """Start submit-sweep with the stand-in trainer, from the code below `root`."""
    argv = [sys.executable, str(Path(__file__).with_name("drive.py")), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONSAFEPATH": "1", **options.pop("env", {})}
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait for a process: its exit code, output and errors."""
    out, err = process.communicate(timeout=SECONDS)
    return process.returncode, out, err


def call(*arguments: object, **options: Any) -> tuple[int, str, str]:
    """Run submit-sweep to its end."""
    return finish(start(*arguments, **options))


def send(study: Path, *words: str, limits: dict[str, float] | None = None, selection: Selection | None = None) -> str:
    """submit-sweep submit cluster=slurm, in this process; what it told."""
    told = io.StringIO()
    cluster = load_cluster(["cluster=slurm", *words])
    report = submit(study, cluster, display=Display(told), wait=False, limits=limits, selection=selection)
    return f"{told.getvalue()}{report.submitted} submitted"


def wait_for(condition: Callable[[], Any], what: str, *, seconds: float = SECONDS, pause: float = 0.02) -> Any:
    """The first true value of `condition`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(pause)
    raise AssertionError(f"waited {seconds} s for {what}")


def plan_real_runs(folder: Path, configs: Sequence[RunConfig], *, gpus: int = 0) -> None:
    """Plan runs that really train, of these configurations."""
    for config in configs:
        write_run(folder / "runs" / config.run_id, config)
    with (folder / "plan.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, NEEDED, restval="")
        writer.writeheader()
        for config in configs:
            row = {"run_id": config.run_id, "arm": config.model.arm.value, "size": "tiny", "steps": config.train.steps}
            writer.writerow(row | {"status": "admitted", "planned_flops": 1e9, "gpus": gpus})


def status(study: Path) -> dict[str, dict[str, Any]]:
    """What `status --json` tells, by run_id."""
    return {found.run_id: as_json(found) for found in gather(study)}


def lives(study: Path, run_id: str) -> list[dict[str, Any]]:
    """What each life of the stand-in trainer of a run has seen."""
    return read_jsonl(study / "runs" / run_id / "lives.jsonl")


def steps(study: Path, run_id: str) -> list[int]:
    """The recorded steps of a run."""
    return [record["step"] for record in read_jsonl(study / "runs" / run_id / "train.jsonl")]


def alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
