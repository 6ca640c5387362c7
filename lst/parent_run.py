"""A run that goes on from another run's weights: `train.init_from=run:<run_id>` (fine-tuning). No torch.

The parent is named by its id and so by what decides its weights. They are looked for in the folder beside the run's own, as
a study has it, also among a WSD run's branches, or where `execution.init_path` says. Not here: weights that are named by
their own content (lst.weight_files), and the copying (lst.model.warm_start).
"""

from __future__ import annotations

from pathlib import Path

from lst.errors import CheckpointError, ConfigError
from lst.plain import RUN_ID_DIGITS
from lst.records import CHECKPOINTS, EXIT, read_json

PARENT_RUN = "run:"
_TAGS = f"*/{CHECKPOINTS}/budget-*/tag.json"  # of the branches of all runs of a study


def parent_of(init_from: str) -> str:
    """The id of the run that `train.init_from` names; "" where it names weights by content, or none."""
    return init_from.removeprefix(PARENT_RUN) if init_from.startswith(PARENT_RUN) else ""


def require_init_from(value: str) -> None:
    """ConfigError where a value of `train.init_from` is neither empty, a content hash nor a run's name."""
    digits = value.removeprefix(PARENT_RUN)
    if value and (len(digits) != RUN_ID_DIGITS or set(digits) - set("0123456789abcdef")):
        raise ConfigError(
            f"train.init_from='{value}' is no content hash; give what `python -m lst.weights hash FOLDER` prints, "
            f"or {PARENT_RUN}<run_id>."
        )


def parent_weights(run_dir: Path, parent: str, init_path: str) -> Path:
    """The checkpoint of the finished run `parent`. Raises CheckpointError where it is missing, unfinished or another run's."""
    folder = Path(init_path) if init_path else run_dir.resolve().parent / parent
    what = f"this run starts from the weights of run {parent}"
    if not folder.is_dir():
        branch = None if init_path else _branch(folder.parent, parent)
        if branch is None:
            raise CheckpointError(f"{what}, and '{folder}' does not exist; train it there, or give execution.init_path.")
        return branch
    ended = read_json(folder / EXIT)
    if ended is None or ended.get("status") != "done":
        raise CheckpointError(f"{what}, and that run is not finished in '{folder}'; train it to its end first.")
    if ended.get("run_id") != parent:
        raise CheckpointError(
            f"{what}, and '{folder}' holds run {ended.get('run_id')}; point execution.init_path to the folder of run {parent}."
        )
    return folder / CHECKPOINTS / "final"


def _branch(runs: Path, parent: str) -> Path | None:
    """The weights of the branch that equals run `parent`, if a run below `runs` has yielded it."""
    tags = ((tag.parent, read_json(tag)) for tag in sorted(runs.glob(_TAGS)))
    return next((folder for folder, tag in tags if tag is not None and tag.get("equal_run_id") == parent), None)
