"""Cross-entropy without a full copy of the logits: only positions with a target, a chunk of them at a time.

With 4 x 4,096 positions and a vocabulary of 32k, logits in fp32 are 2 GiB and their gradient as much again. Here a chunk's
logits live only until its loss and gradient are taken, so the peak is one chunk's. A model offers `forward(batch, read)`,
which ends in `read(h_BTE, head)` (lst.model.lst). Losses are in nats.
B sequences, T tokens, N positions with a target, E width, V vocabulary, P the same rounded up.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lst.data.vocab import SPEECH, TEXT
from lst.memory import CHUNK_LOGITS, CHUNK_ROWS

if TYPE_CHECKING:
    from lst.model import Batch
    from lst.model.lst import Baseline, LatentSpeechText
    from lst.train.distributed import Ranks

    Network = Baseline | LatentSpeechText


ROUND_VOCABULARY = {"cpu": 1, "cuda": 64}  # what the head's columns are rounded up to


@dataclass
class LossSums:
    """Summed losses (nats) and counts of predicted tokens. Additive; `of` splits by what was predicted."""

    nats: float = 0.0
    tokens: int = 0
    text_nats: float = 0.0
    text_tokens: int = 0
    speech_nats: float = 0.0
    speech_tokens: int = 0

    @classmethod
    def of(cls, losses_N: torch.Tensor, modality_N: torch.Tensor) -> LossSums:
        """Sums in fp64, so that they do not depend on the order of positions beyond 1e-12."""
        losses_N = losses_N.double()
        text_N, speech_N = modality_N == TEXT, modality_N == SPEECH
        nats = torch.stack([losses_N.sum(), losses_N[text_N].sum(), losses_N[speech_N].sum()]).tolist()
        counts = torch.stack([text_N.sum(), speech_N.sum()]).tolist()
        return cls(nats[0], losses_N.numel(), nats[1], counts[0], nats[2], counts[1])

    def __add__(self, other: LossSums) -> LossSums:
        return LossSums(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def over(self, ranks: Ranks) -> LossSums:
        """The sums over all ranks."""
        return LossSums(*ranks.sum(list(vars(self).values())))  # type: ignore[arg-type]  # counts come back as whole floats

    def means(self) -> dict[str, float]:
        """`loss` of all tokens, `loss_text` and `loss_speech` where there are any."""
        record = {"loss": self.nats / self.tokens}
        if self.text_tokens:
            record["loss_text"] = self.text_nats / self.text_tokens
        if self.speech_tokens:
            record["loss_speech"] = self.speech_nats / self.speech_tokens
        return record


def autocast(device: torch.device, dtype: str) -> contextlib.AbstractContextManager[Any]:
    """bf16 autocast where the run asks for it, else nothing."""
    if dtype == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, dtype))


def accumulate_gradients(model: Network, batch: Batch, *, predicted: int, dtype: str = "float32") -> LossSums:
    """Add the gradient of (sum of the batch's losses) / `predicted` to the parameters; the batch's loss sums.

    `predicted` counts the targets of the whole global batch, of which `batch` is a part. A batch without a target adds
    zeros, so that a process that has nothing to do can take part in the exchange of gradients.
    """
    where_N, target_N, modality_N = _targets(batch)

    def read(h_BTE: torch.Tensor, head: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        h_NE = h_BTE.flatten(0, 1)[where_N]
        losses: tuple[torch.Tensor, torch.Tensor]
        losses = _HeadLoss.apply(h_NE, head.weight, target_N, 1 / max(predicted, 1), dtype)  # type: ignore[no-untyped-call]
        return losses

    with autocast(batch.ids_BT.device, dtype):
        mean, loss_N = model(batch, read=read)
    mean.backward()  # a scalar: for a given gradient torch would load symbolic shapes (and sympy, a second) to check it
    return LossSums.of(loss_N, modality_N)


@torch.no_grad()
def token_losses(model: Network, batch: Batch, *, dtype: str = "float32") -> torch.Tensor:
    """loss_BT in fp32 (of a model in fp64: fp64): -log p(target) at each position with a target, 0 elsewhere. No gradients."""
    where_N, target_N, _ = _targets(batch)

    def read(h_BTE: torch.Tensor, head: torch.nn.Linear) -> torch.Tensor:
        chunks = _chunks(h_BTE.flatten(0, 1)[where_N], target_N, head.out_features)
        return torch.cat([_losses(_wide(head(h_CE)), target_C) for h_CE, target_C in chunks])

    with autocast(batch.ids_BT.device, dtype):
        loss_N = model(batch, read=read)
    loss_BT: torch.Tensor = loss_N.new_zeros(batch.target_BT.shape)
    loss_BT.view(-1)[where_N] = loss_N
    return loss_BT


class _HeadLoss(torch.autograd.Function):
    """(h_NE, weight_VE) -> `scale` x the summed loss (what is differentiated), and loss_N.

    The gradients of both inputs are made chunk by chunk as soon as a chunk's logits are there, so that these live no longer
    than that and nothing is computed again; `backward` hands them over.
    """

    @staticmethod
    def forward(
        ctx: Any, h_NE: torch.Tensor, weight_VE: torch.Tensor, target_N: torch.Tensor, scale: float, dtype: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x_NE, w_VE = (t.detach().to(getattr(torch, dtype)) for t in (h_NE, weight_VE))
        vocabulary = len(w_VE)
        # Rows of zeros up to a round number: a GPU's matrix units run at a fraction of their speed over 32,503 columns.
        lacking = -vocabulary % ROUND_VOCABULARY[w_VE.device.type]
        w_PE = F.pad(w_VE, (0, 0, 0, lacking)) if lacking else w_VE
        grad_NE, grad_PE = torch.empty_like(h_NE), weight_VE.new_zeros(w_PE.shape)
        loss_N = torch.empty(len(h_NE), device=h_NE.device)
        chunks = _chunks(x_NE, target_N, vocabulary)
        buffer_CP = x_NE.new_empty(len(chunks[0][0]), len(w_PE))  # one for all chunks: allocating anew fragments the heap
        done = 0
        for x_CE, target_C in chunks:
            here = slice(done, done + len(x_CE))
            logits_CP = buffer_CP[: len(x_CE)]
            torch.mm(x_CE, w_PE.t(), out=logits_CP)
            loss_N[here] = _losses_and_gradient(logits_CP[:, :vocabulary], target_C, scale)
            _product(logits_CP, w_PE, out=grad_NE[here])
            _add_product(grad_PE, logits_CP.t(), x_CE)
            done += len(x_CE)
        ctx.gradients = grad_NE, grad_PE[:vocabulary]
        ctx.mark_non_differentiable(loss_N)
        return loss_N.sum() * scale, loss_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_NE, grad_VE = ctx.gradients
        ctx.gradients = None  # handed over for good: the engine may keep these tensors without a copy
        return grad_NE.mul_(outer[0]), grad_VE.mul_(outer[0]), None, None, None


def _product(a: torch.Tensor, b: torch.Tensor, *, out: torch.Tensor) -> None:
    """out = a @ b, in out's dtype."""
    if out.dtype == a.dtype:
        torch.mm(a, b, out=out)
    else:
        out.copy_(a @ b)


def _add_product(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """total += a @ b, in total's dtype."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total.add_(a @ b)


def _targets(batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Flat places, ids and modalities of the positions that predict something."""
    target_BT = batch.target_BT.flatten()
    where_N = torch.nonzero(target_BT >= 0).squeeze(1)
    return where_N, target_BT[where_N].long(), batch.target_modality_BT.flatten()[where_N]


def _chunks(h_NE: torch.Tensor, target_N: torch.Tensor, vocabulary: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    size = max(CHUNK_ROWS, CHUNK_LOGITS[h_NE.device.type] // vocabulary)
    return list(zip(torch.split(h_NE, size), torch.split(target_N, size), strict=True))


def _wide(logits_CV: torch.Tensor) -> torch.Tensor:
    return logits_CV if logits_CV.dtype == torch.float64 else logits_CV.float()


def _losses(logits_CV: torch.Tensor, target_C: torch.Tensor) -> torch.Tensor:
    return logits_CV.logsumexp(1) - logits_CV.gather(1, target_C[:, None]).squeeze(1)


def _losses_and_gradient(logits_CV: torch.Tensor, target_C: torch.Tensor, scale: float) -> torch.Tensor:
    """-log softmax at the targets; in the logits' place then stands its gradient, (softmax - onehot) x scale.

    With m the largest logit and z = sum exp(x - m): loss = m + log z - x_target. One pass of exponentials serves both.
    """
    x_CV, index_C1 = logits_CV.float(), target_C[:, None]
    m_C1 = x_CV.amax(1, keepdim=True)
    target_C1 = x_CV.gather(1, index_C1)
    p_CV = x_CV.sub_(m_C1).exp_()  # in place: a head's product needs its input for the gradient, not its output
    z_C1 = p_CV.sum(1, keepdim=True)
    loss_C = (m_C1 + z_C1.log() - target_C1).squeeze(1)
    p_CV.mul_(scale / z_C1)
    p_CV.scatter_add_(1, index_C1, torch.full_like(index_C1, -scale, dtype=p_CV.dtype))
    if p_CV.dtype != logits_CV.dtype:
        logits_CV.copy_(p_CV)
    return loss_C
