"""A study's accuracies: as laws of loss and of compute, and each arm against the baseline, by compute and item by item.

For each arm, task and direction: sigmoids in the loss of the direction's modality and in ln C (`analysis.accuracy_fit`).
Against the baseline: the compute multiplier in accuracy (`analysis.endpoints`), from each budget's run of least loss, chosen by
its loss so that no lucky accuracy is picked; and matched runs on the same items (`analysis.item_pairs`). What the data refuse is
a sentence in `warnings`. Not here: accuracies with their intervals (`analysis.accuracy`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.accuracy import accuracies
from analysis.accuracy_fit import fit_accuracy
from analysis.collect import ITEMS, made_anew
from analysis.endpoints import accuracy_multiplier
from analysis.form_results import FormFit
from analysis.item_pairs import paired_by_item
from analysis.pairs import matched_runs
from lst.errors import FitError

if TYPE_CHECKING:
    from analysis.study import FitOptions

LOSS_OF = {"S->S": "speech", "T->T": "text"}
"""Direction -> the held-out loss that its accuracy is a law of; other directions: `MIXED`, the first that was evaluated."""
MIXED = ("interleaved", "mixture")
LEAST_DRAWS, BAND_POINTS = 100, 25


def accuracy_parts(
    folder: Path,
    runs: pd.DataFrame,
    results: pd.DataFrame,
    tables: dict[str, pd.DataFrame],
    compared: list[str],
    options: FitOptions,
) -> dict[str, Any]:
    """The keys accuracies, accuracy_laws and accuracy_comparisons of fits.json; `tables` hold each target's final losses."""
    scores = accuracies(runs, results, level=options.level)
    found: dict[str, Any] = {"accuracies": scores, "accuracy_laws": [], "accuracy_comparisons": []}
    known = pd.DataFrame([s for s in scores if s["chance"] is not None])
    if not len(known):
        return found
    items = _items(folder, runs)
    for names, rows in known.groupby(["task", "direction"], sort=False):
        task, direction = (str(name) for name in names)
        target = LOSS_OF.get(direction) or next((t for t in MIXED if len(tables[t])), MIXED[-1])
        columns = ["run_id", "loss", "flops_budget", "train_flops"]
        joined = rows.drop(columns="train_flops").merge(tables[target].reindex(columns=columns), on="run_id")
        about = {"task": task, "direction": direction, "loss_target": target, "flops_convention": options.c}
        for arm in joined["arm"].unique():
            found["accuracy_laws"].append({"arm": arm} | about | _laws(joined[joined["arm"] == arm], options, about))
        for arm in compared:
            if (joined["arm"] == arm).any() and (joined["arm"] == options.baseline).any():
                pair = joined[joined["arm"].isin([options.baseline, arm])]
                of = items[(items["task"] == task) & (items["direction"] == direction)]
                entry = _comparison(pair, arm, runs, of, options, about)
                found["accuracy_comparisons"].append({"baseline": options.baseline, "arm": arm} | about | entry)
    return found


def _generator(options: FitOptions, *names: str) -> np.random.Generator:
    return np.random.default_rng([options.seed, *"/".join(names).encode()])


def _tried(warnings: list[str], what: str, work: Callable[[], Any]) -> Any:
    try:
        return work()
    except FitError as refusal:
        warnings.append(f"no {what}: {refusal}")
        return None


def _laws(rows: pd.DataFrame, options: FitOptions, about: dict[str, str]) -> dict[str, Any]:
    """Both sigmoids of an arm, JSON without samples, or null with the refusal among `warnings`."""
    warnings: list[str] = []
    chance, arm = float(rows["chance"].iloc[0]), str(rows["arm"].iloc[0])
    found: dict[str, Any] = {"chance": chance}
    for against in ("loss", "flops"):
        rng = _generator(options, "accuracy", against, arm, about["task"], about["direction"])
        law = _tried(
            warnings,
            f"law of accuracy in {against}",
            lambda a=against, g=rng: fit_accuracy(rows, chance=chance, against=a, rng=g, **options.bootstrap),  # type: ignore[misc]
        )
        found[f"of_{against}"] = None if law is None else law.to_json(samples=False)
        found[f"of_{against}_band"] = None if law is None else _band(law, against)
    return found | {"warnings": warnings}


def _band(law: FormFit, against: str) -> dict[str, list[float]] | None:
    """The law's interval along the data: `at` (losses, or FLOPs), `low` and `high`; None where it was not resampled."""
    if law.samples is None:
        return None
    at = np.geomspace(*law.ranges[against], BAND_POINTS)
    low, high = np.array([law.interval("value", x) for x in at]).T
    return {"at": at.tolist(), "low": low.tolist(), "high": high.tolist()}


def _comparison(
    pair: pd.DataFrame, arm: str, runs: pd.DataFrame, items: pd.DataFrame, options: FitOptions, about: dict[str, str]
) -> dict[str, Any]:
    warnings: list[str] = []
    best = pair.sort_values("loss", kind="stable").drop_duplicates(["arm", "flops_budget"])
    rng = _generator(options, "accuracy multiplier", arm, about["task"], about["direction"])
    settings: dict[str, Any] = {"baseline": options.baseline, "level": options.level, "rng": rng}
    settings |= {"chance": float(pair["chance"].iloc[0]), "draws": max(options.resamples, LEAST_DRAWS)}
    curve = _tried(warnings, "compute multiplier in accuracy", lambda: accuracy_multiplier(best, arm, **settings))
    matched = matched_runs(runs[runs["run_id"].isin(pair["run_id"])], arm, baseline=options.baseline)

    def by_item() -> dict[str, Any]:
        ids = sorted(set(items.loc[items["run_id"].isin(pair["run_id"]), "items_id"].dropna()))
        if len(ids) > 1:
            raise FitError(f"the runs have answers to {len(ids)} item sets ({', '.join(ids)}); evaluate them on one.")
        return paired_by_item(items, matched, level=options.level)

    paired = _tried(warnings, "comparison item by item", by_item)
    return {"curve": None if curve is None else curve.to_json(), "items": paired, "warnings": warnings}


def _items(folder: Path, runs: pd.DataFrame) -> pd.DataFrame:
    """Single answers at each run's final step, as `collect` wrote them; no rows where there are none."""
    path, columns = folder / ITEMS, ["run_id", "step", "task", "direction", "item", "correct", "items_id"]
    if not path.is_file():
        return pd.DataFrame(columns=columns)
    try:
        found = pd.read_parquet(path, columns=columns)
    except (OSError, ValueError) as error:
        told = str(error).splitlines()[0]
        raise FitError(f"'{path}' is no readable table ({told}); {made_anew(folder)}") from error
    found = found[found["correct"].notna()].merge(runs[["run_id", "step"]], on=["run_id", "step"])
    return found.drop_duplicates(["run_id", "task", "direction", "item"])  # of several evaluations the first, as in `accuracies`
