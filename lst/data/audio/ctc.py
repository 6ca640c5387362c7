"""Forced alignment with a wav2vec2 CTC model of letters from a local folder (PAPER: wav2vec2 and CTC forced alignment).

The folder is a transformers Wav2Vec2ForCTC with its vocab.json: one letter an entry, `|` between words. The best path of the
transcript's letters through the model's frames (lst/data/audio/align.py) tells when each begins and ends:

    frames (20 ms)   0    1    2    3    4    5    6          "AT A"
    path             -    A    A    T    -    |    A          AT: 0.02-0.08 s, A: 0.12-0.14 s

Letters are compared after Unicode's NFKC, in the case that the vocabulary has; typographic apostrophes are straight. **A
character outside the vocabulary is left out of the path, and counted if it is a letter or a digit**; a word of which none is
left shares the gap between its neighbours. Languages of several vocabularies in one file (MMS) are refused.
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lst.data.audio.align import WordAligner, ctc_path
from lst.data.audio.speech_model import ConvModel
from lst.data.audio.waveform import SAMPLE_RATE
from lst.data.audio.word_times import Span, WordTimes, fill_gaps
from lst.errors import DataError

if TYPE_CHECKING:
    import torch

DELIMITER = "|"
MAX_SECONDS = 300.0  # the search's memory grows with the square: 15,000 frames times some 9,000 states, in bytes


class CtcAligner:
    """Character alignment, and with it that of words and of text pieces."""

    def __init__(
        self,
        folder: Path,
        *,
        normalize: str = "auto",
        window_seconds: float = 30.0,
        device: str = "auto",
        dtype: str = "float32",
    ) -> None:
        """Raises DataError or ConfigError: no such model, no vocabulary of letters."""
        self._model = ConvModel(
            folder, "Wav2Vec2ForCTC", "wav2vec2", normalize=normalize, device=device, dtype=dtype, batch_seconds=window_seconds
        )
        config = self._model.model.config
        self._ids = read_vocabulary(folder / "vocab.json", config.vocab_size)
        self._blank, self._window_seconds = int(config.pad_token_id), window_seconds
        self._dtype = dtype
        capitals = sum(c.isupper() for c in self._ids)
        self._upper = capitals > sum(c.islower() for c in self._ids)
        self._seconds = self._model.conv.stride / SAMPLE_RATE
        self._unknown: Counter[str] = Counter()

    def identity(self) -> dict[str, Any]:
        normed = "waveform normed" if self._model.normalize else "waveform as it is"
        about = f"CTC; {normed}; {self._dtype}; windows of at most {self._window_seconds:g} s"
        return {"aligner": about, "weights_sha256": self._model.sha256, "characters": True}

    def take_unknown(self) -> Counter[str]:
        """The letters and digits that were left out since the last call."""
        unknown, self._unknown = self._unknown, Counter()
        return unknown

    def times(self, audio: NDArray[np.float32], words: Sequence[str]) -> WordTimes:
        """Raises ValueError where the audio is too long for the search, and DataError where the letters do not fit into it."""
        duration = _duration(audio)
        targets: list[int] = []
        owners: list[tuple[int, int]] = []  # (word, character of it) of each target; word -1 between words
        for w, word in enumerate(words):
            known = self._letters(word)
            if targets and known and DELIMITER in self._ids:
                targets.append(self._ids[DELIMITER])
                owners.append((-1, 0))
            targets += [letter for _, letter in known]
            owners += [(w, c) for c, _ in known]
        first: dict[tuple[int, int], int] = {}
        last: dict[int, int] = {}
        for frame, target in enumerate(ctc_path(self._log_probs(audio), targets, self._blank)):
            if target >= 0 and owners[target][0] >= 0:
                first.setdefault(owners[target], frame)
                last[owners[target][0]] = frame
        starts = {w: first[w, c] * self._seconds for w, c in reversed(first)}  # a word's first character is the last one set
        spans = fill_gaps(
            [(starts[w], (last[w] + 1) * self._seconds) if w in starts else None for w in range(len(words))], duration
        )
        return WordTimes(spans, self._character_starts(words, spans, first))

    def _character_starts(self, words: Sequence[str], spans: Sequence[Span], first: dict[tuple[int, int], int]) -> list[float]:
        """The start of every character; one that is not in the path lies evenly between its neighbours in the word."""
        starts: list[float] = []
        for w, (word, (begin, end)) in enumerate(zip(words, spans, strict=True)):
            known = {c: first[w, c] * self._seconds for c in range(len(word)) if (w, c) in first}
            places = [*known, len(word)]
            times = [*known.values(), end]
            if 0 not in known:
                places, times = [0, *places], [begin, *times]
            starts += np.interp(np.arange(len(word)), places, times).tolist()
        return starts

    def _letters(self, word: str) -> list[tuple[int, int]]:
        """(place in the word, id) of the letters that the vocabulary has; the others are counted."""
        found: list[tuple[int, int]] = []
        for place, character in enumerate(word):
            plain = unicodedata.normalize("NFKC", character).replace("’", "'")
            plain = plain.upper() if self._upper else plain.lower()
            ids = [self._ids[c] for c in plain if c in self._ids and c != DELIMITER]
            if not ids and character.isalnum():
                self._unknown[character] += 1
            found += [(place, i) for i in ids]
        return found

    def _log_probs(self, audio: NDArray[np.float32]) -> NDArray[np.float32]:
        found = self._model.encode([audio], self._forward, _log_softmax, window_seconds=self._window_seconds)[0]
        return np.asarray(found, np.float32)

    def _forward(self, values_BS: torch.Tensor, mask_BS: torch.Tensor | None) -> torch.Tensor:
        logits_BTV: torch.Tensor = self._model.model(values_BS, attention_mask=mask_BS).logits
        return logits_BTV


class EmbeddedAligner:
    """hama's recogniser (lst/data/audio/align.py): English, with a constant bias taken off; words alone."""

    def __init__(self) -> None:
        """Raises DataError if `hama` is not installed."""
        self._aligner = WordAligner()

    def identity(self) -> dict[str, Any]:
        import importlib.metadata

        return {"aligner": "hama", "version": importlib.metadata.version("hama")}

    def take_unknown(self) -> Counter[str]:
        """None: its letter-to-phoneme model says something for every word."""
        return Counter()

    def times(self, audio: NDArray[np.float32], words: Sequence[str]) -> WordTimes:
        """Raises ValueError above MAX_SECONDS, and DataError where the phonemes do not fit into the audio."""
        _duration(audio)
        return WordTimes(self._aligner.spans(audio, words))


def _duration(audio: NDArray[np.float32]) -> float:
    """Seconds of `audio`. Raises ValueError above MAX_SECONDS."""
    duration = len(audio) / SAMPLE_RATE
    if duration > MAX_SECONDS:
        raise ValueError(f"{duration:,.1f} s are too long to align at once (at most {MAX_SECONDS:g} s); cut the file")
    return duration


def read_vocabulary(file: Path, size: int) -> dict[str, int]:
    """Letter -> id of a vocab.json. Raises DataError if it is none of single letters for `size` outputs."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"'{file}' cannot be read ({error}); give the folder of a CTC model with its vocab.json.") from error
    valid = isinstance(content, dict) and all(type(i) is int and 0 <= i < size for i in content.values())
    letters = {text: i for text, i in content.items() if len(text) == 1} if valid else {}
    if not letters:
        raise DataError(f"'{file}' names no letters of the model's {size} outputs; give a vocabulary of letter -> number.")
    return letters


def _log_softmax(logits_TV: torch.Tensor) -> NDArray[Any]:
    return np.asarray(logits_TV.float().log_softmax(-1).cpu().numpy())
