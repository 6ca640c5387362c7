"""The soak: many short runs, random faults for minutes, and at the end nothing is lost and nothing was done twice.

    tests/slurm/slurm-cluster up; eval "$(tests/slurm/slurm-cluster env)"
    python -m tests.slurm.soak [--runs 60] [--minutes 10] [--seed 1]

Prints one JSON object, what was done to the study and what it cost, and the same as a row of docs/cluster.md's table. Exit code 1
if an invariant does not hold, which is told last.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import random
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.ledger import Attempt, read_attempts
from launch.limits import spent
from tests.slurm import faults
from tests.slurm.conftest import missing_lab
from tests.slurm.lab import (
    LabStudy,
    job_ids,
    make_study,
    processes,
    recorded_flops,
    require_whole,
    slurm,
    start,
    status,
    trainers,
    undisturbed,
)
from tests.train.tiny_run import write_tiny_dataset

PAUSE_SECONDS = (2.0, 8.0)  # between two faults
OPEN = ("queued", "running")
OPTIONS = ("cluster=slurm", "partition=low", "cpus_per_task=2", "limit.gpus=6", "timeout_min=5")


def running_jobs(study: LabStudy) -> list[str]:
    """The study's jobs that run."""
    listed = set(slurm("squeue", "--noheader", "--array", "--states=R", "--format=%i").split())
    return [job for job in job_ids(study) if job in listed]


def submit(study: LabStudy, *more: str) -> None:
    """submit-sweep, by resubmit where runs have failed."""
    failed = any(s["state"] == "failed" for s in status(study).values())
    verb = ["resubmit", study.folder, "--failed"] if failed else ["submit", study.folder]
    for arguments in (verb, ["submit", study.folder]):
        start(*arguments, *OPTIONS, *more).communicate(timeout=300)


def one_fault(study: LabStudy, dice: random.Random) -> str:
    """Do one thing at random; its name."""
    jobs = running_jobs(study)

    def to_job(*command: str) -> None:
        if jobs:
            with contextlib.suppress(AssertionError):  # it may have ended meanwhile
                slurm(*command, dice.choice(jobs))

    def kill_submitter() -> None:
        process = start("submit", study.folder, *OPTIONS)
        time.sleep(dice.uniform(0.5, 4.0))
        process.kill()
        process.communicate()

    actions: dict[str, Callable[[], object]] = {
        "preemption": lambda: faults.take_node(dice.choice((1, 2))),
        "requeue": lambda: to_job("scontrol", "requeue"),
        "trainer killed": lambda: kill_one(trainers(study), dice),
        "worker killed": lambda: kill_one(faults.workers(study), dice),
        "submitter killed": kill_submitter,
        "USR2": lambda: to_job("scancel", "--batch", "--signal=USR2"),
        "scancel": lambda: to_job("scancel"),
        "node killed": lambda: faults.kill_node(dice.choice((1, 2))),
        "controller restarted": lambda: faults.cluster("restart-ctld"),
        "submitted again": lambda: submit(study),
        "cancelled": lambda: start("cancel", study.folder, "--run", dice.choice(study.run_ids)).communicate(timeout=120),
    }
    weights = [4, 4, 4, 4, 2, 4, 2, 1, 1, 4, 1]
    (name,) = dice.choices(list(actions), weights)
    actions[name]()
    return name


def kill_one(pattern: str, dice: random.Random) -> None:
    found = processes(pattern)
    if found:
        subprocess.run(["kill", "-KILL", str(dice.choice(found))], check=False, stderr=subprocess.DEVNULL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--compare", type=int, default=8, help="runs whose weights are compared with undisturbed ones")
    parser.add_argument("--last-minutes", type=float, default=30.0, help="that the study may take afterwards")
    options = parser.parse_args()
    if reason := missing_lab():
        print(reason, file=sys.stderr)
        return 2
    dice, done = random.Random(options.seed), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        study = make_study(
            Path(folder) / "study", write_tiny_dataset(Path(folder) / "data"), rows=options.runs, steps=options.steps
        )
        alone = Path(folder) / "alone"
        price(study, alone)
        began = time.time()
        submit(study)
        while time.time() - began < 60 * options.minutes:
            done[one_fault(study, dice)] += 1
            time.sleep(dice.uniform(*PAUSE_SECONDS))
        calm = time.time()
        broken = ""
        while any(s["state"] != "done" for s in status(study).values()) and time.time() - calm < 60 * options.last_minutes:
            if not any(s["state"] in OPEN for s in status(study).values()):
                submit(study)
            time.sleep(2)
        try:
            submit(study)  # a worker that was killed after its run's last step has left its attempt open
            require_whole(study, alone, dice.sample(study.run_ids, options.compare))
        except Exception:  # a missing file tells as much; the figures are wanted all the same
            broken = traceback.format_exc()
        found = figures(study, done, began, calm)
    print(json.dumps(found, indent=1))
    print(table_row(options.seed, found))
    print(f"[soak] {'an invariant does not hold:' if broken else 'all invariants hold'}\n{broken}".strip(), flush=True)
    return 1 if broken else 0


def price(study: LabStudy, alone: Path) -> None:
    """Plan each run's GPU-hours as what an undisturbed run of its arm takes here, on the one GPU it is given."""
    path, hours = study.folder / "plan.csv", dict[str, float]()
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if row["arm"] not in hours:
            began = time.time()
            undisturbed(study, row["run_id"], alone)
            hours[row["arm"]] = (time.time() - began) / 3600
        row["est_gpu_hours"] = str(hours[row["arm"]])
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def figures(study: LabStudy, done: Counter[str], began: float, calm: float) -> dict[str, Any]:
    """What is told at the end."""
    attempts = read_attempts(study.folder)
    ends = Counter(a.failure or a.state for tries in attempts.values() for a in tries if a.started is not None)
    trained = sum(recorded_flops(study.run_dir(run_id)) for run_id in study.run_ids)
    lives = Counter(sum(a.started is not None for a in tries) for tries in attempts.values())
    told = status(study).values()
    total = spent(study.folder, attempts, time.time())
    return {
        "runs": len(study.run_ids),
        "steps of each": study.steps,
        "minutes of faults": round((calm - began) / 60, 1),
        "minutes until all were done": round((time.time() - began) / 60, 1),
        "faults": dict(done.most_common()),
        "runs done": sum(s["state"] == "done" for s in told),
        "attempts": sum(ends.values()),
        "runs by number of lives": {str(number): lives[number] for number in sorted(lives)},
        "how attempts ended": dict(ends.most_common()),
        "FLOPs spent over FLOPs of the final records": round(total.flops / trained, 3),
        "GPU-hours": {
            "planned": round(sum(s["planned_gpu_hours"] for s in told), 3),
            "spent, as status tells": round(sum(s["gpu_hours"] for s in told), 3),
            "spent, by the ledger": round(total.gpu_hours, 3),
            "of the jobs, by sacct": round(accounted_seconds(attempts) / 3600, 3),
        },
    }


def table_row(seed: int, found: Mapping[str, Any]) -> str:
    """The figures as a row of the table in docs/cluster.md."""

    def listed(counts: Mapping[str, int]) -> str:
        return ", ".join(f"{count} {name}" for name, count in counts.items())

    lives = ", ".join(f"{count} runs in {number}" for number, count in found["runs by number of lives"].items())
    hours = " / ".join(f"{value:.3f}" for value in found["GPU-hours"].values())
    faults = f"{sum(found['faults'].values())} in {found['minutes of faults']} minutes: {listed(found['faults'])}"
    ends = f"{found['attempts']}: {listed(found['how attempts ended'])}"
    twice = f"{found['FLOPs spent over FLOPs of the final records'] - 1:.1%}"
    done = f"{found['runs done']} of {found['runs']} after {found['minutes until all were done']} minutes"
    return f"| {seed} | {faults} | {done} | {ends} | {lives} | {twice} | {hours} |"


def accounted_seconds(attempts: Mapping[str, Sequence[Attempt]]) -> float:
    """Seconds of all lives of the study's jobs, as sacct has them; each holds one GPU."""
    arrays = {a.job_id.partition("_")[0] for tries in attempts.values() for a in tries}
    options = ["--allocations", "--duplicates", "--noheader", "--format=ElapsedRaw"]
    return sum(map(float, slurm("sacct", *options, f"--jobs={','.join(arrays)}").split()))


if __name__ == "__main__":
    sys.exit(main())
