"""Tables of what was fitted: surfaces, isoFLOP minima, multipliers, residuals, and runs against the n-gram references.

Warnings are long and repeat from row to row: a table shows them as letters and spells each out once below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from reports import numbers
from reports.answer import ReferenceVerdict
from reports.laws import SURFACE_PARAMETERS, ArmFit, Comparison
from reports.numbers import fixed, general, interval, percent, scientific, short
from reports.tables import Column, Table, as_rows


def marked_warnings(rows: Sequence[dict[str, Any]]) -> tuple[Column, tuple[str, ...]]:
    """A column that shows each row's `warnings` (a tuple) as letters, and the notes that spell them out once."""
    known = list(dict.fromkeys(w for row in rows for w in row["warnings"]))
    letters = {w: _letter(place) for place, w in enumerate(known)}
    column = Column("warnings", "warnings", lambda value: ", ".join(letters[w] for w in value) or "none", numeric=False)
    return column, tuple(f"{letters[w]}: {w}" for w in known)


def _letter(place: int) -> str:
    """a ... z, aa, ab ..."""
    return ("" if place < 26 else _letter(place // 26 - 1)) + chr(ord("a") + place % 26)


def fits_table(fits: Sequence[ArmFit]) -> Table:
    """A row a fitted surface; parameters with their intervals, warnings in full."""
    rows = []
    for fit in fits:
        if fit.surface is None:
            continue
        row: dict[str, Any] = {
            "arm": fit.arm, "target": fit.target, "kinds": f"{fit.n_kind}, {fit.d_kind}", "points": fit.surface.n,
            "objective": fit.surface.objective, "level": fit.surface.level,
            "warnings": fit.surface.warnings + fit.warnings,
        }  # fmt: skip
        for name in SURFACE_PARAMETERS:
            band = fit.surface.intervals.get(name)
            row[name] = general(getattr(fit.surface.law, name)) + (f" {interval(*band, general)}" if band else "")
        rows.append(row)
    warnings, notes = marked_warnings(rows)
    greek = {"alpha": "α", "beta": "β"}
    columns = (
        Column("arm", "arm", numeric=False),
        Column("target", "target", numeric=False),
        Column("kinds", "N and D", numeric=False),
        Column("points", "runs", numbers.count),
        *(Column(name, greek.get(name, name), numeric=False) for name in SURFACE_PARAMETERS),
        Column("objective", "objective", general),
        Column("level", "interval level", percent(0)),
        warnings,
    )
    return Table("fits", "Loss surfaces L(N, D) = E + A / N^α + B / D^β, with bootstrap intervals.", columns, tuple(rows), notes)


def comparisons_table(comparisons: Sequence[Comparison]) -> Table:
    rows = []
    for c in comparisons:
        low, high = c.overlap or (math.nan, math.nan)
        rows.append(
            {
                "arm": c.arm,
                "baseline": c.baseline,
                "target": c.target,
                "method": c.method,
                "multiplier": c.multiplier.value,
                "interval": interval(c.multiplier.low, c.multiplier.high, fixed(2)),
                "level": c.level,
                "overlap": interval(low, high, fixed(3)),
                "warnings": c.warnings,
            }
        )
    warnings, notes = marked_warnings(rows)
    columns = (
        Column("arm", "arm", numeric=False),
        Column("baseline", "against", numeric=False),
        Column("target", "target", numeric=False),
        Column("method", "method", numeric=False),
        Column("multiplier", "compute multiplier (×)", fixed(2)),
        Column("interval", "interval", numeric=False),
        Column("level", "level", percent(0)),
        Column("overlap", "overlap (nats / token)", numeric=False),
        warnings,
    )
    return Table("multipliers", "Compute multipliers inside the overlap of losses.", columns, tuple(rows), notes)


def minima_table(fits: Sequence[ArmFit]) -> Table:
    """The isoFLOP minima of every arm and target."""
    rows = []
    for fit in fits:
        for p in fit.profiles():
            rows.append(
                {
                    "arm": fit.arm,
                    "target": fit.target,
                    "flops_budget": p.budget,
                    "status": p.status.replace("_", " "),
                    "optimal_params": p.optimum.value,
                    "params_interval": interval(p.optimum.low, p.optimum.high, short),
                    "optimal_loss": p.minimum.value,
                    "loss_interval": interval(p.minimum.low, p.minimum.high, fixed(3)),
                    "level": fit.isoflop.level if fit.isoflop else math.nan,
                }
            )
    columns = (
        Column("arm", "arm", numeric=False),
        Column("target", "target", numeric=False),
        Column("flops_budget", "budget (FLOPs)", scientific),
        Column("status", "minimum", numeric=False),
        Column("optimal_params", "parameters", short),
        Column("params_interval", "interval", numeric=False),
        Column("optimal_loss", "loss (nats / token)", fixed(3)),
        Column("loss_interval", "interval", numeric=False),
        Column("level", "level", percent(0)),
    )
    return Table(
        "minima",
        "Minima of the isoFLOP profiles with bootstrap intervals; a dash where the minimum is not inside the trained sizes.",
        columns,
        tuple(rows),
    )


def residuals_table(table: pd.DataFrame) -> Table:
    columns = (
        Column("run_id", "run", numeric=False),
        Column("arm", "arm", numeric=False),
        Column("size", "size", numeric=False),
        Column("flops", "FLOPs", scientific),
        Column("loss", "measured (nats / token)", fixed(4)),
        Column("fitted", "fitted (nats / token)", fixed(4)),
        Column("residual", "residual of ln loss", percent(2)),
    )
    return Table("residuals", "Measured and fitted losses.", columns, as_rows(table))


def references_table(verdicts: Sequence[ReferenceVerdict]) -> Table:
    rows = tuple(
        {
            **{f: getattr(v, f) for f in v.__dataclass_fields__},
            "margin": v.margin,
            "verdict": "beaten" if v.beaten else "not beaten",
        }
        for v in verdicts
    )
    columns = (
        Column("modality", "modality", numeric=False),
        Column("reference", "reference", numeric=False),
        Column("reference_loss", "reference's loss (nats / token)", fixed(3)),
        Column("arm", "arm", numeric=False),
        Column("run_id", "best run", numeric=False),
        Column("loss", "run's loss (nats / token)", fixed(3)),
        Column("margin", "reference minus run (nats)", fixed(3)),
        Column("verdict", "verdict", numeric=False),
    )
    return Table(
        "references",
        "The best run of each arm at the largest budget against n-gram models of the same held-out tokens.",
        columns,
        rows,
    )
