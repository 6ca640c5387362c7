"""Before a study: one small job a node type looks what is there (`python -m lst.preflight`), and this says what is wrong.

Nodes are of one type if SLURM gives them equal features, GPUs and partition. On this machine there is one type. Not here:
the looking itself, which needs torch.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from launch.cluster import Cluster, LocalCluster, SlurmCluster, placement
from launch.environment import job_environment
from launch.executor import probe_script, require_path, sbatch_environment
from launch.failures import tail_of
from launch.job import JOB_FILES, WorkerJob
from launch.ledger import LAUNCH
from launch.rows import PLAN, read_rows
from launch.scheduler import cancel_jobs, node_types, sbatch, slurm_queue
from launch.snapshot import make_private, take_snapshot
from lst.errors import LaunchError
from lst.records import RUN_CONFIG

PROBE = "lst.preflight"
LOCAL_SECONDS = 300
WAIT_SECONDS = 900  # for the jobs to start and end
POLL_SECONDS = 1.0
FREE_GIB = 5.0
CLOCK_SECONDS = 5.0
LOCAL_LOCKS = re.compile(r"\b(nolock|localflock|local_lock=(all|flock))\b")  # mount options of NFS and Lustre
BF16_ERROR = 0.05
BF16_SLOWER = 5.0
BF16 = re.compile(r"\bdtype\W+bfloat16")  # in a run.yaml


def check_machines(study: Path, cluster: Cluster) -> list[dict[str, Any]]:
    """What each node type offers, with `wrong`: sentences, none if all is well. Raises LaunchError."""
    study = study.absolute()
    if not study.is_dir():
        raise LaunchError(f"'{study}' does not exist; plan the study first, or make the folder it is to lie in.")
    make_private(study / LAUNCH)
    root = take_snapshot(study / LAUNCH)
    bf16 = _wants_bf16(study)
    if not isinstance(cluster, SlurmCluster):
        environment = job_environment(os.environ, root=root, threads=cluster.threads)
        argv = [sys.executable, "-m", PROBE, str(study)]
        done = subprocess.run(argv, capture_output=True, text=True, env=environment, timeout=LOCAL_SECONDS, check=False)
        gpus = cluster.gpus if isinstance(cluster, LocalCluster) else 0
        return [_judged("this machine", _parsed(done.stdout, done.stderr), gpus=gpus, bf16=bf16)]
    return _on_slurm(study, cluster, root, bf16)


def report_lines(found: Iterable[dict[str, Any]]) -> list[str]:
    """A line a node type, and one for each thing that is wrong."""
    lines = []
    for machine in found:
        seen = machine["seen"]
        versions = seen.get("imports", {})
        about = f"python {seen.get('python', '?')}, torch {versions.get('torch', '?')}, {len(seen.get('gpus') or [])} GPUs"
        about += f", study on {disk['filesystem']}" if "filesystem" in (disk := seen.get("disk", {})) else ""
        verdict = "is ready" if not machine["wrong"] else "is not ready"
        lines.append(f"{machine['type']}: {seen.get('host', '?')} {verdict} ({about})")
        lines += [f"  - {sentence}" for sentence in machine["wrong"]]
    return lines


def _wants_bf16(study: Path) -> bool:
    """Whether a run of the plan is in bfloat16; so it may be where there is no plan yet."""
    rows = read_rows(study) if (study / PLAN).is_file() else []
    files = [row.folder(study) / RUN_CONFIG for row in rows if row.admitted]
    texts = [path.read_text(errors="replace") for path in files if path.is_file()]
    return not texts or any(BF16.search(text) for text in texts)


def _on_slurm(study: Path, cluster: SlurmCluster, root: Path, bf16: bool) -> list[dict[str, Any]]:
    require_path(study)
    types = node_types(cluster.partition, nodelist=cluster.nodelist, exclude=cluster.exclude)
    token = uuid.uuid4().hex[:12]
    folder = study / LAUNCH / JOB_FILES / token
    folder.mkdir(parents=True)
    jobs: dict[str, tuple[str, Path, Path]] = {}
    gpus = _gpus_of_a_node(study, cluster)
    job = WorkerJob(study=str(study), run_id="preflight", root=str(root), cluster="slurm", gpus=gpus)
    late: dict[str, str] = {}
    letter = folder / f"{token}.letter"  # what this machine writes now, the node has to see
    letter.write_text(letter.name)
    try:
        for number, (kind, node) in enumerate(types.items()):
            out, err = folder / f"{number}.json", folder / f"{number}.err"
            script = folder / f"{number}.sh"
            words = [sys.executable, "-m", PROBE, str(study), str(letter)]
            script.write_text(probe_script(study, cluster, job, node=node, token=token, words=words, out=out, err=err))
            jobs[kind] = (sbatch(script, token=f"{token}-{number}", environment=sbatch_environment(job, cluster)), out, err)
        late = _wait_for([identity for identity, _, _ in jobs.values()])
    finally:
        cancel_jobs([identity for identity, _, _ in jobs.values()])
        (folder / "accepted").write_text("\n")
    found = []
    for kind, (identity, out, err) in jobs.items():
        seen = _parsed(out.read_text() if out.exists() else "", tail_of(err))
        if identity in late:
            seen = {"error": f"job {identity} was still {late[identity]} after {WAIT_SECONDS} s, and is cancelled"}
        found.append(_judged(kind, seen, gpus=gpus, bf16=bf16, needs_commands=True))
    return found


def _wait_for(jobs: list[str]) -> dict[str, str]:
    """Until the jobs have left SLURM's list; those that have not, and their states, when the time is up."""
    deadline = time.monotonic() + WAIT_SECONDS
    while left := {identity: state for identity, state in slurm_queue().items() if identity in jobs}:
        if time.monotonic() >= deadline:
            return left
        time.sleep(POLL_SECONDS)
    return {}


def _gpus_of_a_node(study: Path, cluster: SlurmCluster) -> int:
    """GPUs that the study's runs use on one node."""
    if not (study / PLAN).is_file():
        return cluster.gpus_per_node or 0
    places = [placement(cluster, row.gpus) for row in read_rows(study) if row.admitted]
    return max((gpus // nodes for nodes, _, gpus in places), default=0)


def _parsed(text: str, complaint: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError:
        last = [line for line in complaint.splitlines() if line.strip()][-1:] or ["it printed nothing"]
        return {"error": last[0]}
    return content if isinstance(content, dict) else {"error": "it printed no object"}


def _judged(kind: str, seen: dict[str, Any], *, gpus: int, bf16: bool, needs_commands: bool = False) -> dict[str, Any]:
    return {"type": kind, "seen": seen, "wrong": list(_wrong(seen, gpus=gpus, wants_bf16=bf16, needs_commands=needs_commands))}


def _wrong(seen: dict[str, Any], *, gpus: int, wants_bf16: bool, needs_commands: bool) -> Iterable[str]:
    """What is wrong, a sentence each."""
    if "error" in seen:
        yield f"the check itself did not run: {seen['error']}"
        return
    for name, version in seen["imports"].items():
        if version.startswith("error"):
            yield f"{name} cannot be imported ({version.removeprefix('error: ')}); install the project's requirements there."
    for name in ("gpus", *(["bf16"] if wants_bf16 else []), "collective", "disk", "clock"):
        if isinstance(seen[name], dict) and "error" in seen[name]:
            yield f"{name}: {seen[name]['error']}"
    if isinstance(seen["gpus"], list) and len(seen["gpus"]) < gpus:
        yield f"torch sees {len(seen['gpus'])} GPUs of {gpus}; look at the driver, and at which build of torch is installed."
    bf16 = seen["bf16"] if wants_bf16 else {}
    if bf16.get("relative_error", 0) > BF16_ERROR:
        yield f"bfloat16 products are off by {bf16['relative_error']:.0%}."
    if bf16.get("times_float32", 0) > BF16_SLOWER:
        yield f"bfloat16 takes {bf16['times_float32']:.0f} times as long as float32; plan with train.dtype=float32 there."
    if seen["disk"].get("free_gib", FREE_GIB) < FREE_GIB:
        yield f"the study's folder has {seen['disk']['free_gib']} GiB of free space; runs need more."
    if seen["disk"].get("locks") is False:
        yield "the study's filesystem has no locks; leases rest on heartbeats alone there."
    if seen["disk"].get("creates_once") is False or seen["disk"].get("replaces") is False:
        yield "the study's filesystem does not create a file once only, or shows replaced ones late; put the study elsewhere."
    if seen["disk"].get("letter") is False:
        yield "a file that this machine wrote before the job is not seen there: not one filesystem, or one that shows files late."
    if found := LOCAL_LOCKS.search(seen["disk"].get("options", "")):
        yield f"the study's filesystem is mounted with {found[0]}: locks tell nothing between machines, heartbeats must do."
    if isinstance(seen["clock"], float) and abs(seen["clock"]) > CLOCK_SECONDS:
        yield f"the clock is {seen['clock']:.0f} s off the filesystem's; leases go by it, so set it right."
    missing = [name for name in ("sbatch", "scontrol") if name not in (seen["commands"] or [])]
    if needs_commands and missing:
        yield f"{' and '.join(missing)} are not on PATH in jobs: keep submit-sweep submit --wait running, or what waits stays."
