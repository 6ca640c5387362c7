"""A plan's picture: every run is in it, the same plan gives the same bytes, and a folder without a plan is one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

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
    pairs = [line for line in axes.lines if len(line.get_xdata()) == 2]
    assert len(pairs) >= len({row.match_group for row in stored.rows})


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
