"""Run jobs of several ranks on this machine, one job after the other, and print what became of them.

    python tests/train/rank_runner.py '[{"run": "DIR", "size": 2}, {"run": "DIR", "size": 1}]'

torch is imported once and each rank is a fork, which meets the others at 127.0.0.1 as torchrun's children would. A job may have
`kill`: SIGKILL for all ranks once so many steps are recorded, `signal` with `rank` and `after`: a signal to that rank then,
`fault`: a name of FAULTS, which strikes `rank`, and `do`: a name of WORK instead of training. Prints a JSON list: exit codes and
stderr by rank.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import math
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# What FSDP and the reading of run.yaml load later on, so that the forks need not.
import omegaconf  # noqa: F401
from safetensors.torch import save_file

import lst.train.trainer
from lst.data.stream import Stream
from lst.errors import DataError
from lst.records import read_jsonl
from lst.train import checkpoint, trainer
from lst.train.__main__ import main
from lst.train.distributed import Place, Ranks
from lst.train.folder import read_run_config
from lst.train.optim import AdamW
from lst.train.sharding import local, make_network

SECONDS = 60  # a job that takes longer hangs


def broken_data() -> None:
    """The rank's rows of step 3 cannot be made."""
    batch = Stream.batch

    def broken(stream: Stream, step: int, **share: int) -> Any:
        if step == 3:
            raise DataError("a record is malformed")
        return batch(stream, step, **share)

    Stream.batch = broken  # type: ignore[assignment,method-assign]


def broken_step() -> None:
    """The rank fails where the others wait for it in a forward pass."""

    def broken(*_: object, **__: object) -> None:
        raise ValueError("a defect")

    trainer.accumulate_gradients = broken  # type: ignore[assignment]


def full_disk() -> None:
    """The disk is full when the optimiser's state of step 3 is written."""
    write = checkpoint.write_tensors

    def full(file: Path, *rest: Any) -> str:
        if "step-00000003" in str(file) and file.name == "optimizer.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, *rest)

    checkpoint.write_tensors = full  # type: ignore[assignment]


def save_parts(run_dir: str) -> int:
    """Write this rank's initial weights to parts-<rank>.safetensors."""
    ranks = Ranks(Place.read(os.environ))
    ranks.join()
    model = make_network(read_run_config(Path(run_dir)), ranks, lst.train.trainer.torch.device("cpu"))
    parts = {name: local(parameter).contiguous() for name, parameter in model.named_parameters()}
    save_file(parts, Path(run_dir) / f"parts-{ranks.rank}.safetensors")
    ranks.leave()
    return 0


def bad_norm() -> None:
    """The rank alone takes the gradient norm of step 3 for no number, as a broken device might."""
    clip = AdamW.clip_gradients
    calls = itertools.count(1)
    AdamW.clip_gradients = lambda self: clip(self) * (math.nan if next(calls) == 3 else 1)  # type: ignore[method-assign]


FAULTS = {f.__name__: f for f in (broken_data, broken_step, full_disk, bad_norm)}
WORK: dict[str, Callable[[str], int]] = {"save_parts": save_parts}


def start(job: dict[str, Any], rank: int, port: int, stderr: int) -> int:
    """Fork one rank; its process id."""
    child = os.fork()
    if child:
        return child
    os.dup2(stderr, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    if job["size"] > 1:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": job["size"], "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in place.items()}
    if "fault" in job and rank == job["rank"]:
        FAULTS[job["fault"]]()
    code = WORK[job["do"]](job["run"]) if "do" in job else main([job["run"]])
    sys.stderr.flush()
    os._exit(code)


def run(job: dict[str, Any]) -> dict[str, Any]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with contextlib.ExitStack() as stack:
        outputs = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(job["size"])]
        children = [start(job, rank, port, file.fileno()) for rank, file in enumerate(outputs)]
        codes = watch(job, children)
        for file in outputs:
            file.seek(0)
        return {"codes": codes, "stderr": [file.read().decode(errors="replace") for file in outputs]}


def watch(job: dict[str, Any], children: list[int]) -> list[int]:
    """Exit codes of the children (negative: signals), which are disturbed as the job says, and killed if they hang."""
    until, codes = time.monotonic() + SECONDS, dict.fromkeys(children, 99)
    left, disturb = set(children), job.get("kill", job.get("after", 0))
    while left:
        done, status = os.waitpid(-1, os.WNOHANG)
        if done:
            codes[done] = os.waitstatus_to_exitcode(status)
            left.discard(done)
            continue
        hangs = time.monotonic() > until
        if hangs or (disturb and len(read_jsonl(Path(job["run"]) / "train.jsonl")) >= disturb):
            victims = [children[job["rank"]]] if "signal" in job and not hangs else sorted(left)
            number = getattr(signal, job["signal"]) if "signal" in job and not hangs else signal.SIGKILL
            for child in victims:
                os.kill(child, number)
            disturb = 0
        time.sleep(0.005)
    return [codes[child] for child in children]


if __name__ == "__main__":
    sys.stdout.write(json.dumps([run(job) for job in json.loads(sys.argv[1])]) + "\n")
