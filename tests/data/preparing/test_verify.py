"""`prepare-data verify` finds a flipped bit in any file, a shard that is missing or too many, and counts that are wrong."""

import json
import shutil

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lst.data.prepare import main
from lst.data.preparing.shard_writer import file_sha256, write_manifest
from lst.data.preparing.verify import verify_dataset
from lst.data.shards import MANIFEST
from lst.errors import DataError
from tests.data.preparing.small_preparation import OPTIONS, make_small, toy_records, write_records


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A small data set of several shards, with refusals."""
    folder = tmp_path_factory.mktemp("verify")
    write_records(folder / "in.jsonl", [*toy_records(60), "{"])
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        assert main([f"input={folder / 'in.jsonl'}", f"out={folder / 'data'}", *OPTIONS, "refuse=skip", "max_refused=0.1"]) == 0
    return folder / "data"


@pytest.fixture
def copy(prepared, tmp_path):
    return shutil.copytree(prepared, tmp_path / "copy")


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_in_any_file_is_found(prepared, copy, data):
    file = copy / data.draw(st.sampled_from(sorted(p.name for p in prepared.iterdir())))
    whole = file.read_bytes()
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    damaged = bytearray(whole)
    damaged[bit // 8] ^= 1 << bit % 8
    file.write_bytes(damaged)
    with pytest.raises(DataError, match=f"{file.name}|{MANIFEST}"):
        verify_dataset(copy)
    file.write_bytes(whole)
    verify_dataset(copy)


@pytest.mark.parametrize(("verb", "column"), [("overlap", "text"), ("report", "word_start")])
def test_a_verb_that_stumbles_over_a_damaged_shard_names_it(copy, capsys, verb, column):
    """The damage lies where Arrow looks for none: in the bytes of a text, in a word's first frame."""
    file = copy / "speech-00000.arrow"
    content = file.read_bytes()
    with pa.memory_map(str(file)) as mapped, pa.ipc.open_file(mapped) as reader:
        array = reader.get_batch(0).column(column)
        values = array.buffers()[2] if column == "text" else array.values.buffers()[1]
        wanted = values.to_pybytes()
    assert content.count(wanted) == 1
    file.write_bytes(content.replace(wanted, b"\xff" * len(wanted)))
    assert main([verb, str(copy)]) == 2
    assert "speech-00000.arrow' is damaged" in capsys.readouterr().err


def test_every_file_is_needed_and_no_shard_is_too_many(prepared, copy, capsys):
    for name in sorted(p.name for p in prepared.iterdir()):
        (copy / name).rename(copy / "away")
        assert main(["verify", str(copy)]) == 2
        assert name in capsys.readouterr().err
        (copy / "away").rename(copy / name)
    shutil.copy(copy / "text-00000.arrow", copy / "text-00099.arrow")
    assert main(["verify", str(copy)]) == 2
    assert "text-00099.arrow' is no file of this data set" in capsys.readouterr().err
    (copy / "text-00099.arrow").unlink()
    (copy / "speech_bpe-made-later.model").write_bytes(b"beside the data")
    assert main(["verify", str(copy)]) == 0


def test_a_shard_that_is_a_link_is_refused_though_it_leads_to_the_right_bytes(prepared, copy, capsys):
    shard = copy / "speech-00000.arrow"
    shard.unlink()
    shard.symlink_to(prepared / shard.name)
    assert main(["verify", str(copy)]) == 2
    assert "speech-00000.arrow' is a link" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["rows", "tokens"])
@pytest.mark.parametrize("where", ["shard", "table"])
def test_wrong_counts_are_found_though_the_manifest_agrees_with_itself(copy, key, where):
    manifest = json.loads((copy / MANIFEST).read_text())
    if where == "shard":
        manifest["shards"]["speech"][0][key] += 1
    manifest[key]["speech"] += 1
    write_manifest(copy, manifest)
    with pytest.raises(DataError, match="the manifest says" if where == "shard" else f"{key} of speech, its shards others"):
        verify_dataset(copy)


def test_a_shard_of_other_content_is_found_though_its_checksum_agrees(copy):
    manifest = json.loads((copy / MANIFEST).read_text())
    first, second = (shard["file"] for shard in manifest["shards"]["speech"][:2])
    shutil.copy(copy / second, copy / first)
    manifest["files"][first] = file_sha256(copy / first)
    write_manifest(copy, manifest)
    with pytest.raises(DataError, match=first):
        verify_dataset(copy)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"data_id": "x", "format_version": 1}'])
def test_a_manifest_that_is_none_is_one_sentence(copy, capsys, content):
    (copy / MANIFEST).write_text(content)
    assert main(["verify", str(copy)]) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert message.count("\n") == 1


def test_the_embedded_corpus_is_whole(capsys):
    assert main(["verify", "embedded"]) == 0
    assert "files are whole" in capsys.readouterr().out
