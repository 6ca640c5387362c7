"""Studies written from a known law, and their rendered pages, made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from reports.page import render
from tests.reports.known_truth import Truth, write_study

FAILED, REFUSED = "baseline/w48/1", "lst_static/w96/2"


@pytest.fixture
def make_study(tmp_path: Path) -> Callable[..., Path]:
    """Write a study with the given fields of Truth and return its folder."""

    def make(name: str = "study", **fields: object) -> Path:
        return write_study(tmp_path / name, Truth(**fields))  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def study_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole study with one failed and one refused run, and its report. Tests must not change it."""
    folder = write_study(tmp_path_factory.mktemp("known") / "study", Truth(failed=(FAILED,), refused=(REFUSED,), graded=True))
    render(folder)
    return folder


@pytest.fixture(scope="session")
def page_text(study_folder: Path) -> str:
    return (study_folder / "report" / "index.html").read_text(encoding="utf-8")
