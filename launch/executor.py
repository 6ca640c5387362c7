"""Starting jobs: processes on this machine, arrays on SLURM. The one file that imports submitit, which words the batch script.

What a job runs is `python -m launch.worker` with a file of plain values (`launch.job`): nothing that lies in a study's folder is
unpickled or executed. A local job has a session of its own, so that Ctrl-C in the terminal reaches the submitter alone. On
SLURM the stop signals go to the batch script, which raises the flag that the worker and every process of the trainer look
at, whether Python is up already or not; and the script asks for the requeue when the worker leaves with 75 or was killed: by the
array's id and its task's, since one task of an array has SLURM_JOB_ID in common with the array, and would queue all of it again.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.cluster import LocalCluster, SlurmCluster, environment_names
from launch.environment import OPTIONS, THREAD_LIMITS, job_environment, python_environment
from launch.job import CANCELS_BEFORE, FLAG, JOB_FILES, JOB_ID, SPEC, START, STOP_FILES, WorkerJob, write_jobs
from launch.ledger import LAUNCH
from launch.scheduler import sbatch
from lst.errors import LaunchError

SCRIPT = "job.sh"
JOB = "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
AFTER = """worker=$!
until wait "$worker"; code=$?; ! kill -0 "$worker" 2>/dev/null; do :; done
wait "$worker" 2>/dev/null; known=$?; [ "$known" = 127 ] || code=$known
[ "$(cat "$LST_STOP_FLAG" 2>/dev/null)" = TERM ] && exit "$code"
case "$code" in
  75) ;;
  12[89] | 1[3-5][0-9]) echo "worker was killed (exit status $code)" > "$LST_STOP_FLAG" ;;
  *) exit "$code" ;;
esac
trap '' USR1 USR2 TERM
for pause in 2 10 30; do scontrol requeue "$LST_JOB_ID" && exit 0; sleep "$pause"; done
exit "$code"
"""


class LocalHandle:
    """A local job: its process leads a session that holds the worker and the trainer."""

    def __init__(self, job_id: str, folder: Path, process: subprocess.Popen[bytes]) -> None:
        self.job_id = job_id
        self.folder = folder
        self._process = process

    def ended(self) -> bool:
        """Whether the worker is gone."""
        return self._process.poll() is not None

    @property
    def exit_status(self) -> int | None:
        """The worker's exit status; None while it runs."""
        return self._process.returncode

    def signal(self, number: int) -> None:
        """Send a signal to the worker."""
        if not self.ended():
            self._process.send_signal(number)

    def kill(self) -> None:
        """Kill the worker and its trainer, whatever they do."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    def complaint(self) -> str:
        """What the worker itself printed last, where it died without a word in the ledger."""
        return (self.folder / "err.txt").read_text(errors="replace") if (self.folder / "err.txt").is_file() else ""

    def clean(self) -> None:
        """Remove the files of a job that ended in order."""
        if self._process.returncode in (0, 1):
            shutil.rmtree(self.folder, ignore_errors=True)


def start_local(
    launch_dir: Path, job: WorkerJob, cluster: LocalCluster, *, gpu: int | None = None, trainer_argv: Sequence[str] | None = None
) -> LocalHandle:
    """Start one worker on this machine now. `gpu` is the index of its GPU; None hides all."""
    name = uuid.uuid4().hex[:12]  # a process id would come back some day, and with it another job's files
    folder = launch_dir / JOB_FILES / name
    sha256 = write_jobs(folder, [dataclasses.replace(job, token=name)])
    allow = environment_names(cluster.environment)
    environment = _outside(job_environment(os.environ, root=Path(job.root), threads=cluster.threads, allow=allow))
    environment |= {JOB_ID: name, START: f"{time.time():.3f}"}
    environment["CUDA_VISIBLE_DEVICES"] = visible_gpu(os.environ.get("CUDA_VISIBLE_DEVICES"), gpu)
    argv = [sys.executable, "-m", "launch.worker", str(folder / SPEC), "0", sha256, *(trainer_argv or ())]
    with (folder / "out.txt").open("wb") as out, (folder / "err.txt").open("wb") as err:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment, start_new_session=True
        )
    return LocalHandle(name, folder, process)


def visible_gpu(visible: str | None, gpu: int | None) -> str:
    """CUDA_VISIBLE_DEVICES of a job that holds the `gpu`-th of the GPUs that are visible here."""
    if gpu is None:
        return ""
    names = [name for name in visible.split(",") if name] if visible is not None else []
    return names[gpu] if gpu < len(names) else str(gpu)


def require_path(study: Path) -> None:
    """Raises LaunchError where sbatch would take the folder of a study for another one."""
    if any(c in "%\\" or not c.isprintable() for c in str(study)):
        raise LaunchError(f"{str(study)!r} holds a %, a backslash or a line break, which sbatch reads otherwise; rename it.")


def submit_slurm(
    study: Path,
    jobs: Sequence[WorkerJob],
    cluster: SlurmCluster,
    *,
    token: str,
    cancels: int = 0,
    trainer_argv: Sequence[str] | None = None,
    holding: Sequence[int] = (),
    test: bool = False,
) -> str:
    """Submit `jobs` (equal resources, at most max_array_size) as one array; its id. They are its tasks 0, 1, ... in order.

    `token` becomes the jobs' comment, by which they are found again if sbatch failed and SLURM took the jobs all the same;
    `cancels` is how many calls of `cancel` their order knew: later ones are meant for them.
    `holding` are files whose locks are to outlive this process while sbatch runs. `test`: let SLURM validate it
    first. Raises LaunchError with sbatch's own sentence.
    """
    assert jobs
    folder = study / LAUNCH / JOB_FILES / token
    (study / LAUNCH / STOP_FILES).mkdir(exist_ok=True)
    sha256 = write_jobs(folder, [dataclasses.replace(job, token=token) for job in jobs])
    (folder / CANCELS_BEFORE).write_text(f"{cancels}\n")
    script = folder / SCRIPT
    script.write_text(batch_script(study, jobs, cluster, token=token, sha256=sha256, trainer_argv=trainer_argv))
    environment = sbatch_environment(jobs[0], cluster)
    if test:
        sbatch(script, token=token, environment=environment, test=True)
    return sbatch(script, token=token, environment=environment, holding=holding)


def sbatch_environment(job: WorkerJob, cluster: SlurmCluster) -> dict[str, str]:
    """What sbatch itself sees, and so the job: by the allow-list, and nothing of a job in which it may be called."""
    allow = environment_names(cluster.environment)
    return _outside(job_environment(os.environ, root=Path(job.root), threads=cluster.threads, allow=allow))


def warn_of_options() -> str:
    """A warning where this shell holds options of sbatch, which count for no job of ours; empty where it does not."""
    names = sorted(name for name in os.environ if name.startswith(OPTIONS))
    what = f"{', '.join(names)} of this shell {'does' if len(names) == 1 else 'do'} not count here"
    return f"warning: {what}; write such options as cluster.NAME=VALUE, or cluster.options.NAME=VALUE" if names else ""


def _outside(environment: dict[str, str]) -> dict[str, str]:
    """What a new job may see of `environment`: nothing of a job in which it may be made, and no option of sbatch's."""
    kinds = ("SLURM_", OPTIONS, "MASTER_", "LST_JOB_", "LST_STOP_", "LST_LEASE")
    ours = {name for name in environment if name.startswith(kinds)}
    return {name: value for name, value in environment.items() if name not in ours - {"SLURM_CONF"}}


def batch_script(
    study: Path,
    jobs: Sequence[WorkerJob],
    cluster: SlurmCluster,
    *,
    token: str,
    sha256: str,
    trainer_argv: Sequence[str] | None = None,
) -> str:
    """The batch script's text. Raises LaunchError where SLURM's commands are not there."""
    import submitit

    folder = study / LAUNCH / JOB_FILES / token
    try:
        executor = submitit.SlurmExecutor(folder)
    except RuntimeError as error:
        raise LaunchError("cluster=slurm needs sbatch and srun on PATH, and they are not; submit from a login node.") from error
    executor.update_parameters(**slurm_parameters(study, cluster, jobs[0], count=len(jobs), token=token))
    executor.parameters["map_count"] = len(jobs)
    worker = [sys.executable, "-m", "launch.worker", str(folder / SPEC), "$SLURM_ARRAY_TASK_ID", sha256, *(trainer_argv or ())]
    words = ['"$SLURM_ARRAY_TASK_ID"' if word.startswith("$") else shlex.quote(word) for word in worker]
    return executor._make_submission_file_text(f"{' '.join(words)} &\n{AFTER}", token)


def probe_script(
    study: Path, cluster: SlurmCluster, job: WorkerJob, *, node: str, token: str, words: Sequence[str], out: Path, err: Path
) -> str:
    """A batch script that runs `words` on one node, with the options that the study's jobs would have."""
    import submitit

    try:
        executor = submitit.SlurmExecutor(out.parent)
    except RuntimeError as error:
        raise LaunchError("cluster=slurm needs sbatch and srun on PATH, and they are not; submit from a login node.") from error
    parameters = slurm_parameters(study, cluster, job, count=1, token=f"{token}-{out.stem}")
    parameters |= {"nodelist": node, "exclude": None, "time": 10, "job_name": f"{cluster.job_name}-preflight"}
    parameters["setup"] = _exports(job, cluster)
    executor.update_parameters(**parameters)
    return executor._make_submission_file_text(f"{shlex.join(words)} > {shlex.quote(str(out))} 2> {shlex.quote(str(err))}", token)


def first_lines(stop_files: Path) -> list[str]:
    """How a job's script begins: with the traps, since a signal that comes before them kills it."""
    flag = f'{shlex.quote(str(stop_files))}/"{JOB}.${{SLURM_RESTART_COUNT:-0}}"'
    traps = "; ".join(f"trap 'stop {name}' {name}" for name in ("USR1", "USR2", "TERM"))
    return [f'stop() {{ echo "$1" > {flag}; }}; {traps}', f"export {FLAG}={flag} {JOB_ID}={JOB} {START}=$(date +%s.%3N)"]


def slurm_parameters(study: Path, cluster: SlurmCluster, job: WorkerJob, *, count: int, token: str) -> dict[str, Any]:
    """Arguments of submitit's SLURM executor: what is unset here is None there, and so absent from the batch script."""
    return {
        "job_name": cluster.job_name,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "time": cluster.timeout_min,
        "mem": None if cluster.mem_gb is None else f"{round(cluster.mem_gb * 1024)}M",
        "nodes": job.nodes,
        "ntasks_per_node": job.tasks_per_node if job.tasks_per_node > 1 else None,
        "cpus_per_task": cluster.cpus_per_task,
        "gpus_per_node": job.gpus // job.nodes or None,
        "constraint": cluster.constraint,
        "exclude": cluster.exclude,
        "nodelist": cluster.nodelist,
        "comment": token,
        "wckey": None,
        "array_parallelism": cluster.array_parallelism or count,
        "setup": [*first_lines(study / LAUNCH / STOP_FILES), *_exports(job, cluster)],
        "use_srun": False,
        "additional_parameters": {
            "signal": f"B:USR2@{cluster.signal_seconds}",
            "requeue": True,
            **dict(cluster.options),
        },
    }


def _exports(job: WorkerJob, cluster: SlurmCluster) -> list[str]:
    """The lines that bind a job's Python to the frozen code and its threads."""
    exported = python_environment(Path(job.root)) | dict.fromkeys(THREAD_LIMITS, str(cluster.threads))
    return [f"export {name}={shlex.quote(value)}" for name, value in sorted(exported.items())]
