"""How often do comparisons of two identical arms call them different? A/A studies: both arms obey one law, with noise apart.

    python -m benchmarks.arms_alike [--studies 400] [--resamples 300] [--budgets 4] [--sizes 5] [--seeds 2] [--noise 0.004]

At a level of 95% each comparison should reject in 5% of the studies: the mean of the multiplier curve and its slope (interval
without 1 or 0), the shared-exponent multiplier, matched pairs (mean and slope on ln C, Student), and the test of shared against
free exponents (p under 0.05). A share of k studies has a standard error of sqrt(0.05 x 0.95 / k): 1.1% at 400.
"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np
import pandas as pd

from analysis import LossSurface, compute_multiplier, exponent_test, fit_shared_exponents
from analysis.arm_tests import gain_slope
from analysis.pairs import paired_differences

TRUTH = LossSurface(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)
LEVEL = 0.95


def study(budgets: int, sizes: int, seeds: int, noise: float, rng: np.random.Generator) -> pd.DataFrame:
    """Two arms of one law at the same cells."""
    rows = []
    for c in np.geomspace(1e18, 1e20, budgets):
        for k, n in enumerate(TRUTH.optimal(c).num_params * np.geomspace(0.25, 4, sizes)):
            d = c / 6 / n
            for seed in range(seeds):
                for arm in ("baseline", "lst"):
                    loss = float(TRUTH.predict(n, d)) * np.exp(noise * rng.standard_normal())
                    place = {"num_params": n, "tokens": d, "train_flops": c, "flops_budget": c, "size": f"s{k}", "seed": seed}
                    rows.append({"arm": arm, "loss": loss, "match_group": f"{c:g}-{k}"} | place)
    return pd.DataFrame(rows)


def rejections(table: pd.DataFrame, resamples: int, rng: np.random.Generator) -> dict[str, bool]:
    """Whether each comparison calls the arms different."""

    def outside(interval: tuple[float, float] | list[float] | None, value: float) -> bool:
        return interval is not None and not interval[0] <= value <= interval[1]

    options = {"resamples": resamples, "level": LEVEL, "rng": rng}
    curve = compute_multiplier(table, "lst", **options)
    pairs = paired_differences(table, "lst", baseline="baseline", level=LEVEL)
    assert pairs is not None
    by_run = [np.log(p["loss"] / p["baseline_loss"]) for p in pairs["pairs"]]
    slope = gain_slope(np.array(by_run), np.array([p["flops_budget"] for p in pairs["pairs"]]), LEVEL)
    assert slope is not None
    return {
        "multiplier curve's mean": outside(curve.mean_interval, 1),
        "multiplier curve's slope": outside(curve.slope_interval, 0),
        "shared-exponent multiplier": outside(fit_shared_exponents(table, **options).intervals["lst"]["compute"], 1),
        "matched pairs, mean": outside(pairs["interval"], 0),
        "matched pairs, slope": outside(slope["interval"], 0),
        "shared against free exponents": exponent_test(table, "lst", resamples=resamples, rng=rng)["p"] < 1 - LEVEL,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=400)
    parser.add_argument("--resamples", type=int, default=300)
    parser.add_argument("--budgets", type=int, default=4)
    parser.add_argument("--sizes", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--noise", type=float, default=0.004)
    arguments = parser.parse_args()
    started = time.process_time()
    found = []
    for number in range(arguments.studies):
        rng = np.random.default_rng([1, arguments.budgets, arguments.sizes, number])
        table = study(arguments.budgets, arguments.sizes, arguments.seeds, arguments.noise, rng)
        found.append(rejections(table, arguments.resamples, rng))
    rates = pd.DataFrame(found).mean()
    design = f"{arguments.budgets} budgets x {arguments.sizes} sizes x {arguments.seeds} seeds"
    print(f"{arguments.studies} A/A studies, {design} an arm, noise {arguments.noise:g}; {time.process_time() - started:.0f} s")
    for name, rate in rates.items():
        print(f"  {name}: {rate:.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
