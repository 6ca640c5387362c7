"""Arms against the baseline item by item: the rows of item_pairs.csv, made while a study is collected (docs/columns.md).

A pair is an arm's run and the baseline's of the same match group (or budget), size and seed, both of which enter fits, on an item
set that both were evaluated on at their final step by the same score. Each pair is McNemar's exact test and a paired bootstrap
(`analysis.item_pairs`). A study makes many: `p_holm` are Holm's (1979) p-values over all of them, which keep the chance of one
false difference among all at the level asked. Answers under aligned patches are made from the future, so they are in no pair.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

BASELINE = "baseline"
PAIR_COLUMNS = [
    *(
        "arm",
        "run_id",
        "baseline_run_id",
        "size",
        "seed",
        "match_group",
        "flops_budget",
        "task",
        "direction",
        "score",
        "items_id",
    ),
    *("n_items", "accuracy", "baseline_accuracy", "difference", "low", "high", "level", "only_arm", "only_baseline", "p_value"),
    *("p_holm", "tests"),
]
Key = tuple[str, str, str, str]  # task, direction, score, items_id


@dataclass(frozen=True)
class Answers:
    """A run's answers on one item set, a bit an item, in the order of the items' names."""

    items: bytes  # hash of the names
    count: int
    right: np.ndarray  # packed bits

    def bits(self) -> np.ndarray:
        return np.unpackbits(self.right, count=self.count).astype(bool)


def answers_of(items: Sequence[Mapping[str, Any]], step: int, branch: int | None) -> dict[Key, Answers]:
    """A run's answers at its final step, by item set; of several evaluations of one set the first by its folder's name."""
    found: dict[Key, dict[str, Mapping[str, Any]]] = {}
    chosen: dict[Key, Any] = {}
    for row in items:
        if row["step"] != step or row.get("branch") != branch or row.get("conditional"):
            continue
        key = (row["task"], row["direction"], str(row.get("score") or ""), str(row.get("items_id") or ""))
        if chosen.setdefault(key, row.get("evaluation")) == row.get("evaluation"):
            found.setdefault(key, {})[str(row["item"])] = row
    return {key: _packed(rows) for key, rows in found.items()}


def _packed(rows: Mapping[str, Mapping[str, Any]]) -> Answers:
    names = sorted(rows)
    digest = hashlib.sha256("\0".join(names).encode()).digest()
    return Answers(digest, len(names), np.packbits([bool(rows[name]["correct"]) for name in names]))


def pair_rows(runs: Sequence[Mapping[str, Any]], answers: Mapping[str, Mapping[Key, Answers]]) -> list[dict[str, Any]]:
    """The rows of item_pairs.csv, of runs (rows of runs.csv) whose answers are known by run_id."""
    known = [run for run in runs if not run["excluded"] and answers.get(run["run_id"])]
    baselines: dict[tuple[str, ...], Mapping[str, Any]] = {}
    for run in known:
        if run["arm"] == BASELINE:
            baselines.setdefault(_place(run), run)
    found = []
    for run in known:
        other = baselines.get(_place(run))
        if run["arm"] != BASELINE and other is not None:
            found += _pairs(run, other, answers[run["run_id"]], answers[other["run_id"]])
    for row, p in zip(found, holm([row["p_value"] for row in found]), strict=True):
        row |= {"p_holm": p, "tests": len(found)}
    return found


def _place(run: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(value) for value in (run.get("match_group") or run.get("flops_budget"), run["size"], run.get("seed")))


def _pairs(
    run: Mapping[str, Any], other: Mapping[str, Any], ours: Mapping[Key, Answers], theirs: Mapping[Key, Answers]
) -> list[dict[str, Any]]:
    from analysis.item_pairs import compare  # scipy

    found = []
    for key, mine in ours.items():
        if key not in theirs or theirs[key].items != mine.items:
            continue
        task, direction, score, items_id = key
        pair = compare(mine.bits(), theirs[key].bits(), task=task, direction=direction, score=score, conditional=False)
        found.append(
            {name: run.get(name) for name in ("arm", "run_id", "size", "seed", "match_group", "flops_budget")}
            | {"baseline_run_id": other["run_id"], "items_id": items_id or None, "score": score or None}
            | {"task": task, "direction": direction, "n_items": pair.n_items, "accuracy": pair.accuracy_a}
            | {"baseline_accuracy": pair.accuracy_b, "difference": pair.difference, "level": pair.level}
            | {"low": pair.interval[0], "high": pair.interval[1], "p_value": pair.p_value}
            | {"only_arm": pair.only_a, "only_baseline": pair.only_b}
        )
    return found


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down p-values: the k-th smallest of m times (m - k + 1), no smaller than the one before, at most 1."""
    adjusted = [1.0] * len(p_values)
    so_far = 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        so_far = max(so_far, min(1.0, p_values[index] * (len(p_values) - place)))
        adjusted[index] = so_far
    return adjusted
