"""One token at a time with caches, equal to the full forward: the networks of all arms, as decoding walks them.

Legend: B rows that decode together, R those of them that take part, T tokens of a prompt, U units, L tokens of the local
stream (lst.model.batch), 1 the newest token or unit, K queries or keys of a unit, H heads, D head width, E local width,
G global width, V vocabulary.

    stepper, logits_BV = Stepper.start(model, make_batch(prompts, config))    # one ordinary forward pass fills the caches
    logits_BV = stepper.step(ids_B, closes_B, speech_B)                       # one more token of each row

What is kept of a row: keys and values of the global transformer over closed units; those of the encoder's and decoder's
windows; those of the decoder's cross-attention to units; and the *open patch*, the encoder states of its tokens until it
closes (DESIGN rule 2). Patches of three, where `closes_B` says that a patch closes at its own token:

    token            <s>   a   b   c   d  <t>          closes_B is False at a, b and d
    open patch        -    a  ab   -   d   -           abc closes at c; d, cut short, only at <t>
    global steps      1    0   0   1   0   2           at <t> first the cut patch, then the marker itself

The model's modules do the arithmetic: projections, norms, feed-forward and pooling are theirs. Not here: where a patch ends
(lst/patching.py), which token comes next and when to stop (lst.model.generate).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lst.model.attention import Rotary, rotate
from lst.model.batch import Batch
from lst.model.blocks import SelfAttention, TransformerLayer
from lst.model.global_transformer import GlobalTransformer
from lst.model.kv_cache import IntArray, KeyValues, Rows, Slots
from lst.model.lst import Baseline, LatentSpeechText
from lst.model.patch_decoder import CrossAttention, PatchDecoder, PrecedingUnitAttention
from lst.model.patch_encoder import PatchEncoder
from lst.model.segments import Segments

BoolArray = NDArray[np.bool_]
Outputs = Mapping[nn.Module, Tensor]  # what modules computed in the prompt's forward pass
Cross = CrossAttention | PrecedingUnitAttention


class Stepper:
    """The state of rows that decode together. Each row is one document."""

    def __init__(self, model: Baseline | LatentSpeechText, batch: Batch, outputs: Outputs) -> None:
        last = np.array(batch.tokens) - 1
        rows = np.arange(len(last))
        host = batch.host or batch
        self.model, self.device = model, batch.ids_BT.device
        closed_B = host.visible_BT.numpy()[rows, last]
        self.units = UnitSteps(model.global_transformer, batch, outputs, closed_B)
        self.local = LocalSteps(model, batch, outputs, closed_B) if isinstance(model, LatentSpeechText) else None

    @classmethod
    @torch.no_grad()
    def start(cls, model: Baseline | LatentSpeechText, batch: Batch) -> tuple[Stepper, Tensor]:
        """The state after the prompts in `batch` (one document a row), and the logits at each one's last token."""
        last_B = torch.tensor(batch.tokens, device=batch.ids_BT.device) - 1
        rows_B = torch.arange(len(last_B), device=last_B.device)
        with _recorded(model) as outputs:
            logits_BV = model(batch, lambda hidden_BTE, head: head(hidden_BTE[rows_B, last_B]))
        return cls(model, batch, outputs), logits_BV

    @torch.no_grad()
    def step(self, ids_B: IntArray, closes_B: BoolArray, speech_B: BoolArray) -> Tensor:
        """Take one more token of each row; the logits at it, (B, V).

        `closes_B`: whether its unit closes at the token itself, as every text token and marker does; `speech_B`: whether it
        is a speech token.
        """
        everyone = Rows.where(np.ones(len(ids_B), bool), self.device)
        x_B1E = self.model.embedding(torch.from_numpy(ids_B).to(self.device)[:, None])
        if self.local is None:
            hidden_B1E, _ = self.units.step(x_B1E, everyone)
        else:
            hidden_B1E = self._local_step(self.local, x_B1E, ids_B, closes_B, speech_B)
        return self.model.head(hidden_B1E[:, 0])

    @property
    def closed_units(self) -> IntArray:
        """Closed units of each row: steps of the global transformer, those of the prompt among them."""
        return self.units.count_B

    @property
    def open_tokens(self) -> IntArray:
        """Tokens of each row's open patch."""
        return np.zeros_like(self.units.count_B) if self.local is None else self.local.held_B

    def keep(self, rows: IntArray) -> None:
        """Drop all rows but these."""
        rows_B = torch.from_numpy(rows).to(self.device)
        self.units.keep(rows, rows_B)
        if self.local is not None:
            self.local.keep(rows, rows_B)

    def _local_step(self, local: LocalSteps, x_B1E: Tensor, ids_B: IntArray, closes_B: BoolArray, speech_B: BoolArray) -> Tensor:
        """Encoder, units that close, decoder -> (B, 1, E)."""
        self._close(local, ~speech_B & (local.held_B > 0))  # a patch that this token cuts short comes before it
        runs = Rows.where(speech_B | local.on_text, self.device)
        hidden_B1E = torch.empty_like(x_B1E)
        if len(runs) < len(ids_B):
            text = Rows.where(~speech_B, self.device)
            own_R1G = self._unit(local, local.encoder.text_to_global(text.of(x_B1E)), text)  # type: ignore[misc]
            text.put(hidden_B1E, local.decoder.text_from_global(own_R1G))  # type: ignore[misc]
        if len(runs):
            h_R1E = local.encode(runs.of(x_B1E), runs)
            self._close(local, closes_B & (local.held_B > 0))
            stream_R1E = local.decoder_stream(h_R1E, ids_B[runs.index])
            runs.put(hidden_B1E, local.decode(stream_R1E, runs, self.units.count_B[runs.index]))
        return hidden_B1E

    def _close(self, local: LocalSteps, closing_B: BoolArray) -> None:
        """Close the open patches of some rows."""
        rows = Rows.where(closing_B, self.device)
        if len(rows):
            self._unit(local, local.read_open_patches(rows), rows)

    def _unit(self, local: LocalSteps, z_R1G: Tensor, rows: Rows) -> Tensor:
        """One unit through the global transformer, and to where the decoder sees it."""
        z_R1G, slots = self.units.step(z_R1G, rows)
        local.show(z_R1G, slots)
        return z_R1G


class UnitSteps:
    """The global transformer over one more unit a row."""

    def __init__(self, network: GlobalTransformer, batch: Batch, outputs: Outputs, closed_B: IntArray) -> None:
        self.network, self.device = network, batch.ids_BT.device
        self.count_B = closed_B.astype(np.int64)
        rotary = network.rotary(batch.unit_position_BU)
        self.caches = [_self_attention_cache(layer, outputs, rotary, self.count_B) for layer in _layers(network)]

    def step(self, z_R1G: Tensor, rows: Rows) -> tuple[Tensor, Slots]:
        """The unit's output, normed, and the slots in which its keys lie."""
        self.count_B[rows.index] += 1
        count_R = self.count_B[rows.index]
        slots = Slots.newest(count_R, rows, self.device)
        rotary = self.network.rotary(_positions(count_R, self.device))
        for layer, cache in zip(_layers(self.network), self.caches, strict=True):
            z_R1G = layer_step(layer, z_R1G, cache, slots, rotary)
        return self.network.norm(z_R1G), slots

    def keep(self, rows: IntArray, rows_B: Tensor) -> None:
        self.count_B = self.count_B[rows]
        for cache in self.caches:
            cache.keep(rows_B)


class LocalSteps:
    """The patch encoder and decoder over one more token a row, and the open patches."""

    def __init__(self, model: LatentSpeechText, batch: Batch, outputs: Outputs, closed_B: IntArray) -> None:
        self.model, self.encoder, self.decoder, self.on_text = model, model.encoder, model.decoder, model.local_text
        self.device = batch.ids_BT.device
        stream = batch.all_tokens if self.on_text else batch.speech_tokens
        self.count_B = np.array(stream.lengths, np.int64)  # tokens of the local stream
        self.held_B = _open_tokens(batch, closed_B)
        self.open_BPE = _last_tokens(outputs[model.encoder], self.count_B, self.held_B)
        rotary = self.encoder.rotary(stream.position_BL)
        self.encoder_caches = [
            _self_attention_cache(layer, outputs, rotary, self.count_B, self.encoder.window) for layer in _layers(self.encoder)
        ]
        rotary = self.decoder.rotary(stream.position_BL)
        self.decoder_caches = [
            _self_attention_cache(layer, outputs, rotary, self.count_B, self.decoder.window) for layer in _layers(self.decoder)
        ]
        rotary = self.decoder.rotary(batch.unit_position_BU)
        self.cross: list[Cross] = list(self.decoder.cross)  # type: ignore[arg-type]
        self.seen = [_seen_units(cross, outputs, rotary, closed_B) for cross in self.cross]

    def encode(self, x_R1E: Tensor, rows: Rows) -> Tensor:
        """The token's encoder state, (R, 1, E), which joins the open patch."""
        self.count_B[rows.index] += 1
        count_R = self.count_B[rows.index]
        slots = Slots.newest(count_R, rows, self.device, window=self.encoder.window)
        rotary = self.encoder.rotary(_positions(count_R, self.device))
        for layer, cache in zip(_layers(self.encoder), self.encoder_caches, strict=True):
            x_R1E = layer_step(layer, x_R1E, cache, slots, rotary)
        self.held_B[rows.index] += 1
        held_R = self.held_B[rows.index]
        if held_R.max() > self.open_BPE.shape[1]:
            self.open_BPE = nn.functional.pad(self.open_BPE, (0, 0, 0, self.open_BPE.shape[1]))
        index_R = torch.from_numpy(np.stack([rows.index, held_R - 1])).to(self.device)
        self.open_BPE[index_R[0], index_R[1]] = x_R1E[:, 0]
        return x_R1E

    def read_open_patches(self, rows: Rows) -> Tensor:
        """The open patches of some rows as units, (R, 1, G); they are open no longer."""
        held_R = self.held_B[rows.index]
        length = int(held_R.max())
        outside_RP = torch.from_numpy((np.arange(length) >= held_R[:, None]).astype(np.int64)).to(self.device)
        patch_R1KE = self.encoder.read_patches(rows.of(self.open_BPE[:, :length]), Segments.of(outside_RP, 1))
        self.held_B[rows.index] = 0
        return self.encoder.to_global(patch_R1KE.flatten(2))

    def show(self, z_R1G: Tensor, units: Slots) -> None:
        """Let the decoder's cross-attention see a unit that has closed."""
        rotary = self.decoder.rotary(units.slot_R[:, None])  # the global transformer has no window: a slot is a position
        for cross, seen in zip(self.cross, self.seen, strict=True):
            seen.add(cross.to_key_value(z_R1G), units, rotary)

    def decoder_stream(self, h_R1E: Tensor, ids_R: IntArray) -> Tensor:
        """What the decoder reads of the token, as in `LatentSpeechText.hidden`."""
        if self.model.decoder_embedding is None:
            return h_R1E
        own_R1E = self.model.decoder_embedding(torch.from_numpy(ids_R).to(self.device)[:, None])
        return own_R1E if self.model.decoder_input == "embedding" else h_R1E + own_R1E

    def decode(self, h_R1E: Tensor, rows: Rows, units_R: IntArray) -> Tensor:
        """The decoder's output at the token, normed; `units_R` are closed there."""
        count_R, networks = self.count_B[rows.index], (self.cross, _layers(self.decoder))
        slots = Slots.newest(count_R, rows, self.device, window=self.decoder.window)
        units = Slots.newest(units_R, rows, self.device)
        rotary = self.decoder.rotary(_positions(count_R, self.device))
        query_rotary = self.decoder.rotary(_positions(units_R, self.device))
        for cross, layer, seen, cache in zip(*networks, self.seen, self.decoder_caches, strict=True):
            h_R1E = h_R1E + cross.to_out(seen.read(cross.to_query(cross.norm(h_R1E)), units, query_rotary).flatten(2))
            h_R1E = layer_step(layer, h_R1E, cache, slots, rotary)
        return self.decoder.norm(h_R1E)

    def keep(self, rows: IntArray, rows_B: Tensor) -> None:
        self.count_B, self.held_B = self.count_B[rows], self.held_B[rows]
        self.open_BPE = self.open_BPE.index_select(0, rows_B)
        for cache in (*self.encoder_caches, *self.decoder_caches, *(seen.cache for seen in self.seen)):
            cache.keep(rows_B)


class AllUnits:
    """The keys and values of all closed units, for `CrossAttention`."""

    def __init__(self, cross: CrossAttention, prompt_BUX: Tensor, rotary: Rotary, closed_B: IntArray) -> None:
        self.heads = cross.heads
        key_BUHD, value_BUHD = self._split(prompt_BUX, rotary)
        self.cache = KeyValues.of_prompt(key_BUHD, value_BUHD, closed_B)

    def add(self, unit_R1X: Tensor, units: Slots, rotary: Rotary) -> None:
        """One more unit a row: what `to_key_value` makes of it."""
        key_R1HD, value_R1HD = self._split(unit_R1X, rotary)
        self.cache.write(units, key_R1HD[:, 0], value_R1HD[:, 0])

    def read(self, q_R1E: Tensor, units: Slots, rotary: Rotary) -> Tensor:
        """Attention of a token's query, which stands at the last unit that it sees -> (R, 1, H, D)."""
        return self.cache.attend(rotate(q_R1E.unflatten(-1, (self.heads, -1)), rotary), units)

    def _split(self, x_BUX: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        key_BUHD, value_BUHD = x_BUX.unflatten(-1, (2, self.heads, -1)).unbind(2)
        return rotate(key_BUHD, rotary), value_BUHD


class LastUnit:
    """The K keys and values of the latest closed unit, for `PrecedingUnitAttention`."""

    def __init__(self, cross: PrecedingUnitAttention, prompt_BUX: Tensor, closed_B: IntArray) -> None:
        self.heads, self.keys = cross.heads, cross.keys
        last_B = torch.from_numpy(closed_B - 1).to(prompt_BUX.device)
        rows_B = torch.arange(len(last_B), device=prompt_BUX.device)
        self.cache = KeyValues(*self._split(prompt_BUX[rows_B, last_B]))

    def add(self, unit_R1X: Tensor, units: Slots, _: Rotary) -> None:
        key_RHKD, value_RHKD = self._split(unit_R1X[:, 0])
        units.rows.put(self.cache.key, key_RHKD)
        units.rows.put(self.cache.value, value_RHKD)

    def read(self, q_R1E: Tensor, units: Slots, _: Rotary) -> Tensor:
        everything = dataclasses.replace(units, seen_R11S=None, keys=self.keys)
        return self.cache.attend(q_R1E.unflatten(-1, (self.heads, -1)), everything)

    def _split(self, x_RX: Tensor) -> tuple[Tensor, Tensor]:
        key_RKHD, value_RKHD = x_RX.unflatten(-1, (2, self.keys, self.heads, -1)).unbind(1)
        return key_RKHD.transpose(1, 2).contiguous(), value_RKHD.transpose(1, 2).contiguous()


def layer_step(layer: TransformerLayer, x_R1E: Tensor, cache: KeyValues, slots: Slots, rotary: Rotary) -> Tensor:
    """`TransformerLayer.forward` for the newest position of each row, whose key and value join the cache."""
    attention = layer.attention
    heads_R1HD = attention.to_query_key_value(layer.attention_norm(x_R1E)).unflatten(-1, (3 * attention.heads, -1))
    qk_R1HD, v_R1HD = heads_R1HD.split([2 * attention.heads, attention.heads], dim=2)
    q_R1HD, k_R1HD = rotate(qk_R1HD, rotary).chunk(2, dim=2)
    cache.write(slots, k_R1HD[:, 0], v_R1HD[:, 0])
    x_R1E = x_R1E + attention.to_out(cache.attend(q_R1HD, slots).flatten(2))
    return x_R1E + layer.ffn(layer.ffn_norm(x_R1E))


@contextlib.contextmanager
def _recorded(model: nn.Module) -> Iterator[Outputs]:
    """What a forward pass inside makes of keys and values, and of the encoder's token states; by module.

    Copies, for attention may use its projections up.
    """
    outputs: dict[nn.Module, Tensor] = {}

    def record(module: nn.Module, _: object, output: Tensor | tuple[Tensor, Tensor]) -> None:
        outputs[module] = (output[0] if isinstance(output, tuple) else output).clone()

    watched = [m for module in model.modules() for m in _watched(module)]
    handles = [module.register_forward_hook(record) for module in watched]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _watched(module: nn.Module) -> list[nn.Module]:
    """What of a module is recorded. The encoder's own cross-attention is not: it reads one patch and keeps nothing."""
    if isinstance(module, SelfAttention):
        return [module.to_query_key_value]
    if isinstance(module, CrossAttention | PrecedingUnitAttention):
        return [module.to_key_value]
    return [module] if isinstance(module, PatchEncoder) else []


def _seen_units(cross: Cross, outputs: Outputs, rotary: Rotary, closed_B: IntArray) -> AllUnits | LastUnit:
    if isinstance(cross, CrossAttention):
        return AllUnits(cross, outputs[cross.to_key_value], rotary, closed_B)
    return LastUnit(cross, outputs[cross.to_key_value], closed_B)


def _self_attention_cache(
    layer: TransformerLayer, outputs: Outputs, rotary: Rotary, count_B: IntArray, window: int = 0
) -> KeyValues:
    """The keys and values that the prompt's forward pass made, turned."""
    attention = layer.attention
    qkv_BT3HD = outputs[attention.to_query_key_value].unflatten(-1, (3, attention.heads, -1))
    key_BTHD, value_BTHD = qkv_BT3HD[:, :, 1], qkv_BT3HD[:, :, 2]
    return KeyValues.of_prompt(rotate(key_BTHD, rotary), value_BTHD, count_B, window=window)


def _layers(stack: GlobalTransformer | PatchEncoder | PatchDecoder) -> list[TransformerLayer]:
    return list(stack.layers)  # type: ignore[arg-type]


def _open_tokens(batch: Batch, closed_B: IntArray) -> IntArray:
    """Tokens at each row's end whose unit has not closed there."""
    host = batch.host or batch
    last_B = np.array(batch.tokens) - 1
    unit_BT = host.unit_BT.numpy()
    unit_B = unit_BT[np.arange(len(last_B)), last_B]
    return np.where(unit_B >= closed_B, (unit_BT == unit_B[:, None]).sum(1), 0)


def _last_tokens(h_BLE: Tensor, count_B: IntArray, last_B: IntArray) -> Tensor:
    """The last `last_B` of the `count_B` states of each row, moved to the front; (B, P, E) with P of 1 or more."""
    place_BP = (count_B - last_B)[:, None] + np.arange(max(1, int(last_B.max())))
    index_BP1 = torch.from_numpy(place_BP.clip(max=h_BLE.shape[1] - 1)).to(h_BLE.device)[..., None]
    return h_BLE.gather(1, index_BP1.expand(-1, -1, h_BLE.shape[2]))


def _positions(count_R: IntArray, device: torch.device) -> Tensor:
    """The position of the newest of `count_R`, (R, 1)."""
    return torch.from_numpy(count_R - 1).to(device)[:, None]
