"""AdamW (PAPER: A.3). Not here: the learning rate of each step (`lst.schedule`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lst.config import OptimConfig

if TYPE_CHECKING:
    import torch
    from torch import nn


class AdamW:
    """AdamW (Loshchilov and Hutter 2019) with weight decay on matrices only. With gradient g at step t, learning rate a:

        p <- p - a weight_decay p              m <- b1 m + (1 - b1) g            v <- b2 v + (1 - b2) g^2
        p <- p - a (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

    torch's fused kernel does the arithmetic, on CPU and GPU alike. `torch.optim` would do the same, bit for bit (a test
    compares), but loads torch's compiler when first used, which takes longer than a laptop's whole run needs to start.
    """

    def __init__(self, model: nn.Module, optim: OptimConfig) -> None:
        import torch

        self.optim = optim
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.exp_avg = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self.exp_avg_sq = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        device = next(iter(self.parameters.values())).device
        self.steps_done = torch.zeros((), device=device)  # on the parameters' device, where the kernel reads it

    def zero_grad(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None

    def clip_gradients(self) -> float:
        """Scale the gradients down to the largest norm allowed; the global norm before that."""
        import torch

        return float(torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.optim.clip))

    def step(self, lr: float) -> None:
        """One update of every parameter that has a gradient."""
        import torch

        self.steps_done += 1
        for decay in (True, False):
            names = [n for n, p in self.parameters.items() if (p.ndim >= 2) == decay and p.grad is not None]
            if not names:
                continue
            with torch.no_grad():
                torch._fused_adamw_(
                    [self.parameters[n] for n in names],
                    [g for n in names if (g := self.parameters[n].grad) is not None],
                    [self.exp_avg[n] for n in names],
                    [self.exp_avg_sq[n] for n in names],
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

    def tensors(self) -> dict[str, torch.Tensor]:
        """The whole state by name, in the model's order; what a checkpoint stores and `load` reads."""
        state = {"steps_done": self.steps_done}
        state |= {f"exp_avg.{name}": tensor for name, tensor in self.exp_avg.items()}
        return state | {f"exp_avg_sq.{name}": tensor for name, tensor in self.exp_avg_sq.items()}
