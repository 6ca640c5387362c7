"""A data preparation as a study: its parts are rows that run under the same lease, retries and status, then one row joins them.

    submit-sweep prepare jobs/prep parts=64 input=audio format=audio out=data/mine cluster=slurm cluster.partition=cpu
    submit-sweep status jobs/prep

The folder gets a plan.csv of parts, and preparation.json with the options of `prepare-data`; these are data, the module that
runs them is named here. Not here: preparing data (`lst.data.prepare`).
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

from launch.cluster import SlurmCluster
from launch.evaluations import evaluation_words
from launch.job import ACCEPTED, JOB_FILES, SPEC
from launch.ledger import LAUNCH, ledger_path
from launch.rows import ADMITTED, EVAL, NEEDED, PLAN, RUNS, TASK, Row
from lst.errors import ConfigError, LaunchError
from lst.records import read_json, write_atomically, write_json

PREPARATION = "preparation.json"
MODULE = "lst.data.prepare"
MERGE = "merge"
OURS = ("cluster=", "cluster.", "limit.", "parallel=", "threads=")
PART = re.compile(r"part-(\d+)-of-(\d+)")


def split_words(words: Sequence[str]) -> tuple[int, list[str], list[str]]:
    """(number of parts, options of prepare-data, overrides of the cluster). Raises ConfigError."""
    parts, options, ours = 0, [], []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"'{word}' is no key=value; write for example: submit-sweep prepare DIR parts=8 input=X out=Y.")
        if key == "parts":
            if not value.isdecimal() or int(value) < 1:
                raise ConfigError(f"parts={value} must be a positive whole number.")
            parts = int(value)
        elif word.startswith(OURS):
            ours.append(word)
        elif key in SlurmCluster.__dataclass_fields__:
            raise ConfigError(f"{word} is an option of the cluster; write cluster.{word}.")
        elif key == "part":
            raise ConfigError(f"part={value} is given by the launcher; give parts=N, the number of parts.")
        else:
            options.append(f"{key}={_absolute(key, value)}")
    if not parts or not any(option.startswith("out=") and option != "out=" for option in options):
        raise ConfigError("a preparation needs parts=N and out=FOLDER beside the options of prepare-data.")
    return parts, options, ours


def check_options(parts: int, options: Sequence[str]) -> None:
    """Judge the options as the jobs will; nothing is read or made. Raises ConfigError on one that prepare-data refuses."""
    from lst.data.prepare import read_options

    config = read_options([*options, f"part=1/{parts}"])
    for key, path in (("input", config.input), ("text", config.text)):
        if path and not any(sign in path for sign in "*?[") and not Path(path).exists():
            raise ConfigError(f"{key}='{path}' does not exist; name a file, a folder or a glob that the jobs see.")


def write_preparation(folder: Path, parts: int, options: Sequence[str]) -> None:
    """Plan the parts in `folder`. The same preparation again changes nothing; another one replaces it until a job was made.

    Raises LaunchError where another one has begun, or a study is there.
    """
    content = {"parts": parts, "options": sorted(options)}
    known = read_json(folder / PREPARATION)
    if known is None and (folder / PLAN).exists():
        raise LaunchError(f"'{folder}' holds a study; give another folder for the preparation's jobs.")
    if known is not None and known != content and (ledger_path(folder).exists() or _has_jobs(folder)):
        raise LaunchError(f"'{folder}' holds another preparation ({known}); give the same options, or another folder.")
    names = [f"part-{n}-of-{parts}" for n in range(1, parts + 1)] + [MERGE]
    for name in names:
        (folder / RUNS / name).mkdir(parents=True, exist_ok=True)
    write_json(folder / PREPARATION, content)
    text = io.StringIO()
    writer = csv.DictWriter(text, [*NEEDED, "kind"], restval="", lineterminator="\n")
    writer.writeheader()
    for name in names:
        size = name.removeprefix("part-").replace("-of-", "/")
        row = {"run_id": name, "kind": TASK, "arm": "prepare", "size": size, "steps": 1, "status": ADMITTED}
        writer.writerow(row | {"planned_flops": 0, "gpus": 0, "est_gpu_hours": 0})
    write_atomically(folder / PLAN, text.getvalue().encode())


def _has_jobs(folder: Path) -> bool:
    """Whether jobs were made that nobody has refused: with a submitter that was killed, the ledger knows none of them."""
    made = (spec.parent / ACCEPTED for spec in (folder / LAUNCH / JOB_FILES).glob(f"*/{SPEC}"))
    return any(not accepted.exists() or accepted.read_text().strip() for accepted in made)


def task_of(study: Path, row: Row) -> tuple[str, ...]:
    """The module and arguments of a row that is no training; empty for a run. Raises LaunchError on a damaged folder."""
    if row.kind == EVAL:
        return evaluation_words(study, row)
    if row.kind != TASK:
        return ()
    known = read_json(study / PREPARATION) or {}
    options = [str(option) for option in known.get("options", [])]
    out = next((option.removeprefix("out=") for option in options if option.startswith("out=")), "")
    part = PART.fullmatch(row.run_id)
    if not out or (part is None and row.run_id != MERGE):
        raise LaunchError(f"'{study / PREPARATION}' is damaged; call submit-sweep prepare with all its options again.")
    if part is None:
        return MODULE, "merge", out
    return MODULE, *options, f"part={part[1]}/{part[2]}"


def _absolute(key: str, value: str) -> str:
    """A path as seen from any folder: jobs start elsewhere."""
    return str(Path(value).absolute()) if value and (key == "out" or Path(value).exists()) else value
