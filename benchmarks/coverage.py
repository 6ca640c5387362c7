"""Do the intervals cover? Many simulated studies of a known law, each fitted with its intervals; the share that hold the truth.

    python -m benchmarks.coverage [--studies 300] [--resamples 300] [--designs 3x4,4x5,5x5,5x8] [--noise 0.004] [--loss huber]

A design BxS has B budgets (1e18 to 1e20 FLOPs) with S sizes each about the optimum, in two arms; the arm makes 1.3 of each token.
ln losses have normal noise. Fits of the baseline's surface (cells = B x S): its exponents, N* at the largest budget and the
loss at the optimum of a held-out budget four times larger. Of both arms: the shared-exponent multiplier and the mean of the
multiplier curve. A coverage p of k studies has a standard error of sqrt(p (1 - p) / k): 1.7% at 90% and 300.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from analysis import LossSurface, compute_multiplier, fit_loss_surface, fit_shared_exponents  # noqa: E402

TRUTH = LossSurface(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)
EFFICIENCY = 1.3
Interval = tuple[float, float]


def study(budgets: int, sizes: int, noise: float, rng: np.random.Generator) -> pd.DataFrame:
    """One simulated table of both arms."""
    parts = []
    c = np.repeat(np.geomspace(1e18, 1e20, budgets), sizes)
    n = np.concatenate([TRUTH.optimal(b).num_params * np.geomspace(0.25, 4, sizes) for b in np.unique(c)])
    for arm, efficiency in (("baseline", 1.0), ("lst", EFFICIENCY)):
        d = c / 6 / n
        loss = TRUTH.predict(n, efficiency * d) * np.exp(noise * rng.standard_normal(len(n)))
        parts.append(
            pd.DataFrame({"arm": arm, "num_params": n, "tokens": d, "loss": loss, "train_flops": c, "flops_budget": c, "seed": 0})
        )
    return pd.concat(parts, ignore_index=True)


def intervals(
    table: pd.DataFrame, objective: str, resamples: int, rng: np.random.Generator
) -> Iterator[tuple[str, Interval, float]]:
    """(quantity, interval, truth) of every interval of a study; intervals on logs for N* and multipliers."""
    options = {"objective": objective, "resamples": resamples, "rng": rng}
    fit = fit_loss_surface(table[table["arm"] == "baseline"], **options)
    for name in ("E", "alpha", "beta"):
        yield name, fit.interval(name), getattr(TRUTH, name)
    exponent = fit.interval("optimal_exponent")
    yield "N* exponent", exponent, TRUTH.beta / (TRUTH.alpha + TRUTH.beta)
    largest, held_out = float(table["train_flops"].max()), TRUTH.optimal(4 * float(table["train_flops"].max()))
    low, high = fit.interval("optimal_params", flops=largest)
    yield "N*", (np.log(low), np.log(high)), np.log(TRUTH.optimal(largest).num_params)
    at = {"num_params": held_out.num_params, "tokens": held_out.tokens, "extrapolate": True}
    yield "loss at 4x", fit.interval(**at), held_out.loss
    shared = fit_shared_exponents(table, **options).intervals["lst"].get("compute", (0.0, np.inf))
    yield "multiplier", (np.log(shared[0] + 1e-300), np.log(shared[1])), np.log(EFFICIENCY)
    curve = compute_multiplier(table, "lst", resamples=resamples, rng=rng).mean_interval
    if curve is not None:
        yield "curve's mean", (np.log(curve[0]), np.log(curve[1])), np.log(EFFICIENCY)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=300)
    parser.add_argument("--resamples", type=int, default=300)
    parser.add_argument("--designs", default="3x4,4x5,5x5,5x8")
    parser.add_argument("--noise", type=float, default=0.004)
    parser.add_argument("--loss", default="huber")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for design in arguments.designs.split(","):
        budgets, sizes = (int(word) for word in design.split("x"))
        started = time.process_time()
        held: dict[str, list[bool]] = {}
        widths: dict[str, list[float]] = {}
        for number in range(arguments.studies):
            rng = np.random.default_rng([arguments.seed, budgets, sizes, number])
            table = study(budgets, sizes, arguments.noise, rng)
            for name, (low, high), truth in intervals(table, arguments.loss, arguments.resamples, rng):
                held.setdefault(name, []).append(bool(low <= truth <= high))
                widths.setdefault(name, []).append(high - low)
        shown = "  ".join(f"{name} {np.mean(v):.1%} ({np.median(widths[name]):.3g})" for name, v in held.items())
        print(f"{design} = {budgets * sizes} cells, {arguments.loss}, noise {arguments.noise:g}: {shown}", flush=True)
        print(f"  ({arguments.studies} studies, {time.process_time() - started:.0f} s)", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
