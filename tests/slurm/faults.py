"""Things that go wrong on a cluster, done on purpose to the lab's."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.slurm.lab import LabStudy, processes, slurm

CLUSTER = Path(__file__).with_name("slurm-cluster")


def kill(pattern: str) -> int:
    """SIGKILL processes by their command line; how many."""
    found = processes(pattern)
    subprocess.run(["kill", "-KILL", *map(str, found)], check=False, stderr=subprocess.DEVNULL) if found else None
    return len(found)


def workers(study: LabStudy) -> str:
    """The pattern of a study's workers."""
    return f"^[^ ]*python[^ ]* -m launch.worker {study.folder}"


def catches(job: str, name: str) -> bool:
    """Whether a job's batch shell is up and has its trap for a signal: before, a signal ends it as it does any process."""
    identity = slurm("squeue", "--noheader", f"--jobs={job}", "--states=R", "--format=%A").strip()
    for pid in processes(f"bash .*/job0*{identity}/slurm_script") if identity else []:
        try:
            caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
        except FileNotFoundError:
            continue
        if caught is not None and int(caught[1], 16) >> (signal.Signals[f"SIG{name}"] - 1) & 1:
            return True
    return False


@contextlib.contextmanager
def prolog(text: str) -> Iterator[None]:
    """Shell lines that every node runs meanwhile before a job's script."""
    path = Path(os.environ["SLURM_CONF"]).with_name("prolog.now")
    path.write_text(text)
    try:
        yield
    finally:
        path.unlink()


def take_node(node: int, seconds: float = 2.0, nodes: int = 1) -> str:
    """A job of the higher partition that wants a whole node (or `nodes` of them): it preempts what runs there."""
    where = [f"--nodelist=node{node}"] if nodes == 1 else [f"--nodes={nodes}"]
    options = ["--parsable", "--partition=high", *where, "--cpus-per-task=8", "--ntasks-per-node=1", "--output=/dev/null"]
    return slurm("sbatch", *options, f"--wrap=sleep {seconds}").strip()


def cluster(*arguments: str) -> None:
    """slurm-cluster itself."""
    done = subprocess.run([str(CLUSTER), *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def kill_node(node: int) -> None:
    """Cut a node's power and bring it back."""
    cluster("kill-node", str(node))
    cluster("up")
