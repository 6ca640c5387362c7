"""Which planned rows may run, and why not. Nothing is dropped silently: a refused row stays in the plan with its reason.

Some findings refuse a row (it could not answer the study's question), others only warn; both are told in the column
`reason`. Thresholds are the study's section `admission`. Not here: prices (`sweeps.price`), matching (`sweeps.allocate`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from lst.errors import ConfigError
from sweeps.columns import PlanRow, Status

COARSE = "as near as a whole sequence can land"  # in the reason of a row whose match is told


@dataclass(frozen=True, kw_only=True)
class AdmissionConfig:
    """Thresholds; the comment says whether crossing one refuses or warns."""

    min_steps: int = 20  # fewer steps: refused
    max_warmup_share: float = 0.1  # more of the steps spent on warm-up: refused
    min_batch_units: int = 64  # fewer units a batch: refused
    warn_match_gap: float = 0.001  # the matched quantity is off by more: warned
    max_match_gap: float = 0.005  # the matched quantity is off by more: refused
    max_peak_gib: float = 0.0  # more memory: refused; 0 = no limit
    max_speech_epochs: float = 40.0  # more epochs of the speech: refused (arXiv 2305.16264: such repeats teach nothing more)
    warn_speech_epochs: float = 6.0  # more epochs of the speech: warned (PAPER: about 6)

    def validate(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"admission.{field.name}={value} must be a finite number, 0 or more.")


@dataclass(frozen=True, kw_only=True)
class MatchGap:
    """How far a row is off in what is matched, as shares: a run is a whole number of sequences."""

    quantity: str = ""  # what is matched
    target: float = 0.0  # off what its group is matched to
    reference: float = 0.0  # off its group's reference row
    sequences: int = 1  # of the run

    def told(self, rules: AdmissionConfig) -> str:
        """What is to be told of it; empty where it is small."""
        far = {"the target": self.target, "the reference arm's": self.reference}
        off = [f"{gap:+.2%} from {what}" for what, gap in far.items() if abs(gap) > rules.warn_match_gap]
        return f"its {self.quantity} are {' and '.join(off)}, {COARSE} of {self.sequences:,}" if off else ""


def admit(
    row: PlanRow, rules: AdmissionConfig, *, gap: MatchGap | None = None, misfit: str = "", warned: Sequence[str] = ()
) -> PlanRow:
    """`row` with its status and reason.

    `gap` is how far it is off its target; `misfit` says why it fits on no GPUs (sweeps.placement); `warned` is what else is to be
    told of it.
    """
    gap = gap or MatchGap()
    refusals, warnings = [], list(warned)
    if row.steps < rules.min_steps:
        refusals.append(f"{row.steps} steps are fewer than admission.min_steps={rules.min_steps}")
    if row.warmup_steps > rules.max_warmup_share * row.steps:
        refusals.append(f"warm-up takes {row.warmup_steps} of {row.steps} steps, over {rules.max_warmup_share:.0%} of them")
    if row.batch_units < rules.min_batch_units:
        refusals.append(f"{row.batch_units} units a batch are under admission.min_batch_units={rules.min_batch_units}")
    if abs(gap.target) > rules.max_match_gap:
        refusals.append(
            f"its {gap.quantity} are off by {gap.target:+.3%}, over admission.max_match_gap={rules.max_match_gap:g} "
            "(a sequence is too coarse: lengthen the run or allow more)"
        )
    elif told := gap.told(rules):
        warnings.insert(0, told)
    if rules.max_peak_gib and row.est_peak_gib > rules.max_peak_gib:
        refusals.append(f"it needs about {row.est_peak_gib:.1f} GiB, over admission.max_peak_gib={rules.max_peak_gib:g}")
    if misfit:
        refusals.append(misfit)
    if row.speech_epochs > rules.max_speech_epochs:
        refusals.append(
            f"{row.speech_epochs:.1f} speech epochs are over admission.max_speech_epochs={rules.max_speech_epochs:g} "
            "(give more speech, a smaller budget, or allow more)"
        )
    elif row.speech_epochs > rules.warn_speech_epochs:
        warnings.append(f"{row.speech_epochs:.1f} speech epochs, over {rules.warn_speech_epochs:g}")
    status = Status.REFUSED if refusals else Status.ADMITTED
    return dataclasses.replace(row, status=status, reason="; ".join(refusals + [f"warning: {w}" for w in warnings]))


def group_warnings(rows: list[PlanRow]) -> list[str]:
    """A sentence for the match groups of which only a part is admitted: what is left has nothing to be compared with."""
    groups: dict[str, list[PlanRow]] = {}
    for row in rows:
        groups.setdefault(row.match_group, []).append(row)
    partial = [name for name, group in groups.items() if len({row.status for row in group}) > 1]
    if not partial:
        return []
    return [f"{len(partial)} match groups have admitted and refused rows, so no full comparison; the first is '{partial[0]}'."]


def gap_warnings(rows: Sequence[PlanRow], rules: AdmissionConfig) -> list[str]:
    """A sentence for admitted rows whose match is not as near as it is meant to be."""
    off = [row for row in rows if row.admitted and COARSE in row.reason]
    if not off:
        return []
    first = off[0].reason.removeprefix("warning: ").partition(";")[0]
    return [
        f"{len(off)} of {len(rows)} rows are more than {rules.warn_match_gap:.2%} off in what is matched (the column reason says "
        f"how far each is); the first is {off[0].arm} in '{off[0].match_group}': {first}."
    ]


def modality_warnings(rows: list[PlanRow], tolerance: float) -> list[str]:
    """Data matching holds all tokens together; where text or speech alone differs inside a group, that is said."""
    groups: dict[str, list[PlanRow]] = {}
    for row in rows:
        groups.setdefault(row.match_group, []).append(row)
    warnings = []
    for name in ("text_tokens", "speech_tokens"):
        values = [[getattr(row, name) for row in group] for group in groups.values()]
        gap = max((max(counts) / min(counts) - 1 for counts in values if min(counts) > 0), default=0.0)
        if gap > tolerance:
            warnings.append(
                f"matching=data holds all tokens equal, yet {name.replace('_', ' ')} differ by up to {gap:.1%} in a group."
            )
    return warnings
