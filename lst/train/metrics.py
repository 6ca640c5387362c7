"""The records a run writes while it trains: one a step, one an evaluation metric, and what it says on the terminal.

docs/run_folder.md is the data dictionary. Not here: files (lst.records) and what a metric means (lst.evals).
"""

from __future__ import annotations

import logging
import math
import resource
import time
from typing import TYPE_CHECKING, Any

from lst.data.vocab import FRAMES_PER_SECOND
from lst.hardware import gpu_peak_flops

if TYPE_CHECKING:
    import torch

    from lst.config import RunConfig
    from lst.evals.heldout import Metric
    from lst.flops import SequenceCounts
    from lst.train.checkpoint import TrainState
    from lst.train.losses import LossSums

COUNTS = ("units", "tokens", "text_tokens", "text_only_tokens", "speech_tokens")
EVAL_COUNTS = ("units", "text_tokens", "speech_tokens")
LOG_SECONDS = 5.0  # between lines on the terminal

log = logging.getLogger(__name__)


def spent(state: TrainState, names: tuple[str, ...]) -> dict[str, Any]:
    """What the run has spent up to now: FLOPs and counts (whole numbers)."""
    return {"train_flops": state.train_flops} | {name: int(state.counts.get(name, 0)) for name in names}


def train_record(
    state: TrainState,
    *,
    losses: LossSums,
    lr: float,
    grad_norm: float,
    known: dict[str, Any],
    clock: dict[str, float],
    skipped: str = "",
) -> dict[str, Any]:
    """The record of the step that `state` has just done; `known` what is known of its batch, `clock` the wall-clock fields.

    `skipped` says why the step left the weights as they were, if it did; what is no finite number is then left out.
    """
    optimiser = {"lr": lr, "grad_norm": grad_norm}
    measured = {name: value for name, value in (losses.means() | optimiser).items() if math.isfinite(value)}
    why = {"skipped": skipped} if skipped else {}
    so_far = spent(state, COUNTS) | {"spent_flops": state.spent_flops}
    return {"step": state.step} | branch_field(state) | why | measured | so_far | known | clock


def eval_record(state: TrainState, metric: Metric) -> dict[str, Any]:
    return {
        "step": state.step,
        **branch_field(state),
        **spent(state, EVAL_COUNTS),
        "task": metric.task,
        "direction": metric.direction,
        "metric": metric.metric,
        "value": metric.value,
        "n_items": metric.n_items,
        **metric.about,
    }


def exit_record(state: TrainState) -> dict[str, Any]:
    """What exit.json says of the way to the final weights, and of what was spent beside it."""
    return {
        "run_id": state.run_id,
        "status": "done",
        "step": state.step,
        **spent(state, EVAL_COUNTS),
        "spent_flops": state.spent_flops,
        "skipped_steps": len(state.skipped),
        "branches": state.branches,
        "out_of_memory": state.out_of_memory,
        "seconds": round(state.seconds, 3),
    }


def branch_field(state: TrainState) -> dict[str, int]:
    """The field `branch` of a record, absent on the trunk."""
    return {} if state.branch is None else {"branch": state.branch}


def wall_clock(
    counts: SequenceCounts, *, seconds: float, data_seconds: float, flops: float, peak_flops: float | None, device: torch.device
) -> dict[str, float]:
    """The wall-clock fields of one step of `seconds`, of which it waited `data_seconds` for its batch."""
    clock = {
        "time": round(time.time(), 3),
        "seconds": round(seconds, 6),
        "data_seconds": round(data_seconds, 6),
        "data_wait_share": round(data_seconds / seconds, 4),
        "tokens_per_second": round(counts.tokens / seconds, 1),
        "units_per_second": round(counts.units / seconds, 1),
        "audio_seconds_per_second": round(counts.speech_tokens / FRAMES_PER_SECOND / seconds, 1),
        "peak_memory_mib": round(peak_memory(device) / 2**20, 1),
    }
    return clock | ({"mfu": round(flops / seconds / peak_flops, 5)} if peak_flops else {})


def peak_flops(config: RunConfig, device: torch.device) -> float | None:
    """FLOP/s of which `mfu` is a share: as the run says, else the GPU's; None where it is not known."""
    if config.execution.peak_flops:
        return config.execution.peak_flops
    if device.type != "cuda":
        return None
    import torch

    return gpu_peak_flops(torch.cuda.get_device_name(device), config.train.dtype)


def peak_memory(device: torch.device) -> int:
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
        losses = f"skipped ({record['skipped']})" if "skipped" in record else f"loss {record['loss']:.3f} ({', '.join(parts)})"
        speed = f"{record['tokens_per_second']:,.0f} tokens/s"
        log.info("step %s/%s  %s  lr %.2e  %s  %.0f s left", f"{step:,}", f"{self._steps:,}", losses, record["lr"], speed, left)
