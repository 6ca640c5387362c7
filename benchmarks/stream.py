"""How fast and how lean the training stream is: the embedded corpus repeated to 100M tokens, as shards, on one core.

    python -m benchmarks.stream [folder=FOLDER] [tokens=1e8] [rows=1024]

Writes the shards once (about 0.7 GB), then makes sequences of 4,096 units of each arm in a process of its own and prints a
table: tokens by content of finished batches a second of processor time, of it the share of each stage, and the peak of the
resident memory: all that the process has in RAM (VmHWM), the interpreter, its packages, mapped pages of the data and the batch
included. Nothing here is a training step.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SEQUENCES = 32  # of a batch
ARMS = ("baseline", "bpe", "lst_static", "lst_aligned", "lst_mixed", "lst_curriculum")


def write_repeated(folder: Path, tokens: float) -> None:
    """The embedded corpus again and again, each time in a shard of its own for either table, until it has `tokens` tokens."""
    import pyarrow as pa

    from lst.data.preparing.shard_writer import ShardWriter, write_manifest
    from lst.data.shards import SCHEMAS, TOKEN_COLUMNS, open_dataset
    from lst.data.text import tokenizer_file

    dataset = open_dataset("embedded")
    folder.mkdir(parents=True)
    manifest: dict[str, Any] = dict(dataset.manifest) | {"shards": {"speech": [], "text": []}}
    once = {name: dataset.documents(name, "train").tokens for name in TOKEN_COLUMNS}
    for number in range(max(1, round(tokens / sum(once.values())))):
        for name, column in TOKEN_COLUMNS.items():
            table: pa.Table = getattr(dataset, name)
            rows = table.take(list(dataset.rows(name, "train"))).select(SCHEMAS[name].names)
            file = f"{name}-{number:05}.arrow"
            writer = ShardWriter(folder / file, rows.schema, column)
            writer.write(rows)
            written = writer.close()
            shard = {"file": file, "split": "train", "rows": written.rows, "tokens": written.tokens}
            manifest["shards"][name].append(shard)
    shutil.copy(tokenizer_file(dataset.path), folder)
    write_manifest(folder, manifest)


class Stages:
    """Processor seconds by stage: functions are wrapped, and time spent in an inner stage counts there alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._running: list[str] = []
        self._since = 0.0

    def wrap(self, owner: Any, name: str, stage: str) -> None:
        setattr(owner, name, self.timed(getattr(owner, name), stage))

    def timed(self, inner: Callable[..., Any], stage: str) -> Callable[..., Any]:
        """`inner`, of which the time counts as `stage`'s."""

        def timed(*arguments: Any, **options: Any) -> Any:
            self._switch(stage)
            try:
                return inner(*arguments, **options)
            finally:
                self._switch(None)

        return timed

    def _switch(self, stage: str | None) -> None:
        now = time.process_time()
        if self._running:
            running = self._running[-1]
            self.seconds[running] = self.seconds.get(running, 0.0) + now - self._since
        if stage is None:
            self._running.pop()
        else:
            self._running.append(stage)
        self._since = now


def measure(folder: Path, arm: str, rows: int, *, stages: bool) -> dict[str, Any]:
    """Tokens, processor and wall seconds, resident MiB, and seconds by stage where they are asked for (they cost time)."""
    from lst.config import arm_config
    from lst.data.pack import PackedRow
    from lst.data.row_builder import RowBuilder
    from lst.data.shards import open_dataset
    from lst.data.statistics import solve_mixture
    from lst.data.stream import Stream

    dataset = open_dataset(folder)
    model = {"text_vocab": dataset.text_vocab, "speech_vocab": dataset.speech_vocab}
    train = {"batch_sequences": SEQUENCES, "steps": 1_000_000}
    config = arm_config(arm, size="tiny", model=model, data={"seq_len_units": 4096}, train=train)
    config = dataclasses.replace(config, data=solve_mixture(dataset, config))
    stream = Stream(dataset, config)
    _ = stream.batch(0).counts
    clock = Stages()
    if stages:
        clock.wrap(Stream, "row", "reading, drawing spans")
        clock.wrap(RowBuilder, "_beginnings", "patching")
        clock.wrap(RowBuilder, "row", "ids, units, targets")
        clock.wrap(PackedRow, "counts", "counts for FLOPs")
        digest = PackedRow.digest.fget
        PackedRow.digest = property(clock.timed(digest, "hash"))  # type: ignore[assignment, method-assign]
    tokens, cpu, wall = 0, time.process_time(), time.perf_counter()
    for step in range(1, 1 + rows // SEQUENCES):
        batch = stream.batch(step)
        tokens += int(batch.counts.tokens)
        _ = batch.hash
    seconds = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
    return {"arm": arm, "tokens": tokens, "resident_mib": peak_resident(), "stages": clock.seconds, **seconds}


def peak_resident() -> float:
    """MiB of this process alone: getrusage's figure is at least that of the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def in_process_of_its_own(folder: Path, arm: str, rows: int, stages: bool) -> dict[str, Any]:
    """Peak memory is a process's, so each arm has one."""
    command = [sys.executable, "-m", "benchmarks.stream", "--measure", str(folder), arm, str(rows), str(int(stages))]
    result: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return result


def main() -> None:
    if sys.argv[1:2] == ["--measure"]:
        folder, arm, rows, stages = sys.argv[2:]
        print(json.dumps(measure(Path(folder), arm, int(rows), stages=bool(int(stages)))))
        return
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    folder = Path(options.get("folder", Path(tempfile.gettempdir()) / "lst-stream-benchmark"))
    tokens, rows = float(options.get("tokens", 1e8)), int(options.get("rows", 1024))
    if not folder.exists():
        write_repeated(folder, tokens)
    print("| arm | M tokens/s (CPU) | (wall) | resident MiB |\n|---|---|---|---|")
    for arm in options.get("arms", ",".join(ARMS)).split(","):
        found = in_process_of_its_own(folder, arm, rows, stages=False)
        speeds = (f"{found['tokens'] / found[clock] / 1e6:.2f}" for clock in ("cpu", "wall"))
        print(f"| {arm} | {' | '.join(speeds)} | {found['resident_mib']:.0f} |", flush=True)
    found = in_process_of_its_own(folder, "lst_static", rows, stages=True)
    print("\n| stage of lst_static | ns a token | share |\n|---|---|---|")
    total = sum(found["stages"].values())
    for stage, seconds in found["stages"].items():
        print(f"| {stage} | {seconds / found['tokens'] * 1e9:.0f} | {seconds / total:.0%} |")


if __name__ == "__main__":
    main()
