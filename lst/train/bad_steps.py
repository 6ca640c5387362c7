"""Steps that must not move the weights: a loss or gradient norm that is no finite number, or a loss that spikes.

The decision is a flag that all processes agree on (`agree`), then the policy: `train.bad_step=halt` ends the run, `skip` leaves
weights and moments as they are, up to `train.max_skipped_steps` times. A skipped step has taken its batch and its number, so
that the data order stays a function of the step. All that is remembered is in the TrainState, so that a resume is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from lst.train.failures import Diverged

if TYPE_CHECKING:
    from lst.config import RunConfig
    from lst.train.checkpoint import TrainState


def alone(bad: bool) -> bool:
    """What one process agrees on with itself. With several: whether the flag is set in any of them."""
    return bad


def judge_step(
    state: TrainState, *, loss: float, grad_norm: float, config: RunConfig, agree: Callable[[bool], bool] = alone
) -> str:
    """Why the step after `state.step` must be skipped (loss, grad_norm, spike, elsewhere), or "" for a good one.

    `state` remembers the step either way. Raises Diverged where the policy halts the run.
    """
    reason = _reason(state, loss, grad_norm, config)
    if not agree(bool(reason)):
        _remember(state, loss, config.train.spike_memory_steps)
        return ""
    reason = reason or "elsewhere"
    if config.train.bad_step == "skip" and len(state.skipped) < config.train.max_skipped_steps:
        state.skipped.append(state.step + 1)
        return reason
    raise Diverged(_sentence(state, reason, loss, grad_norm, config))


def _reason(state: TrainState, loss: float, grad_norm: float, config: RunConfig) -> str:
    if not math.isfinite(loss):
        return "loss"
    if not math.isfinite(grad_norm):
        return "grad_norm"
    train = config.train
    known = train.spike_factor > 0 and state.losses_seen >= train.spike_memory_steps
    return "spike" if known and loss > train.spike_factor * state.loss_mean else ""


def _remember(state: TrainState, loss: float, memory: int) -> None:
    """The running mean of the good steps' losses: the plain mean of the first `memory`, then m <- m + (loss - m) / memory."""
    state.losses_seen += 1
    state.loss_mean += (loss - state.loss_mean) / min(state.losses_seen, memory)


def _sentence(state: TrainState, reason: str, loss: float, grad_norm: float, config: RunConfig) -> str:
    optim, train = config.optim, config.train
    what = f"the loss of step {state.step + 1} is {loss:.6g} and its gradient norm {grad_norm:.6g}"
    if reason == "spike":
        what += f", above train.spike_factor={train.spike_factor:g} times the running mean {state.loss_mean:.6g}"
    if train.bad_step == "skip":
        what += f", and train.max_skipped_steps={train.max_skipped_steps} steps were skipped already"
    return f"{what}; lower optim.lr={optim.lr} or raise optim.warmup_steps={optim.warmup_steps}."
