"""What a model makes of speech, unit by unit: the vectors that go into its global transformer, and those that come out.

    patch     a unit as it goes in: of LST the encoder's patch, of the baseline a token's embedding
    global    the same unit as it comes out, normed

An utterance stands alone in its row: BOS <s> f f f f f ... Legend: F frames (25 Hz) of an utterance, U its units of speech,
G width of the global transformer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lst.config import Patching

if TYPE_CHECKING:
    from torch import Tensor

    from lst.evals.checkpoints import Checkpoint
    from lst.evals.utterances import Utterance

PLACES = ("patch", "global")


@dataclass(frozen=True)
class UnitStates:
    """One utterance's units of speech."""

    utterance: Utterance
    unit_F: NDArray[np.int64]  # unit of each frame, from 0
    states: dict[str, NDArray[np.float64]]  # of PLACES: (U, G)

    def span(self, place: str, first: int, last: int) -> NDArray[np.float64]:
        """(G,) mean over frames `first` .. `last` of their units' vectors: of an aligned patch on just these frames, its own."""
        return np.asarray(self.states[place][self.unit_F[first : last + 1]].mean(0))


def unit_states(checkpoint: Checkpoint, utterances: Sequence[Utterance], kind: Patching, dtype: str) -> list[UnitStates]:
    """Of each utterance, patched by `kind`."""
    import torch

    from lst.data.pack import PackedBatch
    from lst.evals.scoring import Scorer, batches_by_length
    from lst.model import Batch

    model: Any = checkpoint.model
    scorer = Scorer(model, checkpoint.config, device=checkpoint.device, kind=kind, dtype=dtype)
    rows = [scorer.row([utterance.speech]) for utterance in utterances]
    found: dict[int, UnitStates] = {}
    model.eval()
    autocast = torch.autocast(checkpoint.device.type, torch.bfloat16, enabled=dtype == "bfloat16")
    with _recorded(model.global_transformer) as seen, torch.no_grad(), autocast:
        for part in batches_by_length([row.tokens for row in rows], checkpoint.config.execution.micro_batch_tokens):
            model.hidden(Batch.from_packed(PackedBatch([rows[i] for i in part]), checkpoint.device))
            for b, i in enumerate(part):
                unit_F = np.repeat(rows[i].unit, rows[i].frames)  # BOS and marker stand for no frame
                first = int(unit_F[0])
                states = {p: seen[p][b, first : rows[i].units].double().cpu().numpy() for p in PLACES}
                found[i] = UnitStates(utterances[i], unit_F - first, states)
    return [found[i] for i in range(len(rows))]


@contextlib.contextmanager
def _recorded(module: Any) -> Iterator[dict[str, Tensor]]:
    """Where the last call's first argument and result stand."""
    seen: dict[str, Tensor] = {}

    def record(_module: Any, given: tuple[Any, ...], result: Tensor) -> None:
        seen.update(zip(PLACES, (given[0], result), strict=True))

    handle = module.register_forward_hook(record)
    try:
        yield seen
    finally:
        handle.remove()
