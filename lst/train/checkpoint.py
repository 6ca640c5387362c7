"""Checkpoints of a run: written aside, sealed by checksums, renamed, pointed to last; read newest first, if they verify.

    checkpoints/step-00000123/   model.safetensors config.json      as lst.model.export
                                 optimizer.safetensors              exp_avg, exp_avg_sq and step of each parameter
                                 state.json                         step, counters, random states
                                 manifest.json                      SHA-256 of each file
    checkpoints/latest           name of the newest one
    checkpoints/final/           the finished run's weights, without the optimiser's

A kill at any moment leaves either the old newest checkpoint or the new one. Nothing here is executable (no pickle). Not
here: when to save (lst.train.trainer).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lst.config import RunConfig
from lst.errors import CheckpointError
from lst.model.export import load_weights, read_tensors, seal_folder, verify_folder, write_file, write_model, write_tensors
from lst.records import CHECKPOINTS, write_atomically

if TYPE_CHECKING:
    import torch
    from torch import nn

OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"
LATEST = "latest"
FINAL = "final"
KEPT = 2  # checkpoints that stay: the newest, and one before it in case the newest is damaged

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class TrainState:
    """Where a run stands. Everything that a resumed run needs beside tensors."""

    run_id: str
    step: int = 0  # optimiser steps done
    evaluated_step: int = 0  # last step whose evaluation is recorded
    train_flops: float = 0.0  # spent so far
    counts: dict[str, float] = field(default_factory=dict)  # SequenceCounts so far
    seconds: float = 0.0  # training wall clock of all attempts
    rng: dict[str, str] = field(default_factory=dict)  # generator -> state as hex digits


def step_folder(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def save_checkpoint(
    run_dir: Path, *, model: nn.Module, optimizer: torch.optim.Optimizer, config: RunConfig, state: TrainState
) -> Path:
    """Save everything a resume needs, as one folder; older ones beyond `KEPT` are removed. Raises OSError on a full disk."""
    root = run_dir / CHECKPOINTS
    target = step_folder(root, state.step)
    with _aside(target) as folder:
        files = write_model(folder, model, config)
        files[OPTIMIZER] = write_tensors(folder / OPTIMIZER, _optimizer_tensors(model, optimizer))
        files[STATE] = write_file(folder / STATE, (json.dumps(asdict(state), indent=1, sort_keys=True) + "\n").encode())
        seal_folder(folder, files)
    write_atomically(root / LATEST, (target.name + "\n").encode())
    for old in _newest_first(root)[KEPT:]:
        _remove(old)
    return target


def save_final(run_dir: Path, *, model: nn.Module, config: RunConfig) -> Path:
    """Write the finished run's weights to checkpoints/final/, whole or not at all."""
    target = run_dir / CHECKPOINTS / FINAL
    with _aside(target) as folder:
        seal_folder(folder, write_model(folder, model, config))
    return target


def remove_step_checkpoints(run_dir: Path) -> None:
    """Free the disk of a finished run: only checkpoints/final/ stays."""
    root = run_dir / CHECKPOINTS
    for folder in _newest_first(root):
        _remove(folder)
    (root / LATEST).unlink(missing_ok=True)


def resume(
    run_dir: Path, *, model: nn.Module, optimizer: torch.optim.Optimizer, config: RunConfig
) -> TrainState:
    """Load the newest checkpoint that verifies into `model` and `optimizer`; a fresh state where there is none.

    What is rejected is logged with the reason. Raises CheckpointError if a whole checkpoint belongs to another run.
    """
    root = run_dir / CHECKPOINTS
    root.mkdir(exist_ok=True)
    for leftover in root.glob(".*"):
        _remove(leftover) if leftover.is_dir() else leftover.unlink()
    for folder in _newest_first(root):
        try:
            verify_folder(folder)
            state = _read_state(folder)
        except CheckpointError as error:
            log.warning("rejected checkpoint %s: %s", folder.name, error)
            continue
        if state.run_id != config.run_id:
            raise CheckpointError(
                f"checkpoint '{folder}' belongs to run {state.run_id}, not to {config.run_id}; "
                "delete it to train this run from the start."
            )
        load_weights(model, folder / "model.safetensors")
        _load_optimizer(model, optimizer, read_tensors(folder / OPTIMIZER), folder)
        log.info("resumed from %s", folder.name)
        return state
    return TrainState(run_id=config.run_id)


def _read_state(folder: Path) -> TrainState:
    try:
        content: dict[str, Any] = json.loads((folder / STATE).read_text())
        return TrainState(**content)
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"'{folder / STATE}' is no state of this program: {error}") from error


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """`field.parameter` -> tensor, in the model's order, so that equal states give equal files."""
    return {
        f"{key}.{name}": value
        for name, parameter in model.named_parameters()
        for key, value in sorted(optimizer.state[parameter].items())
    }


def _load_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, stored: dict[str, torch.Tensor], folder: Path
) -> None:
    """Give each parameter its stored state. Raises CheckpointError on a tensor of no parameter."""
    parameters = dict(model.named_parameters())
    for full_name, tensor in stored.items():
        key, _, name = full_name.partition(".")
        if name not in parameters:
            raise CheckpointError(f"'{folder / OPTIMIZER}' has state of '{name}', which the model does not have; delete the checkpoint.")
        # `step` stays where AdamW keeps it: on the parameter's device where the kernel is fused, which is our default.
        optimizer.state[parameters[name]][key] = tensor.to(parameters[name].device)


def _newest_first(root: Path) -> list[Path]:
    return sorted((p for p in root.glob("step-*") if p.is_dir()), reverse=True)


@contextlib.contextmanager
def _aside(target: Path) -> Iterator[Path]:
    """A folder to fill, renamed to `target` at the end and removed if anything fails."""
    target.parent.mkdir(exist_ok=True)
    folder = target.parent / f".{target.name}"
    _remove(folder)
    folder.mkdir()
    try:
        yield folder
        _sync_folder(folder)
        if target.exists():  # the same step saved again, or a damaged one that resume rejected
            _remove(target)
        folder.rename(target)
        _sync_folder(target.parent)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _remove(folder: Path) -> None:
    """Remove a folder so that a kill in between leaves no half of it under its own name."""
    if folder.name.startswith("."):
        shutil.rmtree(folder, ignore_errors=True)
        return
    doomed = folder.with_name(f".old-{folder.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
