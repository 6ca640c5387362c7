"""A speech recogniser by which generated speech is judged.

    hear = open_recogniser("models/whisper-small.en")      # transformers' Whisper: config, safetensors, tokenizer (extra `hf`)
    hear = open_recogniser("models/faster-whisper-small")  # CTranslate2's: config.json, model.bin (pip install faster-whisper)
    hear = open_recogniser("pocketsphinx")                 # a second opinion, no Whisper (pip install pocketsphinx)
    hear(audio)                                            # 16 kHz, -1..1 -> text

Judging tokens that were made by a Whisper encoder with a Whisper is circular: name a second recogniser beside it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lst.errors import DataError

LONGEST = 30.0  # seconds that transformers' Whisper hears at once
POCKETSPHINX = "pocketsphinx"
Hear = Callable[[NDArray[np.float32]], str]


def open_recogniser(name: str) -> Hear:
    """Greedy transcripts by `pocketsphinx`, or by the Whisper of a local folder. Raises DataError where there is none, or its
    package is missing."""
    if name == POCKETSPHINX:
        return _pocketsphinx()
    require_folder(name)
    return _ctranslate2(name) if (Path(name) / "model.bin").is_file() else _transformers(name)


def require_folder(name: str) -> None:
    """Raises DataError unless `name` is `pocketsphinx`, or a folder that looks like a Whisper's."""
    path = Path(name)
    if name == POCKETSPHINX:
        return
    if not (path / "config.json").is_file() or not [*path.glob("*.safetensors"), *path.glob("model.bin")]:
        raise DataError(
            f"recognisers={name} has no config.json with safetensors or model.bin; give a Whisper's local folder, or "
            f"{POCKETSPHINX}."
        )


def _transformers(folder: str) -> Hear:
    _require("transformers", f"recognisers={folder}", "lst-scaling[hf]")
    import torch
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    try:
        processor: Any = WhisperProcessor.from_pretrained(folder, local_files_only=True)
        model: Any = WhisperForConditionalGeneration.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"recognisers={folder} cannot be opened ({str(error).splitlines()[0]}); give a Whisper's folder."
        ) from error

    model.eval()

    @torch.no_grad()
    def hear(audio: NDArray[np.float32]) -> str:
        size, texts = int(LONGEST * 16_000), []
        for first in range(0, len(audio), size):
            features = processor(audio[first : first + size], sampling_rate=16_000, return_tensors="pt").input_features
            ids = model.generate(features, do_sample=False, num_beams=1)
            texts.append(processor.batch_decode(ids, skip_special_tokens=True)[0].strip())
        return " ".join(filter(None, texts))

    return hear


def _ctranslate2(folder: str) -> Hear:
    _require("faster_whisper", f"recognisers={folder}", "faster-whisper")
    from faster_whisper import WhisperModel

    try:
        model: Any = WhisperModel(folder, device="cpu", compute_type="float32", cpu_threads=1, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"recognisers={folder} cannot be opened ({str(error).splitlines()[0]}); give a Whisper's folder."
        ) from error

    def hear(audio: NDArray[np.float32]) -> str:
        segments, _ = model.transcribe(audio, language="en", beam_size=1, temperature=0.0, without_timestamps=True)
        return " ".join(segment.text.strip() for segment in segments)

    return hear


def _pocketsphinx() -> Hear:
    _require("pocketsphinx", "recognisers=pocketsphinx", "pocketsphinx")
    from pocketsphinx import Decoder

    def hear(audio: NDArray[np.float32]) -> str:
        decoder = Decoder(samprate=16_000, loglevel="FATAL")  # anew: it adapts to what it heard before
        decoder.start_utt()
        decoder.process_raw((np.clip(audio, -1, 1) * 32767).astype("<i2").tobytes(), full_utt=True)
        decoder.end_utt()
        found = decoder.hyp()
        return str(found.hypstr) if found else ""

    return hear


def _require(module: str, what: str, package: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise DataError(f"{what} needs the package '{module.replace('_', '-')}'; run: pip install {package}")
