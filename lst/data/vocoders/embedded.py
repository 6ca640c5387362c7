"""The vocoder that ships: the embedded corpus' 500 speech tokens -> log-mel (a small convolution) -> Griffin-Lim.

    token + voice (25 Hz) -> 2 blocks -> 4 frames a token (100 Hz) -> 1 block -> 80 mel bands

One of six voices can be asked for: those that the corpus is spoken in. What the tokens do not hold (pitch, loudness, the
speaker) is the voice's average, so the speech is flat; it is for listening to what a model said, not for judging its sound.
The weights are half precision in the file and single in memory. `python -m lst.data.vocoders.fit` makes the file.

Shapes: N batch, T tokens, S mel frames (4 T), D width, M mel bands (80).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from lst.data.audio.embedded_quantizer import NUM_CENTRES
from lst.data.audio.waveform import SAMPLE_RATE
from lst.data.vocab import FRAMES_PER_SECOND
from lst.data.vocoders.griffin_lim import HOP, MELS, invert_log_mel
from lst.errors import DataError, did_you_mean

SAMPLES_PER_TOKEN = SAMPLE_RATE // FRAMES_PER_SECOND
FRAMES_PER_TOKEN = SAMPLES_PER_TOKEN // HOP
WIDTH = 144
_EXPANSION = 3
_CARD = "card"


class _Block(nn.Module):
    """A depthwise convolution over time and two layers across channels, added to the input (N, D, time)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.across_time = nn.Conv1d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.wide = nn.Linear(width, _EXPANSION * width)
        self.narrow = nn.Linear(_EXPANSION * width, width)

    def forward(self, x_NDT: torch.Tensor) -> torch.Tensor:
        h_NTD = self.norm(self.across_time(x_NDT).transpose(1, 2))
        added: torch.Tensor = self.narrow(F.gelu(self.wide(h_NTD)))
        return x_NDT + added.transpose(1, 2)


class TokensToMel(nn.Module):
    """Speech tokens and a voice number to log-mel frames."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, voices: int, *, tokens: int = NUM_CENTRES, width: int = WIDTH) -> None:
        super().__init__()
        self.token = nn.Embedding(tokens, width)
        self.voice = nn.Embedding(voices, width)
        self.slow = nn.ModuleList(_Block(width) for _ in range(2))
        self.spread = nn.ConvTranspose1d(width, width, FRAMES_PER_TOKEN, FRAMES_PER_TOKEN)
        self.fast = nn.ModuleList(_Block(width) for _ in range(1))
        self.mel = nn.Linear(width, MELS)
        self.register_buffer("mean", torch.zeros(MELS))
        self.register_buffer("scale", torch.ones(MELS))

    def forward(self, tokens_NT: torch.Tensor, voice_N: torch.Tensor) -> torch.Tensor:
        """Log-mel frames (N, M, 4 T)."""
        voice_ND1 = self.voice(voice_N)[:, :, None]
        x_NDT = self.token(tokens_NT).transpose(1, 2) + voice_ND1
        for block in self.slow:
            x_NDT = block(x_NDT)
        x_NDS = self.spread(x_NDT) + voice_ND1
        for block in self.fast:
            x_NDS = block(x_NDS)
        mel_NSM: torch.Tensor = self.mel(x_NDS.transpose(1, 2)) * self.scale + self.mean
        return mel_NSM.transpose(1, 2)


@dataclass(frozen=True)
class EmbeddedVocoder:
    """The loaded network with one of its voices. Call it with tokens for float32 audio at 16 kHz."""

    network: TokensToMel
    voice: int
    card: Mapping[str, Any]  # how it was made, and how good it is

    rate = SAMPLE_RATE

    @property
    def num_tokens(self) -> int:
        return self.network.token.num_embeddings

    @property
    def units(self) -> str:
        """SHA-256 of the quantizer whose tokens it speaks."""
        return str(self.card["quantizer_sha256"])

    def synthesize(self, tokens_T: torch.Tensor) -> torch.Tensor:
        """Audio (640 T,) of at least one token."""
        with torch.inference_mode():
            mel_MS = self.network(tokens_T[None], torch.tensor([self.voice]))[0]
            return invert_log_mel(mel_MS, SAMPLES_PER_TOKEN * len(tokens_T))


def load_embedded(file: Path, *, voice: str = "") -> EmbeddedVocoder:
    """The vocoder of a file that `save_embedded` wrote, by default in the card's `default_voice`.

    Raises DataError if the file is missing, damaged or no such vocoder, or has no voice of that name.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as stored:
            weights = {name: stored.get_tensor(name).float() for name in stored.keys()}  # noqa: SIM118
            card = json.loads((stored.metadata() or {})[_CARD])
        voices = list(card["voices"])
        network = TokensToMel(len(voices))
        network.load_state_dict(weights)
        wanted = voice or str(card["default_voice"])
        str(card["quantizer_sha256"])
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise DataError(f"vocoder '{file}' cannot be read ({reason}); make it anew: python -m lst.data.vocoders.fit.") from error
    if wanted not in voices:
        raise DataError(f"vocoder '{file}' has no voice '{wanted}'; {did_you_mean(wanted, voices)}")
    return EmbeddedVocoder(network.eval(), voices.index(wanted), card)


def save_embedded(network: TokensToMel, card: Mapping[str, Any]) -> bytes:
    """The content of a vocoder file: the weights in half precision, the card as metadata."""
    from safetensors.torch import save

    weights = {name: value.half().contiguous() for name, value in network.state_dict().items()}
    return save(weights, {_CARD: json.dumps(card, sort_keys=True)})


def voice_names(speakers: Sequence[str]) -> list[str]:
    """The order in which a network numbers its voices."""
    return sorted(set(speakers))
