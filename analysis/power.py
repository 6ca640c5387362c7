"""What a plan would tell: its study is simulated from an assumed law and noise, and fitted as its results will be.

    power = study_power(folder, PowerOptions(resamples=0))   # the content of power.json; its shape: docs/fitting.md

For the plan and for designs near it (`analysis.planned`) every simulated study is refitted to its own optimum: the spread of the
estimates is the width that an interval of such a study has. Which rows matter is told by the information of the same law (the
delta method): how much wider each quantity becomes without the row, how much narrower with the row once more under another
seed, and what a run at a new place would add. Not here: what a run costs (plan.csv says it).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from analysis.diagnose import chosen_delta
from analysis.laws import Floats, LossSurface, floats
from analysis.planned import Cell, Design, alternatives, noise_of, planned_cells, repeated
from analysis.solver import CONSTANT, IN_D, IN_N, Problem, model
from analysis.study import FITS, N_KINDS
from analysis.uncertainty import refit
from lst import records
from lst.errors import FitError

POWER = "power.json"
HOFFMANN = LossSurface(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)
"""Hoffmann et al. 2022, eq. 10: the default law."""
CANDIDATES = 40


@dataclass(frozen=True, kw_only=True)
class PowerOptions:
    """What the user may choose (key=value on the command line); printed with the result."""

    law: str = (
        "fits"  # fits: the baseline's surface in DIR/fits.json if it has one, else hoffmann; hoffmann: Hoffmann et al. 2022
    )
    target: str = "mixture"  # which of the baseline's surfaces in fits.json
    n: str = "total"  # which parameters N counts: total | non_embedding | global
    baseline: str = "baseline"  # the arm that others are compared with
    multiplier: float = 1.2  # assumed compute multiplier of every other arm
    seed_noise: float = 0.004  # standard deviation of ln loss between seeds
    evaluation_noise: float = 0.001  # standard deviation of ln loss from the finite held-out set, a run
    loss: str = "huber"  # objective of the refits
    delta: float = 1e-3
    simulations: int = 200
    extra_seeds: int = 2  # designs with 1 ... this many more seeds everywhere
    level: float = 0.9
    seed: int = 0

    def validate(self) -> None:
        if self.n not in N_KINDS or self.law not in ("fits", "hoffmann"):
            raise FitError(f"n={self.n}, law={self.law}: n is one of {', '.join(N_KINDS)}; law is fits or hoffmann.")
        for name in ("multiplier", "seed_noise", "delta"):
            if not (np.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise FitError(f"{name}={getattr(self, name)} must be positive and finite.")
        if not (np.isfinite(self.evaluation_noise) and self.evaluation_noise >= 0):
            raise FitError(f"evaluation_noise={self.evaluation_noise} must be 0 or more.")
        if self.simulations < 20 or self.extra_seeds < 0 or self.seed < 0 or not 0 < self.level < 1:
            raise FitError(
                f"simulations={self.simulations} (20 or more), extra_seeds={self.extra_seeds}, seed={self.seed} (0 or more), "
                f"level={self.level} (between 0 and 1): one is out of range."
            )

    @property
    def noise(self) -> float:
        """Standard deviation of ln loss of a run."""
        return float(np.hypot(self.seed_noise, self.evaluation_noise))


@dataclass(frozen=True)
class Assumed:
    """The law that the simulated losses obey: L_arm = E + A / N^alpha + B / (e D)^beta with D = C / (6N)."""

    law: LossSurface
    source: str
    multipliers: dict[str, float]  # arm -> e; the baseline has 1

    def problem(self, cells: tuple[Cell, ...], delta: float) -> tuple[Problem, Floats, Floats]:
        """The fit with shared exponents of `cells`, the truth in its coordinates, and the true log losses."""
        arms = list(self.multipliers)
        x = np.log([c.num_params for c in cells])
        y = np.log([c.six_nd_tokens for c in cells])
        efficiency = floats([self.multipliers[c.arm] for c in cells])
        losses = self.law.predict(np.exp(x), efficiency * np.exp(y))
        member = floats([[c.arm == arm for arm in arms] for c in cells])
        used = np.flatnonzero(member.sum(0))
        members = np.concatenate([np.ones((len(cells), 2)), member[:, used]], axis=1)
        kinds = (CONSTANT, IN_N, *[IN_D] * len(used))
        problem = Problem(x - x.mean(), y - y.mean(), members, kinds, delta)
        scale, law = float(np.exp(np.log(losses).mean())), self.law
        shared = [self.multipliers[arms[k]] for k in used]
        data = [law.B * (e * np.exp(y.mean())) ** -law.beta / scale for e in shared]
        theta = floats([law.E / scale, law.A * np.exp(x.mean()) ** -law.alpha / scale, *data, law.alpha, law.beta])
        return problem, theta, np.log(losses / scale)


def quantities(problem: Problem, theta: Floats, cells: tuple[Cell, ...], arms: list[str]) -> dict[str, Floats]:
    """name -> (P,): the exponents, N*(C) ~ C^optimal_exponent, ln N* at the largest budget, and ln multiplier.ARM."""
    present = [arm for arm in arms if any(c.arm == arm for c in cells)]
    count = len(problem.kinds)
    alpha, beta = theta[:, count], theta[:, count + 1]
    x, y = np.log([c.num_params for c in cells]).mean(), np.log([c.six_nd_tokens for c in cells]).mean()
    with np.errstate(divide="ignore", invalid="ignore"):
        log_g = (np.log(alpha * theta[:, 1]) + alpha * x - np.log(beta * theta[:, 2]) - beta * y) / (alpha + beta)
        budget = np.log(max(c.planned_flops for c in cells) / 6)
        found = {"alpha": alpha, "beta": beta, "optimal_exponent": beta / (alpha + beta)}
        found["optimal_params"] = log_g + beta / (alpha + beta) * budget
        for k, arm in enumerate(present[1:], start=3):
            found[f"multiplier.{arm}"] = np.log(theta[:, 2] / theta[:, k]) / beta
    return found


def simulated(design: Design, assumed: Assumed, options: PowerOptions) -> dict[str, Any]:
    """One entry of `designs`: cost, and for each quantity its interval over the simulated studies; or why there is none."""
    cells = design.cells
    entry: dict[str, Any] = {"name": design.name, "change": design.change, "runs": len(cells)}
    entry |= {"cost_flops": design.cost_flops, "gpu_hours": design.gpu_hours, "quantities": {}, "refused": None}
    entry["added"] = [c.to_json() for c in cells if c.added]
    entry["run_ids"] = [c.key for c in cells if not c.added]
    refused = cannot_fit(cells, assumed)
    if refused:
        return entry | {"refused": refused, "failed": 0}
    problem, theta, log_loss = assumed.problem(cells, chosen_delta(options.loss, options.delta, logs=True))
    losses = log_loss + options.noise * noise_of(cells, options.simulations, options.seed)
    ends = refit(problem, theta, losses, np.ones_like(losses))
    estimates = quantities(problem, ends.theta[ends.converged], cells, list(assumed.multipliers))
    truths = quantities(problem, theta[None], cells, list(assumed.multipliers))
    entry["failed"] = int((~ends.converged).sum())
    for name, values in estimates.items():
        entry["quantities"][name] = _spread(name, float(truths[name][0]), values, options.level)
    return entry


def _spread(name: str, truth: float, values: Floats, level: float) -> dict[str, Any]:
    """Truth, interval and width of a quantity; ratios (N*, multipliers) come as logs and are told as ratios."""
    is_ratio = _is_ratio(name)
    fine = np.isfinite(values)
    if fine.mean() <= 0.5 + level / 2:  # the tail holds studies that do not determine it
        return {"truth": float(np.exp(truth)) if is_ratio else truth, "interval": None, "width": None}
    low, high = (float(q) for q in np.quantile(values[fine], [(1 - level) / 2, (1 + level) / 2]))
    width = float(np.exp(min(high - low, 700.0))) if is_ratio else high - low
    low, high, truth = (float(np.exp(np.clip(v, -700, 700))) if is_ratio else v for v in (low, high, truth))
    return {"truth": truth, "interval": [low, high], "width": width}


def _is_ratio(name: str) -> bool:
    return name == "optimal_params" or name.startswith("multiplier.")


def cannot_fit(cells: tuple[Cell, ...], assumed: Assumed) -> str | None:
    """Why a design cannot be fitted, in words, or None."""
    needed = 4 + len({c.arm for c in cells} | {next(iter(assumed.multipliers))})
    if len(cells) <= needed:
        return f"{len(cells)} runs for {needed} parameters leave no degree of freedom; add runs"
    base = next(iter(assumed.multipliers))
    if not any(c.arm == base for c in cells):
        return f"no run of the baseline '{base}' is left"
    x, y = np.log([c.num_params for c in cells]), np.log([c.six_nd_tokens for c in cells])
    for name, values in (("sizes", x), ("lengths", y)):
        if len(np.unique(np.round(values, 6))) < 3:
            return f"fewer than three {name}; add some"
    slope, constant = np.polyfit(x, y, 1)
    if np.std(y - constant - slope * x) < 0.02:
        return "all runs lie on one ray of tokens against parameters; add runs at another ratio"
    return None


def information(assumed: Assumed, cells: tuple[Cell, ...], at: tuple[Cell, ...]) -> tuple[Floats, Floats, dict[str, Floats]]:
    """Fisher information (p, p) of `cells` in units of 1 / noise^2, the scores of them and `at`, d quantity / d theta."""
    every = (*cells, *at)
    problem, theta, _ = assumed.problem(every, np.inf)
    value, slope = model(problem, theta[None])
    score = slope[0] / value[0][:, None]
    own = score[: len(cells)]
    arms = list(assumed.multipliers)
    moved = np.repeat(theta[None], 2 * len(theta), axis=0)
    steps = 1e-5 * np.maximum(np.abs(theta), 1e-3)
    for k, step in enumerate(steps):
        moved[2 * k, k] += step
        moved[2 * k + 1, k] -= step
    slopes = {
        name: (values[0::2] - values[1::2]) / (2 * steps) for name, values in quantities(problem, moved, every, arms).items()
    }
    return own.T @ own, score, slopes


def importance(cells: tuple[Cell, ...], candidates: tuple[Cell, ...], assumed: Assumed) -> tuple[list[dict[str, Any]], ...]:
    """For each planned run the standard errors without it and with it once more, over the plan's; for candidates, with it."""
    total, score, slopes = information(assumed, cells, candidates)
    errors = _errors(total, slopes)
    rows, added = [], []
    for k, cell in enumerate((*cells, *candidates)):
        outer = np.outer(score[k], score[k])
        more = {name: _ratio(e, errors[name]) for name, e in _errors(total + outer, slopes).items()}
        gain = float(np.mean([1 - r**2 for r in more.values() if r is not None])) / max(cell.planned_flops, 1.0)
        entry: dict[str, Any] = {**cell.to_json(), "with": more, "gain_per_flop": gain}
        if k < len(cells):
            less = {name: _ratio(e, errors[name]) for name, e in _errors(total - outer, slopes).items()}
            rows.append({"run_id": cell.key, **entry, "without": less})
        else:
            added.append({"key": cell.key, **entry})
    added.sort(key=lambda entry: -entry["gain_per_flop"])
    return rows, added[:CANDIDATES]


def _errors(total: Floats, slopes: dict[str, Floats]) -> dict[str, float]:
    """Standard errors in units of the noise; inf where the information does not determine the quantity."""
    scale = np.sqrt(np.maximum(np.diag(total), 1e-300))
    values, vectors = np.linalg.eigh(total / np.outer(scale, scale))
    fine = values > 1e-12 * values[-1]
    found = {}
    for name, slope in slopes.items():
        along = vectors.T @ (slope / scale)
        hidden = np.abs(along[~fine]).max(initial=0.0) > 1e-6 * np.linalg.norm(along)
        found[name] = float("inf") if hidden else float(np.sqrt((along[fine] ** 2 / values[fine]).sum()))
    return found


def _ratio(value: float, reference: float) -> float | None:
    return value / reference if np.isfinite(value) and np.isfinite(reference) and reference > 0 else None


def proposed(cells: tuple[Cell, ...]) -> tuple[Cell, ...]:
    """Runs that the plan could add: sizes between its own and one beyond either end at each arm and budget, and repeats."""
    found = []
    seeds = sorted({c.seed for c in cells})
    for arm, budget in sorted({(c.arm, c.flops_budget) for c in cells}):
        here = sorted(
            (c for c in cells if (c.arm, c.flops_budget, c.seed) == (arm, budget, seeds[0])), key=lambda c: c.num_params
        )
        found += [repeated(c, seeds) for c in here]
        if not here:
            continue
        logs = np.log(sorted({c.num_params for c in here}))
        step = float(np.diff(logs).mean()) if len(logs) > 1 else float(np.log(2.0))
        places = [logs[0] - step, *(logs[:-1] + np.diff(logs) / 2), logs[-1] + step]
        flops = float(np.exp(np.mean([np.log(c.planned_flops) for c in here])))
        for place in places:
            n = float(np.exp(place))
            key = f"{arm}/N={n:.4g}/{budget:g}/{seeds[0]}"
            place_of = replace(here[0], key=key, size="", num_params=n, planned_flops=flops, cost_flops=flops, added=True)
            found.append(replace(place_of, gpu_hours=None))
    return tuple(found)


def assumed_law(folder: Path, cells: tuple[Cell, ...], options: PowerOptions) -> Assumed:
    """The law from fits.json or from the literature. Raises FitError on an arm that is not there."""
    arms = list(dict.fromkeys(c.arm for c in cells))
    if options.baseline not in arms:
        raise FitError(f"baseline={options.baseline} has no admitted run in the plan (arms: {', '.join(arms)}); name another.")
    multipliers = {options.baseline: 1.0} | {arm: options.multiplier for arm in arms if arm != options.baseline}
    content = records.read_json(folder / FITS) if options.law == "fits" else None
    fits = (content or {}).get("fits", [])
    if not isinstance(fits, list):
        raise FitError(f"'{folder / FITS}' does not have the shape of docs/fitting.md; write it again with fit-scaling fit.")
    for entry in fits:
        surface = entry.get("loss_surface")
        same = (entry.get("arm"), entry.get("target"), entry.get("n_kind")) == (
            options.baseline,
            options.target,
            N_KINDS[options.n],
        )
        if surface is not None and same:
            law = LossSurface.from_json(surface)
            if min(law.A, law.B) > 0:
                return Assumed(law, f"fits.json: {options.baseline}, {options.target}", multipliers)
    return Assumed(HOFFMANN, "Hoffmann et al. 2022, eq. 10", multipliers)


def study_power(folder: Path, options: PowerOptions, *, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """The content of power.json. Raises FitError where the plan has no run to simulate; writes nothing."""
    options.validate()
    cells = planned_cells(folder, N_KINDS[options.n])
    assumed = assumed_law(folder, cells, options)
    designs = alternatives(cells, options.extra_seeds)
    entries = []
    for done, design in enumerate(designs):
        entries.append(simulated(design, assumed, options))
        if progress is not None:
            progress(done + 1, len(designs))
    rows, candidates = importance(cells, proposed(cells), assumed) if not cannot_fit(cells, assumed) else ([], [])
    content: dict[str, Any] = {
        "format": 1,
        "plan_sha256": hashlib.sha256((folder / "plan.csv").read_bytes()).hexdigest(),
        "options": asdict(options),
        "law": {"source": assumed.source, **assumed.law.to_json(), "multipliers": assumed.multipliers},
        "noise": {"seed": options.seed_noise, "evaluation": options.evaluation_noise, "total": options.noise},
        "designs": entries,
        "rows": rows,
        "candidates": candidates,
    }
    return content | {"warnings": _warnings(content)}


def _warnings(content: dict[str, Any]) -> list[str]:
    told = ["widths hold if the law and the noise do: a law that does not fit, or noise that grows with scale, is not in them"]
    if content["law"]["source"].startswith("Hoffmann"):
        told.append("the law is the literature's, not this study's: fit a pilot and call again (law=fits)")
    for name, of in content["designs"][0]["quantities"].items():
        if of["interval"] is None:
            told.append(f"{name} is not determined by the plan: too many simulated studies leave it open")
        elif name.startswith("multiplier.") and of["interval"][0] <= 1 <= of["interval"][1]:
            low, high = of["interval"]
            told.append(f"{name}: a true gain of {of['truth']:.3g}x would be told as [{low:.3g}, {high:.3g}], which holds 1")
    return told


def write_power(folder: Path, content: dict[str, Any]) -> None:
    """Replace power.json; the same plan and options give the same bytes."""
    text = json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n"
    records.write_atomically(folder / POWER, text.encode())
