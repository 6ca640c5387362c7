"""Scaling-law fits of a study or of any table: what a notebook needs, imported when it is first used.

    from analysis import fit_loss_surface, fit_isoflop, compute_multiplier

docs/fitting.md states every formula, option and warning. Not here: training records (`lst.records`) and figures (`reports`).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.accuracy_fit import fit_accuracy
    from analysis.arm_tests import exponent_test
    from analysis.checks import held_out, influence
    from analysis.compare import compute_multiplier
    from analysis.endpoints import accuracy_multiplier
    from analysis.fit import fit_loss_surface, fit_power_law
    from analysis.form_results import AccuracyMultiplier, FormFit
    from analysis.isoflop import fit_isoflop
    from analysis.laws import LossSurface, PowerLaw
    from analysis.overtraining import fit_overtraining, fit_repetition
    from analysis.results import IsoflopFit, MultiplierCurve, PowerLawFit, SharedFit, SurfaceFit
    from analysis.shared import fit_shared_exponents

_HOME = {
    "fit_accuracy": "analysis.accuracy_fit",
    "fit_overtraining": "analysis.overtraining",
    "fit_repetition": "analysis.overtraining",
    "AccuracyMultiplier": "analysis.form_results",
    "accuracy_multiplier": "analysis.endpoints",
    "exponent_test": "analysis.arm_tests",
    "held_out": "analysis.checks",
    "influence": "analysis.checks",
    "FormFit": "analysis.form_results",
    "fit_loss_surface": "analysis.fit",
    "fit_power_law": "analysis.fit",
    "fit_isoflop": "analysis.isoflop",
    "compute_multiplier": "analysis.compare",
    "fit_shared_exponents": "analysis.shared",
    "LossSurface": "analysis.laws",
    "PowerLaw": "analysis.laws",
    "SurfaceFit": "analysis.results",
    "PowerLawFit": "analysis.results",
    "IsoflopFit": "analysis.results",
    "MultiplierCurve": "analysis.results",
    "SharedFit": "analysis.results",
}

__all__ = [
    "AccuracyMultiplier",
    "FormFit",
    "IsoflopFit",
    "LossSurface",
    "MultiplierCurve",
    "PowerLaw",
    "PowerLawFit",
    "SharedFit",
    "SurfaceFit",
    "accuracy_multiplier",
    "compute_multiplier",
    "exponent_test",
    "fit_accuracy",
    "fit_isoflop",
    "fit_loss_surface",
    "fit_overtraining",
    "fit_power_law",
    "fit_repetition",
    "fit_shared_exponents",
    "held_out",
    "influence",
]


def __getattr__(name: str) -> Any:
    """Import a public name's module on first use, so that `fit-scaling --help` and mere imports stay quick."""
    if name not in _HOME:
        raise AttributeError(f"module 'analysis' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)
