"""Rows of kind `eval`: what `python -m lst.evals` will do with a run's weights, frozen in the row's eval.json.

    {"run_id": ..., "evaluation": {what decides the result}, "run": the run that has the weights, "checkpoint": their folder in
    its checkpoints/ (final, budget-<S>, kept-<step>), "items": folder of the item set, "out": folder below the run's evals/,
    "shard": "1/1"}

The row's id is the hash of `evaluation` (and of the shard, where there are several): the item set is in it by its items_id, not
by its place. `submit-sweep` starts it once its parent is done (launch.evaluations). Not here: evaluating (`lst.evals`).
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lst.config import ExecutionConfig, RunConfig
from lst.errors import ConfigError, DataError, LstError
from lst.evals.tasks import TASKS
from lst.memory import GIB
from lst.plain import content_hash, from_dict
from sweeps.columns import BRANCH, EVAL, PlanRow, Status
from sweeps.price import PriceConfig, Speed, Work, disk_gib, rounded, run_minutes

if TYPE_CHECKING:
    from sweeps.build import PlannedRun
    from sweeps.study import StudyConfig

SET_BY_THE_PLAN = ("items", "out", "shard")  # options of lst.evals
MOST_KEPT = 100  # kept steps of a run
BYTES_A_TEXT_TOKEN = 4  # assumed, of the price alone
SPEECH_TOKENS_A_WORD, TEXT_TOKENS_A_WORD = 10, 1.5  # the same: 0.4 seconds
DTYPE = "float32"  # as lst.evals computes by default

_OF_A_TRAINING = (
    *("flops_budget", "planned_flops", "planned_spent_steps", "flops_per_step", "six_nd", "final_batch_sequences", "units"),
    *("tokens", "text_tokens", "text_only_tokens", "interleaved_tokens", "speech_tokens", "tokens_per_param", "speech_epochs"),
    *("corpus_passes", "lr", "warmup_steps", "micro_batch_tokens", "est_gib_gradients", "est_gib_optimiser", "est_gib_gathered"),
    *("est_gib_activations", "est_gib_workspace", "est_gib_logits", "est_gib_runtime", "est_disk_gib", "est_kept_gib", "branch"),
    *("planned_spent_flops", "est_minutes", "est_gpu_hours", "est_dollars", "est_peak_gib", "est_gib_weights", "gpus"),
)
"""Columns that are 0 for a row that trains on nothing, and is not priced."""


@dataclass(frozen=True, kw_only=True)
class ItemSet:
    """What the planner knows of an item set: its manifest, and how many tokens scoring it takes."""

    folder: str
    task: str
    items_id: str
    rows: int  # items
    tokens: Mapping[str, float]  # that scoring reads in each direction
    scores: Mapping[str, tuple[str, ...]]  # that are defined in each direction

    def wanted(self, options: Mapping[str, Any]) -> list[str]:
        """The directions that are scored."""
        return [d for d in str(options.get("directions", "")).split(",") if d] or list(self.tokens)

    def scored(self, options: Mapping[str, Any]) -> float:
        """Tokens under the options of the evaluation. Raises ConfigError on a direction that the items have not, or in which the
        deciding score is not defined."""
        wanted = self.wanted(options)
        for direction in wanted:
            if direction not in self.tokens:
                raise ConfigError(
                    f"after.options.directions has '{direction}', item set '{self.folder}' has {', '.join(self.tokens)}."
                )
            if options.get("score", self.scores[direction][0]) not in self.scores[direction]:
                raise ConfigError(
                    f"after.options.score={options['score']} is not defined for {direction} of item set '{self.folder}'; choose "
                    f"one of {', '.join(self.scores[direction])}, or other after.options.directions."
                )
        share = min(int(options.get("limit", 0)) or self.rows, self.rows) / max(1, self.rows)
        return share * sum(self.tokens[direction] for direction in wanted)


def keep_steps(study: StudyConfig, run: PlannedRun) -> PlannedRun:
    """A run that keeps its weights at every so many steps or FLOPs before its end, if the study evaluates them.

    Execution alone changes, and so no id. Raises ConfigError on more than MOST_KEPT.
    """
    after, row = study.after, run.row
    if not (after.every_steps or after.every_flops) or row.kind != "pretrain" or not row.admitted:
        return run
    between = after.every_steps or after.every_flops / row.flops_per_step  # steps
    if row.steps > between * (MOST_KEPT + 1):
        key, value = ("every_steps", after.every_steps) if after.every_steps else ("every_flops", after.every_flops)
        raise ConfigError(
            f"after.{key}={value:g} keeps the weights of about {row.steps / between:,.0f} steps of run {row.run_id}, more than "
            f"{MOST_KEPT}; give a larger one."
        )
    steps = sorted({round(place * between) for place in range(1, MOST_KEPT + 1)} & set(range(1, row.steps)))
    config = dataclasses.replace(run.config, execution=dataclasses.replace(run.config.execution, keep_steps=tuple(steps)))
    kept, most = map(rounded, disk_gib(config))
    return dataclasses.replace(run, config=config, row=dataclasses.replace(row, est_kept_gib=kept, est_disk_gib=most))


def kept_warnings(study: StudyConfig, rows: Sequence[PlanRow]) -> list[str]:
    """A sentence where the study evaluates weights on the way, and no run is long enough to have any."""
    after = study.after
    trained = [row for row in rows if row.kind == "pretrain" and row.admitted]
    every = ("steps", after.every_steps) if after.every_steps else ("flops", after.every_flops)
    longest = max((row.steps if after.every_steps else row.planned_flops for row in trained), default=0.0)
    if not every[1] or every[1] < longest:
        return []
    return [
        f"after.every_{every[0]}={every[1]:g} is no less than the longest run's {longest:g}: only the last weights are evaluated."
    ]


def evaluation_rows(study: StudyConfig, parent: PlannedRun) -> Iterator[PlannedRun]:
    """The evaluations of a parent: a row an item set and shard.

    Raises ConfigError on options that cannot be, DataError on an item set that cannot be read.
    """
    after = study.after
    require_options(after.task, after.options)
    if after.task == "choices" and not after.items:
        reason = "after.items is empty; give the folders of its item sets (prepare-data eval=FILE out=DIR makes one)"
        run_id = content_hash({"parent": parent.row.run_id, "kind": EVAL, "task": after.task})
        row = _row(parent, after.task, run_id=run_id, status=Status.REFUSED, reason=reason)
        yield dataclasses.replace(parent, row=row)
        return
    sets: list[ItemSet | None] = [open_items(folder) for folder in after.items]
    kept = parent.config.execution.keep_steps if parent.row.kind == "pretrain" else ()
    for step in (*kept, 0):
        for items in sets or [None]:
            for shard in range(1, after.shards + 1):
                yield _planned(study, parent, items, f"{shard}/{after.shards}", step)


def _planned(study: StudyConfig, parent: PlannedRun, items: ItemSet | None, shard: str, step: int) -> PlannedRun:
    """`step` is one of the kept ones, or 0: the run's end."""
    after, before = study.after, parent.row
    decisive: dict[str, Any] = {"parent": before.run_id, "kind": EVAL, "task": after.task, "options": dict(after.options)}
    decisive |= ({"items_id": items.items_id} if items else {}) | ({"step": step} if step else {})
    name, alone, of_branch = items.task if items else after.task, after.shards == 1, before.kind == BRANCH
    content = {
        "run_id": content_hash(decisive | ({} if alone else {"shard": shard})),
        "evaluation": decisive,
        "run": before.parent_run_id if of_branch else before.run_id,
        "checkpoint": f"kept-{step}" if step else f"budget-{before.branch}" if of_branch else "final",
        "items": items.folder if items else "",
        "out": f"{name}-{content_hash(decisive)}",
        "shard": shard,
    }
    tokens = items.scored(after.options) if items else _spoken(parent, after.task, after.options)
    folder, run = items.folder if items else "", parent.config
    require_data(after.task, tuple(after.options.items()), folder, run.execution.data_path, run.data.data_id)
    refused = refusal(after.task, after.options, folder, run)
    flops = tokens / after.shards * before.planned_flops / before.tokens / 3  # a training token's, without the backward pass
    what = name + (f" step={step}" if step else "") + ("" if alone else f" {shard}")
    columns = {"run_id": content["run_id"], "status": Status.ADMITTED, "reason": "", "steps": step or before.steps}
    if refused:
        return dataclasses.replace(parent, row=_row(parent, what, **columns | {"status": Status.REFUSED, "reason": refused}))
    row = _row(parent, what, **columns, planned_spent_flops=flops)
    return dataclasses.replace(parent, row=priced(row, study.price), evaluation=content)


def _row(parent: PlannedRun, what: str, **columns: Any) -> PlanRow:
    before = parent.row
    named = {"kind": EVAL, "parent_run_id": before.run_id, "match_group": f"{before.match_group} eval {what}"}
    nothing = {name: type(getattr(before, name))() for name in _OF_A_TRAINING}
    return dataclasses.replace(before, **nothing | named | columns)


def priced(row: PlanRow, price: PriceConfig) -> PlanRow:
    """An evaluation's row on one GPU, or on the CPU. Raises ConfigError where the device's speed is not known."""
    gpus = 0 if price.gpu is None else 1
    speed = Speed(flops_per_second=price.flops_per_second(gpus, DTYPE), step_seconds=0.0, startup_seconds=price.startup_seconds)
    minutes = run_minutes(Work(flops=row.planned_spent_flops, steps=0), speed, batch_sequences=1, gpus=gpus)
    weights = rounded(4 * row.num_params / GIB)
    return dataclasses.replace(
        row,
        gpus=gpus,
        est_minutes=minutes,
        est_gpu_hours=rounded(minutes / 60 * gpus),
        est_dollars=rounded(minutes / 60 * gpus * price.dollars),
        est_peak_gib=weights,
        est_gib_weights=weights,
        placement_reason="an evaluation, on one GPU" if gpus else "",
    )


def evaluation_text(content: Mapping[str, Any]) -> str:
    """The text of eval.json."""
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def require_options(task: str, options: Mapping[str, Any]) -> None:
    """ConfigError where `python -m lst.evals TASK` would not take these options, or the plan sets them itself."""
    for key in SET_BY_THE_PLAN:
        if key in options:
            raise ConfigError(f"after.options.{key} is set by the plan (after.items, after.shards); leave it out.")
    try:
        _options(task, options).validate()
    except ConfigError as error:
        raise ConfigError(_named(error, task)) from error


def _options(task: str, options: Mapping[str, Any], folder: str = "") -> Any:
    """The command's own options. Raises ConfigError on one that it has not."""
    return from_dict(TASKS[task].options, ({"items": folder} if task == "choices" else {}) | dict(options), "after.options")


def _named(error: LstError, task: str) -> str:
    """What the command would say, with the key of the study that it is about."""
    text, own = str(error), {field.name for field in dataclasses.fields(TASKS[task].options)}
    if "after.options" in text:
        return text
    if text.partition("=")[0] in own:
        return f"after.options.{text}"
    return f"after.{'items' if text.startswith('item') else 'options'}: {text}"


def refusal(task: str, options: Mapping[str, Any], folder: str, run: RunConfig) -> str:
    """Why no run of this configuration can be evaluated so, whatever it learns (an arm without patches, say); "" if it can."""
    try:
        _options(task, options, folder).check_arm(run, *_item_sets(folder))
    except ConfigError as error:
        return _named(error, task)
    return ""


@lru_cache(maxsize=64)
def open_items(folder: str) -> ItemSet:
    """What the item set in `folder` is (or the one that ships). Raises DataError where there is none, or a damaged one."""
    from pyarrow.lib import ArrowException

    from lst.evals.item_set import SMOKE, open_item_set

    try:
        found = open_item_set(folder)
        tokens = {direction: _scored_tokens(found.table, direction) for direction in found.directions}
        scores = {direction: found.scores(direction) for direction in found.directions}
    except (LstError, OSError, ArrowException) as error:
        raise DataError(f"after.items has '{folder}', which is no whole item set: {error}") from error
    name = re.sub(r"[^0-9A-Za-z_-]+", "-", found.task)
    place = folder if folder == SMOKE else str(found.path.resolve())
    return ItemSet(folder=place, task=name, items_id=found.items_id, rows=len(found), tokens=tokens, scores=scores)


@lru_cache(maxsize=64)
def require_data(task: str, options: tuple[tuple[str, Any], ...], folder: str, data: str, data_id: str) -> None:
    """DataError where the evaluation would find after the training that a folder of its options is missing or of other tokens,
    or that an item cannot be scored (ConfigError by its options).

    A plan of stated data, or of data that are elsewhere, has nothing to compare with, and judges no folder.
    """
    if data != ExecutionConfig.data_path and not Path(data).is_dir():
        return
    try:
        _options(task, dict(options), folder).check_data(data, data_id, *_item_sets(folder))
    except ConfigError as error:
        raise ConfigError(_named(error, task)) from error
    except DataError as error:
        raise DataError(_named(error, task)) from error


@lru_cache(maxsize=64)
def _item_sets(folder: str) -> tuple[Any, ...]:
    """The opened item set of an evaluation of choices; of others none."""
    from lst.evals.item_set import open_item_set

    return (open_item_set(folder),) if folder else ()


def _scored_tokens(table: Any, direction: str) -> float:
    """Tokens that scoring reads: each ending after its prompt, and each ending alone."""
    given, asked = ({"S": "speech", "T": "texts"}[direction[place]] for place in (0, -1))
    total = 0.0
    for prompt, before, after in zip(*(table.column(name).to_pylist() for name in ("prompt", given, asked)), strict=True):
        lengths = [_tokens(part) for part in after[prompt:]]
        total += 2 * sum(lengths) + (len(lengths) * _tokens(before[0]) if prompt else 0.0)
    return total


def _tokens(part: Any) -> float:
    return len(part.encode()) / BYTES_A_TEXT_TOKEN if isinstance(part, str) else float(len(part))


def _spoken(parent: PlannedRun, task: str, options: Mapping[str, Any]) -> float:
    """Tokens of the utterances that are heard, spoken or read, as the options (or the defaults) have them."""
    config = from_dict(TASKS[task].options, dict(options))
    words = config.words or parent.config.data.pair_words
    return float(config.utterances * words * (SPEECH_TOKENS_A_WORD + TEXT_TOKENS_A_WORD))
