"""Tar shards are streamed: what leaves the archive, is no file, or would fill memory is refused, and nothing is extracted."""

import gzip
import io
import json
import lzma
import os
import tarfile

import numpy as np
import pytest

from lst.data.sources.base import Block
from lst.data.sources.tar_shards import TarLimits, TarShards
from lst.errors import DataError
from tests.data.sources.written_formats import CONTRACT, add_member, read_all, write_tar

GOOD = json.dumps({"speech_tokens": [1, 2, 3]}).encode()


HEADER = b"{'descr': '<u2', 'fortran_order': False, 'shape': (1000000000000,), }"
HUGE = b"\x93NUMPY\x01\x00" + len(HEADER).to_bytes(2, "little") + HEADER


def archive_with(path, name, content=b"", **changes):
    """A good document, the member in question, and a good document after it."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        add_member(archive, "a/1.json", GOOD)
        add_member(archive, name, content, **changes)
        add_member(archive, "a/3.json", GOOD)
    return TarShards([path], CONTRACT, limits=TarLimits(member_bytes=10_000))


MEMBERS = {
    "leaves by dots": ("a/../../x.json", GOOD, {}, "absolute or leaves the archive"),
    "absolute": ("/etc/x.json", GOOD, {}, "absolute or leaves the archive"),
    "symbolic link": ("a/2.json", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "it is a link (to '/etc/passwd')"),
    "hard link": ("a/2.json", b"", {"type": tarfile.LNKTYPE, "linkname": "a/1.json"}, "it is a link"),
    "character device": ("a/2.json", b"", {"type": tarfile.CHRTYPE}, "it is no regular file"),
    "block device": ("a/2.json", b"", {"type": tarfile.BLKTYPE}, "it is no regular file"),
    "pipe": ("a/2.json", b"", {"type": tarfile.FIFOTYPE}, "it is no regular file"),
    "too large": ("a/2.json", b" " * 10_001, {}, "it has 10,001 bytes; a member may have 10,000"),
    "bad UTF-8": ("a/2.units", b"1 \xff", {}, "it is no UTF-8 (at byte 2)"),
    "torn JSON": ("a/2.json", GOOD[:9], {}, "not JSON"),
    "a list": ("a/2.json", b"[]", {}, "no JSON object"),
    "no tokens": ("a/2.txt", b"the cat", {}, "key 'speech_tokens' is missing"),
    "torn array header": ("a/2.npy", b"\x93NUMPY\x01\x00\x08\x00{'a':(((", {}, "no NumPy array"),
    "huge array header": ("a/2.npy", HUGE, {}, "no NumPy array"),
    "no array": ("a/2.npy", b"not an array", {}, "no NumPy array"),
}


@pytest.mark.parametrize("kind", MEMBERS)
def test_a_member_is_refused_by_name_and_reason_and_the_rest_is_read(tmp_path, kind):
    name, content, changes, reason = MEMBERS[kind]
    rows, refused = read_all(archive_with(tmp_path / "x.tar", name, content, **changes))
    assert [row["id"] for row in rows] == ["a/1", "a/3"]
    assert len(refused) == 1
    assert reason in refused[0].reason
    assert name.rsplit(".", 1)[0] in refused[0].place
    assert [p.name for p in tmp_path.iterdir()] == ["x.tar"]  # nothing was extracted


def test_an_array_of_python_objects_is_refused_unread(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    _, refused = read_all(archive_with(tmp_path / "x.tar", "a/2.npy", buffer.getvalue()))
    assert "allow_pickle=False" in refused[0].reason


def test_units_durations_arrays_and_texts_of_a_key_are_one_document(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, np.array([4, 5], np.uint16))
    path = write_tar(
        tmp_path / "x.tar",
        [
            ("b/1.units", b"7 8\n"),
            ("b/1.durations", b"2 1"),
            ("b/1.txt", "Tür\n".encode()),
            ("b/1.flac", b"-"),
            ("b/2.npy", buffer.getvalue()),
        ],
    )
    rows, refused = read_all(TarShards([path], CONTRACT))
    assert refused == []
    assert [(r["id"], r["speech_tokens"], r["text"]) for r in rows] == [("b/1", [7, 7, 8], "Tür"), ("b/2", [4, 5], "")]


def test_tokens_given_twice_are_refused(tmp_path):
    path = write_tar(tmp_path / "x.tar", [("1.json", GOOD), ("1.units", b"1 2")])
    assert [r.reason for r in read_all(TarShards([path], CONTRACT))[1]] == ["'speech_tokens' is given by another member too"]


def read_limited(path, **limits):
    return read_all(TarShards([path], CONTRACT, limits=TarLimits(**limits)))


@pytest.mark.parametrize("opener", [gzip.open, lzma.open])
def test_a_small_file_that_unpacks_to_much_is_refused(tmp_path, opener):
    plain = write_tar(tmp_path / "plain.tar", [("1.json", GOOD), ("2.flac", bytes(3_000_000)), ("3.json", GOOD)])
    packed = tmp_path / "x.tar.z"
    with opener(packed, "wb") as file:
        file.write(plain.read_bytes())
    assert packed.stat().st_size < 20_000
    assert len(read_limited(packed, total_bytes=4_000_000)[0]) == 2
    with pytest.raises(DataError, match="asks for more memory or bytes"):
        read_limited(packed, total_bytes=2_000_000)


def test_headers_that_would_fill_memory_are_refused(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        add_member(archive, "1.json", GOOD, pax_headers={"comment": "x" * 3_000_000})
    with pytest.raises(DataError, match="asks for more memory or bytes"):
        read_limited(tmp_path / "x.tar")


def test_a_size_below_zero_is_refused(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        member = tarfile.TarInfo("1.json")
        member.size = -512
        archive.fileobj.write(member.tobuf(tarfile.GNU_FORMAT))
    with pytest.raises(DataError):
        read_limited(tmp_path / "x.tar")


def test_more_members_than_the_limit_are_refused(tmp_path):
    path = write_tar(tmp_path / "x.tar", [(f"{i}.json", GOOD) for i in range(4)])
    assert len(read_limited(path, members=4)[0]) == 4
    with pytest.raises(DataError, match="more than 3 members"):
        read_limited(path, members=3)


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz"])
@pytest.mark.parametrize("kept", [0.3, 0.55, 0.8])
def test_a_truncated_archive_is_one_sentence_and_never_a_shorter_data_set(tmp_path, name, kept):
    path = tmp_path / name
    members = [(f"{i}.json", json.dumps({"speech_tokens": [i, *range(40)]}).encode()) for i in range(40)]
    write_tar(path, members, mode="w:gz" if name.endswith("gz") else "w")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(DataError, match="is no whole tar archive"):
        read_all(TarShards([path], CONTRACT))


def test_a_header_damaged_in_the_midst_is_one_sentence(tmp_path):
    path = write_tar(tmp_path / "x.tar", [(f"{i}.json", GOOD) for i in range(4)])
    content = bytearray(path.read_bytes())
    content[1024 + 20] ^= 0xFF  # in the second member's name: its checksum is wrong now
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match="bad checksum at byte 1024"):
        read_all(TarShards([path], CONTRACT))


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz"])
def test_an_archive_that_goes_on_behind_its_end_is_not_half_read(tmp_path, name):
    """As `cat one.tar two.tar` makes it: tarfile stops at the first end, and the second half would be dropped in silence."""
    write_tar(tmp_path / name, [("1.json", GOOD)], mode="w:gz" if name.endswith("gz") else "w")
    source, content = TarShards([tmp_path / name], CONTRACT), (tmp_path / name).read_bytes()
    padding = gzip.compress(bytes(3 << 20)) if name.endswith("gz") else bytes(3 << 20)
    (tmp_path / name).write_bytes(content + padding)
    assert [row["id"] for row in read_all(source)[0]] == ["1"]  # zeros are padding, however many
    (tmp_path / name).write_bytes(content + padding + content)
    with pytest.raises(DataError, match="goes on behind its end"):
        read_all(source)


@pytest.mark.parametrize("content", [b"", b"no archive at all"])
def test_what_is_no_archive_is_one_sentence(tmp_path, content):
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(DataError, match="no whole tar archive"):
        read_all(TarShards([tmp_path / "x.tar"], CONTRACT))


def test_a_record_with_an_id_of_its_own_may_come_after_its_other_members(tmp_path):
    record = json.dumps({"id": "own", "speech_tokens": [7, 8]}).encode()
    path = write_tar(tmp_path / "x.tar", [("z.durations", b"2 1"), ("z.json", record)])
    rows, refused = read_all(TarShards([path], CONTRACT))
    assert refused == []
    assert [(row["id"], row["speech_tokens"]) for row in rows] == [("own", [7, 7, 8])]


def test_a_member_whose_name_is_no_utf8_is_placed_in_print(tmp_path):
    (record,) = list(archive_with(tmp_path / "x.tar", os.fsdecode(b"a/caf\xe9.json"), GOOD).read(Block(tmp_path / "x.tar")))[1:2]
    assert record.place == "member a/caf\\udce9"
