"""Damped Fisher scoring of many small likelihoods at once, for laws that `analysis.solver` does not have. numpy only."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from analysis.laws import Floats

Evaluate = Callable[[Floats, np.ndarray], tuple[Floats, Floats, Floats]]
"""(theta (P, p), rows (P,)) -> objective (P,), gradient (P, p), information (P, p, p); rows are places in the batch."""


def minimise_by_scoring(
    evaluate: Evaluate, start: Floats, low: Floats, high: Floats, *, steps: int = 100, tolerance: float = 1e-12
) -> tuple[Floats, Floats, np.ndarray]:
    """theta (P, p), objective (P,) and converged (P,): Levenberg-Marquardt steps on the information, projected on the bounds."""
    theta = np.clip(start, low, high)
    active = np.arange(len(theta))
    value, gradient, information = evaluate(theta, active)
    damping = np.full(len(theta), 1e-3)
    diagonal = np.arange(theta.shape[1])
    for _ in range(steps):
        here, slope = theta[active], gradient[active]
        held = ((here <= low) & (slope > 0)) | ((here >= high) & (slope < 0))
        system = information[active] * ~held[:, :, None] * ~held[:, None, :]
        scale = np.maximum(information[active][:, diagonal, diagonal], 1e-300)
        system[:, diagonal, diagonal] += np.where(held, 1.0, damping[active, None] * scale + 1e-12 * scale)
        new = np.clip(here + np.linalg.solve(system, -(slope * ~held)[:, :, None])[:, :, 0], low, high)
        reached, new_slope, new_information = evaluate(new, active)
        better = reached < value[active]
        change = value[active] - reached
        done = np.where(better, change <= tolerance * (1 + np.abs(value[active])), damping[active] > 1e8)
        rows = active[better]
        theta[rows], value[rows] = new[better], reached[better]
        gradient[rows], information[rows] = new_slope[better], new_information[better]
        damping[active] = np.where(better, damping[active] * 0.2, damping[active] * 8)
        active = active[~done]
        if not len(active):
            break
    converged = np.ones(len(theta), dtype=bool)
    converged[active] = False
    return theta, value, converged
