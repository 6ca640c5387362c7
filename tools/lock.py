"""Writes constraints.txt (exact versions of everything, all extras) and requirements.lock (the `dev` set, with hashes).

    .venv/bin/python tools/lock.py [--upgrade]

Both come from `uv pip compile --universal`: one resolution for every supported Python and platform, from metadata alone;
no package is downloaded. torch is left out by an override, because its build (CPU, CUDA) is each machine's choice; what
torch itself requires is locked (TORCH_REQUIRES). Not a uv.lock: that format records the registry's address beside each
package, which a mirror's users could not use.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS, LOCK = ROOT / "constraints.txt", ROOT / "requirements.lock"
TORCH_REQUIRES = ("filelock", "fsspec", "jinja2", "networkx", "setuptools", "sympy", "typing-extensions")
TOOLS = ("uv",)
CAPS = ("python-dateutil<3",)  # newer ones push mlflow's graphene back to an old release


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions instead of keeping the locked ones")
    upgrade = ["--upgrade"] if parser.parse_args().upgrade else []
    with tempfile.TemporaryDirectory() as folder:
        beside, override = Path(folder) / "beside.in", Path(folder) / "override.txt"
        beside.write_text("\n".join((*TORCH_REQUIRES, *TOOLS, *CAPS)) + "\n")
        override.write_text("torch ; python_version < '3'\n")
        compile_with = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", str(beside), "--quiet", "--universal"]
        compile_with += ["--python-version", "3.11", "--overrides", str(override), "--no-annotate", "--no-header"]
        run([*compile_with, "--all-extras", "--output-file", str(CONSTRAINTS), *upgrade])
        run([*compile_with, "--extra", "dev", "--constraint", str(CONSTRAINTS), "--generate-hashes", "--output-file", str(LOCK)])
    for path, about in (
        (CONSTRAINTS, "Exact versions for `pip install -c constraints.txt`, all extras; torch is chosen apart: docs/install.md"),
        (LOCK, "The `dev` set with hashes for `pip install -r` or `uv pip install -r`; torch is chosen apart: docs/install.md"),
    ):
        path.write_text(f"# {about}\n# Written by: .venv/bin/python tools/lock.py\n{path.read_text()}")


def run(command: list[str]) -> None:
    result = subprocess.run(command, cwd=ROOT, check=False)
    if result.returncode != 0:
        sys.exit(result.returncode)


if __name__ == "__main__":
    main()
