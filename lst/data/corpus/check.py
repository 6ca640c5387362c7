"""Does this machine make the tokens that ship? Speaks a sample of the embedded corpus again and compares.

`python -m lst.data.corpus.check [DOCUMENTS]` prints the share of equal tokens for each engine. Other processors round
differently in the encoder (float32) and in Kokoro (int8 ONNX); espeak-ng and the quantizer do not depend on them. Needs the
extra `speech`. Documents are taken evenly from the table; the shipped quantizer is used, none is fitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lst.data.audio.embedded_quantizer import Quantizer
from lst.data.audio.whisper_encoder import WhisperEncoder
from lst.data.corpus.synthesis import speak
from lst.data.shards import embedded_path, open_dataset


@dataclass(frozen=True)
class Agreement:
    """Of the documents of one engine."""

    engine: str
    documents: int
    tokens: int
    equal: int  # tokens of the same value at the same place
    other_lengths: int  # documents with another number of tokens, none of whose tokens count as equal

    @property
    def share(self) -> float:
        return self.equal / max(1, self.tokens)


def check_embedded(documents: int = 40, *, engines: Sequence[str] = ("espeak", "kokoro")) -> list[Agreement]:
    """Speak and quantize about `documents` documents of each of `engines` and compare with the shipped tokens."""
    dataset = open_dataset("embedded")
    encoder, quantizer = WhisperEncoder.load(), Quantizer.load(embedded_path() / "quantizer.safetensors")
    speakers = np.array(dataset.speech["speaker"].to_pylist())
    found: list[Agreement] = []
    for engine in engines:
        rows = np.flatnonzero(np.char.startswith(speakers, engine + ":"))
        sample = dataset.speech.take(rows[:: max(1, len(rows) // documents)][:documents]).to_pylist()
        tokens = equal = other = 0
        for row in sample:
            shipped = np.array(row["speech_tokens"])
            made = quantizer.tokens(encoder.features(speak(row["words"], row["speaker"]).audio))
            tokens += len(shipped)
            if len(made) == len(shipped):
                equal += int((made == shipped).sum())
            else:
                other += 1
        found.append(Agreement(engine, len(sample), tokens, equal, other))
    return found


if __name__ == "__main__":
    import sys

    for a in check_embedded(int(sys.argv[1]) if len(sys.argv) > 1 else 40):
        print(
            f"{a.engine}: {a.share:.3%} of {a.tokens:,} tokens in {a.documents} documents are equal; "
            f"{a.other_lengths} documents have another length"
        )
