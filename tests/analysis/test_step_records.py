"""The quick reader of training records gives what json.loads gives, on whole, mixed and damaged files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import json_lines
from analysis.step_records import SCHEMA, good_steps, on_path, read_steps


def line(number: int, **extra: Any) -> bytes:
    record = {"step": number, "loss": 5.0 / number, "lr": 1e-3, "tokens": 100 * number, "batch_hash": "ab"} | extra
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"


def slowly(data: bytes) -> pa.Table:
    """The same by json.loads alone: whole lines that hold an object with a step and every field of SCHEMA in its type."""
    found = {}
    for text in data.split(b"\n")[:-1]:
        try:
            row = json.loads(text)
        except ValueError:
            continue
        if isinstance(row, dict) and "step" in row and all(fits(name, row[name]) for name in SCHEMA.names if name in row):
            found[row["step"], row.get("branch")] = row
    rows = sorted(found.values(), key=lambda row: (row["step"], row.get("branch", -1)))
    return pa.table([pa.array([plain(row.get(f.name), f.type) for row in rows], f.type) for f in SCHEMA], schema=SCHEMA)


def plain(value: Any, kind: pa.DataType) -> Any:
    return float(value) if value is not None and kind == pa.float64() else value


def fits(name: str, value: Any) -> bool:
    if name == "skipped":
        return isinstance(value, str)
    if name in ("step", "branch"):
        return type(value) is int and abs(value) < 2**63
    return type(value) is float or (type(value) is int and abs(value) < 2**1023)


def read(path: Path, data: bytes) -> pa.Table:
    path.write_bytes(data)
    return read_steps(path).table


def test_records_are_read_as_a_table(tmp_path: Path) -> None:
    data = b"".join(line(step) for step in range(1, 51))
    table = read(tmp_path / "train.jsonl", data)
    assert table.schema == SCHEMA
    assert table.equals(slowly(data))
    assert table["step"].to_pylist() == list(range(1, 51))
    assert table["loss"][3].as_py() == 1.25
    assert table["loss_text"].null_count == 50


@pytest.mark.parametrize(
    "odd",
    [
        line(7, skipped="spike"),
        line(7, branch=20),
        line(7, loss="5.0"),
        line(7, loss=None),
        line(7, loss=True),
        line(7, loss=[1.0]),
        line(7, about={"loss": 3.0, "lr": 4.0}),
        line(7, note="a,b"),
        line(7, note="ä"),
        line(7, step=7.5),
        line(7, step=2**70),
        line(7, tokens=10**400),
        line(7).replace(b"5.0", b"NaN") + line(8).replace(b"0.625", b"-Infinity"),
        b'{"step":7,"lo' + line(8),
        line(7).replace(b'"lr"', b'"xr"'),
        line(7)[:-2] + b"\n",
        line(7).replace(b"}", b"}}"),
        line(7).replace(b"0.001", b""),
        *(
            line(7).replace(b"0.001", number)
            for number in (b"+1", b"01", b"-01", b".5", b"1.", b"1.e5", b" 1", b"0x1", b"1_0", b"1e")
        ),
        *(line(7).replace(b"0.001", number) for number in (b"nan", b"inf", b"-", b"--1", b"1e999", b"-0", b"1E-3", b"0.5e+1")),
        b"\n",
        b"[1,2,3,4,5]\n",
        b"\xff\xfe\x00" + line(7),
        b'{"step":7}\n',
        b'{"step":7}{"step":8}\n',
        line(7)[:-1] + b"\r\n",
        line(7).replace(b'"lr"', b'\n"lr"'),
        line(7)[:-1] + line(8),
        line(7)[:-1] + line(8) + b'{"about":\n' + line(9)[:-1] + b"}\n",
        line(7, batch_hash=1).replace(b"1}", b"0x1}"),
        line(7, note="}\n{"),
        line(3, loss=99.0),
        b"{" * 5000 + b"\n",
    ],
)
def test_an_odd_line_among_others_is_read_as_json_reads_it(tmp_path: Path, odd: bytes) -> None:
    data = b"".join([*(line(step) for step in range(1, 21)), odd, *(line(step) for step in range(9, 31)), b'{"step":31,"lo'])
    table = read(tmp_path / "train.jsonl", data)
    assert table.equals(slowly(data))
    assert set(table["step"].to_pylist()) >= set(range(1, 31))


def test_a_repeated_step_stands_as_last_written(tmp_path: Path) -> None:
    table = read(tmp_path / "train.jsonl", b"".join(line(step) for step in (1, 2, 3, 4)) + line(3, loss=9.0) + line(2, loss=8.0))
    assert table["step"].to_pylist() == [1, 2, 3, 4]
    assert table["loss"].to_pylist() == [5.0, 8.0, 9.0, 1.25]


def test_the_way_to_a_branch_is_the_trunk_before_its_first_step_and_its_own_records(tmp_path: Path) -> None:
    data = b"".join(
        [*(line(s) for s in (1, 2, 3)), *(line(s, branch=5, loss=0.5) for s in (4, 5)), *(line(s) for s in (4, 5, 6))]
    )
    steps = read(tmp_path / "train.jsonl", data)
    assert on_path(steps, None)["step"].to_pylist() == [1, 2, 3, 4, 5, 6]
    assert on_path(steps, None)["loss"].to_pylist()[3:] == [1.25, 1.0, 5 / 6]
    assert on_path(steps, 5)["loss"].to_pylist() == [5.0, 2.5, 5 / 3, 0.5, 0.5]
    assert len(on_path(steps, 7)) == 0


def test_skipped_steps_are_on_the_path_and_not_among_the_good(tmp_path: Path) -> None:
    steps = on_path(read(tmp_path / "train.jsonl", line(1) + line(2, skipped="grad_norm") + line(3)), None)
    assert steps["skipped"].to_pylist() == [None, "grad_norm", None]
    assert good_steps(steps)["step"].to_pylist() == [1, 3]


@pytest.mark.parametrize("data", [b"", b'{"step":1,"loss":2.0}', b"\n\n"])
def test_a_file_without_a_whole_record_is_empty(tmp_path: Path, data: bytes) -> None:
    assert read(tmp_path / "train.jsonl", data).equals(SCHEMA.empty_table())
    assert read_steps(tmp_path / "missing.jsonl").table.equals(SCHEMA.empty_table())


def test_the_whole_last_record_of_a_path_is_found_wherever_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(b"".join([*(line(s) for s in (1, 2, 3)), line(3, tokens=7), *(line(s, branch=5) for s in (4, 5))]))
    for size in (json_lines.PART_BYTES, 100):
        monkeypatch.setattr(json_lines, "PART_BYTES", size)
        steps = read_steps(path)
        trunk, branch = (steps.last_of(on_path(steps.table, of)) for of in (None, 5))
        assert trunk is not None
        assert branch is not None
        assert (trunk.step, trunk.tokens, trunk.branch, branch.step, branch.branch) == (3, 7.0, None, 5, 5)
        assert steps.last_of(SCHEMA.empty_table()) is None


def test_a_file_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = b"".join(line(step) for step in range(1, 101)) + b'{"step":'
    monkeypatch.setattr(json_lines, "PART_BYTES", 1000)
    assert read(tmp_path / "train.jsonl", data).equals(slowly(data))


NUMBERS = st.one_of(st.floats(), st.integers(-(10**20), 10**20), st.none(), st.just("x"))
RECORDS = st.fixed_dictionaries(
    {"step": st.integers(-2, 12)},
    optional={"loss": NUMBERS, "lr": NUMBERS, "branch": st.integers(0, 3), "skipped": st.sampled_from(["loss", "spike"])}
    | {"mfu": NUMBERS, "batch_hash": st.text(max_size=3), "about": st.dictionaries(st.text(max_size=2), NUMBERS, max_size=2)},
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(RECORDS, st.integers(1, 12)), max_size=6),
    st.lists(st.tuples(st.integers(0), st.binary(max_size=3)), max_size=3),
)
def test_any_records_with_any_bytes_torn_out_or_put_in_are_read_as_json_reads_them(
    tmp_path_factory: pytest.TempPathFactory, stretches: list[tuple[dict[str, Any], int]], damage: list[tuple[int, bytes]]
) -> None:
    lines = [
        json.dumps(record | {"step": record["step"] + i}, separators=(",", ":")) for record, n in stretches for i in range(n)
    ]
    data = "".join(text + "\n" for text in lines).encode()
    for place, put in damage:
        at = place % (len(data) + 1)
        data = data[:at] + put + data[at + len(put) // 2 :]
    table = read(tmp_path_factory.mktemp("records") / "train.jsonl", data)
    known = slowly(data)
    if not table.equals(known):  # NaN differs from itself
        assert table.to_pandas().equals(known.to_pandas())
