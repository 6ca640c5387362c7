"""Word times from TextGrid, CTM and JSON: what each form holds, and what is refused by file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lst.data.audio.alignments import Alignments, Heard
from lst.data.audio.textgrid import read_textgrid
from lst.data.audio.transcripts import Malformed
from lst.errors import DataError

LONG = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 1.5
tiers? <exists>
size = 2
item []:
    item [1]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = 1.5
        intervals: size = 3
        intervals [1]:
            xmin = 0
            xmax = 0.25
            text = ""
        intervals [2]:
            xmin = 0.25
            xmax = 0.75
            text = "say"
        intervals [3]:
            xmin = 0.75
            xmax = 1.5
            text = "\"\"oui\"\"" ! a comment with "quotes" and 3 numbers
    item [2]:
        class = "TextTier"
        name = "clicks"
        xmin = 0
        xmax = 1.5
        points: size = 1
        points [1]:
            number = 0.5
            mark = "click"
"""
SHORT = """File type = "ooTextFile"
Object class = "TextGrid"

0
1.5
<exists>
1
"IntervalTier"
"anna - words"
0
1.5
3
0
0.25
""
0.25
0.75
"say"
0.75
1.5
"\"\"oui\"\""
"""
WORDS = [Heard("say", 0.25, 0.75), Heard('"oui"', 0.75, 1.5)]


def heard(given: Path, document: str = "a", tier: str = "") -> list[Heard]:
    found = Alignments(given, tier=tier).words(document)
    assert found is not None
    return [word._replace(line=0) for word in found[1]]


def reason(given: Path, document: str = "a", tier: str = "") -> str:
    with pytest.raises(Malformed) as caught:
        Alignments(given, tier=tier).words(document)
    return str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("content", [LONG, SHORT], ids=["long", "short"])
def test_both_forms_of_a_textgrid_hold_the_same_words_in_any_unicode(tmp_path: Path, content: str, encoding: str) -> None:
    (tmp_path / "a.TextGrid").write_bytes(content.replace("say", "ça").encode(encoding))
    assert heard(tmp_path) == [WORDS[0]._replace(word="ça"), WORDS[1]]


def test_a_textgrid_of_several_tiers_is_read_by_the_tiers_name(tmp_path: Path) -> None:
    phones = SHORT.partition('"IntervalTier"')[2].replace("anna - words", "anna - phones").replace("say", "s")
    content = SHORT.replace("<exists>\n1\n", "<exists>\n2\n") + '"IntervalTier"' + phones
    (tmp_path / "a.TextGrid").write_text(content)
    assert heard(tmp_path) == WORDS
    assert heard(tmp_path, tier="anna - phones")[0].word == "s"
    (tmp_path / "a.TextGrid").write_text(content.replace("anna - words", "orthography"))
    assert "give tier=NAME out of: 'orthography', 'anna - phones'" in reason(tmp_path)
    assert "no interval tier 'wrods'" in reason(tmp_path, tier="wrods")


@pytest.mark.parametrize(
    ("old", "new", "line", "what"),
    [
        ('Object class = "TextGrid"', 'Object class = "Pitch 1"', 1, "no TextGrid"),
        ("xmax = 0.75\n", 'xmax = "0.75"\n', 21, "'0.75' stands where a number should"),
        ("intervals: size = 3", "intervals: size = 4", 28, "'IntervalTier' stands where a number should"),
        ("intervals: size = 3", "intervals: size = -3", 14, "-3 stands where a number of things"),
        ("intervals: size = 3", "intervals: size = 1e400", 14, "inf stands where a number of things"),
        ("xmin = 0.25", 'xmin = "0.25\n\n5"', 20, "'0.25 5' stands where a number should"),
        ('class = "IntervalTier"', 'class = "Spectrum"', 13, "unknown class 'Spectrum'"),
        ("xmin = 0.25", "xmin = 0.15", 22, "starts at 0.15 s, inside the word before it"),
        ("xmax = 0.75\n", "xmax = 0.05\n", 22, "ends at 0.05 s, before it starts"),
    ],
)
def test_a_malformed_textgrid_is_refused_by_line(tmp_path: Path, old: str, new: str, line: int, what: str) -> None:
    content = LONG.replace('class = "TextTier"', 'class = "IntervalTier"') if "size = 4" in new else LONG
    if "inside" in what:
        content = content.replace('text = ""\n', 'text = "I"\n')
    assert old in content
    file = tmp_path / "a.TextGrid"
    file.write_text(content.replace(old, new, 1))
    told = reason(tmp_path)
    assert what in told
    assert told.startswith(f"{file}:{line}: ")


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_cut_textgrid_is_refused(tmp_path: Path, share: float) -> None:
    (tmp_path / "a.TextGrid").write_text(LONG[: int(share * LONG.index("TextTier"))])
    with pytest.raises(Malformed, match="it is cut"):
        read_textgrid(tmp_path / "a.TextGrid")


def test_bytes_that_are_no_unicode_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.TextGrid").write_bytes(LONG.replace("say", "é").encode("latin-1"))
    assert "cannot be read as UTF-8 or UTF-16" in reason(tmp_path)


CTM = """;; made by an aligner
a 1 0.25 0.50 say 0.98
a 1 0.75 0.75 <eps>

b A 0.00 0.10 no
b A 0.10 0.10 more
"""


def test_a_ctm_of_many_documents_is_looked_up_by_id(tmp_path: Path) -> None:
    file = tmp_path / "all.ctm"
    file.write_text(CTM)
    assert heard(file) == [WORDS[0]]
    assert [w.word for w in heard(file, "b")] == ["no", "more"]
    assert Alignments(file).words("c") is None


@pytest.mark.parametrize(
    ("old", "new", "line", "what"),
    [
        ("a 1 0.25 0.50 say 0.98", "a 1 0.25", 2, "3 fields"),
        ("a 1 0.25 0.50 say", "a 1 soon 0.50 say", 2, "start 'soon' is no number of seconds"),
        ("a 1 0.25 0.50 say", "a 1 0.25 -0.50 say", 2, "duration '-0.50' is no number of seconds"),
        ("a 1 0.25 0.50 say", "a 1 nan 0.50 say", 2, "start 'nan' is no number"),
        ("a 1 0.75 0.75 <eps>", "a 2 0.75 0.75 oui", 3, "channels 1 and 2"),
        ("a 1 0.75 0.75 <eps>", "a 1 0.30 0.75 oui", 3, "inside the word before it"),
    ],
)
def test_a_malformed_ctm_is_refused_by_line(tmp_path: Path, old: str, new: str, line: int, what: str) -> None:
    file = tmp_path / "all.ctm"
    file.write_text(CTM.replace(old, new))
    told = reason(file)
    assert what in told
    assert told.startswith(f"{file}:{line}: ")


def test_lines_of_a_document_must_stand_together(tmp_path: Path) -> None:
    (tmp_path / "all.ctm").write_text(CTM + "a 1 2.0 0.1 late\n")
    with pytest.raises(DataError, match=r"all\.ctm:7: 'a' stands at line 2 already"):
        Alignments(tmp_path / "all.ctm")


PLAIN = [{"word": "say", "start": 0.25, "end": 0.75}, {"word": '"oui"', "start": 0.75, "end": 1.5}]


@pytest.mark.parametrize(
    "content",
    [
        PLAIN,
        {"words": [{**word, "case": "success"} for word in PLAIN], "transcript": "say oui"},
        {"segments": [{"text": "say", "words": PLAIN[:1]}, {"text": "oui", "words": PLAIN[1:]}]},
        {
            "start": 0,
            "tiers": {"words": {"type": "interval", "entries": [[0.25, 0.75, "say"], [0.75, 1.5, '"oui"']]}, "phones": {}},
        },
    ],
    ids=["list", "gentle", "whisperx", "mfa"],
)
def test_every_form_of_json_holds_the_same_words(tmp_path: Path, content: object) -> None:
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert heard(tmp_path) == WORDS


def test_json_lines_are_looked_up_by_id(tmp_path: Path) -> None:
    file = tmp_path / "all.jsonl"
    file.write_text(json.dumps({"id": "b", "words": []}) + "\n" + json.dumps({"id": "a", "words": PLAIN}) + "\n")
    assert heard(file) == WORDS
    file.write_text('{"id": "a", "words": []}\n{"words": []}\n')
    with pytest.raises(DataError, match=r"all\.jsonl:2: it names no document"):
        Alignments(file)


def test_words_that_were_not_found_have_no_times(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"word": "1914"}, *PLAIN]))
    assert heard(tmp_path)[0] == Heard("1914", None, None)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("[{]", r":1: not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("3", "no list of words"),
        ('{"a": 1}', "no list of words"),
        ('[{"start": 0, "end": 1}]', "is no word with 'word'"),
        ('[{"word": "a", "start": true, "end": 1}]', "start 'True' is no number of seconds"),
        ('[{"word": "a", "start": 1, "end": 0.5}]', "before it starts"),
        ('[{"word": "a", "start": 1}]', "end 'None' is no number"),
        (f'[{{"word": "a", "start": 1, "end": 1{"0" * 400}}}]', "end '1000000000000000000000000000000000000000' is no number"),
        ('{"tiers": {"phones": {"entries": []}}}', "no tier of words among phones"),
    ],
)
def test_malformed_json_is_refused(tmp_path: Path, content: str, what: str) -> None:
    (tmp_path / "a.json").write_text(content)
    assert what in reason(tmp_path)


def test_a_folder_is_searched_by_the_whole_id_and_else_by_its_last_part(tmp_path: Path) -> None:
    for name in ("a", "b/c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.TextGrid").write_text(LONG)
    assert heard(tmp_path, "a") == heard(tmp_path, "b/c") == heard(tmp_path, "x/y/c") == WORDS
    assert Alignments(tmp_path).words("d") is None
    (tmp_path / "c.TextGrid").write_text(LONG)
    assert "keep one" in reason(tmp_path, "x/y/c")


def test_an_id_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text(json.dumps(PLAIN))
    (tmp_path / "in").mkdir()
    assert Alignments(tmp_path / "in").words("../secret") is None


def test_what_is_neither_folder_nor_a_known_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must be a folder of \.TextGrid"):
        Alignments(tmp_path / "nothing.ctm")
