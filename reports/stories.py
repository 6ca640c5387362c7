"""Scores of choice tasks (stories, item sets): accuracy, its binomial interval (Wilson), chance; a row a run, task, direction.

Wilson's interval for k right of n at normal quantile z: centre (k + z^2 / 2) / (n + z^2), half-width
z / (n + z^2) * sqrt(k (n - k) / n + z^2 / 4). It stays inside [0, 1] where the plain one does not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from analysis.evaluation_kinds import TASK, described, of_own_kind, ranked, with_kinds
from reports.numbers import as_float, is_number
from reports.study import STORY_PREFIX, Study, records


@dataclass(frozen=True, kw_only=True)
class StoryScore:
    """One run on one task in one direction. Accuracy, interval and chance are shares."""

    run_id: str
    arm: str
    size: str
    params: float
    flops: float
    task: str
    direction: str
    accuracy: float
    items: int
    low: float
    high: float
    chance: float
    level: float
    evaluated: str  # the kind of evaluation, in words (analysis.evaluation_kinds)

    @property
    def verdict(self) -> str:
        """Where the interval lies against chance."""
        if self.low > self.chance:
            return "above chance"
        return "below chance" if self.high < self.chance else "not told from chance"


def wilson(right: float, items: int, level: float) -> tuple[float, float]:
    """The interval of a share of `right` out of `items` at `level`."""
    z = NormalDist().inv_cdf(0.5 + level / 2)
    centre = (right + z * z / 2) / (items + z * z)
    half = z / (items + z * z) * math.sqrt(right * (items - right) / items + z * z / 4)
    return max(0.0, centre - half), min(1.0, centre + half)


def story_scores(study: Study) -> list[StoryScore]:
    """Every usable run's last score on stories and on item sets in RUN/evals, in a stable order; of evaluations in several ways
    each arm's own (`analysis.evaluation_kinds`). Tasks without a recorded chance level, and groups of tasks, are left out."""
    tasks = study.results["task"].fillna("").astype(str)
    rows = study.results[tasks.str.startswith(STORY_PREFIX) | (study.results["evaluation"].notna() & ~tasks.str.contains("/"))]
    rows = with_kinds(rows[rows["run_id"].isin(study.usable()["run_id"])].dropna(subset=["value", "step"]))
    keys = ["run_id", *TASK]
    rows = rows[rows["step"] == rows.groupby(keys)["step"].transform("max")]
    rows = of_own_kind(ranked(rows)).drop_duplicates([*keys, "metric"])
    found = records(rows)
    chance = {(r["run_id"], r["task"], r["direction"]): as_float(r["value"]) for r in found if r["metric"] == "chance"}
    usable = {str(run["run_id"]): run for run in records(study.usable())}
    scores = []
    for row in found:
        run, guess = usable.get(row["run_id"]), chance.get((row["run_id"], row["task"], row["direction"]))
        if row["metric"] != "accuracy" or run is None or guess is None or not as_float(row["n_items"]) >= 1:
            continue
        share, items = float(row["value"]), int(row["n_items"])
        low, high = wilson(share * items, items, study.fits.level)
        spent = (row["train_flops"], run["train_flops"], run["planned_flops"])
        scores.append(
            StoryScore(
                run_id=str(row["run_id"]),
                arm=str(run["arm"]),
                size=str(run["size"]),
                params=as_float(run["num_params"]),
                flops=next((float(v) for v in spent if is_number(v)), math.nan),
                task=str(row["task"]),
                direction=str(row["direction"]),
                accuracy=share,
                items=items,
                low=low,
                high=high,
                chance=guess,
                level=study.fits.level,
                evaluated=described(row),
            )
        )
    order = {arm: i for i, arm in enumerate(study.arms)}
    return sorted(
        (s for s in scores if is_number(s.flops)), key=lambda s: (s.task, s.direction, order.get(s.arm, 99), s.params, s.flops)
    )
