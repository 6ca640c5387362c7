"""Alignment against transcript, and transcripts in the forms that people have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lst.data.audio.alignments import Heard
from lst.data.audio.transcripts import Malformed, Transcripts
from lst.data.audio.word_times import fill_gaps, match_words, spoken_words
from lst.data.piece_spans import piece_times
from lst.errors import DataError


def test_case_punctuation_hyphens_and_joins_do_not_count() -> None:
    """The drawing of lst/data/audio/word_times.py."""
    words = spoken_words("“Well-known,” -- can not")
    assert words == ["“Well-known,”", "can", "not"]
    heard = [Heard("well", 0.0, 0.4), Heard("known", 0.5, 1.0), Heard("CANNOT", 1.2, 1.8)]
    assert np.allclose(match_words(words, heard, 2.0), [(0.0, 1.0), (1.2, 1.5), (1.5, 1.8)])


def test_a_word_the_aligner_did_not_find_shares_the_gap() -> None:
    heard = [Heard("in", 0.0, 0.2), Heard("1914", None, None), Heard("he", None, None), Heard("ran", 1.0, 1.2)]
    spans = match_words(["In", "1914", "he", "ran"], heard, 2.0)
    assert np.allclose(spans, [(0.0, 0.2), (0.2, 0.6), (0.6, 1.0), (1.0, 1.2)])
    assert fill_gaps([None], 3.0) == [(0.0, 3.0)]


def test_unk_stands_for_one_word_where_the_counts_agree() -> None:
    heard = [Heard("the", 0.0, 0.2), Heard("<unk>", 0.2, 0.5)]
    assert match_words(["The", "Jabberwock"], heard, 1.0) == [(0.0, 0.2), (0.2, 0.5)]
    with pytest.raises(ValueError, match="has 'A' where the alignment has 'the'"):
        match_words(["A", "Jabberwock"], heard, 1.0)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["the", "dog"], "word 2: the transcript has 'dog' where the alignment has 'cat'"),
        (["the"], "word 2: the transcript has nothing more where the alignment has 'cat'"),
        (["the", "cat", "sat"], "word 3: the transcript has 'sat' where the alignment has nothing more"),
    ],
)
def test_a_wrong_transcript_gets_no_times(words: list[str], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        match_words(words, [Heard("the", 0.0, 0.2), Heard("cat", 0.2, 0.5)], 1.0)


def test_pieces_begin_with_their_first_character() -> None:
    """The drawing of lst/data/piece_spans.py, beside a word of one piece and one without pieces."""
    begins = [3, 4, 10, 11, 12, 13, 13, 14, 17, 17, 18, 20]
    spans = piece_times(["at", "unhappily", "x"], [3, 10, 20], [4, 18, 21], begins, [1, 3, 0], _lengths(2, 2, 4, 3))
    assert spans == ([3, 10, 12, 17], [4, 11, 16, 18])


def test_pieces_without_a_frame_end_before_they_start() -> None:
    assert piece_times(["abc"], [5], [6], [5, 5, 6], [3], _lengths(1, 1, 1)) == ([5, 5, 6], [4, 5, 6])


def test_a_tokenizer_that_normalises_gets_scaled_places() -> None:
    """Two pieces of two characters each for a word that is written with two: the second begins at its second character."""
    assert piece_times(["½x"], [0], [9], [0, 6], [2], _lengths(2, 2)) == ([0, 6], [5, 9])


def _lengths(*characters: int) -> np.ndarray:
    return np.array(characters, np.int64)


def test_librispeech_transcripts_lie_beside_the_audio(tmp_path: Path) -> None:
    (tmp_path / "84-121123.trans.txt").write_text("84-121123-0000 GO  DO YOU HEAR\n84-121123-0001 BUT\n")
    (tmp_path / "84-121123-0001.txt").write_text("but, in less\nthan five minutes")
    transcripts = Transcripts("beside")
    assert transcripts.text("x", tmp_path / "84-121123-0000.flac") == "GO DO YOU HEAR"
    assert transcripts.text("x", tmp_path / "84-121123-0001.flac") == "but, in less than five minutes"
    assert transcripts.text("x", tmp_path / "84-121123-0002.flac") is None


def test_a_transcript_without_text_is_refused_by_line(tmp_path: Path) -> None:
    (tmp_path / "1-2.trans.txt").write_text("1-2-0 GO\n1-2-1\n")
    with pytest.raises(Malformed, match=r"1-2\.trans\.txt:2: '1-2-1' has no text"):
        Transcripts("beside").text("x", tmp_path / "1-2-0.flac")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.tsv", 'a\tsay "oui"\nb\tno\n'),
        ("t.tsv", 'speaker\ttext\tid\nx\tsay "oui"\ta\n'),
        ("t.csv", 'a,"say ""oui"""\r\nb,"more,\nof it"\r\n'),
        ("t.csv", 'id,text\na,"say ""oui"""\n'),
    ],
)
def test_tables_are_looked_up_by_id(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_bytes(content.encode())
    assert Transcripts(str(tmp_path / name)).text("a") == 'say "oui"'
    assert Transcripts(str(tmp_path / name)).text("z") is None


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("t.tsv", "a\tb\nc\n", r"t\.tsv:2: a line needs an id and a text"),
        ("t.tsv", "a\tb\na\tc\n", r"t\.tsv:2: id 'a' stands on an earlier line too"),
        ("t.csv", 'a,"b\n', r"t\.csv:1: no CSV"),
        ("t.xls", "a,b", r"must be 'beside', a folder"),
    ],
)
def test_malformed_tables_are_refused_by_line(tmp_path: Path, name: str, content: str, reason: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=reason):
        Transcripts(str(tmp_path / name))


def test_a_folder_holds_a_text_a_document(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x/a.txt").write_text("hello\n")
    assert Transcripts(str(tmp_path)).text("x/a") == "hello"
    (tmp_path / "b.txt").write_bytes(b"\xff")
    with pytest.raises(Malformed, match="cannot be read as UTF-8"):
        Transcripts(str(tmp_path)).text("b")
