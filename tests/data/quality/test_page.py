"""The data report: whole, escaped, bounded, the same bytes each time, and honest about what it cannot render."""

from __future__ import annotations

import base64
import io
import json
import re
import wave
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lst.data.prepare import main
from lst.data.quality.examples import MOST_SECONDS
from lst.data.quality.page import PAGE, write_report
from lst.data.shards import Dataset, open_dataset
from lst.errors import DataError
from tests.data.quality.made_data import changed, made_dataset, sound_rows
from tests.reports.chromium import Chromium, find_chromium

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&\u202egnp"


class Elements(HTMLParser):
    """Names, attributes and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def dataset(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return made_dataset(tmp_path_factory.mktemp("page") / "data", sound_rows(30), toy_dataset / "tokenizer.model")


@pytest.fixture(scope="module")
def embedded_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(open_dataset("embedded"), tmp_path_factory.mktemp("page") / "embedded.html")


def test_hostile_texts_are_escaped(toy_dataset: Path, tmp_path: Path) -> None:
    words = [HOSTILE, "the\x00cat"]
    rows = changed(sound_rows(12), lambda row: row | {"words": [*words, *row["words"][2:]]})
    for number, row in enumerate(rows):
        row |= {"id": f"{HOSTILE}{number}", "speaker": HOSTILE, "book": HOSTILE, "text": HOSTILE}
    made = made_dataset(
        tmp_path / "<b>data", rows, toy_dataset / "tokenizer.model", about={"speech_tokenizer": {HOSTILE: HOSTILE}, "x": HOSTILE}
    )
    page = write_report(made).read_text(encoding="utf-8")
    plain = write_report(made_dataset(tmp_path / "plain", sound_rows(12), toy_dataset / "tokenizer.model")).read_text()
    found = Elements(page)
    assert {tag for tag, _ in found.tags} == {tag for tag, _ in Elements(plain).tags}
    assert not [attributes for _, attributes in found.tags if any(name.startswith("on") for name in attributes)]
    assert any("<script>alert(1)</script>" in text for text in found.texts)  # shown, as text
    assert "\u202e" not in page
    assert "\x00" not in page


def test_the_page_asks_for_nothing_and_forbids_it(embedded_page: Path) -> None:
    found = Elements(embedded_page.read_text(encoding="utf-8"))
    links = [v for _, a in found.tags for k, v in a.items() if k in ("src", "href", "data", "action", "poster") and v]
    assert links
    assert all(link.startswith(("data:", "#")) for link in links)
    policies = [a["content"] for tag, a in found.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"]
    ids = [a["id"] for _, a in found.tags if a.get("id")]
    assert len(ids) == len(set(ids))


def test_the_embedded_corpus_is_heard(embedded_page: Path) -> None:
    """Five documents in 16-bit sound of one channel, 40 ms a token and not silent."""
    page = embedded_page.read_text(encoding="utf-8")
    sounds = re.findall(r'src="data:audio/wav;base64,([^"]+)"', page)
    tokens = [len(text.split()) for text in re.findall(r"<summary>\d+ speech tokens</summary><code>([^<]*)</code>", page)]
    assert len(sounds) == len(tokens) == 5
    for sound, count in zip(sounds, tokens, strict=True):
        with wave.open(io.BytesIO(base64.b64decode(sound))) as file:
            assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
            assert file.getnframes() * 25 == count * file.getframerate()
            assert count <= MOST_SECONDS * 25
            assert max(file.readframes(file.getnframes())) > 0
    assert embedded_page.stat().st_size < 3 << 20


def test_a_second_run_gives_the_same_bytes(dataset: Dataset, tmp_path: Path) -> None:
    first = write_report(dataset, tmp_path / "a.html").read_bytes()
    assert write_report(dataset, tmp_path / "deep" / "b.html").read_bytes() == first


def test_tokens_of_an_unknown_quantizer_have_no_audio_and_the_page_says_so(dataset: Dataset, tmp_path: Path) -> None:
    page = write_report(dataset, tmp_path / "page.html").read_text()
    assert "<audio" not in page
    assert "No audio: " in page
    assert page.count('class="example"') == 5


def test_a_vocoder_that_the_user_gave_and_that_is_none_is_an_error(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        write_report(dataset, tmp_path / "page.html", vocoder=str(tmp_path))
    assert not (tmp_path / "page.html").exists()


def test_the_page_shows_verdicts_overlap_refusals_and_card(toy_dataset: Path, tmp_path: Path) -> None:
    card = {"model": "HuBERT", "layer": 11, "measured": {"repeat_rate": 0.9}}
    made = made_dataset(
        tmp_path / "data",
        sound_rows(30),
        toy_dataset / "tokenizer.model",
        about={"speech_tokenizer": card},
        refused={"speech": {"records": 3, "by_reason": {"it has no speech tokens": 3}}},
    )
    overlap = {
        "ngram": 13,
        "speakers": {"train": 3, "heldout": 3, "shared": 3, "documents_shared": 5},
        "books": {"train": 5, "heldout": 1, "shared": 0, "documents_shared": 0},
        "text": {"speech": {"documents": 5, "documents_hit": 4, "share_of_words_covered": 0.125}},
    }
    (made.path / "overlap.json").write_text(json.dumps(overlap))
    text = " ".join(" ".join(Elements(write_report(made).read_text()).texts).split())
    assert "speech: 13 words in a row 12.50% of words 4 of 5" in text
    assert "3 it has no speech tokens" in text
    assert "measured.repeat_rate 0.9" in text
    assert "bad largest factor from the card's figures" in text
    (made.path / "overlap.json").write_text('{"ngram": 13}')
    assert "no overlap table" in write_report(made).read_text()


def test_data_without_words_or_text_have_a_page(toy_dataset: Path, tmp_path: Path) -> None:
    bare = {"words": [], "word_start": [], "word_end": [], "text": "", "speaker": "", "book": ""}
    made = made_dataset(tmp_path / "data", changed(sound_rows(4), lambda row: row | bare), toy_dataset / "tokenizer.model")
    page = write_report(made).read_text()
    assert "This document has no words with times." in page
    assert "no transcript" in page


def test_the_command_prints_the_page(dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(dataset.path)]) == 0
    assert capsys.readouterr().out.strip() == str(dataset.path / PAGE)
    assert main(["report", str(dataset.path), f"out={tmp_path}"]) == 2
    assert "is a folder; name a file" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "none")]) == 2
    assert "prepare-data: " in capsys.readouterr().err


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_its_window(embedded_page: Path, tmp_path: Path, width: int) -> None:
    binary = find_chromium()
    if binary is None:
        pytest.skip("no Chromium is installed; install Debian's package chromium")
    with Chromium(binary, tmp_path) as browser:
        browser.show(embedded_page, width=width)
        assert browser.ask("document.documentElement.scrollWidth") <= width
        assert browser.ask("[...document.querySelectorAll('audio')].filter(a => a.error).length") == 0
        assert browser.ask("document.querySelectorAll('figure svg').length") == 5
