"""AdamW (PAPER: A.3). Not here: the learning rate of each step (`lst.schedule`)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from lst.config import OptimConfig
from lst.train.distributed import Ranks

if TYPE_CHECKING:
    import torch
    from torch import nn


class AdamW:
    """AdamW (Loshchilov and Hutter 2019) with weight decay on matrices only. With gradient g at step t, learning rate a:

        p <- p - a weight_decay p              m <- b1 m + (1 - b1) g            v <- b2 v + (1 - b2) g^2
        p <- p - a (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

    torch's fused kernel does the arithmetic, on CPU and GPU alike. `torch.optim` would do the same, bit for bit (a test
    compares), but loads torch's compiler when first used, which takes longer than a laptop's whole run needs to start. Of
    sharded parameters each rank updates its own part.
    """

    def __init__(self, model: nn.Module, optim: OptimConfig, ranks: Ranks | None = None) -> None:
        import torch

        self.optim = optim
        self.ranks = ranks or Ranks()
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.exp_avg = {name: torch.zeros_like(p, requires_grad=False) for name, p in self.parameters.items()}
        self.exp_avg_sq = {name: torch.zeros_like(p, requires_grad=False) for name, p in self.parameters.items()}
        device = next(iter(self.parameters.values())).device
        self.steps_done = torch.zeros((), device=device)  # on the parameters' device, where the kernel reads it

    def zero_grad(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None

    def clip_gradients(self) -> float:
        """Scale the gradients down to the largest norm allowed; the global norm before that, equal on all ranks."""
        import torch

        gradients = self._gradients(self.parameters)
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.ranks.size > 1:
            square = self.ranks.sum([float(norm) ** 2])[0]
            norm = torch.tensor(square, dtype=torch.float64).sqrt().to(norm)
        torch._foreach_mul_(gradients, torch.clamp(self.optim.clip / (norm + 1e-6), max=1.0))
        return float(norm)

    def step(self, lr: float) -> None:
        """One update of every parameter that has a gradient."""
        import torch

        from lst.train.sharding import local

        self.steps_done += 1
        for decay in (True, False):
            names = [n for n, p in self.parameters.items() if (p.ndim >= 2) == decay and p.grad is not None]
            names = [n for n in names if local(self.parameters[n]).numel()]
            if not names:
                continue
            with torch.no_grad():
                torch._fused_adamw_(
                    [local(self.parameters[n]) for n in names],
                    self._gradients(names),
                    [local(self.exp_avg[n]) for n in names],
                    [local(self.exp_avg_sq[n]) for n in names],
                    [],
                    [self.steps_done] * len(names),
                    lr=lr,
                    beta1=self.optim.beta1,
                    beta2=self.optim.beta2,
                    weight_decay=self.optim.weight_decay if decay else 0.0,
                    eps=self.optim.eps,
                    amsgrad=False,
                    maximize=False,
                )

    def _gradients(self, names: Iterable[str]) -> list[torch.Tensor]:
        """This rank's parts of the gradients that there are."""
        from lst.train.sharding import local

        return [local(g) for n in names if (g := self.parameters[n].grad) is not None]

    def tensors(self) -> dict[str, torch.Tensor]:
        """The state by name, in the model's order (sharded as parameters are); what a checkpoint stores and a resume reads."""
        state = {"steps_done": self.steps_done}
        state |= {f"exp_avg.{name}": tensor for name, tensor in self.exp_avg.items()}
        return state | {f"exp_avg_sq.{name}": tensor for name, tensor in self.exp_avg_sq.items()}
