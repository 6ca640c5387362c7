"""A file of lines cut into blocks gives each line once, with its number, wherever the cuts fall."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lst.data.sources.base import Refused, block_lines, line_blocks
from lst.errors import DataError


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200)
@given(lines=st.lists(st.text("ab é", max_size=6), max_size=12), ends=st.booleans(), size=st.integers(1, 40))
def test_blocks_give_each_line_once_with_its_number(tmp_path: Path, lines: list[str], ends: bool, size: int) -> None:
    path = tmp_path / "lines"
    path.write_bytes(("\n".join(lines) + "\n" * ends).encode())
    found = [(number, line.rstrip("\n")) for block in line_blocks(path, size) for number, line in block_lines(block)]
    assert found == [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl cannot be read"):
        line_blocks(tmp_path / "none.jsonl")


def test_a_refusal_names_file_line_and_reason() -> None:
    assert str(Refused(Path("a.jsonl"), "no id", 3)) == "a.jsonl:3: no id"
    assert str(Refused(Path("a.parquet"), "no id", place="row 3")) == "a.parquet, row 3: no id"
