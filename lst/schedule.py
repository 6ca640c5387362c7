"""The learning rate of each step: warm-up, then a cosine (PAPER: A.3), or stable and then a decay (WSD). No torch.

Up to its fork step a WSD run does not depend on its length, so one run can yield a decayed checkpoint for each of several
shorter budgets (`train.branch_steps`, lst.train.branches). Not here: what a size's learning rate should be
(`sweeps.recipe`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lst.errors import ConfigError

if TYPE_CHECKING:
    from lst.config import OptimConfig, TrainConfig

SCHEDULES = ("cosine", "wsd")
DECAY_SHAPES = ("sqrt", "linear")


def learning_rate(step: int, *, steps: int, optim: OptimConfig) -> float:
    """The learning rate of the 0-based `step` of a run of `steps`.

    With w = warmup_steps, r = final_lr_ratio, s = step + 1:  lr s / w  for s <= w;  after that

        cosine  lr (r + (1 - r) (1 + cos(pi (s - w) / (steps - w))) / 2)    the peak at s = w, r lr at the last step
        wsd     lr                             for s <= f = steps - max(1, round(decay_share steps))
                lr (r + (1 - r) fall(u))       after that, u = (s - f) / (steps - f):  r lr at the last step

    fall(u) is 1 - sqrt(u) or 1 - u (Haegele et al. 2024, arXiv 2405.18392; WSD: Hu et al. 2024, arXiv 2404.06395).
    """
    done = step + 1
    if done <= optim.warmup_steps:
        return optim.lr * done / optim.warmup_steps
    if optim.schedule == "wsd":
        share = _left_of_decay(done, steps=steps, optim=optim)
    else:
        share = (1 + math.cos(math.pi * (done - optim.warmup_steps) / (steps - optim.warmup_steps))) / 2
    return optim.lr * (optim.final_lr_ratio + (1 - optim.final_lr_ratio) * share)


def fork_step(steps: int, optim: OptimConfig) -> int:
    """Steps of a WSD run of `steps` steps before its decay: where it leaves the path that longer runs share."""
    return steps - max(1, round(optim.decay_share * steps))


def check_schedule(optim: OptimConfig, train: TrainConfig, *, length_decides_patching: bool) -> None:
    """Raises ConfigError where a branch would be no whole shorter run, or where a decay begins inside the warm-up."""
    branches = list(train.branch_steps)
    if branches and optim.schedule != "wsd":
        raise ConfigError(
            f"train.branch_steps={branches} needs optim.schedule='wsd', not '{optim.schedule}': "
            "a cosine's learning rates depend on the run's length."
        )
    if branches and length_decides_patching:
        raise ConfigError(
            f"train.branch_steps={branches} cannot be used with a curriculum, whose patching depends on the run's length; "
            "plan a run for each budget."
        )
    shortest = min(*branches, train.steps) if branches else train.steps
    if optim.schedule == "wsd" and fork_step(shortest, optim) < optim.warmup_steps:
        raise ConfigError(
            f"optim.decay_share={optim.decay_share} of {shortest} steps begins after step {fork_step(shortest, optim)}, inside "
            f"the warm-up of optim.warmup_steps={optim.warmup_steps}; warm up for fewer steps or decay over fewer."
        )


def _left_of_decay(done: int, *, steps: int, optim: OptimConfig) -> float:
    """How much of the way from the last learning rate to the peak is left after `done` steps: 1 to 0."""
    fork = fork_step(steps, optim)
    if done <= fork:
        return 1.0
    progress = (done - fork) / (steps - fork)
    return 1 - (math.sqrt(progress) if optim.decay_shape == "sqrt" else progress)
