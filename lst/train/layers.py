"""How a transformer layer is run: compiled or not, and with or without its inner activations kept for the backward pass.

Both are choices of execution. Activation checkpointing gives the same gradients to the bit: a layer's forward pass is done
again, on the same numbers. torch.compile fuses and reorders, so results differ by rounding. Not here: how layers are spread over
ranks (lst.train.sharding), whose hooks stand outside of what is changed here.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lst.config import ExecutionConfig
from lst.errors import ConfigError
from lst.model.blocks import TransformerLayer


def transformer_layers(model: nn.Module) -> list[TransformerLayer]:
    """The layers of all stacks."""
    return [module for module in model.modules() if isinstance(module, TransformerLayer)]


def prepare_layers(model: nn.Module, execution: ExecutionConfig) -> None:
    """Change the layers' forward passes as `execution` asks. Raises ConfigError if there is nothing to compile with."""
    if execution.compile:
        _require_compiler()
    for layer in transformer_layers(model):
        forward = layer.forward
        if execution.compile:
            # Its plan differs from batch to batch: traced, each would be compiled anew. The kernels inside gain nothing.
            layer.attention.attend = torch.compiler.disable(layer.attention.attend)  # type: ignore[no-untyped-call]
            forward = torch.compile(forward, dynamic=True)
        if execution.activation_checkpointing == "layers":
            forward = functools.partial(_recomputed, forward)
        layer.forward = forward  # type: ignore[method-assign]


def _recomputed(forward: Callable[..., Any], *inputs: Any) -> Any:
    """`forward(*inputs)`, of which only the inputs are kept; the backward pass does it again. Layers draw no random numbers."""
    from torch.utils.checkpoint import checkpoint

    if not torch.is_grad_enabled():
        return forward(*inputs)
    return checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=False)


def _require_compiler() -> None:
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise ConfigError(
            f"execution.compile=true needs a C++ compiler, and there is no '{compiler}'; install one, name it in CXX, or set "
            "execution.compile=false."
        )
