"""The matching: how many steps a run gets, and how many sequences its last batch, so that it lands on its target.

A run is n packed sequences; the planner chooses n. The quantity Q to land on (FLOPs, tokens, units) is summed over the
very sequences that the trainer will see,

    Q(n) = q_1 + ... + q_n,        n* = the n whose Q(n) is nearest to the target,

and then steps = ceil(n* / batch), the last batch taking what remains. FLOPs are linear in a sequence's counts, so q is a
dot product. A curriculum's sequences depend on the number of steps (its patching follows progress), so its steps are
iterated to a fixed point. The rounding is at most half a sequence. Not here: what is matched with what (`sweeps.build`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from lst.config import Patching, RunConfig
from lst.data.statistics import FIELDS, SequenceTable
from lst.errors import PlanError
from lst.flops import SequenceCounts, training_flops
from sweeps.measure import Measure

PROBE_SEQUENCES = 64  # sequences of the first guess
COARSE_SEQUENCES = 256  # sequences of a curriculum's first rounds
COARSE_ROUNDS = 2
CURRICULUM_ROUNDS = 12  # iterations of a curriculum's steps
MOST_SEQUENCES = 2**50  # more would leave the whole numbers that floats hold exactly


class Quantity(StrEnum):
    """What a target counts."""

    FLOPS = "FLOPs"
    TOKENS = "tokens"
    UNITS = "units"


@dataclass(frozen=True, kw_only=True)
class Target:
    """The number that a run's quantity should come to."""

    quantity: Quantity
    value: float


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """A solved length, with what the run is expected to hold and cost."""

    sequences: int
    steps: int
    batch_sequences: int
    final_batch_sequences: int  # 0 = a full batch
    counts: SequenceCounts  # of the whole run
    flops: float  # training FLOPs of the whole run

    def amount(self, quantity: Quantity) -> float:
        match quantity:
            case Quantity.FLOPS:
                return self.flops
            case Quantity.TOKENS:
                return self.counts.tokens
            case Quantity.UNITS:
                return self.counts.units


def allocate(config: RunConfig, measure: Measure, *, batch_sequences: int, target: Target) -> Allocation:
    """The run of `config`, in batches of `batch_sequences`, whose quantity is nearest to the target.

    Raises PlanError if the target is less than half a sequence, or beyond counting.
    """
    if config.patching.kind is Patching.CURRICULUM:
        sequences, table = _solve_curriculum(config, measure, batch_sequences, target)
    else:
        sequences, table = _solve_prefix(config, measure, batch_sequences, target)
    return _allocation(config, table, sequences, batch_sequences)


def copy_length(config: RunConfig, measure: Measure, reference: Allocation) -> Allocation:
    """The run of `config` with the reference's steps, batch and last batch (matching = unit)."""
    return given_length(config, measure, sequences=reference.sequences, batch_sequences=reference.batch_sequences)


def given_length(config: RunConfig, measure: Measure, *, sequences: int, batch_sequences: int) -> Allocation:
    """The run of `config` with so many sequences in such batches."""
    if config.patching.kind is Patching.CURRICULUM:
        table = measure.run(config, steps=math.ceil(sequences / batch_sequences), batch_sequences=batch_sequences)
    else:
        table = measure.prefix(config, sequences, batch_sequences=batch_sequences)
    return _allocation(config, table, sequences, batch_sequences)


def whole_batches(config: RunConfig, measure: Measure, allocation: Allocation) -> Allocation:
    """The nearest length that ends with a full batch, as a branch of a longer run does (lst.train.branches)."""
    steps = max(1, round(allocation.sequences / allocation.batch_sequences))
    full = dataclasses.replace(allocation, steps=steps, sequences=steps * allocation.batch_sequences, final_batch_sequences=0)
    return copy_length(config, measure, full)


def flops_until(measure: Measure) -> Callable[[RunConfig, int], float]:
    """FLOPs of the first steps of a run whose sequences do not depend on its length."""

    def flops(config: RunConfig, steps: int) -> float:
        sequences = steps * config.train.batch_sequences
        table = measure.prefix(config, sequences, batch_sequences=config.train.batch_sequences)
        return training_flops(config, _counts_of_first(table, sequences)).total

    return flops


def _solve_prefix(config: RunConfig, measure: Measure, batch: int, target: Target) -> tuple[int, SequenceTable]:
    """Sequences that do not depend on the run's length: count until the target is passed, or as far as is counted."""
    probe = measure.prefix(config, PROBE_SEQUENCES, batch_sequences=batch)
    wanted = math.ceil(1.05 * _guess(_values(config, probe, target.quantity), target)) + 16
    limit = measure.count_limit(config)
    while True:
        table = measure.prefix(config, wanted, batch_sequences=batch)
        totals = np.cumsum(_values(config, table, target.quantity))
        if totals[-1] >= target.value or wanted >= limit:
            break
        wanted = math.ceil(1.25 * wanted)
    if totals[-1] >= target.value:
        return _nearest(totals, target.value), table
    return max(1, round(target.value / float(totals[-1]) * len(totals))), table


def _solve_curriculum(config: RunConfig, measure: Measure, batch: int, target: Target) -> tuple[int, SequenceTable]:
    """Iterate steps -> sequences of that schedule -> steps; of all schedules seen, the one that lands nearest.

    The first rounds look at few sequences, spread over the schedule, only to come near.
    """
    probe = measure.run(config, steps=PROBE_SEQUENCES, batch_sequences=1)
    steps = math.ceil(_guess(_values(config, probe, target.quantity), target) / batch)
    for _ in range(COARSE_ROUNDS):
        table = measure.run(config, steps=steps, batch_sequences=batch, limit=COARSE_SEQUENCES)
        steps = math.ceil(_guess(_values(config, table, target.quantity), target) / batch)
    best: tuple[float, int, SequenceTable] | None = None
    seen: set[int] = set()
    while steps not in seen and len(seen) < CURRICULUM_ROUNDS:
        seen.add(steps)
        table = measure.run(config, steps=steps, batch_sequences=batch)
        values = _values(config, table, target.quantity)
        sequences, amount = _nearest_in_last_batch(values, table, (steps - 1) * batch, target.value)
        if best is None or abs(amount - target.value) < best[0]:
            best = (abs(amount - target.value), sequences, table)
        over = (amount - target.value) / float(values.mean())
        if abs(over) <= 0.5:
            break
        steps = max(1, math.ceil((sequences - over) / batch))
    assert best is not None
    return best[1], best[2]


def _nearest_in_last_batch(values: NDArray[np.float64], table: SequenceTable, before: int, value: float) -> tuple[int, float]:
    """(sequences, their amount) nearest to `value` among those that end in the last batch, after `before` sequences."""
    if table.exact:
        totals = np.cumsum(values)
        sequences = before + _nearest(totals[before:], value)
        return sequences, float(totals[sequences - 1])
    mean = float(values.mean())
    sequences = min(max(round(value / mean), before + 1), table.total_sequences)
    return sequences, sequences * mean


def _allocation(config: RunConfig, table: SequenceTable, sequences: int, batch: int) -> Allocation:
    counts = _counts_of_first(table, sequences)
    steps = math.ceil(sequences / batch)
    final = sequences - (steps - 1) * batch
    return Allocation(
        sequences=sequences,
        steps=steps,
        batch_sequences=batch,
        final_batch_sequences=0 if final == batch else final,
        counts=counts,
        flops=training_flops(config, counts).total,
    )


def _counts_of_first(table: SequenceTable, sequences: int) -> SequenceCounts:
    """Counts of the first `sequences`: their sum if all of them were counted, else as many of the counted ones' mean."""
    if not table.exact or sequences > len(table.indices):
        return table.mean().scaled(sequences)
    sums = table.counts[:sequences].sum(0).tolist()
    return SequenceCounts(**dict(zip(FIELDS, sums, strict=True)))


def _values(config: RunConfig, table: SequenceTable, quantity: Quantity) -> NDArray[np.float64]:
    """The quantity of each counted sequence."""
    if quantity is Quantity.FLOPS:
        return table.flops(config)
    column: NDArray[np.float64] = table.counts[:, FIELDS.index(quantity.value)]
    return column


def _guess(values: NDArray[np.float64], target: Target) -> int:
    """Sequences to the target by the mean sequence."""
    sequences = target.value / float(values.mean())
    if sequences < 0.5:
        raise PlanError(
            f"{target.value:.3g} {target.quantity} are less than half of one sequence ({values.mean():.3g}); "
            "give a larger budget, a smaller size or shorter sequences."
        )
    if sequences > MOST_SEQUENCES:
        raise PlanError(f"{target.value:.3g} {target.quantity} are {sequences:.2g} sequences; give a smaller budget.")
    return math.ceil(sequences)


def _nearest(totals: NDArray[np.float64], value: float) -> int:
    """1-based place of the total nearest to `value`; `totals` rise."""
    above = min(int(np.searchsorted(totals, value)), len(totals) - 1)
    below = max(0, above - 1)
    return 1 + (below if abs(totals[below] - value) <= abs(totals[above] - value) else above)
