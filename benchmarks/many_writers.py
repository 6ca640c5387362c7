"""256 record writers at once, each a process without torch, and one syncer: no lock error, nothing lost.

    python -m benchmarks.many_writers [--writers 256] [--records 200] [--folder DIR]

Each writer appends a synthetic run's records to its own folder, as the trainer does, while `fit-scaling sync` is called again and
again. Writers open no database, so none can wait for a lock; the store is checked against the files at the end. Run by hand.
"""

from __future__ import annotations

import argparse
import csv
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

WRITER = """
import sys, time
from pathlib import Path
from lst import records
folder, count, pause = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
with records.JsonLinesWriter(folder / records.TRAIN_RECORDS) as file:
    for step in range(1, count + 1):
        spent = {name: 1000.0 * step for name in ("train_flops", "units", "tokens", "text_tokens", "speech_tokens")}
        file.write({"step": step, "loss": 3.0 + 4.0 / step, "time": time.time()} | spent)
        time.sleep(pause)
spent = {"step": count, "train_flops": 1000.0 * count, "units": 1000.0 * count, "text_tokens": 1.0, "speech_tokens": 1.0}
with records.JsonLinesWriter(folder / records.EVAL_RECORDS) as file:
    named = {"task": "heldout_mixture", "direction": "ST->ST", "metric": "nats_per_token", "value": 3.0, "n_items": 100}
    file.write(spent | named)
records.write_json(folder / records.EXIT, {"run_id": folder.name, "status": "done"} | spent)
assert not {"torch", "mlflow", "sqlite3"} & set(sys.modules)
"""


def write_plan(folder: Path, writers: int, records: int) -> list[Path]:
    """A plan of so many runs and their empty folders."""
    runs = [folder / "runs" / f"{place:012x}" for place in range(writers)]
    with (folder / "plan.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["run_id", "study", "kind", "arm", "size", "steps", "status"], lineterminator="\n")
        table.writeheader()
        for run in runs:
            run.mkdir(parents=True)
            named = {"run_id": run.name, "study": "writers", "kind": "pretrain", "arm": "baseline", "size": "s"}
            table.writerow(named | {"steps": records, "status": "admitted"})
    return runs


def sync(folder: Path) -> None:
    """Once. Raises RuntimeError with what it said if it failed."""
    done = subprocess.run([sys.executable, "-m", "analysis.cli", "sync", str(folder)], capture_output=True, text=True)
    if done.returncode or done.stderr:
        raise RuntimeError(f"sync ended with {done.returncode}: {done.stderr}")


def write_and_sync(
    folder: Path, writers: int, records: int, pause: float, sync: Callable[[Path], object] = sync
) -> tuple[int, int]:
    """Syncs while writers wrote, and metric values of train/loss in the store at the end. Raises RuntimeError on any failure."""
    runs = write_plan(folder, writers, records)
    processes = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(run), str(records), str(pause)], stderr=subprocess.PIPE, text=True)
        for run in runs
    ]
    syncs = 0
    while any(process.poll() is None for process in processes):
        sync(folder)
        syncs += 1
    failed = [process.communicate()[1] for process in processes if process.returncode]
    if failed:
        raise RuntimeError(f"{len(failed)} writers failed: {failed[0]}")
    sync(folder)
    store = sqlite3.connect(folder / "mlflow.db")
    try:
        (values,) = store.execute("select count(*) from metrics where key = 'train/loss'").fetchone()
        (done,) = store.execute("select count(*) from runs where status = 'FINISHED'").fetchone()
    finally:
        store.close()
    if (values, done) != (writers * records, writers):
        raise RuntimeError(f"the store has {values:,} values of {writers * records:,} and {done} runs of {writers} done")
    return syncs, values


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--writers", type=int, default=256)
    parser.add_argument("--records", type=int, default=200)
    parser.add_argument("--pause", type=float, default=0.2, help="seconds between a writer's records")
    parser.add_argument("--folder", type=Path, default=None, help="where to work (default: /tmp)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        started = time.monotonic()
        syncs, values = write_and_sync(Path(folder), options.writers, options.records, options.pause)
        took = time.monotonic() - started
    print(f"{options.writers} writers, {syncs} syncs beside them, {took:.0f} s: no error, all {values:,} values in the store")
    return 0


if __name__ == "__main__":
    sys.exit(main())
