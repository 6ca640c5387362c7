"""plan.csv: its columns, in order, as one frozen row type, with formatting that never changes between two plannings.

docs/columns.md says what each column means. Integers are plain, floats are the shortest text that reads back exactly.
Written and read with the csv module, so that a launcher needs no pandas; `Plan.table` makes a DataFrame of the same rows.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import re
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lst.errors import PlanError
from lst.plain import changed, kept
from lst.records import PUT_BACK, cut_table

PLAN_TABLE = "plan.csv"
FINETUNE = "finetune"  # a value of the column `kind`: a row that starts from its parent_run_id's weights
EVAL = "eval"  # a value of the column `kind`: a row that evaluates the weights of its parent_run_id
BRANCH = "branch"  # a value of the column `kind`: a row whose run is its parent_run_id's


class Status:
    """Values of the column `status`."""

    ADMITTED = "admitted"
    REFUSED = "refused"


@dataclass(frozen=True, kw_only=True)
class PlanRow:
    """One run as planned."""

    run_id: str
    study: str
    kind: str
    parent_run_id: str
    arm: str
    size: str
    num_params: int
    num_non_embedding_params: int
    num_params_embedding: int
    num_params_encoder: int
    num_params_global: int
    num_params_decoder: int
    num_params_head: int
    matching: str
    match_group: str
    branch: int
    flops_budget: float
    planned_flops: float
    planned_spent_flops: float
    planned_spent_steps: int
    flops_share_embedding: float
    flops_share_encoder: float
    flops_share_global: float
    flops_share_decoder: float
    flops_share_head: float
    flops_per_step: float
    flops_convention: str
    six_nd: float
    steps: int
    seq_len_units: int
    context_match: str
    batch_sequences: int
    final_batch_sequences: int
    units_per_step: int
    units: float
    tokens: float
    text_tokens: float
    text_only_tokens: float
    interleaved_tokens: float
    speech_tokens: float
    patch_size: int
    mean_patch_length: float
    tokens_per_param: float
    speech_epochs: float
    corpus_passes: float
    lr: float
    batch_units: int
    warmup_steps: int
    seed: int
    recipe: str
    data_id: str
    gpus: int
    micro_batch_tokens: int
    placement_reason: str
    est_minutes: float
    est_gpu_hours: float
    est_dollars: float
    est_peak_gib: float
    est_gib_weights: float
    est_gib_gradients: float
    est_gib_optimiser: float
    est_gib_activations: float
    est_gib_workspace: float
    est_gib_logits: float
    est_gib_gathered: float
    est_gib_runtime: float
    est_disk_gib: float
    est_kept_gib: float
    status: str
    reason: str

    @property
    def admitted(self) -> bool:
        return self.status == Status.ADMITTED

    @property
    def gap(self) -> float:
        """Planned FLOPs over the budget, minus 1; 0 for a row that trains on nothing."""
        return self.planned_flops / self.flops_budget - 1 if self.flops_budget else 0.0


COLUMNS = tuple(field.name for field in dataclasses.fields(PlanRow))


@functools.cache
def _column_types() -> dict[str, type]:
    return typing.get_type_hints(PlanRow)


def rows_to_csv(rows: typing.Iterable[PlanRow]) -> str:
    """The text of plan.csv."""
    return "".join(f"{','.join(cells)}\n" for cells in (COLUMNS, *map(_cells, rows)))


def with_cells(row: PlanRow, **values: typing.Any) -> PlanRow:
    """`row` with other values; the cells of the rest are not formatted anew."""
    new = changed(row, **values)
    cells = _cells(row).copy()
    for name, value in values.items():
        cells[_PLACES[name]] = _cell(value)
    vars(new)["_cells"] = cells
    return new


_PLACES = {name: place for place, name in enumerate(COLUMNS)}


def _cells(row: PlanRow) -> list[str]:
    """The row's cells as they stand in the file."""
    return kept(row, "_cells", lambda row: [_cell(getattr(row, name)) for name in COLUMNS])


def _cell(value: Any) -> str:
    text = format_value(value)
    if not isinstance(value, str) or not _SPECIAL.search(text):
        return text
    quoted = text.replace('"', '""')
    return f'"{quoted}"'


_SPECIAL = re.compile(r'[,"\r\n]')


def read_rows(folder: Path) -> list[PlanRow]:
    """The rows of `folder`/plan.csv. Raises PlanError where there is none, or where it is not one of ours."""
    path = folder / PLAN_TABLE
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(
            f"'{folder}' has no readable {PLAN_TABLE}; make a plan with: plan-sweep study=NAME out={folder}"
        ) from error
    if not text.endswith("\n"):
        raise PlanError(f"'{path}' is torn (its last line has no end); {PUT_BACK}")
    lines = list(csv.reader(io.StringIO(text)))
    if tuple(lines[0]) != COLUMNS:
        raise PlanError(f"'{path}' does not have the columns of this version's plans; plan again into another folder.")
    if cut := cut_table(folder, len(lines) - 1):
        raise PlanError(f"'{path}' {cut}")
    return [_read_row(path, number, line) for number, line in enumerate(lines[1:], start=2)]


def format_value(value: Any) -> str:
    """A cell: integers plain, floats as the shortest text that reads back exactly."""
    return repr(value) if isinstance(value, float) else str(value)


def _read_row(path: Path, number: int, line: list[str]) -> PlanRow:
    if len(line) != len(COLUMNS):
        raise PlanError(f"'{path}' line {number} is damaged ({len(line)} cells, not {len(COLUMNS)}); {PUT_BACK}")
    try:
        values: dict[str, Any] = {name: of(cell) for (name, of), cell in zip(_column_types().items(), line, strict=True)}
    except ValueError as error:
        raise PlanError(f"'{path}' line {number} is damaged ({error}); {PUT_BACK}") from error
    return PlanRow(**values)
