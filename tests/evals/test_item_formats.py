"""Benchmarks' own files: what is read from them, and which line is refused for what."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from lst.data.sources.base import Refused
from lst.errors import DataError
from lst.evals.found_items import Found
from lst.evals.item_formats import guess_format, read_items
from lst.evals.item_lines import without_brackets
from lst.evals.item_tables import read_tokens
from tests.evals.item_files import write_lines, write_tone

GOOD: dict[str, Any] = {"ctx": "A man sits.", "endings": ["He stands.", "He flies.", "It rains.", "No."], "label": 1, "doc_id": 7}


def read(format_: str, file: Path, **given: Path) -> list[Found | Refused]:
    return list(read_items(format_, file, **given))


def test_hellaswag_lines_are_items_of_four_endings(tmp_path: Path) -> None:
    file = write_lines(
        tmp_path / "val.jsonl", [GOOD, GOOD | {"doc_id": 8, "label": "3", "ctx": "How to cook [title] Boil [step] water."}]
    )
    assert guess_format(file) == "hellaswag"
    first, second = read("hellaswag", file)
    assert isinstance(first, Found)
    assert isinstance(second, Found)
    assert (first.id, first.right, first.line, first.prompt) == ("7", 1, 1, True)
    assert [p.text for p in first.parts] == ["A man sits.", *GOOD["endings"]]
    assert (second.right, second.parts[0].text) == (3, "How to cook. Boil water.")


def test_brackets_go_as_in_the_usual_preparation() -> None:
    assert without_brackets(" [header] Wash [title] Dry it [step]  now ") == "Wash. Dry it now"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"label": 4}, "label 4 is not one of its 4 endings (0..3)"),
        ({"label": "x"}, "label 'x' is no whole number"),
        ({"endings": ["a", "b"]}, "HellaSwag items have 4 endings, not 2"),
        ({"ctx": None}, "it has no 'ctx'"),
        ({"endings": ["a", "b", 3, "d"]}, "'ctx' and each ending must be text, not 3"),
    ],
)
def test_a_bad_line_is_refused_by_its_number(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    bad = {k: v for k, v in (GOOD | change).items() if v is not None}
    found = read("hellaswag", write_lines(tmp_path / "val.jsonl", [GOOD, bad, GOOD | {"doc_id": 8}]))
    (refused,) = (f for f in found if isinstance(f, Refused))
    assert refused.line == 2
    assert str(refused).startswith(f"{tmp_path / 'val.jsonl'}:2: ")
    assert refused.reason == reason
    assert len(found) == 3


def test_torn_json_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "items.jsonl"
    file.write_text('{"endings": ["a", "b"], "label": 0}\n{"endings": ["a"\n')
    found = read("jsonl", file)
    assert isinstance(found[0], Found)
    assert isinstance(found[1], Refused)
    assert found[1].line == 2


@pytest.mark.parametrize("part", ['"label": 0, "label": 1', '"label": 0, "prompt": {"text": "a", "text": "b"}'])
def test_a_key_that_stands_twice_is_refused(tmp_path: Path, part: str) -> None:
    file = tmp_path / "items.jsonl"
    file.write_text('{"endings": ["a", "b"], ' + part + "}\n")
    (refused,) = read("jsonl", file)
    assert isinstance(refused, Refused)
    assert (refused.line, refused.reason) == (1, f"it has '{'text' if 'text' in part else 'label'}' twice")


def test_storycloze_labels_count_from_one(tmp_path: Path) -> None:
    head = "InputStoryid,InputSentence1,InputSentence2,InputSentence3,InputSentence4,RandomFifthSentenceQuiz1,"
    head += "RandomFifthSentenceQuiz2,AnswerRightEnding\n"
    file = tmp_path / "cloze.csv"
    file.write_text(head + "s1,One.,Two.,Three.,Four.,Right.,Wrong.,2\ns2,a,b,c,d,e,f,3\n")
    assert guess_format(file) == "storycloze"
    first, second = read("storycloze", file)
    assert isinstance(first, Found)
    assert (first.id, first.right, first.parts[0].text) == ("s1", 1, "One. Two. Three. Four.")
    assert [p.text for p in first.parts[1:]] == ["Right.", "Wrong."]
    assert isinstance(second, Refused)
    assert (second.line, second.reason) == (3, "label 3 is not one of its 2 endings (1..2)")


def test_rows_of_another_width_or_without_a_sentence_are_refused_and_columns_that_stand_twice(tmp_path: Path) -> None:
    names = [*(f"InputSentence{i}" for i in range(1, 5)), "RandomFifthSentenceQuiz1", "RandomFifthSentenceQuiz2"]
    head, file = ",".join(["InputStoryid", *names, "AnswerRightEnding"]), tmp_path / "cloze.csv"
    file.write_text(f"{head}\ns1,a,b,c,d,e,f,1,more\ns2,a,b,c,d,e,f\ns3,a,,c,d,e,f,1\ns4,a,b,c,d,e,f,1\n")
    *refused, good = read("storycloze", file)
    assert [(r.line, r.reason) for r in refused if isinstance(r, Refused)] == [
        (2, "it has more cells than the header"),
        (3, "it has fewer cells than the header"),
        (4, "its InputSentence2 is empty"),
    ]
    assert isinstance(good, Found)
    file.write_text(f"{head},AnswerRightEnding\n")
    with pytest.raises(DataError, match="has column 'AnswerRightEnding' 2 times"):
        read("storycloze", file)


@pytest.fixture
def gold(tmp_path: Path) -> Path:
    rows = ["id,filename,voice,frequency,word,phones,length,correct"]
    for number, frequency in ((0, 0), (1, 30)):
        for voice in "AB":
            rows += [
                f"{number},w{number}{voice},{voice},{frequency},brick,b,4,1",
                f"{number},n{number}{voice},{voice},,blick,b,4,0",
            ]
    rows += ["2,w2A,A,200,house,h,3,1"]
    file = tmp_path / "gold.csv"
    file.write_text("\n".join(rows) + "\n")
    return file


def test_zerospeech_rows_are_paired_by_id_and_voice(gold: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "quantized.txt"
    tokens.write_text("".join(f"{kind}{n}{v}\t1,2,{n}\n" for kind in "wn" for n in (0, 1) for v in "AB"))
    assert guess_format(gold) == "zerospeech"
    *items, lonely = read("zerospeech", gold, tokens=tokens)
    assert [(i.id, i.pair, i.group, i.prompt) for i in items if isinstance(i, Found)] == [
        ("0/A", "0", "oov", False), ("0/B", "0", "oov", False), ("1/A", "1", "21-100", False), ("1/B", "1", "21-100", False),
    ]  # fmt: skip
    assert isinstance(items[2], Found)
    assert items[2].right == 0
    assert items[2].parts[0].tokens is not None
    assert items[2].parts[0].tokens.tolist() == [1, 2, 1]
    assert isinstance(lonely, Refused)
    assert (lonely.line, lonely.reason) == (10, "id 2 of voice A has 1 rows, 1 of them correct; a pair has 2 and 1")


def test_zerospeech_recordings_that_are_missing_are_refused_by_line(gold: Path, tmp_path: Path) -> None:
    for name in ("w0A", "n0A"):
        write_tone(tmp_path / "dev" / f"{name}.wav", 0.2)
    first, second, *_ = read("zerospeech", gold, audio=tmp_path / "dev")
    assert isinstance(first, Found)
    assert first.parts[0].audio == tmp_path / "dev" / "w0A.wav"
    assert isinstance(second, Refused)
    assert second.line == 4
    assert "w0B.wav' does not exist" in second.reason
    with pytest.raises(DataError, match="needs audio=FOLDER or tokens=FILE"):
        read("zerospeech", gold)


def test_sblimp_pairs_have_their_type_as_group(tmp_path: Path) -> None:
    file, tokens = tmp_path / "gold.csv", tmp_path / "tokens.jsonl"
    file.write_text(
        "id,filename,voice,type,subtype,transcription,correct\n1,x,A,agreement,plural,cats sleeps,0\n"
        "1,y,A,agreement,plural,cats sleep,1\n1,z,A,other,plural,go,1\n1,q,A,other,plural,went go,0\n"
    )
    write_lines(tokens, [{"id": n, "speech_tokens": [1, 2]} for n in "xyzq"])
    first, second = read("zerospeech", file, tokens=tokens)
    assert isinstance(first, Found)
    assert (first.right, first.group, first.pair, first.id) == (1, "agreement", "agreement/plural/1", "agreement/plural/1/A")
    assert isinstance(second, Found)
    assert (second.right, second.group) == (0, "other")


def test_salmon_pairs_have_their_part_as_group(tmp_path: Path) -> None:
    for part in ("gender_consistency", "rir_consistency"):
        for n in (0, 10):
            for which in ("a_first", "b_second"):
                write_tone(tmp_path / part / f"sample_{n}_{which}.wav", 0.1)
    (tmp_path / "rir_consistency" / "sample_10_b_second.wav").unlink()
    assert guess_format(tmp_path) == "salmon"
    *items, refused = read("salmon", tmp_path)
    assert [(i.id, i.group) for i in items if isinstance(i, Found)] == [
        ("gender_consistency/0", "gender_consistency"),
        ("gender_consistency/10", "gender_consistency"),
        ("rir_consistency/0", "rir_consistency"),
    ]
    assert isinstance(items[0], Found)
    assert [p.audio.name for p in items[0].parts if p.audio] == ["sample_0_a_first.wav", "sample_0_b_second.wav"]
    assert isinstance(refused, Refused)


def test_what_makes_no_pair_in_a_folder_is_refused_and_never_skipped(tmp_path: Path) -> None:
    for name in ("sample_0_a", "sample_0_b", "sample_0_c", "sample_1"):
        write_tone(tmp_path / "salmon" / f"{name}.wav", 0.1)
    for which in ("a", "b"):
        write_tone(tmp_path / "salmon" / f"sample_7_{which}.WAV", 0.1)
    nameless, three, pair = read("salmon", tmp_path / "salmon")
    assert isinstance(nameless, Refused)
    assert nameless.file.name == "sample_1.wav"
    assert isinstance(three, Refused)
    assert three.reason == "sample 0 has 3 recordings; a pair has two"
    assert isinstance(pair, Found)
    for name in ("1_incorrect", "2_mutual"):
        write_tone(tmp_path / "slam" / f"{name}.wav", 0.1)
    told = [str(r) for r in read("slamkit", tmp_path / "slam")]
    assert told == [
        f"{tmp_path / 'slam' / '1'}: it has no 1_correct of sound or text",
        f"{tmp_path / 'slam' / '2'}: it has no 2_correct of sound or text",
    ]


def test_tables_of_other_bytes_and_open_quotes_are_one_sentence_and_a_byte_order_mark_is_none(gold: Path, tmp_path: Path) -> None:
    csv.field_size_limit(2**26)  # as reading transcripts leaves it
    tokens = tmp_path / "tokens.txt"
    tokens.write_text("".join(f"{kind}{n}{v}\t1\n" for kind in "wn" for n in (0, 1) for v in "AB"))
    good = gold.read_bytes()
    gold.write_bytes(b"\xef\xbb\xbf" + good)
    assert len([i for i in read("zerospeech", gold, tokens=tokens) if isinstance(i, Found)]) == 4
    for change, reason in (("brick", "b\xefck"), ("A,0,", "A,nan,"), ("A,0,", "A,-3,"), ("brick", '"' + "x" * 140_000)):
        gold.write_bytes(good.replace(change.encode(), reason.encode("latin-1"), 1))
        if "," in change:
            refused = next(i for i in read("zerospeech", gold, tokens=tokens) if isinstance(i, Refused))
            assert (refused.line, refused.reason) == (2, f"frequency '{reason[2:-1]}' is no count")
        else:
            with pytest.raises(DataError, match="cannot be read as UTF-8" if "ck" in reason else "gold.csv:2: field larger"):
                read("zerospeech", gold, tokens=tokens)


def test_slamkit_pairs_have_a_prompt_where_there_is_a_mutual(tmp_path: Path) -> None:
    for name, kinds in (("7", ("correct", "incorrect", "mutual")), ("8", ("correct", "incorrect")), ("9", ("correct",))):
        for kind in kinds:
            write_tone(tmp_path / f"{name}_{kind}.wav", 0.1)
            (tmp_path / f"{name}_{kind}.txt").write_text(f"{kind} words\n")
    assert guess_format(tmp_path) == "slamkit"
    seven, eight, nine = read("slamkit", tmp_path)
    assert isinstance(seven, Found)
    assert (seven.prompt, seven.right, [p.text for p in seven.parts]) == (
        True,
        0,
        ["mutual words", "correct words", "incorrect words"],
    )
    assert isinstance(eight, Found)
    assert (eight.prompt, len(eight.parts)) == (False, 2)
    assert isinstance(nine, Refused)


def test_a_recording_that_stands_twice_in_a_tokens_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "tokens.txt"
    file.write_text("a.wav\t1,2\na\t3\n")
    with pytest.raises(DataError, match=r"tokens.txt:2: recording 'a' stands twice"):
        read_tokens(file)


def test_tokens_file_names_its_bad_line(tmp_path: Path) -> None:
    file = tmp_path / "q.txt"
    file.write_text("a\t1,2\nb\t1,x\n")
    with pytest.raises(DataError, match=r"q.txt:2: .*'x'"):
        read_tokens(file)


@pytest.mark.parametrize(("format_", "reason"), [("helaswag", "did you mean 'hellaswag'"), ("storycloze", "has no column")])
def test_a_wrong_format_is_one_sentence(tmp_path: Path, format_: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        read(format_, write_lines(tmp_path / "x.csv", [GOOD]))
