"""Figures behind the results: residuals of the loss surfaces, training curves, FLOP shares by module group.

As in `figures`, each function gives panels from a study's tables and makes no numbers but those of drawing; residuals are
ln(measured loss) - ln(fitted loss), the quantity that the fit makes small.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from lst.drawing import MUTED, PANEL, PAPER, Panel, arm_style, drawing, legend_below, new_panel, slug
from reports import style
from reports.figures import FLOPS_LABEL, flops_label
from reports.numbers import clipped, listed, percent, plural, scientific, short
from reports.study import GROUPS, Study
from reports.style import log_x

PIECES_ARM = "bpe"
"""The arm whose training losses are per piece of speech; its held-out losses are per speech token, as all arms'."""
CURVE_POINTS = 120
"""Points of a training curve as drawn, pale: means over equal stretches of ln FLOPs."""
SMOOTH_POINTS = 24
"""Stretches of the line through them: wide enough that several runs' lines can be told apart."""
FIRST_SHARE = 0.02
"""A curve starts at this share of its FLOPs: the fall from ln(vocabulary) before it would flatten all the rest."""


def residual_table(study: Study, target: str) -> pd.DataFrame:
    """Runs of fitted surfaces: arm, size, num_params, flops, loss, fitted, residual."""
    final = study.final(target)
    parts = []
    for fit in study.fits.arms:
        if fit.target != target or fit.surface is None:
            continue
        rows = final[final["arm"] == fit.arm].copy()
        for kind in (fit.n_kind, fit.d_kind):
            if kind not in rows:
                rows[kind] = math.nan
            if f"planned_{kind}" in rows:
                rows[kind] = rows[kind].fillna(rows[f"planned_{kind}"])
        rows["fitted"] = fit.surface.predict(rows[fit.n_kind].to_numpy(float), rows[fit.d_kind].to_numpy(float), extrapolate=True)
        rows["residual"] = np.log(rows["loss"].to_numpy(float)) - np.log(rows["fitted"].to_numpy(float))
        parts.append(rows[["run_id", "arm", "size", "num_params", "flops", "loss", "fitted", "residual"]])
    return pd.concat(parts, ignore_index=True).dropna(subset=["residual"]) if parts else pd.DataFrame()


def residual_panels(study: Study, target: str) -> list[Panel]:
    """Residuals against N and against FLOPs: a trend in either is what the law does not hold."""
    table = residual_table(study, target)
    if table.empty:
        return []
    panels = []
    with drawing():
        for column, label, formatter in (("num_params", "parameters", short), ("flops", flops_label(study), scientific)):
            figure, axes = new_panel(f"against {label}", label, "residual of ln loss (%)")
            axes.axhline(0, color=MUTED, linewidth=1.2)
            for arm in dict.fromkeys(table["arm"]):
                rows, (colour, marker) = table[table["arm"] == arm], arm_style(arm)
                axes.plot(rows[column], 100 * rows["residual"], marker, color=colour, label=arm)
            log_x(axes, table[column], formatter)
            limit = 1.15 * max(100 * table["residual"].abs().max(), 0.01)
            axes.set_ylim(-limit, limit)
            legend_below(figure, axes)
            spread = math.sqrt(float((table["residual"] ** 2).mean()))
            description = (
                f"Residuals of the {target} loss surfaces against {label}: root mean square {percent(2)(spread)} of the loss."
            )
            panels.append(Panel(f"residuals-{column.replace('_', '-')}", description, figure))
    return panels


def curve_panels(study: Study) -> list[Panel]:
    """Training loss against FLOPs, a panel an arm, a colour a size."""
    curves = study.curves.dropna(subset=["loss", "train_flops"]).merge(
        study.plan[["run_id", "arm", "size", "num_params"]], on="run_id"
    )
    curves = curves[curves["train_flops"] > 0]
    if curves.empty:
        return []
    curves = curves[curves["train_flops"] >= FIRST_SHARE * curves.groupby("run_id")["train_flops"].transform("max")]
    sizes = list(study.plan.sort_values("num_params")["size"].unique())
    low, high = float(curves["loss"].quantile(0.001)), float(curves["loss"].quantile(0.995))
    panels = []
    with drawing():
        for arm in [a for a in study.arms if a in set(curves["arm"])]:
            rows = curves[curves["arm"] == arm]
            unit = "id, a speech piece is one" if arm == PIECES_ARM else "token"
            figure, axes = new_panel(arm, FLOPS_LABEL, f"training loss (nats per {unit})")
            for size in [s for s in sizes if s in set(rows["size"])]:
                colour, _ = style.budget_style(sizes.index(size))
                for place, (_, run) in enumerate(rows[rows["size"] == size].groupby("run_id", sort=False)):
                    flops, losses = run["train_flops"].to_numpy(float), run["loss"].to_numpy(float)
                    axes.plot(*thinned(flops, losses), color=colour, linewidth=0.7, alpha=0.22)
                    smooth = thinned(flops, losses, points=SMOOTH_POINTS)
                    axes.plot(*smooth, color=colour, linewidth=1.7, label=size if place == 0 else None)
            log_x(axes, [curves["train_flops"].min(), curves["train_flops"].max()], scientific, pad=0.02)
            margin = 0.06 * (high - low)
            axes.set_ylim(low - margin, high + margin)
            legend_below(figure, axes, columns=4)
            runs = rows["run_id"].nunique()
            description = f"Training loss of {plural(runs, 'run')} of {arm} against FLOPs, a colour for each size."
            if arm == PIECES_ARM:
                description += " Its ids stand for several speech tokens, so this loss compares with no other arm's."
            panels.append(Panel(f"curves-{slug(arm)}", description, figure))
    return panels


def thinned(x: np.ndarray, y: np.ndarray, points: int = CURVE_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Means of y (and of ln x) over at most `points` equal stretches of ln x, so that a long curve stays a small drawing."""
    if len(x) <= points:
        return x, y
    logs = np.log(x)
    edges = np.linspace(logs.min(), logs.max(), points + 1)
    place = np.clip(np.searchsorted(edges, logs, side="right") - 1, 0, points - 1)
    counts = np.bincount(place, minlength=points)
    there = counts > 0
    means = [np.bincount(place, weights=v, minlength=points)[there] / counts[there] for v in (logs, y)]
    return np.exp(means[0]), means[1]


def share_panels(study: Study, kind: str) -> list[Panel]:
    """Stacked bars of FLOPs (or parameters) by module group, a bar a size and arm. `kind` is flops_share or num_params."""
    rows = group_shares(study.plan, kind)
    if rows.empty:
        return []
    height = 1.7 + 0.34 * len(rows)
    what = "training FLOPs" if kind == "flops_share" else "parameters"
    with drawing():
        figure, axes = new_panel("", f"share of {what} (%)", "", size=(PANEL[0], height))
        left = np.zeros(len(rows))
        y = np.arange(len(rows))
        for group in GROUPS:
            width = 100 * rows[group].to_numpy(float)
            axes.barh(
                y,
                width,
                left=left,
                height=0.74,
                color=style.GROUP_COLOURS[group],
                edgecolor=PAPER,
                linewidth=0.8,
                label=group,
            )
            ink = PAPER if group in ("global", "decoder") else style.ON_COLOUR
            for index in np.flatnonzero(width >= 9):
                axes.text(
                    left[index] + width[index] / 2,
                    y[index],
                    f"{width[index]:.0f}",
                    ha="center",
                    va="center",
                    fontsize=9.5,
                    color=ink,
                )
            left += width
        axes.set_yticks(y, [clipped(f"{r.arm} {r.size}") for r in rows.itertuples()])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(0, 100)
        axes.grid(visible=False)
        legend_below(figure, axes, columns=3)
    smallest = rows.iloc[0]
    said = listed([f"{g} {percent(0)(smallest[g])}" for g in GROUPS if smallest[g] > 0])
    return [
        Panel(
            "shares",
            f"Share of {what} by module group for each arm and size; {smallest['arm']} {smallest['size']}: {said}.",
            figure,
        )
    ]


def group_shares(plan: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Arm, size, num_params and a share for each group: the mean over the planned runs of that arm and size."""
    columns = [f"{kind}_{g}" for g in GROUPS]
    if not set(columns) <= set(plan.columns):
        return pd.DataFrame()
    values = plan[columns].apply(pd.to_numeric, errors="coerce").fillna(0.0)
    table = plan[["arm", "size", "num_params"]].join(values.div(values.sum(axis=1), axis=0).set_axis(list(GROUPS), axis=1))
    table = table[values.sum(axis=1) > 0]
    means: pd.DataFrame = table.groupby(["arm", "size"], as_index=False, sort=False).mean()
    means["rank"] = means.groupby("size")["num_params"].transform("min")  # a size's arms together, whatever each counts
    return means.sort_values(["rank", "arm"], kind="stable", ignore_index=True).drop(columns="rank")
