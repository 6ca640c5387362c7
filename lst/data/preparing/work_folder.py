"""The folder beside `out` in which a data set is prepared: what it is made from, which blocks are read, and who works in it.

    .OUT.work/made_from.json           options, inputs (names, sizes, times), number of blocks, identities of the sources
    .OUT.work/speech-000000.arrow      the rows of a block; written aside and renamed
    .OUT.work/speech-000000.refused    its refusals, a JSON line each
    .OUT.work/speech-000000.json       its counts and checksum; written last, so that a block with this file is finished
    .OUT.work/lock, part-1-of-4.lock   advisory locks, which the kernel frees on any exit
    .OUT.work/join/                    the second stage (lst/data/preparing/joining.py)

Parts share `lock` and hold the lock of their own name; the join, and a preparation in one part, hold `lock` alone. Parts may
run on several machines that share the folder. The folder goes when the data set is there.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any

from lst.data.sources.files import files_below
from lst.errors import DataError, RunFailed
from lst.plain import content_hash
from lst.records import read_json, write_atomically

LOCK_BYTES = 256
ONE_PART = (1, 1)
TABLES = ("speech", "text")
MODELS = ("quantizer", "kmeans", "ctc_model", "card")  # options that name what a source's identity holds by its checksum

log = logging.getLogger(__name__)


class WorkFolder:
    """The work folder of the data set `out`."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.path = out.parent / f".{out.name}.work"

    @property
    def made_from_file(self) -> Path:
        return self.path / "made_from.json"

    @property
    def join(self) -> Path:
        return self.path / "join"

    def block(self, table: str, number: int, kind: str) -> Path:
        """A file of a block; `kind` is arrow, refused or json."""
        return self.path / f"{table}-{number:06}.{kind}"

    def finished(self, table: str, number: int) -> dict[str, Any] | None:
        """The counts of a block that was read to its end: rows, tokens, refused, file, sha256. Else None."""
        return read_json(self.block(table, number, "json"))

    def made_from(self) -> dict[str, Any]:
        """What the blocks are made from. Raises DataError where the folder does not say so."""
        content = read_json(self.made_from_file)
        if content is None:
            raise DataError(
                f"out={self.out} has no parts to join (no '{self.made_from_file}'); read them first, for example: "
                f"prepare-data input=FILE out={self.out} part=1/4"
            )
        return content

    def begin(self, made_from: Mapping[str, Any], *, joins: bool) -> None:
        """Record what the blocks are made from, or compare. Raises DataError if the folder was begun otherwise.

        `made_from` has `reading` and `joining` (options), `inputs`, `blocks`, `identity` and `about`. What joins in the same
        process may have other options of `joining` than before; parts may not, for `merge` takes them from here.
        """
        plain = json.loads(json.dumps(made_from))
        recorded = _record_once(self.made_from_file, plain)
        options = plain["reading"] if joins else plain["reading"] | plain["joining"]
        for key, now in options.items():
            before = (recorded["reading"] | recorded["joining"]).get(key)
            if before != now:
                raise DataError(
                    f"'{self.path}' was begun with {key}={before}, this command has {key}={now}; give the same, "
                    "or delete that folder to begin anew."
                )
        if recorded["inputs"] != plain["inputs"]:
            changed = [key for key, now in plain["inputs"].items() if recorded["inputs"].get(key) != now]
            raise DataError(
                f"{changed[0] if changed else 'an input'} has changed since '{self.path}' was begun "
                f"(another name, size or time of change); delete that folder to begin anew."
            )
        if (recorded["blocks"], recorded["identity"]) != (plain["blocks"], plain["identity"]):
            raise DataError(
                f"'{self.path}' was begun by another version of a reader or of a speech tokenizer; delete that folder to "
                "begin anew."
            )

    def has_unjoined(self) -> bool:
        """Whether the folder holds more than what a finished join leaves."""
        joined = (self.join / "joining.json").exists() and not (self.join / "data").exists()
        return self.made_from_file.exists() and not joined

    def worth_keeping(self) -> bool:
        """Whether work that takes a while was done: more than one block of a table is finished."""
        return any(len(list(self.path.glob(f"{table}-*.json"))) > 1 for table in TABLES)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    @contextlib.contextmanager
    def held(self, part: tuple[int, int] | None) -> Iterator[None]:
        """Hold the folder for a part, or alone for part=(1, 1) and the join (None). Raises RunFailed if it is held."""
        whose = "the join" if part is None else "the preparation" if part == ONE_PART else f"part={part[0]}/{part[1]}"
        handles = []
        try:
            if part is None or part == ONE_PART:
                handles.append(self._lock("lock", fcntl.LOCK_EX, whose))
            else:
                handles.append(self._lock("lock", fcntl.LOCK_SH, ""))
                handles.append(self._lock(f"part-{part[0]}-of-{part[1]}.lock", fcntl.LOCK_EX, whose))
            yield
        finally:
            for handle in handles:
                os.close(handle)

    def _lock(self, name: str, kind: int, whose: str) -> int:
        file = self.path / name
        while True:
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
            except FileNotFoundError:
                continue  # another process has just removed the folder
            try:
                fcntl.flock(handle, kind | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(handle)
                raise RunFailed(f"'{self.path}' is in use by {self._holder(name)}; wait for it, or stop it first.") from error
            except OSError as error:  # a filesystem without locks
                log.warning("cannot lock '%s' (%s); make sure that nobody else works there", file, error.strerror)
            if file.exists() and file.stat().st_ino == os.fstat(handle).st_ino:
                break
            os.close(handle)  # locked a file that was removed meanwhile
        if whose:
            holder = {"pid": os.getpid(), "host": os.uname().nodename, "what": whose}
            os.pwrite(handle, json.dumps(holder).ljust(LOCK_BYTES).encode(), 0)
        return handle

    def _holder(self, name: str) -> str:
        """Who holds the folder: named in the lock itself, or in that of a part."""
        for file in [self.path / name, *sorted(self.path.glob("part-*.lock"))]:
            with contextlib.suppress(OSError), file.open() as opened:
                try:
                    fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    held = read_json(file)
                    if held:
                        return f"process {held['pid']} on {held['host']} ({held['what']})"
        return "another process"


def fingerprint(path: Path) -> list[Any]:
    """A file's name, size and time of change; of a folder, those of all files in it, as one hash. [] where there is none."""
    if path.is_file():
        stat = path.stat()
        return [path.name, stat.st_size, stat.st_mtime_ns]
    if path.is_dir():
        return [path.name, *fingerprint_files(set(files_below(path)))]
    return []


def fingerprint_files(files: Set[Path]) -> list[Any]:
    """The number of files, and their names, sizes and times of change as one hash."""
    listed = [fingerprint(file) for file in sorted(files)]
    return [len(listed), hashlib.sha256(json.dumps(listed).encode()).hexdigest()]


def made_note(made_from: Mapping[str, Any], joining: Mapping[str, Any]) -> dict[str, Any]:
    """What the manifest keeps of what a data set was made from, to know the same command again.

    Of models and the tokenizer no paths: the sources' identities hold their checksums.
    """
    return {
        "reading": {key: value for key, value in made_from["reading"].items() if key not in MODELS},
        "joining": with_tokenizer(joining),
        "inputs": made_from["inputs"],
        "blocks": made_from["blocks"],
        "identity": content_hash(made_from["identity"], 64),
    }


def with_tokenizer(joining: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the join, with the fingerprint of the tokenizer's file in the place of its path."""
    return {k: fingerprint(Path(v)) if k == "tokenizer" and v else v for k, v in joining.items()}


def _record_once(file: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Write `content` unless somebody wrote the file before; returns what the file holds."""
    aside = file.with_name(f".{file.name}.{os.uname().nodename}-{os.getpid()}")
    if not file.exists():
        write_atomically(aside, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())
        try:
            with contextlib.suppress(FileExistsError):
                os.link(aside, file)  # fails, unlike a rename, if a part that started at the same time was first
        finally:
            aside.unlink()
    recorded = read_json(file)
    if recorded is None:
        raise DataError(f"'{file}' is damaged; delete the folder '{file.parent}' to begin anew.")
    return recorded
