"""The training records of one run as columns, quickly: what `analysis.collect` needs of train.jsonl, and nothing else.

A trainer's lines have one layout, so a part of a file is a table of cells `"key":value`: each key is checked in every row, and
the numbers are parsed by Arrow without a Python object a record. Lines of another layout (a skipped step, a branch) make parts
of their own; whatever is not so regular, a damaged line above all, goes through `json.loads`, a line at a time, as
`lst.records` reads it. Both ways give the same table (tested).
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lst import records

SPENT = ("train_flops", "units", "tokens", "text_tokens", "text_only_tokens", "speech_tokens")
NUMBERS = ("loss", "loss_text", "loss_speech", "lr", "grad_norm", *SPENT, "spent_flops")
SCHEMA = pa.schema(
    [("step", pa.int64()), ("branch", pa.int64()), ("skipped", pa.string())] + [(name, pa.float64()) for name in NUMBERS]
)
PART_BYTES = 32 * 2**20
"""Bytes of a file that are parsed at once."""
FEW_LINES = 8
"""Parts of fewer lines are not worth a table."""
_DIGIT = np.array([chr(code).isdigit() and code < 128 for code in range(256)])
_CELLS, _CELL = re.compile(rb",?[^,]+"), re.compile(rb'[{,]"[a-z_]+":')


def read_steps(path: Path) -> pa.Table:
    """The records with a step, each (branch, step) once as last written, in the order of steps (SCHEMA). Empty without a file."""
    parts = [table for data in _parts(path) for table in _tables(data)]
    return _once(pa.concat_tables(parts)) if parts else SCHEMA.empty_table()


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


def _parts(path: Path) -> Iterator[bytes]:
    """Whole lines of a file, about PART_BYTES at a time; a last line without an end is left out, a missing file gives nothing."""
    try:
        file = path.open("rb")
    except (FileNotFoundError, NotADirectoryError):
        return
    with file:
        left = os.fstat(file.fileno()).st_size
        while data := file.read(min(PART_BYTES, left)):
            left = max(0, left - len(data))
            if not data.endswith(b"\n"):
                data += file.readline()
            end = data.rfind(b"\n") + 1
            if end:
                yield data[:end]


def _tables(data: bytes) -> Iterator[pa.Table]:
    """The tables of whole lines: one where they have one layout, else one of each stretch of lines that might."""
    table = _regular(data)
    if table is not None:
        yield table
        return
    for _, lines in itertools.groupby(data.splitlines(keepends=True), key=lambda line: line.count(b",")):
        stretch = list(lines)
        table = _regular(b"".join(stretch)) if len(stretch) >= FEW_LINES else None
        yield table if table is not None else _one_by_one(stretch)


def _regular(data: bytes) -> pa.Table | None:
    """The table of lines with the first one's keys in its order; None where they have not, or a value has another type.

    Every line is k cells `,"key":value` (the first begins with a brace) and an end. Where cells and values begin is computed for
    all lines at once; Arrow then takes the wanted cells, compares their keys and parses their values.
    """
    heads = [found[0] if (found := _CELL.match(cell)) else b"" for cell in _CELLS.findall(data, 0, data.index(b"\n"))]
    keys = [head[2:-2].decode() for head in heads]
    if not data.isascii() or "step" not in keys or "" in keys or len(set(keys)) < len(keys):
        return None
    text = np.frombuffer(data, np.uint8)
    breaks, commas = (np.flatnonzero(text == ord(mark)) for mark in "\n,")
    count = len(breaks)
    if len(commas) != count * (len(keys) - 1) or any(np.count_nonzero(text == ord(brace)) != count for brace in "{}"):
        return None  # lines of other lengths, or an object inside another
    starts = np.empty((count, 2 * len(keys) + 1), np.int32)  # of each key, its value, .., and the line's end
    starts[0, 0], starts[1:, 0] = 0, breaks[:-1] + 1
    starts[:, 2:-1:2] = commas.reshape(count, len(keys) - 1)
    starts[:, 1::2] = starts[:, 0:-1:2] + np.array([len(head) for head in heads], np.int32)
    starts[:, -1] = breaks - 1
    if (np.diff(starts) < 0).any() or not (text[breaks - 1] == ord("}")).all():  # a cell is shorter than the first line's key
        return None
    cells = pa.StringArray.from_buffers(starts.size, pa.py_buffer(np.append(starts, np.int32(len(data)))), pa.py_buffer(data))
    wanted = sorted(
        (place for place, key in enumerate(keys) if key in SCHEMA.names), key=lambda place: keys[place] not in NUMBERS
    )
    at = (np.arange(count, dtype=np.int32) * starts.shape[1])[None, :] + 2 * np.array(wanted, np.int32)[:, None]
    if not pc.all(pc.equal(cells.take(pa.array(at.ravel())), _repeated(tuple(heads[place] for place in wanted), count))).as_py():
        return None
    figures = 2 * np.array([place for place in wanted if keys[place] != "skipped"])
    if not _json_numbers(text, starts[:, figures + 1], starts[:, figures + 2]):
        return None
    try:
        return _typed([keys[place] for place in wanted], cells.take(pa.array(at.ravel() + 1)), count)
    except pa.ArrowInvalid:
        return None


def _json_numbers(text: np.ndarray, first: np.ndarray, end: np.ndarray) -> bool:
    """Whether what Arrow may parse as numbers at first .. end is what JSON calls one: no +1, 01, .5, 1., nan or space."""
    first = first + (text[first] == ord("-"))
    zeros = first[text[first] == ord("0")] + 1  # text never ends in a value
    dots = np.flatnonzero(text == ord(".")) + 1
    return bool(
        _DIGIT[text[first]].all() and _DIGIT[text[end - 1]].all() and _DIGIT[text[dots]].all() and not _DIGIT[text[zeros]].any()
    )


@lru_cache(maxsize=64)
def _repeated(heads: tuple[bytes, ...], count: int) -> pa.Array:
    """Each of `heads` `count` times."""
    return pa.array([head.decode() for head in heads]).take(pa.array(np.repeat(np.arange(len(heads)), count)))


def _typed(names: list[str], values: pa.Array, count: int) -> pa.Table | None:
    """The table of columns of text, one after the other in `values`, those of numbers first.

    None where a number is not finite; raises ArrowInvalid on what is no number.
    """
    texts = {name: values.slice(place * count, count) for place, name in enumerate(names)}
    numbers = pc.cast(values.slice(0, count * sum(name in NUMBERS for name in names)), pa.float64())
    if not pc.all(pc.is_finite(numbers)).as_py():
        return None
    columns = {name: numbers.slice(place * count, count) for place, name in enumerate(names) if name in NUMBERS}
    columns |= {name: pc.cast(texts[name], pa.int64()) for name in ("step", "branch") if name in texts}
    if "skipped" in texts:
        if not pc.all(pc.match_substring_regex(texts["skipped"], r'^"[a-z_]*"$')).as_py():
            return None
        columns["skipped"] = pc.utf8_trim(texts["skipped"], '"')
    return pa.table([columns.get(f.name, pa.nulls(count, f.type)) for f in SCHEMA], schema=SCHEMA)


def _one_by_one(lines: list[bytes]) -> pa.Table:
    """The table of any lines, by json.loads."""
    rows = [row for row in map(records.parse_line, lines) if row is not None and "step" in row and _is_typed(row)]
    return pa.table([pa.array([_plain(row.get(f.name), f.type) for row in rows], f.type) for f in SCHEMA], schema=SCHEMA)


def _plain(value: Any, kind: pa.DataType) -> Any:
    return float(value) if value is not None and kind == pa.float64() else value


def _is_typed(row: dict[str, Any]) -> bool:
    """Whether the columns' values have their types: a damaged line may be whole JSON all the same."""
    for name in SCHEMA.names:
        value = row.get(name, 0.0 if name in NUMBERS else None)
        if name == "skipped":
            fits = value is None or isinstance(value, str)
        elif name in NUMBERS:
            fits = is_number(value)
        else:
            fits = is_whole(value) or (value is None and name not in row)
        if not fits:
            return False
    return True


def is_number(value: object) -> bool:
    """Whether a JSON value is a number that a float64 can hold (or NaN, Infinity, which `json` reads)."""
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < 2**1023
    return isinstance(value, float)


def is_whole(value: object) -> bool:
    """Whether a JSON value is a whole number of 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _once(table: pa.Table) -> pa.Table:
    """The last row of each (branch, step), by step, the run's own before its branches'."""
    steps = table["step"].to_numpy()
    if table["branch"].null_count == len(table) and bool(np.all(np.diff(steps) > 0)):
        return table
    branch = pc.fill_null(table["branch"], -1).to_numpy()
    order = np.lexsort((np.arange(len(steps)), branch, steps))
    same = (np.diff(steps[order]) == 0) & (np.diff(branch[order]) == 0)
    return table.take(pa.array(order[np.append(~same, True)]))
