"""Run `lst.train` on a folder again and again, killing it with SIGKILL each time, until it gets through; then on a copy of it.

    python tests/train/kill_runner.py RUN_DIR SEED KILLS

torch is imported once and each attempt is a fork, so that an attempt costs a fraction of a second. Half of the kills come at one
of the first calls of a random kind that changes the disk (write, fsync, rename, remove), half-done where it is a write, so that
saves are hit; most of the others a random time after the attempt's first step, however fast the machine; the rest while the
attempt starts. Once a run got through, the same run begins anew in another folder, until there were KILLS kills; the last one is
left alone. Prints one JSON line: what was killed, and the folders. Beside its results each run leaves `moments.json`, the SHA-256
of each of the optimiser's tensors at the end.
"""

from __future__ import annotations

import collections
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lst.records import read_jsonl
from lst.train.__main__ import main
from lst.train.trainer import Trainer

DISK_CALLS = (
    (os, "write"),
    (os, "fsync"),
    (os, "replace"),
    (os, "ftruncate"),
    (Path, "rename"),
    (Path, "unlink"),
    (shutil, "rmtree"),
)


def kill_at_disk_call(kind: str, number: int, report: int) -> None:
    """Make the `number`-th call of this kind, or the 50th that changes the disk, the last thing this process does."""
    counts: collections.Counter[str] = collections.Counter()

    def wrapped(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            if (name == kind and counts[name] == number) or counts.total() == 50:
                os_write(report, name.encode())
                if name == "write":
                    os_write(args[0], args[1][: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return wrapper

    os_write = os.write
    for owner, name in DISK_CALLS:
        setattr(owner, name, wrapped(name, getattr(owner, name)))


def keep_moments() -> None:
    """Let each run write down the optimiser's state before it is thrown away."""
    finish = Trainer._finish

    def wrapper(self: Trainer) -> None:
        tensors = self.optimizer.tensors()
        digests = {name: hashlib.sha256(t.numpy().tobytes()).hexdigest() for name, t in tensors.items()}
        (self.run_dir / "moments.json").write_text(json.dumps(digests))
        finish(self)

    Trainer._finish = wrapper  # type: ignore[method-assign]


def attempt(
    run_dir: Path, *, disk_call: tuple[str, int] | None = None, after_start: float = 0.0, after_step: float = 0.0
) -> tuple[int, str]:
    """One attempt, killed at a call, or some seconds after it began or made a step; (wait status, what was interrupted)."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115
        if disk_call:
            kill_at_disk_call(*disk_call, writer)
        os._exit(main([str(run_dir)]))
    os.close(writer)
    if not disk_call:
        if not after_start:
            wait_for_a_step(run_dir / "train.jsonl", child)
        time.sleep(after_start or after_step)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    what = os.read(reader, 100).decode() or ("start" if after_start else "step")
    os.close(reader)
    return status, what


def wait_for_a_step(file: Path, child: int) -> None:
    """Until the file has a record more than now, or the child has ended (it stays a zombie until it is waited for)."""
    before = len(read_jsonl(file))
    while len(read_jsonl(file)) <= before and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.002)


def moment(generator: random.Random) -> dict[str, Any]:
    """When the next attempt is killed."""
    kind = generator.random()
    if kind < 0.5:
        return {"disk_call": (generator.choice(DISK_CALLS)[1], generator.randint(1, 6))}
    return {"after_start": generator.uniform(0.01, 0.3)} if kind > 0.9 else {"after_step": generator.uniform(0, 0.02)}


def run(run_dir: Path, seed: int, kills: int) -> dict[str, Any]:
    generator = random.Random(seed)
    keep_moments()
    killed: collections.Counter[str] = collections.Counter()
    folders = [run_dir]
    while sum(killed.values()) < kills:
        status, what = attempt(folders[-1], **moment(generator))
        if os.WIFSIGNALED(status):
            killed[what] += 1
        elif os.WEXITSTATUS(status) == 0:  # it got through
            folders.append(run_dir.with_name(f"{run_dir.name}-{len(folders) + 1}"))
            folders[-1].mkdir()
            shutil.copy(run_dir / "run.yaml", folders[-1])
        else:
            raise SystemExit(f"exit code {os.WEXITSTATUS(status)}")
    return {"killed": dict(killed), "exit_code": main([str(folders[-1])]), "folders": [str(f) for f in folders]}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))) + "\n")
