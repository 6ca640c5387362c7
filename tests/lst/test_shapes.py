"""Shapes without a network against the built networks."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from lst.config import arm_config
from lst.flops import num_params
from lst.model.lst import network
from lst.shapes import numbers, sharded_shapes
from lst.train.layers import transformer_layers
from lst.train.sharding import row_range


@pytest.mark.parametrize("arm", ["baseline", "bpe", "lst_static"])
@pytest.mark.parametrize(
    "options",
    [{}, {"tied_head": True}, {"cross_attention": "preceding"}, {"local_text": False}, {"decoder_input": "both"}],
    ids=str,
)
def test_groups_have_the_built_networks_shapes(arm: str, options: dict[str, Any]) -> None:
    if arm != "lst_static" and set(options) - {"tied_head"}:
        options = {}
    model = arm_config(arm, size="tiny", model=options).model
    with torch.device("meta"):
        built = network(model)
    layers = transformer_layers(built)
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    found = sharded_shapes(model)
    expected = Counter(tuple(sorted(tuple(p.shape) for p in layer.parameters())) for layer in layers)
    ours: Counter[Any] = Counter()
    for count, layer in found.layers:
        ours[tuple(sorted(layer))] += count
    assert ours == expected
    assert Counter(found.rest) == Counter(tuple(p.shape) for p in built.parameters() if id(p) not in inside)
    assert found.on_rank(1) == num_params(model)
    for ranks in (2, 3, 7):
        first = [row_range(len(p), 0, ranks)[1] * p[0].numel() for p in built.parameters()]
        assert found.on_rank(ranks) == sum(first)


def test_numbers_by_hand() -> None:
    """5 rows of 2 x 3 over 2 ranks: 3 rows; a vector of 4 over 3 ranks: 2."""
    assert numbers(((5, 2, 3),)) == 30
    assert numbers(((5, 2, 3),), ranks=2) == 18
    assert numbers(((4,), (5, 2)), ranks=3) == 2 + 4
