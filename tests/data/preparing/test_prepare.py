"""`prepare-data` on JSON lines: round trip, the rule of shared frames, refusals by file and line, nothing half-written."""

import json
import os
import random
import subprocess
import sys

import pytest

from lst.data.prepare import main
from lst.data.preparing import preparation
from lst.data.preparing.building import read_part
from lst.data.preparing.shard_writer import write_dataset
from lst.data.preparing.verify import verify_dataset
from lst.data.shards import open_dataset, ragged
from tests.toy_corpus import SPEECH_VOCAB, WORDS, toy_record, write_toy_jsonl


def record(**changes):
    base = {
        "id": "a",
        "speech_tokens": [1, 2, 3, 4, 5, 6],
        "text": "the cat",
        "words": [{"word": "the", "start": 0, "end": 2}, {"word": "cat", "start": 3, "end": 5}],
    }
    return base | changes


def words(*spans):
    return [{"word": f"w{i}", "start": a, "end": b} for i, (a, b) in enumerate(spans)]


def prepare(tmp_path, lines, *options, documents=30):
    """Toy documents (enough to train on) followed by `lines`; the command's exit status and the folder."""
    source, out = tmp_path / "in.jsonl", tmp_path / "out"
    write_toy_jsonl(source, documents)
    with source.open("a") as file:
        file.writelines((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    status = main([f"input={source}", f"out={out}", "vocab_size=300", f"speech_vocab={SPEECH_VOCAB}", *options])
    return status, out


def test_what_goes_in_comes_out(tmp_path):
    status, out = prepare(tmp_path, [])
    assert status == 0
    dataset = open_dataset(out)
    generator = random.Random(0)
    originals = {r["id"]: r for r in (toy_record(i, generator) for i in range(30))}
    tokens, starts, ends = (ragged(dataset.speech, c) for c in ("speech_tokens", "word_start", "word_end"))
    pieces, lengths = ragged(dataset.speech, "word_text_tokens"), ragged(dataset.speech, "word_text_lengths")
    for row, name in enumerate(dataset.speech["id"].to_pylist()):
        original = originals[name]
        assert tokens[row].tolist() == original["speech_tokens"]
        assert starts[row].tolist() == [w["start"] for w in original["words"]]
        assert ends[row].tolist() == [w["end"] for w in original["words"]]
        assert dataset.tokenizer.decode(pieces[row]) == original["text"]
        assert lengths[row].sum() == len(pieces[row])
    train = {dataset.speech["book"][int(r)].as_py() for r in dataset.rows("speech", "train")}
    held = {dataset.speech["book"][int(r)].as_py() for r in dataset.rows("speech", "heldout")}
    assert held
    assert not train & held  # split by book, never by document
    verify_dataset(out)


def test_a_small_data_set_has_one_identity_as_arrow_or_parquet(tmp_path, toy_dataset):
    dataset = open_dataset(toy_dataset)
    made_later = ["word_text_tokens", "word_text_lengths"]
    tables = {"speech": dataset.speech.drop_columns(made_later), "text": dataset.text.drop_columns(["text_tokens"])}
    for name, compress in (("a", False), ("b", True)):
        write_dataset(
            tmp_path / name, tables, tokenizer=toy_dataset / "tokenizer.model", speech_vocab=SPEECH_VOCAB, compress=compress
        )
    first, second = (open_dataset(tmp_path / name) for name in "ab")
    assert (tmp_path / "a" / "speech.arrow").exists()
    assert (tmp_path / "b" / "speech.parquet").exists()
    assert first.data_id == second.data_id
    assert first.speech.equals(second.speech)
    for name in "ab":
        verify_dataset(tmp_path / name)


def test_a_frame_shared_by_two_neighbours_goes_to_the_later_word(tmp_path):
    _, out = prepare(tmp_path, [record(words=words((0, 3), (3, 5)), split="train")])
    dataset = open_dataset(out)
    row = dataset.speech["id"].to_pylist().index("a")
    assert ragged(dataset.speech, "word_end")[row].tolist() == [2, 5]
    assert ragged(dataset.speech, "word_start")[row].tolist() == [0, 3]


MALFORMED = {
    "torn JSON": ('{"id": "a", "speech_tok', "not JSON"),
    "a list": ("[1, 2]", "no JSON object"),
    "missing words": ({k: v for k, v in record().items() if k != "words"}, "key 'words' is missing"),
    "token out of range": (record(speech_tokens=[1, 2, 3, 4, 5, SPEECH_VOCAB]), "lies outside 0..99"),
    "negative token": (record(speech_tokens=[1, 2, 3, 4, 5, -1]), "whole numbers from 0"),
    "float token": (record(speech_tokens=[1.0, 2, 3, 4, 5, 6]), "whole numbers from 0"),
    "no speech": (record(speech_tokens=[], words=[]), "no speech tokens"),
    "overlap of two frames": (record(words=words((0, 3), (2, 5))), "inside the word before it"),
    "end before start": (record(words=words((3, 2))), "before it starts"),
    "past the end": (record(words=words((0, 6))), "past the last frame 5"),
    "word without text": (record(words=[{"start": 0, "end": 1}]), "no text under 'word'"),
    "word without frames": (record(words=[{"word": "the"}]), "needs whole frames"),
    "one-frame word shared": (record(words=words((1, 1), (1, 3))), "left without a frame"),
    "id twice": (record(id="d0000"), "stands on an earlier line"),
    "id no string": (record(id=7), "'id' must be a string"),
    "unknown split": (record(split="test"), "'split' is 'test'"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_line_is_refused_by_file_line_and_reason(tmp_path, capsys, name):
    line, reason = MALFORMED[name]
    status, _ = prepare(tmp_path, [line])
    message = capsys.readouterr().err
    assert status == 2
    assert f"{tmp_path / 'in.jsonl'}:31: " in message
    assert reason in message
    assert message.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]  # nothing half-written


def test_malformed_lines_are_skipped_and_counted_if_asked(tmp_path, capsys):
    status, out = prepare(tmp_path, [record(words=words((0, 9)))], "refuse=skip", "max_refused=0.05")
    assert status == 0
    assert open_dataset(out).manifest["about"]["refused"] == 1
    assert len(open_dataset(out).speech) == 30
    assert ":31: word 'w0' ends at frame 9" in capsys.readouterr().err


def test_too_many_malformed_lines_stop_the_preparation(tmp_path, capsys):
    assert prepare(tmp_path, ["{", "{"], "refuse=skip", "max_refused=0.05")[0] == 2
    message = capsys.readouterr().err
    assert "2 of 32 records" in message
    assert "in.jsonl:31: not JSON" in message.splitlines()[-1]  # the sentence itself, for nothing else is left
    assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "key=value"),
        (["input=x.jsonl"], "missing key 'out'"),
        (["input=x.jsonl", "out=o", "refues=skip"], "did you mean 'refuse'"),
        (["input=missing.jsonl", "out=o"], "cannot be read (No such file"),
        (["input=x", "corpus=embedded", "out=o"], "either input=FILE or corpus=embedded"),
        (["corpus=embeded", "out=o"], "did you mean 'embedded'"),
        (["input=x", "out=o", "refuse=maybe"], "use stop or skip"),
        (["input=x", "out=o", "heldout_share=2"], "must lie in 0..1"),
        (["input=x", "out=o", "out=p"], "out is given 2 times"),
        (["input=x", "out=o", "deduplicated=no"], "deduplicated=no must be true or false"),
        (["input=x", "out=o", "limit_documents=5"], "limit_documents=5 means nothing without corpus="),
        (["input=x", "out=o", "tier=words"], "tier=words means nothing without alignments="),
        (["input=x", "out=o", "text_columns=text:body"], "text_columns=text:body means nothing without text="),
        (["corpus=embedded", "out=o", "heldout_share=0.1"], "heldout_share=0.1 means nothing without input="),
        (["verify"], "verify needs one folder"),
        (["marge", "o"], "'marge' is no verb; did you mean 'merge'?"),
        (["merge"], "merge needs one folder"),
        (["merge", "nowhere"], "has no parts to join"),
        (["merge", "nowhere", "part=1/2"], "part was decided when the parts were read"),
        (["merge", "nowhere", "split_bu=book"], "did you mean 'split_by'"),
        (["input=x.jsonl", "out=o", "part=0/3"], "part=0/3 must be i/N"),
        (["input=x.jsonl", "out=o", "part=4/3"], "part=4/3 must be i/N"),
        (["input=x.jsonl", "out=o", "split_by=boook"], "did you mean 'book'?"),
        (["verify", "nowhere"], "has no manifest.json"),
    ],
)
def test_wrong_arguments_give_one_sentence_and_status_2(tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert sentence in message
    assert "Traceback" not in message
    assert message.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_left_alone(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    status, out = prepare(tmp_path, [])
    assert status == 2
    assert "exists already" in capsys.readouterr().err
    assert [p.name for p in out.iterdir()] == ["mine.txt"]


def state(folder):
    """Names, times of change and content of all that is there."""
    return {p.name: (p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else b"") for p in (folder, *folder.iterdir())}


def test_the_same_command_again_says_that_it_is_done_and_writes_nothing(tmp_path, capsys):
    _, out = prepare(tmp_path, [])
    before = state(out)
    arguments = [f"input={tmp_path / 'in.jsonl'}", f"out={out}", "vocab_size=300", f"speech_vocab={SPEECH_VOCAB}"]
    capsys.readouterr()
    for same in (arguments, [*arguments, "part=1/1", "heldout_share=0.05"]):
        assert main(same) == 0
        printed = capsys.readouterr().out
        assert "is done already, from the same input with the same options; nothing was written" in printed
        assert f"data_id {open_dataset(out).data_id}" in printed
    assert state(out) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "out"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["heldout_share=0.2"], "made with heldout_share=0.05, and this command has heldout_share=0.2"),
        (["times=seconds"], "made with times=frames, and this command has times=seconds"),
        (["text={folder}/in.jsonl"], "text is another now"),
        (["input={folder}/other.jsonl"], "input is another now"),
    ],
)
def test_another_command_into_a_finished_folder_is_refused(tmp_path, capsys, change, sentence):
    _, out = prepare(tmp_path, [])
    write_toy_jsonl(tmp_path / "other.jsonl", 30)
    before = state(out)
    options = {"input": tmp_path / "in.jsonl", "out": out, "vocab_size": 300, "speech_vocab": SPEECH_VOCAB}
    options |= dict(option.format(folder=tmp_path).split("=") for option in change)
    capsys.readouterr()
    assert main([f"{key}={value}" for key, value in options.items()]) == 2
    message = capsys.readouterr().err
    assert "exists already" in message
    assert sentence in message
    assert message.count("\n") == 1
    assert state(out) == before


def test_an_input_that_was_changed_since_is_no_reason_to_write_over_what_is_done(tmp_path, capsys):
    _, out = prepare(tmp_path, [])
    before = state(out)
    assert prepare(tmp_path, [record(split="train")])[0] == 2
    assert "input is another now, or has changed since" in capsys.readouterr().err
    assert state(out) == before


def test_an_input_that_is_written_to_while_it_is_read_is_refused(tmp_path, monkeypatch, capsys):
    def appending(*arguments, **options):
        with (tmp_path / "in.jsonl").open("a") as file:
            file.write("\n")
        return read_part(*arguments, **options)

    monkeypatch.setattr(preparation, "read_part", appending)
    status, out = prepare(tmp_path, [])
    assert status == 2
    assert "input has changed while it was read" in capsys.readouterr().err
    assert not out.exists()


def test_a_flipped_bit_is_found(tmp_path, capsys):
    _, out = prepare(tmp_path, [])
    file = out / "speech-00000.arrow"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert main(["verify", str(out)]) == 2
    assert "speech-00000.arrow' is damaged" in capsys.readouterr().err


def test_a_full_disk_leaves_nothing_behind(tmp_path):
    """A real limit on the size of files, in a process of its own."""
    source = write_toy_jsonl(tmp_path / "in.jsonl", 30)
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000));"
        "from lst.data.prepare import main; sys.exit(main(sys.argv[1:]))"
    )
    options = [f"input={source}", f"out={tmp_path / 'out'}", "vocab_size=300", f"speech_vocab={SPEECH_VOCAB}"]
    command = [sys.executable, "-c", code, *options]
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ, timeout=60)
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]


def test_text_of_ones_own_and_a_given_tokenizer(tmp_path):
    book = tmp_path / "book.txt"
    book.write_text("the cat sat\non a mat\n\nand saw the moon\n\n" * 20)
    status, first = prepare(tmp_path, [], f"text={book}")
    assert status == 0
    assert open_dataset(first).text["text"][0].as_py() == "the cat sat on a mat"
    (tmp_path / "b").mkdir()
    status, second = prepare(tmp_path / "b", [], f"tokenizer={first / 'tokenizer.model'}")
    assert status == 0
    assert (second / "tokenizer.model").read_bytes() == (first / "tokenizer.model").read_bytes()


def test_a_book_that_is_held_out_in_speech_is_held_out_in_text(tmp_path):
    """Else the held-out interleaved documents would have been read in training, as text."""
    books = tmp_path / "books.jsonl"
    records = [{"id": f"t{i}", "book": f"book{i % 40}", "text": " ".join(WORDS)} for i in range(80)]
    records.append({"id": "mine", "book": "other", "split": "heldout", "text": "the moon is high"})
    books.write_text("".join(json.dumps(r) + "\n" for r in records))
    status, out = prepare(tmp_path, [], f"text={books}", "heldout_share=0.3")
    assert status == 0
    dataset = open_dataset(out)

    def of(name, split):
        return {getattr(dataset, name)["book"][int(r)].as_py() for r in dataset.rows(name, split)}

    assert of("speech", "heldout")
    assert not of("speech", "heldout") & of("text", "train")
    assert not of("speech", "train") & of("text", "heldout")
    assert "other" in of("text", "heldout")


@pytest.mark.parametrize("raw", [b'"caf\xe9"', b'"\\ud800"'], ids=["Latin-1", "half a surrogate pair"])
def test_text_that_is_no_utf8_is_refused_by_line(tmp_path, capsys, raw):
    source = write_toy_jsonl(tmp_path / "in.jsonl", 30)
    line = json.dumps(record(text="HERE")).encode().replace(b'"HERE"', raw)
    with source.open("ab") as file:
        file.write(line + b"\n")
    assert main([f"input={source}", f"out={tmp_path / 'out'}", "vocab_size=300", f"speech_vocab={SPEECH_VOCAB}"]) == 2
    assert ":31: 'text' is no UTF-8 text (at character" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["[a", "a: b: c", "@x", "123", "%x"])
def test_paths_are_taken_as_they_stand(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    write_toy_jsonl(tmp_path / name, 30)
    assert main([f"input={name}", "out=7", "vocab_size=300", f"speech_vocab={SPEECH_VOCAB}"]) == 0
    assert (tmp_path / "7" / "manifest.json").is_file()
