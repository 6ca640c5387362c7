"""Arms against each other item by item: the rows of item_pairs.csv, made while a study is collected (docs/columns.md).

Two runs of one match group (or budget), size and seed are compared, both of which enter fits, on an item set that both were
evaluated on at their final step by the same score and options (context, join, noise, precision): each arm against the baseline,
or, where no baseline has answered these items, each arm against each that stands before it in the plan. Each pair is McNemar's
exact test and a paired bootstrap (`analysis.item_pairs`). A study makes many: `p_holm` are Holm's (1979) p-values over all of
them, which keep the chance of one false difference among all at the level asked. Answers under aligned patches are made from the
future, so they are paired with answers under aligned patches alone (`conditional`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

BASELINE = "baseline"
PAIR_COLUMNS = [
    *(
        "arm",
        "run_id",
        "against",
        "baseline_run_id",
        "evaluation",
        "baseline_evaluation",
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
    *("p_holm", "tests", "conditional"),
]
Key = tuple[str, str, str, str, str, bool]  # task, direction, score, items_id, options, conditional


@dataclass(frozen=True)
class Answers:
    """A run's answers on one item set, a bit an item, in the order of the items' names."""

    items: bytes  # hash of the names, and of what each asks for where its record tells (a probe's label)
    count: int
    right: np.ndarray  # packed bits
    evaluation: str = ""  # its id; "": the trainer's own

    def bits(self) -> np.ndarray:
        return np.unpackbits(self.right, count=self.count).astype(bool)


def answers_of(items: Sequence[Mapping[str, Any]], step: int, branch: int | None) -> dict[Key, Answers]:
    """A run's answers at its final step, by item set and options."""
    found: dict[Key, dict[str, Mapping[str, Any]]] = {}
    chosen: dict[Key, Any] = {}
    for row in items:
        if row["step"] != step or row.get("branch") != branch:
            continue
        words = (str(row.get(name) or "") for name in ("task", "direction", "score", "items_id", "options"))
        key: Key = (*words, bool(row.get("conditional")))  # type: ignore[assignment]
        if chosen.setdefault(key, row.get("evaluation")) == row.get("evaluation"):
            found.setdefault(key, {})[str(row["item"])] = row
    return {key: _packed(rows) for key, rows in found.items()}


def _packed(rows: Mapping[str, Mapping[str, Any]]) -> Answers:
    names = sorted(rows)
    digest = hashlib.sha256("\0".join(f"{name}\0{rows[name].get('label', '')}" for name in names).encode()).digest()
    bits = np.packbits([bool(rows[name]["correct"]) for name in names])
    return Answers(digest, len(names), bits, str(next(iter(rows.values())).get("evaluation") or ""))


def pair_rows(runs: Sequence[Mapping[str, Any]], answers: Mapping[str, Mapping[Key, Answers]]) -> list[dict[str, Any]]:
    """The rows of item_pairs.csv, of runs (rows of runs.csv) whose answers are known by run_id."""
    found = [row for beside in _beside(runs, answers) for row in _pairs(beside, answers)]
    for row, p in zip(found, holm([row["p_value"] for row in found]), strict=True):
        row |= {"p_holm": p, "tests": len(found)}
    return found


def unpaired(runs: Sequence[Mapping[str, Any]], answers: Mapping[str, Mapping[Key, Answers]]) -> list[str]:
    """A sentence for arms whose runs, beside each other, answered one item set by no common score and options."""
    lost: dict[tuple[str, ...], int] = {}
    for beside in _beside(runs, answers):
        ways = {run["run_id"]: _ways(answers[run["run_id"]]) for run in beside}
        for place, run in enumerate(beside):
            for other in (o for o in beside[:place] if o["arm"] != run["arm"]):
                ours, theirs = ways[run["run_id"]], ways[other["run_id"]]
                for task, direction, *_ in (of for of in ours if of in theirs and not ours[of] & theirs[of]):
                    named = (task, direction, run["arm"], other["arm"])
                    lost[named] = lost.get(named, 0) + 1
    return [
        f"{task} {direction}: {count} {'pair' if count == 1 else 'pairs'} of runs ({arm} and {other}) answered one item set by "
        "no common score and options, so item_pairs.csv has no row of them; evaluate both alike."
        for (task, direction, arm, other), count in lost.items()
    ]


def _ways(answers: Mapping[Key, Answers]) -> dict[tuple[str, str, str, bool], set[tuple[str, str]]]:
    """Task, direction, items and whether alignments were seen -> each score and options by which they were answered."""
    found: dict[tuple[str, str, str, bool], set[tuple[str, str]]] = {}
    for task, direction, score, items_id, options, conditional in answers:
        found.setdefault((task, direction, items_id, conditional), set()).add((score, options))
    return found


def _beside(runs: Sequence[Mapping[str, Any]], answers: Mapping[str, Mapping[Key, Answers]]) -> Iterable[list[Mapping[str, Any]]]:
    """The runs that enter fits and have answers, those that stand beside each other together, a baseline first."""
    places: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for run in runs:
        if not run["excluded"] and answers.get(run["run_id"]):
            places.setdefault(_place(run), []).append(run)
    return [sorted(beside, key=lambda run: run["arm"] != BASELINE) for beside in places.values()]


def _place(run: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(value) for value in (run.get("match_group") or run.get("flops_budget"), run["size"], run.get("seed")))


def _pairs(beside: Sequence[Mapping[str, Any]], answers: Mapping[str, Mapping[Key, Answers]]) -> Iterator[dict[str, Any]]:
    """The rows of runs that stand beside each other, a baseline first."""
    for place, run in enumerate(beside):
        for key, mine in answers[run["run_id"]].items():
            before = [o for o in beside[:place] if o["arm"] != run["arm"] and _same(mine, answers[o["run_id"]].get(key))]
            others = before[:1] if before and before[0]["arm"] == BASELINE else before
            for other in others:
                yield _row(run, other, key, mine, answers[other["run_id"]][key])


def _same(ours: Answers, theirs: Answers | None) -> bool:
    return theirs is not None and theirs.items == ours.items


def _row(run: Mapping[str, Any], other: Mapping[str, Any], key: Key, ours: Answers, theirs: Answers) -> dict[str, Any]:
    from analysis.item_pairs import compare  # scipy

    task, direction, score, items_id, _, conditional = key
    pair = compare(ours.bits(), theirs.bits(), task=task, direction=direction, score=score, conditional=conditional)
    return (
        {name: run.get(name) for name in ("arm", "run_id", "size", "seed", "match_group", "flops_budget")}
        | {"against": other["arm"], "baseline_run_id": other["run_id"], "items_id": items_id or None, "score": score or None}
        | {"evaluation": ours.evaluation or None, "baseline_evaluation": theirs.evaluation or None}
        | {"task": task, "direction": direction, "n_items": pair.n_items, "accuracy": pair.accuracy_a}
        | {"baseline_accuracy": pair.accuracy_b, "difference": pair.difference, "level": pair.level}
        | {"low": pair.interval[0], "high": pair.interval[1], "p_value": pair.p_value}
        | {"only_arm": pair.only_a, "only_baseline": pair.only_b, "conditional": conditional}
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down p-values: the k-th smallest of m times (m - k + 1), no smaller than the one before, at most 1."""
    adjusted = [1.0] * len(p_values)
    so_far = 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        so_far = max(so_far, min(1.0, p_values[index] * (len(p_values) - place)))
        adjusted[index] = so_far
    return adjusted
