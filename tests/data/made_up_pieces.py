"""Speech pieces that need no data set: BPE of a fixed random walk over speech tokens."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from lst.data.speech_bpe import SpeechBpe, remember, train_speech_bpe


@functools.cache
def made_up_pieces(speech_vocab: int, vocabulary: int) -> SpeechBpe:
    """Pieces of sequences in which some tokens follow others more often."""
    generator = np.random.Generator(np.random.Philox(key=3))
    steps = generator.choice([0, 1, 1, 2, 7], (200, 60))
    sequences = list((steps.cumsum(1) + generator.integers(0, speech_vocab, (200, 1))) % speech_vocab)
    return SpeechBpe(train_speech_bpe(sequences, speech_vocab=speech_vocab, vocabulary=vocabulary))


def with_pieces(arm: str, model: dict[str, Any]) -> dict[str, Any]:
    """Sections of a configuration whose section `model` is `model`; for arm `bpe` with made-up pieces, eight more than tokens."""
    if arm != "bpe":
        return {"model": model}
    speech = model["speech_vocab"]
    pieces = remember(made_up_pieces(speech, speech + 8))
    return {"model": model | {"speech_bpe_vocab": pieces.size}, "data": {"speech_bpe_id": pieces.id}}
