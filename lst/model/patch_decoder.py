"""Units back to tokens. Legend: B rows, T tokens, U units, L tokens of the local stream, E local width, G global width,
K keys a unit, H heads, D head width.

PAPER (Model): per layer, windowed causal self-attention over the tokens, and cross-attention in which a token is the
query and the earlier speech patches and text tokens (global outputs) are keys and values. "Earlier" is `visible` of
lst/patching.py: all units closed at the token, no other. Rotary positions on units tell the query which unit is recent:
a query stands at the last unit that it may see. BLT's variant, `preceding`, shows the last of them alone, as K keys.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lst.config import ModelConfig, StackConfig
from lst.model.attention import Rotary, RotaryTable, cross_attention, dense_attention, rotate
from lst.model.batch import Batch, SpeechPlaces, TokenStream, joined
from lst.model.blocks import RMSNorm, TransformerLayer
from lst.model.intervals import additive
from lst.model.segments import read_one_unit


class CrossAttention(nn.Module):
    """Tokens (queries) attend to all units that they see."""

    def __init__(self, stack: StackConfig, config: ModelConfig) -> None:
        super().__init__()
        self.heads = stack.heads
        self.backend = "auto"
        self.norm = RMSNorm(stack.dim)
        self.to_query = nn.Linear(stack.dim, stack.dim, bias=False)
        self.to_key_value = nn.Linear(config.global_stack.dim, 2 * stack.dim, bias=False)
        self.to_out = nn.Linear(stack.dim, stack.dim, bias=False)

    def forward(self, h_BLE: Tensor, z_BUG: Tensor, stream: TokenStream, positions: tuple[Rotary, Rotary]) -> Tensor:
        q_BLHD = self.to_query(self.norm(h_BLE)).unflatten(-1, (self.heads, -1))
        k_BUHD, v_BUHD = self.to_key_value(z_BUG).unflatten(-1, (2, self.heads, -1)).unbind(2)
        q_BLHD, k_BUHD = rotate(q_BLHD, positions[0]), rotate(k_BUHD, positions[1])
        return self.to_out(cross_attention(q_BLHD, k_BUHD, v_BUHD, stream.visible, self.backend).flatten(2))


class PrecedingUnitAttention(nn.Module):
    """Tokens (queries) attend to the last unit that they see, which is K keys (BLT)."""

    def __init__(self, stack: StackConfig, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.keys = stack.heads, config.queries_per_patch
        self.backend = "auto"
        self.norm = RMSNorm(stack.dim)
        self.to_query = nn.Linear(stack.dim, stack.dim, bias=False)
        self.to_key_value = nn.Linear(config.global_stack.dim, 2 * self.keys * stack.dim, bias=False)
        self.to_out = nn.Linear(stack.dim, stack.dim, bias=False)

    def forward(self, h_BLE: Tensor, z_BUG: Tensor, stream: TokenStream, _: tuple[Rotary, Rotary]) -> Tensor:
        q_BLE = self.to_query(self.norm(h_BLE))
        k_BUKE, v_BUKE = self.to_key_value(z_BUG).unflatten(-1, (2, self.keys, -1)).unbind(2)
        read = _read_densely if self.backend == "dense" else read_one_unit
        return self.to_out(read(q_BLE, k_BUKE, v_BUKE, stream.last_visible_BL, self.heads))


class PatchDecoder(nn.Module):
    """(h_BLE, z_BUG) -> h_BTE, normed at the end, ready for the head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.decoder is not None
        stack = config.decoder
        self.window = stack.window
        self.rotary = RotaryTable(stack.dim // stack.heads, config.rope_theta)
        attention = CrossAttention if config.cross_attention == "all" else PrecedingUnitAttention
        self.cross = nn.ModuleList(attention(stack, config) for _ in range(stack.layers))
        self.layers = nn.ModuleList(TransformerLayer(stack) for _ in range(stack.layers))
        self.norm = RMSNorm(stack.dim)
        self.text_from_global = None if config.local_text else nn.Linear(config.global_stack.dim, stack.dim, bias=False)

    def forward(self, h_BLE: Tensor, z_BUG: Tensor, batch: Batch, stream: TokenStream) -> Tensor:
        seen, rotary = stream.seen(self.window), self.rotary(stream.position_BL)
        positions = self.rotary(stream.query_position_BL), self.rotary(batch.unit_position_BU)
        for cross, layer in zip(self.cross, self.layers, strict=True):
            h_BLE = h_BLE + cross(h_BLE, z_BUG, stream, positions)
            h_BLE = layer(h_BLE, seen, rotary)
        h_BLE = self.norm(h_BLE)
        return h_BLE if stream.places is None else self._with_text(h_BLE, z_BUG, batch, stream.places)

    def _with_text(self, h_BLE: Tensor, z_BUG: Tensor, batch: Batch, places: SpeechPlaces) -> Tensor:
        """All tokens: the speech tokens' states, and each other token's own unit in the local width."""
        assert self.text_from_global is not None
        token_M, unit_M = batch.other_tokens
        text_ME = self.text_from_global(z_BUG.flatten(0, 1).index_select(0, unit_M))
        own_NE = h_BLE.flatten(0, 1).index_select(0, places.real_N)
        return joined([(token_M, text_ME), (places.token_N, own_NE)], tuple(batch.ids_BT.shape))


def _read_densely(q_BLE: Tensor, k_BUKE: Tensor, v_BUKE: Tensor, unit_BL: Tensor, heads: int) -> Tensor:
    """The reference of `read_one_unit`: every query meets every unit's keys, under a mask."""
    U, K = k_BUKE.shape[1:3]
    bias_BLU = additive(unit_BL[:, :, None] == torch.arange(U, device=unit_BL.device))
    q, k, v = (x.unflatten(-1, (heads, -1)) for x in (q_BLE, k_BUKE.flatten(1, 2), v_BUKE.flatten(1, 2)))
    return dense_attention(q, k, v, bias_BLU.repeat_interleave(K, dim=2)[:, None]).flatten(2)
