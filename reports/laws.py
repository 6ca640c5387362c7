"""fits.json as the report uses it: fitted laws, isoFLOP profiles and comparisons, each number with its interval.

A reader of one file through `analysis.results`' types (its shape: docs/fitting.md), not a fitter: what is absent stays
absent and the page says so. Equations: L(N, D) = E + A / N^alpha + B / D^beta (loss in nats a token, N parameters,
D tokens); an isoFLOP profile is a parabola or cubic of the loss in ln N at one budget; L(C) = asymptote + scale * C^exponent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.basis import Interval
from analysis.results import IsoflopFit, MultiplierCurve, PowerLawFit, SharedFit, SurfaceFit
from lst import records
from lst.errors import DataError, LstError
from reports import accuracy_laws
from reports.accuracy_laws import AccuracyComparison, AccuracyLaw
from reports.numbers import as_float, is_number

SURFACE_PARAMETERS = ("E", "A", "B", "alpha", "beta")
DEFAULT_LEVEL = 0.9


@dataclass(frozen=True)
class Estimate:
    """A number with the ends of its interval; not-a-number where there is none."""

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan

    @property
    def has_interval(self) -> bool:
        return math.isfinite(self.low) and math.isfinite(self.high)


@dataclass(frozen=True, kw_only=True)
class ArmFit:
    """What was fitted to one arm and target. `n_kind` and `d_kind` name the columns that N and D are."""

    arm: str
    target: str
    n_kind: str
    d_kind: str
    flops_convention: str
    surface: SurfaceFit | None = None
    isoflop: IsoflopFit | None = None
    curve: PowerLawFit | None = None  # L(C), the best loss against FLOPs
    warnings: tuple[str, ...] = ()  # why something was not fitted

    def profiles(self) -> Iterator[Profile]:
        """The isoFLOP profiles that have a parabola."""
        for p in self.isoflop.profiles if self.isoflop else ():
            if p.parabola is None:
                continue
            yield Profile(
                budget=p.flops_budget,
                flops=p.train_flops,
                optimum=as_estimate(p.optimal_params, p.optimal_params_interval),
                minimum=as_estimate(p.optimal_loss, p.optimal_loss_interval),
                floor=p.parabola.floor,
                curvature=p.parabola.curvature,
                skew=getattr(p.parabola, "skew", 0.0),
                log_optimum=p.parabola.log_optimal_params,
                status=p.status,
            )


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The fit of one budget: loss(N) = floor + curvature u^2 + skew u^3, u = ln N - log_optimum; a parabola's skew is 0."""

    budget: float  # FLOPs, as planned
    flops: float  # FLOPs, geometric mean of the runs'
    optimum: Estimate  # parameters; not-a-number where the minimum is not interior
    minimum: Estimate  # loss at the optimum, nats a token
    floor: float
    curvature: float
    skew: float
    log_optimum: float
    status: str  # interior, below_smallest, above_largest, not_convex

    @property
    def inside(self) -> bool:
        """Whether the minimum lies between the smallest and the largest trained size."""
        return self.status == "interior" and is_number(self.optimum.value)

    def loss(self, params: float) -> float:
        away = math.log(params) - self.log_optimum
        return self.floor + self.curvature * away**2 + self.skew * away**3


@dataclass(frozen=True)
class CurvePoint:
    """A multiplier at one place of the overlap; `flops` are the baseline's, `loss` is what both arms reach."""

    flops: float
    loss: float
    multiplier: Estimate


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """FLOPs that the baseline needs for the arm's loss, over the arm's FLOPs: above 1 the arm needs fewer."""

    baseline: str
    arm: str
    target: str
    method: str  # how it came about, in words
    shared: bool = False  # from shared exponents, not from the two arms' curves
    multiplier: Estimate = field(default_factory=Estimate)  # over the whole overlap (geometric mean)
    overlap: Interval | None = None  # lowest and highest loss both arms reach, nats a token
    curve: tuple[CurvePoint, ...] = ()
    level: float = DEFAULT_LEVEL
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class MatchedPairs:
    """Runs of an arm and the baseline that are matched: differences are arm minus baseline, nats a token."""

    arm: str
    target: str
    differences: tuple[float, ...]
    mean: Estimate
    level: float


@dataclass(frozen=True, kw_only=True)
class Fits:
    """Everything fitted. `present` is False where there is no fits.json."""

    present: bool = False
    arms: tuple[ArmFit, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    pairs: tuple[MatchedPairs, ...] = ()
    accuracy_laws: tuple[AccuracyLaw, ...] = ()
    accuracy_comparisons: tuple[AccuracyComparison, ...] = ()
    level: float = DEFAULT_LEVEL  # nominal coverage of the intervals
    warnings: tuple[str, ...] = ()  # of the study as a whole
    tables: dict[str, str] = field(default_factory=dict)  # file -> SHA-256 of the tables that were fitted

    def outdated(self, folder: Path) -> list[str]:
        """The fitted tables that are others now: the laws are not of the points that stand beside them."""
        return [
            name
            for name, sha256 in self.tables.items()
            if (folder / name).is_file() and records.file_sha256(folder / name) != sha256
        ]

    @property
    def six_nd(self) -> tuple[str, str] | None:
        """The columns N and D where C is 6 N D in these fits; None where C is FLOPs as spent."""
        return next(((f.n_kind, f.d_kind) for f in self.arms if f.flops_convention == "six_nd"), None)

    def of(self, arm: str, target: str) -> ArmFit | None:
        """The fit of an arm's target, if there is one."""
        return next((f for f in self.arms if (f.arm, f.target) == (arm, target)), None)


def as_estimate(value: Any, interval: Any = None) -> Estimate:
    """A number and its interval (low, high), whichever are there."""
    low, high = interval if isinstance(interval, list | tuple) and len(interval) == 2 else (math.nan, math.nan)
    return Estimate(as_float(value), as_float(low), as_float(high))


def read_fits(path: Path) -> Fits:
    """Read fits.json; a missing file gives Fits(present=False), a damaged one a DataError."""
    if not path.is_file():
        return Fits()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        parts = [content.get(key, []) for key in ("fits", "comparisons")] if isinstance(content, dict) else [None]
        if not all(isinstance(part, list) and all(isinstance(entry, dict) for entry in part) for part in parts):
            raise DataError("it does not have the shape of docs/fitting.md")
        arms = tuple(_arm_fit(entry) for entry in content.get("fits", []))
        comparisons = tuple(c for entry in content.get("comparisons", []) for c in _comparisons(entry))
        pairs = tuple(_matched(entry) for entry in content.get("comparisons", []) if entry.get("matched"))
        level = float(content.get("options", {}).get("level", DEFAULT_LEVEL))
        warnings = tuple(str(w) for w in content.get("warnings", ()))
        tables = {str(name): str(sha256) for name, sha256 in content.get("tables", {}).items()}
        of_accuracy = accuracy_laws.read_laws(content), accuracy_laws.read_comparisons(content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, LstError) as problem:
        raise DataError(f"'{path}' cannot be read ({problem}); write it again with fit-scaling fit.") from problem
    return Fits(
        present=True,
        arms=arms,
        comparisons=comparisons,
        pairs=pairs,
        accuracy_laws=of_accuracy[0],
        accuracy_comparisons=of_accuracy[1],
        level=level,
        warnings=warnings,
        tables=tables,
    )


def _arm_fit(entry: Mapping[str, Any]) -> ArmFit:
    surface, isoflop, curve = (entry.get(k) for k in ("loss_surface", "isoflop", "loss_curve"))
    return ArmFit(
        arm=str(entry["arm"]),
        target=str(entry["target"]),
        n_kind=str(entry.get("n_kind", "num_params")),
        d_kind=str(entry.get("d_kind", "tokens")),
        flops_convention=str(entry.get("flops_convention", "")),
        surface=SurfaceFit.from_json(surface) if surface else None,
        isoflop=IsoflopFit.from_json(isoflop) if isoflop else None,
        curve=PowerLawFit.from_json(curve) if curve else None,
        warnings=tuple(str(w) for w in entry.get("warnings", ())),
    )


def _comparisons(entry: Mapping[str, Any]) -> Iterator[Comparison]:
    """The curve's comparison and the shared-exponent one of an entry, whichever are there."""
    names: dict[str, Any] = {k: str(entry[k]) for k in ("baseline", "arm", "target")}
    warnings = tuple(str(w) for w in entry.get("warnings", ()))
    curve, shared = entry.get("curve"), entry.get("shared")
    if curve:
        yield _from_curve(MultiplierCurve.from_json(curve), names, warnings)
    if shared:
        fit = SharedFit.from_json(shared)
        compute = fit.efficiencies.get(names["arm"], {}).get("compute")
        estimate = as_estimate(compute, fit.intervals.get(names["arm"], {}).get("compute"))
        yield Comparison(
            **names,
            method="shared exponents",
            shared=True,
            multiplier=estimate,
            level=fit.level,
            warnings=warnings + fit.warnings,
        )
    if not curve and not shared:
        yield Comparison(**names, method="none", warnings=warnings)


def _matched(entry: Mapping[str, Any]) -> MatchedPairs:
    of = entry["matched"]
    return MatchedPairs(
        arm=str(entry["arm"]),
        target=str(entry["target"]),
        differences=tuple(float(pair["difference"]) for pair in of["pairs"]),
        mean=as_estimate(of["mean"], of["interval"]),
        level=float(of["level"]),
    )


def _from_curve(curve: MultiplierCurve, names: dict[str, Any], warnings: tuple[str, ...]) -> Comparison:
    low, high = (curve.low, curve.high) if curve.low else ((math.nan,) * len(curve.losses),) * 2
    points = tuple(
        CurvePoint(flops, loss, Estimate(*m))
        for flops, loss, m in zip(curve.baseline_flops, curve.losses, zip(curve.multiplier, low, high, strict=True), strict=True)
    )
    return Comparison(
        **names,
        method=curve.method,
        multiplier=as_estimate(curve.mean, curve.mean_interval),
        overlap=curve.overlap,
        curve=tuple(sorted(points, key=lambda p: p.flops)),
        level=curve.level,
        warnings=warnings + curve.warnings,
    )
