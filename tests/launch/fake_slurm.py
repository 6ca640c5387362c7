"""A scheduler of files: sbatch, srun, squeue, scancel and scontrol on PATH, as far as the launcher talks to them.

In its folder script-N.sh is what the Nth sbatch got, queue.txt what squeue prints, calls.txt every call. With a file `runs`
in it sbatch also runs each task of the script, one after the other. ended.txt is what squeue tells of jobs that have ended,
sacct.txt what sacct does (without it: accounting is off), restarts how often any job was
queued again. A file `hidden` says that the jobs' partition is hidden. Jobs count from 4711. A file `loses-answer` in the folder
makes sbatch take the job and say that it failed, `lists-late` squeue not know what was taken by its comment.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

FIRST_JOB = 4711


def install(folder: Path) -> dict[str, str]:
    """Put the commands into `folder`; the environment variables that make them be found."""
    folder.mkdir()
    for name in ("sbatch", "srun", "squeue", "scancel", "scontrol", "sacct"):
        command = folder / name
        command.write_text(f'#!/bin/sh\nFAKE_SLURM={folder} exec {sys.executable} -I -S {Path(__file__)} {name} "$@"\n')
        command.chmod(0o755)
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


def main(name: str, arguments: list[str]) -> int:
    folder = Path(os.environ["FAKE_SLURM"])
    with (folder / "calls.txt").open("a") as calls:
        calls.write(" ".join([name, *arguments]) + "\n")
    if name == "sbatch":
        return sbatch(folder, Path(arguments[-1]), test="--test-only" in arguments)
    if name == "srun":
        return srun(arguments)
    if name == "squeue":
        if (folder / "squeue-is-down").exists():
            sys.stderr.write("slurm_load_jobs error: Unable to contact slurm controller\n")
            return 1
        filtered = any(v.startswith("SQUEUE_") or v == "SLURM_CLUSTERS" for v in os.environ)
        if filtered or ((folder / "hidden").exists() and "--all" not in arguments):
            return 0
        if "--format=%F|%k" in arguments:
            if (folder / "lists-late").exists():
                return 0
            scripts = [(n, (folder / f"script-{n}.sh").read_text()) for n in range(len(list(folder.glob("script-*.sh"))))]
            sys.stdout.write("".join(f"{FIRST_JOB + n}|{re.search('--comment=(.*)', text)[1]}\n" for n, text in scripts))
            return 0
        queue, ended = folder / "queue.txt", folder / "ended.txt"
        if "--Format=restartcnt" in arguments:
            sys.stdout.write((folder / "restarts").read_text() if (folder / "restarts").exists() else "0")
        elif "--states=all" in arguments:
            sys.stdout.write(ended.read_text() if ended.exists() else "")
        elif "--format=%S|%l" not in arguments:
            running = "".join(f"{path.name.partition('-')[2]} RUNNING\n" for path in folder.glob("open-*"))
            sys.stdout.write(queue.read_text() if queue.exists() else running)
    if name == "sacct":
        if not (folder / "sacct.txt").exists():
            sys.stderr.write("Slurm accounting storage is disabled\n")
            return 1
        sys.stdout.write((folder / "sacct.txt").read_text())
    if name == "scontrol" and arguments == ["show", "config"] and (folder / "site").exists():
        sys.stdout.write(f"ClusterName             = {(folder / 'site').read_text()}\n")
    if name == "scontrol" and arguments[0] == "update":
        with (folder / "apart").open("a") as file:
            file.write("\n".join(arguments[1].removeprefix("JobId=").split(",")) + "\n")
    queue = folder / "queue.txt"
    if name == "scancel" and queue.exists():
        pending, lines = "--state=PENDING" in arguments, queue.read_text().splitlines()
        if pending:  # as SLURM does: tasks that wait are one record, unless they were told something apart
            apart = (folder / "apart").read_text().split() if (folder / "apart").exists() else []
            arrays = {word.partition("_")[0] for word in arguments if word not in apart}
            waiting = [line.split()[0] for line in lines if "PENDING" in line and line.split()[0] not in apart]
            arguments = [*arguments, *(job for job in waiting if job.partition("_")[0] in arrays)]
        kept = [
            line
            for line in lines
            if not {line.split()[0], line.split()[0].partition("_")[0]} & set(arguments) or (pending and "PENDING" not in line)
        ]
        queue.write_text("".join(f"{line}\n" for line in kept))
    return 0


def sbatch(folder: Path, script: Path, *, test: bool) -> int:
    text = script.read_text()
    if "--partition=nowhere" in text:
        sys.stderr.write("sbatch: error: invalid partition specified: nowhere\n")
        return 1
    if test:
        sys.stderr.write("sbatch: Job 4711 to start at once using 1 processors on nodes node1 in partition main\n")
        return 0
    number = len(list(folder.glob("script-*.sh")))
    (folder / f"script-{number}.sh").write_text(text)
    job, array = FIRST_JOB + number, re.search(r"--array=0-(\d+)", text)
    if (folder / "limit").exists() and array and int(array[1]) + 1 > int((folder / "limit").read_text()):
        (folder / f"script-{number}.sh").unlink()
        sys.stderr.write("sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed\n")
        return 1
    if (folder / "loses-answer").exists():
        sys.stderr.write("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation\n")
        return 1
    runs, names = (folder / "runs").exists(), [f"{job}_{task}" for task in range(int(array[1]) + 1)] if array else [str(job)]
    for each in names if runs else ():
        (folder / f"open-{each}").touch()
    sys.stdout.write(f"Submitted batch job {job}\n")
    sys.stdout.flush()
    if runs and os.fork() == 0:
        os.setsid()
        for stream in (0, 1, 2):
            os.close(stream)
        os.open(os.devnull, os.O_RDWR), os.dup(0), os.dup(0)
        for task in range(int(array[1]) + 1) if array else [None]:
            of_array = {} if task is None else {"SLURM_ARRAY_JOB_ID": str(job), "SLURM_ARRAY_TASK_ID": str(task)}
            numbers = {"SLURM_JOB_ID": str(job + (task or 0)), "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}
            subprocess.run(["bash", str(folder / f"script-{number}.sh")], env={**os.environ, **numbers, **of_array}, check=False)
            (folder / f"open-{names[task or 0]}").unlink()
        os._exit(0)
    return 0


def srun(arguments: list[str]) -> int:
    while arguments[0].startswith("--"):
        arguments = arguments[1:]  # every option is one word
    os.execvp(arguments[0], arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
