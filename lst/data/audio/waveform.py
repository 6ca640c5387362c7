"""Audio files as 16 kHz mono waveforms: read whole or refused with the reason, and resampled.

wav, flac and ogg (Vorbis, Opus) of any rate and channel count are read by `soundfile` (extra `audio`). Channels are averaged.
A decoder silently gives what is left of a cut wav or ogg file, so these containers are checked here: a wav's data chunk must
lie inside the file, an ogg's pages must be consecutive up to one that is marked as the last.
"""

from __future__ import annotations

import importlib
import importlib.util
import struct
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lst.errors import DataError

SAMPLE_RATE = 16_000
SUFFIXES = (".wav", ".flac", ".ogg")
RATES = (1_000, 1_000_000)  # Hz; resampling takes memory with the rate, and a damaged header may name any
_BLOCK = 1 << 18  # samples decoded at a time: channels are averaged before the next ones are read
_UNKNOWN_SIZES = (0, 0xFFFFFFFF)  # of a wav written to a pipe, or with 64-bit sizes


def require_soundfile() -> Any:
    """The module `soundfile`. Raises DataError naming the extra if it is not installed."""
    if importlib.util.find_spec("soundfile") is None:
        raise DataError("audio files are read by the package 'soundfile'; run: pip install lst-scaling[audio]")
    return importlib.import_module("soundfile")


def resample(audio: NDArray[Any], rate: int) -> NDArray[Any]:
    """`audio` of `rate` Hz at 16 kHz, by scipy's polyphase filter, in its own float type."""
    if rate == SAMPLE_RATE:
        return audio
    from scipy.signal import resample_poly

    divisor = gcd(SAMPLE_RATE, rate)
    return np.asarray(resample_poly(audio, SAMPLE_RATE // divisor, rate // divisor))


def read_waveform(path: Path, *, max_seconds: float) -> NDArray[np.float32]:
    """The file's mean over channels at 16 kHz, (samples,).

    Raises ValueError with the reason if it is no audio, damaged, cut, empty, silent, not finite, of an absurd rate or longer than
    `max_seconds`.
    """
    soundfile = require_soundfile()
    try:
        if not path.stat().st_size:
            raise ValueError("the file is empty")
        with soundfile.SoundFile(str(path)) as file:
            seconds = file.frames / file.samplerate
            if not RATES[0] <= file.samplerate <= RATES[1]:
                raise ValueError(f"{file.samplerate:,} Hz are no rate of sound; {RATES[0]:,} to {RATES[1]:,} are read")
            if seconds > max_seconds:
                raise ValueError(f"{seconds:,.1f} s are longer than max_seconds={max_seconds:g}; cut it into shorter files")
            blocks = [b.mean(axis=1) for b in file.blocks(_BLOCK, dtype="float32", always_2d=True)]
            rate, frames, container = file.samplerate, file.frames, file.format
        _check_whole(path, container)
    except soundfile.SoundFileError as error:
        raise ValueError(f"no readable audio ({str(error).rpartition(': ')[2].rstrip('.')})") from error
    except OSError as error:
        raise ValueError(f"it cannot be read ({error.strerror})") from error
    audio = np.concatenate([np.zeros(0, np.float32), *blocks])
    if len(audio) != frames:
        raise ValueError(f"it is cut or damaged: {len(audio):,} of {frames:,} samples can be decoded")
    if not len(audio):
        raise ValueError("it has no samples")
    if not np.isfinite(audio).all():
        raise ValueError("it has samples that are no finite numbers (NaN or infinite)")
    if audio.min() == audio.max():
        raise ValueError("it is silent: every sample is the same")
    return np.asarray(resample(audio, rate), np.float32)


def _check_whole(path: Path, container: str) -> None:
    """ValueError if a wav or ogg file ends before its container says."""
    if container in ("WAV", "WAVEX") and _wav_is_cut(path):
        raise ValueError("it is cut: the wav's data chunk ends behind the file's end")
    if container == "OGG":
        _check_ogg(path.read_bytes())


def _wav_is_cut(path: Path) -> bool:
    size = path.stat().st_size
    with path.open("rb") as file:
        position = 12  # behind RIFF, its size, WAVE
        while position + 8 <= size:
            file.seek(position)
            name, length = struct.unpack("<4sI", file.read(8))
            if name == b"data":
                return length not in _UNKNOWN_SIZES and position + 8 + length > size
            position += 8 + length + length % 2
    return True


def _check_ogg(content: bytes) -> None:
    """Walk the pages (RFC 3533): 27 bytes of header, a table of segment lengths, the segments."""
    position, pages, ended = 0, dict[int, int](), set[int]()
    while position < len(content):
        if content[position : position + 4] != b"OggS" or position + 27 > len(content):
            raise ValueError("it is cut or damaged: an ogg page is missing")
        flags, serial, sequence, segments = content[position + 5], *struct.unpack_from("<IIxxxxB", content, position + 14)
        if sequence != pages.get(serial, sequence - 1) + 1:
            raise ValueError("it is damaged: the ogg pages are not consecutive")
        pages[serial] = sequence
        if flags & 4:
            ended.add(serial)
        position += 27 + segments + sum(content[position + 27 : position + 27 + segments])
    if position > len(content) or set(pages) != ended:
        raise ValueError("it is cut: no ogg page is marked as the last")
