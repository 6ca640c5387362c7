"""The paper's studies from their names on a laptop: the overrides that docs/evaluation.md gives make plans without refusals."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lst.data import statistics
from sweeps.cli import main
from tests.train.tiny_run import ROOT

SMALLER = {"seq_len_units": "96", "units": "[20000]", "after.steps": "[20]", "after.batch_sequences": "2"}


def documented(name: str, data: Path) -> list[str]:
    """The overrides behind S= or T= in the docs, with other data and smaller sizes: a test must be quick."""
    text = (ROOT / "docs" / "evaluation.md").read_text()
    (found,) = re.findall(rf'^    {name}="([^"]*)"$', text, re.MULTILINE)
    pairs = [option.split("=", 1) for option in found.split()]
    return [f"{key}={(SMALLER | {'data': data}).get(key, value)}" for key, value in pairs]


@pytest.mark.parametrize(
    ("study", "names", "runs"), [("lst_table5_asr", "ST", 4), ("lst_table5_tts", "ST", 4), ("lst_figure5", "S", 3)]
)
def test_a_named_study_is_reduced_by_the_documented_overrides(
    toy_dataset: Path, study: str, names: str, runs: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "MIXTURE_SAMPLE", (64, 64))  # sequences by which the mixture is solved
    options = [option for name in names for option in documented(name, toy_dataset)]
    assert main([f"study={study}", "--dry-run", *options]) == 0
    told = capsys.readouterr().out
    assert f"{runs} runs of data" in told
    assert f"{runs} admitted and 0 refused runs" in told
