"""What a machine offers to runs: `python -m lst.preflight FOLDER [LETTER]` prints one JSON object. It judges nothing.

Imports and versions, GPUs, bfloat16, a collective of two processes (or of all GPUs), FOLDER's filesystem (its kind, writing,
locking, creating once, replacing; whether the file LETTER, which another machine has just written, is seen), the clock
against that of FOLDER's filesystem, and SLURM's commands. What cannot be found out is told as the error it gave. Not here:
what is wrong with it (the launcher).
"""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MODULES = ("lst", "torch", "numpy", "pyarrow", "safetensors", "sentencepiece", "omegaconf", "submitit")
COMMANDS = ("sbatch", "scontrol", "squeue", "srun")
MATRIX = 512
SPEED_ROUNDS = 5


def probe(folder: Path, letter: Path | None = None) -> dict[str, Any]:
    """Everything; a part that fails is {"error": ...}. `letter` is a file whose text is its own name."""
    seen = {} if letter is None else {"letter": _is_seen(letter)}
    parts: dict[str, Callable[[], Any]] = {
        "imports": _imports, "gpus": _gpus, "bf16": _bf16, "collective": _collective,
        "disk": lambda: _disk(folder) | seen, "clock": lambda: _clock(folder), "commands": _commands,
    }  # fmt: skip
    found: dict[str, Any] = {"host": platform.node(), "python": platform.python_version(), "cores": os.cpu_count()}
    for name, part in parts.items():
        try:
            found[name] = part()
        except Exception as error:  # whatever it is, it is the answer
            found[name] = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    return found


def _imports() -> dict[str, str]:
    """Module -> version, or the error."""
    found = {}
    for name in MODULES:
        try:
            found[name] = str(getattr(importlib.import_module(name), "__version__", "?"))
        except Exception as error:
            found[name] = f"error: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return found


def _gpus() -> list[str]:
    import torch

    return [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]


def _bf16() -> dict[str, Any]:
    """Whether bfloat16 products are right, and how long one takes against float32."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(1)
    a, b = (torch.randn(MATRIX, MATRIX, device=device) for _ in range(2))
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        x, y = a.to(dtype), b.to(dtype)
        product = x @ y
        begin = time.perf_counter()
        for _ in range(SPEED_ROUNDS):
            product = x @ y
        float(product[0, 0])
        seconds[dtype] = time.perf_counter() - begin
    error = float((product.float() - a @ b).abs().max() / (a @ b).abs().max())
    return {"relative_error": round(error, 5), "times_float32": round(seconds[torch.bfloat16] / seconds[torch.float32], 3)}


def _collective() -> dict[str, Any]:
    """A sum over two processes by gloo, or over all GPUs by nccl."""
    import torch
    from torch.multiprocessing.spawn import spawn

    gpus = torch.cuda.device_count()
    size, backend = (gpus, "nccl") if gpus > 1 else (2, "gloo")
    with tempfile.TemporaryDirectory() as folder:
        spawn(_rank, args=(size, backend, f"{folder}/store"), nprocs=size)  # type: ignore[no-untyped-call]
    return {"backend": backend, "processes": size}


def _rank(rank: int, size: int, backend: str, store: str) -> None:
    import torch
    import torch.distributed as dist

    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    dist.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=size)
    value = torch.full((1,), float(rank + 1), device=device)
    dist.all_reduce(value)
    assert float(value) == size * (size + 1) / 2, f"the sum is {float(value)}"
    dist.destroy_process_group()


def _disk(folder: Path) -> dict[str, Any]:
    """Free space, the filesystem's kind and options, and whether files can be written, locked, created once and replaced."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".preflight-") as file:
        file.write(b"x" * 2**20)
        file.flush()
        os.fsync(file.fileno())
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locks = True
        except OSError:
            locks = False
    kind, options = filesystem(folder, Path("/proc/self/mounts").read_text())
    free = round(shutil.disk_usage(folder).free / 2**30, 2)
    return {"free_gib": free, "locks": locks, "filesystem": kind, "options": options} | _files(folder)


def filesystem(folder: Path, mounts: str) -> tuple[str, str]:
    """Kind and mount options of the filesystem that holds `folder`, by the lines of /proc/self/mounts."""
    best: tuple[int, str, str] = (-1, "?", "")
    for line in mounts.splitlines():
        _, point, kind, options, *_ = line.split(" ")
        place = Path(re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), point))
        if folder.resolve().is_relative_to(place) and len(place.parts) >= best[0]:
            best = (len(place.parts), kind, options)
    return best[1], best[2]


def _files(folder: Path) -> dict[str, bool]:
    """Whether a name can be created once only, and whether a replaced file is the new one at once."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".preflight-") as name:
        here, aside = Path(name) / "file", Path(name) / "aside"
        os.close(os.open(here, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        try:
            os.close(os.open(here, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            once = False
        except FileExistsError:
            once = True
        with here.open() as old:
            aside.write_text("new")
            aside.replace(here)
            replaced = here.read_text() == "new" and os.fstat(old.fileno()).st_ino != here.stat().st_ino
    return {"creates_once": once, "replaces": replaced}


def _is_seen(letter: Path) -> bool:
    """Whether what another machine has written is there."""
    try:
        return letter.read_text() == letter.name
    except FileNotFoundError:
        return False


def _clock(folder: Path) -> float:
    """Seconds by which this machine's clock is ahead of the filesystem's."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".preflight-") as file:
        now = time.time()
        file.write(b"x")
        file.flush()
        return round(now - Path(file.name).stat().st_mtime, 3)


def _commands() -> list[str]:
    """SLURM's commands that are on PATH."""
    return [name for name in COMMANDS if shutil.which(name)]


def main() -> int:
    folder, *letter = map(Path, sys.argv[1:])
    print(json.dumps(probe(folder, *letter), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
