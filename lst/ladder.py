"""Size name -> shape of each arm's network. What a size means for learning rate and batch is a recipe (`sweeps`).

A rung's name ("420M", "1.4B") counts the total parameters of the baseline with an untied head at the paper's vocabulary
(32,000 text pieces, 501 speech tokens, two markers) and is within 2% of that count. Exempt are `table7_1b`, the paper's
Table 7 exactly, and the rungs named by their global width ("w64", and "tiny"), which are meant for tiny vocabularies.

Local modules follow one rule, which gives Table 7 at its shape (assumption "local modules' shape"): half the global width,
one encoder layer, a decoder of a third of the global depth, rounded up. Not here: the table as text (`sweeps.sizes`).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from enum import StrEnum

from lst.config import ARM_PATCHING, Arm, ModelConfig, Patching, StackConfig
from lst.errors import ConfigError, did_you_mean
from lst.flops import num_non_embedding_params

LOCAL_WINDOW = 512  # tokens (PAPER: Table 7)
SPEECH_BPE_VOCAB = 1_000  # pieces of arm `bpe` (PAPER: 1k; 5k and 10k gave nothing more)
NAME_TOLERANCE = 0.02  # how far a rung's name may be from its count
MATCH_TOLERANCE = 0.01  # how far a baseline matched to LST's non-embedding parameters may be from them
FFN_MOVE = 0.12  # how much its feed-forward width may move (a ratio's logarithm) before finer widths are looked at


class BaselineMatch(StrEnum):
    """What the baseline shares with the LST arms of its size (the paper does not say: gap 7)."""

    GLOBAL_SHAPE = "global_shape"  # the shape of their global transformer
    LST_PARAMS = "lst_params"  # their number of non-embedding parameters


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


def _by_width(dim: int, layers: int) -> Rung:
    """A rung for tiny vocabularies: heads of 32, gated feed-forward of 8/3 of the width."""
    local = dim // 2
    return Rung(
        layers=layers,
        dim=dim,
        heads=max(1, dim // 32),
        ffn_dim=_nearest(8 * dim / 3, 16),
        local_dim=local,
        local_heads=max(1, local // 32),
        local_ffn_dim=_nearest(8 * local / 3, 16),
        encoder_layers=1,
        decoder_layers=max(1, round(layers / 3)),
    )


def _by_count(dim: int, layers: int) -> Rung:
    """A rung of the ladder: heads of 128 from width 1,024 on and of 64 below, local heads of 64, local modules by the rule."""
    local = dim // 2
    return Rung(
        layers=layers,
        dim=dim,
        heads=max(1, dim // (128 if dim >= 1024 else 64)),
        ffn_dim=_ffn_dim(dim),
        local_dim=local,
        local_heads=max(1, local // 64),
        local_ffn_dim=_ffn_dim(local),
        encoder_layers=1,
        decoder_layers=math.ceil(layers / 3),
    )


def _ffn_dim(dim: int) -> int:
    """About 8/3 of the width: rounded up to a multiple of 256 from width 1,024 on, else to the nearest of 64 (or 16)."""
    multiple = _ffn_multiple(dim)
    return multiple * math.ceil(8 * dim / 3 / multiple) if multiple == 256 else _nearest(8 * dim / 3, multiple)


def _ffn_multiple(dim: int) -> int:
    return 256 if dim >= 1024 else 64 if dim >= 128 else 16


def _nearest(value: float, multiple: int) -> int:
    return max(multiple, multiple * round(value / multiple))


SIZES: dict[str, Rung] = {
    "tiny": _by_width(32, 2),
    "w8": _by_width(8, 2),
    "w16": _by_width(16, 2),
    "w24": _by_width(24, 3),
    "w32": _by_width(32, 3),
    "w48": _by_width(48, 3),
    "w64": _by_width(64, 4),
    "w96": _by_width(96, 4),
    "w128": _by_width(128, 5),
    "w192": _by_width(192, 6),
    "w256": _by_width(256, 8),
    # Below 9M the vocabulary alone leaves no width of 128: such rungs are for canaries.
    "1.05M": _by_count(16, 2),
    "2.1M": _by_count(32, 3),
    "4.4M": _by_count(64, 4),
    "9.1M": _by_count(128, 4),
    "21.5M": _by_count(256, 6),
    "39M": _by_count(384, 8),
    "64M": _by_count(512, 10),
    "100M": _by_count(640, 12),
    "200M": _by_count(896, 15),
    "420M": _by_count(1152, 22),
    "630M": _by_count(1408, 22),
    "810M": _by_count(1536, 25),
    "1.1B": _by_count(1792, 25),
    "1.4B": _by_count(2048, 25),
    "1.8B": _by_count(2304, 26),
    "7B": _by_count(4096, 33),
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


def named_count(size: str) -> float | None:
    """The parameters that a rung's name promises; None for a name that promises none."""
    scale = {"M": 1e6, "B": 1e9}.get(size[-1:])
    return float(size[:-1]) * scale if scale else None


def model_shape(size: str, arm: Arm, *, baseline_match: str = BaselineMatch.GLOBAL_SHAPE) -> ModelConfig:
    """The network of `arm` at `size`, with the paper's vocabulary; override text_vocab and speech_vocab from the data.

    Raises ConfigError on an unknown size or baseline_match.
    """
    if size not in SIZES:
        raise ConfigError(f"size='{size}' is unknown; {did_you_mean(size, SIZES)}")
    require_baseline_match(baseline_match)
    rung = SIZES[size]
    stack = StackConfig(layers=rung.layers, dim=rung.dim, heads=rung.heads, ffn_dim=rung.ffn_dim)
    if ARM_PATCHING[arm] is Patching.TOKEN:
        if baseline_match == BaselineMatch.LST_PARAMS:
            stack = matched_stack(model_shape(size, Arm.LST_STATIC))
        return ModelConfig(arm=arm, global_stack=stack, speech_bpe_vocab=SPEECH_BPE_VOCAB if arm is Arm.BPE else 0)
    encoder = StackConfig(
        layers=rung.encoder_layers, dim=rung.local_dim, heads=rung.local_heads, ffn_dim=rung.local_ffn_dim, window=LOCAL_WINDOW
    )
    decoder = dataclasses.replace(encoder, layers=rung.decoder_layers)
    queries = max(1, rung.dim // rung.local_dim)
    return ModelConfig(arm=arm, global_stack=stack, encoder=encoder, decoder=decoder, queries_per_patch=queries)


def matched_stack(lst: ModelConfig) -> StackConfig:
    """The baseline's stack with the non-embedding parameters of the LST network `lst`, within 1%.

    Layers of the global transformer's width are added, and the feed-forward width moves as little as can be: in multiples of
    what the ladder uses at that width, or of a quarter of it and so on where small networks leave no such shape.
    """
    stack, wanted, multiple = lst.global_stack, num_non_embedding_params(lst), _ffn_multiple(lst.global_stack.dim)

    def move(candidate: StackConfig) -> float:
        return abs(math.log(candidate.ffn_dim / stack.ffn_dim))

    while multiple >= 1:
        near = [s for s in _stacks(stack, wanted, multiple) if abs(_count(s) / wanted - 1) <= MATCH_TOLERANCE]
        best = min(near, key=move, default=None)
        if best is not None and (move(best) <= FFN_MOVE or multiple == 1):
            return best
        multiple //= 4
    raise ConfigError(
        f"no baseline of width {stack.dim} has {wanted:,} non-embedding parameters; use baseline_match=global_shape at this size."
    )


def require_baseline_match(baseline_match: str) -> None:
    """Raises ConfigError on an unknown name."""
    if baseline_match not in list(BaselineMatch):
        raise ConfigError(f"baseline_match='{baseline_match}' is unknown; {did_you_mean(baseline_match, list(BaselineMatch))}")


def _stacks(stack: StackConfig, wanted: int, multiple: int) -> list[StackConfig]:
    """For each depth, the feed-forward width that comes nearest to `wanted` parameters (which grow linearly with it)."""
    stacks = []
    for layers in range(stack.layers, 4 * stack.layers + 1):
        least, next_ = (_count(dataclasses.replace(stack, layers=layers, ffn_dim=ffn_dim)) for ffn_dim in (1, 2))
        ffn_dim = 1 + (wanted - least) / (next_ - least)
        if ffn_dim >= 1:
            stacks.append(dataclasses.replace(stack, layers=layers, ffn_dim=_nearest(ffn_dim, multiple)))
    return stacks


def _count(stack: StackConfig) -> int:
    return num_non_embedding_params(ModelConfig(arm=Arm.BASELINE, global_stack=stack))
