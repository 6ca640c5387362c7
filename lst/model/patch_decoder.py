"""Units back to tokens. Legend: B rows, T tokens, U units, E local width, G global width.

PAPER (Model): per layer, windowed causal self-attention over the tokens, and cross-attention in which a token is the
query and the earlier speech patches and text tokens (global outputs) are keys and values. "Earlier" is `visible` of
lst/patching.py: all units closed at the token, no other. Rotary positions on units tell the query which unit is recent:
a query stands at the last unit that it may see.
"""

from __future__ import annotations

from torch import Tensor, nn

from lst.config import ModelConfig, StackConfig
from lst.model.attention import RotaryTable, attend, merge_heads, rotate, split_heads
from lst.model.batch import Batch
from lst.model.blocks import RMSNorm, TransformerLayer
from lst.model.masks import causal_bias, visible_bias


class CrossAttention(nn.Module):
    """Tokens (queries) attend to units (keys and values)."""

    def __init__(self, stack: StackConfig, global_dim: int) -> None:
        super().__init__()
        self.heads = stack.heads
        self.backend = "sdpa"
        self.norm = RMSNorm(stack.dim)
        self.to_query = nn.Linear(stack.dim, stack.dim, bias=False)
        self.to_key_value = nn.Linear(global_dim, 2 * stack.dim, bias=False)
        self.to_out = nn.Linear(stack.dim, stack.dim, bias=False)

    def forward(
        self,
        h_BTE: Tensor,
        z_BUG: Tensor,
        bias_B1TU: Tensor,
        query_rotary: tuple[Tensor, Tensor],
        key_rotary: tuple[Tensor, Tensor],
    ) -> Tensor:
        q = rotate(split_heads(self.to_query(self.norm(h_BTE)), self.heads), query_rotary)
        k, v = (split_heads(x, self.heads) for x in self.to_key_value(z_BUG).chunk(2, dim=-1))
        return self.to_out(merge_heads(attend(q, rotate(k, key_rotary), v, bias_B1TU, backend=self.backend)))


class PatchDecoder(nn.Module):
    """(h_BTE, z_BUG) -> h_BTE, normed at the end."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.decoder is not None
        stack = config.decoder
        self.window = stack.window
        self.rotary = RotaryTable(stack.dim // stack.heads, config.rope_theta)
        self.cross = nn.ModuleList(CrossAttention(stack, config.global_stack.dim) for _ in range(stack.layers))
        self.layers = nn.ModuleList(TransformerLayer(stack) for _ in range(stack.layers))
        self.norm = RMSNorm(stack.dim)

    def forward(self, h_BTE: Tensor, z_BUG: Tensor, batch: Batch) -> Tensor:
        bias, rotary = causal_bias(batch.doc_BT, batch.position_BT, self.window), self.rotary(batch.position_BT)
        seen = visible_bias(batch.doc_BT, batch.visible_BT, batch.unit_doc_BU)
        last_seen_BT = batch.unit_position_BU.gather(1, (batch.visible_BT - 1).clamp(min=0))
        query_rotary, key_rotary = self.rotary(last_seen_BT), self.rotary(batch.unit_position_BU)
        for cross, layer in zip(self.cross, self.layers, strict=True):
            h_BTE = h_BTE + cross(h_BTE, z_BUG, seen, query_rotary, key_rotary)
            h_BTE = layer(h_BTE, bias, rotary)
        return self.norm(h_BTE)
