"""The tests of this folder run jobs on a real SLURM: the one of one machine that `slurm-cluster up` starts, and no other."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm import faults
from tests.slurm.lab import slurm
from tests.train.tiny_run import write_tiny_dataset

LAB = "ClusterName             = lab"


def missing_lab() -> str:
    """Why there is no lab cluster to run on; empty where there is one. A user's own cluster is never touched."""
    how = 'start one as root: tests/slurm/slurm-cluster up; eval "$(tests/slurm/slurm-cluster env)"'
    if shutil.which("sbatch") is None:
        return f"no SLURM on PATH; {how}"
    found = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, timeout=60, check=False)
    if found.returncode:
        return f"no SLURM answers; {how}"
    return "" if LAB in found.stdout else f"the SLURM that answers is not the lab of slurm-cluster; {how}"


@pytest.fixture(scope="session", autouse=True)
def lab() -> None:
    reason = missing_lab()
    if reason:
        pytest.skip(reason)


@pytest.fixture(autouse=True)
def cleared(lab: None) -> Iterator[None]:
    """What a scenario that failed has left in the lab, jobs and nodes that are down, disturbs none after it."""
    yield
    if missing_lab() or "DOWN" in slurm("scontrol", "ping"):
        faults.cluster("up")
    if left := slurm("squeue", "--noheader", "--format=%F").split():
        subprocess.run(["scancel", "--quiet", *sorted(set(left))], check=False)  # they may end meanwhile
    if {"down", "drain", "drained", "down*"} & set(slurm("sinfo", "--noheader", "--Node", "--format=%T").split()):
        faults.cluster("up")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs that nobody disturbed, by run_id: made once, and compared with."""
    return tmp_path_factory.mktemp("alone")
