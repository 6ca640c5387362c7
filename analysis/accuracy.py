"""Accuracies of choice tasks (stories, item sets) with binomial intervals, beside chance.

Wilson's score interval (Wilson 1927): with p the share of k right answers in n, z the normal quantile,
    (p + z^2/2n +- z sqrt(p (1 - p) / n + z^2/4n^2)) / (1 + z^2/n).
It speaks of the items drawn, not of seeds. Not here: accuracy as a law of compute, and which of several evaluations counts
(`analysis.evaluation_kinds`).
"""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from scipy import stats

from analysis.evaluation_kinds import KIND, TASK, ranked, with_kinds
from lst.errors import FitError

PREFIX = "story_"


def wilson_interval(share: float, n: float, level: float) -> tuple[float, float]:
    """Wilson's interval of a proportion `share` of `n` items. Raises FitError on what is no proportion."""
    if not (0 <= share <= 1 and n >= 1):
        raise FitError(f"an accuracy of {share} over {n} items is no proportion; give a share in 0..1 of one item or more.")
    z = float(stats.norm.ppf(0.5 + level / 2))
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def choice_rows(results: pd.DataFrame) -> pd.Series:
    """Which rows of results.csv are accuracies of choice tasks, and their chance: whole tasks, not their groups."""
    task = results["task"].astype(str)
    evaluated = results["evaluation"].notna() & ~task.str.contains("/") if "evaluation" in results else False
    return (task.str.startswith(PREFIX) | evaluated) & results["metric"].isin(["accuracy", "chance"]) & results["n_items"].notna()


def evaluated(runs: pd.DataFrame, results: pd.DataFrame) -> pd.DataFrame:
    """Each usable run's accuracies at its final step, of every kind of evaluation (`analysis.evaluation_kinds.ranked`).

    Of the trainer's stories, and of item sets evaluated in RUN/evals. Columns of results.csv with flops_budget, num_params and
    `chance` (NaN where none was recorded). One kind of one run stands once: evaluations that differ in nothing that decides.
    """
    used = runs[(runs["state"] == "done") & runs["excluded"].isna()]
    rows = with_kinds(results[choice_rows(results)])
    rows = used[["run_id", "step", "flops_budget", "num_params"]].merge(rows, on=["run_id", "step"])
    keys = ["run_id", *TASK, *KIND]
    rows = rows.drop_duplicates([*keys, "metric"])
    chance = rows[rows["metric"] == "chance"].rename(columns={"value": "chance"})[[*keys, "chance"]]
    return ranked(rows[rows["metric"] == "accuracy"].merge(chance, on=keys, how="left"))


def accuracies(rows: pd.DataFrame, *, level: float) -> list[dict[str, Any]]:
    """Accuracies (`evaluated`) with their intervals, beside chance, and whether the interval lies above it."""
    found = []
    for row in rows.to_dict("records"):
        guess = None if math.isnan(row["chance"]) else float(row["chance"])
        low, high = wilson_interval(float(row["value"]), float(row["n_items"]), level)
        found.append(
            {name: row[name] for name in ("run_id", "arm", "size", *TASK, *KIND)}
            | {"train_flops": float(row["train_flops"]), "num_params": float(row["num_params"])}
            | {"accuracy": float(row["value"]), "n_items": int(row["n_items"]), "interval": [low, high], "level": level}
            | {"chance": guess, "above_chance": None if guess is None else low > guess}
        )
    return found
