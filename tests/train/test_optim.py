"""AdamW against torch's own."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lst.config import OptimConfig
from lst.train.optim import AdamW


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3))


def test_adamw_equals_torchs_to_the_bit() -> None:
    optim = OptimConfig(lr=1e-2, weight_decay=0.3)
    ours, theirs = small_network(), small_network()
    matrices = [p for p in theirs.parameters() if p.ndim >= 2]
    others = [p for p in theirs.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.3}, {"params": others, "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, betas=(optim.beta1, optim.beta2), eps=optim.eps, fused=True)
    optimizer = AdamW(ours, optim)
    for step in range(5):
        x = torch.randn(4, 5)
        lr = 0.01 * (step + 1)
        for group in reference.param_groups:
            group["lr"] = lr
        for model in (ours, theirs):
            model(x).square().sum().backward()
        optimizer.step(lr)
        reference.step()
        optimizer.zero_grad()
        reference.zero_grad()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


def test_weight_decay_moves_matrices_alone() -> None:
    model = small_network()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    AdamW(model, OptimConfig(weight_decay=0.5)).step(0.1)
    for name, parameter in model.named_parameters():
        expected = before[name] * (1 - 0.1 * 0.5) if parameter.ndim == 2 else before[name]
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-6, atol=0)


def test_clipping_scales_to_the_limit_and_returns_the_norm_before() -> None:
    model = small_network()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    count = sum(p.numel() for p in model.parameters())
    assert AdamW(model, OptimConfig(clip=1.0)).clip_gradients() == pytest.approx(math.sqrt(count))
    after = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None))
    assert after == pytest.approx(1.0, rel=1e-5)
