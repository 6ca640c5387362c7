"""The CTranslate2 reader and the log-mel front end, without any model."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from lst.data.audio.whisper_encoder import MAX_SECONDS, WhisperEncoder, log_mel, read_ctranslate2
from lst.errors import DataError


def _name(text: str) -> bytes:
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def test_variables_and_aliases_are_read(tmp_path: Path) -> None:
    values = np.array([[1, 2], [3, 4]], np.float16)
    variable = _name("encoder/w") + struct.pack("<BIIBI", 2, 2, 2, 4, values.nbytes) + values.tobytes()
    content = struct.pack("<I", 6) + _name("WhisperSpec") + struct.pack("<II", 3, 1) + variable
    content += struct.pack("<I", 1) + _name("encoder/v") + _name("encoder/w")
    (tmp_path / "model.bin").write_bytes(content)
    read = read_ctranslate2(tmp_path / "model.bin")
    assert np.array_equal(read["encoder/w"], values)
    assert np.array_equal(read["encoder/v"], values)


@pytest.mark.parametrize("content", [b"", b"\x06\x00\x00\x00\x05", struct.pack("<I", 99) + _name("x")])
def test_another_file_is_refused_in_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.bin").write_bytes(content)
    with pytest.raises(DataError, match=r"model.bin"):
        read_ctranslate2(tmp_path / "model.bin")


def test_a_tone_lights_the_mel_band_of_its_frequency() -> None:
    """1 kHz is mel 15 of 45.2 in Slaney's scale: between bands 25 and 27 of 80."""
    tone = np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000).astype(np.float32)
    mel = log_mel(tone)
    assert mel.shape == (80, 148)  # 1.5 s with the tail, in hundredths, down to a multiple of 4
    assert 25 <= int(mel[:, 50].argmax()) <= 27
    assert mel.max() - mel.min() <= 2.0 + 1e-6  # Whisper keeps 8 decades, divided by 4


def test_audio_past_the_window_is_refused() -> None:
    encoder = WhisperEncoder({})
    with pytest.raises(DataError, match=r"audio of 29\.5 s is too long"):
        encoder.features(np.zeros(int((MAX_SECONDS + 0.5) * 16_000), np.float32))
