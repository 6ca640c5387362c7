"""The section `patching` of a configuration: how a speech span is cut into patches. Part of `lst.config`, which exports it.

What the options do is in lst/patching.py; docs/patching.md draws them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from lst.checks import require_choice, require_positive, require_share
from lst.errors import ConfigError

MOST_NOISE_MS = 1_000  # a boundary that is a second off is none


class Patching(StrEnum):
    """How speech tokens become units. TOKEN: each id is a unit (a speech token, or a piece of arm `bpe`)."""

    TOKEN = "token"
    STATIC = "static"
    ALIGNED = "aligned"
    MIXED = "mixed"
    CURRICULUM = "curriculum"


@dataclass(frozen=True, kw_only=True)
class PatchingConfig:
    """How a speech span is cut into patches, and how that changes over training."""

    kind: Patching  # token | static | aligned | mixed | curriculum
    patch_size: int = 4  # tokens of a static patch (PAPER: 4 in the main results)
    aligned_unit: str = "word"  # word | bpe: what an aligned patch holds, a word or a text piece of one
    silence: str = "separate"  # separate | merged: aligned: frames outside words are patches of their own, or join a neighbour
    merge_side: str = "previous"  # previous | next: merged: which neighbour; without one on that side a silence stays alone
    boundary_noise_ms: tuple[int, int] = (0, 0)  # aligned: boundaries are moved by so much, least and largest (PAPER: A.11)
    draw: str = "sequence"  # sequence | step: mixed, curriculum: what static or aligned is drawn for
    mixed_aligned_share: float = 0.5  # mixed: probability that a sequence (or step) is aligned
    curriculum_aligned_until: float = 1 / 3  # curriculum: share of the steps that is all aligned (tau 1)
    curriculum_static_from: float = 2 / 3  # curriculum: share of the steps after which all is static (tau 2)

    def validate(self) -> None:
        require_positive("patching.patch_size", self.patch_size)
        require_choice("patching.aligned_unit", self.aligned_unit, ("word", "bpe"))
        require_choice("patching.silence", self.silence, ("separate", "merged"))
        require_choice("patching.merge_side", self.merge_side, ("previous", "next"))
        require_choice("patching.draw", self.draw, ("sequence", "step"))
        require_noise("patching.boundary_noise_ms", self.boundary_noise_ms)
        require_share("patching.mixed_aligned_share", self.mixed_aligned_share)
        require_share("patching.curriculum_aligned_until", self.curriculum_aligned_until)
        require_share("patching.curriculum_static_from", self.curriculum_static_from)
        if self.curriculum_aligned_until > self.curriculum_static_from:
            raise ConfigError(
                f"patching.curriculum_aligned_until={self.curriculum_aligned_until} lies after "
                f"curriculum_static_from={self.curriculum_static_from}; the aligned share falls, so put it before."
            )

    def aligned_probability(self, progress: float) -> float:
        """P(aligned) at `progress` in [0, 1) of the run (PAPER: 1 until tau 1, linear to 0 at tau 2, 0 after)."""
        if self.kind is Patching.ALIGNED:
            return 1.0
        if self.kind is Patching.MIXED:
            return self.mixed_aligned_share
        if self.kind is not Patching.CURRICULUM:
            return 0.0
        start, end = self.curriculum_aligned_until, self.curriculum_static_from
        if progress < start:
            return 1.0
        return 0.0 if progress >= end else (end - progress) / (end - start)

    @property
    def silence_rule(self) -> str:
        """`separate`, or the side to which a silence is merged: `previous` or `next`."""
        return self.merge_side if self.silence == "merged" else "separate"

    @property
    def evaluation_kind(self) -> Patching:
        """The patching of held-out evaluation: static for mixed and curriculum, else the arm's own (PAPER: 3.1)."""
        return Patching.STATIC if self.kind in (Patching.MIXED, Patching.CURRICULUM) else self.kind


def require_noise(name: str, noise: tuple[int, int]) -> None:
    """Raises ConfigError unless `noise` are two numbers of milliseconds by which a boundary can be moved, least and largest."""
    low, high = noise
    if not 0 <= low <= high <= MOST_NOISE_MS:
        raise ConfigError(f"{name}={[low, high]} is no range of milliseconds; give [least, most], 0 to {MOST_NOISE_MS}.")
