"""How much memory a run needs, by part: one estimate for the plan and for the sentence of a run that did not fit. No torch.

A sum of parts for one process without sharding or recomputation; weights and AdamW's states in float32. docs/training.md says
how far it was off where it was measured.
"""

from __future__ import annotations

from lst.config import RunConfig, StackConfig
from lst.flops import num_params, vocabulary_size

GIB = 2**30
RUNTIME_GIB = {"cpu": 0.35, "gpu": 1.0}
"""What a process holds before it has a model: torch and the tables on a CPU, the CUDA context on a GPU. Rounded measurements."""

FLOATS_PER_WIDTH = 8  # kept for the backward pass, per position and layer, in multiples of the width: inputs of both norms and
# their outputs, query, key and value, the attention's output (counted by autograd's hooks on the built network)
FLOATS_PER_FFN = 3  # the same in multiples of the feed-forward width: gate, up, their product
WORKSPACE = 1.3  # of the activations: what attention and a layer's backward pass hold for a while, as measured
LOGIT_COPIES = 3  # logits, their softmax, their gradient
CHUNK_LOGITS = {"cpu": 2**20, "cuda": 2**26}
"""Logits of a chunk of the cross-entropy: 4 MiB in float32 stay in a CPU's cache, a GPU wants large products."""
CHUNK_ROWS = 256
"""Positions of a chunk at least: fewer would read the head's weights more often than they use them."""


def memory_by_part(config: RunConfig, *, tokens: float, units: float, gpu: bool) -> dict[str, float]:
    """Peak GiB of one process by part, for micro-batches of `tokens` padded tokens that are `units` units."""
    model = config.model
    weights = 4.0 * num_params(model)
    bytes_per_float = 2 if config.train.dtype == "bfloat16" else 4
    local = [stack for stack in (model.encoder, model.decoder) if stack is not None]
    floats = units * _floats_per_position(model.global_stack) + tokens * sum(_floats_per_position(stack) for stack in local)
    vocabulary = vocabulary_size(model)
    chunk = min(tokens * vocabulary, max(CHUNK_ROWS * vocabulary, CHUNK_LOGITS["cuda" if gpu else "cpu"]))
    parts = {
        "weights": weights,
        "gradients": weights,
        "optimiser": 2 * weights,
        "activations": WORKSPACE * floats * bytes_per_float,
        "logits": chunk * 4 * LOGIT_COPIES,
        "runtime": RUNTIME_GIB["gpu" if gpu else "cpu"] * GIB,
    }
    return {name: float(f"{size / GIB:.4g}") for name, size in parts.items()}


def _floats_per_position(stack: StackConfig) -> int:
    return stack.layers * (FLOATS_PER_WIDTH * stack.dim + FLOATS_PER_FFN * stack.ffn_dim)
