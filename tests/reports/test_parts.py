"""Numbers, ticks, intervals, tables and figures on their own, against values worked by hand."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lst.drawing import slug
from reports import diagnostics, figures, fit_tables, numbers, style, tables
from reports.stories import story_scores, wilson
from reports.study import read_study
from tests.reports.known_truth import GRADED

MakeStudy = Callable[..., Path]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1e13, "10¹³"),
        (3.04e13, "3×10¹³"),
        (3.06e13, "3.1×10¹³"),
        (9.99e13, "10¹⁴"),
        (0, "0"),
        (2.5e-4, "2.5×10⁻⁴"),
        (None, "—"),
        (math.nan, "—"),
    ],
)
def test_scientific(value: object, shown: str) -> None:
    assert numbers.scientific(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(999, "999"), (1000, "1k"), (70_000, "70k"), (999_900, "1M"), (1_234_567, "1.23M"), (2.6e9, "2.6B"), (None, "—")],
)
def test_short(value: object, shown: str) -> None:
    assert numbers.short(value) == shown


def test_other_numbers() -> None:
    assert numbers.count(1_234_567.0) == "1,234,567"
    assert numbers.fixed(3)(-0.0312) == "−0.031"
    assert numbers.percent(1)(0.7692) == "76.9%"
    assert numbers.interval(1.18, 1.42, numbers.fixed(2)) == "[1.18, 1.42]"
    assert numbers.interval(1.18, None, numbers.fixed(2)) == "—"
    assert numbers.listed(["a", "b", "c"]) == "a, b and c"
    assert numbers.is_number(np.float64(1)) is True
    assert numbers.is_number(True) is False


def test_wilson_interval_by_hand() -> None:
    # z = 1.959964, z^2 = 3.841459: centre (55 + 1.92073) / 103.841459, half z / 103.841459 * sqrt(24.75 + 0.960365)
    low, high = wilson(55, 100, 0.95)
    assert (low, high) == pytest.approx((0.452446, 0.643855), abs=1e-6)
    assert wilson(0, 10, 0.95)[0] == pytest.approx(0, abs=1e-12)
    assert wilson(10, 10, 0.95)[1] == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(("low", "high"), [(9e12, 1.1e14), (1e12, 1e15), (7e4, 1.4e6), (0.9, 1.5), (1.01, 1.4), (1e3, 1e20)])
def test_log_axes_have_few_round_ticks(low: float, high: float) -> None:
    ticks = style.log_ticks(low, high)
    assert 2 <= len(ticks) <= 7
    assert all(low <= t <= high for t in ticks)


def test_thinned_curve_keeps_ends_and_means() -> None:
    x = np.geomspace(1, 1e4, 5000)
    thin_x, thin_y = diagnostics.thinned(x, np.full(5000, 2.5), points=50)
    assert len(thin_x) == 50
    assert np.allclose(thin_y, 2.5)
    assert x[0] <= thin_x[0] < thin_x[-1] <= x[-1]
    same_x, _ = diagnostics.thinned(x[:10], x[:10])
    assert len(same_x) == 10


def test_slugs_are_safe_and_distinct() -> None:
    assert slug("lst_static") == "lst_static"
    evil, other = slug('../"<a>'), slug("../'<a>")
    assert evil != other
    assert not set(evil) & set('/"<>')


def test_latex_is_escaped() -> None:
    assert tables.latex_escape("a_b & 5% {x} 3×10¹³ \\") == (r"a\_b \& 5\% \{x\} 3$\times$10$^{1}$$^{3}$ \textbackslash{}")


def test_warnings_become_letters_spelled_out_once() -> None:
    rows = [{"warnings": ("few", "noisy")}, {"warnings": ()}, {"warnings": ("noisy",)}]
    column, notes = fit_tables.marked_warnings(rows)
    assert [column.show(row["warnings"]) for row in rows] == ["a, b", "none", "b"]
    assert notes == ("a: few", "b: noisy")


def test_csv_holds_full_values(study_folder: Path) -> None:
    study = read_study(study_folder)
    rows = list(csv.DictReader(io.StringIO(tables.losses_table(study).csv())))
    assert len(rows) == 25
    final = study.final("mixture").set_index("run_id")["loss"]
    assert all(float(row["mixture"]) == final[row["run_id"]] for row in rows)
    multipliers = list(csv.DictReader((study_folder / "report" / "tables" / "multipliers.csv").open()))
    assert [(m["arm"], float(m["multiplier"]), m["warnings"]) for m in multipliers] == [
        ("lst_static", 1.3, "3 budgets are few"),
        ("lst_static", 1.3, ""),
    ]


def test_matching_table_gives_the_widest_gap(study_folder: Path) -> None:
    table = tables.matching_table(read_study(study_folder))
    assert len(table.rows) == 9
    row = next(r for r in table.rows if r["arm"] == "lst_static" and r["flops_budget"] == 1e13)
    # planned FLOPs are budget * (1 + 0.0005 * (row number mod 5)): baseline rows 0 2 4 7, lst_static rows 1 3 5 8
    gaps = [1.0005 / 1 - 1, 1.0015 / 1.001 - 1, 1 / 1.002 - 1, 1.0015 / 1.001 - 1]
    assert row["widest_gap"] == pytest.approx(min(gaps))
    assert row["runs"] == 4


def test_final_losses_are_the_last_evaluation_of_usable_runs(make_study: MakeStudy) -> None:
    import pandas as pd

    folder = make_study(arms=("baseline",))
    results = pd.read_csv(folder / "results.csv", dtype={"run_id": str})
    early = results.assign(step=10, value=99.0)
    pd.concat([results, early]).to_csv(folder / "results.csv", index=False)
    runs = pd.read_csv(folder / "runs.csv", dtype={"run_id": str})
    runs["excluded"] = ["diverged"] + [None] * (len(runs) - 1)
    runs.to_csv(folder / "runs.csv", index=False)
    final = read_study(folder).final("mixture")
    assert final["loss"].max() < 90
    assert len(final) == 11


def test_residuals_of_the_true_law_are_the_noise(study_folder: Path) -> None:
    table = diagnostics.residual_table(read_study(study_folder), "mixture")
    assert set(table["arm"]) == {"baseline", "lst_static"}
    assert len(table) == 22
    assert table["residual"].abs().max() < 4 * 0.004 / table["loss"].min()  # four standard deviations of the noise


def test_isoflop_panel_draws_runs_parabolas_and_minima(study_folder: Path) -> None:
    panels = figures.isoflop_panels(read_study(study_folder), "mixture")
    assert [p.name for p in panels] == ["isoflop-mixture-baseline", "isoflop-mixture-lst_static"]
    axes = panels[0].figure.axes[0]
    points = sum(len(line.get_xdata()) for line in axes.lines if line.get_marker() in style.BUDGET_MARKERS)
    assert points == 11  # 12 cells, one failed
    assert sum(len(line.get_xdata()) == 48 for line in axes.lines) == 3
    assert axes.get_xscale() == "log"


def test_arms_that_were_evaluated_in_different_ways_are_told_apart(study_folder: Path) -> None:
    scores = [s for s in story_scores(read_study(study_folder)) if (s.task, s.direction) == ("story_later", "S->S")]
    (panel,) = figures.story_panels(scores)
    assert "evaluated" not in [column.key for column in tables.stories_table(scores).columns]
    ways = [replace(s, evaluated="join=closed" if s.arm == "baseline" else "join=straddle", chance=0.25) for s in scores]
    first, second = figures.story_panels(ways)
    assert {first.name, second.name} == {f"{panel.name}-1", f"{panel.name}-2"}
    assert "Evaluated with join=closed; other arms otherwise" in first.description
    assert tables.stories_table(ways).columns[-1].key == "evaluated"


def test_story_scores_carry_chance_and_verdict(study_folder: Path) -> None:
    scores = [s for s in story_scores(read_study(study_folder)) if s.task != GRADED]
    assert {(s.task, s.direction) for s in scores} == {
        (f"story_{t}", d) for t in ("elsewhere", "later") for d in ("S->S", "T->T")
    }
    assert all(s.low < s.accuracy < s.high and s.chance == 0.5 and s.level == 0.9 and s.items == 400 for s in scores)
    strong = [s for s in scores if (s.task, s.direction) == ("story_elsewhere", "T->T")]
    assert {s.verdict for s in strong} == {"above chance"}
