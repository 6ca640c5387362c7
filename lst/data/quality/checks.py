"""The quality checks: each figure, its thresholds with the reason for them, and a verdict. The table CHECKS is the whole rule.

    ok       within the first threshold
    look     beyond it: a person should look, the data may be right
    bad      beyond the second: training on this is very probably a mistake
    unknown  the data set does not say, or is too small to tell

docs/data_quality.md has every figure's formula. Not here: counting (measure.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from lst.data.quality import figures
from lst.data.quality.figures import Figure, Found
from lst.data.quality.measure import LONGEST_SECONDS, SHORTEST_SECONDS, Measures
from lst.data.quality.tally import DOMINATED_SHARE
from lst.data.vocab import FRAMES_PER_SECOND


class Verdict(StrEnum):
    OK = "ok"
    LOOK = "look"
    BAD = "bad"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Range:
    """`low` <= figure <= `high`."""

    low: float = -math.inf
    high: float = math.inf

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high


Formatter = Callable[[float], str]


@dataclass(frozen=True)
class Rule:
    """A row of CHECKS: what is measured, the range that is `ok`, the wider one that is `look`, and why."""

    name: str
    title: str
    figure: Figure
    ok: Range
    look: Range
    shown: Formatter
    reason: str

    def verdict(self, value: float | None) -> Verdict:
        if value is None or math.isnan(value):
            return Verdict.UNKNOWN
        if self.ok.holds(value):
            return Verdict.OK
        return Verdict.LOOK if self.look.holds(value) else Verdict.BAD

    @property
    def limits(self) -> str:
        """As in `ok 0.5% to 50%, bad below 0.05% or over 80%`."""
        low = [f"below {self.shown(self.look.low)}"] if math.isfinite(self.look.low) and self.look.low != self.ok.low else []
        high = [f"over {self.shown(self.look.high)}"] if math.isfinite(self.look.high) else []
        return f"ok {_said(self.ok, self.shown)}" + (f", bad {' or '.join(low + high)}" if low or high else "")


@dataclass(frozen=True)
class Check:
    """A rule with what it found."""

    rule: Rule
    found: Found

    @property
    def verdict(self) -> Verdict:
        return self.rule.verdict(self.found.value)

    @property
    def shown(self) -> str:
        return "unknown" if self.verdict is Verdict.UNKNOWN else self.rule.shown(self.found.value or 0.0)


def judge(measures: Measures, manifest: Mapping[str, Any]) -> list[Check]:
    """All checks in order."""
    return [Check(rule, rule.figure(measures, manifest)) for rule in CHECKS]


def _said(limits: Range, shown: Formatter) -> str:
    if math.isinf(limits.low):
        return f"to {shown(limits.high)}"
    return f"from {shown(limits.low)}" if math.isinf(limits.high) else f"{shown(limits.low)} to {shown(limits.high)}"


_RATE = float(FRAMES_PER_SECOND)
CHECKS: tuple[Rule, ...] = (
    Rule(
        "unit_rate",
        "speech tokens a second",
        figures.unit_rate,
        Range(0.99 * _RATE, 1.01 * _RATE),
        Range(0.95 * _RATE, 1.05 * _RATE),
        lambda v: f"{v:.2f} Hz",
        "Every time in the harness is counted at 25 Hz. Edges cost less than 1%; 50 Hz or deduplicated tokens miss by far.",
    ),
    Rule(
        "speaking_rate",
        "letters a second inside words",
        figures.speaking_rate,
        Range(8, 22),
        Range(4, 35),
        figures.number,
        "English read aloud has about 12 to 17; half of that may be 50 Hz tokens. Not for scripts without letters.",
    ),
    Rule(
        "centres_never_used",
        "share of centres never used",
        figures.centres_never_used,
        Range(high=0.02),
        Range(high=0.2),
        figures.percent,
        "k-means leaves few centres empty; many mean another codebook, or a wrong speech_vocab.",
    ),
    Rule(
        "token_spread",
        "unigram perplexity / centres",
        figures.token_spread,
        Range(low=0.3),
        Range(low=0.1),
        figures.number,
        "Centres of k-means are used rather evenly; collapsed features or another codebook use few of them.",
    ),
    Rule(
        "commonest_token",
        "share of the commonest token",
        figures.commonest_token,
        Range(high=0.1),
        Range(high=0.3),
        figures.percent,
        "Even silence is spread over several centres; one token on a third of all frames is a stuck quantizer or empty audio.",
    ),
    Rule(
        "repeat_rate",
        "tokens that equal the one before",
        figures.repeat_rate,
        Range(0.005, 0.5),
        Range(0.0005, 0.8),
        figures.percent,
        "None: deduplicated tokens, whose durations are lost. More than half: a higher rate, or a stuck quantizer.",
    ),
    Rule(
        "token_order",
        "trigram / unigram perplexity",
        figures.token_order,
        Range(high=0.7),
        Range(high=0.9),
        figures.number,
        "Speech is regular over three frames. Near 1 the order of the tokens says nothing: they are shuffled, or noise.",
    ),
    Rule(
        "tokenizer_card",
        "largest factor from the card's figures",
        figures.factor_from_card,
        Range(high=1.1),
        Range(high=2.0),
        lambda v: f"{v:.2f} x",
        "One tokenizer on like speech gives like perplexities and repeats; a factor of two is another tokenizer or rate.",
    ),
    Rule(
        "alignment_coverage",
        "documents with words",
        figures.alignment_coverage,
        Range(low=0.99),
        Range(low=0.5),
        figures.percent,
        "Interleaving and aligned patches skip documents without words. Speech without any words is for speech-only formats.",
    ),
    Rule(
        "words_without_frames",
        "words without frames",
        figures.if_aligned(figures.words_without_frames),
        Range(high=0.005),
        Range(high=0.05),
        figures.percent,
        "Words of the transcript that the alignment lost: their speech counts as silence or as a neighbour's.",
    ),
    Rule(
        "words_spell_text",
        "documents whose words are not their text",
        figures.if_aligned(figures.words_not_spelling),
        Range(high=0.05),
        Range(high=0.5),
        figures.percent,
        "Letters and digits are compared. Spelt-out numbers differ rightly; most documents differing means alignments of others.",
    ),
    Rule(
        "silence_share",
        "frames in silence",
        figures.if_aligned(figures.silence_share),
        Range(0.01, 0.35),
        Range(high=0.6),
        figures.percent,
        "Read speech has 10 to 25%, synthesised less. None: the aligner stretched words over pauses. Most: words are missing.",
    ),
    Rule(
        "long_words",
        "words longer than 2 s",
        figures.if_aligned(lambda m: figures.share_of(m.words.slow, m.words.words, "words")),
        Range(high=0.001),
        Range(high=0.01),
        figures.percent,
        "Hardly a word lasts that long; an aligner that lost its way parks the rest of a recording in one word.",
    ),
    Rule(
        "fast_words",
        "words faster than 40 letters/s",
        figures.if_aligned(lambda m: figures.share_of(m.words.fast, m.words.words, "words")),
        Range(high=0.02),
        Range(high=0.1),
        figures.percent,
        "Two and a half times fast speech; short function words of one frame reach it, whole sentences do not.",
    ),
    Rule(
        "length_follows_letters",
        "letters and frames of words, r",
        figures.if_aligned(figures.length_follows_letters),
        Range(low=0.4),
        Range(low=0.2),
        figures.number,
        "Longer words take longer (r about .6 to .9). Near 0 the times are of other words. Not for scripts of a sign a word.",
    ),
    Rule(
        "tokens_know_silence",
        "silence told by the token",
        figures.if_aligned(figures.tokens_know_silence),
        Range(low=0.1),
        Range(low=0.02),
        figures.percent,
        "Tokens of pauses differ from tokens of speech. If a token tells nothing of it, the times are not those of this audio.",
    ),
    Rule(
        "longest_silence",
        "longest silence",
        figures.if_aligned(lambda m: figures.longest_of(m.words.longest_silences.sorted(), "silence")),
        Range(high=5),
        Range(high=30),
        figures.seconds,
        "Pauses of readers stay below a few seconds; more is an unaligned stretch, music or an empty channel.",
    ),
    Rule(
        "silent_documents",
        "documents of silence (90% outside words)",
        figures.if_aligned(
            lambda m: figures.share_of(m.words.mostly_silent, m.words.documents, "documents", m.words.mostly_silent_ids)
        ),
        Range(high=0.0),
        Range(high=0.01),
        figures.percent,
        "A document that is nearly all silence teaches to be silent, or its alignment failed.",
    ),
    Rule(
        "longest_run",
        "longest run of one token",
        figures.longest_run,
        Range(high=2),
        Range(high=10),
        figures.seconds,
        "Even long pauses wander between centres; seconds of one token are digital silence or padding.",
    ),
    Rule(
        "dominated_documents",
        f"documents of one token (over {100 * DOMINATED_SHARE:.0f}%)",
        figures.dominated_documents,
        Range(high=0.0),
        Range(high=0.01),
        figures.percent,
        "Documents of a second or more that are mostly one token are silent, padded or clipped recordings.",
    ),
    Rule(
        "length_limits",
        f"documents outside {SHORTEST_SECONDS:.0f} s .. {LONGEST_SECONDS / 60:.0f} min",
        figures.outside_limits,
        Range(high=0.01),
        Range(high=0.1),
        figures.percent,
        "A second holds hardly a word; more than an hour is a book in one document, which splits and shuffles badly.",
    ),
    Rule(
        "equal_tokens",
        "documents with tokens of another",
        lambda m, _: figures.equal_documents(m.same_tokens, m.groups.get("tokens", [])),
        Range(high=0.001),
        Range(high=0.01),
        figures.percent,
        "The same recording twice counts as unique speech and may stand on both sides of the split.",
    ),
    Rule(
        "equal_texts",
        "documents with the text of another",
        lambda m, _: figures.equal_documents(m.same_texts, m.groups.get("texts", [])),
        Range(high=0.01),
        Range(),
        figures.percent,
        "Several speakers may read one sentence; the held-out text is then known from training. Never bad by itself.",
    ),
    Rule(
        "near_ids",
        "ids that nearly equal another",
        lambda m, _: figures.equal_documents(m.same_ids, m.groups.get("ids", [])),
        Range(high=0.0),
        Range(high=0.01),
        figures.percent,
        "Ids that differ in case, punctuation or leading zeros alone often name one recording twice.",
    ),
    Rule(
        "refused",
        "records refused",
        figures.refused_share,
        Range(high=0.001),
        Range(high=0.01),
        figures.percent,
        "A few damaged lines are normal; more is a systematic fault that takes part of the corpus away.",
    ),
)
