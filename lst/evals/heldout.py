"""Held-out losses by modality, on the same tokens for every arm (docs/evaluation.md defines each metric).

`heldout_speech` and `heldout_text` are documents of one modality; `heldout_interleaved` switches between both. Losses of
an arm that is evaluated under aligned patches are conditional on the alignment and compare with no other arm's. Tokens count
by content, so arm `bpe`, whose ids stand for several speech tokens, has nats per speech token of 25 Hz like the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lst.config import Format
from lst.data.interleave import Document
from lst.data.text import TextTokenizer
from lst.data.vocab import FRAMES_PER_SECOND, SPEECH, TEXT
from lst.evals.scoring import Scored, Scorer


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One record of eval.jsonl, but for the run's own fields."""

    task: str
    direction: str  # what is given -> what is predicted: S speech, T text
    metric: str
    value: float
    n_items: int  # what `value` is a mean over: predicted tokens (by content: a speech piece is several), or items
    about: Mapping[str, Any] = field(default_factory=dict)  # further fields of the record: which score, which patching


def heldout_metrics(scorer: Scorer, documents: Mapping[str, Sequence[Document]], tokenizer: TextTokenizer) -> list[Metric]:
    """All held-out metrics of a model. `documents` are those of lst.data.heldout."""
    speech = _sums(scorer.score(documents["speech"]))
    text = _sums(scorer.score(documents["text"]))
    mixed = _sums(scorer.score(documents["interleaved"]))
    shares = scorer.config.data.format_shares
    both = shares[Format.INTERLEAVED] + shares[Format.TEXT]
    interleaved_share = shares[Format.INTERLEAVED] / both if both else 1.0
    per_token = {"speech": speech[SPEECH].mean, "text": text[TEXT].mean, "interleaved": mixed[None].mean}
    mixture = interleaved_share * per_token["interleaved"] + (1 - interleaved_share) * per_token["text"]

    def metric(task: str, direction: str, name: str, value: float, n_items: int) -> Metric:
        return Metric(task=f"heldout_{task}", direction=direction, metric=name, value=value, n_items=n_items)

    return [
        metric("speech", "S->S", "nats_per_token", per_token["speech"], speech[SPEECH].tokens),
        metric("speech", "S->S", "bits_per_second", speech[SPEECH].bits_per_second, speech[SPEECH].tokens),
        metric("text", "T->T", "nats_per_token", per_token["text"], text[TEXT].tokens),
        metric("text", "T->T", "bits_per_byte", text[TEXT].bits / _bytes(documents["text"], tokenizer), text[TEXT].tokens),
        metric("interleaved", "ST->ST", "nats_per_token", per_token["interleaved"], mixed[None].tokens),
        *(
            metric("interleaved", "ST->ST", name, value, part.tokens)
            for part, name, value in _by_modality(mixed, _bytes(documents["interleaved"], tokenizer))
        ),
        metric("mixture", "ST->ST", "nats_per_token", mixture, mixed[None].tokens + text[TEXT].tokens),
    ]


def _by_modality(sums: Mapping[int | None, _Sum], text_bytes: int) -> Iterator[tuple[_Sum, str, float]]:
    """(sums, metric, value) of the modalities that interleaved documents have."""
    speech, text = sums[SPEECH], sums[TEXT]
    if speech.tokens:
        yield speech, "nats_per_speech_token", speech.mean
        yield speech, "bits_per_second", speech.bits_per_second
    if text.tokens:
        yield text, "nats_per_text_token", text.mean
        yield text, "bits_per_byte", text.bits / text_bytes


def _bytes(documents: Sequence[Document], tokenizer: TextTokenizer) -> int:
    """UTF-8 bytes of the text of all text segments."""
    texts = (tokenizer.decode([int(p) for p in s.tokens]) for d in documents for s in d if s.modality == "text")
    return sum(len(text.encode()) for text in texts)


@dataclass(frozen=True)
class _Sum:
    nats: float
    tokens: int

    @property
    def mean(self) -> float:
        return self.nats / self.tokens

    @property
    def bits(self) -> float:
        return self.nats / math.log(2)

    @property
    def bits_per_second(self) -> float:
        """Of speech."""
        return self.bits / self.tokens * FRAMES_PER_SECOND


def _sums(scored: Sequence[Scored]) -> dict[int | None, _Sum]:
    """Sums over documents, of each modality and (under None) of all predicted tokens, markers included."""
    totals: dict[int | None, _Sum] = {}
    for modality in (None, TEXT, SPEECH):
        parts = [s.sums(modality) for s in scored]
        totals[modality] = _Sum(math.fsum(nats for nats, _ in parts), sum(tokens for _, tokens in parts))
    return totals
