"""What the folder of one run holds: its training records as columns, its evaluations and items, its end.

Tolerates torn and damaged lines, missing files and restarts: each step, each evaluation and each item stands once, as last
written. Evaluations are the trainer's (eval.jsonl, items.jsonl) and those of `python -m lst.evals` in RUN/evals, a folder each.
Not here: what enters fits (`analysis.exclude`) and tables of a study (`analysis.collect`).
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from msgspec.structs import asdict

from analysis import json_lines
from analysis.step_records import NUMBERS, Step, Steps, on_path, read_steps
from lst import records

METRIC_KEY, ITEM_KEY = ("step", "task", "direction", "metric"), ("step", "task", "direction", "item")
OUTCOME = ("correct", "scores", "score", "conditional", "label")
"""What an item's row keeps of its record, beside its key."""


OF_A_MODEL = ("weights", "run_id", "data_id", "patching", "directions")
"""What of an evaluation's `decided_by` two models on the same items may differ in: patching is an arm's own, and answers under
aligned patches say so (`conditional`)."""


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """One run's records, each once, in order of steps."""

    steps: pa.Table  # of the run's own path, skipped steps included (step_records.SCHEMA)
    end: Step | None  # the last of them, whole
    evaluations: list[dict[str, Any]]  # of branches too (field `branch`); `evaluation` is the id of one in RUN/evals
    items: list[dict[str, Any]]  # the same of items
    spent_flops: float | None  # on all paths, as far as is recorded; of a complete run exit.json says it
    exit: dict[str, Any] | None
    failure: dict[str, Any] | None
    notes: tuple[str, ...] = ()  # what of the folder was left out, in sentences

    @classmethod
    def read(cls, folder: Path) -> RunFiles:
        """Of a run's own path."""
        return cls._read(folder, read_steps(folder / records.TRAIN_RECORDS))

    @classmethod
    def _read(cls, folder: Path, steps: Steps) -> RunFiles:
        way, ended = on_path(steps.table, None), _ended(folder / records.EXIT)
        evaluations, items = metric_rows(folder), item_rows(folder)
        found, notes = evaluation_folders(folder)
        for path, known in found:
            evaluations += [row | known for row in metric_rows(path)]
            items += [row | known for row in item_rows(path)]
        return cls(
            steps=way,
            end=steps.last_of(way),
            spent_flops=None if ended else pc.max(steps.table["spent_flops"]).as_py(),
            evaluations=sorted(evaluations, key=lambda row: int(row["step"])),
            items=sorted(items, key=lambda row: int(row["step"])),
            exit=ended,
            failure=records.read_json(folder / records.FAILURE),
            notes=tuple(notes),
        )

    @classmethod
    def read_branch(cls, folder: Path, branch: int) -> RunFiles:
        """Of a run's branch of so many steps: the trunk up to its fork and its own records. Its tag says that it is done."""
        steps = read_steps(folder / records.TRAIN_RECORDS)
        way = on_path(steps.table, branch)
        whole = cls._read(folder, steps)
        tag = _ended(folder / records.CHECKPOINTS / f"budget-{branch}" / "tag.json")
        return cls(
            steps=way,
            end=steps.last_of(way),
            spent_flops=0.0,
            evaluations=[row for row in whole.evaluations if row.get("branch") == branch],
            items=[row for row in whole.items if row.get("branch") == branch],
            exit=None if tag is None else tag | {"status": "done", "step": branch, "spent_flops": 0.0},
            failure=whole.failure,
        )

    def without(self, branches: set[int]) -> RunFiles:
        """The same without the results of `branches`."""
        if not branches:
            return self
        evaluations = [row for row in self.evaluations if row.get("branch") not in branches]
        return replace(self, evaluations=evaluations, items=[row for row in self.items if row.get("branch") not in branches])

    @property
    def last(self) -> dict[str, Any]:
        """What was spent: exit.json over the last training record."""
        row = {} if self.end is None else asdict(self.end)
        known = {k: v for source in (row, self.exit or {}) for k, v in source.items() if v is not None}
        whole = known.get("step")
        return known | {"step": whole if is_whole(whole) else 0}


def options_of(decided_by: dict[str, Any]) -> dict[str, Any]:
    """What was asked, and how, without the model that was asked."""
    return {name: value for name, value in decided_by.items() if name not in OF_A_MODEL}


def options_text(decided_by: dict[str, Any]) -> str:
    """The same as name=value by their names, without the task and the items, which have columns of their own."""
    kept = {name: value for name, value in options_of(decided_by).items() if name not in ("task", "items_id", "test")}
    return " ".join(f"{name}={_text_of(kept[name])}" for name in sorted(kept))


def _text_of(value: Any) -> str:
    if isinstance(value, str) and not re.search(r"[\s=\"]", value):
        return value
    return json.dumps(value, separators=(",", ":"), sort_keys=True)


def evaluation_folders(folder: Path) -> tuple[list[tuple[Path, dict[str, Any]]], list[str]]:
    """The finished evaluations of a run, each with its id, that of its items and its options as text; and what was left out, in
    sentences. Those of most items come first, then by options, so that the first of several is the same for all runs."""
    found: dict[str, tuple[Path, dict[str, Any]]] = {}
    order: dict[str, tuple[int, str]] = {}
    notes = []
    # one in the making has a name with a dot
    for path in sorted((folder / records.EVALUATIONS).glob(f"[!.]*/{records.EVALUATION_CARD}")):
        card = records.read_json(path) or {}
        name, about = card.get("evaluation_id"), card.get("decided_by")
        if not isinstance(name, str) or not isinstance(about, dict):
            notes.append(f"'{path}' is no evaluation's card, so its folder was left out; evaluate again.")
        elif about.get("run_id", folder.name) != folder.name:
            notes.append(f"'{path.parent}' is of run {about['run_id']}, so it was left out; move it to that run's folder.")
        elif name in found:
            notes.append(f"'{path.parent}' is the evaluation '{found[name][0]}' again, so it was left out; remove one of them.")
        else:
            options = options_text(about)
            known = {"evaluation": name, "items_id": about.get("items_id") or about.get("test"), "options": options}
            found[name] = path.parent, known
            items = about.get("items")
            order[name] = -items if isinstance(items, int) else 0, options
    return [found[name] for name in sorted(found, key=order.__getitem__)], notes


def metric_rows(folder: Path) -> list[dict[str, Any]]:
    """The metrics in a folder's eval.jsonl."""
    return once(_rows(folder / records.EVAL_RECORDS), METRIC_KEY, ("value",))


def item_rows(folder: Path) -> list[dict[str, Any]]:
    """The items of choice tasks in a folder's items.jsonl, each with its key and OUTCOME."""
    kept = ("branch", *ITEM_KEY, *OUTCOME)
    rows = (row for row in _rows(folder / records.ITEM_RECORDS) if isinstance(row.get("correct"), bool | int))
    return once(({name: row[name] for name in kept if name in row} for row in rows), ITEM_KEY)


def train_records(folder: Path) -> list[dict[str, Any]]:
    """All records of train.jsonl with every field, each (branch, step) once: for who needs more than `RunFiles.steps`."""
    return once(_rows(folder / records.TRAIN_RECORDS), ("step",))


def _ended(path: Path) -> dict[str, Any] | None:
    """exit.json, or a branch's tag, without fields that have not their types."""
    record = records.read_json(path)
    return None if record is None else {name: value for name, value in record.items() if _has_type(name, value)}


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    return itertools.chain.from_iterable(json_lines.parts(path, json_lines.OBJECTS))


def once(rows: Iterable[dict[str, Any]], key: tuple[str, ...], needed: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Rows that have all of `key` and `needed` in their types, the last of each key and branch, in the order of steps."""
    last: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        if _is_typed(row, (*key, *needed)):
            last[row.get("branch"), *(row[name] for name in key)] = row
    return sorted(last.values(), key=lambda row: int(row["step"]))


_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("task", "direction", "metric", "score", "patching", "items_id", "label"), (str,)),
    **dict.fromkeys(("value", "n_items", "seconds", *NUMBERS), (int, float)),
    **{"step": (int,), "branch": (int,), "item": (str, int), "scores": (list,), "conditional": (bool,)},
}
"""Of the fields that stand in tables: a damaged line may be whole JSON all the same."""


def _is_typed(row: dict[str, Any], key: tuple[str, ...]) -> bool:
    """Whether a record has its key, and its fields have their types."""
    for name, value in row.items():
        if not _has_type(name, value):
            return False
    numbers = all(map(is_number, row.get("scores", ())))
    return numbers and all(name in row for name in key) and is_whole(row["step"]) and is_whole(row.get("branch", 0))


def _has_type(name: str, value: object) -> bool:
    of_type = name not in _TYPES or type(value) in _TYPES[name]
    return of_type and (type(value) is not int or is_number(value))


def is_number(value: object) -> bool:
    """Whether a JSON value is a number that a float64 can hold (or NaN, Infinity, which `json` reads)."""
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < 2**1023
    return isinstance(value, float)


def is_whole(value: object) -> bool:
    """Whether a JSON value is a whole number of 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
