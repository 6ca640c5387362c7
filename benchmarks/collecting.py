"""Collecting 10,000 runs of 1,000 records: seconds, memory, and the ratio to the plain way, `json.loads` and pandas.

    python -m benchmarks.collecting [--runs 10000] [--records 1000] [--folder DIR] [--keep]

The study is synthetic: real files with the trainer's fields, numbers drawn, nothing trained. Run by hand. `fit-scaling collect`
is called as it is: its wall clock, the processor time of all its processes and the most memory that they held together (a page
that they share counts for each) are told. Parts are timed in another process on a sample of the runs, by processor time, in turn
with the plain way, so that other programs disturb the ratio little.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SAMPLE = 200
TASKS = (("heldout_mixture", "ST->ST"), ("heldout_speech", "S->S"), ("heldout_text", "T->T"))
POINTS = 5


def train_line(rng: random.Random, step: int, records: int) -> str:
    """A line with the fields of docs/run_folder.md, in the trainer's order."""
    loss, tokens = 3 + 4 / (1 + step / 40) + 0.05 * rng.random(), 8192 * step
    record = {
        **{
            "step": step,
            "loss": loss,
            "loss_text": loss + 0.3,
            "loss_speech": loss - 0.2,
            "lr": 1e-3 * (1 - step / (records + 1)),
        },
        **{"grad_norm": 0.5 + rng.random(), "train_flops": 1.234e15 * step, "units": 5120 * step, "tokens": tokens},
        **{"text_tokens": tokens // 3, "text_only_tokens": tokens // 4, "speech_tokens": tokens // 2},
        **{"unique_speech_tokens": tokens // 2, "unique_text_tokens": tokens // 4, "speech_epochs": tokens / 1e9},
        **{"text_epochs": tokens / 3e9, "spent_flops": 1.234e15 * step, "batch_hash": f"{rng.getrandbits(64):016x}"},
        **{
            "time": round(1.7e9 + step * 0.41, 3),
            "seconds": round(rng.random(), 6),
            "data_seconds": round(rng.random() / 100, 6),
        },
        **{"data_wait_share": round(rng.random() / 10, 4), "tokens_per_second": round(2e4 * rng.random(), 1)},
        **{"units_per_second": round(1e4 * rng.random(), 1), "audio_seconds_per_second": round(300 * rng.random(), 1)},
        **{"mfu": round(rng.random(), 4), "peak_memory_mib": 61234.5},
    }
    return json.dumps(record, separators=(",", ":"))


def write_study(folder: Path, runs: int, records: int) -> int:
    """The synthetic study; bytes of its training records. There are eight curves; a run's last line is its own."""
    from sweeps.columns import PlanRow, rows_to_csv

    empty = {"str": "", "int": 1, "float": 1.0}
    blank = {f.name: empty[getattr(f.type, "__name__", f.type)] for f in dataclasses.fields(PlanRow)}
    rows, written = [], 0
    variants = [[train_line(random.Random(seed), step, records) for step in range(1, records + 1)] for seed in range(8)]
    for index in range(runs):
        run_id = f"{index:012x}"
        named = {"run_id": run_id, "study": "synthetic", "kind": "pretrain", "arm": ("baseline", "lst_static")[index % 2]}
        named |= {"size": f"s{index // 2 % 10}", "steps": records, "status": "admitted", "planned_flops": 1.234e15 * records}
        rows.append(PlanRow(**(blank | named)))
        run = folder / "runs" / run_id
        run.mkdir(parents=True)
        lines = list(variants[index % len(variants)])
        lines[-1] = train_line(random.Random(index), records, records)
        text = "\n".join(lines) + "\n"
        written += (run / "train.jsonl").write_text(text)
        (run / "eval.jsonl").write_text("".join(eval_lines(index, records)))
        spent = {"step": records, "train_flops": 1.234e15 * records, "units": 5120 * records, "tokens": 8192 * records}
        (run / "exit.json").write_text(json.dumps({"run_id": run_id, "status": "done", "seconds": 1.0} | spent))
    (folder / "plan.csv").write_text(rows_to_csv(rows))
    return written


def eval_lines(index: int, records: int) -> list[str]:
    rng = random.Random(index)
    found = []
    for point in range(1, POINTS + 1):
        step = records * point // POINTS
        spent = {"step": step, "train_flops": 1.234e15 * step, "units": 5120 * step}
        spent |= {"text_tokens": 2730 * step, "speech_tokens": 4096 * step}
        for task, direction in TASKS:
            named = {"task": task, "direction": direction, "metric": "nats_per_token", "value": 3 + rng.random()}
            named["n_items"] = 100_000
            found.append(json.dumps(spent | named, separators=(",", ":")) + "\n")
    return found


def timed(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def measure(folder: Path) -> dict[str, float]:
    """Of `fit-scaling collect`: seconds of the clock and of all its processes, and their peak MiB together."""
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "analysis.cli", "collect", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True) as process:
        held = 0.0
        while process.returncode is None:
            held = max(held, mebibytes(process.pid))
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.5)
    wall = time.monotonic() - started
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    user, system = used.ru_utime - before.ru_utime, used.ru_stime - before.ru_stime
    return {"wall": wall, "processor": user + system, "system": system, "MiB": held}


def mebibytes(session: int) -> float:
    """Resident memory of a session's processes."""
    pages = 0
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, IndexError, ValueError):  # it has ended
            if entry.name.isdigit() and int((entry / "stat").read_text().rpartition(")")[2].split()[3]) == session:
                pages += int((entry / "statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def parts(folder: Path) -> dict[str, float]:
    """Processor seconds of parts on the sample, and of the plain way."""
    import pandas as pd

    from analysis.collect import read_plan
    from analysis.run_tables import planned_runs, run_files, run_tables
    from analysis.step_records import read_steps

    def plain(path: Path) -> Any:
        return pd.DataFrame([json.loads(line) for line in path.read_text().splitlines()])

    found: dict[str, float] = {"plain": 0.0, "steps": 0.0, "runs": 0.0}
    for run in planned_runs(read_plan(folder)[:SAMPLE], []):  # in turn
        path = folder / "runs" / run.row["run_id"] / "train.jsonl"
        found["plain"] += timed(lambda path=path: plain(path))
        found["steps"] += timed(lambda path=path: read_steps(path))
        found["runs"] += timed(lambda run=run: run_tables(run, run_files(folder, run)))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--records", type=int, default=1_000)
    parser.add_argument(
        "--folder", type=Path, default=None, help="where the study is made; default: the system's temporary folder"
    )
    parser.add_argument("--keep", action="store_true", help="leave the study in FOLDER/study, and take it if it is there")
    parser.add_argument("--parts", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.parts:
        print(json.dumps(parts(options.folder)))
        return 0
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        study = options.folder / "study" if options.keep and options.folder else Path(temporary) / "study"
        if not study.exists():
            print(
                f"synthetic records: {write_study(study, options.runs, options.records) / 1e9:.2f} GB in {options.runs:,} runs",
                flush=True,
            )
        report(study, options.runs)
    return 0


def report(study: Path, runs: int) -> None:
    whole = measure(study)
    print(
        f"collect: {whole['wall']:.1f} s of the clock, {whole['processor']:.1f} s of the processors "
        f"({whole['system']:.1f} the kernel's), peak {whole['MiB']:.0f} MiB",
        flush=True,
    )
    command = [sys.executable, "-m", "benchmarks.collecting", "--parts", "--folder", str(study)]
    sample = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    scale = runs / min(runs, SAMPLE)
    plain = scale * sample["plain"]
    print(f"processor seconds for {runs:,} runs, parts from {min(runs, SAMPLE)} of them; times as fast as plain:")
    rows = {"plain json.loads and pandas": plain, "training records": scale * sample["steps"]}
    rows |= {"a run's rows of all tables": scale * sample["runs"], "collect": whole["processor"]}
    for name, seconds in rows.items():
        print(f"  {name:<28}{seconds:8.1f}{plain / seconds:8.1f}")


if __name__ == "__main__":
    sys.exit(main())
