"""The section `after` of a study: what follows each of its pretraining runs. The rows themselves: `sweeps.after`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from lst.errors import ConfigError, did_you_mean
from lst.evals.tasks import TASKS as EVALUATIONS

TASKS = {
    "finetune": {"asr": "speech, then its transcript", "tts": "a transcript, then its speech"},
    "eval": {name: task.about for name, task in EVALUATIONS.items()},
}

MOST_SHARDS = 1_000  # each is a row, and a process that reads the whole item set


@dataclass(frozen=True, kw_only=True)
class AfterOptions:
    """What follows every pretraining run of the study."""

    kind: str = ""  # finetune | eval; "" = nothing
    task: str = ""  # asr | tts (finetune), choices | asr | tts | representations (eval)
    steps: tuple[int, ...] = ()  # finetune: optimiser steps, a row each
    batch_sequences: int = 0  # finetune: sequences of a batch
    lr_scale: float = 0.1  # finetune: peak learning rate as a share of the pretraining's (assumed; the paper gives none)
    warmup_steps: int = 0  # finetune: linear warm-up, steps (assumed, as above)
    data: str = ""  # finetune: folder of a prepared data set with the study's vocabularies; "" = the study's own data
    evaluate: bool = False  # finetune: a row of kind eval, of the same task, behind each fine-tuned run
    items: tuple[str, ...] = ()  # eval, choices: folders of item sets (prepare-data eval=FILE), a row each
    options: Mapping[str, str | int | float | bool] = field(default_factory=dict)  # eval: of `python -m lst.evals TASK`
    every_steps: int = 0  # kind eval: also the weights after every so many steps, kept on the way; 0 = those of the end alone
    every_flops: float = 0.0  # kind eval: the same, after every so many training FLOPs
    shards: int = 1  # eval: processes that share one evaluation, a row each

    @property
    def evaluates(self) -> bool:
        """Whether there are rows of kind eval."""
        return self.kind == "eval" or self.evaluate

    def validate(self) -> None:
        """Raises ConfigError on a value that cannot be."""
        if self.kind and self.kind not in TASKS:
            raise ConfigError(f"after.kind='{self.kind}' is unknown; {did_you_mean(self.kind, TASKS)}")
        if self.task and not self.kind:
            raise ConfigError(f"after.task='{self.task}' has no meaning without after.kind; give after.kind=finetune or eval.")
        tasks = TASKS.get(self.kind, {"": ""})
        if self.task not in tasks:
            raise ConfigError(
                f"after.task='{self.task}' is unknown for after.kind='{self.kind}'; {did_you_mean(self.task, tasks)}"
            )
        tuned = self.kind == "finetune"
        if tuned and not (self.steps and min(self.steps) > 0 and self.batch_sequences > 0 and self.lr_scale > 0):
            raise ConfigError("after.kind=finetune needs after.steps, after.batch_sequences and after.lr_scale above 0.")
        if len(set(self.steps)) < len(self.steps):
            raise ConfigError(f"after.steps={list(self.steps)} has a length twice; give each once.")
        if not 0 <= self.warmup_steps <= min(self.steps, default=0):
            raise ConfigError(f"after.warmup_steps={self.warmup_steps} must lie between 0 and the fewest of after.steps.")
        if not tuned and (self.steps or self.batch_sequences or self.data or self.evaluate):
            raise ConfigError(
                "after.steps, after.batch_sequences, after.data and after.evaluate have no meaning for "
                f"after.kind='{self.kind}'; leave them out."
            )
        self._validate_evaluation()

    def _validate_evaluation(self) -> None:
        if not self.evaluates and (self.items or self.options or self.shards != 1):
            raise ConfigError(
                "after.items, after.options and after.shards have no meaning without an evaluation; give after.kind=eval, or "
                "after.evaluate=true behind a fine-tuning."
            )
        if self.items and self.task != "choices":
            raise ConfigError(f"after.items has no meaning for after.task='{self.task}'; leave it out.")
        if len(set(self.items)) < len(self.items):
            raise ConfigError(f"after.items={list(self.items)} has an item set twice; give each once.")
        if not (self.every_steps >= 0 and math.isfinite(self.every_flops) and self.every_flops >= 0):
            raise ConfigError("after.every_steps and after.every_flops must be finite numbers, 0 or more.")
        if self.kind != "eval" and (self.every_steps or self.every_flops):
            raise ConfigError(
                f"after.every_steps and after.every_flops have no meaning for after.kind='{self.kind}'; leave them out."
            )
        if self.every_steps and self.every_flops:
            raise ConfigError("after.every_steps and after.every_flops are given both; give one of them.")
        if self.shards > 1 and self.task == "representations":
            raise ConfigError(f"after.shards={self.shards}: representations are made by one process; leave it out.")
        if not 1 <= self.shards <= MOST_SHARDS:
            raise ConfigError(f"after.shards={self.shards} must lie between 1 and {MOST_SHARDS:,}.")
