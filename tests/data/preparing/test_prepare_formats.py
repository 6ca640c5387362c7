"""`prepare-data` from each format to one data set: the formats, their options, and tokenizers of more than 16 bits."""

import json
import os

import numpy as np
import pyarrow as pa
import pytest

from lst.data.prepare import main
from lst.data.shards import open_dataset, ragged
from lst.errors import DataError
from tests.data.sources.written_formats import FORMATS, WITH_WORDS, documents
from tests.data.test_text_tokenizers import byte_level

INPUT = {
    "own": "speech.jsonl",
    "slamkit": "features.jsonl",
    "parquet": "speech.parquet",
    "huggingface": "saved",
    "tar": "*.tar*",
    "fairseq": "train.tsv",
    "textless": "train.units",
}
OPTIONS = {"parquet": ["columns=id:file_id"], "huggingface": ["columns=id:file_id"]}


def prepare(folder, *options):
    out = folder / "out"
    return main([f"out={out}", "speech_vocab=50", "vocab_size=300", "split_by=document", "heldout_share=0.2", *options]), out


def texts(folder):
    paragraphs = [f"Paragraph {n} of a text of ones own, which says number {n * n} and no more." for n in range(30)]
    (folder / "text.txt").write_text("\n\n".join(paragraphs))
    return f"text={folder / 'text.txt'}"


@pytest.fixture(scope="module")
def from_json_lines(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    FORMATS["own"](folder, documents())
    status, out = prepare(folder, f"input={folder / INPUT['own']}", texts(folder))
    assert status == 0
    return open_dataset(out)


@pytest.mark.parametrize("name", [name for name in WITH_WORDS if name != "own"])
def test_every_format_with_words_is_told_by_its_name_and_gives_one_data_set(tmp_path, from_json_lines, name):
    FORMATS[name](tmp_path, documents())
    status, out = prepare(tmp_path, f"input={tmp_path / INPUT[name]}", texts(tmp_path), *OPTIONS.get(name, []))
    assert status == 0
    assert open_dataset(out).data_id == from_json_lines.data_id
    assert open_dataset(out).speech.equals(from_json_lines.speech)


@pytest.mark.parametrize("name", ["fairseq", "textless"])
def test_formats_without_words_give_the_same_tokens(tmp_path, from_json_lines, name):
    FORMATS[name](tmp_path, documents())
    status, out = prepare(tmp_path, f"input={tmp_path / INPUT[name]}", texts(tmp_path))
    assert status == 0
    found = [d.speech.select(["id", "speech_tokens"]).sort_by("id").to_pylist() for d in (open_dataset(out), from_json_lines)]
    assert found[0] == found[1]


def large_tokenizer(folder):
    """As GPT-2's, with so many pieces more that ids need 32 bits."""
    document = byte_level(["<|endoftext|>"])
    vocabulary = document["model"]["vocab"]
    few = {piece: number for piece, number in vocabulary.items() if number < 300}
    merges = [m for m in document["model"]["merges"] if "".join(m) in few]
    moved = {piece: number + (70_000 if len(piece) > 1 else 0) for piece, number in few.items()}
    document["model"] |= {"vocab": moved, "merges": merges}
    document["added_tokens"][0]["id"] = 80_000
    (folder / "tokenizer.json").write_text(json.dumps(document))
    return folder / "tokenizer.json"


def test_a_tokenizer_json_of_more_than_65536_pieces_is_kept_in_32_bits(tmp_path, from_json_lines):
    FORMATS["own"](tmp_path, documents())
    given = large_tokenizer(tmp_path)
    status, out = prepare(tmp_path, f"input={tmp_path / INPUT['own']}", texts(tmp_path), f"tokenizer={given}")
    assert status == 0
    dataset = open_dataset(out)
    assert main(["verify", str(out)]) == 0
    assert dataset.text_vocab > 65_536
    assert (out / "tokenizer.json").is_file()
    assert not (out / "tokenizer.model").exists()
    assert dataset.text.schema.field("text_tokens").type == pa.list_(pa.uint32())
    assert from_json_lines.text.schema.field("text_tokens").type == pa.list_(pa.uint16())
    pieces, words = ragged(dataset.speech, "word_text_tokens"), dataset.speech["words"].to_pylist()
    assert max(int(np.max(pieces[row])) for row in range(len(words))) > 65_536
    assert [dataset.tokenizer.decode(pieces[row]) for row in range(len(words))] == [" ".join(w) for w in words]
    assert [dataset.tokenizer.decode(p) for p in dataset.text["text_tokens"].to_pylist()] == dataset.text["text"].to_pylist()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["rate=50"], "keep every second of 50 a second by rate=50 reduce=every-second"),
        (["reduce=every-second"], "rate=25 with reduce='every-second' does not give 25 Hz"),
        (["rate=50", "reduce=mean"], "rate=50 with reduce='mean' does not give 25 Hz"),
        (["times=minutes"], "use frames or seconds"),
        (["columns=id"], "key:name pairs between commas"),
        (["columns=speech:x"], "the key 'speech'; did you mean 'speech_tokens'"),
        (["format=parket"], "did you mean 'parquet'"),
        (["labels=train.km"], "labels=train.km is an option of format=fairseq alone, and this input is lst"),
        (["deduplicated=false"], "is an option of format=slamkit, textless alone, and this input is lst"),
        (["device=cuda"], "device=cuda is an option of format=audio alone"),
        (["format=fairseq", "columns=id:name"], "is an option of format=lst, slamkit, parquet, huggingface, tar alone"),
        (["format=audio", "rate=50"], "and this input is audio; leave it out"),
        (["format=huggingface"], "is no data set saved by `datasets`"),
        (["format=textless"], "without durations"),
    ],
)
def test_wrong_options_of_formats_are_one_sentence(tmp_path, capsys, options, sentence):
    FORMATS["own"](tmp_path, documents())
    status, out = prepare(tmp_path, f"input={tmp_path / INPUT['own']}", *options)
    message = capsys.readouterr().err
    assert status == 2
    assert sentence in message
    assert message.count("\n") == 1
    assert not out.exists()


def test_a_folder_of_mixed_or_unknown_files_must_be_named(tmp_path, capsys):
    FORMATS["own"](tmp_path, documents())
    FORMATS["parquet"](tmp_path, documents())
    assert prepare(tmp_path, f"input={tmp_path}")[0] == 2
    assert "holds files of lst and parquet; name one by format=" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert prepare(tmp_path, f"input={tmp_path / 'empty'}")[0] == 2
    assert "holds no file ending in .jsonl, .parquet" in capsys.readouterr().err


def test_fifty_tokens_a_second_are_halved_as_asked_and_it_is_part_of_the_identity(tmp_path):
    FORMATS["own"](tmp_path, [r | {"words": []} for r in documents()])
    common = [f"input={tmp_path / INPUT['own']}", texts(tmp_path)]
    status, out = prepare(tmp_path, *common, "rate=50", "reduce=every-second")
    assert status == 0
    dataset = open_dataset(out)
    tokens = dict(zip(dataset.speech["id"].to_pylist(), dataset.speech["speech_tokens"].to_pylist(), strict=True))
    assert tokens == {r["id"]: r["speech_tokens"][::2] for r in documents()}
    assert {key: dataset.manifest["about"][key] for key in ("rate", "reduce")} == {"rate": 50, "reduce": "every-second"}


@pytest.mark.parametrize(("name", "known"), [("fairseq", True), ("textless", False)])
def test_seconds_of_audio_are_kept_where_every_document_tells_them(tmp_path, name, known):
    FORMATS[name](tmp_path, documents())
    if known:
        manifest = tmp_path / "train.tsv"
        first, second, *rest = manifest.read_text().splitlines()
        path, samples = second.split("\t")
        manifest.write_text("\n".join([first, f"{path}\t{int(samples) + 160}", *rest]) + "\n")  # 10 ms more than its tokens
    status, out = prepare(tmp_path, f"input={tmp_path / INPUT[name]}", texts(tmp_path))
    assert status == 0
    seconds = sum(len(record["speech_tokens"]) for record in documents()) / 25 + 0.01
    assert open_dataset(out).manifest.get("audio_seconds") == (pytest.approx(seconds, abs=1e-3) if known else None)


def test_the_unit_rate_is_tokens_over_those_seconds(tmp_path, capsys):
    FORMATS["fairseq"](tmp_path, documents())
    assert prepare(tmp_path, f"input={tmp_path / INPUT['fairseq']}", texts(tmp_path))[0] == 0
    capsys.readouterr()
    assert main(["report", str(tmp_path / "out"), f"out={tmp_path / 'page.html'}"]) == 0
    tokens = sum(len(record["speech_tokens"]) for record in documents())
    assert f"{tokens:,} tokens of {tokens / 25:,.1f} s of audio" in (tmp_path / "page.html").read_text()


def test_another_number_of_centres_is_another_data_set(tmp_path, from_json_lines):
    FORMATS["own"](tmp_path, documents())
    options = ["vocab_size=300", "split_by=document", "heldout_share=0.2", "speech_vocab=60"]
    assert main([f"out={tmp_path / 'more'}", f"input={tmp_path / INPUT['own']}", texts(tmp_path), *options]) == 0
    assert open_dataset(tmp_path / "more").data_id != from_json_lines.data_id


def test_a_manifest_that_was_changed_is_not_opened(tmp_path):
    FORMATS["own"](tmp_path, documents())
    status, out = prepare(tmp_path, f"input={tmp_path / INPUT['own']}", texts(tmp_path))
    assert status == 0
    manifest = out / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"heldout"', '"swapped"').replace('"train"', '"heldout"'))
    with pytest.raises(DataError, match="its checksum differs"):
        open_dataset(out)


def test_names_that_are_no_utf8_stop_nothing(tmp_path):
    FORMATS["own"](tmp_path, documents())
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in (b"caf\xe9.txt", b"plain.txt"):
        (folder / os.fsdecode(name)).write_text("\n\n".join(f"Paragraph {n} of a book of tales." for n in range(30)))
    status, out = prepare(tmp_path, f"input={tmp_path / INPUT['own']}", f"text={folder}")
    assert status == 0
    assert any(name.startswith("caf\\udce9-") for name in open_dataset(out).text["id"].to_pylist())
