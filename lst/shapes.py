"""Shapes of a network's parameters without building it, in the groups in which several ranks share them. No torch.

A group is what FSDP gathers at once (lst.train.sharding): each transformer layer, and what is left. tests/lst/test_shapes.py
compares them with the built networks. Not here: how many parameters a module has (`lst.flops`), how they are cut.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from lst.config import ModelConfig, StackConfig
from lst.flops import vocabulary_size

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ShardedShapes:
    """The parameters of a network by group."""

    layers: tuple[tuple[int, tuple[Shape, ...]], ...]  # (how many, the parameters of each) of every stack's layers
    rest: tuple[Shape, ...]  # embeddings, cross-attention, projections, norms, head

    @property
    def largest_layer(self) -> int:
        """Numbers in the largest layer."""
        return max(numbers(layer) for _, layer in self.layers)

    def on_rank(self, ranks: int) -> int:
        """Numbers that the first of `ranks` ranks holds: rows / ranks of each parameter, rounded up. No rank holds more."""
        own = sum(count * numbers(layer, ranks) for count, layer in self.layers)
        return own + numbers(self.rest, ranks)


def numbers(shapes: tuple[Shape, ...], ranks: int = 1) -> int:
    """Numbers in parameters of these shapes, cut along their rows over `ranks` ranks: those of the first rank."""
    total = 0
    for rows, *others in shapes:
        own = -(-rows // ranks)
        for width in others:
            own *= width
        total += own
    return total


@functools.lru_cache(maxsize=4096)
def sharded_shapes(model: ModelConfig) -> ShardedShapes:
    """The groups of the network of `model`."""
    glob, vocabulary = model.global_stack, vocabulary_size(model)
    stacks = [glob]
    rest: list[Shape] = [(glob.dim,)]  # the last norm
    width = glob.dim
    if model.encoder is not None and model.decoder is not None:
        e, d, k = model.encoder, model.decoder, model.queries_per_patch
        stacks += [e, d]
        width = d.dim
        keys = 1 if model.cross_attention == "all" else k
        rest += [(e.dim,), (e.dim,), (d.dim,)]  # norms of queries, of tokens, and the last one
        rest += [(k * e.dim, e.dim), (e.dim, e.dim), (2 * e.dim, e.dim), (e.dim, e.dim), (glob.dim, k * e.dim)]
        rest += [(d.dim,), (d.dim, d.dim), (2 * keys * d.dim, glob.dim), (d.dim, d.dim)] * d.layers
        if not model.local_text:
            rest += [(glob.dim, e.dim), (d.dim, glob.dim)]
        if model.decoder_input != "encoder":
            rest.append((vocabulary, d.dim))
    rest += [(vocabulary, width)] * (1 if model.tied_head else 2)
    return ShardedShapes(layers=tuple((stack.layers, _layer(stack)) for stack in stacks), rest=tuple(rest))


def _layer(stack: StackConfig) -> tuple[Shape, ...]:
    """Two norms, query-key-value, output, gate and value, output."""
    d, f = stack.dim, stack.ffn_dim
    return ((d,), (3 * d, d), (d, d), (d,), (2 * f, d), (d, f))
