"""An arm of a study: its network and its patching, with only the options that the arm has.

An option that an arm has not keeps its default, so that changing it leaves the arm's run ids alone. Not here: how long a
run is (`sweeps.allocate`) and what its data are mixed from (`sweeps.build`).
"""

from __future__ import annotations

import dataclasses

from lst.config import ARM_PATCHING, Arm, ModelConfig, Patching, PatchingConfig
from lst.ladder import BaselineMatch, matched_stack, model_shape
from sweeps.measure import Measure
from sweeps.study import StudyConfig


def arm_model(study: StudyConfig, measure: Measure, size: str, arm: Arm) -> ModelConfig:
    """The network with the data's vocabularies. Options that an arm has not keep their defaults, and so its run ids."""
    shape = dataclasses.replace(model_shape(size, arm), text_vocab=measure.text_vocab, speech_vocab=measure.speech_vocab)
    if arm.plain and study.baseline_match == BaselineMatch.LST_PARAMS:
        shape = dataclasses.replace(shape, global_stack=matched_stack(arm_model(study, measure, size, Arm.LST_STATIC)))
    return study.model.applied_to(shape)


def arm_patching(study: StudyConfig, arm: Arm) -> PatchingConfig:
    """The arm's patching, again with only the options that it has."""
    kind, options = ARM_PATCHING[arm], study.patching
    patching = PatchingConfig(kind=kind)
    if kind in (Patching.STATIC, Patching.MIXED, Patching.CURRICULUM):
        patching = dataclasses.replace(patching, patch_size=options.patch_size)
    if kind in (Patching.ALIGNED, Patching.MIXED, Patching.CURRICULUM):
        patching = dataclasses.replace(
            patching,
            aligned_unit=options.aligned_unit,
            silence=options.silence,
            boundary_noise_ms=options.boundary_noise_ms,
        )
        if options.silence == "merged":
            patching = dataclasses.replace(patching, merge_side=options.merge_side)
    if kind in (Patching.MIXED, Patching.CURRICULUM):
        patching = dataclasses.replace(patching, draw=options.draw)
    if kind is Patching.MIXED:
        patching = dataclasses.replace(patching, mixed_aligned_share=options.mixed_aligned_share)
    if kind is Patching.CURRICULUM:
        patching = dataclasses.replace(
            patching,
            curriculum_aligned_until=options.curriculum_aligned_until,
            curriculum_static_from=options.curriculum_static_from,
        )
    return patching
