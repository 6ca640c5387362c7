"""`prepare-data` on blocks of a few documents, as tests run it: in this process, or in one of its own that is killed."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.toy_corpus import SPEECH_VOCAB, toy_record

ROOT = Path(__file__).resolve().parents[3]
BLOCK_BYTES, SHARD_SIZE = 12_000, 4_000
OPTIONS = ("vocab_size=300", f"speech_vocab={SPEECH_VOCAB}")

# Ends the process without any warning at its n-th write to disk (of a batch, a file, its name), or beside the last rename.
KILLED = """
import os, pathlib, signal, sys
when = sys.argv.pop(1)
left = int(when) if when.isdigit() else 0
def last_rename(path, target, rename=pathlib.Path.rename):
    if when == "before the folder has its name":
        os.kill(os.getpid(), signal.SIGKILL)
    rename(path, target)
    if when == "after the folder has its name":
        os.kill(os.getpid(), signal.SIGKILL)
def deadly(write):
    def written(*arguments, **options):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return write(*arguments, **options)
    return written
import pyarrow as pa
from lst.data.preparing import shard_writer
shard_writer.ShardWriter._flush = deadly(shard_writer.ShardWriter._flush)
os.fsync, pathlib.Path.replace = deadly(os.fsync), deadly(pathlib.Path.replace)
pathlib.Path.rename = last_rename
"""
SMALL = f"""
import functools, sys
import lst.data.sources as sources
import lst.data.preparing.joining as joining
from tests.data.preparing.small_preparation import small_blocks
sources.SPEECH["lst"] = small_blocks
joining.SHARD_SIZE = {SHARD_SIZE}
from lst.data.prepare import main
sys.exit(main(sys.argv[1:]))
"""


def small_blocks(config: Any) -> Any:
    """The project's own format, cut into blocks of BLOCK_BYTES."""
    from lst.data.sources.contract import SpokenContract
    from lst.data.sources.speech_jsonl import SpeechJsonl, own_contract

    contract = own_contract(SpokenContract(speech_vocab=config.speech_vocab))
    return SpeechJsonl([Path(config.input)], contract, block_bytes=BLOCK_BYTES)


def make_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small blocks and shards in this process."""
    import lst.data.preparing.joining as joining
    import lst.data.sources as sources

    monkeypatch.setitem(sources.SPEECH, "lst", small_blocks)
    monkeypatch.setattr(joining, "SHARD_SIZE", SHARD_SIZE)


def run_killed(when: int | str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, killed at its n-th write (0: never), or as KILLED says."""
    command = [sys.executable, "-c", KILLED + SMALL, str(when), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False, env=os.environ)


def write_records(file: Path, records: list[Any]) -> Path:
    file.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return file


def toy_records(count: int) -> list[dict[str, Any]]:
    generator = random.Random(0)
    return [toy_record(i, generator) for i in range(count)]


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of each file."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}
