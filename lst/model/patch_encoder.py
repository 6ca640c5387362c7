"""Tokens to units: windowed self-attention, then each patch reads its own tokens.

Legend: B rows, T tokens, U units, E local width, G global width, K queries a patch.

PAPER (Model): the queries of a patch are the pooled hidden states of its own tokens, keys and values are those tokens. A
text token is a patch of one and takes the same way.
"""

from __future__ import annotations

from torch import Tensor, nn

from lst.config import ModelConfig
from lst.model.attention import RotaryTable, attend_segments, pool_segments
from lst.model.batch import Batch
from lst.model.blocks import RMSNorm, TransformerLayer
from lst.model.masks import causal_bias


class PatchEncoder(nn.Module):
    """x_BTE -> (h_BTE, z_BUG): the tokens' local states, and the units that go into the global transformer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.encoder is not None
        stack = config.encoder
        self.window, self.pooling, self.queries, self.heads = stack.window, config.pooling, config.queries_per_patch, stack.heads
        self.backend = "sdpa"
        self.rotary = RotaryTable(stack.dim // stack.heads, config.rope_theta)
        self.layers = nn.ModuleList(TransformerLayer(stack) for _ in range(stack.layers))
        self.to_queries = nn.Linear(stack.dim, self.queries * stack.dim, bias=False)
        self.query_norm = RMSNorm(stack.dim)
        self.token_norm = RMSNorm(stack.dim)
        self.to_query = nn.Linear(stack.dim, stack.dim, bias=False)
        self.to_key_value = nn.Linear(stack.dim, 2 * stack.dim, bias=False)
        self.to_out = nn.Linear(stack.dim, stack.dim, bias=False)
        self.to_global = nn.Linear(self.queries * stack.dim, config.global_stack.dim, bias=False)

    def forward(self, x_BTE: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        bias, rotary = causal_bias(batch.doc_BT, batch.position_BT, self.window), self.rotary(batch.position_BT)
        for layer in self.layers:
            x_BTE = layer(x_BTE, bias, rotary)
        return x_BTE, self.to_global(self.read_patches(x_BTE, batch).flatten(2))

    def read_patches(self, h_BTE: Tensor, batch: Batch) -> Tensor:
        """Pooled queries, updated by cross-attention to the patch's own tokens -> (B, U, K, E)."""
        pooled_BUE = pool_segments(h_BTE, batch.unit_BT, batch.units, self.pooling)
        query_BUKE = self.to_queries(pooled_BUE).unflatten(-1, (self.queries, -1))
        key_BTE, value_BTE = self.to_key_value(self.token_norm(h_BTE)).chunk(2, dim=-1)
        read_BUKE = attend_segments(
            self.to_query(self.query_norm(query_BUKE)), key_BTE, value_BTE, batch.unit_BT, heads=self.heads, backend=self.backend
        )
        return query_BUKE + self.to_out(read_BUKE)
