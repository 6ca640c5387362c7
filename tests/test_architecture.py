"""Who may import whom, what is imported late, and what no file may contain. Read from the sources with `ast`.

The tables below are the architecture: a package's row names every module of the project that it may know,
whether at module level or inside a function. A stage knows an earlier stage's result as a file, not as an import.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("lst", "sweeps", "launch", "analysis", "reports")

# Package -> modules (of other packages) that it may import. The bare package `lst` is its version alone.
MAY_IMPORT: dict[str, frozenset[str]] = {
    "lst": frozenset(),
    "sweeps": frozenset(
        {
            "lst",
            "lst.command",
            "lst.config",
            "lst.plain",  # dataclasses from and to plain values
            "lst.ladder",  # size -> shape lies with the model, so that lst.config.arm_config needs no planner
            "lst.flops",
            "lst.schedule",  # names of schedules, for the recipe
            "lst.hardware",
            "lst.memory",
            "lst.errors",
            "lst.records",
            "lst.assumptions",
            "lst.drawing",
            "lst.data.statistics",
            "lst.data.shards",  # to open the data set that statistics are made of
            "lst.evals.tasks",  # options and items of evaluations that are rows of a plan
            "lst.evals.item_set",
        }
    ),
    "launch": frozenset(
        {
            *("lst", "lst.command", "lst.config", "lst.plain", "lst.records", "lst.errors", "lst.evals.tasks", "lst.file_lock"),
            *("sweeps.plan", "sweeps.price"),
            "lst.data.prepare",  # to judge its options before jobs are made
        }
    ),
    "analysis": frozenset({"lst", "lst.command", "lst.records", "lst.flops", "lst.errors", "lst.assumptions", "sweeps.plan"}),
    "reports": frozenset(
        {
            "lst",
            "lst.command",
            "lst.drawing",
            "lst.errors",
            "lst.records",
            "lst.assumptions",
            "sweeps.plan",
            "analysis.results",
            "analysis.basis",
            "analysis.columns",  # of the tables that both read
            "analysis.form_results",
            "analysis.evaluation_kinds",  # which of several evaluations counts, in the report as in the fits
        }
    ),
}

CLI_FILES = frozenset({"sweeps/cli.py", "launch/cli.py", "analysis/cli.py", "reports/cli.py"})

# Heavy distribution -> the files, or the packages, that may import it. What is not named here is not heavy.
MAY_USE: dict[str, frozenset[str]] = {
    "torch": frozenset({"lst"}),
    "xformers": frozenset({"lst"}),
    "transformers": frozenset({"lst"}),
    "datasets": frozenset({"lst"}),
    "hydra": CLI_FILES,
    "submitit": frozenset({"launch/executor.py"}),
    "mlflow": frozenset({"analysis/tracking.py"}),
    "scipy": frozenset({"analysis", "lst/data/audio/waveform.py"}),  # there: resampling
    "soundfile": frozenset({"lst/data/audio/waveform.py"}),
    "pandas": frozenset({"sweeps", "launch", "analysis", "reports"}),
    "matplotlib": frozenset({"sweeps", "reports", "lst/drawing.py", "lst/data/quality/plots.py"}),
    "jinja2": frozenset({"reports", "lst/data/quality/page.py"}),
    "markupsafe": frozenset({"reports", "lst/drawing.py", "lst/data/quality/page.py"}),
}
ONE_FILE_ONLY = ("xformers", "submitit", "mlflow", "soundfile")
# Inside functions only: planning without a picture must not pay for it, nor training for the data's report.
LATE = {"sweeps": ("matplotlib",), "lst": ("matplotlib", "jinja2", "markupsafe")}

MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60
LONGER_FILES: frozenset[str] = frozenset()

# Put together from parts, so that this file does not contain what it forbids.
MACHINE_PATHS = re.compile(r"(?<![\w.~-])/(" + "|".join(("work", "farm", "root", "home/" + r"\w+")) + r")/")
REGISTRY_HOSTS = tuple(
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("download", "pytorch", "org"),
        ("npmjs", "org"),
        ("deb", "debian", "org"),
        ("anaconda", "org"),
    )
)
TEXT_SUFFIXES = frozenset(
    {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".cff", ".lock", ".html", ".css", ".js", ".json", ".sh", ".j2", ""}
)


@dataclass(frozen=True)
class Import:
    """One imported module: where it stands, its dotted name, and whether it runs when the file is imported."""

    file: str
    line: int
    module: str
    at_import: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


def package_files(root: Path = ROOT) -> list[str]:
    return sorted(str(p.relative_to(root)) for name in PACKAGES for p in (root / name).rglob("*.py"))


def imports_of(file: str, root: Path = ROOT) -> Iterator[Import]:
    """Every import of a file: statements at any depth, and `import_module` or `__import__` of a literal name."""
    tree = ast.parse((root / file).read_text(), file)
    inside = {
        id(node)
        for later in ast.walk(tree)
        if isinstance(later, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or is_for_typing(later)
        for node in ast.walk(later)
    }
    for node in ast.walk(tree):
        for module in imported_modules(node, file, root):
            yield Import(file, node.lineno, module, id(node) not in inside)  # type: ignore[attr-defined]


def is_for_typing(node: ast.AST) -> bool:
    """Whether a statement is `if TYPE_CHECKING:`, which never runs."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imported_modules(node: ast.AST, file: str, root: Path) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"{file}:{node.lineno} has a relative import; write the module's full name"
        assert node.module is not None
        # `from sweeps import plan` names the module sweeps.plan, `from sweeps.plan import Plan` a thing inside it.
        return [f"{node.module}.{a.name}" if is_module(f"{node.module}.{a.name}", root) else node.module for a in node.names]
    if isinstance(node, ast.Call) and node.args:
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        name = getattr(node.args[0], "value", None)
        return [name] if called in ("import_module", "__import__") and isinstance(name, str) else []
    return []


def is_module(name: str, root: Path) -> bool:
    path = root.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def forbidden(found: Import) -> bool:
    """Whether the tables above forbid an import."""
    package, target = found.file.split("/")[0], found.module.split(".")[0]
    if target in PACKAGES:
        return target != package and found.module not in MAY_IMPORT[package]
    if target in MAY_USE:
        late = target in LATE.get(package, ()) and found.at_import
        return late or not {package, found.file} & MAY_USE[target]
    return False


@pytest.fixture(scope="module")
def imports() -> list[Import]:
    return [found for file in package_files() for found in imports_of(file)]


def test_five_packages_exist_and_import_something(imports: list[Import]) -> None:
    assert {found.file.split("/")[0] for found in imports} == set(PACKAGES)


def test_packages_import_only_what_the_table_allows(imports: list[Import]) -> None:
    assert [str(found) for found in imports if forbidden(found)] == []


@pytest.mark.parametrize("heavy", ONE_FILE_ONLY)
def test_heavy_package_has_one_door(imports: list[Import], heavy: str) -> None:
    assert len({found.file for found in imports if found.module.split(".")[0] == heavy}) <= 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("sweeps/a.py", "from lst import model"),
        ("sweeps/a.py", "import torch"),
        ("sweeps/a.py", "import matplotlib.pyplot"),
        ("launch/a.py", "def f():\n    import analysis.fit"),
        ("launch/a.py", "import submitit"),
        ("analysis/a.py", "import importlib\nimportlib.import_module('launch.ledger')"),
        ("analysis/a.py", "from reports import page"),
        ("reports/a.py", "def f():\n    from scipy.stats import norm"),
        ("lst/a.py", "from sweeps.plan import Plan"),
        ("lst/a.py", "from hydra import compose"),
    ],
)
def test_checker_sees_a_planted_violation(tmp_path: Path, file: str, source: str) -> None:
    for module in ("lst/model/__init__.py", "reports/page.py", file):
        (tmp_path / module).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / module).write_text(source if module == file else "")
    assert any(forbidden(found) for found in imports_of(file, tmp_path))


def test_checker_lets_allowed_imports_pass(tmp_path: Path) -> None:
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps/a.py").write_text(
        "import numpy\nfrom lst.config import RunConfig\ndef f():\n    import matplotlib\n    from sweeps.plan import g\n"
    )
    found = list(imports_of("sweeps/a.py", tmp_path))
    assert len(found) == 4
    assert not any(forbidden(i) for i in found)


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_does_not_import_torch(package: str) -> None:
    heavy = ("torch", "hydra", "mlflow", "submitit", "matplotlib")
    code = f"import {package}, sys; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "[]"


def test_files_stay_short() -> None:
    files = [path for name in (*PACKAGES, "tests", "tools", "benchmarks") for path in (ROOT / name).rglob("*.py")]
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    assert {file: n for file, n in lines.items() if n > MAX_FILE_LINES and file not in LONGER_FILES} == {}


def test_functions_stay_short() -> None:
    lines = {
        f"{file}:{node.lineno} {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for file in package_files()
        for node in ast.walk(ast.parse((ROOT / file).read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: n for name, n in lines.items() if n > MAX_FUNCTION_LINES} == {}


def test_modules_say_what_they_are() -> None:
    missing = [file for file in package_files() if not ast.get_docstring(ast.parse((ROOT / file).read_text()))]
    assert missing == []


def project_files() -> list[Path]:
    """What the repository tracks; in an unpacked archive, everything outside hidden and generated folders."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0 and listed.stdout:
        return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]
    skipped = {"studies", "build", "dist", "__pycache__"}
    inside = (p for p in ROOT.rglob("*") if not {part for part in p.relative_to(ROOT).parts if part in skipped or part[0] == "."})
    return [p for p in inside if p.is_file()]


def test_no_file_names_a_machine_or_a_registry() -> None:
    found = []
    for path in project_files():
        if path.suffix not in TEXT_SUFFIXES or path.stat().st_size > 1 << 21:
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if MACHINE_PATHS.search(line) or any(host in line for host in REGISTRY_HOSTS):
                found.append(f"{path.relative_to(ROOT)}:{number} {line.strip()[:80]}")
    assert found == []


def test_forbidden_text_is_recognised() -> None:
    assert MACHINE_PATHS.search("see " + "/work" + "/main/x")
    assert MACHINE_PATHS.search("'" + "/home" + "/someone/x'")
    assert not MACHINE_PATHS.search("lst/work/x and https://host/root/")


def test_every_source_folder_is_a_package() -> None:
    """setuptools runs with namespaces off: a folder without __init__.py would silently be left out of the wheel."""
    folders = {str(PurePosixPath(file).parent) for file in package_files()}
    configs = {str(p.parent.relative_to(ROOT)) for name in PACKAGES for p in (ROOT / name).rglob("*.yaml")}
    assert sorted(f for f in folders | configs if not (ROOT / f / "__init__.py").is_file()) == []


def test_every_data_file_is_packaged() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert {name for name in settings["packages"]["find"]["include"] if "*" not in name} == set(PACKAGES)
    packaged = {p for name, globs in settings["package-data"].items() for glob in globs for p in (ROOT / name).glob(glob)}
    data = {p for p in project_files() if p.relative_to(ROOT).parts[0] in PACKAGES and p.suffix != ".py"}
    assert sorted(str(p.relative_to(ROOT)) for p in data - packaged) == []
