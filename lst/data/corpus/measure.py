"""How good the speech tokens are: phone accuracy within and across voices, repeats, perplexities. No torch, no audio.

Phone accuracy: each token stands for the phoneme that it most often meets in a voice's training documents; the share of
frames of held-out documents whose phoneme is told right, by a map learnt on the same voice ("within") or on another
("across"). Only espeak-ng's voices count, for they alone come with phoneme times.
Perplexities are those of lst.data.ngram's references, from training to held-out documents, per token.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lst.data.audio.embedded_quantizer import NUM_CENTRES
from lst.data.corpus.plan import Document
from lst.data.ngram import NgramModel
from lst.data.vocab import FRAMES_PER_SECOND

_TRAIN_DOCUMENTS = 150  # a voice, for the token -> phoneme map


def measure(pairs: Sequence[tuple[Document, Mapping[str, Any]]]) -> dict[str, Any]:
    """All figures, rounded, for the tokenizer card, from documents and their records (tokens, phones)."""
    train = [np.array(r["tokens"], np.int64) for d, r in pairs if d.split == "train"]
    heldout = [np.array(r["tokens"], np.int64) for d, r in pairs if d.split == "heldout"]
    model = NgramModel(train, NUM_CENTRES)
    unigram, trigram = (math.exp(model.nats(heldout, order)) for order in (1, 3))
    within, across, chance = phone_accuracies(pairs)
    flat = np.concatenate(train)
    return {
        "phone_accuracy_within": round(within, 3),
        "phone_accuracy_across": round(across, 3),
        "phone_accuracy_chance": round(chance, 3),
        "unigram_perplexity": round(unigram, 1),
        "trigram_perplexity": round(trigram, 1),
        "repeat_rate": round(repeat_rate(train), 3),
        "used_centres": int(np.count_nonzero(np.bincount(flat, minlength=NUM_CENTRES))),
    }


def repeat_rate(sequences: Sequence[NDArray[np.int64]]) -> float:
    """Share of tokens that equal the one before them."""
    same = sum(int((s[1:] == s[:-1]).sum()) for s in sequences)
    return same / max(1, sum(len(s) - 1 for s in sequences))


def frame_phones(phones: Sequence[tuple[float, str]], frames: int) -> list[str]:
    """The phoneme at the middle of each 25 Hz frame; "" is a pause."""
    starts = np.array([t for t, _ in phones])
    middles = (np.arange(frames) + 0.5) / FRAMES_PER_SECOND
    return [phones[max(0, i)][1] for i in np.searchsorted(starts, middles, side="right") - 1]


def phone_accuracies(pairs: Sequence[tuple[Document, Mapping[str, Any]]]) -> tuple[float, float, float]:
    """(within, across, most frequent phoneme), means over voices and ordered pairs of voices; nan if there are none."""
    maps: dict[str, dict[int, str]] = {}
    tests: dict[str, list[tuple[int, str]]] = {}
    for speaker in sorted({d.speaker for d, r in pairs if r["phones"] is not None}):
        frames: dict[str, list[tuple[int, str]]] = {}
        for split, limit in (("train", _TRAIN_DOCUMENTS), ("heldout", None)):
            records = [r for d, r in pairs if d.speaker == speaker and d.split == split][:limit]
            frames[split] = [
                labelled
                for r in records
                for labelled in zip(r["tokens"], frame_phones(r["phones"], len(r["tokens"])), strict=True)
            ]
        counts: defaultdict[int, Counter[str]] = defaultdict(Counter)
        for token, phone in frames["train"]:
            counts[token][phone] += 1
        maps[speaker] = {token: c.most_common(1)[0][0] for token, c in counts.items()}
        if frames["heldout"]:
            tests[speaker] = frames["heldout"]
    score = {(a, b): _mean([m.get(t) == p for t, p in tests[b]]) for a, m in maps.items() for b in tests}
    chance = [Counter(p for _, p in test).most_common(1)[0][1] / len(test) for test in tests.values()]
    return (
        _mean([v for (a, b), v in score.items() if a == b]),
        _mean([v for (a, b), v in score.items() if a != b]),
        _mean(chance),
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan
