"""Rows of kind `eval`: `python -m lst.evals` on a finished run's weights, as its eval.json has it (sweeps.evaluations).

The file is data: the module that runs is named here, its options must be plain values, and the row's id is their hash. Results
stand where the same command by hand puts them, in the run's folder evals/; the row's own folder gets log.txt and exit.json. Not
here: waiting for the run (`launch.rows.waits_for`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from launch.rows import KEPT, RUN_ID, RUNS, Row
from lst.errors import LaunchError
from lst.evals.tasks import TASKS
from lst.plain import content_hash
from lst.records import CHECKPOINTS, EVALUATION, EVALUATIONS, read_json

MODULE = "lst.evals"
NAME = re.compile(r"[0-9A-Za-z_-]{1,200}")
FOLDER = re.compile(rf"final|budget-[0-9]{{1,12}}|{KEPT.pattern}")
SHARD = re.compile(r"[0-9]{1,6}/[0-9]{1,6}")


def evaluation_words(study: Path, row: Row) -> tuple[str, ...]:
    """The module and arguments of an evaluation. Raises LaunchError where eval.json is missing, or is not what was planned."""
    path = row.folder(study) / EVALUATION
    content = read_json(path) or {}
    found = content.get("evaluation")
    of_shard = {} if content.get("shard") == "1/1" else {"shard": content.get("shard")}
    if not isinstance(found, dict) or content_hash({**found, **of_shard}) != row.run_id or not _allowed(content, found):
        raise LaunchError(f"'{path}' is missing, or not as it was planned; plan the study again with plan-sweep.")
    run = study / RUNS / content["run"]
    last = content["checkpoint"] == "final"  # the run itself says what was spent on its end
    words = [f"{key}={_text(value)}" for key, value in sorted(found["options"].items())]
    words += [f"items={content['items']}"] if content["items"] else []
    words += [f"shard={content['shard']}"] if of_shard else []
    source = run if last else run / CHECKPOINTS / content["checkpoint"]
    return MODULE, found["task"], str(source), *words, f"out={run / EVALUATIONS / content['out']}"


def _text(value: str | int | float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _allowed(content: dict[str, Any], found: dict[str, Any]) -> bool:
    """Whether names are names, and values plain: nothing of the file may lead elsewhere."""
    names = {"run": RUN_ID, "checkpoint": FOLDER, "out": NAME, "shard": SHARD}
    options = found.get("options")
    return (
        found.get("task") in TASKS
        and isinstance(content.get("items"), str)
        and all(isinstance(content.get(key), str) and of.fullmatch(content[key]) for key, of in names.items())
        and isinstance(options, dict)
        and all(NAME.fullmatch(key) and isinstance(value, str | int | float | bool) for key, value in options.items())
    )
