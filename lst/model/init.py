"""Initial weights: each parameter from a generator of its own, keyed by (seed, name).

So the weights depend neither on the order in which modules are made nor on how they are sharded. Matrices are normal with
standard deviation fan_in^-1/2, cut at three; those that write into the residual stream are smaller by (2 x layers)^-1/2;
the head is smaller by a quarter, so that the first loss stays near log V. Gains are one.
"""

from __future__ import annotations

import hashlib

import torch
from torch import nn

RESIDUAL_OUTPUT = "to_out.weight"
HEAD_SCALE = 0.25


def initialise(model: nn.Module, seed: int) -> None:
    """Fill all parameters of `model` in place."""
    depth = sum(name.endswith("attention.to_out.weight") for name, _ in model.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            continue
        std = parameter.shape[-1] ** -0.5
        if name.endswith(RESIDUAL_OUTPUT):
            std *= (2 * max(depth, 1)) ** -0.5
        if name == "head.weight":
            std *= HEAD_SCALE
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        with torch.no_grad():
            draw = torch.empty(parameter.shape, dtype=torch.float32)
            nn.init.trunc_normal_(draw, std=std, a=-3 * std, b=3 * std, generator=generator)
            parameter.copy_(draw)
