"""What the launcher's tests share: a scheduler of files on PATH."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.launch.fake_slurm import install


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The fake SLURM's folder (tests/launch/fake_slurm.py)."""
    folder = tmp_path / "slurm"
    for name, value in install(folder).items():
        monkeypatch.setenv(name, value)
    return folder
