"""Branches of a WSD run: a decayed checkpoint for each earlier budget, from one trunk.

    trunk    0 ------------ F1 ---- F2 ------------------ F ------ steps     decays over F .. steps
    branch                   +----------- S1                                decays over F1 .. S1, on the batches F1 .. S1
    branch                          +----------- S2

At the fork F = lst.schedule.fork_step(S) the trunk is saved; the branch trains from there to S, is evaluated, leaves
checkpoints/budget-<S>/, and the trunk is loaded again and goes on as if nothing had been. So a branch equals, to the bit, a
run of S steps of its own (tests/train/test_branches.py). Not here: learning rates (lst.schedule), the loop
(lst.train.trainer).
"""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Any

from lst.errors import CheckpointError
from lst.schedule import fork_step
from lst.train.metrics import COUNTS, spent

if TYPE_CHECKING:
    from lst.config import RunConfig
    from lst.train.checkpoint import TrainState


def due_branch(config: RunConfig, state: TrainState) -> int | None:
    """The branch (its number of steps) that leaves the trunk where `state` stands, the shortest first; None if there is none."""
    if state.branch is not None:
        return None
    done = {branch["steps"] for branch in state.branches}
    due = [s for s in config.train.branch_steps if s not in done and fork_step(s, config.optim) == state.step]
    return min(due, default=None)


def fork_off(trunk: TrainState, steps: int) -> TrainState:
    """The state of the branch of `steps` steps at its fork."""
    branch = copy.deepcopy(trunk)
    branch.branch = steps
    return branch


def rejoin(trunk: TrainState, branch: TrainState, config: RunConfig) -> None:
    """Tell the trunk, as loaded from its checkpoint, what its finished `branch` was and has spent.

    Raises CheckpointError if this is not the checkpoint at which the branch left (a damaged one was passed over).
    """
    assert branch.branch is not None
    fork = fork_step(branch.branch, config.optim)
    if trunk.branch is not None or trunk.step != fork:
        raise CheckpointError(
            f"the checkpoint of step {fork:,}, where the branch of {branch.branch:,} steps left, is damaged; run it again: it "
            f"goes on from step {trunk.step:,}."
        )
    trunk.branches.append({"steps": branch.branch, "train_flops": branch.train_flops, "skipped_steps": len(branch.skipped)})
    trunk.spent_flops, trunk.seconds = branch.spent_flops, branch.seconds
    trunk.records, trunk.out_of_memory = branch.records, branch.out_of_memory


def branch_tag(config: RunConfig, state: TrainState) -> dict[str, Any]:
    """What checkpoints/budget-<S>/tag.json says: of which budget these weights are, and which run has the same."""
    assert state.branch is not None
    train = dataclasses.replace(config.train, steps=state.branch, branch_steps=(), final_batch_sequences=0)
    return {
        "run_id": config.run_id,
        "branch": state.branch,
        "forked_at": fork_step(state.branch, config.optim),
        "equal_run_id": dataclasses.replace(config, train=train).run_id,
        **spent(state, COUNTS),
    }
