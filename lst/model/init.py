"""Initial weights: each parameter from a generator of its own, keyed by (seed, name).

So the weights depend neither on the order in which modules are made nor on how they are sharded. Matrices are normal with
standard deviation fan_in^-1/2, cut at three; those that write into the residual stream are smaller by (2 x layers)^-1/2;
the head is smaller by a quarter, so that the first loss stays near log V. Gains are one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import nn

RESIDUAL_OUTPUT = "to_out.weight"
HEAD_SCALE = 0.25


def _fill(parameter: nn.Parameter, draw: torch.Tensor) -> object:
    return parameter.copy_(draw)


@torch.no_grad()
def initialise(model: nn.Module, seed: int, *, fill: Callable[[nn.Parameter, torch.Tensor], object] = _fill) -> None:
    """Give all parameters of `model` their initial values, one at a time: `fill` gets a parameter and its whole value."""
    depth = sum(name.endswith("attention.to_out.weight") for name, _ in model.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            assert name.endswith("gain"), f"{name} has no rule for its initial value"
            fill(parameter, torch.ones(parameter.shape))
            continue
        std = parameter.shape[-1] ** -0.5
        if name.endswith(RESIDUAL_OUTPUT):
            std *= (2 * max(depth, 1)) ** -0.5
        if name == "head.weight":
            std *= HEAD_SCALE
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        draw = torch.empty(parameter.shape, dtype=torch.float32)
        nn.init.trunc_normal_(draw, std=std, a=-3 * std, b=3 * std, generator=generator)
        fill(parameter, draw)
