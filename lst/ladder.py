"""Size name -> shape of each arm's network. What a size means for learning rate and batch is a recipe (`sweeps`).

A rung's name is its global width for the small rungs ("w64"); `table7_1b` is the paper's Table 7 exactly. Local modules
follow Table 7's proportion: half the global width, one encoder layer, and a decoder of about a third of the global depth.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from lst.config import Arm, ModelConfig, StackConfig
from lst.errors import ConfigError, did_you_mean

LOCAL_WINDOW = 512  # tokens (PAPER: Table 7)


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One size: the global stack, and the local modules of the LST arms."""

    layers: int
    dim: int
    heads: int
    ffn_dim: int
    local_dim: int
    local_heads: int
    local_ffn_dim: int
    encoder_layers: int
    decoder_layers: int


def _small(dim: int, layers: int) -> Rung:
    """A rung for laptops: heads of 16, gated feed-forward of 8/3 of the width, local modules of half the width."""
    local = dim // 2
    return Rung(
        layers=layers,
        dim=dim,
        heads=max(1, dim // 32),
        ffn_dim=_multiple(8 * dim / 3, 16),
        local_dim=local,
        local_heads=max(1, local // 32),
        local_ffn_dim=_multiple(8 * local / 3, 16),
        encoder_layers=1,
        decoder_layers=max(1, round(layers / 3)),
    )


def _multiple(value: float, of: int) -> int:
    return max(of, of * round(value / of))


SIZES: dict[str, Rung] = {
    "tiny": _small(32, 2),
    "w8": _small(8, 2),
    "w16": _small(16, 2),
    "w24": _small(24, 3),
    "w32": _small(32, 3),
    "w48": _small(48, 3),
    "w64": _small(64, 4),
    "w96": _small(96, 4),
    "w128": _small(128, 5),
    "w192": _small(192, 6),
    "w256": _small(256, 8),
    "table7_1b": Rung(
        layers=25,
        dim=2048,
        heads=16,
        ffn_dim=5632,
        local_dim=1024,
        local_heads=16,
        local_ffn_dim=2816,
        encoder_layers=1,
        decoder_layers=9,
    ),
}


def model_shape(size: str, arm: Arm) -> ModelConfig:
    """The network of `arm` at `size`, with the paper's vocabulary; override text_vocab and speech_vocab from the data.

    Raises ConfigError on an unknown size.
    """
    if size not in SIZES:
        raise ConfigError(f"size='{size}' is unknown; {did_you_mean(size, SIZES)}")
    rung = SIZES[size]
    stack = StackConfig(layers=rung.layers, dim=rung.dim, heads=rung.heads, ffn_dim=rung.ffn_dim)
    if arm is Arm.BASELINE:
        return ModelConfig(arm=arm, global_stack=stack)
    encoder = StackConfig(
        layers=rung.encoder_layers, dim=rung.local_dim, heads=rung.local_heads, ffn_dim=rung.local_ffn_dim, window=LOCAL_WINDOW
    )
    decoder = dataclasses.replace(encoder, layers=rung.decoder_layers)
    queries = max(1, rung.dim // rung.local_dim)
    return ModelConfig(arm=arm, global_stack=stack, encoder=encoder, decoder=decoder, queries_per_patch=queries)
