"""A stand-in for the trainer: it learns nothing, but keeps its contract with the worker.

It writes records as the trainer does, resumes after its last record, saves nothing else, leaves with 75 on SIGTERM,
SIGUSR1 or the stop flag, and writes exit.json at the end. `behaviour.json` in the run folder says how long
it takes, after which step it waits for a file `go`, and how it goes wrong.
Each life adds a line to lives.jsonl: which code and which environment it saw.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import lst
from lst.records import EXIT, FAILURE, TRAIN_RECORDS, JsonLinesWriter, read_json, read_jsonl, write_json


def main(run_dir: Path) -> int:
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, lambda n, _: asked.append(n))
    behaviour = read_json(run_dir / "behaviour.json") or {}
    life = {
        "pid": os.getpid(),
        "lst": lst.__file__,
        "version": lst.__version__,
        "environment": dict(os.environ),
        "time": time.time(),
    }
    with (run_dir / "lives.jsonl").open("a") as file:
        file.write(json.dumps(life) + "\n")
    if (read_json(run_dir / EXIT) or {}).get("status") == "done":
        return 0
    records = read_jsonl(run_dir / TRAIN_RECORDS)
    step = records[-1]["step"] if records else 0
    life_number = len(read_jsonl(run_dir / "lives.jsonl"))
    print(f"life {life_number} begins after step {step}", flush=True)
    with JsonLinesWriter(run_dir / TRAIN_RECORDS) as writer:
        while step < behaviour.get("steps", 3):
            time.sleep(behaviour.get("seconds_per_step", 0.0))
            if step == behaviour.get("die_at") and life_number <= behaviour.get("bad_lives", 10**9):
                return die(run_dir, behaviour["how"])
            step += 1
            writer.write({"step": step, "loss": 5.0 / step, "train_flops": 1e6 * step, "time": round(time.time(), 3)})
            while step == behaviour.get("hold_at") and not (run_dir / "go").exists():
                time.sleep(0.01)
            if asked or Path(os.environ.get("LST_STOP_FLAG", "/nowhere")).exists():
                return 75
    write_json(run_dir / EXIT, {"run_id": run_dir.name, "status": "done", "step": step})
    (run_dir / FAILURE).unlink(missing_ok=True)
    return 0


def die(run_dir: Path, how: str) -> int:
    """End in the way `how` names."""
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "raise":
        raise RuntimeError("the loss went up a tree")
    if how == "import":
        raise ModuleNotFoundError("No module named 'nothing_of_that_name'")
    if how == "nan":
        write_json(run_dir / FAILURE, {"run_id": run_dir.name, "class": "nan", "cause": "the loss is nan at step 2.", "step": 2})
        return 1
    if how == "node":
        print("srun: error: Node failure on node1")
        return 0
    assert how == "again"
    return 75


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
