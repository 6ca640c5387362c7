"""From units of held-out speech to figures: occurrences of words as vectors, and what a linear probe reads in one unit.

A word's vector is the mean over its frames of their units' vectors; an aligned patch on just these frames is its own. A unit's
word, or phone, is the one that most of its frames belong to (at a tie the one that comes first); units of which most frames
belong to none, and to none of the labels that are told apart, are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lst.errors import DataError
from lst.evals.edit_errors import plain_english
from lst.evals.embedding_metrics import fit_probe, geometry
from lst.evals.patch_states import PLACES, UnitStates

NONE = ""  # the label of a frame that belongs to nothing
Metrics = dict[str, tuple[float, int]]  # name -> value, and of how many items
Labels = list[list[str]]  # of each utterance, of each of its units


class Occurrence(NamedTuple):
    """A word that was said."""

    word: str
    item: str  # document/first frame
    frames: int
    states: dict[str, NDArray[np.float64]]  # of each of PLACES: (G,)


def shown_occurrences(states: Sequence[UnitStates], *, words: int, letters: int, most: int, seed: int) -> list[Occurrence]:
    """Of the `words` commonest words of `letters` letters or more, at most `most` each, drawn by `seed`; word by word.

    Raises DataError where fewer than two words come twice.
    """
    found: dict[str, list[tuple[UnitStates, int, int]]] = {}
    for of in states:
        for text, (first, last) in zip(of.utterance.words, of.utterance.word_spans.tolist(), strict=True):
            word = plain_english(text)
            if sum(character.isalpha() for character in word) >= letters:
                found.setdefault(word, []).append((of, first, last))
    commonest = sorted((w for w in found if len(found[w]) > 1), key=lambda w: (-len(found[w]), w))[:words]
    if len(commonest) < 2:
        raise DataError(
            f"{len(commonest)} words of {letters} letters or more come twice in {len(states)} utterances, which is too few to "
            "compare; give fewer letters= or more utterances=."
        )
    generator = np.random.Generator(np.random.Philox(key=seed))
    shown = []
    for word in commonest:
        for i in sorted(generator.permutation(len(found[word]))[:most].tolist()):
            of, first, last = found[word][i]
            vectors = {place: of.span(place, first, last) for place in PLACES}
            shown.append(Occurrence(word, _item(of, first), last - first + 1, vectors))
    return shown


def word_metrics(shown: Sequence[Occurrence]) -> Metrics:
    """Cosines and silhouette of each place, as they are and (`centred`) without the mean vector of all."""
    names = {word: i for i, word in enumerate(dict.fromkeys(o.word for o in shown))}
    labels_N, metrics = np.array([names[o.word] for o in shown], np.int64), Metrics()
    for place in PLACES:
        vectors_NG = np.stack([o.states[place] for o in shown])
        for part, x_NG in (("", vectors_NG), ("_centred", vectors_NG - vectors_NG.mean(0))):
            found = geometry(x_NG, labels_N)
            values = {"cosine_within": found.within, "cosine_between": found.between, "silhouette": found.silhouette}
            metrics |= {f"{place}_{name}{part}": (value, len(shown)) for name, value in values.items()}
    return metrics


def word_labels(states: Sequence[UnitStates], commonest: int) -> Labels:
    """The word of each unit, of the `commonest` of all utterances; NONE for the rest."""
    counts = Counter(plain_english(text) for of in states for text in of.utterance.words)
    known = {w for w, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:commonest] if w}
    labels = []
    for of in states:
        frames = [NONE] * len(of.unit_F)
        for text, (first, last) in zip(of.utterance.words, of.utterance.word_spans.tolist(), strict=True):
            frames[first : last + 1] = [plain_english(text)] * (last + 1 - first)
        labels.append([word if word in known else NONE for word in unit_labels(of.unit_F, frames)])
    return labels


def phone_labels(states: Sequence[UnitStates], phones: Mapping[int, Sequence[str]]) -> Labels:
    """The phone of each unit; NONE in pauses, and in documents that `phones` (of each frame) has not."""
    labels = []
    for of in states:
        first, count = of.utterance.first_frame, len(of.unit_F)
        known = phones.get(of.utterance.document)
        labels.append(unit_labels(of.unit_F, list(known[first : first + count]) if known else [NONE] * count))
    return labels


def unit_labels(unit_F: NDArray[np.int64], frames: Sequence[str]) -> list[str]:
    """The label of most frames of each unit; at a tie the one that comes first."""
    counts: list[Counter[str]] = [Counter() for _ in range(int(unit_F[-1]) + 1)]
    for unit, label in zip(unit_F.tolist(), frames, strict=True):
        counts[unit][label] += 1
    return [count.most_common(1)[0][0] for count in counts]  # equal counts stay in the order in which they came


def probe(
    states: Sequence[UnitStates], name: str, labels: Labels, *, l2: float, seed: int
) -> tuple[Metrics, list[dict[str, Any]]]:
    """Accuracies on the units of half of the documents, learnt on the other half; and a record of each of these units.

    Labels that the first half has not are no item's. Raises DataError where a half has none, or a single one.
    """
    documents = sorted({of.utterance.document for of in states})
    drawn = np.random.Generator(np.random.Philox(key=[seed, 1])).permutation(len(documents))
    learnt = {documents[i] for i in drawn[: len(documents) // 2]}
    rows = [(i, unit) for i, units in enumerate(labels) for unit, label in enumerate(units) if label != NONE]
    train = [row for row in rows if states[row[0]].utterance.document in learnt]
    known = {label: k for k, label in enumerate(sorted({labels[i][unit] for i, unit in train}))}
    test = [(i, u) for i, u in rows if states[i].utterance.document not in learnt and labels[i][u] in known]
    if len(known) < 2 or not test:
        raise DataError(
            f"the probe of {name}s has {len(train)} units to learn from and {len(test)} to be tested on; give more utterances=."
        )
    y_train, y_test = (np.array([known[labels[i][u]] for i, u in part], np.int64) for part in (train, test))
    chance = float((y_test == np.bincount(y_train).argmax()).mean())
    metrics: Metrics = {f"chance_{name}": (chance, len(test)), f"classes_{name}": (float(len(known)), len(train))}
    told, items = list(known), list[dict[str, Any]]()
    for place in PLACES:
        x_train, x_test = (np.stack([states[i].states[place][u] for i, u in part]) for part in (train, test))
        predicted = fit_probe(x_train, y_train, l2=l2).predict(x_test)
        right = predicted == y_test
        metrics[f"{place}_probe_{name}"] = (float(right.mean()), len(test))
        about = {"task": f"probe_{name}_{place}", "direction": "S->S", "score": "linear_probe"}
        items += [
            about
            | {
                "item": _item(states[i], int((states[i].unit_F < u).sum())),
                "label": labels[i][u],
                "told": told[k],
                "correct": bool(r),
            }
            for (i, u), k, r in zip(test, predicted.tolist(), right.tolist(), strict=True)
        ]
    return metrics, items


def _item(of: UnitStates, frame: int) -> str:
    """The name of what begins at a frame of an utterance: its document and the frame there."""
    return f"{of.utterance.document}/{of.utterance.first_frame + frame}"
