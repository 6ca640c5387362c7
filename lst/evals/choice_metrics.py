"""From records of choice items (lst.evals.choices) to metrics: accuracy, and all that a reader must know beside it.

Functions of the records alone, so that a resumed or a repeated evaluation ends with the same metrics.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lst.evals.choices import decide, record_scores
from lst.evals.heldout import Metric

STATED = ("score", "join", "patching", "conditional")
"""What decides a score beside the model and the item: it stands in each metric too."""
Record = Mapping[str, Any]


def choice_metrics(records: Sequence[Record]) -> list[Metric]:
    """The metrics of each task and direction, in the records' order, and the accuracy of each group of a task."""
    keys = dict.fromkeys((r["task"], r["direction"]) for r in records)
    return [m for key in keys for m in _task_metrics(*key, [r for r in records if (r["task"], r["direction"]) == key])]


def _task_metrics(task: str, direction: str, rows: Sequence[Record]) -> Iterator[Metric]:
    about = {name: rows[0][name] for name in STATED}

    def metric(name: str, value: float, of: Sequence[Record], part: str = "") -> Metric:
        return Metric(task=task + part, direction=direction, metric=name, value=value, n_items=len(of), about=about)

    for name, value in (_accuracies(rows) | _counts(rows) | _means(rows)).items():
        yield metric(name, value, rows)
    for group in dict.fromkeys(r["group"] for r in rows if "group" in r):
        part = [r for r in rows if r.get("group") == group]
        yield metric("accuracy", _share(part), part, f"/{group}")


def _accuracies(rows: Sequence[Record]) -> dict[str, float]:
    """`accuracy` by the deciding score, what guessing gives, and the accuracies that the other scores would give."""
    values = {
        "accuracy": _share(rows),
        "chance": math.fsum(1 / len(r["scores"]) for r in rows) / len(rows),
        "accuracy_ties_half": _mean_of_pairs(rows),
    }
    tables = [(record_scores(r), r["right"]) for r in rows]
    shared = [name for name in tables[0][0] if all(name in table for table, _ in tables)]
    for name in (name for name in shared if name != rows[0]["score"]):
        values[f"accuracy_{name}"] = sum(decide(table[name], right)[0] for table, right in tables) / len(rows)
    return values


def _counts(rows: Sequence[Record]) -> dict[str, float]:
    return {
        "ties": sum(r["tie"] for r in rows),
        "truncated": sum(r["truncated"] > 0 for r in rows),
        "duplicate_endings": sum(r["duplicates"] > 0 for r in rows),
        "longer_than_trained": sum(r["longer_than_trained"] for r in rows),
    }


def _means(rows: Sequence[Record]) -> dict[str, float]:
    """Mean lengths of an item's context and of its endings."""

    def lengths(name: str) -> Iterator[float]:
        for row in rows:
            value = row[name]
            yield value if isinstance(value, int) else math.fsum(value) / len(value)

    names = ("context_tokens", "context_units", "ending_tokens", "ending_units")
    return {f"mean_{name}": math.fsum(lengths(name)) / len(rows) for name in names}


def _share(rows: Sequence[Record]) -> float:
    return sum(bool(r["correct"]) for r in rows) / len(rows)


def _mean_of_pairs(rows: Sequence[Record]) -> float:
    """ZeroSpeech's accuracy: a tie counts a half, and items of one pair (its voices) are averaged before the pairs are."""
    pairs: dict[Any, list[float]] = {}
    for i, row in enumerate(rows):
        pairs.setdefault(row.get("pair") or i, []).append(0.5 if row["tie"] else float(row["correct"]))
    return math.fsum(math.fsum(p) / len(p) for p in pairs.values()) / len(pairs)
