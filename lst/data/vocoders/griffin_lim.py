"""Log-mel spectrograms of 16 kHz speech, and back to audio by Griffin and Lim's algorithm. In torch, on the CPU.

    audio (N,) -> |STFT| (513, S) -> 80 mel bands, logarithm (80, S)            `log_mel`
    log-mel (80, S) -> |STFT| by non-negative least squares -> phases -> audio  `invert_log_mel`

A frame every 10 ms (160 samples), centred on its sample; 64 ms windows; four frames a speech token. The mel scale loses what
lies between its bands and all phases: this is the plainest of vocoders, needs no weights, and sounds like it.

Sources: Griffin and Lim 1984 (the iteration), Perraudin, Balazs and Sondergaard 2013 (its acceleration), Lee and Seung 2001 (the
multiplicative update). Shapes: N samples, S frames, M mel bands, B frequency bins.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch.nn import functional as F

from lst.data.audio.whisper_encoder import mel_filters

N_FFT = 1024
HOP = 160
MELS = 80
FLOOR = 1e-4  # added before the logarithm: a mel amplitude of silence

_ITERATIONS = 32
_MOMENTUM = 0.99
_UNMIX_ITERATIONS = 30


def log_mel(audio_N: torch.Tensor) -> torch.Tensor:
    """Natural logarithm of the mel amplitudes of float32 audio at 16 kHz: (80, N // 160 + 1)."""
    return torch.log(_filters() @ _stft(audio_N).abs() + FLOOR)


def invert_log_mel(mel_MS: torch.Tensor, samples: int, *, seed: int = 0, iterations: int = _ITERATIONS) -> torch.Tensor:
    """Audio (samples,) whose log-mel is close to `mel_MS`; `samples` is at most 160 S. The first phases are random, seeded."""
    amplitude_BS = _unmix(torch.exp(mel_MS) - FLOOR)
    generator = torch.Generator().manual_seed(seed)
    angle_BS = torch.exp(2j * math.pi * torch.rand(amplitude_BS.shape, generator=generator))
    before_BS = torch.zeros_like(angle_BS)
    for _ in range(iterations):
        again_BS = _stft(_istft(amplitude_BS * angle_BS, samples))
        again_BS = F.pad(again_BS, (0, max(0, amplitude_BS.shape[1] - again_BS.shape[1])))[:, : amplitude_BS.shape[1]]
        ahead_BS = again_BS + _MOMENTUM * (again_BS - before_BS)
        before_BS = again_BS
        angle_BS = ahead_BS / (ahead_BS.abs() + 1e-8)
    return _istft(amplitude_BS * angle_BS, samples)


def _unmix(mel_MS: torch.Tensor) -> torch.Tensor:
    """Non-negative amplitudes (B, S) whose mel amplitudes are close to `mel_MS`, from the pseudo-inverse on."""
    filters_MB = _filters()
    target_MS = mel_MS.clamp(min=0.0)
    amplitude_BS = (_pseudo_inverse() @ target_MS).clamp(min=1e-6)
    numerator_BS = filters_MB.T @ target_MS
    for _ in range(_UNMIX_ITERATIONS):
        amplitude_BS = amplitude_BS * numerator_BS / (filters_MB.T @ (filters_MB @ amplitude_BS) + 1e-8)
    return amplitude_BS


def _stft(audio_N: torch.Tensor) -> torch.Tensor:
    spectrum_BS: torch.Tensor = torch.stft(audio_N, N_FFT, HOP, window=_window(), pad_mode="constant", return_complex=True)
    return spectrum_BS


def _istft(spectrum_BS: torch.Tensor, samples: int) -> torch.Tensor:
    audio_N: torch.Tensor = torch.istft(spectrum_BS, N_FFT, HOP, window=_window(), length=samples)
    return audio_N


@cache
def _window() -> torch.Tensor:
    return torch.hann_window(N_FFT)


@cache
def _filters() -> torch.Tensor:
    """(80, 513): each filter's weights sum to one, so that a mel amplitude is a mean of amplitudes."""
    filters = torch.from_numpy(mel_filters(N_FFT, MELS))
    return (filters / filters.sum(1, keepdim=True)).float()


@cache
def _pseudo_inverse() -> torch.Tensor:
    inverse_BM: torch.Tensor = torch.linalg.pinv(_filters())
    return inverse_BM
