"""The accuracy laws of fits.json: an arm's sigmoids in the loss and in ln C, and arms against the baseline in accuracy.

A reader through `analysis.form_results`' types, as `reports.laws` is for losses; what was refused is absent, with its reason
among `warnings`. Shape and formulas: docs/fitting.md. Not here: how they are shown (`reports.accuracy`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from analysis.form_results import AccuracyMultiplier, FormFit

OF_LOSS, OF_FLOPS = "loss", "flops"


@dataclass(frozen=True, kw_only=True)
class Band:
    """The interval of a law along the data; `at` are losses (nats a token) or FLOPs, accuracies are shares."""

    at: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class AccuracyLaw:
    """Both sigmoids of an arm on one task in one direction; None where refused."""

    arm: str
    task: str
    direction: str
    loss_target: str  # the held-out loss that `of["loss"]` is a law of
    chance: float
    six_nd: bool  # C is 6 N D, not FLOPs as spent
    of: dict[str, FormFit | None]  # by OF_LOSS, OF_FLOPS
    bands: dict[str, Band | None] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PairedItems:
    """Matched runs on the same items: the arm's accuracy minus the baseline's, a share."""

    pairs: int
    items: int
    difference: float
    interval: tuple[float, float] | None  # over pairs and items; None of one pair
    level: float


@dataclass(frozen=True, kw_only=True)
class AccuracyComparison:
    """An arm against the baseline on one task in one direction; None where refused."""

    baseline: str
    arm: str
    task: str
    direction: str
    curve: AccuracyMultiplier | None
    items: PairedItems | None
    warnings: tuple[str, ...] = ()


def read_laws(content: Mapping[str, Any]) -> tuple[AccuracyLaw, ...]:
    """The laws in fits.json's content; none in a file of an earlier version."""
    return tuple(_law(entry) for entry in content.get("accuracy_laws", ()))


def read_comparisons(content: Mapping[str, Any]) -> tuple[AccuracyComparison, ...]:
    return tuple(_comparison(entry) for entry in content.get("accuracy_comparisons", ()))


def _law(entry: Mapping[str, Any]) -> AccuracyLaw:
    return AccuracyLaw(
        **_names(entry, "arm", "task", "direction", "loss_target"),
        chance=float(entry["chance"]),
        six_nd=entry.get("flops_convention") == "six_nd",
        of={x: FormFit.from_json(entry[f"of_{x}"]) if entry.get(f"of_{x}") else None for x in (OF_LOSS, OF_FLOPS)},
        bands={x: _band(entry.get(f"of_{x}_band")) for x in (OF_LOSS, OF_FLOPS)},
        warnings=tuple(str(w) for w in entry.get("warnings", ())),
    )


def _band(content: Mapping[str, Any] | None) -> Band | None:
    return Band(**{k: tuple(float(v) for v in content[k]) for k in ("at", "low", "high")}) if content else None


def _comparison(entry: Mapping[str, Any]) -> AccuracyComparison:
    curve, items = entry.get("curve"), entry.get("items")
    return AccuracyComparison(
        **_names(entry, "baseline", "arm", "task", "direction"),
        curve=AccuracyMultiplier.from_json(curve) if curve else None,
        items=_items(items) if items else None,
        warnings=tuple(str(w) for w in entry.get("warnings", ())),
    )


def _items(content: Mapping[str, Any]) -> PairedItems:
    band = content["interval"]
    return PairedItems(
        pairs=int(content["pairs"]),
        items=int(content["n_items"]),
        difference=float(content["difference"]),
        interval=(float(band[0]), float(band[1])) if band else None,
        level=float(content["level"]),
    )


def _names(entry: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: str(entry[key]) for key in keys}
