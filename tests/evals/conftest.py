"""One tiny data set for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.train.tiny_run import write_tiny_dataset


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_dataset(tmp_path_factory.mktemp("tiny"))
