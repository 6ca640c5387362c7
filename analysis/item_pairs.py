"""Two evaluations on the same items, paired: does one model answer more of them than the other?

    python -m analysis.item_pairs EVALUATION_A EVALUATION_B [--json]

Folders of `python -m lst.evals choices` or `representations`, or of runs, whose items.jsonl are compared item by item
(docs/evaluation.md). With b items that A alone has right and c that B alone has, of n: the difference of accuracies is
(b - c) / n; McNemar's exact test asks how likely a split as uneven as b : c is by fair coins (McNemar 1947; two-sided binomial);
the interval is the paired bootstrap's (Efron 1979): percentiles of the difference over items drawn anew. Both speak of the items,
not of seeds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from analysis.pairs import mean_interval
from analysis.run_files import options_of
from lst import records
from lst.command import ended
from lst.errors import FitError

LEVEL, RESAMPLES, SEED = 0.95, 10_000, 0
ASKED = ("right", "label")  # what of an item's record says which answer is right: its ending's place, or a probe's label
Answers = dict[tuple[str, str, str], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class PairedAccuracy:
    """One task and direction. `a` and `b` are the two evaluations."""

    task: str
    direction: str
    score: str  # by which both decide
    n_items: int
    accuracy_a: float
    accuracy_b: float
    only_a: int  # items that a alone has right
    only_b: int
    difference: float  # accuracy_a - accuracy_b
    interval: tuple[float, float]  # of the difference: paired bootstrap over items
    student: list[float] | None  # of the difference: Student's t over items (analysis.pairs)
    level: float
    p_value: float  # McNemar's exact test; 1 where the two differ nowhere
    conditional: bool  # one of them was scored under aligned patches: no fair comparison
    otherwise: tuple[str, ...] = ()  # options in which the two evaluations differ, as "join: straddle and closed"


def paired_accuracies(
    a: Path, b: Path, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = SEED
) -> list[PairedAccuracy]:
    """All tasks and directions that both folders have. Raises FitError where their items or scores are not the same."""
    ours, theirs = read_answers(a), read_answers(b)
    otherwise = _differing_options(a, b)
    shared = {key[:2] for key in ours} & {key[:2] for key in theirs}
    if not shared:
        raise FitError(f"'{a}' and '{b}' share no task and direction; evaluate both on one item set.")
    found = []
    for task, direction in dict.fromkeys(key[:2] for key in ours if key[:2] in shared):
        keys = [key for key in ours if key[:2] == (task, direction)]
        others = {key for key in theirs if key[:2] == (task, direction)}
        lonely = sorted(set(keys) ^ others)
        if lonely:
            raise FitError(
                f"item '{lonely[0][2]}' of {task} {direction} is in one of '{a}' and '{b}' alone; evaluate both on one item set."
            )
        rows = [(ours[key], theirs[key]) for key in keys]
        other = next((x for x, y in rows if any(x.get(name) != y.get(name) for name in ASKED)), None)
        if other is not None:
            raise FitError(
                f"item '{other['item']}' of {task} {direction} asks for another answer in '{a}' than in '{b}'; evaluate both on "
                "one item set, with the same options."
            )
        if any(x["score"] != y["score"] for x, y in rows):
            raise FitError(
                f"'{a}' decides by {rows[0][0]['score']} and '{b}' by {rows[0][1]['score']}; give both the same score."
            )
        found.append(replace(_compared(task, direction, rows, level, resamples, seed), otherwise=otherwise))
    return found


def read_answers(folder: Path) -> Answers:
    """The items of an evaluation, or of a run's last step, by task, direction and id. Raises FitError where there are none."""
    whole = (folder / records.EVALUATION_CARD).is_file()  # an evaluation is of one step, maybe of a branch
    rows = [r for r in records.iter_jsonl(folder / records.ITEM_RECORDS) if "correct" in r and (whole or "branch" not in r)]
    last = max((r.get("step", 0) for r in rows), default=0)
    found = {(str(r["task"]), str(r["direction"]), str(r["item"])): r for r in rows if r.get("step", 0) == last}
    if not found:
        raise FitError(f"'{folder}' has no items in its {records.ITEM_RECORDS}; give a folder of python -m lst.evals choices.")
    return found


def _differing_options(a: Path, b: Path) -> tuple[str, ...]:
    """Of two evaluations, or of two runs. Raises FitError where they are of other item sets, or of other data."""
    ours, theirs = _asked(a), _asked(b)
    if not ours or not theirs or ("data_id" in ours) != ("data_id" in theirs):
        return ()
    for name in ("items_id", "test", "data_id"):
        if ours.get(name) != theirs.get(name):
            raise FitError(
                f"'{a}' is of other items than '{b}' ({name} {ours.get(name)} and {theirs.get(name)}); evaluate both on one item "
                "set."
            )
    differ = (name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name) and name not in ("score", "task"))
    return tuple(f"{name}: {ours.get(name)} and {theirs.get(name)}" for name in differ)


def _asked(folder: Path) -> dict[str, Any]:
    """What was asked in an evaluation, and how; of a run its data set, whose stories they are. Empty where nothing tells."""
    card = records.read_json(folder / records.EVALUATION_CARD)
    if card is not None:
        return options_of(card["decided_by"]) if isinstance(card.get("decided_by"), dict) else {}
    if not (folder / records.RUN_CONFIG).is_file():
        return {}
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError  # type: ignore[import-untyped]

    try:
        data_id = OmegaConf.select(OmegaConf.load(folder / records.RUN_CONFIG), "config.data.data_id")
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        raise FitError(f"'{folder / records.RUN_CONFIG}' cannot be read; copy the run's folder again.") from error
    return {"data_id": data_id}


def _compared(
    task: str, direction: str, rows: Sequence[tuple[dict[str, Any], dict[str, Any]]], level: float, resamples: int, seed: int
) -> PairedAccuracy:
    a, b = (np.array([bool(row[i]["correct"]) for row in rows]) for i in (0, 1))
    conditional = any(x.get("conditional", False) or y.get("conditional", False) for x, y in rows)
    return compare(a, b, task=task, direction=direction, score=str(rows[0][0]["score"]), conditional=conditional, level=level,
                   resamples=resamples, seed=seed)  # fmt: skip


def compare(
    a: np.ndarray, b: np.ndarray, *, task: str, direction: str, score: str, conditional: bool, level: float = LEVEL,
    resamples: int = RESAMPLES, seed: int = SEED,
) -> PairedAccuracy:  # fmt: skip
    """Two models on the same items: (n,) whether `a` and `b` answer each right."""
    n, only_a, only_b = len(a), int((a & ~b).sum()), int((b & ~a).sum())
    shares = np.array([only_a, only_b, n - only_a - only_b]) / n
    drawn = np.random.Generator(np.random.Philox(key=seed)).multinomial(n, shares, resamples)
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / n, [0.5 - level / 2, 0.5 + level / 2])
    different = only_a + only_b
    return PairedAccuracy(
        task=task,
        direction=direction,
        score=score,
        n_items=n,
        accuracy_a=float(a.mean()),
        accuracy_b=float(b.mean()),
        only_a=only_a,
        only_b=only_b,
        difference=(only_a - only_b) / n,
        interval=(float(low), float(high)),
        student=mean_interval((a.astype(float) - b).tolist(), level),
        level=level,
        p_value=float(stats.binomtest(only_a, different).pvalue) if different else 1.0,
        conditional=conditional,
    )


def paired_by_item(items: pd.DataFrame, matched: pd.DataFrame, *, level: float) -> dict[str, Any]:
    """Matched runs of two arms on the same items: the arm's accuracy minus the baseline's, over pairs and items.

    `items` has run_id, item, correct of one task and direction; `matched` has run_id and run_id_baseline. With d_pi in -1, 0, 1
    the difference of pair p at item i, the mean of m pairs over n items has the variance s_pairs^2 / m + s_items^2 / n, of the
    pairs' means and of the items' means: seeds and items are both drawn (two-way, Cameron, Gelbach and Miller 2011, but with
    nothing taken off, so rather too wide); Student's quantile has m - 1 degrees of freedom. One pair tells nothing of seeds: it
    has no interval, and McNemar's test, which speaks of items alone. Raises FitError where no pair has answered the same items.
    """
    if not len(items):
        raise FitError("there are no answers to single items (an imported study has none): accuracies alone can be compared.")
    answered = set(items["run_id"])
    both = matched[matched["run_id"].isin(answered) & matched["run_id_baseline"].isin(answered)]
    if not len(both):
        raise FitError("no two matched runs have answered the same items; evaluate them on one item set.")
    used = items[items["run_id"].isin([*both["run_id"], *both["run_id_baseline"]])]
    right = used.assign(correct=used["correct"].astype(float)).pivot(index="run_id", columns="item", values="correct")
    right = right.loc[:, right.notna().all()]
    if not right.shape[1]:
        raise FitError("matched runs have no item in common; evaluate them on one item set.")
    gaps = right.loc[both["run_id"]].to_numpy() - right.loc[both["run_id_baseline"]].to_numpy()  # (m, n)
    pairs, count = gaps.shape
    mean, means = float(gaps.mean()), gaps.mean(1)
    ups, downs = int((gaps > 0).sum()), int((gaps < 0).sum())
    found: dict[str, Any] = {"pairs": pairs, "n_items": count, "difference": mean, "level": level, "interval": None, "p": None}
    found |= {"only_arm": ups, "only_baseline": downs, "differences": means.tolist()}
    found["mcnemar_p"] = float(stats.binomtest(ups, ups + downs).pvalue) if pairs == 1 and ups + downs else None
    if pairs > 1 and count > 1:
        error = float(np.sqrt(means.var(ddof=1) / pairs + gaps.mean(0).var(ddof=1) / count))
        half = float(stats.t.ppf(0.5 + level / 2, pairs - 1)) * error
        found["interval"] = [max(mean - half, -1.0), min(mean + half, 1.0)]  # no difference of accuracies lies beyond
        found["p"] = float(2 * stats.t.sf(abs(mean) / error, pairs - 1)) if error > 0 else 1.0
    return found


def describe(found: Sequence[PairedAccuracy]) -> str:
    """A line a task and direction."""
    lines = []
    for r in found:
        numbers = f"{100 * r.accuracy_a:.1f}% against {100 * r.accuracy_b:.1f}% of {r.n_items:,} items by {r.score}"
        low, high = (100 * v for v in r.interval)
        gap = f"{100 * r.difference:+.1f} points ({low:+.1f} .. {high:+.1f}, {100 * r.level:g}%)"
        note = "; conditional on alignments: no fair comparison" if r.conditional else ""
        note += f"; scored otherwise ({'; '.join(r.otherwise)})" if r.otherwise else ""
        lines.append(f"{r.task} {r.direction}: {numbers}; {gap}, {r.only_a} : {r.only_b}, McNemar p = {r.p_value:.2g}{note}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit status."""
    return ended("error", lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.item_pairs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("a", metavar="EVALUATION_A", type=Path)
    parser.add_argument("b", metavar="EVALUATION_B", type=Path)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parser.parse_args(argv)
    found = paired_accuracies(options.a, options.b)
    print(json.dumps([asdict(r) for r in found], indent=1) if options.json else describe(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
