"""What the names of audio files tell: the document's id, who speaks, and what book is read.

    layout=             84/121123/84-121123-0000.flac                     100/sea_fairies_0812/01_baum.flac
    (none)              id 84/121123/84-121123-0000                       id 100/sea_fairies_0812/01_baum
    librispeech         id 84-121123-0000, speaker 84, book of chapter 121123
    libri-light                                                           the same id, speaker 100, book sea_fairies_0812

LibriSpeech's CHAPTERS.TXT, in the folder or one of the two above it, tells the book of a chapter; without it a chapter stands
for its book, and two chapters of one book can come to lie on both sides of the split. `names=REGEX` is matched with the whole
path without its suffix, relative to the folder; its groups speaker, book and id are taken.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from lst.errors import ConfigError, DataError, did_you_mean

LAYOUTS = ("librispeech", "libri-light")
GROUPS = ("id", "speaker", "book")
_CHAPTERS = "CHAPTERS.TXT"


class Named(NamedTuple):
    """What a file's name tells; "" is not known."""

    id: str
    speaker: str = ""
    book: str = ""


class FileNames:
    """The rule from a path to `Named`."""

    def __init__(self, root: Path, *, layout: str = "", names: str = "") -> None:
        """Raises ConfigError for an unknown layout, or a `names` that is no regular expression with one of the groups."""
        if layout and layout not in LAYOUTS:
            raise ConfigError(f"layout='{layout}' is unknown; {did_you_mean(layout, LAYOUTS)}")
        if layout and names:
            raise ConfigError(f"give either layout={layout} or names=REGEX.")
        try:
            self._pattern = re.compile(names)
        except re.error as error:
            raise ConfigError(f"names='{names}' is no regular expression ({error}).") from error
        groups = set(self._pattern.groupindex)
        if names and (not groups or groups - set(GROUPS)):
            raise ConfigError(f"names='{names}' needs named groups out of {', '.join(GROUPS)}, as in (?P<speaker>[^/]+)/.*")
        self._layout, self._names = layout, names
        self._books = _books_of_chapters(root) if layout == "librispeech" else {}

    def __call__(self, path: PurePosixPath) -> Named:
        """`path` is relative to the folder. Raises ValueError with the reason where the rule doesn't fit."""
        whole = str(path.with_suffix(""))
        if self._names:
            match = self._pattern.fullmatch(whole)
            if not match:
                raise ValueError(f"its name '{whole}' does not match names={self._names}")
            return Named(**{"id": whole, **{key: text for key, text in match.groupdict().items() if text}})
        if self._layout == "librispeech":
            speaker, _, rest = path.stem.partition("-")
            chapter, _, utterance = rest.partition("-")
            if not (speaker and chapter and utterance):
                raise ValueError(f"its name '{path.stem}' is not speaker-chapter-utterance, as layout=librispeech has it")
            return Named(path.stem, speaker, self._books.get(chapter, chapter))
        if self._layout == "libri-light":
            if len(path.parts) < 3:
                raise ValueError(f"'{path}' is not speaker/book/file, as layout=libri-light has it")
            return Named(whole, path.parts[-3], path.parts[-2])
        return Named(whole)


def _books_of_chapters(root: Path) -> dict[str, str]:
    """Chapter -> book of LibriSpeech's table (columns between bars; the sixth is the book), {} if there is none."""
    found = [folder / _CHAPTERS for folder in (root, *root.resolve().parents[:2]) if (folder / _CHAPTERS).is_file()]
    if not found:
        return {}
    books: dict[str, str] = {}
    for number, line in enumerate(found[0].read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if line.startswith(";") or not line.strip():
            continue
        columns = [column.strip() for column in line.split("|")]
        if len(columns) < 6 or not columns[5]:
            raise DataError(f"{found[0]}:{number} has no sixth column with the book; mend it, or delete the file.")
        books[columns[0]] = f"book-{columns[5]}"
    return books
