"""MLflow from the runs' own records: one writer, one MLflow run a run_id, a sqlite store that may be deleted and rebuilt.

    fit-scaling sync DIR        # DIR/mlflow.db, artifacts in DIR/mlflow-artifacts

The truth is in the run folders (DESIGN rule 5); this only shows it. A sync adds what is new since the last one, and nothing if
nothing is. The only file that imports mlflow, and it keeps mlflow off the network and quiet. Training never calls this.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from analysis.collect import attempt_rows, read_plan
from analysis.exclude import DONE, FAILED
from analysis.mlflow_store import ABOUT, OF_OURS, metric_prefix
from analysis.run_files import RunFiles, train_records
from analysis.run_tables import Planned, branch_of, planned_runs, run_files, run_row
from analysis.table_files import only_one
from lst import records
from lst.errors import FitError

STORE, ARTIFACTS, LOCK = "mlflow.db", "mlflow-artifacts", "mlflow.lock"
RESULTS_OF_STUDY = ("fits.json", "results.csv", "runs.csv", "report")
RUN_ID, SYNCED, STEP, EVALUATED = "lst.run_id", "lst.synced", "lst.step", "lst.evaluated"
SPENT = ("train_flops", "units", "text_tokens", "speech_tokens")
BATCH = 1000  # MLflow's largest number of metrics in one call
PARAM_BATCH = 100
NO_TIME = 1  # millisecond: MLflow takes 0 for now
RESULTS = "results"  # the run_id of the MLflow run that has the study's artifacts
LONGEST_TASK, LONGEST_FACT = 100, 500
CONSTANT = ("task", "direction", "branch", "evaluation", "items_id", "options", "score", "patching", "conditional")
NAMES = {"step", "time", "batch_hash", "branch"}
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Synced:
    """What one sync did."""

    runs: int  # MLflow runs there are now, the one of the fits included
    created: int
    updated: int
    metrics: int  # metric values written


def quiet() -> None:
    """Before mlflow is imported: no telemetry, no logging set-up of its own, no migration chatter."""
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_CONFIGURE_LOGGING": "false"}
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    for name in ("mlflow", "alembic", "sqlalchemy"):
        logging.getLogger(name).setLevel(logging.ERROR)


def sync(folder: Path, *, progress: Progress | None = None) -> Synced:
    """Bring DIR/mlflow.db up to date. Raises FitError on no plan, a running sync, or a store that cannot be opened or written."""
    plan = read_plan(folder)
    quiet()
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    with only_one(folder / LOCK, f"another sync of '{folder}' is running; wait until it has ended."):
        try:
            return _sync(folder, plan, progress)
        except (MlflowException, SQLAlchemyError) as error:
            path, first = (folder / STORE).resolve(), (str(error).splitlines() or [type(error).__name__])[0]
            full = "free some space and sync again."
            held = "end what holds it, or delete it and sync again: it is rebuilt from the runs."
            remedy = full if "disk is full" in first else held
            raise FitError(f"'{path}' cannot be opened or written ({first}); {remedy}") from error


def _sync(folder: Path, plan: list[dict[str, Any]], progress: Progress | None) -> Synced:
    client, experiment = _open(folder, str(plan[0].get("study") or folder.name) if plan else folder.name)
    known = _known_runs(client, experiment)
    created = updated = metrics = 0
    for done, row in enumerate(planned_runs(plan, attempt_rows(folder, {row["run_id"] for row in plan}))):
        files = run_files(folder, row)
        if len(files.steps) or files.evaluations or files.exit or files.failure:
            shown = _Run(client, experiment, known, folder, row, files)
            new, changed, count = shown.sync()
            created, updated, metrics = created + new, updated + changed, metrics + count
        if progress is not None:
            progress(done + 1, len(plan))
    created += _sync_results(client, experiment, known, folder)
    return Synced(len(known), created, updated, metrics)


def _open(folder: Path, study: str) -> tuple[Any, str]:
    """The client of the study's store and the id of its experiment, both made if they are not there."""
    quiet()
    from mlflow.tracking import MlflowClient

    path = (folder / STORE).resolve()
    if not path.exists():
        shutil.rmtree(folder / ARTIFACTS, ignore_errors=True)  # of a store that was deleted
    client = MlflowClient(tracking_uri=f"sqlite:///{path}", registry_uri=f"sqlite:///{path}")
    found = client.get_experiment_by_name(study)
    if found is not None:
        return client, str(found.experiment_id)
    location = (folder / ARTIFACTS).resolve().as_uri()
    return client, str(client.create_experiment(study, artifact_location=location))


def _known_runs(client: Any, experiment: str) -> dict[str, Any]:
    """Our run_id -> MLflow run, for all of the experiment."""
    known: dict[str, Any] = {}
    token = None
    while True:
        page = client.search_runs([experiment], max_results=1000, page_token=token, order_by=["attributes.start_time ASC"])
        known |= {run.data.tags[RUN_ID]: run for run in page if RUN_ID in run.data.tags}
        token = page.token
        if not token:
            return known


@dataclass(frozen=True)
class _Run:
    """One row of the plan, its records, and the store that shows it."""

    client: Any
    experiment: str
    known: dict[str, Any]  # our run_id -> MLflow run
    folder: Path
    planned: Planned
    files: RunFiles

    def sync(self) -> tuple[int, int, int]:
        """Write what is new; returns (created, updated, metric values)."""
        files, plan, attempts = self.files, self.planned.row, self.planned.attempts
        run_id = plan["run_id"]
        facts = {k: v[:LONGEST_FACT] if isinstance(v, str) else v for k, v in run_row(self.planned, files).items()}
        status = mlflow_status(facts["state"], attempts[-1] if attempts else {})
        digest = _digest([status, facts, files.exit, files.failure, len(files.steps), list(map(constants, files.evaluations))])
        new = run_id not in self.known
        if not new and self.known[run_id].data.tags.get(SYNCED) == digest:
            return 0, 0, 0
        home = self.folder / "runs" / (run_id if branch_of(plan) is None else plan["parent_run_id"])
        train = self._path_records(home)
        if new:
            self.known[run_id] = self._create(train)
        run = self.known[run_id]
        key, tags = run.info.run_id, run.data.tags
        if SYNCED not in tags:  # params once; a sync that died before this one's end writes the same again
            params = [(k, v) for k, v in parameters(plan, home / records.RUN_CONFIG).items()]
            self._log(key, params=params)
        values = train_values(train, after=int(tags.get(STEP, 0)))
        shown, about, count = evaluation_values(files.evaluations, train, tags)
        self._log(key, metrics=values + shown)
        if status in ("FINISHED", "FAILED", "KILLED"):
            self.client.set_terminated(key, status=status, end_time=_moment(train, -1))
        else:
            self.client.update_run(key, status=status)
        marks = {OF_OURS: json.dumps(facts), "lst.state": facts["state"], STEP: str(files.last["step"])}
        marks |= {EVALUATED: str(count), SYNCED: digest}
        self._log(key, tags=[*about.items(), *marks.items()])  # last, and SYNCED at the end of it
        return int(new), int(not new), len(values) + len(shown)

    def _path_records(self, home: Path) -> list[dict[str, Any]]:
        """The training records, with all their fields, on the way to the run's weights."""
        on_way = set(zip(self.files.steps["step"].to_pylist(), self.files.steps["branch"].to_pylist(), strict=True))
        return [row for row in train_records(home) if (row["step"], row.get("branch")) in on_way]

    def _create(self, train: list[dict[str, Any]]) -> Any:
        plan = self.planned.row
        names = {name: plan[name] for name in ("arm", "size") if plan.get(name)}
        title = " ".join([*names.values(), plan["run_id"]])
        tags = {RUN_ID: plan["run_id"], **{f"lst.{k}": v for k, v in names.items()}}
        return self.client.create_run(self.experiment, start_time=_moment(train, 0), tags=tags, run_name=title)

    def _log(
        self,
        key: str,
        *,
        params: Sequence[tuple[str, str]] = (),
        metrics: Sequence[Any] = (),
        tags: Sequence[tuple[str, str]] = (),
    ) -> None:
        """In as few calls as MLflow allows."""
        from mlflow.entities import Param, RunTag

        for first in range(0, len(params), PARAM_BATCH):
            self.client.log_batch(key, params=[Param(k, v) for k, v in params[first : first + PARAM_BATCH]])
        for first in range(0, len(metrics), BATCH):
            self.client.log_batch(key, metrics=metrics[first : first + BATCH])
        for first in range(0, len(tags), PARAM_BATCH):
            self.client.log_batch(key, tags=[RunTag(k, v) for k, v in tags[first : first + PARAM_BATCH]])


def mlflow_status(state: str, attempt: dict[str, Any]) -> str:
    """MLflow's word for a run's state, given its last attempt in the ledger: an attempt that goes on, or waits, wins."""
    if state == DONE:
        return "FINISHED"
    if attempt and attempt.get("ended") is None:
        return "RUNNING" if attempt.get("started") is not None else "SCHEDULED"
    if state == FAILED:
        return "FAILED"
    return "KILLED" if attempt else "RUNNING"


def train_values(train: list[dict[str, Any]], *, after: int) -> list[Any]:
    """Numbers of the steps past `after` as MLflow metrics `train/NAME`."""
    from mlflow.entities import Metric

    return [
        Metric(f"train/{name}", float(value), _moment([record], 0), int(record["step"]))
        for record in train
        if record["step"] > after
        for name, value in sorted((record | ({"skipped": 1} if "skipped" in record else {})).items())
        if name not in NAMES and _is_number(value)
    ]


def evaluation_values(
    rows: list[dict[str, Any]], train: list[dict[str, Any]], tags: dict[str, str]
) -> tuple[list[Any], dict[str, str], int]:
    """What a store with `tags` has not: metrics of evaluations, the tags that say what they are, and how many of the trainer's
    there are.

    A metric is called `TASK/S-S/METRIC`, its number of items `TASK/S-S/METRIC.n_items`, and what was spent on the weights
    `evaluated/units`; before these stand `branch-STEPS/` and `evals/ID/` where there is a branch, or an evaluation in RUN/evals.
    """
    from mlflow.entities import Metric

    moments = {int(r["step"]): _moment([r], 0) for r in train}
    values: dict[tuple[str, int], Any] = {}
    about: dict[str, str] = {}
    own = [row for row in rows if row.get("evaluation") is None]
    others = [row for row in rows if row.get("evaluation") is not None and tags.get(ABOUT + metric_name(row)) != constants(row)]
    for row in own[int(tags.get(EVALUATED, 0)) :] + others:
        name, step = metric_name(row), int(row["step"])
        numbers = {f"{name}/{row['metric']}": row["value"], f"{name}/{row['metric']}.n_items": row.get("n_items")}
        numbers |= {f"{metric_prefix(row)}evaluated/{spent}": row.get(spent) for spent in SPENT}
        for key, value in numbers.items():
            if _is_number(value):
                values[key, step] = Metric(key, float(value), moments.get(step, step), step)
        about[ABOUT + name] = constants(row)
    return list(values.values()), about, len(own)


def constants(row: dict[str, Any]) -> str:
    """What the metrics of an evaluation are of, as JSON."""
    return json.dumps({name: row[name] for name in CONSTANT if row.get(name) is not None}, sort_keys=True)


def metric_name(row: dict[str, Any]) -> str:
    """The beginning of the names of an evaluation's metrics."""
    return metric_prefix(row) + _task_name(row)


def _task_name(row: dict[str, Any]) -> str:
    """TASK/S-S in MLflow's alphabet; a long name is cut, and made unique by its hash."""
    task = re.sub(r"[^\w\-/ ]|(?<=/)/|^/|/$", lambda found: f"_{ord(found[0]):x}_", str(row["task"]), flags=re.ASCII)
    if len(task) > LONGEST_TASK:
        task = f"{task[:LONGEST_TASK]}-{_digest(row['task'])}"
    return f"{task}/{str(row['direction']).replace('->', '-')}"


def parameters(plan: dict[str, Any], config: Path) -> dict[str, str]:
    """What decided the run: the plan's identity and matching, and run.yaml's configuration with dotted names."""
    chosen = ("arm", "size", "matching", "match_group", "flops_budget", "planned_flops", "num_params", "data_id", "recipe")
    found = {f"plan.{name}": str(plan[name]) for name in chosen if plan.get(name)}
    if config.is_file():
        from omegaconf import OmegaConf

        content = OmegaConf.to_container(OmegaConf.load(config), resolve=False)
        if isinstance(content, dict):
            found |= dict(_flat(content.get("config") or {}, ""))
    return {name: value[:6000] for name, value in found.items()}


def _flat(content: Any, prefix: str) -> Iterator[tuple[str, str]]:
    if isinstance(content, dict):
        for name, value in content.items():
            yield from _flat(value, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, content if isinstance(content, str) else json.dumps(content)


def _sync_results(client: Any, experiment: str, known: dict[str, Any], folder: Path) -> int:
    """Tables, fits and report as artifacts of an MLflow run of its own; returns how many runs that made."""
    there = [folder / name for name in RESULTS_OF_STUDY if (folder / name).exists()]
    if not there:
        return 0
    files = sorted(file for path in there for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())
    digest = _digest([[str(f.relative_to(folder)), hashlib.sha256(f.read_bytes()).hexdigest()] for f in files])
    new = RESULTS not in known
    if new:
        known[RESULTS] = client.create_run(experiment, start_time=NO_TIME, tags={RUN_ID: RESULTS}, run_name=RESULTS)
    run = known[RESULTS]
    if run.data.tags.get(SYNCED) == digest:
        return 0
    kept = Path(url2pathname(urlsplit(run.info.artifact_uri).path))
    if kept.is_relative_to((folder / ARTIFACTS).resolve()):
        shutil.rmtree(kept, ignore_errors=True)  # files that the study no longer has
    for file in files:
        client.log_artifact(run.info.run_id, str(file), str(file.relative_to(folder).parent).removeprefix("."))
    client.set_terminated(run.info.run_id, status="FINISHED", end_time=NO_TIME)
    client.set_tag(run.info.run_id, SYNCED, digest)
    return int(new)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _moment(rows: list[dict[str, Any]], index: int) -> int:
    """A record's wall clock in milliseconds; its step where it has none, so that a rebuilt store is equal."""
    if not rows:
        return NO_TIME
    record = rows[index]
    return int(float(record["time"]) * 1000) if _is_number(record.get("time")) else int(record["step"])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
