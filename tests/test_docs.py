"""The documents: their links lead somewhere, and the README's Python runs as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)|!\[[^\]]*\]\(([^)\s]+)\)")


def links(page: Path) -> list[str]:
    """Relative targets of a page's links and pictures, code blocks left out."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    found = [first or second for first, second in LINK.findall(text)]
    return [target for target in found if "://" not in target]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    assert [target for target in links(page) if not (page.parent / target).exists()] == []


def test_index_names_every_document() -> None:
    documents = {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert documents - {Path(target).name for target in links(ROOT / "docs" / "index.md")} == set()


def test_readme_example_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert blocks
    check = "\nassert logits_BTV.shape[:2] == batch.ids_BT.shape"
    result = subprocess.run(
        [sys.executable, "-c", blocks[0] + check], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr


def test_a_run_written_by_hand_as_the_document_says_trains(tmp_path: Path) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "training.md").read_text(), flags=re.DOTALL)
    call = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(ROOT)}, "text": True, "timeout": 240, "check": False}
    made = subprocess.run([sys.executable, "-c", block], capture_output=True, **call)
    assert made.returncode == 0, made.stderr
    folder = tmp_path / made.stdout.strip()
    trained = subprocess.run([sys.executable, "-m", "lst.train", str(folder)], capture_output=True, **call)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert {path.name for path in (folder / "checkpoints").iterdir()} >= {"budget-10", "budget-20", "final"}


def test_commands_of_the_readme_exist() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    readme = (ROOT / "README.md").read_text()
    assert [name for name in scripts if name not in readme] == []
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", readme, flags=re.MULTILINE)) <= {*targets, "help"}
