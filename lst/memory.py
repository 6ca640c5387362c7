"""How much memory a run needs, by part: one estimate for the plan and for the sentence of a run that did not fit. No torch.

A sum of parts for one process without sharding or recomputation; weights and AdamW's states in float32. docs/training.md says
how far it was off where it was measured.
"""

from __future__ import annotations

from lst.config import RunConfig, StackConfig
from lst.flops import num_params

GIB = 2**30
RUNTIME_GIB = {"cpu": 0.35, "gpu": 1.0}
"""What a process holds before it has a model: torch and the tables on a CPU, the CUDA context on a GPU. Rounded measurements."""

FLOATS_PER_WIDTH = 10  # activations kept for the backward pass, per token and layer, in multiples of the width: residuals,
# norms, query, key, value before and after the rotary embedding, the attention's output
FLOATS_PER_FFN = 4  # the same in multiples of the feed-forward width: gate, up, gated, their product
LOGIT_COPIES = 3  # logits, their log-softmax, their gradient


def memory_by_part(config: RunConfig, *, tokens_per_step: float, gpu: bool) -> dict[str, float]:
    """Peak GiB of one process by part; a micro-batch holds the step's tokens or `execution.micro_batch_tokens`."""
    model = config.model
    weights = 4.0 * num_params(model)
    tokens = min(float(config.execution.micro_batch_tokens), tokens_per_step)
    bytes_per_float = 2 if config.train.dtype == "bfloat16" else 4
    stacks = [stack for stack in (model.global_stack, model.encoder, model.decoder) if stack is not None]
    vocabulary = model.text_vocab + model.speech_vocab + 2
    parts = {
        "weights": weights,
        "gradients": weights,
        "optimiser": 2 * weights,
        "activations": tokens * bytes_per_float * sum(_floats_per_token(stack) for stack in stacks),
        "logits": tokens * 4 * LOGIT_COPIES * vocabulary,
        "runtime": RUNTIME_GIB["gpu" if gpu else "cpu"] * GIB,
    }
    return {name: float(f"{size / GIB:.4g}") for name, size in parts.items()}


def _floats_per_token(stack: StackConfig) -> int:
    return stack.layers * (FLOATS_PER_WIDTH * stack.dim + FLOATS_PER_FFN * stack.ffn_dim)
