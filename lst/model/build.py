"""From a configuration to an initialised network, and its parameters by group."""

from __future__ import annotations

from torch import nn

from lst.config import RunConfig
from lst.flops import GROUPS
from lst.model.init import initialise
from lst.model.lst import Baseline, LatentSpeechText, network

_MODULE_GROUP = {
    "embedding": "embedding",
    "decoder_embedding": "embedding",
    "encoder": "encoder",
    "global_transformer": "global",
    "decoder": "decoder",
    "head": "head",
}


def build_model(config: RunConfig) -> Baseline | LatentSpeechText:
    """The network of `config` on the CPU in fp32, its weights drawn from `config.train.seed`."""
    model = network(config.model)
    initialise(model, config.train.seed)
    return model


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Parameters by group (lst/flops.py: GROUPS); a tied head counts once, as embedding."""
    counts = dict.fromkeys(GROUPS, 0)
    for name, parameter in model.named_parameters():
        counts[_MODULE_GROUP[name.split(".")[0]]] += parameter.numel()
    return counts
