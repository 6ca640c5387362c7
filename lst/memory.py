"""How much memory a run needs, by part: one estimate for the plan and for the sentence of a run that did not fit. No torch.

A sum of parts for one process. Weights, gradients and AdamW's states are in float32; of several ranks (FSDP, lst.train.sharding)
each holds its rows of every parameter, and beside them what is gathered:

    gathered = the rest's weights and gradients, whole, each with the buffer in which it travels (embeddings,
               cross-attention, head: once a micro-batch)
             + the largest layer's weights twice (in use, and fetched ahead), its gradients, and these again in float32

docs/training.md says how far the sum was off where it was measured.
"""

from __future__ import annotations

import functools

from lst.config import ModelConfig, StackConfig
from lst.flops import vocabulary_size
from lst.shapes import numbers, sharded_shapes

GIB = 2**30
PARTS = ("weights", "gradients", "optimiser", "activations", "workspace", "logits", "gathered", "runtime")
RUNTIME_GIB = {"cpu": 0.35, "gpu": 1.0}
"""What a process holds before it has a model: torch and the tables on a CPU, the CUDA context on a GPU. Rounded measurements."""
RANKS_GIB = {"cpu": 0.1, "gpu": 0.0}
"""What each of several processes holds on top: gloo and FSDP's code, measured; nccl's buffers have not been measured."""

FLOATS_PER_WIDTH = 8  # kept for the backward pass, per position and layer, in multiples of the width: inputs of both norms and
# their outputs, query, key and value, the attention's output (counted by autograd's hooks on the built network)
RESIDUAL_FLOATS = 2  # of these: the inputs of both norms
FLOATS_PER_FFN = 3  # the same in multiples of the feed-forward width: gate, up, their product
WORKSPACE = 0.3  # of the activations: what attention and a layer's backward pass hold for a while, as measured
RECOMPUTED_LAYERS = 3.5  # of the largest layer, where it is computed again backwards: it, its gradients, the heap; as measured
LOGIT_COPIES = 3  # logits, their softmax, their gradient
CHUNK_LOGITS = {"cpu": 2**20, "cuda": 2**26}
"""Logits of a chunk of the cross-entropy: 4 MiB in float32 stay in a CPU's cache, a GPU wants large products."""
CHUNK_ROWS = 256
"""Positions of a chunk at least: fewer would read the head's weights more often than they use them."""


def memory_by_part(
    model: ModelConfig,
    *,
    tokens: float,
    units: float,
    gpu: bool,
    ranks: int = 1,
    dtype: str = "float32",
    checkpointing: str = "none",
) -> dict[str, float]:
    """Peak GiB of one of `ranks` processes by part, for its micro-batches of `tokens` padded tokens that are `units` units.

    `dtype` is train.dtype, `checkpointing` execution.activation_checkpointing.
    """
    bf16 = dtype == "bfloat16"
    kept, held = _activation_bytes(model, tokens, units, bf16=bf16, recomputed=checkpointing == "layers")
    weights, gathered = _weights(model, ranks, bf16=bf16 and gpu)
    vocabulary = vocabulary_size(model)
    chunk = min(tokens * vocabulary, max(CHUNK_ROWS * vocabulary, CHUNK_LOGITS["cuda" if gpu else "cpu"]))
    device = "gpu" if gpu else "cpu"
    sizes = {
        "weights": weights,
        "gradients": weights,
        "optimiser": 2 * weights,
        "activations": kept,
        "workspace": held,
        "logits": chunk * 4 * LOGIT_COPIES,
        "gathered": gathered,
        "runtime": (RUNTIME_GIB[device] + (RANKS_GIB[device] if ranks > 1 else 0)) * GIB,
    }
    return {name: float(f"{sizes[name] / GIB:.4g}") for name in PARTS}


@functools.lru_cache(maxsize=4096)
def _weights(model: ModelConfig, ranks: int, *, bf16: bool) -> tuple[float, float]:
    """Bytes of the weights that the first of `ranks` ranks keeps, and of what is gathered beside them."""
    shapes = sharded_shapes(model)
    if ranks == 1:
        return 4.0 * shapes.on_rank(1), 0.0
    travelling = 2 if bf16 else 4  # bytes of a layer's number where it is gathered; what is gathered once stays float32
    layer = shapes.largest_layer * (3 * travelling + 4)
    return 4.0 * shapes.on_rank(ranks), 16.0 * numbers(shapes.rest) + layer


def _activation_bytes(model: ModelConfig, tokens: float, units: float, *, bf16: bool, recomputed: bool) -> tuple[float, float]:
    """Bytes that the forward pass keeps for the backward pass, and those that are there for a while."""
    local = [stack for stack in (model.encoder, model.decoder) if stack is not None]
    stacks = [(units, model.global_stack), *((tokens, stack) for stack in local)]
    if not recomputed:
        kept = sum(positions * stack.layers * _layer_bytes(stack, bf16=bf16) for positions, stack in stacks)
        return kept, WORKSPACE * kept
    inputs = sum(4 * positions * stack.layers * stack.dim for positions, stack in stacks)
    return inputs, RECOMPUTED_LAYERS * max(positions * _layer_bytes(stack, bf16=bf16) for positions, stack in stacks)


def _layer_bytes(stack: StackConfig, *, bf16: bool) -> int:
    """Per position. The residual stream is float32 also where products are in bfloat16."""
    inner = (FLOATS_PER_WIDTH - RESIDUAL_FLOATS) * stack.dim + FLOATS_PER_FFN * stack.ffn_dim
    return 4 * RESIDUAL_FLOATS * stack.dim + (2 if bf16 else 4) * inner
