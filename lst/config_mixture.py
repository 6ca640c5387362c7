"""What training sequences are made of, and in which shares. Part of `lst.config`, which exports it; docs/data.md explains."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from lst.checks import require_choice, require_share
from lst.errors import ConfigError


class Format(StrEnum):
    """How the documents of a sequence are laid out. A sequence has one format."""

    INTERLEAVED = "interleaved"  # spans of text and of speech in turn (PAPER: Data)
    SPEECH = "speech"  # speech alone
    ASR = "asr"  # speech, then its text
    TTS = "tts"  # text, then its speech
    TEXT = "text"  # text documents


@dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """Shares of the formats. All 0: data.interleaved_token_share is interleaved, the rest text, in tokens."""

    of: str = "tokens"  # tokens | words: what the shares are of
    interleaved: float = 0.0
    speech: float = 0.0
    asr: float = 0.0
    tts: float = 0.0
    text: float = 0.0

    @property
    def shares(self) -> dict[Format, float]:
        """The share of each format."""
        return {name: float(getattr(self, name.value)) for name in Format}

    @property
    def given(self) -> bool:
        return any(self.shares.values())

    def validate(self) -> None:
        require_choice("data.mixture.of", self.of, ("tokens", "words"))
        for name, share in self.shares.items():
            require_share(f"data.mixture.{name}", share)
        total = sum(self.shares.values())
        if self.given and abs(total - 1) > 1e-6:
            raise ConfigError(f"data.mixture's shares sum to {total:.6g}; make them sum to 1 (text takes what is left).")
