"""Speech tokens -> audio: one face for the vocoder that ships and for a HiFi-GAN unit vocoder of a local folder.

    vocoder = open_vocoder("embedded")        # or a folder: config.json and model.safetensors
    audio, rate = vocoder([17, 402, 5])       # float32 in -1..1; each token lasts 40 ms
    write_wav(Path("said.wav"), audio, rate)

Tokens mean nothing without the quantizer that numbers them: `check_units` refuses a data set whose tokens are others than
the vocoder's. docs/vocoder.md says how good each is. The same tokens give the same bytes on one machine and number of threads.
"""

from __future__ import annotations

import io
import os
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lst.data.vocab import FRAMES_PER_SECOND
from lst.errors import DataError

if TYPE_CHECKING:
    import torch

    from lst.data.shards import Dataset

EMBEDDED_FILE = "vocoder.safetensors"


class Synthesizer(Protocol):
    """What makes the sound behind a Vocoder."""

    @property
    def rate(self) -> int:
        """Samples a second; a multiple of 25."""

    @property
    def num_tokens(self) -> int:
        """It knows tokens 0 .. num_tokens - 1."""

    @property
    def units(self) -> str:
        """SHA-256 of the quantizer whose tokens it speaks; empty if its folder does not say."""

    def synthesize(self, tokens_T: torch.Tensor) -> torch.Tensor:
        """Audio of int64 tokens: (T * rate / 25,), float32."""


class Vocoder:
    """Turns token sequences into audio. Made by `open_vocoder`."""

    def __init__(self, synthesizer: Synthesizer, name: str) -> None:
        self.synthesizer = synthesizer
        self.name = name

    @property
    def rate(self) -> int:
        return self.synthesizer.rate

    @property
    def num_tokens(self) -> int:
        return self.synthesizer.num_tokens

    def __call__(self, tokens: Sequence[int] | NDArray[Any]) -> tuple[NDArray[np.float32], int]:
        """Audio in -1..1 of exactly 40 ms a token, and its sample rate. No token gives no sample.

        Raises DataError for a token that the vocoder does not know.
        """
        import torch

        array = np.asarray(tokens, np.int64)
        wrong = array[(array < 0) | (array >= self.num_tokens)]
        if len(wrong):
            raise DataError(
                f"vocoder '{self.name}' has tokens 0..{self.num_tokens - 1}, not {wrong[0]}; give tokens of its own quantizer."
            )
        if not len(array):
            return np.zeros(0, np.float32), self.rate
        audio = self.synthesizer.synthesize(torch.from_numpy(array)).numpy()
        assert len(audio) * FRAMES_PER_SECOND == len(array) * self.rate
        return np.clip(audio, -1.0, 1.0, dtype=np.float32), self.rate

    def check_units(self, dataset: Dataset) -> None:
        """Raises DataError if the speech tokens of `dataset` are known to be others than this vocoder's.

        Compared are the quantizers' SHA-256 where both sides tell theirs, and the number of tokens always.
        """
        card = dataset.manifest.get("about", {}).get("speech_tokenizer", {})
        theirs = str(card.get("quantizer_sha256", ""))
        ours = self.synthesizer.units
        if card.get("dedup"):
            raise DataError(f"'{dataset.path}' has deduplicated tokens, whose durations are lost; give tokens at 25 Hz.")
        if not theirs and self.name == "embedded":
            raise DataError(
                f"'{dataset.path}' does not say which quantizer made its tokens, so the embedded vocoder cannot speak them; "
                "give vocoder=FOLDER, one that was trained on these tokens."
            )
        if theirs and ours and theirs != ours:
            raise DataError(
                f"'{dataset.path}' has tokens of quantizer {theirs[:12]}, vocoder '{self.name}' speaks those of {ours[:12]}; "
                "give vocoder=FOLDER, one that was trained on these tokens."
            )
        if dataset.speech_vocab > self.num_tokens:
            raise DataError(
                f"'{dataset.path}' has {dataset.speech_vocab} speech tokens, vocoder '{self.name}' {self.num_tokens}; "
                "give vocoder=FOLDER, one that was trained on these tokens."
            )


def open_vocoder(name: str | Path, *, voice: str = "") -> Vocoder:
    """The vocoder that ships for "embedded", else that of a folder (lst/data/vocoders/unit_hifigan.py).

    `voice` is one of the embedded vocoder's six voices by name, or a multi-speaker model's speaker by number; by default the
    vocoder's own choice. Raises DataError if there is no such vocoder or voice.
    """
    if str(name) == "embedded":
        from lst.data.shards import embedded_path
        from lst.data.vocoders.embedded import load_embedded

        return Vocoder(load_embedded(embedded_path() / EMBEDDED_FILE, voice=voice), "embedded")
    from lst.data.vocoders.unit_hifigan import load_unit_hifigan

    return Vocoder(load_unit_hifigan(Path(name), speaker=voice), str(name))


def wav_bytes(audio: NDArray[np.float32], rate: int) -> bytes:
    """A WAV file of one channel, 16 bits, of audio in -1..1."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.round(np.clip(audio, -1.0, 1.0) * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


def write_wav(file: Path, audio: NDArray[np.float32], rate: int) -> None:
    """Write `wav_bytes` to `file`, aside and renamed: whole or not at all."""
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        aside.write_bytes(wav_bytes(audio, rate))
        aside.replace(file)
    finally:
        aside.unlink(missing_ok=True)
