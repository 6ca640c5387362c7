"""The runs in an MLflow store, read as files: a sqlite database or a folder `mlruns`. Needs no mlflow and changes nothing.

A server's store is read through its own export: `mlflow experiments csv`, or `mlflow.search_runs().to_csv()`.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lst.errors import FitError

STATUSES = {1: "RUNNING", 2: "SCHEDULED", 3: "FINISHED", 4: "FAILED", 5: "KILLED"}
"""MLflow's numbers in the files of a folder."""
OF_OURS = "lst.run"
"""The tag of a run that `analysis.tracking` wrote: its row of runs.csv as JSON."""
ABOUT = "lst.about."
"""Tags of this beginning say what the metrics of that name are: task, direction, evaluation, score, .. as JSON."""


def metric_prefix(row: dict[str, Any]) -> str:
    """What stands before the names of metrics of a branch, or of an evaluation in RUN/evals."""
    branch = "" if row.get("branch") is None else f"branch-{row['branch']}/"
    return branch + ("" if row.get("evaluation") is None else f"evals/{row['evaluation']}/")


@dataclass(frozen=True, kw_only=True)
class StoreRun:
    """One active run."""

    id: str  # MLflow's own
    name: str
    status: str
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, list[tuple[int, float]]] = field(default_factory=dict)  # (step, value), a step's last value, by step

    def last(self) -> dict[str, Any]:
        """One row of everything: `params.NAME`, `tags.NAME`, `metrics.NAME` (the last step's)."""
        row: dict[str, Any] = {"run_id": self.id, "run_name": self.name, "status": self.status}
        row |= {f"params.{k}": v for k, v in self.params.items()} | {f"tags.{k}": v for k, v in self.tags.items()}
        return row | {f"metrics.{k}": points[-1][1] for k, points in self.metrics.items()}


def is_store(path: Path) -> bool:
    """Whether `path` is a store rather than a table."""
    if path.is_dir() or path.suffix == ".db":
        return True
    with path.open("rb") as file:
        return file.read(16) == b"SQLite format 3\0"


def read_store(path: Path, experiment: str = "") -> Iterator[StoreRun]:
    """The active runs of one experiment, in the order in which they were made. Raises FitError."""
    return _of_folder(path, experiment) if path.is_dir() else _of_database(path, experiment)


def _of_database(path: Path, experiment: str) -> Iterator[StoreRun]:
    try:
        store = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        try:
            names = store.execute(
                "select e.name, e.experiment_id from experiments e where exists (select 1 from runs r where r.experiment_id = "
                "e.experiment_id and r.lifecycle_stage = 'active') order by e.experiment_id"
            ).fetchall()
            chosen = _chosen(path, dict(names), experiment)
            runs = store.execute(
                "select run_uuid, name, status from runs where experiment_id = ? and lifecycle_stage = 'active' order by rowid",
                (chosen,),
            ).fetchall()
            for key, name, status in runs:
                params, tags = (
                    dict(store.execute(f"select key, value from {table} where run_uuid = ?", (key,)))
                    for table in ("params", "tags")
                )
                points = store.execute(
                    "select key, step, value, is_nan from metrics where run_uuid = ? order by key, step, timestamp", (key,)
                )
                metrics = _once((k, s, math.nan if wrong else v) for k, s, v, wrong in points)
                yield StoreRun(id=key, name=name or key, status=status, params=params, tags=tags, metrics=metrics)
        finally:
            store.close()
    except sqlite3.Error as error:
        raise FitError(f"'{path}' is no readable MLflow store ({error}); give its .db file, or a CSV export.") from error


def _of_folder(path: Path, experiment: str) -> Iterator[StoreRun]:
    homes: dict[str, Path] = {}
    for meta in sorted(path.glob("*/meta.yaml")):
        if any(meta.parent.glob("*/meta.yaml")):
            homes[str(_yaml(meta).get("name") or meta.parent.name)] = meta.parent
    if not homes:
        raise FitError(
            f"'{path}' holds no MLflow runs (EXPERIMENT/RUN/meta.yaml); give a folder mlruns, a .db file or a CSV export."
        )
    home = _chosen(path, homes, experiment)
    found = []
    for meta in home.glob("*/meta.yaml"):
        about = _yaml(meta)
        if str(about.get("lifecycle_stage", "active")) == "active":
            found.append((int(about.get("start_time") or 0), meta.parent, about))
    for _, run, about in sorted(found, key=lambda one: one[:2]):
        points = []
        for name, text in _files(run / "metrics"):
            for line in text.splitlines():  # timestamp value step
                parts = line.split(" ")
                if len(parts) >= 3:
                    points.append((name, int(parts[2]), float(parts[1])))
        status = about.get("status")
        yield StoreRun(
            id=run.name,
            name=str(about.get("run_name") or run.name),
            status=STATUSES.get(status, str(status)) if isinstance(status, int) else str(status),
            params=dict(_files(run / "params")),
            tags=dict(_files(run / "tags")),
            metrics=_once(sorted(points, key=lambda one: one[:2])),
        )


def _chosen(path: Path, known: dict[str, Any], experiment: str) -> Any:
    """The one experiment that has runs, or the named one."""
    if experiment and experiment not in known:
        raise FitError(f"experiment={experiment} has no runs in '{path}'; it has {', '.join(map(repr, known)) or 'none at all'}.")
    if not experiment and len(known) != 1:
        raise FitError(
            f"'{path}' has {len(known)} experiments with runs ({', '.join(map(repr, known))}); choose with experiment=NAME"
        )
    return known[experiment] if experiment else next(iter(known.values()))


def _once(points: Any) -> dict[str, list[tuple[int, float]]]:
    """By name, the last value of each step."""
    found: dict[str, dict[int, float]] = {}
    for name, step, value in points:
        found.setdefault(name, {})[step] = value
    return {name: list(of.items()) for name, of in found.items()}


def _files(folder: Path) -> Iterator[tuple[str, str]]:
    """(name, text) of the files of a folder; a name may have slashes."""
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            yield file.relative_to(folder).as_posix(), file.read_text(errors="replace").removesuffix("\n")


def _yaml(path: Path) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError  # type: ignore[import-untyped]

    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        raise FitError(f"'{path}' cannot be read ({str(error).splitlines()[0]}).") from error
    return {str(k): v for k, v in content.items()} if isinstance(content, dict) else {}
