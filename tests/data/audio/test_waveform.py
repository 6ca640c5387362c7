"""Audio files: the same waveform from wav and flac, and a reason for every file that is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lst.data.audio.waveform import read_waveform, resample
from lst.errors import DataError
from tests.tiny_speech_models import tones, write_audio


def read(file: Path, max_seconds: float = 60) -> np.ndarray:
    return read_waveform(file, max_seconds=max_seconds)


def test_wav_and_flac_hold_the_same_waveform(tmp_path: Path) -> None:
    audio = tones(1.3)
    for suffix in ("wav", "flac"):
        assert np.array_equal(read(write_audio(tmp_path / f"a.{suffix}", audio)), audio)


def test_ogg_is_read_whole(tmp_path: Path) -> None:
    audio = 0.4 * np.sin(2 * np.pi * 440 * np.arange(20_800) / 16_000)
    decoded = read(write_audio(tmp_path / "a.ogg", audio))
    assert len(decoded) == len(audio)
    assert np.corrcoef(decoded, audio)[0, 1] > 0.98


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_a_tone_keeps_its_pitch_and_length_at_16_khz(tmp_path: Path, rate: int) -> None:
    time = np.arange(rate) / rate
    audio = read(write_audio(tmp_path / "a.wav", 0.5 * np.sin(2 * np.pi * 440 * time), rate))
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    assert len(audio) == 16_000
    assert np.abs(audio - expected)[200:-200].max() < 2e-3  # but for the filter's ends


def test_what_16_khz_cannot_hold_is_filtered_out_not_folded() -> None:
    above = np.sin(2 * np.pi * 11_000 * np.arange(44_100) / 44_100)
    assert np.abs(resample(above, 44_100)[200:-200]).max() < 1e-2


def test_channels_are_averaged(tmp_path: Path) -> None:
    left, right = tones(0.5, 1), tones(0.5, 2)
    stereo = read(write_audio(tmp_path / "a.flac", np.stack([left, right], 1)))
    assert np.allclose(stereo, (left + right) / 2, atol=1e-6)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_a_cut_file_is_refused(tmp_path: Path, suffix: str, share: float) -> None:
    file = write_audio(tmp_path / f"a.{suffix}", tones(3))
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(ValueError, match=r"cut|lost sync|damaged"):
        read(file)


def test_an_ogg_that_lacks_a_page_in_the_middle_is_refused(tmp_path: Path) -> None:
    file = write_audio(tmp_path / "a.ogg", tones(20))
    content = file.read_bytes()
    pages = [i for i in range(len(content)) if content[i : i + 4] == b"OggS"]
    assert len(pages) > 4
    file.write_bytes(content[: pages[3]] + content[pages[4] :])
    with pytest.raises(ValueError, match=r"not consecutive|cut or damaged"):
        read(file)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.wav", b"", "the file is empty"),
        ("a.wav", b"RIFF but no more", "no readable audio"),
        ("a.flac", b"\x00" * 4_000, "no readable audio"),
        ("a.ogg", b"OggS and then text", "no readable audio"),
    ],
)
def test_what_is_no_audio_is_refused(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        read(tmp_path / name)


def test_a_missing_file_is_refused_with_the_systems_reason(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No such file"):
        read(tmp_path / "a.wav")


def test_samples_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    import soundfile

    for value in (np.nan, np.inf):
        audio = tones(0.2).copy()
        audio[77] = value
        soundfile.write(tmp_path / "a.wav", audio, 16_000, subtype="FLOAT")
        with pytest.raises(ValueError, match="no finite numbers"):
            read(tmp_path / "a.wav")


def test_silence_and_no_samples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="silent"):
        read(write_audio(tmp_path / "a.wav", np.zeros(16_000, np.float32)))
    with pytest.raises(ValueError, match="no samples"):
        read(write_audio(tmp_path / "b.wav", np.zeros(0, np.float32)))


@pytest.mark.parametrize("rate", [1, 2**31 - 1])
def test_a_rate_that_a_damaged_header_names_is_refused_before_anything_is_resampled(tmp_path: Path, rate: int) -> None:
    content = bytearray(write_audio(tmp_path / "a.wav", tones(0.5)).read_bytes())
    content[24:28] = rate.to_bytes(4, "little")
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(ValueError, match="Hz are no rate of sound"):
        read(tmp_path / "a.wav", max_seconds=1e9)


def test_a_long_file_is_refused_by_its_header(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"3\.0 s are longer than max_seconds=2"):
        read(write_audio(tmp_path / "a.wav", tones(3)), max_seconds=2)


def test_without_soundfile_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(DataError, match=r"lst-scaling\[audio\]"):
        read(tmp_path / "a.wav")
