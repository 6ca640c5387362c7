"""What follows a pretraining run: fine-tuning and evaluation, as rows of their own that name their parent.

    after: {kind: finetune, task: asr, steps: [1000, 2000, 4000], batch_sequences: 4}
    after: {kind: eval, task: swuggy_sblimp}

Such rows are accounted for: tokens, FLOPs and price, from the mean sequence of spoken words and their transcripts. They
cannot run yet (the trainer reads pretraining mixtures alone), so each is refused with that reason and has no run.yaml.
Not here: the parents (`sweeps.build`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lst.config import Patching
from lst.flops import training_flops
from lst.plain import content_hash, to_dict
from sweeps.after_options import TASKS, AfterOptions
from sweeps.allocate import Allocation
from sweeps.build import PlannedRun, run_columns
from sweeps.columns import PlanRow, Status
from sweeps.estimate import price_run

if TYPE_CHECKING:
    from sweeps.measure import Measure
    from sweeps.study import StudyConfig

_OF_A_LENGTH = (
    *("flops_budget", "planned_flops", "planned_spent_flops", "planned_spent_steps", "flops_per_step", "six_nd", "steps"),
    *("final_batch_sequences", "units", "tokens"),
    *("text_tokens", "text_only_tokens", "interleaved_tokens", "speech_tokens", "tokens_per_param", "speech_epochs"),
    *("corpus_passes", "lr", "warmup_steps", "gpus", "est_gpu_hours", "est_minutes", "est_dollars"),
)
"""Columns that are 0 for a row that trains on nothing."""


def after_rows(study: StudyConfig, measure: Measure, parents: Sequence[PlannedRun]) -> list[PlanRow]:
    """The rows that follow the study's runs, in their order; a refused run has none."""
    after, rows = study.after, []
    for parent in parents:
        if after.kind and parent.row.admitted:
            rows += [_tuned(study, measure, parent, steps) for steps in after.steps] or [_evaluated(parent.row, after)]
    return rows


def _tuned(study: StudyConfig, measure: Measure, parent: PlannedRun, steps: int) -> PlanRow:
    """Fine-tuning of a parent: its network, sequences of words in both modalities, patched as at evaluation."""
    after, old = study.after, parent.config
    patching = old.patching
    if patching.kind is Patching.CURRICULUM:
        patching = dataclasses.replace(patching, curriculum_aligned_until=0.0, curriculum_static_from=0.0)
    config = dataclasses.replace(
        old,
        patching=patching,
        optim=dataclasses.replace(old.optim, lr=float(f"{old.optim.lr * after.lr_scale:.6g}"), warmup_steps=0),
        train=dataclasses.replace(old.train, steps=steps, batch_sequences=after.batch_sequences, final_batch_sequences=0),
    )
    sequences = steps * after.batch_sequences
    counts = measure.transcripts(config).scaled(sequences)
    flops = training_flops(config, counts).total
    allocation = Allocation(
        sequences=sequences,
        steps=steps,
        batch_sequences=after.batch_sequences,
        final_batch_sequences=0,
        counts=counts,
        flops=flops,
    )
    content = {
        "parent": parent.row.run_id,
        "kind": after.kind,
        "task": after.task,
        "config": to_dict(config) | {"execution": None},
    }
    price = price_run(config, study.price, train_flops=flops, tokens=counts.tokens)
    columns = {
        **run_columns(study, measure, config, allocation),
        **price.columns(),
        "flops_budget": flops,
        "planned_spent_flops": flops,
        "planned_spent_steps": steps,
        "speech_epochs": 0.0,  # of other speech than the pretraining's
        "corpus_passes": 0.0,
    }
    return dataclasses.replace(parent.row, **columns, **_following(parent.row, after, steps), run_id=content_hash(content))


def _evaluated(parent: PlanRow, after: AfterOptions) -> PlanRow:
    """An evaluation of a parent; how many items it has is not said (the paper's gap 10), so it is not priced."""
    content = {"parent": parent.run_id, "kind": after.kind, "task": after.task}
    nothing = {name: type(getattr(parent, name))() for name in _OF_A_LENGTH}
    return dataclasses.replace(parent, **nothing, **_following(parent, after), run_id=content_hash(content))


def _following(parent: PlanRow, after: AfterOptions, steps: int = 0) -> dict[str, Any]:
    """The columns that say what a row is and after whom."""
    length = f" steps={steps}" if steps else ""
    return {
        "kind": after.kind,
        "parent_run_id": parent.run_id,
        "match_group": f"{parent.match_group} {after.task}{length}",
        "status": Status.REFUSED,
        "reason": f"{after.task} ({TASKS[after.kind][after.task]}) is accounted for, but this version trains and evaluates "
        "pretraining runs alone",
    }
