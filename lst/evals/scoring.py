"""Losses of whole documents under a model: patched as the arm is evaluated, batched by length, without gradients.

What the tasks share. A document stands alone in its row, without EOS, so its losses depend on nothing beside it; batch
size, padding and order change a loss only by rounding. T tokens of one document.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lst.config import Patching, RunConfig
from lst.data.interleave import Document, Segment
from lst.data.pack import EncodedDocument, PackedBatch, PackedRow, encode_document
from lst.data.speech_bpe import run_pieces
from lst.data.vocab import Vocabulary
from lst.train.distributed import Ranks

if TYPE_CHECKING:
    import torch

    from lst.train.losses import Network

SIMILAR = 0.75  # a row joins a batch if it has at least this share of the longest row's tokens: little padding


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One document with its losses."""

    row: PackedRow
    nats_T: NDArray[np.float64]  # -log p(id at t + 1) at each t with a target, 0 at the last

    def sums(self, modality: int | None = None) -> tuple[float, int]:
        """(nats, predicted tokens), of one modality or of all; markers belong to no modality.

        Tokens count by content, so that every arm divides by the same number: a piece counts as its speech tokens.
        """
        predicted = self.row.target >= 0
        if modality is not None:
            predicted &= np.append(self.row.modality[1:], -1) == modality
        return float(self.nats_T[predicted].sum()), int(np.append(self.row.content[1:], 0)[predicted].sum())


class Scorer:
    """Scores documents with `model`, which stays in evaluation mode meanwhile."""

    def __init__(
        self,
        model: Network,
        config: RunConfig,
        *,
        device: torch.device,
        stop: Callable[[], None] | None = None,
        ranks: Ranks | None = None,
        kind: Patching | None = None,
        dtype: str = "",
    ) -> None:
        """`stop` is called between batches and may raise, to leave a long evaluation. Ranks share the batches.

        `kind` is how speech is cut; by default as the arm is evaluated (static for mixed and curriculum, else as trained).
        `dtype` is that of the arithmetic: the run's by default, or float32, bfloat16 (autocast), float64 (a model in fp64).
        """
        self.ranks = ranks or Ranks()
        self.kind, self.dtype = kind or config.patching.evaluation_kind, dtype or config.train.dtype
        self.model, self.config, self.device = model, config, device
        self.vocabulary, self._speech_bpe = Vocabulary.of(config.model), run_pieces(config)
        self._stop = stop or (lambda: None)

    def row(self, document: Document) -> PackedRow:
        """One document as a row of its own. Two segments of one modality in a row are one span whose patches break between them.

        <s> 3 3 90 | 41 7      patches of two: (3 3) (90) (41 7), and no marker at the break
        """
        if self._speech_bpe is not None:
            document = self._speech_bpe.encode_document(document)
        parts: list[Document] = []
        for segment in document:
            if parts and parts[-1][-1].modality != segment.modality:
                parts[-1].append(segment)
            else:
                parts.append([segment])
        encoded = _followed([self._encoded(part) for part in parts])
        interleaved = any(s.modality == "speech" for s in document)
        return PackedRow.pack([encoded], self.vocabulary, interleaved=interleaved)

    def _encoded(self, document: Document) -> EncodedDocument:
        options = self.config.patching
        return encode_document(document, self.vocabulary, self.kind, options.patch_size, ends=False, silence=options.silence_rule)

    def apart(self, parts: Sequence[Segment]) -> list[Segment]:
        """The segments as the model's ids, each tokenised apart: arm `bpe` encodes speech in pieces."""
        if self._speech_bpe is None:
            return list(parts)
        return self._speech_bpe.encode_document(list(parts))

    def score(self, documents: Sequence[Document], *, first: Sequence[int] | None = None, alone: bool = False) -> list[Scored]:
        """The documents' losses, in the documents' order; those before position `first[i]` of document i are left at 0.

        The head runs on scored positions alone, which matters where an ending follows a long prompt. With `alone` each document
        has a forward pass of its own, so that its losses are the same to the bit whatever is scored beside it.
        """
        import torch

        from lst.model import Batch
        from lst.train.losses import token_losses

        rows = [self.row(document) for document in documents]
        ends = np.cumsum([r.tokens for r in rows], dtype=np.int64)
        nats = torch.zeros(int(ends[-1]) if rows else 0, dtype=torch.float64)  # of all documents, one after the other
        limit = 1 if alone else self.config.execution.micro_batch_tokens
        parts = batches_by_length([r.tokens for r in rows], limit)
        autocast_dtype = "bfloat16" if self.dtype == "bfloat16" else "float32"
        training = self.model.training
        self.model.eval()
        try:
            for turn in range(0, len(parts), self.ranks.size):
                self._stop()
                # Who has no batch left computes the last one too: all ranks take part in each forward pass.
                mine = turn + self.ranks.rank
                part = parts[min(mine, len(parts) - 1)]
                batch = Batch.from_packed(PackedBatch([rows[i] for i in part]), self.device)
                if first is not None:
                    for place, i in enumerate(part):
                        batch.target_BT[place, : first[i]] = -1
                nats_BT = token_losses(self.model, batch, dtype=autocast_dtype).double().cpu()
                for place, i in enumerate(part if mine < len(parts) else []):
                    nats[ends[i] - rows[i].tokens : ends[i]] = nats_BT[place, : rows[i].tokens]
        finally:
            self.model.train(training)
        self.ranks.sum_tensor(nats)
        losses = np.split(nats.numpy(), ends[:-1])
        return [Scored(row=row, nats_T=nats_T) for row, nats_T in zip(rows, losses, strict=True)] if rows else []


def _followed(parts: Sequence[EncodedDocument]) -> EncodedDocument:
    """One document of parts: each but the first goes on without its BOS and its first marker."""
    first, *others = parts
    if not others:
        return first
    arrays = (
        np.concatenate([getattr(first, name), *(getattr(part, name)[2:] for part in others)])
        for name in ("ids", "unit_lengths", "complete", "frames")
    )
    return EncodedDocument(*arrays)


def batches_by_length(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Places of `lengths`, longest first, in batches of at most `max_tokens` padded tokens (one row at least)."""
    batches: list[list[int]] = []
    widest = 0
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batches and widest * (len(batches[-1]) + 1) <= max_tokens and lengths[i] >= SIMILAR * widest:
            batches[-1].append(i)
        else:
            batches.append([i])
            widest = lengths[i]
    return batches
