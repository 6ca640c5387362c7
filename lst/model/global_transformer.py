"""The large transformer over units, block-causal inside a document. Legend: B rows, U units, G width.

This is the whole network of the baseline arm (each token a unit) and the heart of the LST arms.
"""

from __future__ import annotations

from torch import Tensor, nn

from lst.config import ModelConfig
from lst.model.attention import RotaryTable
from lst.model.batch import Batch
from lst.model.blocks import RMSNorm, TransformerLayer


class GlobalTransformer(nn.Module):
    """z_BUG -> z_BUG, normed at the end."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        stack = config.global_stack
        self.rotary = RotaryTable(stack.dim // stack.heads, config.rope_theta)
        self.layers = nn.ModuleList(TransformerLayer(stack) for _ in range(stack.layers))
        self.norm = RMSNorm(stack.dim)

    def forward(self, z_BUG: Tensor, batch: Batch) -> Tensor:
        rotary = self.rotary(batch.unit_position_BU)
        for layer in self.layers:
            z_BUG = layer(z_BUG, batch.unit_intervals, rotary)
        return self.norm(z_BUG)
