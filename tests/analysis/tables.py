"""Tables made from laws that are known, for tests of the fits."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.laws import LossSurface
from analysis.solver import CONSTANT, IN_D, IN_N, Problem

TRUTH = LossSurface(E=1.7, A=400.0, B=410.0, alpha=0.34, beta=0.28)


def isoflop_table(
    *,
    law: LossSurface = TRUTH,
    budgets: tuple[float, ...] = (1e18, 1e19, 1e20),
    sizes: int = 4,
    noise: float = 0.0,
    efficiency: float = 1.0,
    arm: str = "baseline",
    rng: np.random.Generator | None = None,
) -> pd.DataFrame:
    """`sizes` models about the optimum of each budget, C = 6ND; `noise` is the standard deviation of ln loss."""
    rng = np.random.default_rng(0) if rng is None else rng
    n = np.concatenate([law.optimal(c).num_params * np.geomspace(0.3, 3.2, sizes) for c in budgets])
    c = np.repeat(np.array(budgets), sizes)
    d = c / 6 / n
    loss = law.predict(n, efficiency * d) * np.exp(noise * rng.standard_normal(len(n)))
    return pd.DataFrame({"arm": arm, "num_params": n, "tokens": d, "loss": loss, "train_flops": c, "flops_budget": c})


def three_arms(seed: int) -> tuple[Problem, np.ndarray]:
    """Ten runs of three arms under seven parameters, whose valleys are curved and kinked; ln loss of 60 studies (60, 10)."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(-1, 1, 10), rng.uniform(-1, 1, 10)
    arms = np.eye(3)[np.arange(10) % 3]
    problem = Problem(x, y, np.concatenate([np.ones((10, 2)), arms], axis=1), (CONSTANT, IN_N, IN_D, IN_D, IN_D), 1e-3)
    return problem, np.log(0.6 + 0.2 * np.exp(-0.3 * x) + 0.2 * np.exp(-0.3 * y)) + 0.01 * rng.standard_normal((60, 10))
