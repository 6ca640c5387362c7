"""Log-mel and its inversion against closed forms: where a sinusoid lies, how loud it is, and that it comes back."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lst.data.vocoders import griffin_lim
from lst.data.vocoders.griffin_lim import FLOOR, HOP, MELS, N_FFT, invert_log_mel, log_mel

RATE = 16_000


def sinusoid(hertz: float, samples: int = RATE, amplitude: float = 0.5) -> torch.Tensor:
    return torch.from_numpy((amplitude * np.sin(2 * np.pi * hertz * np.arange(samples) / RATE)).astype(np.float32))


def slaney_centres() -> np.ndarray:
    """Centres of 80 bands, evenly spaced on Slaney's scale: 200/3 Hz a step up to 1 kHz, then 6.4 times in 27 steps."""
    top = 15 + 27 * math.log(8) / math.log(6.4)
    places = np.linspace(0, top, MELS + 2)[1:-1]
    return np.where(places < 15, places * 200 / 3, 1000 * 6.4 ** ((places - 15) / 27))


@pytest.mark.parametrize("hertz", [250.0, 700.0, 1500.0, 3300.0, 6000.0])
def test_a_sinusoid_peaks_in_the_band_whose_centre_is_nearest(hertz: float) -> None:
    mel = log_mel(sinusoid(hertz))[:, 20:-20].mean(1)
    assert abs(int(mel.argmax()) - int(np.abs(slaney_centres() - hertz).argmin())) <= 1


def test_twice_the_amplitude_adds_the_logarithm_of_two() -> None:
    quiet, loud = (log_mel(sinusoid(1000.0, amplitude=a))[:, 50].max().item() for a in (0.1, 0.2))
    assert loud - quiet == pytest.approx(math.log(2), abs=1e-3)


def test_silence_is_the_floor_and_frames_come_every_10_ms() -> None:
    mel = log_mel(torch.zeros(RATE))
    assert mel.shape == (MELS, RATE // HOP + 1)
    assert torch.allclose(mel, torch.full_like(mel, math.log(FLOOR)))


def test_a_frame_is_centred_on_its_sample() -> None:
    click = torch.zeros(RATE)
    click[50 * HOP] = 1.0
    assert int(log_mel(click).mean(0).argmax()) == 50


def test_every_band_is_a_mean_of_amplitudes() -> None:
    filters = griffin_lim._filters()
    assert filters.shape == (MELS, N_FFT // 2 + 1)
    assert torch.allclose(filters.sum(1), torch.ones(MELS), atol=1e-5)
    assert bool((filters >= 0).all())


@pytest.mark.parametrize("hertz", [440.0, 2000.0])
def test_a_sinusoid_comes_back_at_its_frequency_and_loudness(hertz: float) -> None:
    """Its band is 67 Hz wide below 1 kHz and 7% above: the peak must lie within that, the power within 3 decibels."""
    wanted = sinusoid(hertz)
    heard = invert_log_mel(log_mel(wanted)[:, : RATE // HOP], RATE)
    spectrum = np.abs(np.fft.rfft(heard.numpy() * np.hanning(RATE)))
    assert abs(float(np.fft.rfftfreq(RATE, 1 / RATE)[spectrum.argmax()]) - hertz) <= max(67.0, 0.07 * hertz)
    inner = slice(1000, -1000)
    decibels = 10 * math.log10(float((heard[inner] ** 2).mean() / (wanted[inner] ** 2).mean()))
    assert abs(decibels) < 3.0


def test_more_iterations_come_closer_to_the_mel() -> None:
    noise = torch.randn(RATE, generator=torch.Generator().manual_seed(1)) * 0.1
    mel = log_mel(noise)[:, : RATE // HOP]
    errors = [(log_mel(invert_log_mel(mel, RATE, iterations=n))[:, : RATE // HOP] - mel).abs().mean().item() for n in (0, 4, 32)]
    assert errors[0] > errors[1] > errors[2]


def test_the_seed_alone_decides_the_phases() -> None:
    mel = log_mel(sinusoid(300.0, 6400))[:, :40]
    first, again, other = (invert_log_mel(mel, 6400, seed=s) for s in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("samples", [640, 1280, 6400])
def test_the_length_is_exact_even_for_one_token(samples: int) -> None:
    audio = invert_log_mel(log_mel(sinusoid(500.0, samples))[:, : samples // HOP], samples)
    assert audio.shape == (samples,)
    assert bool(audio.isfinite().all())
    assert audio.abs().max() > 0.1
