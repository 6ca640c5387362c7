"""Checkpoints of a run: written aside, sealed by checksums, renamed, pointed to last; read newest first, if they verify.

    checkpoints/step-00000123/   model.safetensors config.json      as lst.model.export
                                 optimizer.safetensors              steps_done, exp_avg and exp_avg_sq of each parameter
                                 state.json                         step, counters, random states
                                 manifest.json                      SHA-256 of each file
    checkpoints/latest           name of the newest one
    checkpoints/branch-00000080/ the same two kinds, of a branch in progress (lst.train.branches)
    checkpoints/final/           the finished run's weights, without the optimiser's
    checkpoints/budget-80/       the same of a finished branch, with tag.json
    checkpoints/kept-40/         the same of the weights after a step of execution.keep_steps

A kill at any moment leaves either the old newest checkpoint or the new one. Nothing here is executable (no pickle). Not
here: when to save (lst.train.trainer).
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lst.config import RunConfig
from lst.errors import CheckpointError
from lst.model.export import (
    MODEL,
    load_tensors,
    model_tensors,
    seal_folder,
    verify_folder,
    write_config,
    write_file,
    write_tensors,
)
from lst.records import CHECKPOINTS, KEPT_CHECKPOINTS, write_atomically
from lst.train.distributed import Ranks
from lst.train.fence import require_lease
from lst.train.gathering import Piece, pieces, whole_tensors
from lst.train.layout import (
    FINAL,
    LATEST,
    aside,
    budget_folder,
    checkpoint_root,
    kept_folder,
    newest_first,
    remove_folder,
    remove_leftovers,
    step_folder,
)
from lst.train.sharding import row_range

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lst.train.optim import AdamW

OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"
TAG = "tag.json"  # of a branch's weights: which budget they are of

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


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What a checkpoint will hold, of one moment, as one rank has it."""

    step: int
    branch: int | None
    config: RunConfig
    state: str  # TrainState as JSON
    model: dict[str, Piece]
    optimizer: dict[str, Piece]

    @classmethod
    def take(cls, *, model: nn.Module, optimizer: AdamW, config: RunConfig, state: TrainState, copy: bool = False) -> Snapshot:
        """Of the run as it stands. `copy` puts tensors into the CPU's memory, so that training may go on meanwhile."""
        text = json.dumps(asdict(state), indent=1, sort_keys=True) + "\n"
        weights, moments = pieces(model_tensors(model), copy=copy), pieces(optimizer.tensors(), copy=copy)
        return cls(step=state.step, branch=state.branch, config=config, state=text, model=weights, optimizer=moments)

    @property
    def pieces(self) -> Iterator[Piece]:
        return itertools.chain(self.model.values(), self.optimizer.values())


def save_checkpoint(run_dir: Path, snapshot: Snapshot, ranks: Ranks | None = None) -> Path:
    """Write everything a resume needs, as one folder; older ones are removed. Raises OSError on a full disk.

    Called by all ranks: they hand their rows to rank 0, a tensor at a time, and it writes.
    """
    root = checkpoint_root(run_dir, snapshot.branch)
    target = step_folder(root, snapshot.step)
    with whole_tensors(snapshot.pieces, ranks or Ranks()) as values:
        if values is not None:
            require_lease(run_dir)
            root.mkdir(parents=True, exist_ok=True)
            with aside(target) as folder:
                files = _write_model(folder, snapshot.model, values, snapshot.config)
                files[OPTIMIZER] = write_tensors(folder / OPTIMIZER, snapshot.optimizer, values)
                files[STATE] = write_file(folder / STATE, snapshot.state.encode())
                seal_folder(folder, files)
                require_lease(run_dir)
            write_atomically(root / LATEST, (target.name + "\n").encode())
            for old in newest_first(root)[KEPT_CHECKPOINTS:]:
                remove_folder(old)
    return target


def save_final(run_dir: Path, *, model: nn.Module, config: RunConfig, ranks: Ranks | None = None) -> Path:
    """Write the finished run's weights to checkpoints/final/, whole or not at all. Called by all ranks."""
    require_lease(run_dir)
    return _save_weights(run_dir / CHECKPOINTS / FINAL, model, config, ranks or Ranks())


def save_kept(run_dir: Path, *, model: nn.Module, config: RunConfig, tag: dict[str, Any], ranks: Ranks | None = None) -> Path:
    """Write the weights as they are on the way, and their `tag`, to checkpoints/kept-<step>/, whole or not at all."""
    require_lease(run_dir)
    return _save_weights(kept_folder(run_dir, tag["step"]), model, config, ranks or Ranks(), {TAG: tag})


def save_budget(run_dir: Path, *, model: nn.Module, config: RunConfig, tag: dict[str, Any], ranks: Ranks | None = None) -> Path:
    """Write the weights of a finished branch and its `tag` to checkpoints/budget-<S>/, whole or not at all."""
    require_lease(run_dir)
    return _save_weights(budget_folder(run_dir, tag["branch"]), model, config, ranks or Ranks(), {TAG: tag})


def _save_weights(
    target: Path, model: nn.Module, config: RunConfig, ranks: Ranks, extra: dict[str, dict[str, Any]] | None = None
) -> Path:
    tensors = pieces(model_tensors(model), copy=False)
    with whole_tensors(tensors.values(), ranks) as values:
        if values is not None:
            with aside(target) as folder:
                files = _write_model(folder, tensors, values, config)
                for name, content in (extra or {}).items():
                    files[name] = write_file(folder / name, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())
                seal_folder(folder, files)
    return target


def resume(
    run_dir: Path,
    *,
    model: nn.Module,
    optimizer: AdamW,
    config: RunConfig,
    branch: int | None = None,
    ranks: Ranks | None = None,
) -> TrainState:
    """Load the newest checkpoint (of `branch`) that verifies into `model` and `optimizer`; a fresh state where there is none.

    Rank 0 verifies and chooses, each rank reads its own rows, whatever the number of ranks that wrote. What is rejected is
    logged with the reason. Raises CheckpointError if a whole checkpoint belongs to another run.
    """
    ranks = ranks or Ranks()
    root = checkpoint_root(run_dir, branch)
    step = ranks.of_first(ranks.together(lambda: _newest_whole(root, config) if ranks.first else 0))
    if step < 0:
        return TrainState(run_id=config.run_id)
    folder = step_folder(root, int(step))

    def load() -> TrainState:
        rows = functools.partial(row_range, rank=ranks.rank, size=ranks.size)
        load_tensors(folder / MODEL, model_tensors(model), own_rows=rows)
        load_tensors(folder / OPTIMIZER, optimizer.tensors(), own_rows=rows)
        return _read_state(folder)

    return ranks.together(load)


def _newest_whole(root: Path, config: RunConfig) -> int:
    """The step of the newest checkpoint that verifies, -1 if there is none. Its folder is `step_folder` of that step."""
    root.mkdir(parents=True, exist_ok=True)
    if (root / LATEST).is_dir():
        raise CheckpointError(f"'{root / LATEST}' is a folder, where the newest checkpoint's name is to stand; move it away.")
    remove_leftovers(root)
    for folder in newest_first(root):
        try:
            verify_folder(folder, also=(OPTIMIZER, STATE))
            state = _read_state(folder)
            if step_folder(root, state.step) != folder:
                raise CheckpointError(f"its state is of step {state.step}, its name says another.")
        except CheckpointError as error:
            log.warning("rejected checkpoint %s: %s", folder.name, error)
            continue
        if state.run_id != config.run_id:
            raise CheckpointError(
                f"checkpoint '{folder}' belongs to run {state.run_id}, not to {config.run_id}; "
                "delete it to train this run from the start."
            )
        return state.step
    return -1


def _write_model(folder: Path, tensors: dict[str, Piece], values: Iterator[torch.Tensor], config: RunConfig) -> dict[str, str]:
    return {MODEL: write_tensors(folder / MODEL, tensors, values), **write_config(folder, config)}


def _read_state(folder: Path) -> TrainState:
    try:
        content: dict[str, Any] = json.loads((folder / STATE).read_text())
        return TrainState(**content)
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"'{folder / STATE}' is no state of this program: {error}") from error
