"""Results as `analysis.results`', for laws of over-training, repeated data and accuracy, and for a multiplier in accuracy."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from analysis.basis import Basis, Interval, pair, percentile_interval, readable, require_inside
from analysis.forms import ChanceSigmoid, OvertrainingLaw, RepetitionLaw
from analysis.laws import Floats, floats
from lst.errors import FitError

LAWS: dict[str, tuple[type[OvertrainingLaw] | type[RepetitionLaw] | type[ChanceSigmoid], str]] = {
    "overtraining": (OvertrainingLaw, "L(C, M) = E + (a M^eta + b M^-eta) C^-eta"),
    "repetition": (RepetitionLaw, "L(N, D, U) = E + A / N'^alpha + B / D'^beta"),
    "accuracy_of_loss": (ChanceSigmoid, "p(L) = chance + (ceiling - chance) / (1 + exp(-slope (L - midpoint)))"),
    "accuracy_of_flops": (ChanceSigmoid, "p(C) = chance + (ceiling - chance) / (1 + exp(-slope (ln C - midpoint)))"),
}
HELD = {"repetition": RepetitionLaw.names()[:5]} | dict.fromkeys(("accuracy_of_loss", "accuracy_of_flops"), ("chance", "ceiling"))
"""Parameters that are given, not fitted."""


@dataclass(frozen=True, kw_only=True, repr=False)
class FormFit(Basis):
    """A fitted law of `analysis.forms`. What it is a function of, and how far the data went, is in `ranges`, in order."""

    form: str  # a key of LAWS
    law: OvertrainingLaw | RepetitionLaw | ChanceSigmoid
    intervals: dict[str, Interval]  # of the parameters that were fitted and are determined
    ranges: dict[str, Interval]
    extra: dict[str, float] = field(default_factory=dict)  # best_ratio; dispersion of an accuracy: Pearson's X^2 over its degrees
    samples: Floats | None = field(default=None, compare=False)  # (kept, all parameters)

    def predict(self, *at: ArrayLike, extrapolate: bool = False) -> Floats:
        """The law at its arguments, in the order of `ranges`. Raises FitError outside the data unless `extrapolate`."""
        return self.law.predict(*self._inside(at, extrapolate))

    def interval(self, name: str = "value", *at: ArrayLike, extrapolate: bool = False) -> Interval:
        """Percentile interval of a fitted parameter by name, or of the "value" at the law's arguments."""
        if name in self.intervals:
            return self.intervals[name]
        if name != "value" or self.samples is None or len(at) != len(self.ranges):
            known = ", ".join((*self.intervals, "value"))
            raise FitError(
                f"no interval for '{name}' with {len(at)} arguments; ask for one of {known}, with {', '.join(self.ranges)}."
            )
        law = type(self.law)(*(column[:, None] for column in self.samples.T))
        return percentile_interval(law.predict(*self._inside(at, extrapolate)).ravel(), self.level)

    def _inside(self, at: tuple[ArrayLike, ...], extrapolate: bool) -> list[Floats]:
        values = [floats(v) for v in at]
        if len(values) != len(self.ranges):
            raise FitError(f"{len(values)} arguments for a law in {', '.join(self.ranges)}; give one for each, in this order.")
        for (name, extent), value in zip(self.ranges.items(), values, strict=True):
            require_inside(name, value, extent, extrapolate)
        return [np.log(v) for v in values] if self.form == "accuracy_of_flops" else values

    def to_json(self, *, samples: bool = True) -> dict[str, Any]:
        content = {"form": self.form, "law": self.law.to_json(), **super().to_json(), "extra": self.extra}
        content |= {name: {k: list(v) for k, v in getattr(self, name).items()} for name in ("intervals", "ranges")}
        if samples and self.samples is not None:
            content["samples"] = self.samples.tolist()
        return content

    @classmethod
    @readable
    def from_json(cls, content: dict[str, Any]) -> Self:
        if content.get("form") not in LAWS:
            raise FitError(f"form={content.get('form')} is none of {', '.join(LAWS)}; write the JSON with to_json().")
        kind = LAWS[content["form"]][0]
        samples = content.get("samples")
        return cls(
            form=content["form"],
            law=kind.from_json(content["law"]),
            intervals={k: pair(v) for k, v in content["intervals"].items()},
            ranges={k: pair(v) for k, v in content["ranges"].items()},
            extra=content.get("extra", {}),
            samples=None if samples is None else floats(samples).reshape(-1, len(kind.names())),
            **Basis.read(content),
        )

    def __repr__(self) -> str:
        rows = [f"FormFit, {self.form}: {LAWS[self.form][1]}"]
        for name in self.law.names():
            interval = self.intervals.get(name)
            shown = f"  [{interval[0]:.4g}, {interval[1]:.4g}]" if interval else "  held" * (name in HELD.get(self.form, ()))
            rows.append(f"  {name:<13}{getattr(self.law, name):>12.6g}{shown}")
        rows += [f"  {name:<13}{value:>12.6g}" for name, value in self.extra.items()]
        return "\n".join(rows + self._lines())


@dataclass(frozen=True, kw_only=True)
class AccuracyMultiplier:
    """FLOPs the baseline needs for an accuracy, over FLOPs the arm needs; above 1 the arm wins."""

    accuracies: tuple[float, ...]  # inside the overlap, from the lowest
    multiplier: tuple[float, ...]  # on the sigmoid's scale
    low: tuple[float, ...]  # band over draws and scales
    high: tuple[float, ...]
    mean: float  # geometric mean over the overlap, sigmoid
    mean_interval: Interval
    by_scale: dict[str, float]  # the mean on each scale, without noise; without those on which an arm does not rise
    slope_interval: Interval  # of d ln multiplier / d ln C over the overlap: does the gain grow?
    overlap: Interval
    level: float
    draws: int
    undetermined: float  # share of draws in which an arm does not rise: any multiplier goes
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @classmethod
    @readable
    def from_json(cls, content: dict[str, Any]) -> Self:
        """The result that `to_json` wrote. Raises FitError on keys that are missing or unknown."""
        if wrong := sorted(set(cls.__dataclass_fields__) ^ set(content)):
            raise FitError(
                f"the JSON of an accuracy multiplier lacks, or should lack, {', '.join(wrong)}; write it with to_json()."
            )
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in content.items()}
        return cls(**values)

    def interval(self) -> Interval:
        """Interval of the geometric mean over the overlap."""
        return self.mean_interval

    def __repr__(self) -> str:
        (low, high), (least, most), (down, up) = self.mean_interval, self.overlap, self.slope_interval
        lines = [
            f"AccuracyMultiplier: {self.mean:.3g}x [{low:.3g}, {high:.3g}] over accuracies {least:.3g} to {most:.3g}",
            "  by scale: " + ", ".join(f"{name} {value:.3g}x" for name, value in self.by_scale.items()),
            f"  d ln multiplier / d ln C in [{down:+.3g}, {up:+.3g}]; {self.level:.0%} bands",
        ]
        return "\n".join(lines + [f"  ! {w}" for w in self.warnings])
