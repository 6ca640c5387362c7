"""Micro-batches, and what to do when one does not fit into the memory: only its size may change.

The step is then done again from clean gradients with half the tokens, which changes the result by rounding alone; the
smaller size stays for the rest of the attempt. Where it cannot be smaller (one row alone does not fit, or several processes
run, which must all do the same), the run fails with the estimate of its memory beside what it had.
"""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from lst.memory import memory_by_part
from lst.train.failures import OutOfMemory, is_out_of_memory
from lst.train.metrics import peak_memory

if TYPE_CHECKING:
    import torch

    from lst.config import RunConfig
    from lst.data.pack import PackedBatch
    from lst.train.losses import LossSums

log = logging.getLogger(__name__)


class MicroBatches:
    """Splits global batches. `tokens` is the size that fits as far as is known."""

    def __init__(self, tokens: int, *, processes: int = 1) -> None:
        self.tokens, self.processes = tokens, processes
        self.units_per_token = 1.0  # of the last global batch

    def run(self, packed: PackedBatch, compute: Callable[[list[PackedBatch]], LossSums]) -> tuple[LossSums, list[int]]:
        """`compute` on the parts of `packed`, anew with smaller parts while memory runs out; its result, and the sizes tried.

        `compute` must begin from clean gradients. Raises what it raised where nothing smaller is left.
        """
        self.units_per_token = packed.counts.units / max(packed.counts.tokens, 1)  # a rank may have no rows
        tried: list[int] = []
        while True:
            try:
                return compute(packed.split(self.tokens)), tried
            except (RuntimeError, MemoryError) as error:
                smaller = self._smaller(packed) if is_out_of_memory(error) and self.processes == 1 else None
                if smaller is None:
                    raise
            # Outside the handler: the exception kept the frames, and with them the tensors, of what did not fit.
            free_memory()
            log.warning("out of memory with micro-batches of %s tokens; going on with %s", f"{self.tokens:,}", f"{smaller:,}")
            self.tokens = smaller
            tried.append(smaller)

    def _smaller(self, packed: PackedBatch) -> int | None:
        """Half the tokens, halved on while that changes nothing; None where each part is one row already."""
        parts = packed.split(self.tokens)
        if all(len(part.rows) == 1 for part in parts):
            return None
        tokens = self.tokens // 2
        while _widest(packed.split(tokens)) >= _widest(parts) and tokens > 1:
            tokens //= 2
        return tokens


def free_memory() -> None:
    """Give back what Python and torch hold without need."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextlib.contextmanager
def explained_out_of_memory(config: RunConfig, device: torch.device, micro_batches: MicroBatches) -> Iterator[None]:
    """Turn an error of the memory into one sentence: what was there, what was estimated, what to do."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(_sentence(config, device, micro_batches)) from error


def _sentence(config: RunConfig, device: torch.device, micro_batches: MicroBatches) -> str:
    tokens = micro_batches.tokens
    parts = memory_by_part(
        config.model,
        tokens=tokens,
        units=tokens * micro_batches.units_per_token,
        gpu=device.type == "cuda",
        ranks=micro_batches.processes,
        dtype=config.train.dtype,
        checkpointing=config.execution.activation_checkpointing,
    )
    largest = max(parts, key=lambda name: parts[name])
    return (
        f"out of memory on {device.type} with micro-batches of {tokens:,} tokens: the peak was "
        f"{peak_memory(device) / 2**30:.2f} GiB, the estimate is {sum(parts.values()):.2f} GiB ({largest} {parts[largest]:.2f}); "
        "use a device with more memory, or plan a smaller model or shorter sequences."
    )


def _widest(parts: list[PackedBatch]) -> int:
    """Padded tokens of the largest part."""
    return max(len(part.rows) * max(row.tokens for row in part.rows) for part in parts)


def event(attempt: int, step: int, tokens: int) -> dict[str, Any]:
    """One entry of `out_of_memory` in state.json and exit.json."""
    return {"attempt": attempt, "step": step, "micro_batch_tokens": tokens}
