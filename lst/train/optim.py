"""AdamW and the learning rate of each step (PAPER: A.3). Not here: what a size's learning rate should be (`sweeps.recipe`)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lst.config import OptimConfig

if TYPE_CHECKING:
    import torch
    from torch import nn


def learning_rate(step: int, *, steps: int, optim: OptimConfig) -> float:
    """The learning rate of the 0-based `step` of `steps`.

    With w = warmup_steps and s = step + 1:  lr s / w  for s <= w;  after that
    lr (r + (1 - r) (1 + cos(pi (s - w) / (steps - w))) / 2), r = final_lr_ratio: the peak at s = w, r lr at the last step.
    """
    done = step + 1
    if done <= optim.warmup_steps:
        return optim.lr * done / optim.warmup_steps
    progress = (done - optim.warmup_steps) / (steps - optim.warmup_steps)
    ratio = optim.final_lr_ratio
    return optim.lr * (ratio + (1 - ratio) * (1 + math.cos(math.pi * progress)) / 2)


def build_optimizer(model: nn.Module, optim: OptimConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only; the fused kernel runs on CPU and GPU and needs no copies."""
    import torch

    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": optim.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=optim.lr, betas=(optim.beta1, optim.beta2), eps=optim.eps, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
