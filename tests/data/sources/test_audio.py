"""Folders of audio as a source: names, blocks, refusals, transcripts and alignments beside the files."""

from __future__ import annotations

import io
import json
import logging
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tqdm

from lst.data.audio.alignments import Alignments
from lst.data.audio.embedded_quantizer import SpeechTokenizerCard
from lst.data.audio.quantizers import HubertQuantizer
from lst.data.audio.transcripts import Transcripts
from lst.data.audio.word_times import WordTimes
from lst.data.sources import audio as audio_source
from lst.data.sources.annotate import Annotated
from lst.data.sources.audio import AudioFiles
from lst.data.sources.audio_names import FileNames
from lst.data.sources.base import Block, Record, Refused, Source
from lst.errors import ConfigError, DataError
from tests.tiny_speech_models import save_centres, save_hubert, tones, write_audio


class Loudness:
    """A quantizer whose tokens a test can tell by hand: the mean size of 640 samples, in hundredths."""

    card = SpeechTokenizerCard(model="loudness", layer=0, k=101, rate_hz=25, dedup=False)

    def tokens(self, audios: list[np.ndarray]) -> list[np.ndarray]:
        frames = [np.abs(a[: len(a) // 640 * 640]).reshape(-1, 640).mean(1) for a in audios]
        return [np.round(100 * f).astype(np.uint16) for f in frames]


def read(source: Source) -> tuple[dict[str, dict], list[str]]:
    rows, refused = {}, []
    for block in source.blocks():
        for record in source.read(block):
            if isinstance(record, Record):
                rows[record.row["id"]] = record.row
            else:
                refused.append(str(record))
    return rows, refused


@pytest.fixture
def librispeech(tmp_path: Path) -> Path:
    """LibriSpeech's shape: two speakers, three chapters of two books, transcripts, CHAPTERS.TXT above the subset."""
    root = tmp_path / "LibriSpeech/dev-clean"
    for n, name in enumerate(("84-121123-0000", "84-121123-0001", "84-121550-0000", "174-50561-0000")):
        speaker, chapter, _ = name.split("-")
        folder = root / speaker / chapter
        write_audio(folder / f"{name}.flac", tones(1.0 + 0.2 * n, n))
        with (folder / f"{speaker}-{chapter}.trans.txt").open("a") as file:
            file.write(f"{name} GO DO YOU HEAR\n")
    chapters = [
        "; ID|READER|MINUTES|SUBSET|PROJ.|BOOK ID|CH. TITLE|PROJECT TITLE",
        "121123 | 84 | 1 | dev-clean | 7 | 1184 | a | b",
    ]
    chapters += ["121550 | 84 | 1 | dev-clean | 7 | 1184 | c | b", "50561 | 174 | 1 | dev-clean | 8 | 32 | d | e"]
    (root.parent / "CHAPTERS.TXT").write_text("\n".join(chapters))
    return root


def test_a_librispeech_folder_tells_speakers_books_and_transcripts(librispeech: Path) -> None:
    names = FileNames(librispeech, layout="librispeech")
    rows, refused = read(AudioFiles(librispeech, Loudness(), naming=names, transcripts=Transcripts("beside")))
    assert refused == []
    assert [(r["id"], r["speaker"], r["book"]) for r in rows.values()] == [
        ("174-50561-0000", "174", "book-32"),
        ("84-121123-0000", "84", "book-1184"),
        ("84-121123-0001", "84", "book-1184"),
        ("84-121550-0000", "84", "book-1184"),
    ]
    assert {r["text"] for r in rows.values()} == {"GO DO YOU HEAR"}
    assert [len(r["speech_tokens"]) for r in rows.values()] == [40, 25, 30, 35]


def test_without_the_table_of_chapters_a_chapter_is_the_book(librispeech: Path) -> None:
    (librispeech.parent / "CHAPTERS.TXT").unlink()
    rows, _ = read(AudioFiles(librispeech, Loudness(), naming=FileNames(librispeech, layout="librispeech")))
    assert rows["84-121550-0000"]["book"] == "121550"


def test_names_are_told_by_path_layout_or_expression(tmp_path: Path) -> None:
    file = write_audio(tmp_path / "100/sea_fairies/01_baum.wav", tones(0.5))
    rows, _ = read(AudioFiles(tmp_path, Loudness()))
    assert [(r["id"], r["speaker"], r["book"]) for r in rows.values()] == [("100/sea_fairies/01_baum", "", "")]
    rows, _ = read(AudioFiles(tmp_path, Loudness(), naming=FileNames(tmp_path, layout="libri-light")))
    assert [(r["speaker"], r["book"]) for r in rows.values()] == [("100", "sea_fairies")]
    names = FileNames(tmp_path, names=r"\d+/(?P<book>\w+)/(?P<id>\d+)_(?P<speaker>.*)")
    rows, _ = read(AudioFiles(tmp_path, Loudness(), naming=names))
    assert [(r["id"], r["speaker"], r["book"]) for r in rows.values()] == [("01", "baum", "sea_fairies")]
    _, refused = read(AudioFiles(tmp_path, Loudness(), naming=FileNames(tmp_path, layout="librispeech")))
    assert refused == [f"{file}: its name '01_baum' is not speaker-chapter-utterance, as layout=librispeech has it"]
    _, refused = read(AudioFiles(tmp_path, Loudness(), naming=FileNames(tmp_path, names="(?P<speaker>x)")))
    assert "does not match names=" in refused[0]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"layout": "librispeach"}, "did you mean 'librispeech'"),
        ({"names": "("}, "no regular expression"),
        ({"names": "(.*)"}, "needs named groups"),
        ({"names": "(?P<voice>.*)"}, "needs named groups"),
        ({"names": "(?P<id>.*)", "layout": "librispeech"}, "give either"),
    ],
)
def test_namings_that_cannot_be_are_refused(tmp_path: Path, options: dict[str, str], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        FileNames(tmp_path, **options)


def test_every_refused_file_is_named_with_its_reason_and_the_others_stay(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "e", "._a"):  # the last one as macOS leaves them: hidden, and passed over
        write_audio(tmp_path / f"{name}.wav", tones(1.0))
    (tmp_path / "b.wav").write_bytes(b"text")
    (tmp_path / "c.wav").write_bytes((tmp_path / "a.wav").read_bytes()[:9_000])
    write_audio(tmp_path / "d.wav", tones(0.03))
    rows, refused = read(AudioFiles(tmp_path, Loudness()))
    assert list(rows) == ["a", "e"]
    assert [(Path(r.split(": ")[0]).name, r.split(": ", 1)[1]) for r in refused] == [
        ("b.wav", "no readable audio (Format not recognised)"),
        ("c.wav", "it is cut: the wav's data chunk ends behind the file's end"),
        ("d.wav", "its 0.030 s are too short for a speech token"),
    ]


def test_a_file_without_transcript_is_refused_where_transcripts_are_given(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", tones(0.5))
    _, refused = read(AudioFiles(tmp_path, Loudness(), transcripts=Transcripts("beside")))
    assert refused == [f"{tmp_path / 'a.wav'}: no transcript of document 'a'"]


def test_a_list_names_files_relative_to_itself_or_to_its_first_line(tmp_path: Path) -> None:
    for name in ("x/a.wav", "x/b.flac", "c.wav"):
        write_audio(tmp_path / name, tones(0.5))
    (tmp_path / "list.txt").write_text("x/b.flac\nx/a.wav\n")
    assert list(read(AudioFiles(tmp_path / "list.txt", Loudness()))[0]) == ["x/a", "x/b"]
    (tmp_path / "train.tsv").write_text(f"{tmp_path / 'x'}\nb.flac\t8000\n")
    assert list(read(AudioFiles(tmp_path / "train.tsv", Loudness()))[0]) == ["b"]
    for content, reason in (
        ("a.mp3\n", r"1: 'a\.mp3' is no"),
        ("c.wav\nc.wav\n", r"2: 'c\.wav' stands on line 1"),
        ("", "has no"),
    ):
        (tmp_path / "list.txt").write_text(content)
        with pytest.raises(DataError, match=reason):
            AudioFiles(tmp_path / "list.txt", Loudness())


def test_hours_speed_and_the_time_that_is_left_are_shown_while_it_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()

    class Terminal(tqdm.tqdm):  # what a terminal would get, at once and at any width
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(
                *arguments, **{**options, "disable": False, "delay": 0, "mininterval": 0, "file": shown, "ncols": 200}
            )

    monkeypatch.setattr(tqdm, "tqdm", Terminal)
    monkeypatch.setattr(audio_source, "GROUP_SECONDS", 18)
    for n in range(4):
        write_audio(tmp_path / f"{n}.wav", tones(18.0, n))
    read(AudioFiles(tmp_path, Loudness()))
    lines = [line for line in shown.getvalue().split("\r") if "files 1-4 of 4" in line]
    assert any("2/4" in line and "0.01 h of audio" in line for line in lines)
    assert any("4/4" in line and "0.02 h of audio" in line and "times real time" in line for line in lines)
    assert re.search(r"\[\d\d:\d\d<\d\d:\d\d", lines[-1])  # [gone<left


def test_blocks_are_runs_of_files_bounded_by_number_and_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(7):
        write_audio(tmp_path / f"{n}.wav", tones(0.5 if n != 3 else 3.0))
    monkeypatch.setattr(audio_source, "FILES_BLOCK", 3)
    monkeypatch.setattr(audio_source, "BYTES_BLOCK", 50_000)
    source = AudioFiles(tmp_path, Loudness())
    assert [(b.start, b.stop) for b in source.blocks()] == [(0, 3), (3, 4), (4, 7)]
    assert [r.row["id"] for r in source.read(Block(tmp_path, 3, 5)) if isinstance(r, Record)] == ["3", "4"]


def test_tokens_do_not_depend_on_blocks_or_on_what_is_read_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(5):
        write_audio(tmp_path / f"in/{n}.flac", tones(0.4 + 0.3 * n, n))
    save_hubert(tmp_path / "m")
    quantizer = HubertQuantizer(tmp_path / "m", kmeans=save_centres(tmp_path / "c.npy"), layer=2, device="cpu")
    together, _ = read(AudioFiles(tmp_path / "in", quantizer))
    monkeypatch.setattr(audio_source, "FILES_BLOCK", 2)
    monkeypatch.setattr(audio_source, "GROUP_SECONDS", 0.5)
    apart, _ = read(AudioFiles(tmp_path / "in", quantizer))
    assert {k: r["speech_tokens"].tolist() for k, r in together.items()} == {
        k: r["speech_tokens"].tolist() for k, r in apart.items()
    }


def test_wav_and_flac_give_identical_tokens_and_ogg_as_many(tmp_path: Path) -> None:
    save_hubert(tmp_path / "m")
    quantizer = HubertQuantizer(tmp_path / "m", kmeans=save_centres(tmp_path / "c.npy"), layer=2, device="cpu")
    found = {}
    for suffix in ("wav", "flac", "ogg"):
        write_audio(tmp_path / suffix / f"a.{suffix}", tones(2.0))
        found[suffix] = read(AudioFiles(tmp_path / suffix, quantizer))[0]["a"]["speech_tokens"].tolist()
    assert found["wav"] == found["flac"]
    assert len(found["ogg"]) == len(found["wav"])


def test_an_alignment_gives_words_their_frames(tmp_path: Path) -> None:
    write_audio(tmp_path / "in/a.wav", tones(1.0))
    (tmp_path / "in/a.txt").write_text("Go, do!")
    (tmp_path / "al").mkdir()
    (tmp_path / "al/a.json").write_text(
        '[{"word": "GO", "start": 0.10, "end": 0.30}, {"word": "DO", "start": 0.30, "end": 0.62}]'
    )
    source = AudioFiles(tmp_path / "in", Loudness(), transcripts=Transcripts("beside"), alignments=Alignments(tmp_path / "al"))
    row = read(source)[0]["a"]
    assert (row["words"], row["word_start"], row["word_end"]) == (["Go,", "do!"], [2, 7], [6, 15])
    assert row["text"] == "Go, do!"


@pytest.mark.parametrize(
    ("words", "where", "reason"),
    [
        ([{"word": "go", "start": 0.1, "end": 0.3}], "al/a.json", "word 2: the transcript has 'do!'"),
        ([{"word": "go", "start": 0.1, "end": 1.3}], "al/a.json", "'go' ends at 1.3 s, the speech at 1 s (document 'a')"),
        (None, "in/a.wav", "no alignment of document 'a'"),
    ],
)
def test_alignments_that_do_not_belong_to_the_speech_are_refused(tmp_path: Path, words: object, where: str, reason: str) -> None:
    write_audio(tmp_path / "in/a.wav", tones(1.0))
    (tmp_path / "in/a.txt").write_text("Go, do!")
    (tmp_path / "al").mkdir()
    if words:
        (tmp_path / "al/a.json").write_text(json.dumps(words))
    source = AudioFiles(tmp_path / "in", Loudness(), transcripts=Transcripts("beside"), alignments=Alignments(tmp_path / "al"))
    _, (refused,) = read(source)
    assert refused.startswith(str(tmp_path / where))
    assert reason in refused


class Halves:
    """An aligner that divides the audio evenly, and knows every character."""

    def times(self, audio: np.ndarray, words: list[str]) -> WordTimes:
        cuts = np.linspace(0, len(audio) / 16_000, len(words) + 1)
        starts = [t for w, (a, b) in zip(words, pairwise(cuts), strict=True) for t in np.linspace(a, b, len(w) + 1)[:-1]]
        return WordTimes(list(pairwise(cuts)), starts)

    def identity(self) -> dict[str, object]:
        return {"aligner": "halves"}

    def take_unknown(self) -> Counter[str]:
        return Counter({"ß": 2})


def test_words_aligned_here_come_with_their_characters(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_audio(tmp_path / "a.wav", tones(1.0))
    (tmp_path / "a.txt").write_text("oh no")
    source = AudioFiles(tmp_path, Loudness(), transcripts=Transcripts("beside"), aligner=Halves())
    with caplog.at_level(logging.WARNING):
        row = read(source)[0]["a"]
    assert caplog.messages == ["files 1-1: 2 letters outside the aligner's vocabulary were left out ('ß' 2)"]
    assert (row["word_start"], row["word_end"], row["character_start"]) == ([0, 12], [11, 24], [0, 6, 12, 18])
    assert source.identity()["aligner"] == {"aligner": "halves"}
    with pytest.raises(DataError, match="align= needs the words"):
        AudioFiles(tmp_path, Loudness(), aligner=Halves())


def test_the_card_is_part_of_the_identity(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", tones(1.0))
    identity = AudioFiles(tmp_path, Loudness()).identity()
    assert identity["speech_tokenizer"]["k"] == 101
    assert identity["speech_tokenizer"]["model"] == "loudness"  # named, for no checksum is known


class Ready:
    """Tokens that somebody else made, with their ids and no words."""

    def blocks(self) -> list[Block]:
        return [Block(Path("tokens.jsonl"))]

    def identity(self) -> dict[str, object]:
        return {}

    def read(self, block: Block):  # type: ignore[no-untyped-def]
        for line, name in enumerate("ab", 1):
            row = {"id": name, "speaker": "", "book": "", "split": "", "text": "", "speech_tokens": [1] * 25}
            yield Record({**row, "words": [], "word_start": [], "word_end": []}, line)
        yield Refused(block.file, "not JSON", 3)


@pytest.mark.parametrize("name", ["t.tsv", "t.csv"])
def test_the_transcript_of_hours_of_speech_is_read_from_a_table(tmp_path: Path, name: str) -> None:
    text = " ".join(["speech"] * 40_000)
    (tmp_path / name).write_text(f"a\t{text}\n" if name.endswith("tsv") else f"a,{text}\n")
    assert Transcripts(str(tmp_path / name)).text("a") == text


def test_alignments_and_transcripts_join_ready_tokens_by_id(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("a\tGo do\n")
    (tmp_path / "al.ctm").write_text("a 1 0.1 0.2 go\na 1 0.3 0.3 do\n")
    alignments = Alignments(tmp_path / "al.ctm")
    rows, refused = read(Annotated(Ready(), transcripts=Transcripts(str(tmp_path / "t.tsv")), alignments=alignments))
    assert (rows["a"]["text"], rows["a"]["words"], rows["a"]["word_start"]) == ("Go do", ["Go", "do"], [2, 7])
    assert refused == ["tokens.jsonl:2: no transcript of document 'b'", "tokens.jsonl:3: not JSON"]
    rows, refused = read(Annotated(Ready(), alignments=alignments))
    assert rows["a"]["text"] == "go do"
    assert refused[0] == "tokens.jsonl:2: no alignment of document 'b'"
