"""Starting jobs through submitit: the one file that imports it. Two ways: processes on this machine, arrays on SLURM.

What submitit gives: the job's function stored beside its logs, the batch script, the array's job ids. What is ours: at
most so many local jobs at once (`launch.feed`), a session of its own for each local job (so that Ctrl-C in the terminal
reaches the submitter alone), an environment by allow-list, and one owner of signals and retries (`launch.worker`).

    python -m launch.executor FOLDER    the entry of a local job: submitit's own, without loading numpy for nothing
"""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.modules["numpy"] = None  # type: ignore[assignment]  # submitit tries to import it and goes on without: 0.2 s less a job

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.local.local import LocalJob

from launch.cluster import LocalCluster, SlurmCluster, environment_names
from launch.environment import THREAD_LIMITS, job_environment, python_environment
from launch.failures import one_line
from launch.status import JOB_FILES
from launch.worker import WorkerJob, run_job
from lst.errors import LaunchError
from lst.plain import to_dict


class _SessionLocalExecutor(submitit.LocalExecutor):
    """submitit's local executor with one process a job: no controller process (it would kill a saving job after a second)."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        super().__init__(folder)
        self.environment = dict(environment)
        self._throttling = 0.0

    def _submit_command(self, command: str) -> LocalJob[Any]:
        name = uuid.uuid4().hex[:12]  # a process id would come back some day, and with it another job's files
        environment = self.environment | {
            "SUBMITIT_EXECUTOR": "local",
            "SUBMITIT_LOCAL_JOB_ID": name,
            "SUBMITIT_LOCAL_NTASKS": "1",
            "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
            "SUBMITIT_LOCAL_NODEID": "0",
            "SUBMITIT_LOCAL_GLOBALID": "0",
            "SUBMITIT_LOCAL_LOCALID": "0",
        }
        argv = [sys.executable, "-u", "-m", "launch.executor", str(self.folder)]
        with (self.folder / f"{name}_0_log.out").open("ab") as out, (self.folder / f"{name}_0_log.err").open("ab") as err:
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment, start_new_session=True
            )
        return LocalJob(folder=self.folder, job_id=name, tasks=[0], process=process)


class LocalHandle:
    """A local job: its process leads a session that holds the worker and the trainer."""

    def __init__(self, job: LocalJob[Any], folder: Path) -> None:
        self.job_id = job.job_id
        self.folder = folder
        self._job = job
        process = job._process
        assert process is not None
        self._process = process

    def ended(self) -> bool:
        """Whether the worker is gone."""
        return self._process.poll() is not None

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
        return self._job.stderr() or ""

    def clean(self) -> None:
        """Remove submitit's files of a job that ended in order."""
        if self._process.returncode == 0:
            shutil.rmtree(self.folder, ignore_errors=True)


def start_local(
    launch_dir: Path, job: WorkerJob, cluster: LocalCluster, *, gpu: int | None = None, trainer_argv: Sequence[str] | None = None
) -> LocalHandle:
    """Start one worker on this machine now. `gpu` is the index of its GPU; None hides all."""
    allow = environment_names(cluster.environment)
    environment = job_environment(os.environ, root=Path(job.root), threads=cluster.threads, allow=allow)
    environment["CUDA_VISIBLE_DEVICES"] = visible_gpu(os.environ.get("CUDA_VISIBLE_DEVICES"), gpu)
    folder = launch_dir / JOB_FILES / uuid.uuid4().hex[:12]
    executor = _SessionLocalExecutor(folder, environment)
    folder.mkdir(parents=True, exist_ok=True)
    submitted = executor.submit(run_job, to_dict(job), list(trainer_argv) if trainer_argv else None)
    assert isinstance(submitted, LocalJob)
    return LocalHandle(submitted, folder)


def visible_gpu(visible: str | None, gpu: int | None) -> str:
    """CUDA_VISIBLE_DEVICES of a job that holds the `gpu`-th of the GPUs that are visible here."""
    if gpu is None:
        return ""
    names = [name for name in visible.split(",") if name] if visible is not None else []
    return names[gpu] if gpu < len(names) else str(gpu)


def submit_slurm(
    launch_dir: Path, jobs: Sequence[WorkerJob], cluster: SlurmCluster, *, token: str, trainer_argv: Sequence[str] | None = None
) -> list[str]:
    """Submit `jobs` (equal resources, at most max_array_size) as one array; returns their job ids in order.

    `token` becomes the jobs' comment, by which they can be found again. Raises LaunchError with sbatch's own sentence.
    """
    assert jobs
    folder = launch_dir / JOB_FILES / token
    try:
        executor = submitit.SlurmExecutor(folder)
    except RuntimeError as error:
        raise LaunchError("cluster=slurm needs sbatch and srun on PATH, and they are not; submit from a login node.") from error
    executor.update_parameters(**slurm_parameters(cluster, jobs[0], count=len(jobs), token=token))
    argv = list(trainer_argv) if trainer_argv else None
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # submitit prints sbatch's complaint and raises it too
            submitted = executor.map_array(run_job, [to_dict(job) for job in jobs], [argv] * len(jobs))
    except (FailedJobError, FailedSubmissionError, OSError) as error:
        raise LaunchError(f"sbatch refused the jobs ({one_line(str(error))}); change the cluster options it names.") from error
    return [job.job_id for job in submitted]


def slurm_parameters(cluster: SlurmCluster, job: WorkerJob, *, count: int, token: str) -> dict[str, Any]:
    """Arguments of submitit's SLURM executor: what is unset here is None there, and so absent from the batch script."""
    exported = python_environment(Path(job.root)) | dict.fromkeys(THREAD_LIMITS, str(cluster.threads))
    gpus = cluster.gpus_per_node if cluster.gpus_per_node is not None else job.gpus
    return {
        "job_name": cluster.job_name,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "time": cluster.timeout_min,
        "mem": None if cluster.mem_gb is None else f"{round(cluster.mem_gb * 1024)}M",
        "nodes": 1,
        "cpus_per_task": cluster.cpus_per_task,
        "gpus_per_node": gpus or None,
        "constraint": cluster.constraint,
        "exclude": cluster.exclude,
        "nodelist": cluster.nodelist,
        "comment": token,
        "wckey": None,
        "signal_delay_s": cluster.signal_seconds,
        "array_parallelism": cluster.array_parallelism or count,
        "setup": [f"export {name}={shlex.quote(value)}" for name, value in sorted(exported.items())],
        "additional_parameters": dict(cluster.options),
    }


def main() -> None:
    """Entry of a local job."""
    from submitit.core.submission import submitit_main

    submitit_main()


if __name__ == "__main__":
    main()
