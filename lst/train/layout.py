"""The folder checkpoints/ of a run: names, and changes that a kill cannot leave half-done. No torch.

A folder is filled under a hidden name and renamed; it goes by being renamed to a hidden name first. So whatever stands
under its own name is whole, and hidden names are leftovers. Not here: what a checkpoint holds (lst.train.checkpoint).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from lst.records import CHECKPOINTS, FAILURE

LATEST = "latest"
FINAL = "final"
_STEP = re.compile(r"step-[0-9]{8}")


def checkpoint_root(run_dir: Path, branch: int | None = None) -> Path:
    """The folder of a run's step checkpoints, or of those of its branch of `branch` steps."""
    root = run_dir / CHECKPOINTS
    return root if branch is None else root / f"branch-{branch:08d}"


def budget_folder(run_dir: Path, steps: int) -> Path:
    """Where the branch of `steps` steps leaves its weights."""
    return run_dir / CHECKPOINTS / f"budget-{steps}"


def kept_folder(run_dir: Path, step: int) -> Path:
    """Where a run leaves its weights after `step` steps (execution.keep_steps)."""
    return run_dir / CHECKPOINTS / f"kept-{step}"


def remove_branches(run_dir: Path, *, but: int | None = None) -> None:
    """Remove the step checkpoints of branches, except those of branch `but`."""
    for folder in (run_dir / CHECKPOINTS).glob("branch-*"):
        if but is None or folder != checkpoint_root(run_dir, but):
            remove_folder(folder)


def step_folder(root: Path, step: int) -> Path:
    return root / f"step-{step:08d}"


def newest_first(root: Path) -> list[Path]:
    """The step checkpoints in `root`: folders named as `step_folder` names them, for others are not ours."""
    return sorted((p for p in root.glob("step-*") if _STEP.fullmatch(p.name) and p.is_dir()), reverse=True)


@contextlib.contextmanager
def aside(target: Path) -> Iterator[Path]:
    """A folder to fill, flushed and renamed to `target` at the end, or removed if anything fails."""
    target.parent.mkdir(exist_ok=True)
    folder = target.with_name(f".{target.name}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
        flush_to_disk(folder)
        if target.exists():  # a damaged one that resume rejected, or the same step before its evaluation
            remove_folder(target)
        folder.rename(target)
        flush_to_disk(target.parent)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def remove_folder(folder: Path) -> None:
    doomed = folder.with_name(f".old-{folder.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def remove_leftovers(root: Path) -> None:
    """Remove what a kill left under hidden names."""
    for path in root.glob(".*"):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()


def clean_up(run_dir: Path) -> None:
    """What goes when a run is complete: its step checkpoints (final/ and budget-*/ stay) and the record of an earlier failure."""
    root = run_dir / CHECKPOINTS
    for folder in newest_first(root):
        remove_folder(folder)
    remove_branches(run_dir)
    if root.is_dir():
        remove_leftovers(root)
    if not (root / LATEST).is_dir():  # nothing of ours
        (root / LATEST).unlink(missing_ok=True)
    (run_dir / FAILURE).unlink(missing_ok=True)


def flush_to_disk(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
