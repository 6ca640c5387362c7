"""A required marker makes its skips fail, and its absence too; without LST_REQUIRE a skip stays a skip."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SKIPPED = "import pytest\n@pytest.mark.browser\ndef test_page():\n    pytest.skip('no browser here')\n"
PASSED = "import pytest\n@pytest.mark.browser\ndef test_page():\n    assert 1 + 1 == 2\n"
ABSENT = "def test_other():\n    assert 1 + 1 == 2\n"


def run_pytest(folder: Path, source: str, *, require: str, workers: int) -> subprocess.CompletedProcess[str]:
    shutil.copy(Path(__file__).with_name("conftest.py"), folder)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n    browser: x\n")
    (folder / "test_it.py").write_text(source)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")} | {"LST_REQUIRE": require}
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *(["-n", str(workers)] if workers else [])]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("source", "require", "status", "workers"),
    [
        (SKIPPED, "", 0, 0),
        (SKIPPED, "browser", 1, 0),
        (SKIPPED, "browser", 1, 1),
        (PASSED, "browser", 0, 1),
        (ABSENT, "browser", 1, 1),
    ],
)
def test_required_marker_decides_the_status(tmp_path: Path, source: str, require: str, status: int, workers: int) -> None:
    result = run_pytest(tmp_path, source, require=require, workers=workers)
    assert result.returncode == status, result.stdout + result.stderr
    if source == SKIPPED and require:
        assert "no browser here" in result.stdout


def test_one_worker_has_all_tests_of_the_cluster_and_they_come_first(tmp_path: Path) -> None:
    told = "import os, pathlib\ndef test_it(worker_id, request):\n    with open(os.environ['TOLD'], 'a') as out:\n"
    told += "        out.write(f'{request.node.nodeid} {worker_id}\\n')\n"
    for name in ("analysis/test_a.py", "lst/test_b.py", "slurm/test_c.py", "slurm/test_d.py"):
        (tmp_path / "tests" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tests" / name).write_text(told)
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")} | {
        "LST_REQUIRE": "",
        "TOLD": str(tmp_path / "told"),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", "--no-loadscope-reorder", "--rootdir", "."]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    ran = dict(line.split() for line in (tmp_path / "told").read_text().splitlines())
    assert len(ran) == 4
    assert ran["tests/slurm/test_c.py::test_it"] == ran["tests/slurm/test_d.py::test_it"]
    assert ran["tests/slurm/test_c.py::test_it"] != ran["tests/analysis/test_a.py::test_it"]
