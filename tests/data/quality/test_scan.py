"""A pass over a data set's tables holds neither the rows nor the mapped pages of what it has read."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest

from lst.data.quality.scan import pieces

BATCHES, TOKENS = 30, 1 << 19  # of 1 MiB each


def write_shard(folder: Path) -> Any:
    """A data set of one shard of many record batches."""
    schema = pa.schema([("speech_tokens", pa.list_(pa.uint16()))])
    with pa.OSFile(str(folder / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for number in range(BATCHES):
            values = pa.array(np.full(TOKENS, number, np.uint16))
            column = pa.ListArray.from_arrays(pa.array([0, TOKENS // 4, TOKENS], pa.int32()), values)
            writer.write_batch(pa.record_batch([column], schema=schema))
    return cast(Any, SimpleNamespace(path=folder, manifest={"shards": {"speech": [{"file": "a.arrow"}]}}))


def resident(file: Path) -> int:
    """Bytes of a mapped file that are in this process's memory."""
    blocks = Path("/proc/self/smaps").read_text().split("VmFlags")
    found = [line for block in blocks if str(file) in block for line in block.splitlines() if line.startswith("Rss:")]
    return sum(1024 * int(line.split()[1]) for line in found)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc/self/smaps")
def test_pages_that_were_read_are_let_go_of_batch_by_batch(tmp_path: Path) -> None:
    dataset = write_shard(tmp_path)
    sums, most = [], 0
    for piece in pieces(dataset, "speech", ["speech_tokens"], bound_by="speech_tokens"):
        sums.append(int(piece.lists("speech_tokens").values.sum(dtype=np.int64)))
        most = max(most, resident(tmp_path / "a.arrow"))
    assert sums == [number * TOKENS for number in range(BATCHES)]
    assert TOKENS <= most <= 4 * 2 * TOKENS  # two batches and the kernel's reading ahead, of thirty
