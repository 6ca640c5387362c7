"""Loss differences between an arm and the baseline at matched runs, paired by size (and seed), with an interval of the mean.

Pairs are runs of one match group (or one budget), one size and one seed. The mean difference d of m pairs has the interval
d +- t s / sqrt(m), t Student's quantile with m - 1 degrees of freedom: it treats the pairs as drawn alike, which a trend over
budgets violates, so budgets are also shown apart. A negative difference: the arm has the lower loss.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from analysis.arm_tests import gain_slope


def mean_interval(differences: list[float], level: float) -> list[float] | None:
    """Student's interval of the mean; None for fewer than two."""
    if len(differences) < 2:
        return None
    values = np.asarray(differences)
    half = float(stats.t.ppf(0.5 + level / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return [float(values.mean()) - half, float(values.mean()) + half]


def matched_by(table: pd.DataFrame) -> str:
    """The column by which runs of two arms belong together."""
    return "match_group" if table["match_group"].notna().all() else "flops_budget"


def matched_runs(table: pd.DataFrame, arm: str, *, baseline: str) -> pd.DataFrame:
    """A row a pair of runs of one match group (or budget), size and seed: the arm's columns, and the baseline's as *_baseline."""
    keys = [matched_by(table), "size", "seed"]
    own = [*dict.fromkeys([*keys, "flops_budget"]), *(c for c in ("run_id", "loss", "train_flops") if c in table)]
    sides = [table.loc[table["arm"] == name, own].drop_duplicates(keys) for name in (baseline, arm)]
    return sides[1].merge(sides[0], on=keys, suffixes=("", "_baseline"))


def paired_differences(table: pd.DataFrame, arm: str, *, baseline: str, level: float) -> dict[str, Any] | None:
    """Arm minus baseline in nats: every pair, the mean at each budget, and over all; None where no two runs are matched."""
    group = matched_by(table)
    joined = matched_runs(table, arm, baseline=baseline)
    if not len(joined):
        return None
    joined["difference"] = joined["loss"] - joined["loss_baseline"]
    pairs = [
        {
            "flops_budget": None if pd.isna(row["flops_budget"]) else float(row["flops_budget"]),
            "size": str(row["size"]),
            "baseline_loss": float(row["loss_baseline"]),
            "loss": float(row["loss"]),
            "difference": float(row["difference"]),
            "flops_ratio": float(row["train_flops"] / row["train_flops_baseline"]),
        }
        for row in joined.to_dict("records")
    ]
    return {
        "paired_by": group,
        "pairs": pairs,
        "budgets": [
            {"flops_budget": float(str(budget)), **_summary(rows["difference"].tolist(), level)}
            for budget, rows in joined.groupby("flops_budget")
        ],
        **_summary(joined["difference"].tolist(), level),
        "slope": _slope(joined, level),
        "level": level,
    }


def _slope(joined: pd.DataFrame, level: float) -> dict[str, Any] | None:
    """Of ln(arm's loss / baseline's) on ln of the budget: below 0 the gain grows with scale."""
    known = joined[joined["flops_budget"].notna() & (joined["flops_budget"] > 0)]
    ratios = np.log((known["loss"] / known["loss_baseline"]).to_numpy(dtype=np.float64))
    return gain_slope(ratios, known["flops_budget"].to_numpy(dtype=np.float64), level)


def _summary(differences: list[float], level: float) -> dict[str, Any]:
    return {"n": len(differences), "mean": float(np.mean(differences)), "interval": mean_interval(differences, level)}
