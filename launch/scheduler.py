"""Talking to SLURM: what it says about our jobs in one call of squeue whatever their number, submitting, cancelling; and how jobs
ended that left no word of their own.

Commands are lists of words, never a shell's. Not here: the batch script's text (`launch.executor`).
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from launch.environment import ask_environment
from launch.failures import one_line
from lst.errors import LaunchError

RUNNING = frozenset({"RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "STOPPED"})
PENDING = "PENDING"
HELD = "HELD"  # our own word: it is pending, but SLURM failed to launch it, and will not try again
CALL_SECONDS = 60
SQUEUE = ("squeue", "--all")  # --all: those in partitions that are hidden, or not for the user's group any more, too
ME = str(os.geteuid())  # squeue takes numbers; names in the environment may be another user's
CANCEL_CHUNK = 500
ACCEPTED = re.compile(r"Submitted batch job (\d+)")
UNSURE = re.compile(r"timed out|contact|connect|communicat|zero bytes|did not answer", re.IGNORECASE)
LOOKS = 3  # for jobs of a submission that failed: SLURM may be slow to list what it has accepted
LOOK_SECONDS = 2.0
UNLAUNCHED = re.compile(r"launch.failed.requeued.held|JobHoldMaxRequeue", re.IGNORECASE)
SITE = re.compile(r"^ClusterName\s*=\s*(\S+)", re.MULTILINE)
PENDING_ARRAY = re.compile(r"(\d+)_\[([0-9,:-]+)(?:%\d+)?\]")


def slurm_queue(seconds: float = CALL_SECONDS) -> dict[str, str]:
    """State of each of this user's jobs that SLURM still lists, by job id (`123` or `123_4`): as SLURM names it, or HELD.

    Raises LaunchError if squeue is missing, fails or does not answer.
    """
    argv = [*SQUEUE, "--noheader", "--array", "--user", ME, "--format=%i %T %r"]
    lines = _call(argv, seconds).splitlines()
    states: dict[str, str] = {}
    for line in lines:
        identity, _, rest = line.strip().partition(" ")
        state, _, reason = rest.strip().partition(" ")
        if identity:
            state = HELD if state == PENDING and UNLAUNCHED.search(reason) else state
            states.update(dict.fromkeys(expand_job_id(identity), state))
    return states


def job_ends(job_ids: Sequence[str], *, unstarted: Collection[str] = ()) -> dict[str, tuple[str, str]]:
    """(state, reason) of jobs that have ended, by job id, as far as SLURM remembers: by itself some minutes, else by sacct.

    A task that scancel ends before it starts (one of `unstarted`) leaves nothing behind, or the number of its array alone.
    Raises LaunchError if squeue does not answer; sacct may be off.
    """
    argv = [*SQUEUE, "--noheader", "--array", "--user", ME, "--states=all", "--format=%i|%T|%r"]
    listed = [line.strip().split("|") for line in _call(argv).splitlines()]
    ends = {words[0]: (words[1], "" if words[2] == "None" else words[2]) for words in listed if len(words) == 3}
    missing = [job for job in job_ids if job not in ends]
    argv = ["sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={','.join(missing)}", "--format=JobID,State,ExitCode"]
    try:
        accounted = [line.strip().split("|") for line in _call(argv).splitlines()] if missing else []
    except LaunchError:
        accounted = []
    for identity, state, code in (words for words in accounted if len(words) == 3):
        status, _, number = code.partition(":")
        reason = f"RaisedSignal:{number}" if number != "0" else "" if status == "0" else "NonZeroExitCode"
        ends.setdefault(identity, (state.partition(" ")[0], reason))
    waiting = {task.partition("_")[0] for job, (state, _) in ends.items() if state == PENDING for task in expand_job_id(job)}
    for job in unstarted:
        array = job.partition("_")[0]
        if array in waiting or ends.get(array, ("", ""))[0] == "CANCELLED":
            ends.setdefault(job, ("CANCELLED", ""))
    return {job: ends[job] for job in job_ids if job in ends}


def slurm_site() -> str:
    """The name of the cluster whose commands are on PATH; empty where it does not tell."""
    try:
        text = _call(["scontrol", "show", "config"])
    except LaunchError:
        return ""
    found = SITE.search(text)
    return found[1] if found else ""


def expand_job_id(identity: str) -> list[str]:
    """The job ids that squeue abbreviates: `12_[0-2,5%4]` is 12_0, 12_1, 12_2 and 12_5."""
    match = PENDING_ARRAY.fullmatch(identity)
    if match is None:
        return [identity]
    ids = []
    for part in match[2].split(","):
        span, _, stride = part.partition(":")
        first, _, last = span.partition("-")
        ids += [f"{match[1]}_{n}" for n in range(int(first), int(last or first) + 1, int(stride or 1))]
    return ids


def restarts(job_id: str) -> int:
    """How often SLURM has started a job again, or is about to: it counts when the job is queued again, before it has left.

    0 where it does not know the job any more. Raises LaunchError if squeue does not answer.
    """
    try:
        words = _call([*SQUEUE, "--noheader", "--jobs", job_id, "--Format=restartcnt"]).split()
    except NoAnswer as error:
        if "invalid job id" not in str(error).lower():
            raise
        words = []
    return int(words[0]) if words and words[0].isdecimal() else 0


def cancel_jobs(job_ids: Sequence[str]) -> None:
    """Cancel jobs; those that have left already are no error. Raises LaunchError if scancel fails."""
    for chunk in _chunks(job_ids):
        _call(["scancel", "--quiet", *chunk])


def cancel_pending(job_ids: Sequence[str]) -> None:
    """Cancel those of the jobs that have not started, and no other. Raises LaunchError if SLURM does not answer.

    The tasks of an array that wait are one record, and `scancel --state` ends all of it for one of them (seen with 22.05): a
    task gets a record of its own by being told the comment that it has.
    """
    comments = _comments()
    arrays: dict[str, list[str]] = {}
    for job in job_ids:
        arrays.setdefault(job.partition("_")[0], []).append(job)
    for array, jobs in arrays.items():
        comment = f"Comment={comments.get(array, '')}"
        for chunk in _chunks([job for job in jobs if "_" in job]):
            if not _told(chunk, comment):  # one has left meanwhile
                jobs = [job for job in jobs if job not in chunk or _told([job], comment)]
        for chunk in _chunks(jobs):
            _call(["scancel", "--quiet", f"--state={PENDING}", *chunk])


def _told(jobs: Sequence[str], comment: str) -> bool:
    try:
        _call(["scontrol", "update", f"JobId={','.join(jobs)}", comment])
    except NoAnswer:
        return False
    return True


def _chunks(job_ids: Sequence[str]) -> list[Sequence[str]]:
    return [job_ids[start : start + CANCEL_CHUNK] for start in range(0, len(job_ids), CANCEL_CHUNK)]


class NoAnswer(LaunchError):
    """SLURM does not answer now: whoever can wait asks again."""


class Unsure(NoAnswer):
    """Nobody knows whether SLURM has taken the jobs: they may be listed later."""


class Refused(LaunchError):
    """SLURM does not take the jobs."""


def sbatch(script: Path, *, token: str, environment: Mapping[str, str], holding: Sequence[int] = (), test: bool = False) -> str:
    """Submit a batch script; the job's id. `test`: only ask whether SLURM would take it (the answer is empty).

    A submission that failed is not repeated before its token was looked for: SLURM may have taken the jobs, and only the
    answer was lost. Raises Refused with sbatch's own sentence, or Unsure.
    """
    argv = ["sbatch", *(["--test-only"] if test else []), str(script)]
    try:
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            check=False,
            timeout=CALL_SECONDS,
            env=dict(environment),
            pass_fds=tuple(holding),
        )
        answer, complaint = done.stdout, done.stderr
        if test and done.returncode == 0:
            return ""
    except FileNotFoundError as error:
        raise LaunchError("cluster=slurm needs sbatch and srun on PATH, and they are not; submit from a login node.") from error
    except subprocess.TimeoutExpired:
        answer, complaint = "", f"sbatch did not answer within {CALL_SECONDS} s"
    found = ACCEPTED.search(answer)
    if found and not test:
        return found[1]
    unsure = not complaint.strip() or UNSURE.search(complaint)
    accepted = "" if test else find_by_token(token, looks=LOOKS if unsure else 1)
    if accepted:
        return accepted
    if unsure:
        raise Unsure(
            f"sbatch gave no clear answer ({refusal(complaint)}), and SLURM lists no such jobs so far; submit again when it "
            "answers: what it has taken is looked for first."
        )
    raise Refused(f"sbatch refused the jobs ({refusal(complaint)}); change the cluster options it names.")


def refusal(complaint: str) -> str:
    """sbatch's complaint on one line."""
    return one_line(complaint.replace("sbatch: error: ", " ").replace("allocation failure: ", "")) or "it gave no reason"


def find_by_token(token: str, *, looks: int = 1) -> str:
    """The id of the job whose comment is `token`, as long as SLURM lists it; empty where there is none.

    Raises LaunchError if squeue does not answer.
    """
    for look in range(looks):
        if look:
            time.sleep(LOOK_SECONDS)
        for identity, comment in _comments().items():
            if comment == token:
                return identity
    return ""


def _comments() -> dict[str, str]:
    """The comment of each of this user's jobs and arrays that SLURM lists, by its number."""
    lines = _call([*SQUEUE, "--noheader", "--user", ME, "--format=%F|%k"]).splitlines()
    return dict(line.strip().split("|", 1) for line in lines if "|" in line)


def node_types(partition: str | None, *, nodelist: str | None = None, exclude: str | None = None) -> dict[str, str]:
    """Node types, told by features, GPUs and cores, and a node of each that could run a job. Raises LaunchError."""
    chosen = ["--all", f"--partition={partition}"] if partition else []
    chosen += [f"--nodes={nodelist}"] if nodelist else []
    without = set(_call(["scontrol", "show", "hostnames", exclude]).split()) if exclude else set()
    states = "--states=idle,mixed,allocated,completing"
    types: dict[str, str] = {}
    for line in _call(["sinfo", "--noheader", "--Node", states, *chosen, "--format=%N|%f|%G|%c"]).splitlines():
        name, *about = line.strip().split("|")
        if name in without:
            continue
        features, gres, cores = ("" if word in ("(null)", "") else word for word in about)
        types.setdefault(", ".join(word for word in (features, gres, f"{cores} cores") if word), name)
    if not types:
        asked = {"partition": partition, "nodelist": nodelist, "exclude": exclude}
        told = ", ".join(f"cluster.{name}={value}" for name, value in asked.items() if value)
        raise LaunchError(f"SLURM lists no node that is up{f' under {told}' if told else ''}; look at sinfo.")
    return types


def _call(argv: list[str], seconds: float = CALL_SECONDS) -> str:
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, errors="replace", timeout=seconds, check=False, env=ask_environment(os.environ)
        )
    except FileNotFoundError as error:
        raise LaunchError(f"{argv[0]} is not on PATH; look at this study from a machine of its cluster.") from error
    except subprocess.TimeoutExpired as error:
        raise NoAnswer(f"{argv[0]} did not answer within {seconds:g} s; try again when the scheduler is up.") from error
    if done.returncode:
        raise NoAnswer(f"{argv[0]} failed ({one_line(done.stderr) or done.returncode}); try again when the scheduler is up.")
    return done.stdout
