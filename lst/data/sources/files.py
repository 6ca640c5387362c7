"""The files that an option names: a file, a folder or a glob."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from lst.errors import DataError

MAGIC = frozenset("*?[")


def input_files(given: str, suffixes: Sequence[str]) -> tuple[Path, list[Path]]:
    """The folder that all files share, and the files in the order of their paths.

    A folder is searched at any depth for files with one of `suffixes`; hidden ones are passed over. Raises DataError if there is
    no file.
    """
    path = root = Path(given)
    if path.is_dir():
        found = sorted(p for p in _below(path, "**/*") if p.name.endswith(tuple(suffixes)))
    elif path.exists() or not MAGIC & set(given):
        found, root = [path], path.parent
    else:
        plain = Path(*takewhile(lambda part: not MAGIC & set(part), path.parts))
        found = sorted(_below(plain, str(path.relative_to(plain))))
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
        name = name.removesuffix(next((s for s in suffixes if name.endswith(s)), ""))
        if name in named:
            raise DataError(f"'{named[name]}' and '{file}' would both be called '{name}'; rename one.")
        named[name] = file
    return named


def _below(folder: Path, pattern: str) -> list[Path]:
    files = (p for p in folder.glob(pattern) if p.is_file())
    return [p for p in files if not any(part.startswith(".") for part in p.relative_to(folder).parts)]
