"""How much of what a run has seen is new: unique tokens against seen ones, for laws of limited data.

Seen tokens are counted; unique ones follow from them by a rule, so that they cost nothing and a resumed run writes the same:

    n = seen / (q A)                                            passes over the A tokens of the training split, which keep
                                                                the share q of them
    unique = A erf(sqrt(pi) / 2 n)                              q = 1
    unique = A (1 - (1 - q)^floor(n) (1 - q (n - floor(n))))    q < 1

For q = 1 it is the share of the split that sequences with Sobol's starts cover (lst/data/stream.py), whatever their length:
48% after half a pass, 79% after one, 98.8% after two, where random starts cover 39, 63 and 86%. For q < 1 what a pass keeps
does not depend on what others kept, and passes count as even. Text documents are kept whole (q = 1); an interleaved pass keeps
a share of the words as speech, drawn anew (q = r / (1 + r) with r = data.speech_per_text_words); sequences of other formats keep
all speech. Where a mixture has both kinds, q is that of interleaving. Transcripts read as text are not counted here.
tests/data/test_repetition.py compares the rule with tokens counted one by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import erf, floor, pi, sqrt
from typing import Any

from lst.config import DataConfig, Format


@dataclass(frozen=True)
class Repetition:
    """What a run can read once, and how much of it a pass keeps."""

    speech_tokens: int  # of the training split
    text_tokens: int  # of its text documents
    speech_kept: float  # share of the speech tokens that a pass over the spoken documents keeps as speech

    @classmethod
    def of(cls, data: DataConfig, *, speech_tokens: int, text_tokens: int) -> Repetition:
        ratio = data.speech_per_text_words
        interleaved = data.format_shares[Format.INTERLEAVED] > 0
        return cls(speech_tokens, text_tokens, ratio / (1 + ratio) if interleaved else 1.0)

    def record(self, counts: Mapping[str, Any]) -> dict[str, float]:
        """The fields of a training record, from the counts so far (lst.flops.SequenceCounts)."""
        speech, text = float(counts.get("speech_tokens", 0)), float(counts.get("text_only_tokens", 0))
        return {
            "unique_speech_tokens": unique_tokens(speech, self.speech_tokens, self.speech_kept),
            "unique_text_tokens": unique_tokens(text, self.text_tokens, 1.0),
            "speech_epochs": round(speech / self.speech_tokens, 6) if self.speech_tokens else 0.0,
            "text_epochs": round(text / self.text_tokens, 6) if self.text_tokens else 0.0,
        }


def unique_tokens(seen: float, available: int, kept: float) -> int:
    """Different tokens among `seen` ones, by the rule above."""
    if not available:
        return 0
    passes = seen / (kept * available)
    if kept == 1:
        return round(available * erf(sqrt(pi) / 2 * passes))
    whole = floor(passes)
    return round(available * (1 - (1 - kept) ** whole * (1 - kept * (passes - whole))))
