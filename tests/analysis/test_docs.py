"""The example in docs/fitting.md runs as it stands, and the page names every option and warning."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pandas as pd
import pytest

from analysis.study import FitOptions
from tests.analysis.tables import isoflop_table

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "fitting.md").read_text()


def test_example_of_the_library_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    block = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert block is not None
    arms = [isoflop_table(noise=0.002), isoflop_table(noise=0.002, efficiency=1.3, arm="lst_static")]
    pd.concat(arms).to_csv(tmp_path / "runs.csv", index=False)
    monkeypatch.chdir(tmp_path)
    exec(compile(block.group(1), "docs/fitting.md", "exec"), {})
    shown = capsys.readouterr().out
    assert "SurfaceFit" in shown
    assert "IsoflopFit" in shown
    assert "MultiplierCurve: 1." in shown


@pytest.mark.parametrize("option", [f.name for f in dataclasses.fields(FitOptions)])
def test_option_is_documented_with_its_default(option: str) -> None:
    row = re.search(rf"^\| `{option}` \| `([^`]*)`", PAGE, re.MULTILINE)
    assert row is not None
    assert row.group(1) == str(getattr(FitOptions(), option))
