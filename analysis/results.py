"""What a fit returns: the law, what it was fitted on, how well, with which intervals and warnings; to and from JSON.

Soft trouble is a sentence in `.warnings`; what the data cannot support at all is a FitError and never gets here. numpy only,
so that the report can read these types without a solver.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from analysis.basis import Basis, Interval, pair, percentile_interval, readable, require_inside
from analysis.laws import Allocation, Floats, IsoflopCubic, IsoflopParabola, LossSurface, PowerLaw, floats
from lst.errors import FitError


@dataclass(frozen=True, kw_only=True, repr=False)
class SurfaceFit(Basis):
    """A fitted LossSurface."""

    law: LossSurface
    intervals: dict[str, Interval]  # by parameter name
    on_bound: tuple[str, ...]  # parameters that ended on a face or on the exponents' bounds
    runner_ups: tuple[dict[str, float], ...]  # other local minima: their objective and parameters
    ranges: dict[str, Interval]  # num_params, tokens, flops (6ND) of the fitted points: smallest and largest
    columns: tuple[str, str] = ("num_params", "tokens")  # of the table, that N and D are
    samples: Floats | None = field(default=None, compare=False)  # (kept, 5) bootstrap parameters, E A B alpha beta

    def predict(self, num_params: ArrayLike, tokens: ArrayLike, *, extrapolate: bool = False) -> Floats:
        """Loss at N and D (see LossSurface.predict). Raises FitError outside the fitted ranges unless `extrapolate`."""
        require_inside("num_params", num_params, self.ranges["num_params"], extrapolate)
        require_inside("tokens", tokens, self.ranges["tokens"], extrapolate)
        self._require_compute(num_params, tokens, extrapolate)
        return self.law.predict(num_params, tokens)

    def optimal(
        self, flops: float, flops_per_token: Callable[[float], float] | None = None, *, extrapolate: bool = False
    ) -> Allocation:
        """Best N and D at `flops` (see LossSurface.optimal). Raises FitError beyond the fitted FLOPs, or where the best N or D
        lies beyond those tried, unless `extrapolate`."""
        if self.columns[1] == "speech_seconds" and flops_per_token is None:
            raise FitError("D is in seconds of speech, and 6 N D would be no FLOPs; give flops_per_token (FLOPs a second at N).")
        require_inside("flops", flops, self.ranges["flops"], extrapolate)
        found = self.law.optimal(flops, flops_per_token)
        require_inside("the optimal num_params", found.num_params, self.ranges["num_params"], extrapolate)
        require_inside("the optimal tokens", found.tokens, self.ranges["tokens"], extrapolate)
        return found

    def _require_compute(self, num_params: ArrayLike, tokens: ArrayLike, extrapolate: bool) -> None:
        """Each of N and D may be tried and their product not: a corner of the ranges is beyond the data, too."""
        require_inside("6 x num_params x tokens", 6 * floats(num_params) * floats(tokens), self.ranges["flops"], extrapolate)

    def beyond_data(self, flops: float) -> float:
        """How many times larger than the largest fitted 6ND `flops` is; at most 1 inside the data."""
        return flops / self.ranges["flops"][1]

    def interval(
        self,
        name: str = "loss",
        *,
        num_params: float | None = None,
        tokens: float | None = None,
        flops: float | None = None,
        extrapolate: bool = False,
    ) -> Interval:
        """Percentile interval of a parameter by name, of the "optimal_exponent" (N* ~ C^it), of the "loss" at (num_params,
        tokens), or, at `flops` under C = 6ND, of "optimal_params", "optimal_tokens" or "optimal_loss". Raises FitError where the
        samples for it are not kept, and outside the fitted ranges unless `extrapolate`."""
        for what, value in (("num_params", num_params), ("tokens", tokens), ("flops", flops)):
            if value is not None:
                require_inside(what, value, self.ranges[what], extrapolate)
        if num_params is not None and tokens is not None:
            self._require_compute(num_params, tokens, extrapolate)
        if name in self.intervals:
            return self.intervals[name]
        if self.samples is None or not len(self.samples):
            raise FitError(
                f"no interval for '{name}': this fit has no bootstrap samples; fit with resamples > 0 and keep samples."
            )
        if name in ("optimal_params", "optimal_tokens", "optimal_loss") and flops is not None:
            if self.columns[1] == "speech_seconds":
                raise FitError(
                    f"'{name}' has no interval where D is in seconds of speech, for C = 6 N D holds of tokens; fit tokens."
                )
            self.optimal(flops, extrapolate=extrapolate)  # refused where the law itself has none, or none inside the data
        e, a, b, alpha, beta = self.samples.T
        if name == "optimal_exponent":  # N* ~ C^(beta / (alpha + beta))
            return percentile_interval(beta / (alpha + beta), self.level)
        if name == "loss" and num_params is not None and tokens is not None:
            return percentile_interval(e + a * num_params**-alpha + b * tokens**-beta, self.level)
        if name in ("optimal_params", "optimal_tokens", "optimal_loss") and flops is not None:
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                scale = (alpha * a / (beta * b)) ** (1 / (alpha + beta))
                n = scale * (flops / 6) ** (beta / (alpha + beta))
                d = flops / 6 / n
                values = {"optimal_params": n, "optimal_tokens": d, "optimal_loss": e + a * n**-alpha + b * d**-beta}[name]
            open_ended = float((~np.isfinite(values)).mean())
            if open_ended > (1 - self.level) / 2:
                raise FitError(f"{open_ended:.0%} of the resamples have no optimum at {flops:g} FLOPs: add sizes and lengths.")
            return percentile_interval(values[np.isfinite(values)], self.level)
        raise FitError(
            f"no interval for '{name}' with what was given; ask for a parameter ({', '.join(self.intervals)}), for 'loss' with "
            "num_params and tokens, or for 'optimal_params', 'optimal_tokens', 'optimal_loss' with flops."
        )

    def to_json(self, *, samples: bool = True) -> dict[str, Any]:
        content = {**self.law.to_json(), **super().to_json(), "intervals": {k: list(v) for k, v in self.intervals.items()}}
        content |= {"on_bound": list(self.on_bound), "runner_ups": list(self.runner_ups)}
        content |= {"ranges": {k: list(v) for k, v in self.ranges.items()}, "columns": list(self.columns)}
        if samples and self.samples is not None:
            content["samples"] = self.samples.tolist()
        return content

    @classmethod
    @readable
    def from_json(cls, content: dict[str, Any]) -> Self:
        samples = content.get("samples")
        return cls(
            columns=tuple(content.get("columns", cls.columns)),
            law=LossSurface.from_json(content),
            intervals={k: pair(v) for k, v in content["intervals"].items()},
            on_bound=tuple(content.get("on_bound", ())),
            runner_ups=tuple(content.get("runner_ups", ())),
            ranges={k: pair(v) for k, v in content["ranges"].items()},
            samples=None if samples is None else floats(samples).reshape(-1, 5),
            **Basis.read(content),
        )

    def __repr__(self) -> str:
        rows = []
        for name in LossSurface.names():
            interval = self.intervals.get(name)
            shown = f"  [{interval[0]:.4g}, {interval[1]:.4g}]" if interval else ""
            rows.append(f"  {name:<6}{getattr(self.law, name):>12.6g}{shown}")
        what = f"SurfaceFit: L(N, D) = E + A / N^alpha + B / D^beta, N = {self.columns[0]}, D = {self.columns[1]}"
        return "\n".join([what, *rows, *self._lines()])


@dataclass(frozen=True, kw_only=True, repr=False)
class PowerLawFit(Basis):
    """A fitted PowerLaw, of loss against FLOPs or of N*, D* against FLOPs."""

    law: PowerLaw
    quantity: str  # what y is: loss, optimal_params, optimal_tokens
    intervals: dict[str, Interval]
    range: Interval  # smallest and largest x fitted
    samples: Floats | None = field(default=None, compare=False)  # (kept, 3): scale, exponent, asymptote

    def predict(self, flops: ArrayLike, *, extrapolate: bool = False) -> Floats:
        """y at C. Raises FitError outside the fitted FLOPs unless `extrapolate`."""
        require_inside("flops", flops, self.range, extrapolate)
        return self.law.predict(flops)

    def interval(self, name: str = "value", *, flops: float | None = None, extrapolate: bool = False) -> Interval:
        """Percentile interval of a parameter by name, or of the "value" at `flops` (see `predict`)."""
        if flops is not None:
            require_inside("flops", flops, self.range, extrapolate)
        if name in self.intervals:
            return self.intervals[name]
        if name != "value" or flops is None or self.samples is None:
            raise FitError(
                f"no interval for '{name}'; ask for one of {', '.join(self.intervals)}, or for 'value' with flops and samples."
            )
        scale, exponent, asymptote = self.samples.T
        return percentile_interval(asymptote + scale * flops**exponent, self.level)

    def to_json(self, *, samples: bool = True) -> dict[str, Any]:
        content = {**self.law.to_json(), **super().to_json(), "quantity": self.quantity, "range": list(self.range)}
        content["intervals"] = {k: list(v) for k, v in self.intervals.items()}
        if samples and self.samples is not None:
            content["samples"] = self.samples.tolist()
        return content

    @classmethod
    @readable
    def from_json(cls, content: dict[str, Any]) -> Self:
        samples = content.get("samples")
        return cls(
            law=PowerLaw.from_json(content),
            quantity=content["quantity"],
            intervals={k: pair(v) for k, v in content["intervals"].items()},
            range=pair(content["range"]),
            samples=None if samples is None else floats(samples).reshape(-1, 3),
            **Basis.read(content),
        )

    def __repr__(self) -> str:
        ends = ", ".join(f"{k} [{v[0]:.4g}, {v[1]:.4g}]" for k, v in self.intervals.items())
        law = f"{self.quantity}(C) = {self.law.asymptote:.5g} + {self.law.scale:.5g} C^{self.law.exponent:.4g}"
        return "\n".join([f"PowerLawFit: {law}", *([f"  {ends}"] if ends else []), *self._lines()])


@dataclass(frozen=True, kw_only=True)
class IsoflopProfile:
    """One compute budget: its points, its parabola, and where the minimum lies."""

    flops_budget: float  # as planned, or the group's geometric mean
    train_flops: float  # geometric mean of the points' FLOPs
    num_params: tuple[float, ...]
    losses: tuple[float, ...]
    parabola: IsoflopParabola | IsoflopCubic | None  # None where the budget has too few sizes
    status: str  # interior | below_smallest | above_largest | not_convex | too_few_sizes
    optimal_params: float | None = None  # only where the minimum is interior
    optimal_tokens: float | None = None
    optimal_loss: float | None = None
    optimal_params_interval: Interval | None = None
    optimal_loss_interval: Interval | None = None
    interior_share: float | None = None  # share of the resamples whose minimum is interior

    def to_json(self) -> dict[str, Any]:
        content = {name: getattr(self, name) for name in self.__dataclass_fields__}
        content["parabola"] = None if self.parabola is None else self.parabola.to_json()
        return {k: list(v) if isinstance(v, tuple) else v for k, v in content.items()}

    @classmethod
    @readable
    def from_json(cls, content: dict[str, Any]) -> Self:
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
        if values["parabola"] is not None:
            kind = IsoflopCubic if "skew" in content["parabola"] else IsoflopParabola
            values["parabola"] = kind.from_json(content["parabola"])
        return cls(**values)


@dataclass(frozen=True, kw_only=True, repr=False)
class IsoflopFit(Basis):
    """Parabolas in log N, a budget each, and the power laws through their minima."""

    shape: str = "parabola"  # parabola | cubic
    curvature: str  # shared | trend | per_budget
    profiles: tuple[IsoflopProfile, ...]
    optimal_params: PowerLawFit | None  # N*(C); None with fewer than two interior minima
    optimal_tokens: PowerLawFit | None  # D*(C), fitted apart

    def to_json(self) -> dict[str, Any]:
        laws = {name: getattr(self, name) for name in ("optimal_params", "optimal_tokens")}
        return {
            **super().to_json(),
            "shape": self.shape,
            "curvature": self.curvature,
            "profiles": [p.to_json() for p in self.profiles],
            **{k: None if v is None else v.to_json(samples=False) for k, v in laws.items()},
        }

    @classmethod
    @readable
    def from_json(cls, content: dict[str, Any]) -> Self:
        laws: dict[str, Any] = {
            k: None if content[k] is None else PowerLawFit.from_json(content[k]) for k in ("optimal_params", "optimal_tokens")
        }
        profiles = tuple(IsoflopProfile.from_json(p) for p in content["profiles"])
        return cls(
            shape=content.get("shape", "parabola"),
            curvature=content["curvature"],
            profiles=profiles,
            **laws,
            **Basis.read(content),
        )

    def __repr__(self) -> str:
        skew = " + skew (ln N - ln N*)^3" if self.shape == "cubic" else ""
        rows = [f"IsoflopFit: L(N) = floor + curvature (ln N - ln N*)^2{skew}, {self.curvature} curvature"]
        for p in self.profiles:
            at = (
                ""
                if p.optimal_params is None
                else f"  N* {p.optimal_params:.4g}, D* {p.optimal_tokens:.4g}, loss {p.optimal_loss:.5g}"
            )
            rows.append(f"  {p.flops_budget:.3g} FLOPs, {len(set(p.num_params))} sizes, {len(p.losses)} runs: {p.status}{at}")
        return "\n".join(rows + self._lines())


@dataclass(frozen=True, kw_only=True, repr=False)
class MultiplierCurve:
    """Compute multiplier: FLOPs the baseline needs to reach the arm's loss, over the arm's FLOPs. Above 1 the arm wins."""

    method: str  # how losses became curves
    losses: tuple[float, ...]  # inside the overlap only, from the highest to the lowest
    arm_flops: tuple[float, ...]
    baseline_flops: tuple[float, ...]
    multiplier: tuple[float, ...]
    low: tuple[float, ...]  # band; empty where there is none
    high: tuple[float, ...]
    mean: float  # geometric mean over the curve
    mean_interval: Interval | None
    slope: float | None = None  # d ln multiplier / d ln C over the curve (C the arm's): above 0 the gain grows with scale
    slope_interval: Interval | None = None
    overlap: Interval  # lowest and highest loss that both reach
    level: float
    resamples: int
    failed: int
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {n: list(v) if isinstance(v := getattr(self, n), tuple) else v for n in self.__dataclass_fields__}

    @classmethod
    @readable
    def from_json(cls, content: dict[str, Any]) -> Self:
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
        return cls(**values)

    def predict(self, loss: ArrayLike) -> Floats:
        """Multiplier at `loss`, linear in log between the curve's points; nan outside the overlap."""
        order = np.argsort(self.losses)
        at, logs = floats(self.losses)[order], np.log(floats(self.multiplier))[order]
        return np.exp(np.interp(floats(loss), at, logs, left=np.nan, right=np.nan))

    def interval(self) -> Interval | None:
        """Interval of the geometric mean over the overlap."""
        return self.mean_interval

    def __repr__(self) -> str:
        band = "" if self.mean_interval is None else f" [{self.mean_interval[0]:.3g}, {self.mean_interval[1]:.3g}]"
        lines = [
            f"MultiplierCurve: {self.mean:.3g}x{band} on average over losses {self.overlap[0]:.4g} to {self.overlap[1]:.4g}",
            f"  {self.method}; {self.level:.0%} band",
            *([] if self.slope is None else [f"  d ln multiplier / d ln C {self.slope:+.3g}; interval {self.slope_interval}"]),
        ]
        return "\n".join(lines + [f"  ! {w}" for w in self.warnings])


@dataclass(frozen=True, kw_only=True, repr=False)
class SharedFit(Basis):
    """Arms with one E, alpha, beta, and for each arm a parameter and a data efficiency against the baseline."""

    baseline: str
    law: LossSurface  # the baseline's surface
    efficiencies: dict[str, dict[str, float]]  # arm -> params, data, compute (their product)
    intervals: dict[str, dict[str, Interval]]  # arm -> the same names
    tokens_meaning: str  # "tokens", or "train_flops / (6 num_params)"

    def to_json(self) -> dict[str, Any]:
        intervals = {arm: {k: list(v) for k, v in of.items()} for arm, of in self.intervals.items()}
        own = {"baseline": self.baseline, "efficiencies": self.efficiencies, "tokens_meaning": self.tokens_meaning}
        return {**super().to_json(), **own, "law": self.law.to_json(), "intervals": intervals}

    @classmethod
    @readable
    def from_json(cls, content: dict[str, Any]) -> Self:
        return cls(
            baseline=content["baseline"],
            law=LossSurface.from_json(content["law"]),
            efficiencies=content["efficiencies"],
            intervals={arm: {k: pair(v) for k, v in of.items()} for arm, of in content["intervals"].items()},
            tokens_meaning=content["tokens_meaning"],
            **Basis.read(content),
        )

    def __repr__(self) -> str:
        rows = [
            f"SharedFit: E {self.law.E:.5g}, alpha {self.law.alpha:.4g}, beta {self.law.beta:.4g} shared; "
            f"against {self.baseline}:"
        ]
        for arm, of in self.efficiencies.items():
            parts = []
            for k, v in of.items():
                i = self.intervals.get(arm, {}).get(k)
                parts.append(f"{k} {v:.3g}x" + (f" [{i[0]:.3g}, {i[1]:.3g}]" if i else ""))
            rows.append(f"  {arm}: {', '.join(parts)}")
        return "\n".join(rows + self._lines())
