"""The five commands as a user meets them: quick help, frozen verbs and flags, one sentence and exit 2 for a wrong flag.

tests/golden/cli.json holds every verb and flag. A changed command line is a change of the project's interface: make it on
purpose, and write the file anew with

    .venv/bin/python -m pytest tests/test_cli_contract.py --update-golden
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden" / "cli.json"
SCRIPTS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
HELP_SECONDS = 0.5
HEAVY = ("torch", "numpy", "pandas", "pyarrow", "scipy", "matplotlib", "hydra", "omegaconf", "submitit", "mlflow", "jinja2")
# What else a command wants, so that the wrong flag is its only mistake.
OTHERWISE_RIGHT = {
    "prepare-data": ["input=x.jsonl", "out=y"],
    "plan-sweep": ["study=demo", "out=y"],
    "submit-sweep": ["status", "y"],
    "fit-scaling": ["collect", "y"],
    "scaling-report": ["y"],
}


def command(name: str, after: str = "", before: str = "") -> list[str]:
    """What the installed console script `name` does; `before` is code to run first, `after` when the command is through."""
    module, function = SCRIPTS[name].split(":")
    start = f"{before}import sys; sys.argv[0] = {name!r}\nfrom {module} import {function} as main\n"
    return [sys.executable, "-c", f"{start}try:\n    sys.exit(main())\nfinally:\n    pass\n    {after}"]


def run(name: str, *arguments: str, after: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([*command(name, after), *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


@cache
def help_text(name: str, *verb: str) -> str:
    result = run(name, *verb, "--help")
    assert result.returncode == 0, f"{name} {' '.join(verb)} --help failed:\n{result.stderr}"
    return result.stdout


def verbs(name: str) -> list[str]:
    """The subcommands that argparse lists as {one,two}."""
    listed = re.search(r"\{([a-z][a-z,-]*)\}", help_text(name))
    return listed.group(1).split(",") if listed else []


def flags(text: str) -> list[str]:
    return sorted(set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text)))


def interface() -> dict[str, dict[str, list[str]]]:
    """Command -> verb ('' for the bare command) -> flags."""
    return {name: {verb: flags(help_text(name, *verb.split())) for verb in ("", *verbs(name))} for name in sorted(SCRIPTS)}


def test_the_five_commands_are_declared() -> None:
    assert set(SCRIPTS) == {"prepare-data", "plan-sweep", "submit-sweep", "fit-scaling", "scaling-report"}


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_help_comes_within_half_a_second(name: str) -> None:
    """In processor time, the least of three: on a free core starting up only computes, and a busy neighbour does not count."""
    help_text(name)  # warms the file cache and the byte code
    processor = []
    for _ in range(3):
        before = os.times()
        run(name, "--help")
        after = os.times()
        processor.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(processor) < HELP_SECONDS


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_help_imports_nothing_heavy(name: str) -> None:
    loaded = f"print(sorted({set(HEAVY)} & set(sys.modules)), file=sys.stderr)"
    result = run(name, "--help", after=loaded)
    assert result.returncode == 0, result.stderr
    assert result.stderr.strip().splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_help_says_what_the_command_is_for(name: str) -> None:
    text = help_text(name)
    assert text.startswith("usage: " + name)
    assert len(text.splitlines()) >= 5


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_unknown_flag_is_wrong_input_without_a_traceback(name: str) -> None:
    result = run(name, *OTHERWISE_RIGHT[name], "--no-such-flag")
    assert result.returncode == 2, result.stdout + result.stderr
    assert "--no-such-flag" in result.stderr
    assert "Traceback" not in result.stderr


INTERRUPTED_IMPORT = """
import os, signal, sys
signal.signal(signal.SIGINT, {handler})
class CtrlC:
    def find_spec(self, name, path=None, target=None):
        if name == "lst.command":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, CtrlC())
"""


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_ctrl_c_while_a_command_is_imported_ends_it_quietly(name: str) -> None:
    interrupted = command(name, before=INTERRUPTED_IMPORT.format(handler="signal.default_int_handler"))
    result = subprocess.run([*interrupted, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "")


def test_ctrl_c_that_is_ignored_stays_ignored() -> None:
    ignored = command("fit-scaling", before=INTERRUPTED_IMPORT.format(handler="signal.SIG_IGN"))
    result = subprocess.run([*ignored, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0
    assert result.stdout == help_text("fit-scaling")


def test_verbs_and_flags_are_the_frozen_ones(update_golden: bool) -> None:
    now = interface()
    if update_golden:
        GOLDEN.write_text(json.dumps(now, indent=1, sort_keys=True) + "\n")
    assert now == json.loads(GOLDEN.read_text())
