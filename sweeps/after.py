"""What follows a pretraining run: fine-tuning and evaluation, as rows of their own that name their parent.

    after: {kind: finetune, task: asr, steps: [1000, 2000, 4000], batch_sequences: 4, evaluate: true}
    after: {kind: eval, task: choices, items: [items/swuggy, items/sblimp]}

A fine-tuning is a run: it starts from all weights of its parent (`train.init_from=run:<run_id>`, lst.parent_run) and reads
nothing but pairs of speech and text, those of the study's data or of `after.data`, in the parent's network, patched as the
parent is evaluated. Not here: the parents (`sweeps.build`), evaluations (`sweeps.evaluations`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lst.config import PARENT_RUN, Arm, DataConfig, MixtureConfig, Patching, PatchingConfig, RunConfig
from lst.errors import ConfigError
from sweeps.admit import admit
from sweeps.after_options import AfterOptions
from sweeps.allocate import given_length
from sweeps.build import PlannedRun, run_columns, with_micro_batch
from sweeps.columns import EVAL, PlanRow, Status
from sweeps.estimate import price_run
from sweeps.evaluations import evaluation_rows
from sweeps.measure import open_measure
from sweeps.price import AUTO
from sweeps.study import Matching

if TYPE_CHECKING:
    from sweeps.measure import Measure
    from sweeps.study import StudyConfig


def after_runs(study: StudyConfig, measure: Measure, parents: Sequence[PlannedRun]) -> Iterator[PlannedRun]:
    """What follows the study's runs, in their order; a refused run is followed by nothing.

    Raises ConfigError or DataError on an `after.data` that cannot be read, or that was tokenised otherwise.
    """
    after = study.after
    own = _tuning_measure(study, measure) if after.data else measure
    for parent in parents:
        if after.kind and parent.row.admitted:
            if after.kind == EVAL:
                yield from evaluation_rows(study, parent)
            for steps in after.steps:
                tuned = _tuned(study, own, parent, steps)
                yield tuned
                if after.evaluate and tuned.row.admitted:
                    yield from evaluation_rows(study, tuned)


def _tuning_measure(study: StudyConfig, measure: Measure) -> Measure:
    """The data set that runs are fine-tuned on. Raises ConfigError where it is none that the study's networks can read."""
    name, own = study.after.data, open_measure(study.after.data)
    if (own.stated is None) != (measure.stated is None):
        raise ConfigError(f"after.data='{name}' and data='{study.data}' must both be prepared data sets, or both stated.")
    for key in ("text_vocab", "speech_vocab"):
        ours, theirs = getattr(measure, key), getattr(own, key)
        if ours != theirs:
            raise ConfigError(
                f"after.data='{name}' has {key}={theirs}, the study's data has {ours}; prepare it with the same tokenizers."
            )
    return own


def _tuned(study: StudyConfig, measure: Measure, parent: PlannedRun, steps: int) -> PlannedRun:
    """Fine-tuning of a parent for so many steps."""
    after, row = study.after, parent.row
    config = _tuning_config(study, measure, parent, steps)
    allocation = given_length(config, measure, sequences=steps * after.batch_sequences, batch_sequences=after.batch_sequences)
    prices = study.price.on_at_most(after.batch_sequences)
    price = price_run(config, prices, train_flops=allocation.flops, tokens=allocation.counts.tokens)
    if study.price.gpus == AUTO:
        config = with_micro_batch(config, price.placement.micro_batch_tokens)
    columns: dict[str, Any] = {
        **run_columns(study, measure, config, allocation),
        **price.columns(),
        "run_id": config.run_id,
        "branch": 0,
        "matching": Matching.UNIT.value,
        "flops_budget": float(allocation.flops),
        "planned_spent_flops": float(allocation.flops),
        "planned_spent_steps": steps,
    }
    epochs = columns["speech_epochs"] if measure.stated is None else 0.0  # stated hours are the pretraining's
    columns |= {"speech_epochs": epochs, "corpus_passes": epochs}  # each word is spoken
    tuned = dataclasses.replace(row, **columns, **_following(row, after, f" steps={steps}"), status="", reason="")
    if config.model.arm is Arm.BPE and after.data:
        reason = "arm 'bpe' reads other data in other speech pieces; fine-tune it on the study's own data (after.data empty)"
        return PlannedRun(row=dataclasses.replace(tuned, status=Status.REFUSED, reason=reason), config=config)
    return PlannedRun(row=admit(tuned, study.admission, misfit=price.placement.refusal), config=config)


def _tuning_config(study: StudyConfig, measure: Measure, parent: PlannedRun, steps: int) -> RunConfig:
    after, old = study.after, parent.config
    formats = MixtureConfig(asr=float(after.task == "asr"), tts=float(after.task == "tts"))
    config = dataclasses.replace(
        old,
        patching=_as_evaluated(old.patching),
        data=DataConfig(seq_len_units=old.data.seq_len_units, pair_words=old.data.pair_words, mixture=formats),
        optim=dataclasses.replace(old.optim, lr=float(f"{old.optim.lr * after.lr_scale:.6g}"), warmup_steps=after.warmup_steps),
        train=dataclasses.replace(
            old.train,
            steps=steps,
            batch_sequences=after.batch_sequences,
            final_batch_sequences=0,
            branch_steps=(),
            init_from=PARENT_RUN + parent.row.run_id,
        ),
        evaluation=dataclasses.replace(old.evaluation, story_items=0),
        execution=dataclasses.replace(
            old.execution,
            init_path="",  # beside the run itself
            data_path=str(Path(after.data).resolve()) if after.data else old.execution.data_path,
        ),
    )
    config = dataclasses.replace(config, data=measure.mixture(config))
    config.validate()
    return config


def _as_evaluated(patching: PatchingConfig) -> PatchingConfig:
    """Static patches for the arms that are evaluated on them."""
    if patching.kind is Patching.CURRICULUM:
        return dataclasses.replace(patching, curriculum_aligned_until=0.0, curriculum_static_from=0.0)
    return dataclasses.replace(patching, mixed_aligned_share=0.0) if patching.kind is Patching.MIXED else patching


def _following(parent: PlanRow, after: AfterOptions, length: str = "") -> dict[str, Any]:
    """The columns that say what a row is and after whom."""
    return {
        "kind": after.kind,
        "parent_run_id": parent.run_id,
        "match_group": f"{parent.match_group} {after.task}{length}",
    }
