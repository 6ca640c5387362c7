"""One tiny data set for the tests of this folder."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.train.tiny_run import write_tiny_dataset


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_dataset(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def restore_process() -> Iterator[None]:
    """The command sets signal handlers and torch's determinism for its process, which here is the tests'."""
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    handlers = {n: signal.getsignal(n) for n in numbers}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    torch.set_deterministic_debug_mode("default")
