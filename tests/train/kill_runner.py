"""Run `lst.train` on a folder again and again, killing it with SIGKILL each time, until it gets through.

    python tests/train/kill_runner.py RUN_DIR SEED KILLS

torch is imported once and each attempt is a fork, so that an attempt costs a fraction of a second. Half of the kills come a
random time after the attempt's first step, however fast the machine; the others at a random call that changes the disk
(write, fsync, rename, remove), half-done where it is a write, so that saves are hit. Prints one JSON line: how many attempts
were killed, and in what.
"""

from __future__ import annotations

import collections
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

import lst.train.trainer  # noqa: F401  (so that the forks need not)
from lst.records import read_jsonl
from lst.train.__main__ import main

DISK_CALLS = (
    (os, "write"),
    (os, "fsync"),
    (os, "replace"),
    (os, "ftruncate"),
    (Path, "rename"),
    (Path, "unlink"),
    (shutil, "rmtree"),
)


def kill_at_disk_call(number: int, report: int) -> None:
    """Make the `number`-th call that changes the disk the last thing this process does."""
    done = 0

    def wrapped(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            nonlocal done
            done += 1
            if done == number:
                os_write(report, name.encode())
                if name == "write":
                    os_write(args[0], args[1][: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return wrapper

    os_write = os.write
    for owner, name in DISK_CALLS:
        setattr(owner, name, wrapped(name, getattr(owner, name)))


def attempt(run_dir: str, *, disk_call: int, seconds: float) -> tuple[int, str]:
    """One attempt, killed at a call (if not 0) or after some seconds; (wait status, what was interrupted)."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115
        if disk_call:
            kill_at_disk_call(disk_call, writer)
        os._exit(main([run_dir]))
    os.close(writer)
    if not disk_call:
        wait_for_a_step(Path(run_dir) / "train.jsonl", child)
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    what = os.read(reader, 100).decode() or "time"
    os.close(reader)
    return status, what


def wait_for_a_step(file: Path, child: int) -> None:
    """Until the file has a record more than now, or the child has ended (it stays a zombie until it is waited for)."""
    before = len(read_jsonl(file))
    while len(read_jsonl(file)) <= before and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.002)


def run(run_dir: str, seed: int, kills: int) -> dict[str, Any]:
    generator = random.Random(seed)
    killed: collections.Counter[str] = collections.Counter()
    while sum(killed.values()) < kills:
        by_call = generator.random() < 0.5
        call = generator.randint(1, 50) if by_call else 0
        status, what = attempt(run_dir, disk_call=call, seconds=generator.uniform(0, 0.02))
        if os.WIFSIGNALED(status):
            killed[what] += 1
        elif os.WEXITSTATUS(status) == 0:
            break  # it got through
        else:
            raise SystemExit(f"exit code {os.WEXITSTATUS(status)}")
    return {"killed": dict(killed), "exit_code": main([run_dir])}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))) + "\n")
