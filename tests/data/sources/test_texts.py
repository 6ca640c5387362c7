"""Written text from files, folders and globs: paragraphs and records whole, wherever the blocks are cut."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lst.data.sources.texts import PlainText, TextJsonl, TextParquet, WrittenContract, written_source
from lst.errors import DataError


def read_texts(source):
    found = [record for block in source.blocks() for record in source.read(block)]
    return [r.row for r in found if hasattr(r, "row")], [r for r in found if not hasattr(r, "row")]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200)
@given(lines=st.lists(st.sampled_from(["", " ", "a", "b é", "\tc"]), max_size=14), end=st.booleans(), size=st.integers(1, 30))
def test_paragraphs_are_whole_wherever_blocks_are_cut(tmp_path, lines, end, size):
    path = tmp_path / "x.txt"
    path.write_bytes(("\n".join(lines) + "\n" * end).encode())
    expected, first = {}, 0
    for number, line in enumerate(lines, 1):
        if line.strip():
            first = first or number
            expected[first] = f"{expected.get(first, '')} {line}"
        else:
            first = 0
    rows, refused = read_texts(PlainText({"x": path}, block_bytes=size))
    assert refused == []
    assert [(r["id"], r["text"]) for r in rows] == [(f"x-{n:06}", " ".join(t.split())) for n, t in expected.items()]


def write_three_kinds(folder):
    (folder / "deep").mkdir()
    (folder / "deep" / "novel.txt").write_text("\ufeffOne\ntwo.\n\nThree.\n", encoding="utf-8")
    (folder / "novel.txt").write_text("Vier.")
    (folder / "t.jsonl").write_text('{"text": "five", "id": "f"}\n\n{"text": "six", "book": "b", "split": "heldout"}\n')
    pq.write_table(pa.table({"text": ["seven", "eight"], "id": [7, 8]}), folder / "u.parquet")
    (folder / ".hidden.txt").write_text("never")
    (folder / "notes.md").write_text("never")


def test_a_folder_gives_all_its_texts_and_several_plain_files_are_books(tmp_path):
    write_three_kinds(tmp_path)
    rows, refused = read_texts(written_source(str(tmp_path), {}))
    assert refused == []
    assert [(r["id"], r["book"], r["split"], r["text"]) for r in rows] == [
        ("deep/novel-000001", "deep/novel", "", "One two."),
        ("deep/novel-000004", "deep/novel", "", "Three."),
        ("novel-000001", "novel", "", "Vier."),
        ("f", "", "", "five"),
        ("t-000003", "b", "heldout", "six"),
        ("7", "", "", "seven"),
        ("8", "", "", "eight"),
    ]


def test_a_glob_and_a_file_give_theirs(tmp_path):
    write_three_kinds(tmp_path)
    assert [r["text"] for r in read_texts(written_source(f"{tmp_path}/*.txt", {}))[0]] == ["Vier."]
    assert [r["text"] for r in read_texts(written_source(f"{tmp_path}/**/*.txt", {}))[0]] == ["One two.", "Three.", "Vier."]
    rows, _ = read_texts(written_source(f"{tmp_path}/deep/novel.txt", {}))
    assert [(r["id"], r["book"]) for r in rows] == [("novel-000001", ""), ("novel-000004", "")]  # one file is no book


def test_columns_of_other_names_are_taken_as_told(tmp_path):
    pq.write_table(pa.table({"body": ["one", None, " "], "title": ["b", "b", "b"]}), tmp_path / "x.parquet")
    contract = WrittenContract(columns={"text": "body", "book": "title"})
    rows, refused = read_texts(TextParquet({"x": tmp_path / "x.parquet"}, contract))
    assert [(r["id"], r["book"], r["text"]) for r in rows] == [("x-000001", "b", "one")]
    assert [r.place for r in refused] == ["row 2", "row 3"]
    assert all("'body' is missing or empty" in r.reason for r in refused)


MALFORMED = {
    "torn": ('{"text": "a', "not JSON"),
    "no text": ('{"id": "a"}', "'text' is missing or empty"),
    "empty": ('{"text": "  "}', "'text' is missing or empty"),
    "a number": ('{"text": 5}', "'text' must be a string"),
    "unknown split": ('{"text": "a", "split": "dev"}', "'split' is 'dev'"),
    "bad UTF-8": (b'{"text": "\xff"}', "'text' is no UTF-8"),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_text_is_refused_by_line(tmp_path, kind):
    line, reason = MALFORMED[kind]
    path = tmp_path / "x.jsonl"
    path.write_bytes(json.dumps({"text": "good"}).encode() + b"\n" + (line if isinstance(line, bytes) else line.encode()))
    rows, refused = read_texts(TextJsonl({"x": path}, WrittenContract()))
    assert [r["text"] for r in rows] == ["good"]
    assert [r.line for r in refused] == [2]
    assert reason in refused[0].reason


def test_a_paragraph_that_is_no_utf8_is_refused_by_its_first_line(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"good\n\nbad\n\xff\n\ngood")
    rows, refused = read_texts(PlainText({"x": tmp_path / "x.txt"}))
    assert [r["text"] for r in rows] == ["good", "good"]
    assert [(r.line, r.reason) for r in refused] == [(3, "'text' is no UTF-8 text (at character 4)")]


def test_inputs_that_name_nothing_are_one_sentence(tmp_path):
    with pytest.raises(DataError, match="holds no file ending in"):
        written_source(str(tmp_path), {})
    with pytest.raises(DataError, match="holds no file ending in"):
        written_source(f"{tmp_path}/*.txt", {})
    (tmp_path / "x.md").write_text("a")
    with pytest.raises(DataError, match=r"x\.md must end in \.txt, \.jsonl, \.parquet"):
        written_source(f"{tmp_path}/x.md", {})
