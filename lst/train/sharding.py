"""The network of a run on its devices: whole in one process, each rank a share of it in several (FSDP2).

Every parameter is cut along its first dimension, rank r holding rows [r c, r c + c) with c = rows / ranks rounded up. Weights
are drawn by name (lst.model.init) and cut then, one parameter at a time, so that ranks hold the pieces of what one process
would hold, and none ever holds it whole. Each transformer layer gathers its weights when it is used; the rest (embeddings,
cross-attention, norms, head) is gathered once a micro-batch. Gradients are summed over ranks, not averaged: the loss is
divided by the global batch's count already.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from lst.config import RunConfig
from lst.model.build import build_model
from lst.model.init import initialise
from lst.model.lst import network
from lst.train.distributed import Ranks
from lst.train.layers import prepare_layers, transformer_layers

if TYPE_CHECKING:
    from lst.train.losses import Network


def make_network(config: RunConfig, ranks: Ranks, device: torch.device) -> Network:
    """The initialised network, on `device`. Called by all ranks. Raises ConfigError where it cannot run as asked."""
    if ranks.size == 1:
        model = build_model(config).to(device).train()
        prepare_layers(model, config.execution)
        return model
    with torch.device("meta"):
        model = network(config.model)
    prepare_layers(model, config.execution)  # before sharding: its hooks stand around a layer's forward pass
    _shard(model, bf16=config.train.dtype == "bfloat16" and device.type == "cuda", device=device)
    _materialise(model, device)
    initialise(model, config.train.seed, fill=lambda parameter, draw: local(parameter).copy_(own_rows(draw, ranks)))
    return model.train()


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a tensor (the tensor itself in one process), sharing its memory."""
    part: torch.Tensor = getattr(tensor, "_local_tensor", tensor)
    return part.detach()


def own_rows(whole: torch.Tensor, ranks: Ranks) -> torch.Tensor:
    """The rows of a whole tensor that this rank holds."""
    start, stop = row_range(len(whole), ranks.rank, ranks.size)
    return whole[start:stop]


def row_range(rows: int, rank: int, size: int) -> tuple[int, int]:
    """First and past-the-last of `rows` rows that `rank` of `size` ranks holds; late ranks may hold none."""
    each = -(-rows // size)
    return min(rank * each, rows), min((rank + 1) * each, rows)


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether the tensor is one of several ranks' parameters."""
    return hasattr(tensor, "_local_tensor")


def _shard(model: nn.Module, *, bf16: bool, device: torch.device) -> None:
    """FSDP for each transformer layer, then for what is left.

    In bf16 the layers' weights are cast before they are gathered, which halves what travels. What is gathered once stays
    fp32, and autocast is on as in one process, so the residual stream and the gradients' sums are fp32 there and here.
    """
    from torch.distributed import get_world_size
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (get_world_size(),))
    dtype = torch.bfloat16 if bf16 else None
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in transformer_layers(model):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False))
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)


def _materialise(model: nn.Module, device: torch.device) -> None:
    """Give the meta parameters memory (of this rank's part alone) on `device`; tied ones stay tied. There are no buffers."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in made:
                made[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device=device))
            module.register_parameter(name, made[id(parameter)])
    model._apply(lambda tensor: tensor)  # type: ignore[no-untyped-call]  # FSDP looks its parameters up again
