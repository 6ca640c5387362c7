"""A plan as a picture: its runs over training FLOPs and parameters, matched runs joined, as SVG and PNG.

Matched runs lie so near to each other that arms stand side by side, a few points apart; refused rows are hollow; where the
budgets are FLOPs, a line shows the expected optimum. The same plan gives the same bytes.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lst.drawing import MUTED, arm_style, drawing, legend_below, new_panel, svg_file
from lst.errors import PlanError
from lst.records import write_atomically
from sweeps.columns import PlanRow
from sweeps.plan import StoredPlan
from sweeps.spend import expected_optimum
from sweeps.study import Length, StudyConfig

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (6.4, 4.4)  # inches
BESIDE = 7.0  # points between two arms
NAME = "plan"


def write_picture(stored: StoredPlan) -> tuple[Path, Path]:
    """Write plan.svg and plan.png into the plan's folder. Raises PlanError where no row trains, OSError where it cannot write."""
    files = stored.folder / f"{NAME}.svg", stored.folder / f"{NAME}.png"
    figure = draw_plan(stored.study, stored.rows)
    png = io.BytesIO()
    with drawing():
        figure.savefig(png, format="png", dpi=200, transparent=False, facecolor="white", metadata={"Software": None})
    write_atomically(files[0], svg_file(figure, NAME).encode())
    write_atomically(files[1], png.getvalue())
    return files


def draw_plan(study: StudyConfig, rows: Sequence[PlanRow]) -> Figure:
    """The grid of the rows that train. Raises PlanError where there are none."""
    trained = [row for row in rows if row.kind in ("pretrain", "branch")]
    if not trained:
        raise PlanError("the plan has no row that trains, so there is nothing to draw.")
    with drawing():
        title = f"{study.name}: {len(trained)} runs, matched by {study.matching}"
        figure, axes = new_panel(title, "training FLOPs of a run", "parameters", size=SIZE)
        axes.set_xscale("log")
        axes.set_yscale("log")
        if study.length is Length.BUDGETS:
            budgets = sorted({row.flops_budget for row in trained})
            optima = [expected_optimum(budget, study.spend.tokens_per_param) for budget in budgets]
            label = f"{study.spend.tokens_per_param:g} tokens a parameter"
            axes.plot(budgets, optima, color=MUTED, linestyle="--", linewidth=1, label=label, zorder=1)
        _draw_runs(figure, axes, trained)
        legend_below(figure, axes)
    return figure


def _draw_runs(figure: Figure, axes: Axes, rows: Sequence[PlanRow]) -> None:
    """A mark a run, the arms side by side, and a line through the runs of a match group."""
    from matplotlib.patches import ConnectionPatch
    from matplotlib.transforms import ScaledTranslation

    arms = list(dict.fromkeys(row.arm for row in rows))
    aside = {arm: (place - (len(arms) - 1) / 2) * BESIDE / 72 for place, arm in enumerate(arms)}  # inches
    at = {arm: axes.transData + ScaledTranslation(inches, 0, figure.dpi_scale_trans) for arm, inches in aside.items()}
    for arm in arms:
        colour, marker = arm_style(arm)
        for admitted in (True, False):
            some = [row for row in rows if row.arm == arm and row.admitted is admitted]
            axes.scatter(
                [row.planned_flops for row in some],
                [row.num_params for row in some],
                marker=marker,
                s=22,
                facecolors=colour if admitted else "none",
                edgecolors=colour,
                label=(arm if admitted else f"{arm}, refused") if some else None,
                transform=at[arm],
                zorder=3,
            )
    groups: dict[str, list[PlanRow]] = {}
    for row in rows:
        groups.setdefault(row.match_group, []).append(row)
    for group in groups.values():
        for row, other in itertools.pairwise(group):
            here, there = ((r.planned_flops, r.num_params) for r in (row, other))
            line = ConnectionPatch(here, there, coordsA=at[row.arm], coordsB=at[other.arm], color=MUTED, linewidth=1, zorder=2)
            line.set_in_layout(False)
            axes.add_artist(line)
    axes.update_datalim([(row.planned_flops, row.num_params) for row in rows])  # marks that stand aside do not tell
    axes.margins(0.08)
    axes.autoscale_view()
