"""Runs that another tracker has, as a study that can be fitted and reported: `fit-scaling import` (docs/importing.md).

    fit-scaling import runs.csv out=DIR run_id=Name num_params=model.params tokens=tokens_seen loss="eval/loss"
    fit-scaling import mlflow.db out=DIR num_params=n_params tokens=tokens loss=val_loss

A table (a W&B export, or any CSV) or an MLflow store becomes the tables of `fit-scaling collect` by a map from our columns to the
source's. A store that `fit-scaling sync` wrote needs no map. Nothing is guessed but columns that have our names.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from analysis import csv_tables, exclude
from analysis.collect import (
    ATTEMPT_COLUMNS,
    ATTEMPTS,
    CURVES,
    IMPORT_CARD,
    ITEMS,
    PAIRS,
    PLAN,
    RESULTS,
    RUNS,
    Collected,
)
from analysis.columns import RESULT_COLUMNS, RUN_COLUMNS
from analysis.item_table import PAIR_COLUMNS
from analysis.mlflow_store import OF_OURS, StoreRun, is_store, metric_prefix, read_store
from analysis.run_tables import CURVE_COLUMNS, CURVE_SCHEMA, ITEM_SCHEMA
from analysis.table import budgets
from analysis.table_files import replacing, table_of, write_parquet
from lst import records
from lst.errors import FitError, did_you_mean

TEXTS = ("run_id", "arm", "size", "state", "matching", "match_group", "data_id")
NUMBERS = (
    "step",
    "seed",
    "num_params",
    "num_non_embedding_params",
    "num_params_global",
    "tokens",
    "units",
    "train_flops",
    "flops_budget",
)
LOSSES = {"loss": "heldout_mixture/ST->ST", "loss_speech": "heldout_speech/S->S", "loss_text": "heldout_text/T->T"}
METRIC = exclude.LOSS_METRIC
NEEDED = ("num_params", "tokens")
OPTIONS = (*TEXTS, *NUMBERS, *LOSSES)
STATES = {
    **dict.fromkeys(("done", "finished", "completed", "complete", "success", "succeeded"), exclude.DONE),
    **dict.fromkeys(("failed", "crashed", "killed", "error", "preempted", "preempting"), exclude.FAILED),
    **dict.fromkeys(("running", "scheduled", "pending", "unfinished"), exclude.UNFINISHED),
}
PLAN_COLUMNS = ("run_id", "study", "kind", "arm", "size", "seed", "matching", "match_group", "status", "reason")
PLAN_NUMBERS = ("num_params", "num_non_embedding_params", "num_params_global", "flops_budget", "planned_flops", "steps", "tokens")


@dataclass(frozen=True)
class Imported:
    """What was made of a source."""

    runs: pd.DataFrame
    notes: tuple[str, ...]


def import_runs(source: Path, out: Path, columns: dict[str, str], *, experiment: str = "") -> Imported:
    """Write the study's tables to the folder `out`. Raises FitError, before anything is written.

    `columns` says where our columns stand in the source; a key TASK/DIRECTION/METRIC is one more row of results.csv.
    """
    for key in columns:
        if key not in OPTIONS and key.count("/") < 2:
            raise FitError(f"unknown option '{key}'; {did_you_mean(key, [*OPTIONS, 'out', 'experiment'])}")
    if not source.exists():
        raise FitError(f"'{source}' does not exist; give a CSV file, an MLflow database or a folder mlruns.")
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / IMPORT_CARD).is_file())):
        raise FitError(f"out={out} holds something else than an import; give a new folder.")
    notes: list[str] = []
    if is_store(source):
        stored = list(read_store(source, experiment))
        ours = [run for run in stored if OF_OURS in run.tags]
        collected = of_ours(ours) if ours and not columns else of_table(pd.DataFrame(r.last() for r in stored), columns, notes)
    elif experiment:
        raise FitError(f"experiment={experiment} is for MLflow stores; '{source}' is a table.")
    else:
        collected = of_table(_text_table(source), columns, notes)
    _write(out, collected, {"source": source.name, "experiment": experiment, "columns": columns, "sha256": _hash(source)})
    return Imported(collected.runs, tuple(notes))


def _text_table(path: Path) -> pd.DataFrame:
    """All cells as text. Raises FitError on what is no table, or on a W&B export of one panel."""
    table = csv_tables.read_csv(path, dtype=str, keep_default_na=False)
    if len(table.columns) == 1 and re.search(r"[;\t|]", str(table.columns[0])):
        raise FitError(f"'{path}' has no commas between its columns ({table.columns[0]!r}); save it with commas, as UTF-8.")
    if any(re.search(r" - .+__(MIN|MAX)$", str(name)) for name in table.columns):
        raise FitError(
            f"'{path}' is W&B's export of one panel, which has neither parameters nor tokens; export the table of runs (Runs, "
            "then Export, then CSV) with the columns that num_params=, tokens= and loss= are to name."
        )
    return table


def of_table(table: pd.DataFrame, columns: dict[str, str], notes: list[str]) -> Collected:
    """The study of a table with a row a run, or a row a run and step."""
    if not len(table):
        raise FitError("the source has no runs; check the export, or experiment=NAME.")
    named = {key: found for key in OPTIONS if (found := _found(table, key, columns))}
    named |= {key: _named(table, key, column) for key, column in columns.items() if key not in OPTIONS}
    wanted = {key: key for key in LOSSES if key in named} | {key: key for key in columns if key not in OPTIONS}
    if not wanted:
        raise FitError(f"no column for the loss; say which with loss=COLUMN (there are {_listed(table)}).")
    for key in NEEDED:
        if key not in named:
            raise FitError(f"no column for {key}; say which with {key}=COLUMN (there are {_listed(table)}).")
    rows = pd.DataFrame({key: _text(table, column) for key, column in named.items() if key in TEXTS})
    rows = rows.assign(**{key: _numbers(table, column, key) for key, column in named.items() if key not in TEXTS})
    rows["run_id"] = rows["run_id"] if "run_id" in rows else [f"row{place + 1:06d}" for place in range(len(rows))]
    _require_once(rows, "step" in named)
    rows["step"] = rows.get("step", 0.0)
    rows, final = _by_run(rows, list(wanted))
    runs = [_run(row) for row in records_of(_filled(final, notes))]
    by_id = {run["run_id"]: run for run in runs}
    results = [result for row in records_of(rows) for result in _results(row, wanted, by_id[row["run_id"]])]
    last: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        last.setdefault(result["run_id"], []).extend([result] * (result["step"] == by_id[result["run_id"]]["step"]))
    for run in runs:
        no_value = "" if run["run_id"] in last else f"no value of {' or '.join(wanted)}"
        run["excluded"] = run["excluded"] or no_value or exclude.no_loss(last[run["run_id"]])
    return _collected(runs, [row for row in results if math.isfinite(row["value"])], CURVE_SCHEMA.empty_table())


def records_of(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def _by_run(rows: pd.DataFrame, wanted: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows that have a loss, by step, with what stood earlier in other columns; each run's last, in the source's order."""
    order = {run_id: place for place, run_id in enumerate(dict.fromkeys(rows["run_id"]))}
    rows = rows[rows["step"].notna()].sort_values("step", kind="stable").replace("", np.nan)
    others = [name for name in rows.columns if name not in ("run_id", "step", *wanted)]
    rows[others] = rows.groupby("run_id", sort=False)[others].ffill()
    valued = rows[rows[wanted].notna().any(axis=1)]
    rows = pd.concat([valued, rows[~rows["run_id"].isin(valued["run_id"])]])
    final = rows.drop_duplicates("run_id", keep="last")
    return rows, final.sort_values("run_id", key=lambda ids: ids.map(order)).reset_index(drop=True)


def _found(table: pd.DataFrame, key: str, columns: dict[str, str]) -> str | None:
    """The source's column of ours: the named one, else one of our name."""
    if key in columns:
        return _named(table, key, columns[key])
    status = ["status"] if key == "state" and "status" in table.columns else []
    known = [name for name in (key, f"params.{key}", f"metrics.{key}", *status) if name in table.columns]
    return known[0] if known else None


def _named(table: pd.DataFrame, key: str, column: str) -> str:
    """A column by its name, or by its name without params., metrics. or tags. where only one has it."""
    known = [str(name) for name in table.columns]
    fits = [column] if column in known else [n for n in known if n.partition(".")[2] == column and n.split(".")[0] in _PARTS]
    if len(fits) != 1:
        why = f"is {' and '.join(fits)}; name one of them" if fits else f"is no column; {did_you_mean(column, known)}"
        raise FitError(f"{key}={column} {why}")
    return fits[0]


_PARTS = ("params", "metrics", "tags")


def _listed(table: pd.DataFrame) -> str:
    names = [str(name) for name in table.columns]
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _text(table: pd.DataFrame, column: str) -> pd.Series:
    return table[column].astype(object).where(table[column].notna(), "").astype(str).str.strip()


def _numbers(table: pd.DataFrame, column: str, key: str) -> pd.Series:
    """A column as float64, empty cells as NaN. Raises FitError with the first cell that is no number."""
    text = _text(table, column)
    empty = text.str.lower().isin(["", "nan", "none", "null", "na", "n/a"])
    values = pd.to_numeric(text.where(~empty), errors="coerce")
    wrong = values.isna() & ~empty
    if wrong.any():
        row = int(np.argmax(wrong))
        raise FitError(
            f"{key}={column}: '{table[column].iloc[row]}' in row {row + 1} is no number; correct it or name another column."
        )
    return values.astype(np.float64)


def _require_once(rows: pd.DataFrame, stepped: bool) -> None:
    empty = rows["run_id"].eq("")
    if empty.any():
        raise FitError(f"row {int(np.argmax(empty)) + 1} has no run_id; name another column with run_id=COLUMN")
    twice = rows.duplicated(["run_id", "step"] if stepped else ["run_id"])
    if twice.any():
        run_id = rows["run_id"][twice].iloc[0]
        remedy = (
            "drop one of them"
            if stepped
            else "name the column of steps with step=COLUMN, or one that tells runs apart with run_id="
        )
        raise FitError(f"run_id '{run_id}' stands twice{' at one step' if stepped else ''}; {remedy}.")


def _filled(final: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """Missing FLOPs and budgets from what is there, each told. Raises FitError on a complete run without parameters or tokens."""
    known = ((final[list(NEEDED)] > 0) & (final[list(NEEDED)] < np.inf)).all(axis=1)
    done = final["state"].isna() | final["state"].map(_state).eq(exclude.DONE) if "state" in final else ~known | known
    for row in records_of(final[done & ~known]):
        key = next(name for name in NEEDED if not (row[name] > 0 and math.isfinite(row[name])))
        raise FitError(f"{key}={row[key]:g} of run '{row['run_id']}' is not positive and finite; correct it, or drop the run.")
    for key in ("train_flops", "flops_budget"):
        of = final[done][key] if key in final else pd.Series(dtype=float)
        for name in of.index[of.notna() & ~((of > 0) & (of < np.inf))]:
            raise FitError(f"{key}={of[name]:g} of run '{final['run_id'][name]}' is not positive and finite; correct it.")
    own = final["train_flops"] if "train_flops" in final else pd.Series(np.nan, final.index)
    if (lacking := own.isna() & known).any():
        told = f"{int(lacking.sum())} runs have no train_flops, so 6 x num_params x tokens stands there"
        notes.append(f"{told}; name the column with train_flops=COLUMN")
    final["train_flops"] = own.fillna(6 * final["num_params"] * final["tokens"])
    if "flops_budget" not in final or final["flops_budget"].isna().any():
        rows = final[known].drop(columns="flops_budget", errors="ignore")
        index, means = budgets(rows, rows["train_flops"].to_numpy())
        final.loc[known, "flops_budget"] = [float(f"{means[place]:.4g}") for place in index]
        notes.append(
            f"budgets of FLOPs were made of runs that lie near each other ({len(means)}); name them with flops_budget=COLUMN"
        )
    return final


def _state(word: str) -> str:
    """Our word for another tracker's. Raises FitError."""
    if word.lower() not in STATES:
        raise FitError(f"state '{word}' is unknown; use {', '.join(STATES)}, or name another column with state=COLUMN")
    return STATES[word.lower()]


def _run(row: dict[str, Any]) -> dict[str, Any]:
    """A row of runs.csv."""
    row = {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}
    word = str(row.get("state") or "done")
    state = _state(word)
    run = {name: _plain(row.get(name)) for name in RUN_COLUMNS}
    run |= {"study": "imported", "kind": "pretrain", "arm": row.get("arm") or "imported", "state": state}
    run |= {
        "size": row.get("size") or f"{row['num_params']:g}",
        "seed": run["seed"] or 0,
        "steps": run["step"],
        "skipped_steps": 0,
    }
    run |= {"planned_flops": run["train_flops"], "planned_spent_flops": run["train_flops"], "spent_flops": run["train_flops"]}
    why = "" if state == exclude.DONE else f"state '{word}'"
    return run | {"reason": why, "excluded": why}


def _results(row: dict[str, Any], wanted: dict[str, str], run: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """The rows of results.csv of one record."""
    for key in wanted:
        value = row[key]
        if not math.isnan(value):
            task, direction, metric = (LOSSES[key] + f"/{METRIC}" if key in LOSSES else key).rsplit("/", 2)
            spent = {name: _plain(row.get(name)) for name in ("step", "units")} | {"value": value}
            spent["train_flops"] = run["train_flops"] if run["step"] == spent["step"] else _plain(row.get("train_flops"))
            names = {name: run[name] for name in ("run_id", "arm", "size")}
            yield names | spent | {"task": task, "direction": direction, "metric": metric}


def of_ours(stored: list[StoreRun]) -> Collected:
    """The study of a store that `fit-scaling sync` wrote: the rows that `fit-scaling collect` gives of the runs themselves."""
    runs, prints, results, curves = [], [], [], []
    for run in stored:
        row = {name: json.loads(run.tags[OF_OURS]).get(name) for name in RUN_COLUMNS}
        evaluations = sorted(_evaluations(run), key=lambda one: one["step"])
        results += [one | {name: row[name] for name in ("run_id", "arm", "size")} for one in evaluations]
        runs.append(row)
        prints.append(exclude.fingerprint(row, evaluations))
        curves.append(_curve(run, str(row["run_id"])))
    return _collected(exclude.without_duplicates(runs, prints), results, pa.concat_tables([CURVE_SCHEMA.empty_table(), *curves]))


def _evaluations(run: StoreRun) -> Iterable[dict[str, Any]]:
    about = {tag.removeprefix("lst.about."): json.loads(text) for tag, text in run.tags.items() if tag.startswith("lst.about.")}
    for key, points in run.metrics.items():
        name, _, metric = key.rpartition("/")
        if name not in about or metric.endswith(".n_items"):
            continue
        beside = {field: dict(run.metrics.get(f"{metric_prefix(about[name])}evaluated/{field}", [])) for field in _SPENT}
        counts = dict(run.metrics.get(f"{key}.n_items", []))
        for step, value in points:
            spent = {field: _plain(of.get(step), field != "train_flops") for field, of in beside.items()}
            yield about[name] | spent | {"step": step, "metric": metric, "value": value, "n_items": _plain(counts.get(step))}


_SPENT = ("train_flops", "units", "text_tokens", "speech_tokens")


def _curve(run: StoreRun, run_id: str) -> pa.Table:
    skipped = {step for step, _ in run.metrics.get("train/skipped", [])}
    columns = {name: dict(run.metrics.get(f"train/{name}", [])) for name in CURVE_COLUMNS[1:]}
    steps = [step for step in sorted(columns["loss"]) if step not in skipped]
    return table_of(
        ({"run_id": run_id, "step": s} | {name: of.get(s) for name, of in columns.items()} for s in steps), CURVE_SCHEMA
    )


def _plain(value: Any, whole: bool = True) -> Any:
    """None for what is missing; a whole float as an int."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return int(value) if whole and isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def _collected(runs: list[dict[str, Any]], results: list[dict[str, Any]], curves: pa.Table) -> Collected:
    def frame(rows: list[dict[str, Any]], columns: list[str]) -> pd.DataFrame:
        return pd.DataFrame([[row.get(name) for name in columns] for row in rows], columns=columns, dtype=object)

    return Collected(
        results=frame(results, RESULT_COLUMNS),
        runs=frame(runs, RUN_COLUMNS),
        attempts=frame([], ATTEMPT_COLUMNS),
        curves=curves,
        items=ITEM_SCHEMA.empty_table(),
        pairs=frame([], PAIR_COLUMNS),
        notes=(),
    )


def _write(out: Path, collected: Collected, card: dict[str, Any]) -> None:
    """All files of the folder, or none."""
    plan = collected.runs[[n for n in (*PLAN_COLUMNS, *PLAN_NUMBERS) if n in collected.runs.columns]].assign(
        status="admitted", reason=""
    )
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out, PLAN, RUNS, RESULTS, ATTEMPTS, CURVES, ITEMS, PAIRS, IMPORT_CARD) as aside:
        tables = {
            PLAN: plan,
            RUNS: collected.runs,
            RESULTS: collected.results,
            ATTEMPTS: collected.attempts,
            PAIRS: collected.pairs,
        }
        for name, table in tables.items():
            table.to_csv(aside[name], index=False, lineterminator="\n")
        write_parquet(aside[CURVES], collected.curves)
        write_parquet(aside[ITEMS], collected.items)
        records.write_json(aside[IMPORT_CARD], card)


def _hash(source: Path) -> str | None:
    """SHA-256 of a file; none of a folder, which has no one content."""
    if source.is_dir():
        return None
    return records.file_sha256(source)
