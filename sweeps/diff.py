"""What differs between two plans: runs that only one has, columns that changed, and fields of their studies.

A run is the same in both where its id is. Not here: printing (`sweeps.cli`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sweeps.columns import COLUMNS, PlanRow
from sweeps.plan import StoredPlan, read_plan
from sweeps.study import study_to_dict
from sweeps.text import WIDTH, scientific


@dataclass(frozen=True, kw_only=True)
class PlanDiff:
    """From plan A to plan B."""

    only_a: tuple[PlanRow, ...]
    only_b: tuple[PlanRow, ...]
    common: int  # runs that both have
    changed: dict[str, dict[str, tuple[Any, Any]]]  # run_id -> column -> (in A, in B)
    study: dict[str, tuple[Any, Any]]  # dotted field -> (in A, in B)

    @property
    def empty(self) -> bool:
        return not (self.only_a or self.only_b or self.changed or self.study)

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return {
            "only_a": [asdict(row) for row in self.only_a],
            "only_b": [asdict(row) for row in self.only_b],
            "common": self.common,
            "changed": self.changed,
            "study": self.study,
        }


def diff_plans(a: Path | str, b: Path | str) -> PlanDiff:
    """Compare the plans of two study folders. Raises PlanError where one has none."""
    first, second = read_plan(a), read_plan(b)
    rows_a, rows_b = _by_id(first), _by_id(second)
    changed = {run: _changed_columns(row, rows_b[run]) for run, row in rows_a.items() if run in rows_b}
    fields_a, fields_b = _flat(study_to_dict(first.study)), _flat(study_to_dict(second.study))
    return PlanDiff(
        only_a=tuple(row for run, row in rows_a.items() if run not in rows_b),
        only_b=tuple(row for run, row in rows_b.items() if run not in rows_a),
        common=len(changed),
        changed={run: columns for run, columns in changed.items() if columns},
        study={
            key: (fields_a.get(key), fields_b.get(key))
            for key in sorted({*fields_a, *fields_b})
            if fields_a.get(key) != fields_b.get(key)
        },
    )


def describe_diff(diff: PlanDiff) -> str:
    """The difference as text."""
    if diff.empty:
        return f"the plans are the same: {diff.common} runs"
    lines = [f"{diff.common} runs in both, {len(diff.only_a)} only in A, {len(diff.only_b)} only in B"]
    lines += [f"study  {key}: {old} -> {new}"[:WIDTH] for key, (old, new) in diff.study.items()]
    lines += [f"- {_name(row)}" for row in diff.only_a]
    lines += [f"+ {_name(row)}" for row in diff.only_b]
    for run, columns in diff.changed.items():
        lines.append(f"~ {run}  " + ", ".join(f"{name}: {old} -> {new}" for name, (old, new) in columns.items()))
    return "\n".join(lines)


def _by_id(plan: StoredPlan) -> dict[str, PlanRow]:
    return {row.run_id: row for row in plan.rows}


def _changed_columns(a: PlanRow, b: PlanRow) -> dict[str, tuple[Any, Any]]:
    return {name: (getattr(a, name), getattr(b, name)) for name in COLUMNS if getattr(a, name) != getattr(b, name)}


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _name(row: PlanRow) -> str:
    return f"{row.run_id}  {row.arm}  {row.size}  {scientific(row.flops_budget)} FLOPs  seed {row.seed}"
