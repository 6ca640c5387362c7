"""MLflow from the runs' own records: one writer, one MLflow run a run_id, a sqlite store that may be deleted and rebuilt.

    fit-scaling sync DIR        # DIR/mlflow.db, artifacts in DIR/mlflow-artifacts

The truth is in the run folders (DESIGN rule 5); this only shows it. A sync adds what is new since the last one, and nothing if
nothing is. The only file that imports mlflow, and it keeps mlflow off the network and quiet. Training never calls this.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.collect import RunFiles, read_plan
from analysis.exclude import DONE, FAILED, run_state
from lst import records
from lst.errors import FitError

STORE, ARTIFACTS, LOCK = "mlflow.db", "mlflow-artifacts", "mlflow.lock"
FITS = "fits.json"
RUN_ID, SYNCED, STEP = "lst.run_id", "lst.synced", "lst.step"
BATCH = 1000  # MLflow's largest number of metrics in one call
PARAM_BATCH = 100
NAMES = {"step", "time", "batch_hash"}
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


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold the study's sync lock. Raises FitError while another process holds it."""
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FitError(f"another sync of '{folder}' is running; wait until it has ended.") from error
        yield


def sync(folder: Path, *, progress: Progress | None = None) -> Synced:
    """Bring DIR/mlflow.db up to date. Raises FitError on no plan, a running sync, or a store that cannot be opened."""
    plan = read_plan(folder)
    with only_writer(folder):
        client, experiment = _open(folder, str(plan[0].get("study") or folder.name) if plan else folder.name)
        known = _known_runs(client, experiment)
        created = updated = metrics = 0
        for done, row in enumerate(plan):
            files = RunFiles.read(folder / "runs" / row["run_id"])
            if files.train or files.evaluations or files.exit or files.failure:
                new, changed, count = _sync_run(client, experiment, known, row, files, folder)
                created, updated, metrics = created + new, updated + changed, metrics + count
            if progress is not None:
                progress(done + 1, len(plan))
        created += _sync_fits(client, experiment, known, folder)
    return Synced(len(known), created, updated, metrics)


def _open(folder: Path, study: str) -> tuple[Any, str]:
    """The client of the study's store and the id of its experiment, both made if they are not there."""
    quiet()
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient
    from sqlalchemy.exc import SQLAlchemyError

    path = (folder / STORE).resolve()
    try:
        client = MlflowClient(tracking_uri=f"sqlite:///{path}", registry_uri=f"sqlite:///{path}")
        found = client.get_experiment_by_name(study)
        if found is not None:
            return client, str(found.experiment_id)
        location = (folder / ARTIFACTS).resolve().as_uri()
        return client, str(client.create_experiment(study, artifact_location=location))
    except (MlflowException, SQLAlchemyError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise FitError(f"'{path}' cannot be opened ({first}); delete it and sync again: it is rebuilt from the runs.") from error


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


def _sync_run(
    client: Any, experiment: str, known: dict[str, Any], plan: dict[str, Any], files: RunFiles, folder: Path
) -> tuple[int, int, int]:
    """Write what is new of one run; returns (created, updated, metrics)."""
    from mlflow.entities import Param, RunTag

    state = run_state(plan, len(files.train), files.exit, files.failure)
    digest = _digest([state, files.exit, files.failure, len(files.train), len(files.evaluations), files.last.get("step")])
    run_id = plan["run_id"]
    new = run_id not in known
    if new:
        names = {name: plan[name] for name in ("arm", "size") if plan.get(name)}
        title = " ".join([*names.values(), run_id])
        tags = {RUN_ID: run_id, **{f"lst.{k}": v for k, v in names.items()}}
        known[run_id] = client.create_run(experiment, start_time=_moment(files.train, 0), tags=tags, run_name=title)
        params = [Param(k, v) for k, v in parameters(plan, folder / "runs" / run_id / records.RUN_CONFIG).items()]
        for first in range(0, len(params), PARAM_BATCH):
            client.log_batch(known[run_id].info.run_id, params=params[first : first + PARAM_BATCH])
    run = known[run_id]
    if run.data.tags.get(SYNCED) == digest:
        return 0, 0, 0
    key = run.info.run_id
    written = int(run.data.tags.get(STEP, 0))
    values = metric_values(files, after=written)
    for first in range(0, len(values), BATCH):
        client.log_batch(key, metrics=values[first : first + BATCH])
    status = {DONE: "FINISHED", FAILED: "FAILED"}.get(state, "RUNNING")
    if status == "RUNNING":
        client.update_run(key, status=status)
    else:
        client.set_terminated(key, status=status, end_time=_moment(files.train, -1))
    tags = {"lst.state": state, STEP: str(int(files.last.get("step", 0))), SYNCED: digest}
    client.log_batch(key, tags=[RunTag(k, v) for k, v in tags.items()])  # last: a sync that dies before goes over it again
    return int(new), int(not new), len(values)


def metric_values(files: RunFiles, *, after: int) -> list[Any]:
    """Numbers of the steps past `after` as MLflow metrics, named as `train/loss` and `heldout_text/T-T/nats_per_token`.

    Of the run's own path alone: a branch's steps would stand among its own.
    """
    from mlflow.entities import Metric

    moments = {int(r["step"]): _moment([r], 0) for r in files.train}
    values = []
    for record in files.train:
        step = int(record["step"])
        if step > after:
            numbers = {k: v for k, v in record.items() if k not in NAMES and _is_number(v)}
            values += [Metric(f"train/{k}", float(v), moments[step], step) for k, v in sorted(numbers.items())]
    for record in files.evaluations:
        step = int(record["step"])
        if step > after and record.get("branch") is None and _is_number(record["value"]):
            name = "/".join((str(record["task"]), str(record["direction"]).replace("->", "-"), str(record["metric"])))
            values.append(Metric(name, float(record["value"]), moments.get(step, step), step))
    return values


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


def _sync_fits(client: Any, experiment: str, known: dict[str, Any], folder: Path) -> int:
    """fits.json as an artifact of an MLflow run of its own; returns how many runs that made."""
    path = folder / FITS
    if not path.is_file():
        return 0
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    new = "fits" not in known
    if new:
        known["fits"] = client.create_run(experiment, start_time=0, tags={RUN_ID: "fits"}, run_name="fits")
    run = known["fits"]
    if run.data.tags.get(SYNCED) == digest:
        return 0
    client.log_artifact(run.info.run_id, str(path))
    client.set_terminated(run.info.run_id, status="FINISHED", end_time=0)
    client.set_tag(run.info.run_id, SYNCED, digest)
    return int(new)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _moment(rows: list[dict[str, Any]], index: int) -> int:
    """A record's wall clock in milliseconds; its step where it has none, so that a rebuilt store is equal."""
    if not rows:
        return 0
    record = rows[index]
    return int(float(record["time"]) * 1000) if _is_number(record.get("time")) else int(record["step"])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
