"""The files that an option names: a file, a folder or a glob."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path

from lst.errors import DataError

MAGIC = frozenset("*?[")


def input_files(given: str, suffixes: Sequence[str]) -> tuple[Path, list[Path]]:
    """The folder that all files share, and the files in the order of their paths.

    A folder is searched at any depth for files with one of `suffixes`, in letters of any case. Raises DataError if there is none.
    """
    path = root = Path(given)
    if path.is_dir():
        found = sorted(p for p in files_below(path) if p.name.lower().endswith(tuple(suffixes)))
    elif path.exists() or not MAGIC & set(given):
        found, root = [path], path.parent
    else:
        plain = Path(*takewhile(lambda part: not MAGIC & set(part), path.parts))
        found = sorted(_matching(plain, str(path.relative_to(plain))))
        root = Path(os.path.commonpath([p.parent for p in found])) if found else path
    if not found:
        raise DataError(f"'{given}' holds no file ending in {', '.join(suffixes)}; name a file, a folder or a glob of files.")
    return root, found


def named_files(given: str, suffixes: Sequence[str]) -> dict[str, Path]:
    """Name -> file: paths below the shared folder, without endings. Raises DataError if there is none, or two have one."""
    root, found = input_files(given, suffixes)
    named: dict[str, Path] = {}
    for file in found:
        name = file.relative_to(root).as_posix()
        name = name[: len(name) - len(next((s for s in suffixes if name.lower().endswith(s)), ""))]
        if name in named:
            raise DataError(f"'{named[name]}' and '{file}' would both be called '{name}'; rename one.")
        named[name] = file
    return named


def files_below(folder: Path) -> Iterator[Path]:
    """The files in `folder` and below it but hidden ones, also behind links; a link to a folder that holds it is passed over."""
    for at, below, names in os.walk(folder, followlinks=True):
        below[:] = [name for name in below if not name.startswith(".") and not _goes_round(Path(at, name))]
        files = (Path(at, name) for name in names if not name.startswith("."))
        yield from (file for file in files if file.is_file() or not file.exists())  # a link to nowhere is for readers to refuse


def _goes_round(folder: Path) -> bool:
    """Whether `folder` is a link to a folder that it lies in."""
    return folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve())


def _matching(folder: Path, pattern: str) -> list[Path]:
    files = (p for p in folder.glob(pattern) if p.is_file())
    return [p for p in files if not any(part.startswith(".") for part in p.relative_to(folder).parts)]
