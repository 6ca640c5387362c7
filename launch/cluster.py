"""Where runs are executed: frozen cluster configurations, read strictly from packaged or own YAML plus overrides.

`cluster=local`, `cluster=slurm` and `cluster=debug` name the packaged files in conf/cluster; `cluster=path/to/site.yaml`
reads one's own.
Overrides are `key=value` or `cluster.key=value`. Not here: how jobs are started (`launch.executor`).

    load_cluster(["cluster=local", "parallel=2"])
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lst.errors import ConfigError, LaunchError, did_you_mean
from lst.plain import from_dict

SEXAGESIMAL = r"[-+]?\d[\d_]*(?::[0-5]?\d)+(?:\.[\d_]*)?"  # what YAML 1.1 takes for a number of base 60
CONF = Path(__file__).parent / "conf" / "cluster"
OPTION_NAME = re.compile(r"[a-z][a-z0-9-]*")
ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\*?")


@dataclass(frozen=True, kw_only=True)
class LocalCluster:
    """This machine: each run is a process of its own."""

    executor: str = "local"  # always 'local'
    parallel: int = 0  # runs at once; 0 = cores over threads, or the number of GPUs where gpus is set
    threads: int = 1  # CPU threads of a run (OMP, MKL and the like)
    gpus: int = 0  # GPUs to use, one a run; 0 hides all GPUs from the runs
    environment: str = ""  # further environment variables handed to runs: names, or prefixes ending in *, by comma
    canary_steps: int = 0  # steps that the cheapest row of each arm trains before the others start; 0 = no such canaries
    stop_grace_seconds: float = 60.0  # after Ctrl-C: how long a run may take to save before it is killed

    def validate(self) -> None:
        _require_not_negative(self, "parallel", "gpus", "canary_steps")
        _require_positive(self, "threads", "stop_grace_seconds")
        environment_names(self.environment)

    @property
    def slots(self) -> int:
        """Runs that are alive at any time."""
        if self.parallel:
            return self.parallel
        return self.gpus or max(1, available_cores() // self.threads)


@dataclass(frozen=True, kw_only=True)
class SlurmCluster:
    """A SLURM cluster. A field left at None does not appear in the batch script."""

    executor: str = "slurm"  # always 'slurm'
    job_name: str = "lst"  # name of the jobs
    partition: str | None = None  # partition(s), by comma
    account: str | None = None  # account that is charged
    qos: str | None = None  # quality of service
    timeout_min: int | None = None  # time limit of a job, minutes
    mem_gb: float | None = None  # memory of a job, GB
    cpus_per_task: int | None = None  # CPUs of a job
    gpus_per_node: int | None = None  # GPUs of a machine that a run may use; None = as many as the run has
    constraint: str | None = None  # node features
    exclude: str | None = None  # nodes not to use
    nodelist: str | None = None  # nodes to use
    threads: int = 1  # CPU threads of a run (OMP, MKL and the like)
    environment: str = ""  # further environment variables handed to runs: names, or prefixes ending in *, by comma
    signal_seconds: int = 120  # seconds before the time limit at which a run is told to save and be queued again
    array_parallelism: int = 0  # jobs of an array at once; 0 = no limit of ours
    max_array_size: int = 1000  # jobs of one array; more rows make more arrays
    canary_steps: int = 5  # steps that the cheapest row of each arm trains before the others start; 0 = no such canaries
    options: tuple[tuple[str, str | int | bool], ...] = ()  # any other sbatch option by its long name; true = a bare flag

    def validate(self) -> None:
        _require_not_negative(self, "gpus_per_node", "array_parallelism", "canary_steps")
        _require_positive(self, "timeout_min", "mem_gb", "cpus_per_task", "threads", "signal_seconds", "max_array_size")
        environment_names(self.environment)
        if self.timeout_min is not None and 60 * self.timeout_min <= self.signal_seconds:
            raise ConfigError(
                f"cluster.timeout_min={self.timeout_min} leaves no time to train: runs save cluster.signal_seconds="
                f"{self.signal_seconds} seconds before that limit; raise the one or lower the other."
            )
        if self.mem_gb is not None and round(self.mem_gb * 1024) < 1:
            raise ConfigError(f"cluster.mem_gb={self.mem_gb:g} is less than 1 MB, which SLURM reads as all memory; give more.")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, str) and not value.isprintable():
                raise ConfigError(f"cluster.{field.name}={value!r} holds a line break or control character; give one line.")


@dataclass(frozen=True, kw_only=True)
class DebugCluster:
    """This very process, for one run."""

    executor: str = "debug"  # always 'debug'
    threads: int = 1  # CPU threads (OMP, MKL and the like)

    def validate(self) -> None:
        _require_positive(self, "threads")


Cluster = LocalCluster | SlurmCluster | DebugCluster
KINDS: dict[str, type[LocalCluster] | type[SlurmCluster] | type[DebugCluster]] = {
    "local": LocalCluster,
    "slurm": SlurmCluster,
    "debug": DebugCluster,
}
OWNED_OPTIONS = {
    "array": "max_array_size", "job-name": "job_name", "time": "timeout_min", "mem": "mem_gb", "signal": "signal_seconds",
    "output": None, "error": None, "open-mode": None, "comment": None, "wrap": None, "chdir": None, "ntasks-per-node": None,
}  # fmt: skip


def load_cluster(overrides: Sequence[str]) -> Cluster:
    """The cluster that `overrides` name (default: local). Raises ConfigError on an unknown name, key or value."""
    name, pairs = "local", []
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"'{override}' is no override; write key=value, as in cluster=local or parallel=2.")
        if key == "cluster":
            name = value
        else:
            text = f"'{value}'" if re.fullmatch(SEXAGESIMAL, value) else value  # 10:00 is a text here, and not 600
            pairs.append(f"{key.lstrip('+').removeprefix('cluster.')}={text}")
    return cluster_from_dict(_read(name, pairs))


def cluster_from_dict(values: dict[str, Any]) -> Cluster:
    """Strict reading of plain values; the key `executor` says which kind. Raises ConfigError."""
    kind = values.get("executor")
    if kind not in KINDS:
        raise ConfigError(f"cluster.executor={kind!r} is unknown; {did_you_mean(str(kind), KINDS)}")
    values = dict(values)
    options = values.pop("options", None) if kind == "slurm" else None
    cluster: Cluster = from_dict(KINDS[kind], values, "cluster")
    if options is not None and isinstance(cluster, SlurmCluster):
        cluster = dataclasses.replace(cluster, options=_options(options))
    cluster.validate()
    return cluster


def placement(cluster: SlurmCluster, gpus: int) -> tuple[int, int, int]:
    """(machines, processes on each, GPUs in all) of a run that the plan gives `gpus` GPUs. Raises LaunchError.

    A run that is planned without GPUs is one process, and gets one GPU where the cluster names any.
    """
    per_node = cluster.gpus_per_node
    if gpus == 0 or per_node == 0:
        return 1, 1, min(1, per_node or 0)
    if per_node is None or gpus <= per_node:
        return 1, gpus, gpus
    if gpus % per_node:
        raise LaunchError(
            f"a run of {gpus} GPUs does not fill machines of cluster.gpus_per_node={per_node}; give a divisor of {gpus}, or plan "
            "another number of GPUs."
        )
    return gpus // per_node, per_node, gpus


def environment_names(text: str) -> tuple[str, ...]:
    """Names and prefixes (ending in *) from a list by comma. Raises ConfigError."""
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    for name in names:
        if not ENVIRONMENT_NAME.fullmatch(name):
            raise ConfigError(
                f"cluster.environment holds {name!r}, which is no variable's name; give names such as HF_HOME or MY_*."
            )
    return names


def available_cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read(name: str, pairs: list[str]) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    path = Path(name) if name.endswith((".yaml", ".yml")) else CONF / f"{name}.yaml"
    if not path.is_file():
        if path.parent != CONF:
            raise ConfigError(f"cluster={name} does not exist; give the path of a YAML file, or local, slurm or debug.")
        known = sorted(p.stem for p in CONF.glob("*.yaml"))
        raise ConfigError(f"cluster='{name}' is unknown; {did_you_mean(name, known)}")
    try:
        _refuse_base_60(name, path)
        merged = OmegaConf.merge(OmegaConf.load(path), OmegaConf.from_dotlist(pairs))
        values = OmegaConf.to_container(merged, resolve=True)
    except ConfigError:
        raise
    except (OmegaConfBaseException, ValueError, OSError) as error:
        raise ConfigError(f"the cluster configuration '{name}' cannot be read: {str(error).splitlines()[0]}.") from error
    except Exception as error:  # the YAML parser's own errors have no common base that is public
        raise ConfigError(
            f"the cluster configuration '{name}' is no valid YAML: {' '.join(str(error).split())[:200]}."
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(f"the cluster configuration '{name}' is no mapping; give its fields by name.")
    return {str(key): value for key, value in values.items()}


def _refuse_base_60(name: str, path: Path) -> None:
    """Raise ConfigError where a value without quotes is a number of base 60 to YAML, as 10:00, which is 600."""
    import yaml  # type: ignore[import-untyped]

    def look(node: Any) -> None:
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(value, yaml.ScalarNode) and value.tag.endswith((":int", ":float")) and ":" in value.value:
                raise ConfigError(
                    f"the cluster configuration '{name}' says {key.value}: {value.value}, which YAML reads to base 60; write "
                    "the number that is meant, or quotes around a text."
                )
            look(value)

    with path.open(encoding="utf-8") as file:
        look(yaml.compose(file, yaml.SafeLoader))


def _options(values: object) -> tuple[tuple[str, str | int | bool], ...]:
    """Checked sbatch options; null and false mean absent."""
    if not isinstance(values, dict):
        raise ConfigError(f"cluster.options={values!r} is no mapping; write cluster.options.NAME=VALUE.")
    checked: dict[str, str | int | bool] = {}
    for key, value in values.items():
        name = str(key).replace("_", "-")
        if not OPTION_NAME.fullmatch(name):
            raise ConfigError(f"cluster.options.{key} is no sbatch option; give its long name, such as reservation.")
        field = name.replace("-", "_")
        owner = field if field in SlurmCluster.__dataclass_fields__ else OWNED_OPTIONS.get(name, "")
        if owner is None:
            raise ConfigError(f"cluster.options.{name} is set by the launcher itself; leave it out.")
        if owner:
            raise ConfigError(f"cluster.options.{name} has a field of its own; write cluster.{owner}=VALUE.")
        if value is None or value is False:
            continue
        if not isinstance(value, str | int) or (isinstance(value, str) and not value.isprintable()):
            raise ConfigError(f"cluster.options.{name}={value!r} must be one line of text, a whole number, or true.")
        checked[name] = value
    return tuple(sorted(checked.items()))


def _require_positive(cluster: Cluster, *names: str) -> None:
    for name in names:
        value = getattr(cluster, name)
        if value is not None and not value > 0:
            raise ConfigError(f"cluster.{name}={value} must be positive.")


def _require_not_negative(cluster: Cluster, *names: str) -> None:
    for name in names:
        value = getattr(cluster, name)
        if value is not None and value < 0:
            raise ConfigError(f"cluster.{name}={value} must not be negative.")
