"""The table of assumptions: every option that settles a gap of the paper is named in it, with the default that it has."""

from __future__ import annotations

import re

import pytest

from lst.assumptions import ASSUMPTIONS
from lst.config import RunConfig, arm_config
from lst.plain import to_dict

OPTIONS = [
    "model.pooling", "model.queries_per_patch", "model.decoder_input", "model.cross_attention", "model.local_text",
    "model.tied_head", "model.speech_bpe_vocab", "baseline_match", "patching.aligned_unit", "patching.silence",
    "patching.merge_side", "patching.draw", "patching.mixed_aligned_share", "patching.curriculum_aligned_until",
    "patching.curriculum_static_from", "patching.boundary_noise_ms",
]  # fmt: skip


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_of_an_arm_is_named(option: str) -> None:
    assert [a.name for a in ASSUMPTIONS if re.search(rf"\b{re.escape(option)}\b", a.value)] != []


def defaults(config: RunConfig) -> dict[str, str]:
    return {
        f"{section}.{key}": str(value).lower() if isinstance(value, bool) else str(value)
        for section, values in to_dict(config).items()
        for key, value in values.items()
    }


def test_defaults_that_the_table_tells_are_those_of_the_configuration() -> None:
    told = [pair for a in ASSUMPTIONS for pair in re.findall(r"(\w+\.\w+) = ([\w.]+?)(?=[);,]|$)", a.value)]
    assert len(told) >= 8
    known = defaults(arm_config("lst_mixed"))
    assert {option: known[option] for option, _ in told} == dict(told)


def test_names_are_given_once() -> None:
    names = [a.name for a in ASSUMPTIONS]
    assert len(set(names)) == len(names)
