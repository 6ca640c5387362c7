"""THE definition of training FLOPs and of parameter counts. No torch; docs/flops.md explains and works an example.

Counted: the multiply-adds (2 FLOPs each) of every matrix product and of attention's two products, over the positions and
pairs that the mathematics needs: causal, windowed, inside the document, and only the positions that have a target for
the head. Not counted: padding, embedding look-up, norms, softmax, rotary embedding, pooling, the optimiser, recomputation
of activations. Training = forward x 3 (`TRAINING_FACTOR`): the backward pass multiplies each product twice more.

Counts come from `SequenceCounts`, measured by the data side on actual or sampled sequences, so that one function serves
the planner (expected) and the trainer (spent). The dense convention (`dense_counts`) exists for one purpose: it equals
`torch.utils.flop_counter` on the real model with dense attention. 6ND is a comparison only.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from lst.config import ModelConfig, RunConfig, StackConfig
from lst.data.vocab import Vocabulary
from lst.plain import kept

TRAINING_FACTOR = 3  # forward once, and two products in the backward pass for each one of the forward pass
GROUPS = ("embedding", "encoder", "global", "decoder", "head")
KINDS = ("matmul", "attention", "head")  # weights, attention's two products, and the head, which no other kind counts


@dataclass(frozen=True, kw_only=True)
class SequenceCounts:
    """What a batch (or the mean sequence, or a whole run) holds. Additive. A pair is one (query, visible key)."""

    sequences: float = 0  # packed sequences
    units: float = 0  # positions of the global transformer
    tokens: float = 0  # text, speech (by content), marker, BOS and EOS tokens
    text_tokens: float = 0
    text_only_tokens: float = 0  # text tokens of text-only sequences
    interleaved_tokens: float = 0  # all tokens of interleaved sequences, markers included
    speech_tokens: float = 0  # 25 Hz, by content: a piece of arm `bpe` counts as the speech tokens that it stands for
    patches: float = 0  # units made of speech
    predicted: float = 0  # positions with a target (a piece is one)
    global_pairs: float = 0  # (unit, same or earlier unit of its document)
    encoder_pairs: float = 0  # (token, token of its document inside the encoder's window)
    decoder_pairs: float = 0  # the same for the decoder's window
    cross_pairs: float = 0  # (token, unit of its document that is closed at the token)

    def __add__(self, other: SequenceCounts) -> SequenceCounts:
        return SequenceCounts(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in dataclasses.fields(self)})

    def scaled(self, factor: float) -> SequenceCounts:
        return SequenceCounts(**{f.name: getattr(self, f.name) * factor for f in dataclasses.fields(self)})

    @property
    def mean_patch_length(self) -> float:
        return self.speech_tokens / self.patches if self.patches else 0.0


@dataclass(frozen=True)
class FlopsBreakdown:
    """FLOPs by group and kind; `cells[group, kind]`."""

    cells: dict[tuple[str, str], float]

    @property
    def total(self) -> float:
        return sum(self.cells.values())

    @property
    def by_group(self) -> dict[str, float]:
        return {g: sum(v for (group, _), v in self.cells.items() if group == g) for g in GROUPS}

    @property
    def by_kind(self) -> dict[str, float]:
        return {k: sum(v for (_, kind), v in self.cells.items() if kind == k) for k in KINDS}

    def scaled(self, factor: float) -> FlopsBreakdown:
        return FlopsBreakdown({cell: value * factor for cell, value in self.cells.items()})


def training_flops(config: RunConfig | ModelConfig, counts: SequenceCounts) -> FlopsBreakdown:
    """FLOPs of training on `counts` (forward and backward)."""
    model = config.model if isinstance(config, RunConfig) else config
    return forward_flops(model, counts).scaled(TRAINING_FACTOR)


def forward_flops(model: ModelConfig, counts: SequenceCounts) -> FlopsBreakdown:
    """FLOPs of one forward pass over `counts`.

    A layer of width d and hidden width f costs 2 (4 d^2 + 3 d f) a position and 4 d a pair (d for the score, d for the
    value, 2 FLOPs each).
    """
    c, stack = counts, model.global_stack
    cells = {
        ("global", "matmul"): c.units * stack.layers * _layer_matmul(stack),
        ("global", "attention"): c.global_pairs * stack.layers * 4 * stack.dim,
        ("head", "head"): c.predicted * 2 * _head_width(model) * vocabulary_size(model),
    }
    if model.encoder is not None and model.decoder is not None:
        e, d, k = model.encoder, model.decoder, model.queries_per_patch
        tokens, patches, others = _local(model, c)
        keys = 1 if model.cross_attention == "all" else k  # that a unit has in the decoder's cross-attention
        cross = c.cross_pairs if model.cross_attention == "all" else tokens * k
        through = others * 2 * e.dim * stack.dim  # what passes the local modules by: one product in, one out
        cells |= {
            ("encoder", "matmul"): tokens * (e.layers * _layer_matmul(e) + 2 * 2 * e.dim * e.dim)
            + patches * (2 * e.dim * k * e.dim + 2 * k * 2 * e.dim * e.dim + 2 * k * e.dim * stack.dim)
            + through,
            ("encoder", "attention"): (c.encoder_pairs * e.layers + tokens * k) * 4 * e.dim,
            ("decoder", "matmul"): tokens * d.layers * (_layer_matmul(d) + 2 * 2 * d.dim * d.dim)
            + c.units * d.layers * 2 * 2 * stack.dim * keys * d.dim
            + through,
            ("decoder", "attention"): (c.decoder_pairs + cross) * d.layers * 4 * d.dim,
        }
    return FlopsBreakdown(cells)


@dataclass(frozen=True, kw_only=True)
class DenseShape:
    """The padded shapes of a batch, as the networks compute them."""

    sequences: int
    tokens: int  # of a row
    units: int  # of a row
    local_tokens: int = 0  # of a row, where the local modules run on speech alone: the most speech tokens of a row, at least 1
    patches: int = 0  # the same for patches
    others: int = 0  # tokens that are no speech, of all rows


def dense_forward_flops(model: ModelConfig, shape: DenseShape) -> FlopsBreakdown:
    """What `torch.utils.flop_counter` counts for dense attention on padded rows.

    No discount for causality, windows, documents or ragged patches: each query meets each key of its row, a patch's
    queries meet all of the row's tokens, and the head runs on every position.
    """
    rows, units = shape.sequences, shape.units
    tokens, patches = (shape.tokens, units) if model.local_text else (shape.local_tokens, shape.patches)
    k = model.queries_per_patch
    counts = SequenceCounts(
        sequences=rows,
        units=rows * units,
        tokens=rows * tokens + (0 if model.local_text else shape.others),
        speech_tokens=rows * tokens,
        patches=rows * patches,
        predicted=rows * shape.tokens,
        global_pairs=rows * units * units,
        encoder_pairs=rows * tokens * tokens,
        decoder_pairs=rows * tokens * tokens,
        cross_pairs=rows * tokens * units,
    )
    cells = dict(forward_flops(model, counts).cells)
    if model.encoder is not None and model.decoder is not None:
        cells["encoder", "attention"] += rows * tokens * (patches - 1) * k * 4 * model.encoder.dim
        if model.cross_attention == "preceding":
            cells["decoder", "attention"] += rows * tokens * (units - 1) * k * model.decoder.layers * 4 * model.decoder.dim
    return FlopsBreakdown(cells)


def parameter_counts(model: ModelConfig) -> dict[str, int]:
    """Parameters by group, in closed form (tests compare them with the built network)."""
    return dict(kept(model, "_parameters", _parameter_counts))


def _parameter_counts(model: ModelConfig) -> dict[str, int]:
    stack, vocabulary, width = model.global_stack, vocabulary_size(model), _head_width(model)
    counts = dict.fromkeys(GROUPS, 0)
    counts["embedding"] = vocabulary * width
    counts["global"] = stack.layers * _layer_parameters(stack) + stack.dim
    counts["head"] = 0 if model.tied_head else vocabulary * width
    if model.encoder is not None and model.decoder is not None:
        e, d, k = model.encoder, model.decoder, model.queries_per_patch
        keys = 1 if model.cross_attention == "all" else k
        through = 0 if model.local_text else e.dim * stack.dim
        read = e.dim * k * e.dim + 4 * e.dim**2 + 2 * e.dim + k * e.dim * stack.dim
        counts["encoder"] = e.layers * _layer_parameters(e) + read + through
        cross = 2 * d.dim**2 + 2 * stack.dim * keys * d.dim + d.dim
        counts["decoder"] = d.layers * (_layer_parameters(d) + cross) + d.dim + through
        if model.decoder_input != "encoder":
            counts["embedding"] += vocabulary * d.dim
    return counts


def num_params(model: ModelConfig) -> int:
    return sum(parameter_counts(model).values())


def num_non_embedding_params(model: ModelConfig) -> int:
    """Parameters without the embedding and the head."""
    counts = parameter_counts(model)
    return counts["encoder"] + counts["global"] + counts["decoder"]


def vocabulary_size(model: ModelConfig) -> int:
    """Ids of the embedding and the head, markers included."""
    return Vocabulary.of(model).size


def six_nd(model: ModelConfig, tokens: float) -> float:
    """6 x parameters x tokens, the usual approximation; a comparison column, never a budget."""
    return 6.0 * num_params(model) * tokens


def _local(model: ModelConfig, counts: SequenceCounts) -> tuple[float, float, float]:
    """Tokens and units that the local modules run on, and tokens that pass them by."""
    if model.local_text:
        return counts.tokens, counts.units, 0.0
    return counts.speech_tokens, counts.patches, counts.tokens - counts.speech_tokens


def _layer_matmul(stack: StackConfig) -> int:
    """Forward FLOPs of one layer at one position: query, key, value, output, and the gated feed-forward module."""
    return 2 * (4 * stack.dim**2 + 3 * stack.dim * stack.ffn_dim)


def _layer_parameters(stack: StackConfig) -> int:
    return 4 * stack.dim**2 + 3 * stack.dim * stack.ffn_dim + 2 * stack.dim


def _head_width(model: ModelConfig) -> int:
    if model.decoder is None:
        return model.global_stack.dim
    return model.decoder.dim
