"""Tokens to units: windowed self-attention, then each patch reads its own tokens.

Legend: B rows, T tokens, U units, L tokens of the local stream and P its patches (T and U, or speech alone), E local width,
G global width, K queries a patch, H heads.

PAPER (Model): the queries of a patch are the pooled hidden states of its own tokens, keys and values are those tokens. Where
the local modules run on text too, a text token is a patch of one and takes the same way; where they do not, its embedding
alone is projected to the global width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lst.config import ModelConfig
from lst.model.attention import RotaryTable, dense_attention
from lst.model.batch import Batch, SpeechPlaces, TokenStream, joined
from lst.model.blocks import RMSNorm, TransformerLayer
from lst.model.intervals import additive
from lst.model.segments import Segments, pool_segments, read_own_tokens


class PatchEncoder(nn.Module):
    """x_BTE -> (h_BLE, z_BUG): the tokens' local states, and the units that go into the global transformer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.encoder is not None
        stack = config.encoder
        self.window, self.pooling, self.queries, self.heads = stack.window, config.pooling, config.queries_per_patch, stack.heads
        self.backend = "auto"
        self.rotary = RotaryTable(stack.dim // stack.heads, config.rope_theta)
        self.layers = nn.ModuleList(TransformerLayer(stack) for _ in range(stack.layers))
        self.to_queries = nn.Linear(stack.dim, self.queries * stack.dim, bias=False)
        self.query_norm = RMSNorm(stack.dim)
        self.token_norm = RMSNorm(stack.dim)
        self.to_query = nn.Linear(stack.dim, stack.dim, bias=False)
        self.to_key_value = nn.Linear(stack.dim, 2 * stack.dim, bias=False)
        self.to_out = nn.Linear(stack.dim, stack.dim, bias=False)
        self.to_global = nn.Linear(self.queries * stack.dim, config.global_stack.dim, bias=False)
        self.text_to_global = None if config.local_text else nn.Linear(stack.dim, config.global_stack.dim, bias=False)

    def forward(self, x_BTE: Tensor, batch: Batch, stream: TokenStream) -> tuple[Tensor, Tensor]:
        h_BLE, seen, rotary = stream.gather(x_BTE), stream.seen(self.window), self.rotary(stream.position_BL)
        for layer in self.layers:
            h_BLE = layer(h_BLE, seen, rotary)
        z_BPG = self.to_global(self.read_patches(h_BLE, stream.segments).flatten(2))
        return h_BLE, z_BPG if stream.places is None else self._with_text(z_BPG, x_BTE, batch, stream.places)

    def read_patches(self, h_BLE: Tensor, segments: Segments) -> Tensor:
        """Pooled queries, updated by cross-attention to the patch's own tokens -> (B, P, K, E)."""
        pooled_BPE = pool_segments(h_BLE, segments, self.pooling)
        query_BPKE = self.to_queries(pooled_BPE).unflatten(-1, (self.queries, -1))
        key_BLE, value_BLE = self.to_key_value(self.token_norm(h_BLE)).chunk(2, dim=-1)
        read = _read_densely if self.backend == "dense" else read_own_tokens
        read_BPKE = read(self.to_query(self.query_norm(query_BPKE)), key_BLE, value_BLE, segments, self.heads)
        return query_BPKE + self.to_out(read_BPKE)

    def _with_text(self, z_BPG: Tensor, x_BTE: Tensor, batch: Batch, places: SpeechPlaces) -> Tensor:
        """All units: the patches, and each other token's embedding in the global width."""
        assert self.text_to_global is not None
        token_M, unit_M = batch.other_tokens
        text_MG = self.text_to_global(x_BTE.flatten(0, 1).index_select(0, token_M))
        own_NG = z_BPG.flatten(0, 1).index_select(0, places.patch_N)
        return joined([(unit_M, text_MG), (places.unit_N, own_NG)], tuple(batch.unit_doc_BU.shape))


def _read_densely(q_BPKE: Tensor, k_BLE: Tensor, v_BLE: Tensor, segments: Segments, heads: int) -> Tensor:
    """The reference of `read_own_tokens`: every query meets every token, under a mask."""
    P, K = q_BPKE.shape[1:3]
    own_BPL = segments.unit_BT[:, None, :] == torch.arange(P, device=k_BLE.device)[None, :, None]
    own_BPL = own_BPL | ~own_BPL.any(-1, keepdim=True)  # an empty (padding) unit would divide 0 by 0
    q, k, v = (x.unflatten(-1, (heads, -1)) for x in (q_BPKE.flatten(1, 2), k_BLE, v_BLE))
    return dense_attention(q, k, v, additive(own_BPL).repeat_interleave(K, dim=1)[:, None]).flatten(2).unflatten(1, (P, K))
