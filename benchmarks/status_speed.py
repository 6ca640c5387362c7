"""`submit-sweep status` of a study of 5,000 runs: seconds of processor time, and how often the scheduler is asked.

    python -m benchmarks.status_speed [--runs 5000]

Half of the runs are done, a quarter has records and a job that SLURM lists, a quarter is queued there; the scheduler is a fake
that lists them all. The claim: under 3 s, and one call of squeue.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import os
import tempfile
import time
from pathlib import Path

from launch.cli import main as submit_sweep
from launch.rows import NEEDED

EVENT = {"time": 1.0e9, "cluster": "slurm", "token": "t", "gpus": 1}


def make_study(folder: Path, runs: int) -> None:
    """A folder as a study of that many runs leaves it."""
    (folder / "launch").mkdir(parents=True)
    events, queue = [], []
    with (folder / "plan.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, NEEDED)
        writer.writeheader()
        for number in range(runs):
            run_id, job = f"{number:012x}", f"{7 + number // 1000}_{number % 1000}"
            row = {"run_id": run_id, "arm": "lst_static", "size": "w32", "steps": 100, "planned_flops": 1e9, "gpus": 1}
            writer.writerow(row | {"est_gpu_hours": 1.0, "status": "admitted", "reason": ""})
            run_dir = folder / "runs" / run_id
            run_dir.mkdir(parents=True)
            events.append(EVENT | {"run_id": run_id, "event": "submitted", "attempt": 1, "job_id": job})
            if number % 4 == 3:
                queue.append(f"{job} PENDING")
                continue
            lines = [json.dumps({"step": n + 1, "loss": 3.0, "time": 1e9 + n, "mfu": 0.4, "x": "y" * 300}) for n in range(60)]
            (run_dir / "train.jsonl").write_text("\n".join(lines) + "\n")
            (run_dir / "lease.json").write_text("{}")
            events.append(EVENT | {"run_id": run_id, "event": "started", "attempt": 1, "job_id": job})
            if number % 4 == 2:
                queue.append(f"{job} RUNNING")
                continue
            (run_dir / "exit.json").write_text(json.dumps({"run_id": run_id, "status": "done"}))
            events.append(EVENT | {"run_id": run_id, "event": "ended", "attempt": 1, "job_id": job, "state": "done"})
    (folder / "launch/ledger.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (folder / "queue.txt").write_text("\n".join(queue) + "\n")


def fake_squeue(folder: Path) -> Path:
    """A squeue that lists the study's jobs and counts how often it is asked."""
    commands = folder / "commands"
    commands.mkdir()
    squeue = commands / "squeue"
    squeue.write_text(f"#!/bin/sh\necho x >> '{folder}/calls.txt'\ncat '{folder}/queue.txt'\n")
    squeue.chmod(0o755)
    return commands


def measure(runs: int) -> dict[str, float]:
    """Processor and wall seconds of one `status`, its lines, and the scheduler's calls."""
    with tempfile.TemporaryDirectory() as folder:
        study = Path(folder) / "study"
        make_study(study, runs)
        os.environ["PATH"] = f"{fake_squeue(study)}{os.pathsep}{os.environ['PATH']}"
        output, wall, processor = io.StringIO(), time.perf_counter(), time.process_time()
        with contextlib.redirect_stdout(output):
            code = submit_sweep(["status", str(study)])
        processor, wall = time.process_time() - processor, time.perf_counter() - wall
        calls = len((study / "calls.txt").read_text().split())
        assert code == 0
        lines = output.getvalue().splitlines()
        return {"processor_seconds": processor, "wall_seconds": wall, "lines": len(lines), "scheduler_calls": calls}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5000)
    print(json.dumps(measure(parser.parse_args().runs), indent=1))
