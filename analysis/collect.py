"""From run folders to tables: results, runs, attempts and item_pairs.csv, curves and items.parquet (docs/columns.md).

    fit-scaling collect DIR

Reads plan.csv, each run's records and evaluations (`analysis.run_tables`) and the launcher's ledger. Runs are written as they
are read, by several processes where there are many, so memory does not grow with them. The same folder gives the same bytes.
Fits nothing and judges nothing but what `analysis.exclude` says.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from analysis import exclude
from analysis.columns import RESULT_COLUMNS, RUN_COLUMNS
from analysis.item_table import PAIR_COLUMNS, pair_rows, unpaired
from analysis.run_files import is_whole
from analysis.run_tables import (
    CURVE_SCHEMA,
    ITEM_SCHEMA,
    Planned,
    RunTables,
    joined,
    planned_runs,
    read_runs,
)
from analysis.table_files import ParquetRows, only_one, replacing
from lst import records
from lst.errors import FitError

PLAN, RUNS, RESULTS, ATTEMPTS = "plan.csv", "runs.csv", "results.csv", "attempts.csv"
CURVES, ITEMS, PAIRS = "curves.parquet", "items.parquet", "item_pairs.csv"
LEDGER = Path("launch") / "ledger.jsonl"
LOCK, IMPORT_CARD = "collect.lock", "import.json"

ATTEMPT_COLUMNS = ["run_id", "attempt", "job_id", "submitted", "started", "ended", "state", "cause", "step", "code"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Collected:
    """The tables of a study, in memory."""

    results: pd.DataFrame
    runs: pd.DataFrame
    attempts: pd.DataFrame
    curves: pa.Table
    items: pa.Table
    pairs: pd.DataFrame
    notes: tuple[str, ...]  # what of the folders was left out, in sentences


def made_anew(folder: Path, otherwise: str = "") -> str:
    """What makes the tables of a folder again, or a file of it that `otherwise` makes."""
    imported = (folder / IMPORT_CARD).is_file()
    return "import its source again (fit-scaling import)." if imported else otherwise or f"run: fit-scaling collect {folder}"


def read_plan(folder: Path) -> list[dict[str, Any]]:
    """The rows of plan.csv as text, a run once. Raises FitError where there is none."""
    path = folder / PLAN
    again = made_anew(folder, "plan the study again.")
    if not path.is_file():
        raise FitError(f"'{folder}' holds no {PLAN}, so it is no study; give the folder that plan-sweep wrote (out=DIR).")
    if not records.is_whole_text(path):
        raise FitError(f"'{path}' is torn (its last line has no end); {again}")
    try:
        table = pd.read_csv(path, dtype=object, keep_default_na=False)  # text as it stands
    except ValueError as error:  # pandas' parser errors are ValueErrors
        raise FitError(f"'{path}' is no readable table ({str(error).splitlines()[0]}); {again}") from error
    missing = [name for name in ("run_id", "arm", "size") if name not in table.columns]
    if missing:
        raise FitError(f"'{path}' has no column '{missing[0]}'; {again}")
    if cut := records.cut_table(folder, len(table)):
        raise FitError(f"'{path}' {cut}")
    return _rows(table.drop_duplicates("run_id"))


def collect(folder: Path, *, progress: Progress | None = None) -> Collected:
    """The tables of a study, all in memory. Raises FitError where it has no plan; writes nothing."""
    runs, attempts = _read_study(folder)
    alien = _unplanned(folder, runs)
    tables = joined(list(_told(read_runs(folder, runs, 1), len(runs), progress)))
    return Collected(
        results=_frame(tables.results, RESULT_COLUMNS),
        runs=(table := _run_frame(tables)),
        pairs=_pair_frame(known := _rows(table), tables),
        attempts=_attempt_frame(attempts),
        curves=tables.curves,
        items=tables.items,
        notes=(*alien, *tables.notes, *unpaired(known, tables.answers)),
    )


def collect_into(folder: Path, *, processes: int = 1, progress: Progress | None = None) -> tuple[pd.DataFrame, list[str]]:
    """Write the tables, replacing all of them at the end; runs.csv's rows, and what was left out in sentences.

    At most `processes` read (see `in_order`). Raises FitError where the folder has no plan, or while another process collects it.
    """
    planned, attempts = _read_study(folder)
    alien = _unplanned(folder, planned)
    parts: list[RunTables] = []
    with (
        only_one(folder / LOCK, f"another collection of '{folder}' is running; wait until it has ended."),
        replacing(folder, RESULTS, RUNS, ATTEMPTS, CURVES, ITEMS, PAIRS) as aside,
        aside[RESULTS].open("w", encoding="utf-8", newline="") as text,
        ParquetRows(aside[CURVES], CURVE_SCHEMA) as curves,
        ParquetRows(aside[ITEMS], ITEM_SCHEMA) as items,
    ):
        results = csv.writer(text, lineterminator="\n")
        results.writerow(RESULT_COLUMNS)
        for part in _told(read_runs(folder, planned, processes), len(planned), progress):
            results.writerows(part.results)
            curves.add(part.curves)
            items.add(part.items)
            parts.append(part.light())
        tables = joined(parts)
        runs = _run_frame(tables)
        known = _rows(runs)
        for name, table in ((RUNS, runs), (ATTEMPTS, _attempt_frame(attempts)), (PAIRS, _pair_frame(known, tables))):
            table.to_csv(aside[name], index=False, lineterminator="\n")
    return runs, [*alien, *tables.notes, *unpaired(known, tables.answers)]


def attempt_rows(folder: Path, run_ids: set[str]) -> list[dict[str, Any]]:
    """attempts.csv from the ledger: a row a (run, attempt), in the plan's runs only."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for event in records.iter_jsonl(folder / LEDGER):
        run_id, attempt, kind = event.get("run_id"), event.get("attempt"), event.get("event")
        known = isinstance(run_id, str) and run_id in run_ids
        if not known or not isinstance(attempt, int) or kind not in ("submitted", "started", "ended"):
            continue
        if event.get("state") == "elsewhere":  # its job found another runner there, and left
            found.pop((str(run_id), attempt), None)
            continue
        row = found.setdefault((str(run_id), attempt), {"run_id": run_id, "attempt": attempt})
        row[str(kind)] = event.get("time")
        row |= {name: event[name] for name in ("job_id", "state", "cause", "code") if event.get(name) not in (None, "")}
        if kind == "started" and is_whole(event.get("step")):
            row["step"] = event["step"]
    return [found[key] for key in sorted(found)]


def _read_study(folder: Path) -> tuple[list[Planned], list[dict[str, Any]]]:
    """The plan's runs, and the rows of attempts.csv."""
    if (folder / IMPORT_CARD).is_file():
        raise FitError(f"'{folder}' was imported, so there are no runs to collect; import its source again, or fit it as it is.")
    plan = read_plan(folder)
    attempts = attempt_rows(folder, {row["run_id"] for row in plan})
    return planned_runs(plan, attempts), attempts


def _unplanned(folder: Path, runs: list[Planned]) -> list[str]:
    """A sentence where there are folders of runs that the plan does not know."""
    known = {run.row["run_id"] for run in runs}
    home = folder / "runs"
    names = [path.name for path in home.iterdir() if path.name not in known and path.is_dir()] if home.is_dir() else []
    names = sorted(name for name in names if not name.startswith("."))
    what = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return [f"'{home}' has folders that are no row of {PLAN}, so they were left out: {what}."] if names else []


def _told(parts: Iterator[RunTables], total: int, progress: Progress | None) -> Iterator[RunTables]:
    done = 0
    for part in parts:
        yield part
        done += len(part.runs)
        if progress is not None:
            progress(done, total)


def _run_frame(tables: RunTables) -> pd.DataFrame:
    rows = exclude.without_duplicates(tables.runs, tables.same)
    return _frame([[row.get(name) for name in RUN_COLUMNS] for row in rows], RUN_COLUMNS)


def _pair_frame(runs: list[dict[str, Any]], tables: RunTables) -> pd.DataFrame:
    rows = pair_rows(runs, tables.answers)
    return _frame([[row.get(name) for name in PAIR_COLUMNS] for row in rows], PAIR_COLUMNS)


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table of objects one by one."""
    names = [str(name) for name in table.columns]
    return [dict(zip(names, row, strict=True)) for row in table.to_numpy().tolist()]


def _attempt_frame(attempts: list[dict[str, Any]]) -> pd.DataFrame:
    return _frame([[row.get(name) for name in ATTEMPT_COLUMNS] for row in attempts], ATTEMPT_COLUMNS)


def _frame(rows: list[list[Any]], columns: list[str]) -> pd.DataFrame:
    """Rows as a table of objects: whole numbers stay whole beside empty cells, floats keep their shortest exact text."""
    return pd.DataFrame(rows, columns=columns, dtype=object)
