"""A plan's picture: every run is in it, the same plan gives the same bytes, and a folder without a plan is one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.patches import ConnectionPatch

from sweeps.cli import main
from sweeps.picture import draw_plan, write_picture
from sweeps.plan import read_plan


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("picture") / "study"
    assert main(["study=isoflop", "budgets=[1e19,1e20]", "recipe.name=paper", f"out={out}"]) == 0
    return out


def test_every_run_is_a_point_refused_ones_hollow_and_matched_ones_joined(study: Path) -> None:
    stored = read_plan(study)
    (axes,) = draw_plan(stored.study, stored.rows).axes
    admitted = {row.admitted for row in stored.rows}
    assert admitted == {True, False}  # the paper's warm-up is too long for the short runs
    points = [(round(x, -15), y) for some in axes.collections for x, y in some.get_offsets().tolist()]
    assert sorted(points) == sorted((round(r.planned_flops, -15), r.num_params) for r in stored.rows)
    hollow = [some for some in axes.collections if len(some.get_offsets()) and not len(some.get_facecolor())]
    assert sum(len(some.get_offsets()) for some in hollow) == sum(not row.admitted for row in stored.rows)
    joined = {frozenset((line.xy1, line.xy2)) for line in axes.get_children() if isinstance(line, ConnectionPatch)}
    groups = {row.match_group for row in stored.rows}
    ends = [[(r.planned_flops, r.num_params) for r in stored.rows if r.match_group == group] for group in groups]
    assert joined == {frozenset(group) for group in ends}


def test_arms_stand_side_by_side_where_their_runs_lie_on_each_other(study: Path) -> None:
    stored = read_plan(study)
    figure = draw_plan(stored.study, stored.rows)
    (axes,) = figure.axes
    first, second = (some for some in axes.collections if len(some.get_offsets()) and len(some.get_facecolor()))
    places = [some.get_offset_transform().transform(some.get_offsets()) for some in (first, second)]
    apart = (places[1][0] - places[0][0]) / figure.dpi * 72  # points, of the first group's two arms
    assert apart[0] == pytest.approx(7.0, abs=0.1)
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    assert all(left < row.planned_flops < right and low < row.num_params < high for row in stored.rows)


def test_the_same_plan_is_the_same_bytes(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["picture", str(study)]) == 0
    assert "plan.svg and" in capsys.readouterr().out
    first = [(study / name).read_bytes() for name in ("plan.svg", "plan.png")]
    assert first[1].startswith(b"\x89PNG")
    write_picture(read_plan(study))
    assert [(study / name).read_bytes() for name in ("plan.svg", "plan.png")] == first


def test_a_plan_with_its_picture_is_unchanged_when_planned_again(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["picture", str(study)]) == 0
    assert main(["study=isoflop", "budgets=[1e19,1e20]", "recipe.name=paper", f"out={study}"]) == 0
    assert "unchanged" in capsys.readouterr().out
    assert (study / "plan.svg").is_file()


def test_a_folder_without_a_plan_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["picture", str(tmp_path)]) == 2
    assert "has no readable plan.csv" in capsys.readouterr().err
