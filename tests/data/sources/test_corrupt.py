"""What is malformed is refused with file, place and reason, by one rule for all formats; a damaged input ends in a sentence."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lst.data.sources.contract import MAX_FRAMES, SpokenContract
from lst.data.sources.speech_jsonl import SpeechJsonl, own_contract, slamkit_contract
from lst.data.sources.tables import saved_speech, speech_parquet
from lst.errors import DataError
from tests.data.sources.written_formats import (
    CONTRACT,
    FORMATS,
    PATHS,
    SPEECH_VOCAB,
    TABLE_CONTRACT,
    WITH_WORDS,
    documents,
    fairseq,
    parquet,
    read_all,
    table_of,
    textless,
    write_lines,
    write_saved_dataset,
)


def one(**changes):
    return documents(1)[0] | {"speech_tokens": [1, 1, 2, 3, 4, 5], "words": [], "text": ""} | changes


def words(*spans):
    return [{"word": f"w{i}", "start": a, "end": b} for i, (a, b) in enumerate(spans)]


# Records that any format can hold -> the reason.
MALFORMED = {
    "past the vocabulary": (one(speech_tokens=[1, 2, SPEECH_VOCAB]), "speech token 50 lies outside 0..49"),
    "negative": (one(speech_tokens=[1, -2, 3]), "whole number"),
    "no tokens": (one(speech_tokens=[]), "no speech tokens|empty|missing"),
}
# The same of formats that hold words, with frames or seconds.
MALFORMED_WORDS = {
    "past the end": (one(words=words((0, 30))), "past the last frame"),
    "overlap": (one(words=words((0, 3), (1, 5))), "inside the word before it"),
    "end before start": (one(words=words((4, 1))), "before it starts"),
    "no text of a word": (one(words=[{"word": " ", "start": 0, "end": 1}]), "no text under 'word'"),
    "unknown split": (one(split="test"), "'split' is 'test'"),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("kind", MALFORMED)
def test_tokens_that_break_the_contract_are_refused_in_every_format(tmp_path, name, kind):
    record, reason = MALFORMED[kind]
    _refused_once(FORMATS[name](tmp_path, [record]), reason)


@pytest.mark.parametrize("name", WITH_WORDS)
@pytest.mark.parametrize("kind", MALFORMED_WORDS)
def test_words_that_break_the_contract_are_refused_in_every_format_that_has_them(tmp_path, name, kind):
    record, reason = MALFORMED_WORDS[kind]
    _refused_once(WITH_WORDS[name](tmp_path, [record]), reason)


def _refused_once(source, reason):
    rows, refused = read_all(source)
    assert rows == []
    assert len(refused) == 1
    assert refused[0].line == 1 or refused[0].place
    assert any(part in refused[0].reason for part in reason.split("|")), refused[0].reason


LINES = {
    "torn JSON": ('{"id": "a", "speech_tok', "not JSON (Invalid control character"),
    "nested too deeply": ("[" * 100_000, "nested too deeply"),
    "no object": ("[1]", "no JSON object"),
    "bad UTF-8": (b'{"id": "\xff", "speech_tokens": [1], "text": "", "words": []}', "'id' is no UTF-8 text (at character 0)"),
    "half a surrogate pair": (json.dumps(one(text="\ud800")), "'text' is no UTF-8 text"),
    "float token": (json.dumps(one(speech_tokens=[1.0])), "list of whole numbers"),
    "true as a token": (json.dumps(one(speech_tokens=[True, 1])), "list of whole numbers"),
    "token larger than 64 bits": (json.dumps(one(speech_tokens=[2**70])), "list of whole numbers"),
    "tokens in a table": (json.dumps(one(speech_tokens={"0": 1})), "list of whole numbers"),
    "words as one string": (json.dumps(one(words="the cat")), "'words' must be a list of objects"),
    "words without times": (json.dumps(one(words=["the", "cat"])), "'words' must be a list of objects"),
    "starts that are too few": (
        json.dumps(one(words=["a", "b"], word_start=[0], word_end=[1, 2])),
        "2 words have 1 starts and 2 ends",
    ),
    "starts that are no list": (json.dumps(one(words=["a"], word_start=0, word_end=1)), "must be lists"),
    "frames with a point": (json.dumps(one(words=[{"word": "a", "start": 0.0, "end": 1.0}])), "needs whole frames"),
    "an empty id": (json.dumps(one(id="")), "'id' is empty"),
    "durations of another number": (json.dumps(one(durations=[1, 2])), "6 tokens have 2 'durations'"),
    "a duration of zero": (json.dumps(one(durations=[1, 1, 0, 1, 1, 1])), "'durations' holds 0"),
    "durations that fill the memory": (json.dumps(one(durations=[MAX_FRAMES] * 6)), "ask for more than"),
    "tokens as a string with a word": (json.dumps(one(speech_tokens="1 2 x")), "'x' in 'speech_tokens' is no whole number"),
}


@pytest.mark.parametrize("kind", LINES)
def test_a_malformed_line_is_refused_by_file_line_and_reason(tmp_path, kind):
    line, reason = LINES[kind]
    good = json.dumps(one()).encode()
    path = tmp_path / "speech.jsonl"
    path.write_bytes(b"\n".join([good, line if isinstance(line, bytes) else line.encode(), b"", good]))
    rows, refused = read_all(SpeechJsonl([path], own_contract(CONTRACT)))
    assert len(rows) == 2
    assert [str(r).partition(": ")[0] for r in refused] == [f"{path}:2"]
    assert reason in refused[0].reason


SECONDS = {
    "not a number": ([["a", float("nan"), 0.1]], "needs seconds from 0"),
    "endless": ([["a", 0.0, float("inf")]], "needs seconds from 0"),
    "negative": ([["a", -0.1, 0.1]], "needs seconds from 0"),
    "a string": ([["a", "0", 0.1]], "needs seconds from 0"),
    "past the end": ([["a", 0.0, 9.0]], "ends at 9.0 s, past the last frame"),
    "past all numbers": ([["a", 0.0, 10**400]], "past the last frame"),
    "twice past all numbers": ([["a", 10**399, 10**400]], "past the last frame"),
    "more words than frames": ([["a", 0.0, 0.0]] * 9, "do not fit into 6 frames"),
}


@pytest.mark.parametrize("kind", SECONDS)
def test_seconds_that_cannot_be_are_refused(tmp_path, kind):
    spans, reason = SECONDS[kind]
    line = {"units": [1, 2], "duration": [2, 4], "file_name": "a.flac", "aligned_text": spans}
    source = SpeechJsonl([write_lines(tmp_path / "f.jsonl", [line])], slamkit_contract(CONTRACT))
    _refused_once(source, reason)


def test_slamkit_without_durations_is_refused_unless_it_was_not_deduplicated(tmp_path):
    path = write_lines(tmp_path / "f.jsonl", [{"units": [1, 1, 2], "file_name": "x/a.flac"}])
    rows, refused = read_all(SpeechJsonl([path], slamkit_contract(CONTRACT)))
    assert (rows, [r.reason for r in refused]) == ([], ["key 'duration' is missing"])
    rows, refused = read_all(SpeechJsonl([path], slamkit_contract(CONTRACT, deduplicated=False)))
    assert ([(r["id"], r["speech_tokens"]) for r in rows], refused) == ([("x/a", [1, 1, 2])], [])


def test_fifty_tokens_a_second_are_brought_to_25_by_taking_every_second_one():
    contract = SpokenContract(speech_vocab=SPEECH_VOCAB, rate=50, reduce="every-second")
    row = contract.row({"id": "a", "speech_tokens": [1, 2, 3, 4, 5], "words": [{"word": "w", "start": 1, "end": 3}]})
    assert row["speech_tokens"].tolist() == [1, 3, 5]  # frame f is token 2f
    assert (row["word_start"], row["word_end"]) == ([0], [1])
    assert contract.identity() == {"rate": 50, "reduce": "every-second"}
    assert CONTRACT.identity() == {}


FAIRSEQ = {
    "an empty line of labels": ("train.km", 2, "\n", "train.km:3: the line is empty"),
    "a word among labels": ("train.km", 2, "1 two 3 4 5 6 7 8 9 1 2 3 4 5\n", None),
    "no samples": ("train.tsv", 3, "s/b/x.flac\n", "train.tsv:4: '' after the tab is no number of audio samples"),
    "samples that are no number": ("train.tsv", 3, "s/b/x.flac\tmany\n", "train.tsv:4: 'many' after the tab"),
    "no path": ("train.tsv", 3, "\t100\n", "train.tsv:4: the line names no audio file"),
    "audio twice as long": ("train.tsv", 3, f"s/b/x.flac\t{640 * 900}\n", "a second, not rate=25"),
}


@pytest.mark.parametrize("kind", FAIRSEQ)
def test_a_malformed_line_of_a_fairseq_pair_is_refused_by_its_own_file(tmp_path, kind):
    file, number, text, sentence = FAIRSEQ[kind]
    source = fairseq(tmp_path, documents())
    lines = (tmp_path / file).read_text().splitlines(keepends=True)
    if sentence is None:
        text = lines[number].replace(lines[number].split()[0], "two", 1)
        sentence = "train.km:3: 'two' in 'speech_tokens' is no whole number from 0"
    lines[number] = text
    (tmp_path / file).write_text("".join(lines))
    rows, refused = read_all(source)
    assert len(rows) == 9
    assert len(refused) == 1
    assert sentence in str(refused[0])


def test_labels_of_50_hz_are_refused_by_what_the_tsv_says(tmp_path):
    source = fairseq(tmp_path, [r | {"speech_tokens": r["speech_tokens"] * 2} for r in documents()])
    named = [f"{r['id']}.flac\t{640 * len(r['speech_tokens'])}\n" for r in documents()]
    (tmp_path / "train.tsv").write_text("/data\n" + "".join(named))
    rows, refused = read_all(source)
    assert rows == []
    assert all("are 50.0 a second, not rate=25" in r.reason for r in refused)


@pytest.mark.parametrize(("name", "file"), [("fairseq", "train.km"), ("fairseq", "train.tsv"), ("textless", "train.durations")])
@pytest.mark.parametrize("change", ["a line less", "a line more"])
def test_files_of_unequal_lines_are_not_read_at_all(tmp_path, name, file, change):
    source = FORMATS[name](tmp_path, documents())
    lines = (tmp_path / file).read_text().splitlines(keepends=True)
    (tmp_path / file).write_text("".join(lines[:-1] if change == "a line less" else [*lines, lines[-1]]))
    with pytest.raises(DataError, match=r"has \d+ lines, but .* make both of one list"):
        source.blocks()


def test_textless_lines_without_names_or_with_anothers_are_refused(tmp_path):
    source = textless(tmp_path, documents())
    units = (tmp_path / "train.units").read_text().splitlines()
    units[1], units[3] = units[1].split("\t")[1], units[4]
    (tmp_path / "train.units").write_text("\n".join(units))
    rows, refused = read_all(source)
    assert len(rows) == 8
    assert [r.line for r in refused] == [2, 4]
    assert "--preserve_name" in refused[0].reason
    assert "on this line of train.durations" in refused[1].reason
    (tmp_path / "train.durations").unlink()
    with pytest.raises(DataError, match="deduplicated=false"):
        source.blocks()


def test_a_tsv_without_its_root_line_is_told(tmp_path):
    source = fairseq(tmp_path, documents())
    (tmp_path / "train.tsv").write_text("a.flac\t1\n" * 11)
    with pytest.raises(DataError, match=r"train\.tsv:1 must be the root folder alone"):
        source.blocks()


def damage(path, share=0.6):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def test_a_truncated_parquet_file_is_one_sentence(tmp_path):
    source = parquet(tmp_path, documents())
    damage(tmp_path / "speech.parquet")
    with pytest.raises(DataError, match=r"speech\.parquet cannot be read as Parquet .*fetch or write it again"):
        source.blocks()


def test_a_damaged_row_group_is_one_sentence(tmp_path):
    source = parquet(tmp_path, documents())
    blocks = source.blocks()
    path = tmp_path / "speech.parquet"
    content = bytearray(path.read_bytes())
    content[4 : len(content) // 2] = b"\xff" * (len(content) // 2 - 4)
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"speech\.parquet is damaged"):
        [record for block in blocks for record in source.read(block)]


def test_a_bit_flipped_in_a_column_is_found_where_the_writer_made_checksums(tmp_path):
    path, tokens = tmp_path / "speech.parquet", list(range(40))
    table = pa.table({"id": ["a"], "speech_tokens": pa.array([tokens], pa.list_(pa.int32()))})
    pq.write_table(table, path, compression="none", use_dictionary=False, write_page_checksum=True)
    content = path.read_bytes()
    values = np.array(tokens, np.int32).tobytes()
    assert values in content
    path.write_bytes(content.replace(values, values[:-4] + b"\x26" + values[-3:]))  # a 38 in the place of 39: a token like others
    source = speech_parquet([path], CONTRACT)
    with pytest.raises(DataError, match=r"speech\.parquet is damaged"):
        [record for block in source.blocks() for record in source.read(block)]


def test_a_truncated_stream_of_a_saved_dataset_is_one_sentence(tmp_path):
    source = FORMATS["huggingface"](tmp_path, documents())
    damage(tmp_path / "saved" / "data-00001-of-00003.arrow")
    with pytest.raises(DataError, match=r"data-00001-of-00003\.arrow cannot be read as an Arrow stream"):
        source.blocks()


def test_a_missing_column_is_told_with_the_option_that_names_it(tmp_path):
    parquet(tmp_path, documents())
    source = speech_parquet([tmp_path / "speech.parquet"], CONTRACT)
    with pytest.raises(DataError, match=r"no column 'id' \(file_id, .*columns=id:NAME"):
        source.blocks()


@pytest.mark.parametrize("name", ["../a.arrow", "/a.arrow", "", 7])
def test_a_saved_dataset_that_names_files_elsewhere_is_refused(tmp_path, name):
    folder = write_saved_dataset(tmp_path / "saved", table_of(documents()))
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    with pytest.raises(DataError, match="does not lie in it"):
        saved_speech(folder, TABLE_CONTRACT)


def test_splits_of_a_saved_dataset_become_training_and_held_out(tmp_path):
    records = [{k: v for k, v in r.items() if k != "split"} for r in documents()]
    for split, part in (("train", records[:6]), ("validation", records[6:])):
        write_saved_dataset(tmp_path / "both" / split, table_of(part))
    (tmp_path / "both" / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
    rows, refused = read_all(saved_speech(tmp_path / "both", TABLE_CONTRACT))
    assert refused == []
    assert [r["split"] for r in rows] == ["train"] * 6 + ["heldout"] * 4


def test_arrays_of_any_whole_type_are_taken_and_others_refused():
    assert CONTRACT.row({"id": "a", "speech_tokens": np.array([3, 4], np.uint8)})["speech_tokens"].tolist() == [3, 4]
    for wrong in (np.array([1.0]), np.array([[1]]), np.array([-1])):
        with pytest.raises(ValueError, match="list of whole numbers from 0"):
            CONTRACT.row({"id": "a", "speech_tokens": wrong})
    assert PATHS.row({"id": "s/b/x.flac", "speech_tokens": [1]})["speaker"] == "s"
