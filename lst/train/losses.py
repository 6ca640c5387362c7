"""Cross-entropy without a full copy of the logits: only positions with a target, a chunk of them at a time.

With 4 x 4,096 positions and a vocabulary of 32k, logits in fp32 are 2 GiB and their gradient as much again. Here a chunk's
logits live only until its loss and gradient are taken, so the peak is one chunk's. A model offers `hidden(batch)` (h_BTE)
and `head(h)` (logits). Losses are in nats. B sequences, T tokens, N positions with a target, E width, V vocabulary.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lst.data.vocab import SPEECH, TEXT

if TYPE_CHECKING:
    from lst.model import Batch
    from lst.model.lst import Baseline, LatentSpeechText

    Network = Baseline | LatentSpeechText

CHUNK_LOGITS = {"cpu": 2**20, "cuda": 2**26}  # of one chunk: 4 MiB in fp32 stay in a CPU's cache, a GPU wants large products
CHUNK_ROWS = 256  # positions of a chunk at least: fewer would read the head's weights more often than they use them


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

    `predicted` counts the targets of the whole global batch, of which `batch` is a part. The head's gradient is taken
    chunk by chunk as soon as its logits are there (nothing is recomputed), the network's once at the end.
    """
    where_N, target_N, modality_N = _targets(batch)
    with autocast(batch.ids_BT.device, dtype):
        h_NE = model.hidden(batch).flatten(0, 1)[where_N]
    leaf_NE = h_NE.detach().requires_grad_()
    losses = [
        _head_gradients(model, h_CE, target_C, 1 / predicted, dtype) for h_CE, target_C in _chunks(model, leaf_NE, target_N)
    ]
    assert leaf_NE.grad is not None
    _backward(h_NE, leaf_NE.grad)
    return LossSums.of(torch.cat(losses), modality_N)


@torch.no_grad()
def token_losses(model: Network, batch: Batch, *, dtype: str = "float32") -> torch.Tensor:
    """loss_BT in fp32: -log p(target) at each position with a target, 0 elsewhere. No gradients."""
    where_N, target_N, _ = _targets(batch)
    loss_BT = torch.zeros(batch.target_BT.shape, device=batch.target_BT.device)
    with autocast(batch.ids_BT.device, dtype):
        h_NE = model.hidden(batch).flatten(0, 1)[where_N]
        losses = [_losses(model.head(h_CE).float(), target_C) for h_CE, target_C in _chunks(model, h_NE, target_N)]
    loss_BT.view(-1)[where_N] = torch.cat(losses)
    return loss_BT


def _head_gradients(model: Network, h_CE: torch.Tensor, target_C: torch.Tensor, scale: float, dtype: str) -> torch.Tensor:
    """Losses of one chunk; its gradients are added to the head and to `h_CE`. The logits live no longer than this call."""
    with autocast(h_CE.device, dtype):
        logits_CV = model.head(h_CE)
    loss_C, grad_CV = _losses_and_gradient(logits_CV.detach(), target_C, scale)
    _backward(logits_CV, grad_CV)
    return loss_C


class _GivenGradient(torch.autograd.Function):
    """A scalar whose gradient with respect to `tensor` is `gradient`."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gradient)
        return tensor.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient, None


def _backward(tensor: torch.Tensor, gradient: torch.Tensor) -> None:
    """`tensor.backward(gradient)`, without the symbolic shapes (and sympy, a second) that torch loads for checking it."""
    _GivenGradient.apply(tensor, gradient).backward()  # type: ignore[no-untyped-call]


def _targets(batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Flat places, ids and modalities of the positions that predict something."""
    target_BT = batch.target_BT.flatten()
    where_N = torch.nonzero(target_BT >= 0).squeeze(1)
    return where_N, target_BT[where_N].long(), batch.target_modality_BT.flatten()[where_N]


def _chunks(model: Network, h_NE: torch.Tensor, target_N: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    size = max(CHUNK_ROWS, CHUNK_LOGITS[h_NE.device.type] // model.head.out_features)
    return list(zip(torch.split(h_NE, size), torch.split(target_N, size), strict=True))


def _losses(logits_CV: torch.Tensor, target_C: torch.Tensor) -> torch.Tensor:
    return logits_CV.logsumexp(1) - logits_CV.gather(1, target_C[:, None]).squeeze(1)


def _losses_and_gradient(logits_CV: torch.Tensor, target_C: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """-log softmax at the targets, and (softmax - onehot) x scale, its gradient, in the logits' dtype. Fp32 logits are used up.

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
    return loss_C, p_CV.to(logits_CV.dtype)
