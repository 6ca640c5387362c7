"""A run that starts from trained weights: those of another run, or of a text-only model (as TWIST and SpiritLM start).

`train.init_from=run:<run_id>` takes all weights of that run, which has the same network (fine-tuning; lst.parent_run). Else
`train.init_from` names the weights by content (lst.weight_files.weights_hash, part of the run's identity),
`execution.init_path` says where they are: a checkpoint of this program, a finished run, or a Hugging Face Llama folder.

    taken            every layer of the global transformer and its norm; shapes must be equal, positions rotary of one theta
    baseline, bpe    rows of the embedding and the head, where their ids mean the same: all of them if both vocabularies are
                     equal (of bpe: and its pieces are the same), the text pieces if only those are
    random           the rest: local modules, rows of speech tokens and markers, embedding and head of the LST arms

Equal numbers of text pieces are taken for equal tokenizers, which nothing in the weights can tell. Not here: resuming, which
never reads these weights again (lst.train.checkpoint).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lst.config import Arm, ModelConfig, RunConfig
from lst.data.vocab import Vocabulary
from lst.errors import CheckpointError, ConfigError
from lst.flops import parameter_counts
from lst.model.export import CONFIG, model_tensors, read_config, read_tensors, require_count, verify_folder
from lst.parent_run import parent_of, parent_weights
from lst.plain import to_dict
from lst.weight_files import MODEL, checkpoint_folder, weights_hash

if TYPE_CHECKING:
    import torch
    from torch import nn

GLOBAL = "global_transformer."
EMBEDDING, HEAD = "embedding.weight", "head.weight"


@dataclass(frozen=True)
class Source:
    """Weights to start from, under our names."""

    path: Path
    model: ModelConfig  # their shape; of a Llama folder without our configuration, all ids count as text
    text_only: bool  # whether all ids are text
    tensors: dict[str, torch.Tensor]
    speech_bpe_id: str = ""  # arm `bpe`: which pieces its speech ids are, where that is known

    @property
    def ids(self) -> int:
        return self.model.text_vocab if self.text_only else _size(self.model)


def warm_start(model: nn.Module, config: RunConfig, run_dir: Path = Path()) -> dict[str, Any]:
    """Copy the weights that `config` names into `model` (in place); what was loaded and what stayed random, for the records.

    `run_dir` is the run's folder, beside which a parent run is looked for. Raises ConfigError without a path, CheckpointError if
    the folder holds other weights, misses a tensor or does not fit; nothing is copied then.
    """
    import torch

    if parent := parent_of(config.train.init_from):
        return _continue(model, config, parent_weights(run_dir, parent, config.execution.init_path))
    source = open_source(config)
    _require_equal_shapes(source, config.model)
    targets = model_tensors(model)
    pairs = {name: (source.tensors.get(name), target) for name, target in targets.items() if name.startswith(GLOBAL)}
    for name in source.tensors:
        if name.startswith(GLOBAL) and name not in pairs:
            raise CheckpointError(f"tensor '{name}' of '{source.path}' is in no place of the run's global transformer.")
    for name, (found, target) in pairs.items():
        if found is None:
            raise CheckpointError(f"'{source.path}' lacks the tensor '{name}' of the run's global transformer.")
        if found.shape != target.shape:
            raise CheckpointError(
                f"tensor '{name}' of '{source.path}' is {tuple(found.shape)}, the run's is {tuple(target.shape)}; "
                "start from weights of the run's shape."
            )
        _require_floats(source, name)
    rows = _shared_rows(source, config)
    if rows:
        _require_tables(source)
    loaded = {"global": sum(target.numel() for _, target in pairs.values())}
    with torch.no_grad():
        for found, target in pairs.values():
            assert found is not None
            copy_rows(target, found, len(target))
        for name, group in ((EMBEDDING, "embedding"), (HEAD, "head")):
            if rows and name in targets:
                # a source with a tied head has its rows in the embedding
                copy_rows(targets[name], source.tensors.get(name, source.tensors[EMBEDDING]), rows)
                loaded[group] = rows * targets[name].shape[1]
    counted = sum(target.numel() for target in targets.values())
    return {"init_from": config.train.init_from, "loaded": loaded, "rows": rows, "random": counted - sum(loaded.values())}


def _continue(model: nn.Module, config: RunConfig, path: Path) -> dict[str, Any]:
    """Copy all weights of the checkpoint `path` into `model`, which is the same network."""
    import torch

    verify_folder(path)
    theirs = read_config(path)
    require_count(path, theirs)
    of_both = (_flat({"model": to_dict(c.model), "data": {"speech_bpe_id": c.data.speech_bpe_id}}) for c in (theirs, config))
    their, our = (dict(values) for values in of_both)
    for key in sorted(their.keys() | our.keys()):
        if their.get(key) != our.get(key):
            raise CheckpointError(
                f"the weights in '{path}' have {key}={their.get(key)}, the run that starts from them has {our.get(key)}; "
                "a run goes on from weights of its own network."
            )
    found, targets = read_tensors(path / MODEL), model_tensors(model)
    if {name: tensor.shape for name, tensor in found.items()} != {name: tensor.shape for name, tensor in targets.items()}:
        raise CheckpointError(f"'{path}' does not hold the tensors that its configuration promises; train that run again.")
    with torch.no_grad():
        for name, target in targets.items():
            copy_rows(target, found[name], len(target))
    loaded = {group: count for group, count in parameter_counts(config.model).items() if count}
    return {"init_from": config.train.init_from, "loaded": loaded, "rows": _size(config.model), "random": 0}


def _flat(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of nested mappings."""
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _require_floats(source: Source, name: str) -> None:
    dtype = str(source.tensors[name].dtype).removeprefix("torch.")
    if dtype not in ("float64", "float32", "float16", "bfloat16"):
        raise CheckpointError(f"tensor '{name}' of '{source.path}' is of type {dtype}; start from floating-point weights.")


def _require_tables(source: Source) -> None:
    """CheckpointError if the embedding or the head of `source` is not one row of the global width for each id."""
    wanted = (source.ids, source.model.global_stack.dim)
    for name in (EMBEDDING,) if source.model.tied_head else (EMBEDDING, HEAD):
        if name not in source.tensors:
            raise CheckpointError(f"'{source.path}' lacks the tensor '{name}' that its configuration promises.")
        found = tuple(source.tensors[name].shape)
        if found != wanted:
            raise CheckpointError(f"tensor '{name}' of '{source.path}' is {found}, its configuration promises {wanted}.")
        _require_floats(source, name)


def describe(record: dict[str, Any], path: str) -> str:
    """One line for the log."""
    parts = [f"{group} {count:,}" for group, count in record["loaded"].items()]
    rows = f" (rows of ids 0..{record['rows'] - 1})" if record["rows"] else ""
    loaded = f"loaded {', '.join(parts)} parameters{rows}; random {record['random']:,}"
    where = f"'{path}' ({record['init_from']})" if path else record["init_from"]
    return f"warm start from {where}: {loaded}"


def open_source(config: RunConfig) -> Source:
    """The weights that `config` names. Raises ConfigError without a path, CheckpointError if other weights are there."""
    given = config.execution.init_path
    if not given:
        raise ConfigError(
            f"train.init_from='{config.train.init_from}' names weights, but execution.init_path is empty; give their folder."
        )
    path = checkpoint_folder(given)
    found = weights_hash(path)
    if found != config.train.init_from:
        raise CheckpointError(
            f"the weights in '{path}' are {found}, the run wants {config.train.init_from}; point execution.init_path to those."
        )
    from lst.model import huggingface

    if (path / CONFIG).is_file() and huggingface.is_llama(path):
        shape, text_only = huggingface.read_llama_shape(path)
        own = huggingface.own_config(path)
        tensors = huggingface.ours(path, shape, shape.text_vocab if text_only else _size(shape))
        return Source(path, shape, text_only, tensors, own.data.speech_bpe_id if own else "")
    verify_folder(path)
    theirs = read_config(path)
    require_count(path, theirs)
    return Source(path, theirs.model, False, read_tensors(path / MODEL), theirs.data.speech_bpe_id)


def _require_equal_shapes(source: Source, model: ModelConfig) -> None:
    """CheckpointError naming the first number of the global transformer that differs."""
    theirs, ours = source.model.global_stack, model.global_stack
    pairs = [(f"global_stack.{key}", getattr(theirs, key), getattr(ours, key)) for key in ("layers", "dim", "heads", "ffn_dim")]
    pairs.append(("rope_theta", source.model.rope_theta, model.rope_theta))
    for key, their, our in pairs:
        if their != our:
            raise CheckpointError(
                f"the weights in '{source.path}' have {key}={their}, the run has model.{key}={our}; "
                "start from weights of the run's shape, or set the run's."
            )


def _shared_rows(source: Source, config: RunConfig) -> int:
    """How many ids, from 0 on, mean the same in both embeddings; 0 for arms whose embedding is not of the global width."""
    theirs, ours = source.model, config.model
    if ours.encoder is not None or theirs.encoder is not None:
        return 0
    same = theirs.text_vocab == ours.text_vocab and theirs.arm is ours.arm  # two plain arms number speech differently,
    same = same and (ours.arm is not Arm.BPE or source.speech_bpe_id == config.data.speech_bpe_id)  # and so do other pieces
    if source.ids == _size(ours) and (source.text_only or same):
        return _size(ours)
    return ours.text_vocab if theirs.text_vocab == ours.text_vocab else 0


def copy_rows(target: torch.Tensor, found: torch.Tensor, rows: int) -> None:
    """The first `rows` rows of `found` into `target`, which may be sharded over processes."""
    if not hasattr(target, "device_mesh"):
        target[:rows].copy_(found[:rows])
        return
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(target, DTensor)
    whole = target.full_tensor()
    whole[:rows].copy_(found[:rows])
    target.copy_(distribute_tensor(whole, target.device_mesh, target.placements))


def _size(model: ModelConfig) -> int:
    return Vocabulary.of(model).size
