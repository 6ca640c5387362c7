"""Makes the environment that `make demo` and `make test` run in: a virtual environment, torch first, then this package.

    python3 tools/environment.py VENV [--torch "PIP SPEC"]

Torch is chosen in this order, and the choice is printed:
1. `--torch` (make: TORCH=...), handed to pip as it stands, e.g. "torch==2.13.0" or "torch --index-url URL";
2. a torch >= 2.10 that VENV, or the Python that runs this file, has already (the environment then sees its packages);
3. a CPU build: through uv's `--torch-backend=cpu`; where that cannot be reached, plain `pip install torch`, which on an
   ordinary Linux machine fetches a CUDA build of about 3 GB.

Only the standard library is used, and the syntax is old, so that an old Python gets a sentence and no traceback. It
is no package manager: when VENV is right already, the Makefile does not call it.
"""

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path

TORCH_PIN = "2.13.0"
TORCH_OLDEST = (2, 10)
PYTHON_OLDEST = (3, 11)
ROOT = Path(__file__).resolve().parent.parent
STAMP = ".lst-scaling"  # written last: its time stamp tells make that the environment is whole

TORCH_VERSION = "import importlib.metadata as m; print(m.version('torch'))"


def main():
    """Exit status: 0 done, 1 an installation failed, 2 this machine or the options cannot do it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("venv", type=Path, help="folder of the environment; made if it is not there")
    parser.add_argument("--torch", default="", help="what to give pip for torch, instead of the automatic choice")
    options = parser.parse_args()
    if sys.version_info < PYTHON_OLDEST:
        stop("Python {}.{} is too old; 3.11 or newer is needed. Name one: make PYTHON=python3.12".format(*sys.version_info))
    if sys.platform == "win32":
        stop("Windows is not supported; use Linux, or the Windows Subsystem for Linux.")
    start = time.monotonic()
    venv = options.venv.absolute()
    python = venv / "bin" / "python"
    if not python.exists():
        make_venv(venv, borrow=not options.torch and can_borrow_torch())
    ensure_pip(python)
    say("installing uv, which installs the rest")
    pip(python, "install", "--quiet", "uv", "--constraint", str(ROOT / "constraints.txt"))
    install_torch(python, options.torch)
    install_package(python)
    (venv / STAMP).write_text(f"torch: {torch_version(python)}\nchosen: {options.torch}\n")
    say(f"environment ready in {time.monotonic() - start:.0f} s: {venv}")


def say(text):
    print(f"[setup] {text}", flush=True)


def stop(text, status=2):
    print(f"[setup] {text}", file=sys.stderr, flush=True)
    sys.exit(status)


def torch_version(python):
    """Version of the torch that `python` would import, as text, or "" without one. Reads metadata, imports nothing."""
    result = subprocess.run([str(python), "-c", TORCH_VERSION], capture_output=True, text=True, check=False)
    return result.stdout.strip() if result.returncode == 0 else ""


def is_new_enough(version):
    numbers = [int(n) for n in version.split("+")[0].split(".")[:2] if n.isdigit()]
    return tuple(numbers) >= TORCH_OLDEST


def can_borrow_torch():
    """Whether this Python has a torch that an environment made from it can see: one outside any virtual environment."""
    if not is_new_enough(torch_version(sys.executable)):
        return False
    if sys.prefix == sys.base_prefix:
        return True
    say(f"torch of the virtual environment {sys.prefix} cannot be shared; to work inside that one: make VENV={sys.prefix}")
    return False


def make_venv(venv, borrow):
    """A new environment; `borrow` lets it see the packages of the Python that runs this (its torch)."""
    if borrow:
        say(f"this Python has torch {torch_version(sys.executable)}: the environment will use it (TORCH=... chooses another)")
    say(f"creating {venv} with Python {sys.version.split()[0]}")
    extra = ["--system-site-packages"] if borrow else []
    command = [sys.executable, "-m", "venv", *extra, str(venv)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode == 0:
        return
    # Debian splits ensurepip from Python; pip itself may be there all the same, and ensure_pip then borrows it.
    result = subprocess.run([*command, "--without-pip"], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        stop(f"cannot create {venv}: {(result.stderr or result.stdout).strip().splitlines()[-1]}")


def ensure_pip(python):
    """An environment made by uv, or on a Python without ensurepip, has no pip: this Python's own pip puts one there."""
    if subprocess.run([str(python), "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0:
        return
    for command in (
        [str(python), "-m", "ensurepip", "--upgrade"],
        [sys.executable, "-m", "pip", "--python", str(python), "install", "pip"],
    ):
        if subprocess.run(command, capture_output=True, check=False).returncode == 0:
            return
    stop(
        "this Python has neither the module ensurepip nor pip; on Debian and Ubuntu: apt-get install python3-venv. "
        "Without root: make the environment yourself (uv venv --seed .venv, or conda) and run make again; see docs/install.md."
    )


def install_torch(python, spec):
    """Torch comes before all else: installed first, it is kept by whatever depends on it."""
    if spec:
        say(f"installing torch as you chose: pip install {spec}")
        pip(python, "install", *shlex.split(spec))
    elif is_new_enough(torch_version(python)):
        say(f"using the installed torch {torch_version(python)}")
    else:
        install_torch_cpu(python)
    found = torch_version(python)
    if not is_new_enough(found):
        oldest = ".".join(map(str, TORCH_OLDEST))
        stop(f"torch {found or '(none)'} is there, lst-scaling needs {oldest} or newer; choose one: make TORCH='torch>={oldest}'")


def install_torch_cpu(python):
    say(f"installing torch {TORCH_PIN}, CPU build (about 200 MB; TORCH=... chooses another, see docs/install.md)")
    exact = [f"torch=={TORCH_PIN}", "--constraint", str(ROOT / "constraints.txt")]
    if uv(python, "install", "--torch-backend=cpu", *exact):
        return
    say("the CPU builds cannot be reached from here; trying plain pip (on an ordinary Linux machine: a CUDA build, about 3 GB)")
    pip(python, "install", *exact)


def install_package(python):
    """The locked packages by uv (seconds, hashes checked), then lst-scaling by pip, which also brings what uv could not."""
    say("installing the locked packages (requirements.lock)")
    locked = uv(python, "install", "--no-deps", "--require-hashes", "--requirements", str(ROOT / "requirements.lock"))
    if not locked:
        say("uv cannot install them here; pip does, in 1 to 3 minutes (constraints.txt)")
    say("installing lst-scaling itself")
    # The lock has setuptools: with it, pip needs no registry to build the package.
    known = ["-qq", "--no-build-isolation"] if locked else []
    pip(python, "install", *known, "--editable", f"{ROOT}[dev]", "--constraint", str(ROOT / "constraints.txt"))


def uv(python, verb, *arguments):
    """Run `uv pip VERB` on the environment; whether it worked.

    With --torch-backend=cpu uv takes torch from the index of CPU builds and from no other one, so where that cannot be reached
    it fails within seconds, and never starts to download a CUDA build. The locked packages go without it: uv would look for
    xformers there, too.
    """
    command = [str(python), "-m", "uv", "pip", verb, "--python", str(python), *arguments]
    return subprocess.run(command, check=False).returncode == 0


def pip(python, *arguments):
    """Run pip in the environment with its progress visible; stops with its exit status told."""
    command = [str(python), "-m", "pip", *arguments[:1], "--disable-pip-version-check", *arguments[1:]]
    result = subprocess.run(command, check=False)
    if result.returncode != 0:
        stop(f"pip failed (exit {result.returncode}); its message is above. Again with: make, after mending the cause.", 1)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
