"""Checkpoints of a run: written aside, sealed by checksums, renamed, pointed to last; read newest first, if they verify.

    checkpoints/step-00000123/   model.safetensors config.json      as lst.model.export
                                 optimizer.safetensors              steps_done, exp_avg and exp_avg_sq of each parameter
                                 state.json                         step, counters, random states
                                 manifest.json                      SHA-256 of each file
    checkpoints/latest           name of the newest one
    checkpoints/branch-00000080/ the same two kinds, of a branch in progress (lst.train.branches)
    checkpoints/final/           the finished run's weights, without the optimiser's
    checkpoints/budget-80/       the same of a finished branch, with tag.json

A kill at any moment leaves either the old newest checkpoint or the new one. Nothing here is executable (no pickle). Not
here: when to save (lst.train.trainer).
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lst.config import RunConfig
from lst.errors import CheckpointError
from lst.model.export import MODEL, copy_tensors, load_weights, seal_folder, verify_folder, write_file, write_model, write_tensors
from lst.records import CHECKPOINTS, write_atomically
from lst.train.layout import (
    FINAL,
    LATEST,
    aside,
    budget_folder,
    checkpoint_root,
    newest_first,
    remove_folder,
    remove_leftovers,
    step_folder,
)

if TYPE_CHECKING:
    from torch import nn

    from lst.train.optim import AdamW

OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"
TAG = "tag.json"  # of a branch's weights: which budget they are of
KEPT = 2  # checkpoints that stay: the newest, and one before it in case the newest is damaged

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class TrainState:
    """Where a run stands. Everything that a resumed run needs beside tensors."""

    run_id: str
    step: int = 0  # optimiser steps done
    evaluated_step: int = 0  # last step whose evaluation is recorded
    train_flops: float = 0.0  # on the way to these weights
    spent_flops: float = 0.0  # the same and what branches have spent
    counts: dict[str, float] = field(default_factory=dict)  # SequenceCounts so far
    seconds: float = 0.0  # training wall clock of all attempts
    warm_start: dict[str, Any] = field(default_factory=dict)  # what was loaded from train.init_from, once it was
    rng: dict[str, str] = field(default_factory=dict)  # generator -> state as hex digits
    records: dict[str, dict[str, Any]] = field(default_factory=dict)  # file -> Position (lst.records) it had reached
    branch: int | None = None  # steps of the branch that this is the state of
    branches: list[dict[str, Any]] = field(default_factory=list)  # finished ones (lst.train.branches)
    skipped: list[int] = field(default_factory=list)  # steps that were skipped (lst.train.bad_steps)
    loss_mean: float = 0.0  # running mean of the good steps' losses
    losses_seen: int = 0  # good steps
    out_of_memory: list[dict[str, Any]] = field(default_factory=list)  # smaller micro-batches (lst.train.micro_batches)


def save_checkpoint(run_dir: Path, *, model: nn.Module, optimizer: AdamW, config: RunConfig, state: TrainState) -> Path:
    """Save everything a resume needs, as one folder; older ones beyond `KEPT` are removed. Raises OSError on a full disk."""
    root = checkpoint_root(run_dir, state.branch)
    root.mkdir(parents=True, exist_ok=True)
    target = step_folder(root, state.step)
    with aside(target) as folder:
        files = write_model(folder, model, config)
        files[OPTIMIZER] = write_tensors(folder / OPTIMIZER, optimizer.tensors())
        files[STATE] = write_file(folder / STATE, (json.dumps(asdict(state), indent=1, sort_keys=True) + "\n").encode())
        seal_folder(folder, files)
    write_atomically(root / LATEST, (target.name + "\n").encode())
    for old in newest_first(root)[KEPT:]:
        remove_folder(old)
    return target


def save_final(run_dir: Path, *, model: nn.Module, config: RunConfig) -> Path:
    """Write the finished run's weights to checkpoints/final/, whole or not at all."""
    return _save_weights(run_dir / CHECKPOINTS / FINAL, model, config)


def save_budget(run_dir: Path, *, model: nn.Module, config: RunConfig, tag: dict[str, Any]) -> Path:
    """Write the weights of a finished branch and its `tag` to checkpoints/budget-<S>/, whole or not at all."""
    return _save_weights(budget_folder(run_dir, tag["branch"]), model, config, {TAG: tag})


def _save_weights(target: Path, model: nn.Module, config: RunConfig, extra: dict[str, dict[str, Any]] | None = None) -> Path:
    with aside(target) as folder:
        files = write_model(folder, model, config)
        for name, content in (extra or {}).items():
            files[name] = write_file(folder / name, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())
        seal_folder(folder, files)
    return target


def resume(run_dir: Path, *, model: nn.Module, optimizer: AdamW, config: RunConfig, branch: int | None = None) -> TrainState:
    """Load the newest checkpoint (of `branch`) that verifies into `model` and `optimizer`; a fresh state where there is none.

    What is rejected is logged with the reason. Raises CheckpointError if a whole checkpoint belongs to another run.
    """
    root = checkpoint_root(run_dir, branch)
    root.mkdir(parents=True, exist_ok=True)
    remove_leftovers(root)
    for folder in newest_first(root):
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
        load_weights(model, folder / MODEL)
        copy_tensors(folder / OPTIMIZER, optimizer.tensors())
        log.info("resumed from %s", folder.name)
        return state
    return TrainState(run_id=config.run_id)


def _read_state(folder: Path) -> TrainState:
    try:
        content: dict[str, Any] = json.loads((folder / STATE).read_text())
        return TrainState(**content)
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"'{folder / STATE}' is no state of this program: {error}") from error
