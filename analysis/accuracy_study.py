"""A study's accuracies: as laws of loss and of compute, and each arm against the baseline, by compute and item by item.

For each arm, task and direction: sigmoids in the loss of the direction's modality and in ln C (`analysis.accuracy_fit`).
Against the baseline: the compute multiplier in accuracy (`analysis.endpoints`), from each budget's run of least loss, chosen by
its loss so that no lucky accuracy is picked; and matched runs on the same items (`analysis.item_pairs`). Evaluations of one kind
alone enter a law or a comparison (`analysis.evaluation_kinds`). What the data refuse is a sentence in `warnings`. Not here:
accuracies with their intervals (`analysis.accuracy`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.accuracy import accuracies, evaluated
from analysis.accuracy_fit import fit_accuracy
from analysis.collect import ITEMS, made_anew
from analysis.endpoints import accuracy_multiplier
from analysis.evaluation_kinds import KIND, TASK, choices, described, lacking, of_common_kind, of_own_kind, with_kinds
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
    """The keys accuracies, accuracy_laws and accuracy_comparisons of fits.json, and `warnings`: which evaluations count
    where there are several; `tables` hold each target's final losses."""
    every = evaluated(runs, results)
    first = of_own_kind(every)
    found: dict[str, Any] = {"accuracies": accuracies(first, level=options.level), "accuracy_laws": []}
    found |= {"accuracy_comparisons": [], "warnings": choices(every)}
    items = _items(folder, runs)
    for names, rows in every[every["chance"].notna()].groupby(TASK, sort=False):
        task, direction = (str(name) for name in names)
        target = LOSS_OF.get(direction) or next((t for t in MIXED if len(tables[t])), MIXED[-1])
        about = {"task": task, "direction": direction, "loss_target": target, "flops_convention": options.c}
        joined = _with_loss(rows, tables[target])
        for arm in joined["arm"].unique():
            own = joined[joined["arm"] == arm]
            found["accuracy_laws"].append({"arm": arm} | about | _laws(own, options, about))
        for arm in compared:
            if (joined["arm"] == arm).any() and (joined["arm"] == options.baseline).any():
                entry = _comparison(joined, arm, runs, items, options, about)
                found["accuracy_comparisons"].append({"baseline": options.baseline, "arm": arm} | about | entry)
    return found


def _with_loss(rows: pd.DataFrame, losses: pd.DataFrame) -> pd.DataFrame:
    """Accuracies of runs that have a final held-out loss, with it and with FLOPs as the study counts them."""
    kept = rows.drop(columns=["train_flops", "flops_budget"]).rename(columns={"value": "accuracy"})
    columns = ["run_id", "loss", "flops_budget", "train_flops"]
    return kept.merge(losses.reindex(columns=columns), on="run_id")


def _generator(options: FitOptions, *names: str) -> np.random.Generator:
    return np.random.default_rng([options.seed, *"/".join(names).encode()])


def _tried(warnings: list[str], what: str, work: Callable[[], Any]) -> Any:
    try:
        return work()
    except FitError as refusal:
        warnings.append(f"no {what}: {refusal}")
        return None


def _laws(rows: pd.DataFrame, options: FitOptions, about: dict[str, str]) -> dict[str, Any]:
    """Both sigmoids of an arm, JSON without samples, or null with the refusal among `warnings`; of its own kind."""
    every, rows = rows, of_own_kind(rows)
    warnings = lacking(every, rows)
    chance, arm = float(rows["chance"].iloc[0]), str(rows["arm"].iloc[0])
    found: dict[str, Any] = {"chance": chance, "evaluated": described(rows.iloc[0])}
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
    rows: pd.DataFrame, arm: str, runs: pd.DataFrame, items: pd.DataFrame, options: FitOptions, about: dict[str, str]
) -> dict[str, Any]:
    """Of the one kind of evaluation that counts for both arms; nulls with the refusal where they have none."""
    warnings: list[str] = []
    arms = [options.baseline, arm]
    pair = _tried(warnings, "comparison of accuracies", lambda: of_common_kind(rows, arms))
    if pair is None:
        return {"evaluated": None, "curve": None, "items": None, "warnings": warnings}
    warnings += lacking(rows[rows["arm"].isin(arms)], pair)
    best = pair.sort_values("loss", kind="stable").drop_duplicates(["arm", "flops_budget"])
    rng = _generator(options, "accuracy multiplier", arm, about["task"], about["direction"])
    settings: dict[str, Any] = {"baseline": options.baseline, "level": options.level, "rng": rng}
    settings |= {"chance": float(pair["chance"].iloc[0]), "draws": max(options.resamples, LEAST_DRAWS)}
    curve = _tried(warnings, "compute multiplier in accuracy", lambda: accuracy_multiplier(best, arm, **settings))
    matched = matched_runs(runs[runs["run_id"].isin(pair["run_id"])], arm, baseline=options.baseline)
    answers = items.merge(pair[[*TASK, *KIND]].drop_duplicates(), on=[*TASK, *KIND])
    paired = _tried(warnings, "comparison item by item", lambda: paired_by_item(answers, matched, level=options.level))
    told = {"evaluated": described(pair.iloc[0]), "curve": None if curve is None else curve.to_json()}
    return told | {"items": paired, "warnings": warnings}


def _items(folder: Path, runs: pd.DataFrame) -> pd.DataFrame:
    """Single answers at each run's final step, as `collect` wrote them; no rows where there are none."""
    path, columns = folder / ITEMS, ["run_id", "step", *TASK, "item", "correct", *KIND]
    if not path.is_file():
        return pd.DataFrame(columns=columns)
    try:
        found = pd.read_parquet(path, columns=columns)
    except (OSError, ValueError) as error:
        told = str(error).splitlines()[0]
        raise FitError(f"'{path}' is no readable table ({told}); {made_anew(folder)}") from error
    found = found[found["correct"].notna()].merge(runs[["run_id", "step"]], on=["run_id", "step"])
    return with_kinds(found).drop_duplicates(["run_id", *TASK, *KIND, "item"])
