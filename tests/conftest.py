"""What all tests share: one thread a process, no display, no telemetry, no hub, and skips that may be forbidden.

`LST_REQUIRE=browser,slurm` turns a skip of a test with one of these markers into a failure, and fails the session if no test
of a marker passed: a check that silently stopped running is worse than a red one. `--update-golden` rewrites the files in
tests/golden that a test compares with.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Before anything imports torch or numpy; processes that tests start inherit it.
for name, value in {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MPLBACKEND": "Agg",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "HF_HUB_OFFLINE": "1",
}.items():
    os.environ.setdefault(name, value)

# The same examples each time, and no deadline: the machine is shared with other tests.
settings.register_profile("lst", deadline=None, derandomize=True)
settings.load_profile("lst")


SLURM = "tests/slurm/"


def required_markers() -> list[str]:
    return [name for name in os.environ.get("LST_REQUIRE", "").replace(",", " ").split() if name]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden from what the program does now")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Under `--dist loadfile` a file is one worker's; so is the whole of tests/slurm, for there is one cluster to disturb."""
    from xdist.scheduler import LoadFileScheduling

    class OneClusterScheduling(LoadFileScheduling):  # type: ignore[misc]  # xdist has no types
        def _split_scope(self, nodeid: str) -> str:
            return SLURM if nodeid.startswith(SLURM) else str(super()._split_scope(nodeid))

    return OneClusterScheduling(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest and mostly waits comes first, so that the other workers have the rest of the suite beside it."""
    items.sort(key=lambda item: not item.nodeid.startswith(SLURM))


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--update-golden"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Generator[None, Any, Any]:
    report = yield
    names = [name for name in required_markers() if item.get_closest_marker(name)]
    if report.skipped and names:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, but LST_REQUIRE={names[0]} demands it: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, None, None]:
    """In the process that prints (not a worker): each required marker needs a test that passed."""
    yield
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    if hasattr(session.config, "workerinput") or terminal is None:
        return
    passed = [report for report in terminal.stats.get("passed", []) if report.when == "call"]
    for name in required_markers():
        if not any(name in report.keywords for report in passed):
            terminal.write_line(f"LST_REQUIRE={name}: no test with this marker passed", red=True)
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def toy_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small prepared data set (tests/toy_corpus.py)."""
    from tests.toy_corpus import write_toy_dataset

    return write_toy_dataset(tmp_path_factory.mktemp("toy"))
