"""What rows of a study have in common, made once: an arm's view of the study, a run's configuration but for its length.

Equal parts of configurations are one object then, and so they are checked, hashed and written as text once (lst.plain.kept).
Not here: how long a run is (`sweeps.allocate`), rows (`sweeps.build`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lst.config import Arm, DataConfig, ExecutionConfig, OptimConfig, RunConfig, TrainConfig
from lst.flops import num_non_embedding_params, num_params
from lst.ladder import BaselineMatch
from sweeps.arms import arm_model, arm_patching
from sweeps.measure import Measure
from sweeps.recipe import Hyperparameters, Situation, choose_hyperparameters
from sweeps.study import ContextMatch, Length, StudyConfig
from sweeps.variants import arm_of

CONTEXT_PROBE = 256  # sequences by which context_match=tokens measures an arm's tokens per unit


@dataclass(frozen=True)
class Group:
    """One match group: a length, a size and a seed."""

    length: float
    size: str
    seed: int


class Shared:
    """The parts of one study's rows, by what they depend on."""

    def __init__(self, study: StudyConfig, measure: Measure, edges: Mapping[float, str]) -> None:
        """`edges` says of a length why its minimum may lie at the grid's edge."""
        self.study, self.measure, self.edges = study, measure, edges
        self.views = {arm: study.of_arm(arm) for arm in study.ordered_arms}
        self._configs: dict[tuple[str, str, int, bool], RunConfig] = {}
        self._hyperparameters: dict[tuple[float, str], Hyperparameters] = {}
        self._optims: dict[tuple[float, float, int], OptimConfig] = {}

    def config(self, arm: str, group: Group) -> RunConfig:
        """`base_config`: of its group's length it depends only on whether stories are scored."""
        key = (arm, group.size, group.seed, group.length < self.study.stories_from)
        if key not in self._configs:
            self._configs[key] = base_config(self.views[arm], self.measure, group, arm)
        return self._configs[key]

    def hyperparameters(self, group: Group) -> Hyperparameters:
        """`group_hyperparameters`, of any seed."""
        key = (group.length, group.size)
        if key not in self._hyperparameters:
            self._hyperparameters[key] = group_hyperparameters(self.study, self.measure, group)
        return self._hyperparameters[key]

    def optim(self, hyper: Hyperparameters, steps: int) -> OptimConfig:
        """The optimiser of a run of `steps` steps."""
        recipe = self.study.recipe
        key = (hyper.weight_decay, hyper.lr, hyper.warmup_steps(steps))
        if key not in self._optims:
            self._optims[key] = OptimConfig(
                lr=hyper.lr,
                weight_decay=hyper.weight_decay,
                warmup_steps=hyper.warmup_steps(steps),
                final_lr_ratio=recipe.final_lr_ratio,
                schedule=recipe.schedule,
                decay_share=recipe.decay_share,
                decay_shape=recipe.decay_shape,
            )
        return self._optims[key]


def group_hyperparameters(study: StudyConfig, measure: Measure, group: Group) -> Hyperparameters:
    """The recipe's answer for the group: of the baseline's shape and the run's tokens, whatever the arm.

    Budgets that share a trunk take the longest one's.
    """
    if study.recipe.share_trunk:
        group = dataclasses.replace(group, length=study.lengths[-1])
    plain = dataclasses.replace(study, baseline_match=BaselineMatch.GLOBAL_SHAPE.value)  # LST's runs do not hang on the match
    baseline = arm_model(plain, measure, group.size, Arm.BASELINE)
    params = num_params(baseline)
    axis = {
        Length.BUDGETS: group.length / (6 * params),
        Length.TOKENS: group.length,
        Length.UNITS: group.length,
        Length.TOKENS_PER_PARAM: group.length * params,
    }
    situation = Situation(
        size=group.size,
        num_params=params,
        num_non_embedding_params=num_non_embedding_params(baseline),
        width=baseline.global_stack.dim,
        tokens=axis[study.length],
        seq_len_units=study.seq_len_units,
    )
    return choose_hyperparameters(study.recipe, situation)


def base_config(study: StudyConfig, measure: Measure, group: Group, name: str) -> RunConfig:
    """The run's configuration but for its length and what the recipe adds; `study` as the arm `name` sees it."""
    arm = arm_of(name)
    evaluation = study.evaluation
    if group.length < study.stories_from or not measure.has_stories:
        evaluation = dataclasses.replace(evaluation, story_items=0)
    named = study.data == ExecutionConfig.data_path or measure.stated is not None
    path = study.data if named else str(Path(study.data).resolve())
    init = str(Path(study.execution.init_path).resolve()) if study.execution.init_path else ""
    config = RunConfig(
        model=arm_model(study, measure, group.size, arm),
        patching=arm_patching(study, arm),
        data=study.mixture.applied_to(DataConfig(seq_len_units=study.seq_len_units)),
        train=study.train.applied_to(TrainConfig(seed=group.seed, dtype=study.dtype)),
        evaluation=evaluation,
        execution=dataclasses.replace(study.execution, data_path=path, init_path=init),
    )
    config.validate()
    if study.context_match is ContextMatch.TOKENS and name != study.reference_arm:
        config = _with_equal_tokens(study, measure, group, config)
    return dataclasses.replace(config, data=measure.mixture(config))


def _with_equal_tokens(study: StudyConfig, measure: Measure, group: Group, config: RunConfig) -> RunConfig:
    """Sequences of as many units as hold the reference arm's tokens a sequence."""
    reference = base_config(study.of_arm(study.reference_arm), measure, group, study.reference_arm)
    mixed = dataclasses.replace(config, data=measure.mixture(config))
    wanted, found = (measure.run(c, steps=CONTEXT_PROBE, batch_sequences=1).mean() for c in (reference, mixed))
    units = max(1, round(study.seq_len_units * wanted.tokens / found.tokens))
    return dataclasses.replace(config, data=dataclasses.replace(config.data, seq_len_units=units))
