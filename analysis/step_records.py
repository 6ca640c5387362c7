"""The training records of one run as columns: what `analysis.collect` needs of train.jsonl, and nothing else."""

from __future__ import annotations

import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from analysis import json_lines

CURVES = ("loss", "loss_text", "loss_speech", "lr", "grad_norm", "train_flops", "tokens")
SPENT = ("train_flops", "units", "tokens", "text_tokens", "text_only_tokens", "speech_tokens")
SCHEMA = pa.schema(
    [("step", pa.int64()), ("branch", pa.int64()), ("skipped", pa.string())]
    + [(name, pa.float64()) for name in (*CURVES, "spent_flops")]
)
Whole = Annotated[int, msgspec.Meta(ge=1 - 2**63, le=2**63 - 1)]
ABSENT: Any = None
"""A field that is not there. One that is null, or has another type than its own, is damage."""


class Step(msgspec.Struct, gc=False, frozen=True):
    """A record's fields (docs/run_folder.md) that are needed."""

    step: Whole
    loss: float = ABSENT
    loss_text: float = ABSENT
    loss_speech: float = ABSENT
    lr: float = ABSENT
    grad_norm: float = ABSENT
    train_flops: float = ABSENT
    units: float = ABSENT
    tokens: float = ABSENT
    text_tokens: float = ABSENT
    text_only_tokens: float = ABSENT
    speech_tokens: float = ABSENT
    spent_flops: float = ABSENT
    branch: Whole = ABSENT
    skipped: str = ABSENT


STEP = msgspec.json.Decoder(Step)
CODES = {pa.int64(): "q", pa.float64(): "d"}
"""Of the module `array`."""
NUMBERS = tuple(name for name in Step.__struct_fields__ if name not in ("step", "branch", "skipped"))


@dataclass(frozen=True)
class Steps:
    """The training records of a run, on all its paths."""

    path: Path
    table: pa.Table  # each (branch, step) once as last written, in the order of steps (SCHEMA)
    newest: Sequence[Step]  # the file's last records, as written

    def last_of(self, some: pa.Table) -> Step | None:
        """The whole record of the last row of some of the table's rows; None where there are none."""
        if not len(some):
            return None
        step, branch = some["step"][-1].as_py(), some["branch"][-1].as_py()
        found = self._written(self.newest, step, branch)
        for rows in [] if found else json_lines.parts(self.path, STEP):
            found = self._written(rows, step, branch) or found
        return found

    @staticmethod
    def _written(rows: Sequence[Step], step: int, branch: int | None) -> Step | None:
        return next((row for row in reversed(rows) if row.step == step and row.branch == branch), None)


def read_steps(path: Path) -> Steps:
    """The records with a step; none where there is no file."""
    tables, newest = [], list[Step]()
    for newest in json_lines.parts(path, STEP):
        tables.append(_table(newest))
    return Steps(path, _once(pa.concat_tables(tables)) if tables else SCHEMA.empty_table(), newest)


def _table(rows: Sequence[Step]) -> pa.Table:
    columns: list[list[Any]] = [
        [row.step for row in rows],
        [row.branch for row in rows],
        [row.skipped for row in rows],
        [row.loss for row in rows],
        [row.loss_text for row in rows],
        [row.loss_speech for row in rows],
        [row.lr for row in rows],
        [row.grad_norm for row in rows],
        [row.train_flops for row in rows],
        [row.tokens for row in rows],
        [row.spent_flops for row in rows],
    ]
    return pa.Table.from_arrays([_array(column, f.type) for column, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    """`pa.array(values, kind)`, sooner for numbers without a null and for nulls alone."""
    if values and values[0] is None:
        return pa.nulls(len(values), kind) if values.count(None) == len(values) else pa.array(values, kind)
    try:
        numbers = array.array(CODES[kind], values)
    except (KeyError, TypeError):  # texts; a null among numbers
        return pa.array(values, kind)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(numbers)])


def on_path(steps: pa.Table, branch: int | None) -> pa.Table:
    """The records on the way to the run's end, or to the branch's: the trunk's before its first step, then its own."""
    known = steps
    if steps["loss"].null_count:
        known = steps.filter(pc.or_(pc.is_valid(steps["loss"]), pc.is_valid(steps["skipped"])))
    trunk = known.filter(pc.is_null(known["branch"])) if known["branch"].null_count < len(known) else known
    if branch is None:
        return trunk
    own = known.filter(pc.fill_null(pc.equal(known["branch"], branch), False))
    if not len(own):
        return own
    return pa.concat_tables([trunk.filter(pc.less(trunk["step"], own["step"][0])), own])


def good_steps(path_steps: pa.Table) -> pa.Table:
    """Without the skipped ones."""
    return (
        path_steps.filter(pc.is_null(path_steps["skipped"])) if path_steps["skipped"].null_count < len(path_steps) else path_steps
    )


def _once(table: pa.Table) -> pa.Table:
    """The last row of each (branch, step), by step, the run's own before its branches'."""
    steps = table["step"].to_numpy()
    if table["branch"].null_count == len(table) and bool(np.all(np.diff(steps) > 0)):
        return table
    branch = pc.fill_null(table["branch"], -1).to_numpy()
    order = np.lexsort((np.arange(len(steps)), branch, steps))
    same = (np.diff(steps[order]) == 0) & (np.diff(branch[order]) == 0)
    return table.take(pa.array(order[np.append(~same, True)]))
