"""Variants of an arm: the same arm with other options, beside it in one study.

    arms: [baseline, lst_static, "lst_static:size6"]
    variants:
      "lst_static:size6":
        patching: {patch_size: 6}

A variant is named ARM:NAME and stands under that name in the column `arm` of every table, so that no fit, pair or mean
takes two variants for one. What it may change are options of `patching`, `model` and `mixture`, and `reference`, the arm
that it is matched to. Not here: how the options reach a run (`sweeps.study.StudyConfig.of_arm`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lst.config import Arm
from lst.errors import ConfigError, did_you_mean

VARIANT_SECTIONS = ("patching", "model", "mixture")
Variants = Mapping[str, Mapping[str, Any]]
_NAME = re.compile(r"[A-Za-z0-9_.-]+")


def arm_of(name: str) -> Arm:
    """The arm of a name of a study's arms, a variant's or an arm's own. Raises ConfigError on an unknown one."""
    arm = name.partition(":")[0]
    if arm not in list(Arm):
        raise ConfigError(f"arm '{name}' is unknown; {did_you_mean(arm, list(Arm))}")
    return Arm(arm)


def read_variants(values: Any) -> Variants:
    """Variants from plain values, read strictly but for their sections' values. Raises ConfigError."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"variants={values!r} is no mapping; write variants={{ARM:NAME: {{patching: {{...}}}}}}.")
    return {str(name): _read(str(name), content) for name, content in values.items()}


def _read(name: str, content: Any) -> Mapping[str, Any]:
    arm, colon, word = name.partition(":")
    if not colon or not _NAME.fullmatch(word):
        raise ConfigError(f"variants has '{name}'; a variant is named ARM:NAME, as in lst_static:size6.")
    arm_of(name)
    if not isinstance(content, Mapping):
        raise ConfigError(f"variants.{name}={content!r} is no mapping; give the options that differ from arm '{arm}'.")
    for key, value in content.items():
        if key not in (*VARIANT_SECTIONS, "reference"):
            raise ConfigError(f"unknown key 'variants.{name}.{key}'; {did_you_mean(str(key), (*VARIANT_SECTIONS, 'reference'))}")
        if not isinstance(value, str if key == "reference" else Mapping):
            raise ConfigError(f"variants.{name}.{key}={value!r} must be {'a text' if key == 'reference' else 'a mapping'}.")
    return {str(key): value for key, value in content.items()}
