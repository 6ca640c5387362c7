"""How a generated id is chosen, and how generated speech is cut, as options: checked without torch, so by the planner too.

Choosing and cutting: `lst.model.generate`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lst.config import Patching, RunConfig
from lst.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next id is chosen. The distribution is divided by the temperature, then cut by top_k, then by top_p."""

    temperature: float = 0.0  # 0 = the most probable id
    top_k: int = 0  # so many most probable ids; 0 = all
    top_p: float = 1.0  # the fewest most probable ids with at least this share of what top_k left

    def validate(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ConfigError(f"temperature={self.temperature} must be a number from 0 (the most probable id) on.")
        if self.top_k < 0:
            raise ConfigError(f"top_k={self.top_k} is negative; give 0 for all ids.")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p} must lie in (0, 1]; give 1 for all ids.")


def generation_patching(config: RunConfig, direction: str | None, *, static_fallback: bool) -> Patching:
    """How the speech of prompt and continuation is cut. Raises ConfigError where an aligned arm would have to generate speech."""
    kind = config.patching.evaluation_kind
    if kind is not Patching.ALIGNED:
        return kind
    if static_fallback:
        return Patching.STATIC
    if direction is None or direction.endswith("S"):
        asked = "no direction was given, so speech may come" if direction is None else f"direction='{direction}' generates speech"
        raise ConfigError(
            f"{asked}, and arm 'lst_aligned' knows no alignment of what is yet to come; "
            "give static_fallback=True to cut speech statically, or a direction to text."
        )
    return kind
