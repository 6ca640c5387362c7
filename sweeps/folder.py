"""A plan on disk: there whole or not at all, and never in place of another one (docs/run_folder.md).

A new folder is written aside and renamed. An existing plan is compared: the same plan changes no byte (a file that was
lost or damaged is put back), another one is refused, and `widen` lets a plan grow that keeps all its rows. Runs are written
before plan.csv, and study.yaml, which counts the rows, after it: an interrupted widening leaves a table whose runs are there. One
planner at a time works in a folder; what one that was killed left aside goes with the next. Not here: what the files say
(`sweeps.plan`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import functools
import glob
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from lst.config import RunConfig
from lst.errors import PlanError
from lst.plain import kept, to_dict
from lst.records import EVALUATION, RUN_CONFIG, STUDY_FILE, write_atomically
from sweeps.columns import BRANCH, EVAL, PLAN_TABLE, format_value, read_rows

REFERENCES = "references.json"
RUNS = "runs"
LEFT_SECONDS = 60  # a folder aside that is younger may not have got its lock yet
ASIDE = ".plan-sweep"  # how the name of a folder ends that is being written


class Written(StrEnum):
    """What writing a plan did."""

    NEW = "new"
    UNCHANGED = "unchanged"
    WIDENED = "widened"


def run_file(run_id: str) -> str:
    """Path of a run's configuration inside the study's folder."""
    return f"{RUNS}/{run_id}/{RUN_CONFIG}"


def evaluation_file(run_id: str) -> str:
    """Path of what a row of kind eval is to do, inside the study's folder."""
    return f"{RUNS}/{run_id}/{EVALUATION}"


def run_yaml(config: RunConfig) -> str:
    """The text of the run.yaml of `config`, as `python -m lst.train` reads it."""
    sections = [f"  {name}:\n{section_yaml(getattr(config, name))}" for name in _SECTIONS]
    return f"run_id: {_quoted(config.run_id)}\nconfig:\n{''.join(sections)}"


def section_yaml(section: Any) -> str:
    """A section's lines inside run.yaml, made once; runs of a plan share most sections, and their text."""
    return kept(section, "_yaml", lambda config: "".join(_yaml_lines(to_dict(config), 2)))


_SECTIONS = tuple(field.name for field in dataclasses.fields(RunConfig))


def write_run(config: RunConfig, study: Path | str) -> Path:
    """Write run.yaml for one configuration that no study reaches; its folder, STUDY/runs/<run_id>.

    Raises ConfigError on a configuration that cannot be, PlanError where the folder's run.yaml is another one (the same run
    placed otherwise, for instance) or cannot be written.
    """
    config.validate()
    file = Path(study) / run_file(config.run_id)
    data = run_yaml(config).encode()
    try:
        if file.is_file() and file.read_bytes() != data:
            raise PlanError(f"'{file}' is there and differs; choose another folder, or delete it.")
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, data)
    except OSError as error:
        raise PlanError(f"'{file}' cannot be written ({error.strerror or error}); choose another folder.") from error
    return file.parent


def write_plan(out: Path, files: Mapping[str, bytes], references: Callable[[], bytes] | None, *, widen: bool = False) -> Written:
    """Write `files` (by path inside `out`) and references.json, which is made only where it is needed (None: never).

    Raises PlanError where `out` is a file, holds something else or another plan, or the disk is full; nothing is
    half-written then.
    """
    try:
        if out.exists() and not out.is_dir():
            raise PlanError(f"out={out} is a file; choose a folder.")
        if not out.exists() or not any(out.iterdir()):
            if out.resolve() == Path.cwd():
                raise PlanError(
                    f"out={out} is the folder that you are in, and it is empty; give its name from outside, or another."
                )
            if _write_new(out.resolve(), {**files, **({REFERENCES: references()} if references else {})}):
                return Written.NEW
        with _locked(out):
            _remove_leftovers(out.resolve())
            return _write_over(out, files, references, widen=widen)
    except OSError as error:
        remedy = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "choose another folder"
        raise PlanError(f"out={out} cannot be written ({error.strerror or error}); {remedy} and plan again.") from error


def to_yaml(content: Mapping[str, Any]) -> str:
    """Block YAML that OmegaConf (and any YAML reader) reads back exactly: strings quoted, floats with a point and a sign."""
    return "".join(_yaml_lines(content, 0))


def from_yaml(text: str) -> dict[str, Any]:
    """What `to_yaml` wrote, read back: block mappings whose scalars and lists are JSON. Raises ValueError on anything else.

    Ten times as fast as a YAML reader, which matters where a plan has thousands of runs.
    """
    root: dict[str, Any] = {}
    open_mappings = [root]
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        name = key.lstrip(" ")
        depth, odd = divmod(len(key) - len(name), 2)
        if not colon or odd or depth >= len(open_mappings) or name in open_mappings[depth]:
            raise ValueError(f"'{line}' is not as this program writes it")
        del open_mappings[depth + 1 :]
        if value:
            open_mappings[depth][name] = json.loads(value)
        else:
            inner: dict[str, Any] = {}
            open_mappings[depth][name] = inner
            open_mappings.append(inner)
    return root


def _write_new(out: Path, files: Mapping[str, bytes]) -> bool:
    """Whether `out` is the plan now: another planner may have been there first."""
    out.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(out)
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=ASIDE, dir=out.parent))
    try:
        with _locked(aside):
            (aside / RUNS).mkdir()
            for name, data in files.items():
                folder = name.rpartition("/")[0]  # of a run, which has one file
                if folder:
                    os.mkdir(f"{aside}/{folder}")  # noqa: PTH102  # without a Path for each
                _write_file(f"{aside}/{name}", data)
            aside.chmod(0o755)
            aside.rename(out)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST) and out.is_dir():
            return False
        raise
    return True


@contextlib.contextmanager
def _locked(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Whether the lock of the folder's one writer is held. Where the filesystem has no locks it is not, and nobody waits."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield _flock(file, wait=wait)
    finally:
        os.close(file)


def _flock(file: int, *, wait: bool) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def _remove_leftovers(out: Path) -> None:
    """Remove what planners of `out` left aside that were killed: it is old, and nobody holds its lock."""
    for aside in out.parent.glob(f".{glob.escape(out.name)}.*{ASIDE}"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - aside.stat().st_mtime > LEFT_SECONDS:
                with _locked(aside, wait=False) as left:
                    if left:
                        shutil.rmtree(aside, ignore_errors=True)


def _write_file(path: str, data: bytes) -> None:
    """A new file. Without a buffer or an object for each: a plan has thousands."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(file, view) :]
    finally:
        os.close(file)


def _write_over(out: Path, files: Mapping[str, bytes], references: Callable[[], bytes] | None, *, widen: bool) -> Written:
    same = [name for name, data in files.items() if _content(out / name) == data]
    known = _is_the_same(out, files)
    if not known:
        _require_growth(out, files, widen=widen)
    missing = [name for name in files if name not in same]
    remake_references = not known or not (out / REFERENCES).is_file()
    # configurations before the table: a plan.csv never names a run that is not there
    for name in sorted(missing, key=lambda name: (name == STUDY_FILE, name == PLAN_TABLE, name)):
        if name == PLAN_TABLE and references and remake_references:
            write_atomically(out / REFERENCES, references())
            remake_references = False
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out / name, files[name])
    if remake_references and references:
        write_atomically(out / REFERENCES, references())
    return Written.UNCHANGED if known else Written.WIDENED


def _is_the_same(out: Path, files: Mapping[str, bytes]) -> bool:
    """Whether `out` holds this plan, whose plan.csv and study.yaml may be lost, or cut to their beginning.

    Without its table it is known by its study and runs, without both by its runs alone: their ids are hashes of them.
    """
    ours = {name: files.get(name, b"") for name in (PLAN_TABLE, STUDY_FILE)}
    found = {name: _content(out / name) or b"" for name in ours}
    if not all(ours[name].startswith(found[name]) for name in ours):
        return False
    if found[PLAN_TABLE] == ours[PLAN_TABLE]:
        return True
    runs, planned = set(_run_files(out)), {name for name in files if name.startswith(f"{RUNS}/")}
    return runs <= planned if found[STUDY_FILE] == ours[STUDY_FILE] else bool(runs) and runs == planned


def _run_files(out: Path) -> dict[str, str]:
    """run_id by the file that says what the run is, of the runs that are there."""
    found = {}
    for folder in sorted((out / RUNS).iterdir()) if (out / RUNS).is_dir() else ():
        for name in (run_file(folder.name), evaluation_file(folder.name)):
            if (out / name).is_file():
                found[name] = folder.name
    return found


def _planned_files(out: Path) -> dict[str, str]:
    """The same of the plan in `out`, by its table, else by the runs that are there. Raises PlanError where it is no plan."""
    try:
        rows = [row for row in read_rows(out) if row.admitted and row.kind != BRANCH]
    except PlanError:
        if runs := _run_files(out):
            return runs
        if (out / PLAN_TABLE).is_file():
            raise
        raise PlanError(f"out={out} holds other files and no plan of ours; choose another folder.") from None
    return {
        (evaluation_file if row.kind == EVAL else run_file)(row.run_id): (
            f"{row.run_id} ({row.arm}, {row.size}, {row.flops_budget:.3g} FLOPs)"
        )
        for row in rows
    }


def _require_growth(out: Path, files: Mapping[str, bytes], *, widen: bool) -> None:
    """PlanError unless `out` holds a plan whose admitted rows all stay, and widening was asked for."""
    old = _planned_files(out)
    lost = [run for name, run in old.items() if name not in files]
    if lost:
        raise PlanError(
            f"out={out} holds another plan: {len(lost)} of its {len(old)} runs are not in this one, the first is {lost[0]}; "
            "choose another folder (with make demo: DIR=studies/NAME), or delete this one."
        )
    if not widen:
        raise PlanError(
            f"out={out} holds another plan, though all its {len(old)} runs are in this one too; "
            "add --widen to replace it and keep them, or choose another folder."
        )


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _yaml_lines(content: Mapping[str, Any], depth: int) -> list[str]:
    lines = []
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            lines += [f"{'  ' * depth}{key}:\n", *_yaml_lines(value, depth + 1)]
        else:
            lines.append(f"{'  ' * depth}{key}: {_yaml_value(value)}\n")
    return lines


def _yaml_value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_yaml_value(item) for item in value)}]"
    if isinstance(value, Mapping):
        return "{}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return _quoted(value)
    text = format_value(value)
    # YAML 1.1 reads 1e+18 as a string: a float needs its point
    return text.replace("e", ".0e", 1) if isinstance(value, float) and "e" in text and "." not in text else text


@functools.lru_cache(maxsize=4096)
def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=not text.isprintable())
