"""The code a study runs with: a copy of the five packages taken at submit, named by its hash, read-only.

Jobs import from the copy alone, so that edits made while runs are queued or running change nothing. Submitters and workers
check before they start a run that it holds these files and no others; jobs leave no compiled files there. What looks like a
secret, or is large, is no code, and refused by name. Not here: the installed dependencies, which each run's exit.json records.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from launch.lease import process_mark
from lst.errors import LaunchError

PACKAGES = ("lst", "sweeps", "launch", "analysis", "reports")
SNAPSHOTS = "snapshot"
COPY = ".copy-"  # of a copy that is being made, before its host, process and the process's start
MADE_BY = re.compile(r"\.copy-(.+)-(\d+)-(\d+)-[^-]*")
HASH_DIGITS = 16
LARGEST_MIB = 256  # of all together
LARGEST_FILE_MIB = 32
SECRET_NAMES = re.compile(
    r"id_(rsa|dsa|ecdsa|ed25519)|credentials(\..*)?|secrets?(\..*)?|.*\.(pem|key|ppk|p12|pfx|kdbx|netrc)", re.IGNORECASE
)
SECRET_TEXTS = re.compile(
    rb"-----BEGIN [A-Z ]*PRIVATE KEY-----|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[pos]_[0-9A-Za-z]{36}\b|\bhf_[0-9A-Za-z]{34}\b"
    rb"|\bgithub_pat_[0-9A-Za-z_]{22,}|\bsk-[0-9A-Za-z_-]{20,}|(?i:aws_secret_access_key)[\"'\s:=]+[0-9A-Za-z/+]{40}\b"
)


def make_private(folder: Path) -> Path:
    """The launcher's folder, for its owner alone: what lies there says what is run in the owner's name.

    Raises LaunchError where it belongs to somebody else.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.geteuid():
        raise LaunchError(
            f"'{folder}' belongs to another user, who could change what jobs run in your name; plan the study in your own folder."
        )
    if found.st_mode & 0o077:
        folder.chmod(0o700)
    return folder


def code_root() -> Path:
    """The folder that holds the five packages this process runs from. Raises LaunchError if they do not share one."""
    root = Path(__file__).resolve().parents[1]
    missing = [name for name in PACKAGES if not (root / name).is_dir()]
    if missing:
        raise LaunchError(
            f"the packages {', '.join(missing)} are not beside launch in '{root}'; install all five from one place."
        )
    return root


def take_snapshot(launch_dir: Path) -> Path:
    """The root of the snapshot of the present code below `launch_dir`, copied there unless it exists already.

    Files are read-only, folders are not: else nobody but root could delete a study, and what is added is found by its check.
    """
    root = code_root()
    size = sum(path.stat().st_size for _, path in _files(root)) / 2**20
    if size > LARGEST_MIB:
        raise LaunchError(f"the code in '{root}' is {size:.0f} MiB, more than {LARGEST_MIB}; move data out of the packages.")
    _require_clean(root)
    expected = code_hash(root)
    target = launch_dir / SNAPSHOTS / expected
    for left in target.parent.glob(f"{COPY}*"):
        if _is_left(left.name):
            shutil.rmtree(left, ignore_errors=True)
    if target.is_dir():
        if altered(target, expected):
            raise LaunchError(f"the code snapshot '{target}' was altered; delete it and submit again.")
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    pid, ticks = process_mark(os.getpid())
    aside = Path(tempfile.mkdtemp(prefix=f"{COPY}{socket.gethostname()}-{pid}-{ticks}-", dir=target.parent))
    try:
        for name, path in _files(root):
            copy = aside / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
            copy.chmod(0o444)
        aside.chmod(0o755)
        try:
            aside.rename(target)
        except OSError:  # another one was faster
            if not target.is_dir() or altered(target, expected):
                raise
            shutil.rmtree(aside)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return target


def _is_left(name: str) -> bool:
    """Whether the process of this machine that made a copy is gone; of another machine's nobody knows here."""
    found = MADE_BY.fullmatch(name)
    return (
        found is not None and found[1] == socket.gethostname() and process_mark(int(found[2])) != [int(found[2]), int(found[3])]
    )


def altered(root: Path, expected: str) -> bool:
    """Whether a snapshot holds other files than the code of that hash: compiled ones, hidden ones and links count as well."""
    known = {name for name, _ in _files(root)}
    folders = {parent for name in known for parent in PurePosixPath(name).parents}
    for path in root.rglob("*"):
        name = path.relative_to(root).as_posix()
        if path.is_symlink() or (PurePosixPath(name) not in folders if path.is_dir() else name not in known):
            return True
    return code_hash(root) != expected


def code_hash(root: Path) -> str:
    """Hash of names and contents of the five packages below `root`, compiled files left out."""
    digest = hashlib.sha256()
    for name, path in _files(root):
        digest.update(f"{name}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:HASH_DIGITS]


def _require_clean(root: Path) -> None:
    """Raises LaunchError on a large file, and on one whose name or text looks like a key: jobs' folders are read by many."""
    for name, path in _files(root):
        if path.stat().st_size > LARGEST_FILE_MIB * 2**20:
            raise LaunchError(f"'{path}' has more than {LARGEST_FILE_MIB} MiB; move it out of the packages.")
        if SECRET_NAMES.fullmatch(path.name) or SECRET_TEXTS.search(path.read_bytes()):
            raise LaunchError(f"'{path}' looks like a secret key, and '{name}' would be copied into the study; move it away.")


def _files(root: Path) -> Iterator[tuple[str, Path]]:
    """Every file of the five packages with its name relative to `root`, in a stable order; links are not followed."""
    for package in PACKAGES:
        for folder, subfolders, names in os.walk(root / package):
            subfolders[:] = sorted(n for n in subfolders if n != "__pycache__" and not n.startswith("."))
            for name in sorted(names):
                path = Path(folder) / name
                if not name.startswith(".") and path.suffix not in (".pyc", ".tmp") and path.is_file() and not path.is_symlink():
                    yield path.relative_to(root).as_posix(), path
