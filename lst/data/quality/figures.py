"""The figures of the quality checks, each from the counts of one pass. docs/data_quality.md has every formula.

Not here: counting (measure.py), what a figure means (checks.py).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lst.data.quality.measure import Measures
from lst.data.quality.samples import Repetitions
from lst.data.quality.tally import Stretch
from lst.data.vocab import FRAMES_PER_SECOND

ENOUGH_A_CENTRE = 20  # tokens for each centre: with fewer, centres are unused by chance
ENOUGH_WORDS = 100


@dataclass(frozen=True)
class Found:
    """A check's figure; `value` None: unknown. `detail` says more in a few words, documents named at the end."""

    value: float | None
    detail: str = ""


Figure = Callable[[Measures, Mapping[str, Any]], Found]


def tokenizer_card(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The speech tokenizer card of a data set, or {}."""
    for holder in (manifest, manifest.get("about", {})):
        card = holder.get("speech_tokenizer")
        if isinstance(card, dict):
            return card
    return {}


def percent(value: float) -> str:
    """0.0012 as 0.12%, 0 as 0%."""
    if abs(value) < 0.1:
        return f"{100 * value:.{2 if abs(value) < 0.001 else 3}g}%"
    return f"{100 * value:.1f}".removesuffix(".0") + "%"


def number(value: float) -> str:
    return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def seconds(value: float) -> str:
    return f"{value:.3g} s" if value < 100 else f"{value:,.0f} s"


def share_of(part: int, whole: int, what: str, ids: list[str] | None = None) -> Found:
    """A share; unknown where there is nothing to share."""
    named = f": {', '.join(ids)}" if ids else ""
    return Found(part / whole if whole else None, f"{part:,} of {whole:,} {what}{named}")


def unit_rate(m: Measures, manifest: Mapping[str, Any]) -> Found:
    audio = manifest.get("audio_seconds", manifest.get("about", {}).get("audio_seconds"))
    if not isinstance(audio, int | float) or not audio > 0:
        return Found(None, "the source recorded no durations of audio")
    return Found(m.tokens.lengths.total / float(audio), f"{m.tokens.lengths.total:,} tokens of {audio:,.1f} s of audio")


def speaking_rate(m: Measures, _: Mapping[str, Any]) -> Found:
    if not m.words.words:
        return Found(None, "no words")
    return Found(m.words.characters * FRAMES_PER_SECOND / m.words.durations.total, "letters and digits a second inside words")


def token_spread(m: Measures, _: Mapping[str, Any]) -> Found:
    total = int(m.tokens.counts.sum())
    if total < ENOUGH_A_CENTRE * m.vocabulary:
        return Found(None, f"{total:,} tokens are too few to judge {m.vocabulary} centres")
    p = m.tokens.counts[m.tokens.counts > 0] / total
    perplexity = float(math.e ** -(p @ [math.log(x) for x in p]))
    return Found(perplexity / m.vocabulary, f"perplexity {number(perplexity)} of {m.vocabulary} centres")


def commonest_token(m: Measures, _: Mapping[str, Any]) -> Found:
    total = int(m.tokens.counts.sum())
    token = int(m.tokens.counts.argmax())
    return Found(int(m.tokens.counts[token]) / total if total else None, f"token {token}")


def centres_never_used(m: Measures, _: Mapping[str, Any]) -> Found:
    unused = int((m.tokens.counts == 0).sum())
    if int(m.tokens.counts.sum()) < ENOUGH_A_CENTRE * m.vocabulary:
        return Found(None, f"too few tokens to judge {m.vocabulary} centres; {unused} not used")
    return share_of(unused, m.vocabulary, "centres")


def repeat_rate(m: Measures, _: Mapping[str, Any]) -> Found:
    return share_of(m.tokens.repeats, m.tokens.pairs, "neighbours are equal")


def token_order(m: Measures, _: Mapping[str, Any]) -> Found:
    if not m.perplexities:
        return Found(None, "too few tokens for n-grams")
    one, two, three = (m.perplexities[order] for order in (1, 2, 3))
    return Found(three / one, f"perplexity of unigrams {number(one)}, bigrams {number(two)}, trigrams {number(three)}")


def factor_from_card(m: Measures, manifest: Mapping[str, Any]) -> Found:
    measured = tokenizer_card(manifest).get("measured")
    measured = measured if isinstance(measured, dict) else {}
    mine = {
        "unigram_perplexity": m.perplexities.get(1),
        "trigram_perplexity": m.perplexities.get(3),
        "repeat_rate": m.tokens.repeats / m.tokens.pairs if m.tokens.pairs else None,
    }
    ratios = {}
    for name, value in mine.items():
        stated = measured.get(name)
        if value and isinstance(stated, int | float) and stated > 0:
            ratios[name] = abs(math.log(value / stated))
    if not ratios:
        return Found(None, "the tokenizer card states no figures" if not measured else "too few tokens to compare")
    worst = max(ratios, key=lambda name: ratios[name])
    detail = f"{worst.replace('_', ' ')} {number(mine[worst] or 0.0)}, the card's {number(float(measured[worst]))}"
    return Found(math.exp(ratios[worst]), detail)


def alignment_coverage(m: Measures, _: Mapping[str, Any]) -> Found:
    found = share_of(m.words.documents, m.documents, "documents have words")
    return (
        found if m.words.documents else Found(found.value, "no document has words: for speech-only formats and static arms alone")
    )


def if_aligned(figure: Callable[[Measures], Found]) -> Figure:
    return lambda m, _: figure(m) if m.words.documents else Found(None, "no words")


def words_without_frames(m: Measures) -> Found:
    return share_of(m.missing_words, m.transcript_words, "words of the transcripts")


def words_not_spelling(m: Measures) -> Found:
    different = m.words.documents - m.same_letters
    return share_of(different, m.words.documents, "documents whose words do not spell their transcript")


def silence_share(m: Measures) -> Found:
    return share_of(m.words.silences.total, m.words.frames, "frames")


def length_follows_letters(m: Measures) -> Found:
    return Found(
        m.words.length_correlation if m.words.words >= ENOUGH_WORDS else None, "correlation of a word's letters and its frames"
    )


def tokens_know_silence(m: Measures) -> Found:
    enough = int(m.words.tokens.sum()) >= ENOUGH_A_CENTRE * m.vocabulary
    return Found(m.words.silence_information if enough else None, "what a token alone tells of whether its frame is in a word")


def longest_of(stretches: list[Stretch], what: str) -> Found:
    if not stretches:
        return Found(0.0, f"no {what}")
    named = ", ".join(f"{s.document} at {s.start / FRAMES_PER_SECOND:.2f} s" for s in stretches[:3])
    return Found(stretches[0].frames / FRAMES_PER_SECOND, named)


def longest_run(m: Measures, _: Mapping[str, Any]) -> Found:
    return longest_of(m.tokens.runs.sorted(), "token")


def dominated_documents(m: Measures, _: Mapping[str, Any]) -> Found:
    return share_of(m.tokens.dominated, m.documents, "documents", m.tokens.dominated_ids)


def outside_limits(m: Measures, _: Mapping[str, Any]) -> Found:
    return share_of(m.too_short + m.too_long, m.documents, "documents", m.outside_ids)


def equal_documents(repeated: Repetitions, groups: list[list[str]]) -> Found:
    if not repeated.sampled:
        return Found(None, "nothing to compare")
    sampled = "" if repeated.exact else f", estimated from {repeated.sampled:,}"
    named = "; ".join(" = ".join(group) for group in groups)
    return Found(repeated.share, f"of {repeated.added:,}{sampled}" + (f": {named}" if named else ""))


def refused_share(m: Measures, manifest: Mapping[str, Any]) -> Found:
    refused = refusals(manifest, "speech")
    if refused is None:
        return Found(None, "not recorded")
    count = sum(refused.values())
    return share_of(count, count + m.documents, "records")


def refusals(manifest: Mapping[str, Any], *tables: str) -> dict[str, int] | None:
    """Refused records of `tables` (default: all) by reason, or None where the data set does not say."""
    told = manifest.get("refused")
    if not isinstance(told, dict):
        return None
    reasons: Counter[str] = Counter()
    for table in tables or told:
        reasons.update(told.get(table, {}).get("by_reason", {}))
    return dict(reasons)
