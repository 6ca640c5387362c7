"""What SLURM says about our jobs, in one call of squeue whatever their number; and cancelling them.

Not here: sacct (a run's own files say how it ended) and submitting (`launch.executor`).
"""

from __future__ import annotations

import getpass
import re
import subprocess
from collections.abc import Sequence

from launch.failures import one_line
from lst.errors import LaunchError

RUNNING = frozenset({"RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "STOPPED"})
CALL_SECONDS = 60
CANCEL_CHUNK = 500
PENDING_ARRAY = re.compile(r"(\d+)_\[([0-9,:-]+)(?:%\d+)?\]")


def slurm_queue() -> dict[str, str]:
    """State of each of this user's jobs that SLURM still lists, by job id (`123` or `123_4`).

    Raises LaunchError if squeue is missing, fails or does not answer.
    """
    argv = ["squeue", "--noheader", "--array", "--user", getpass.getuser(), "--format=%i %T"]
    lines = _call(argv).splitlines()
    states: dict[str, str] = {}
    for line in lines:
        identity, _, state = line.strip().partition(" ")
        if identity:
            states.update(dict.fromkeys(expand_job_id(identity), state.strip()))
    return states


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


def cancel_jobs(job_ids: Sequence[str]) -> None:
    """Cancel jobs; those that have left already are no error. Raises LaunchError if scancel fails."""
    for start in range(0, len(job_ids), CANCEL_CHUNK):
        _call(["scancel", "--quiet", *job_ids[start : start + CANCEL_CHUNK]])


def _call(argv: list[str]) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=CALL_SECONDS, check=False)
    except FileNotFoundError as error:
        raise LaunchError(f"{argv[0]} is not on PATH; look at this study from a machine of its cluster.") from error
    except subprocess.TimeoutExpired as error:
        raise LaunchError(f"{argv[0]} did not answer within {CALL_SECONDS} s; try again when the scheduler is up.") from error
    if done.returncode:
        raise LaunchError(f"{argv[0]} failed ({one_line(done.stderr) or done.returncode}); try again when the scheduler is up.")
    return done.stdout
