"""A checkpoint that is to be evaluated: its model, its configuration, its data set, and what was spent on it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lst.config import ExecutionConfig, Patching, RunConfig
from lst.data.shards import Dataset, open_dataset
from lst.errors import CheckpointError, ConfigError, DataError
from lst.records import EVALUATIONS, EXIT, RUN_CONFIG, read_json
from lst.weight_files import checkpoint_folder, weights_hash

if TYPE_CHECKING:
    import torch
    from torch import nn

SPENT = ("step", "branch", "train_flops", "units", "text_tokens", "speech_tokens")
DTYPES = ("float32", "float64", "bfloat16")


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint, in evaluation mode on its device."""

    source: Path
    model: nn.Module
    config: RunConfig
    dataset: Dataset
    weights: str  # their hash
    spent: dict[str, Any]  # step, FLOPs and tokens on the way to the weights, as far as the folder tells
    device: torch.device

    @property
    def decisive(self) -> dict[str, Any]:
        """What of the checkpoint decides an evaluation's result."""
        return {"weights": self.weights, "run_id": self.config.run_id, "data_id": self.dataset.data_id}

    @property
    def about(self) -> dict[str, Any]:
        return {"checkpoint": str(self.source), "arm": str(self.config.model.arm), **self.spent}


def open_checkpoint(
    source: Path, *, data: str = "", device: str = "auto", dtype: str = "float32", batch_tokens: int = 0
) -> Checkpoint:
    """`source` is a run's folder, a checkpoint's, or an exported one; `data` the folder of its data set, if it was moved.

    Raises CheckpointError, DataError or ConfigError.
    """
    import torch

    from lst.model import load_checkpoint
    from lst.train.distributed import Ranks
    from lst.train.trainer import choose_device

    require_place(device, dtype, batch_tokens)
    folder = checkpoint_folder(source)
    model, config = load_checkpoint(folder)
    changes: dict[str, Any] = {"data_path": data or config.execution.data_path, "device": device}
    changes |= {"micro_batch_tokens": batch_tokens} if batch_tokens else {}
    config = dataclasses.replace(config, execution=dataclasses.replace(config.execution, **changes))
    config.validate()
    dataset = trained_dataset(config.execution.data_path, config.data.data_id, given=data)
    on = choose_device(config, Ranks())
    if on.type == "cpu":
        torch.set_num_threads(config.execution.threads)
    model = model.to(on, torch.float64 if dtype == "float64" else torch.float32)
    spent = _spent(source, folder, config.run_id)
    return Checkpoint(source, model, config, dataset, weights_hash(folder), spent, on)


def require_place(device: str, dtype: str, batch_tokens: int = 0) -> None:
    """Raises ConfigError on a device or an arithmetic that no evaluation knows, or a batch that is none."""
    if dtype not in DTYPES:
        raise ConfigError(f"dtype={dtype} is unknown; use {', '.join(DTYPES)}.")
    if batch_tokens < 0:
        raise ConfigError(f"batch_tokens={batch_tokens} must not be negative.")
    try:
        ExecutionConfig(device=device).validate()
    except ConfigError as error:
        raise ConfigError(str(error).removeprefix("execution.")) from error


def trained_dataset(path: str, data_id: str, *, given: str = "") -> Dataset:
    """The data set `data_id` that weights were trained on: in `path`, or in `given`, the option `data`, if it was moved.

    Raises DataError where there is none, or another.
    """
    dataset = _open("data", given) if given else open_dataset(path)
    if dataset.data_id != data_id:
        raise DataError(
            f"data '{dataset.path}' has data_id={dataset.data_id}, the checkpoint was trained on '{data_id}'; give "
            "data=DIR of that data set: its text tokenizer and its speech tokenizer's card are needed."
        )
    return dataset


def _open(option: str, folder: str) -> Dataset:
    """The data set that an option names. Raises DataError, with the option, where there is none."""
    try:
        return open_dataset(folder)
    except DataError as error:
        raise DataError(f"{option}={folder}: {error}") from error


def _spent(source: Path, folder: Path, run_id: str) -> dict[str, Any]:
    """From the run's exit.json, or from what stands beside the weights. Raises CheckpointError where exit.json cannot be read, or
    is of another run than the weights."""
    for file in (folder / "state.json", folder / "tag.json", source / EXIT):
        content = read_json(file)
        if content is None and file.name == EXIT and file.exists():
            raise CheckpointError(f"'{file}' is damaged, and tells what was spent on the weights; copy the run's folder again.")
        if content is not None:
            if file.name == EXIT and content.get("run_id", run_id) != run_id:
                raise CheckpointError(
                    f"'{file}' is of run {content['run_id']}, the weights in '{folder}' are of run {run_id}; put them into "
                    "their own run's folder."
                )
            content |= content.get("counts") or {}
            return {name: content[name] for name in SPENT if content.get(name) is not None}
    return {}


def own_patching(config: RunConfig, asked: str) -> Patching:
    """How speech is cut: as the arm is evaluated (`auto`), or as asked for. Raises ConfigError for an arm without patches."""
    own = config.patching.evaluation_kind
    if asked == "auto":
        return own
    if own is Patching.TOKEN:
        raise ConfigError(f"patching={asked}: arm '{config.model.arm}' has no patches; leave patching out.")
    return Patching(asked)


def utterance_dataset(trained: Dataset, test: str) -> Dataset:
    """The data set whose held-out documents are tested: that trained on, or `test`, of the same speech tokens.

    Its texts are cut into pieces by its own tokenizer, so `test` must have the other's too. Raises DataError.
    """
    if not test:
        return trained
    from lst.evals.item_set import card_identity

    other = _open("test", test)
    ours, theirs = (d.manifest.get("about", {}).get("speech_tokenizer") for d in (trained, other))
    if card_identity(ours) != card_identity(theirs):
        raise DataError(f"test={test} has another speech tokenizer than '{trained.path}'; prepare it with the same.")
    if other.tokenizer.content != trained.tokenizer.content:
        raise DataError(f"test={test} has another text tokenizer; prepare it with tokenizer= of '{trained.path}'.")
    return other


def default_out(source: Path, name: str) -> Path:
    """Where a run's evaluation goes. Raises ConfigError for a checkpoint that is no run's folder."""
    if (source / RUN_CONFIG).is_file():
        return source / EVALUATIONS / name
    raise ConfigError(f"'{source}' is no run's folder, so say where the results go: out=DIR")
