"""A run's folder as the trainer sees it: its configuration, its lock, its attempts, how it ended.

docs/run_folder.md is the contract. Not here: records (lst.records) and checkpoints (lst.train.checkpoint).
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from lst.config import RunConfig
from lst.errors import ConfigError, RunFailed
from lst.records import EXIT, FAILURE, RUN_CONFIG, read_json, write_json
from lst.train.failures import failure_cause, failure_class, traceback_tail

LOCK = ".lock"
LOCK_BYTES = 512
PACKAGES = ("lst-scaling", "numpy", "pyarrow", "safetensors", "sentencepiece", "torch")

log = logging.getLogger(__name__)


def read_run_config(run_dir: Path) -> RunConfig:
    """The configuration in run.yaml. Raises ConfigError if it is missing, malformed, or its run_id is not its content's."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    file = require_run_config(run_dir)
    try:
        content = OmegaConf.to_container(OmegaConf.load(file), resolve=True)
    except (OSError, ValueError, OmegaConfBaseException) as error:
        raise ConfigError(f"'{file}' cannot be read ({error}); plan the study again.") from error
    except Exception as error:  # PyYAML's errors, whose module OmegaConf alone may import
        if type(error).__module__.partition(".")[0] != "yaml":
            raise
        raise ConfigError(f"'{file}' is not YAML ({' '.join(str(error).split())}); plan the study again.") from error
    if not isinstance(content, dict) or set(content) != {"run_id", "config"}:
        raise ConfigError(f"'{file}' must hold exactly run_id and config; plan the study again.")
    config = RunConfig.from_dict(content["config"])
    if config.run_id != content["run_id"]:
        raise ConfigError(
            f"'{file}' says run_id={content['run_id']}, its configuration's is {config.run_id}; "
            "it was edited, so plan the study again."
        )
    return config


def require_run_config(run_dir: Path) -> Path:
    """The path of run.yaml. Raises ConfigError if there is none."""
    file = run_dir / RUN_CONFIG
    if not file.is_file():
        raise ConfigError(f"'{run_dir}' has no {RUN_CONFIG}; give the folder of a planned run, DIR/runs/<run_id>.")
    return file


class RunLock:
    """One trainer a run: an advisory lock on RUN_DIR/.lock, which also counts attempts. The kernel frees it on any exit."""

    def __init__(self, run_dir: Path) -> None:
        """Raises RunFailed if another process trains this run or nothing can be written, ConfigError if .lock is no lock."""
        file = run_dir / LOCK
        try:
            self._file = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        except IsADirectoryError as error:
            raise ConfigError(f"'{file}' is a folder, where a run's lock is to be; move it away.") from error
        except OSError as error:
            raise RunFailed(f"'{file}' cannot be written ({error.strerror}); make it writable and run it again.") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = self._read()
            os.close(self._file)
            raise RunFailed(
                f"run '{run_dir}' is being trained by process {holder.get('pid', '?')} on {holder.get('host', '?')}; "
                "wait for it, or stop it first."
            ) from error
        except OSError as error:  # a filesystem without locks
            log.warning("cannot lock '%s' (%s); make sure that no other process trains this run", run_dir, error.strerror)
        before = self._read().get("attempt", 0)
        if type(before) is not int or before < 0:
            os.close(self._file)
            raise ConfigError(f"'{file}' has attempt={before!r}, which counts no attempts; delete the file.")
        self.attempt = before + 1
        content = {"attempt": self.attempt, "pid": os.getpid(), "host": os.uname().nodename, "time": time.time()}
        # One write over the old text, padded to cover it: a kill in between leaves no empty file, which would lose the count.
        try:
            os.pwrite(self._file, json.dumps(content).ljust(LOCK_BYTES).encode(), 0)
        except OSError as error:
            os.close(self._file)
            raise RunFailed(f"'{file}' cannot be written ({error.strerror}); free some space and run it again.") from error

    def release(self) -> None:
        os.close(self._file)

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(os.pread(self._file, LOCK_BYTES, 0))
        except ValueError:
            return {}
        return content if isinstance(content, dict) else {}


def is_complete(run_dir: Path, config: RunConfig) -> bool:
    """Whether the run is done. Raises ConfigError if the folder holds another run's results."""
    ended = read_json(run_dir / EXIT)
    if ended is None:
        return False
    if ended.get("run_id") != config.run_id:
        raise ConfigError(f"'{run_dir / EXIT}' belongs to run {ended.get('run_id')}, not to {config.run_id}; use another folder.")
    return ended.get("status") == "done"


def write_failure(run_dir: Path, error: BaseException, *, run_id: str, attempt: int, step: int) -> str:
    """Write failure.json; its cause. A disk too full even for that is logged and changes nothing."""
    cause = failure_cause(error, run_dir)
    content = {
        "run_id": run_id,
        "class": failure_class(error),
        "cause": cause,
        "traceback": traceback_tail(error),
        "attempt": attempt,
        "step": step,
        "node": os.uname().nodename,
        "time": time.time(),
    }
    try:
        write_json(run_dir / FAILURE, content)
    except OSError as full:
        log.error("cannot write %s: %s", FAILURE, full)
    return cause


def versions() -> dict[str, str]:
    """Versions of what a run's result may depend on, of the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
