"""The networks of all arms. Legend: B rows, T tokens, U units, E local width, G global width,
V vocabulary, L tokens that the local modules run on (T, or the speech tokens alone).

    ids_BT -> x_BTE -> PatchEncoder z_BUG -> GlobalTransformer z_BUG -> PatchDecoder h_BTE -> head logits_BTV

The only side input is which unit each token belongs to and which units it may see; the model decides no boundary.
`forward` hands the last hidden states and the head to `read` where that is given, so that a loss can walk over positions
without keeping all logits, inside the one call that sharding (FSDP) sees.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from lst.config import ModelConfig
from lst.data.vocab import Vocabulary
from lst.model.batch import Batch, TokenStream
from lst.model.global_transformer import GlobalTransformer
from lst.model.patch_decoder import PatchDecoder
from lst.model.patch_encoder import PatchEncoder


class Baseline(nn.Module):
    """The plain speech-text decoder: the global transformer over tokens, with its own embedding and head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        size, width = _vocabulary_size(config), config.global_stack.dim
        self.embedding = nn.Embedding(size, width)
        self.global_transformer = GlobalTransformer(config)
        self.head = nn.Linear(width, size, bias=False)
        if config.tied_head:
            self.head.weight = self.embedding.weight

    def hidden(self, batch: Batch) -> Tensor:
        """h_BTG; logits at t are `head(h_BTG[:, t])`."""
        return self.global_transformer(self.embedding(batch.ids_BT), batch)

    def forward(self, batch: Batch, read: Callable[[Tensor, nn.Module], Any] | None = None) -> Any:
        """logits_BTV; logits[b, t] predicts ids_BT[b, t + 1]. With `read`: what `read(hidden states, head)` gives."""
        return (read or _logits)(self.hidden(batch), self.head)


class LatentSpeechText(nn.Module):
    """The Latent Speech-Text Transformer (PAPER: Model)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.decoder is not None
        size, width = _vocabulary_size(config), config.decoder.dim
        self.decoder_input, self.local_text = config.decoder_input, config.local_text
        self.embedding = nn.Embedding(size, width)
        self.decoder_embedding = nn.Embedding(size, width) if config.decoder_input != "encoder" else None
        self.encoder = PatchEncoder(config)
        self.global_transformer = GlobalTransformer(config)
        self.decoder = PatchDecoder(config)
        self.head = nn.Linear(width, size, bias=False)
        if config.tied_head:
            self.head.weight = self.embedding.weight

    def hidden(self, batch: Batch) -> Tensor:
        """h_BTE; logits at t are `head(h_BTE[:, t])`."""
        stream = batch.all_tokens if self.local_text else batch.speech_tokens
        h_BLE, z_BUG = self.encoder(self.embedding(batch.ids_BT), batch, stream)
        z_BUG = self.global_transformer(z_BUG, batch)
        return self.decoder(self._decoder_stream(h_BLE, batch, stream), z_BUG, batch, stream)

    def forward(self, batch: Batch, read: Callable[[Tensor, nn.Module], Any] | None = None) -> Any:
        """logits_BTV; logits[b, t] predicts ids_BT[b, t + 1]. With `read`: what `read(hidden states, head)` gives."""
        return (read or _logits)(self.hidden(batch), self.head)

    def _decoder_stream(self, h_BLE: Tensor, batch: Batch, stream: TokenStream) -> Tensor:
        if self.decoder_embedding is None:
            return h_BLE
        own_BLE = stream.gather(self.decoder_embedding(batch.ids_BT))
        return own_BLE if self.decoder_input == "embedding" else h_BLE + own_BLE


def network(config: ModelConfig) -> Baseline | LatentSpeechText:
    """The uninitialised network of `config`."""
    return Baseline(config) if config.arm.plain else LatentSpeechText(config)


def _logits(h_BTE: Tensor, head: nn.Module) -> Tensor:
    return head(h_BTE)


def _vocabulary_size(config: ModelConfig) -> int:
    return Vocabulary.of(config).size
