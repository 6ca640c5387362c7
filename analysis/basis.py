"""What every result of a fit has: on what it was fitted, how well, its intervals' method, warnings; and reading it from JSON.

Not here: the results themselves (`analysis.results`, `analysis.form_results`). numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from analysis.laws import Floats, floats
from lst.errors import FitError, LstError, did_you_mean

C = TypeVar("C")
Interval = tuple[float, float]
HOW = {"huber": "Huber on log loss", "squares": "least squares", "absolute": "least absolute deviation of log loss"}
HOW |= {"loss_squares": "least squares of the loss itself", "binomial": "binomial likelihood"}
TOKENS_PER_SECOND = 25
"""Speech tokens of a second (PAPER: 25 Hz), for D in seconds."""


def percentile_interval(samples: Floats, level: float) -> Interval:
    """The central `level` share of `samples` (percentile interval); a FitError on none."""
    if not len(samples):
        raise FitError("no bootstrap samples are kept, so there is no interval; fit again with resamples > 0.")
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def pair(values: Any) -> Interval:
    return float(values[0]), float(values[1])


def readable(read: Callable[[type[C], dict[str, Any]], C]) -> Callable[[type[C], dict[str, Any]], C]:
    """`from_json` of a result, with a FitError in place of what JSON of another kind or shape raises."""

    @wraps(read)
    def checked(cls: type[C], content: dict[str, Any]) -> C:
        try:
            return read(cls, content)
        except LstError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise FitError(
                f"the JSON is no {cls.__name__}'s ({type(error).__name__}: {error}); give the object that to_json() wrote."
            ) from error

    return checked


def require_inside(name: str, values: ArrayLike, fitted: Interval, extrapolate: bool) -> None:
    """Refuse values that no law has, and those outside what was fitted, unless they are asked for with `extrapolate`."""
    away = floats(values).ravel()
    if not (away > 0).all():
        raise FitError(f"{name}={away[~(away > 0)][0]:.4g} is not positive; give parameters, tokens, FLOPs or a loss above 0.")
    outside = away[(away < fitted[0] * (1 - 1e-6)) | (away > fitted[1] * (1 + 1e-6)) | np.isnan(away)]
    if len(outside) and not extrapolate:
        raise FitError(
            f"{name}={outside[0]:.4g} lies outside the fitted {fitted[0]:.4g} to {fitted[1]:.4g}; pass extrapolate=True."
        )


REAL = (int, float)
KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("n", "resamples", "failed"), (int,)),
    **dict.fromkeys(("objective", "residual_spread", "level"), REAL),
    **{"delta": (*REAL, type(None)), "warnings": (list, tuple)},
    **dict.fromkeys(("loss", "interval_method"), (str,)),
}
"""Of what a fit's JSON says of itself, which anybody may have edited."""


@dataclass(frozen=True, kw_only=True)
class Basis:
    """What every fit says of itself."""

    n: int  # points fitted
    loss: str  # huber | squares | absolute, of residuals of log loss; loss_squares (isoFLOP: squares), of the loss; binomial
    delta: float | None  # Huber's threshold on log residuals; else None
    objective: float  # the value at the optimum, a sum over points
    residual_spread: float  # robust standard deviation of the residuals (1.4826 x median absolute)
    level: float  # nominal coverage of the intervals
    interval_method: str  # how the intervals came about, or "none"
    resamples: int  # bootstrap refits asked for
    failed: int  # of them, those that did not converge or could not be fitted
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        names = Basis.__dataclass_fields__
        return {name: list(v) if isinstance(v := getattr(self, name), tuple) else v for name in names}

    @staticmethod
    def read(content: dict[str, Any]) -> dict[str, Any]:
        missing = [name for name in Basis.__dataclass_fields__ if name not in content]
        if missing:
            raise FitError(f"the JSON of a fit lacks {', '.join(missing)}; write it with to_json().")
        for name, kinds in KINDS.items():
            value = content[name]
            if not isinstance(value, kinds) or isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value)):
                raise FitError(f"the JSON of a fit has {name}={value!r}, which no fit has; give the object that to_json() wrote.")
        if content["loss"] not in HOW:
            raise FitError(f"the JSON of a fit has loss={content['loss']!r}; {did_you_mean(content['loss'], HOW)}")
        return {n: tuple(content[n]) if n == "warnings" else content[n] for n in Basis.__dataclass_fields__}

    def _lines(self) -> list[str]:
        how = HOW[self.loss] + (f", delta {self.delta:g}" if self.delta is not None else "")
        kept = f"{self.resamples - self.failed:,} of {self.resamples:,} resamples" if self.resamples else "no resamples"
        lines = [
            f"  {self.n} points; {how}; objective {self.objective:.6g}; residual spread {self.residual_spread:.2g}",
            f"  {self.level:.0%} intervals: {self.interval_method} ({kept})",
        ]
        return lines + [f"  ! {warning}" for warning in self.warnings]
