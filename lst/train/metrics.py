"""The records a run writes while it trains: one a step, one an evaluation metric, and what it says on the terminal.

docs/run_folder.md is the data dictionary. Not here: files (lst.records) and what a metric means (lst.evals).
"""

from __future__ import annotations

import logging
import resource
import time
from typing import TYPE_CHECKING, Any

from lst.train.checkpoint import TrainState
from lst.train.losses import LossSums

if TYPE_CHECKING:
    import torch

    from lst.evals.heldout import Metric

COUNTS = ("units", "tokens", "text_tokens", "text_only_tokens", "speech_tokens")
EVAL_COUNTS = ("units", "text_tokens", "speech_tokens")
LOG_SECONDS = 5.0  # between lines on the terminal

log = logging.getLogger(__name__)


def spent(state: TrainState, names: tuple[str, ...]) -> dict[str, Any]:
    """What the run has spent up to now: FLOPs and counts (whole numbers)."""
    return {"train_flops": state.train_flops} | {name: int(state.counts.get(name, 0)) for name in names}


def train_record(
    state: TrainState, *, losses: LossSums, lr: float, grad_norm: float, batch_hash: str, clock: dict[str, float]
) -> dict[str, Any]:
    """The record of the step that `state` has just done; `clock` has the wall-clock fields."""
    optimiser = {"lr": lr, "grad_norm": grad_norm}
    return {"step": state.step} | losses.means() | optimiser | spent(state, COUNTS) | {"batch_hash": batch_hash} | clock


def eval_record(state: TrainState, metric: Metric) -> dict[str, Any]:
    return {
        "step": state.step,
        **spent(state, EVAL_COUNTS),
        "task": metric.task,
        "direction": metric.direction,
        "metric": metric.metric,
        "value": metric.value,
        "n_items": metric.n_items,
    }


def wall_clock(*, seconds: float, data_seconds: float, tokens: float, device: torch.device) -> dict[str, float]:
    """The wall-clock fields of one step of `seconds`, of which `data_seconds` made the batch."""
    return {
        "time": round(time.time(), 3),
        "seconds": round(seconds, 6),
        "data_seconds": round(data_seconds, 6),
        "tokens_per_second": round(tokens / seconds, 1),
        "peak_memory_mib": round(_peak_memory(device) / 2**20, 1),
    }


def _peak_memory(device: torch.device) -> int:
    """Bytes: of the device where it is a GPU, else of the process."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class ProgressLog:
    """A line every few seconds, and for the last step."""

    def __init__(self, steps: int, first_step: int) -> None:
        self._steps, self._first = steps, first_step
        self._started = time.monotonic()
        self._next = self._started

    def step(self, record: dict[str, Any]) -> None:
        now, step = time.monotonic(), record["step"]
        if now < self._next and step < self._steps:
            return
        self._next = now + LOG_SECONDS
        parts = [f"{name} {record[f'loss_{name}']:.3f}" for name in ("text", "speech") if f"loss_{name}" in record]
        left = (now - self._started) / (step - self._first) * (self._steps - step)
        losses = f"loss {record['loss']:.3f} ({', '.join(parts)})"
        speed = f"{record['tokens_per_second']:,.0f} tokens/s"
        log.info("step %s/%s  %s  lr %.2e  %s  %.0f s left", f"{step:,}", f"{self._steps:,}", losses, record["lr"], speed, left)
