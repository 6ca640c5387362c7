"""Texts of spoken documents: beside the audio, or in a table.

    transcripts=beside        X.txt beside X.flac, else a line `ID TEXT` of a *.trans.txt in its folder (as LibriSpeech has it)
    transcripts=FOLDER        ID.txt in that folder
    transcripts=FILE.tsv      id <tab> text, a line a document; .csv: the same between commas, quoted as CSV is

A table's first line may name its columns: then `id` and `text` are taken wherever they stand. A table is held in memory; of
transcripts beside the audio only one folder's are. Not a normaliser: words are what stands between white space.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from lst.errors import DataError

BESIDE = "beside"
LONGEST_FIELD = 1 << 26  # of a table; the module's own limit is passed by the transcript of two hours of speech


class Malformed(ValueError):
    """A line of a transcript or of an alignment that is malformed; `reason` alone is without the place."""

    def __init__(self, file: Path, line: int, reason: str) -> None:
        super().__init__(f"{file}{f':{line}' if line else ''}: {reason}")
        self.file, self.line, self.reason = file, line, reason


class Transcripts:
    """`transcripts=`, opened."""

    def __init__(self, given: str) -> None:
        """Raises DataError if the folder or table isn't there, or a line of the table is malformed."""
        path = Path(given)
        self._folder: Path | None = None
        self._table: dict[str, str] = {}
        self._beside = given == BESIDE
        self._kept: tuple[Path, dict[str, str]] | None = None
        if self._beside:
            return
        if path.is_dir():
            self._folder = path
        elif path.suffix in (".tsv", ".csv"):
            try:
                self._table = dict(_table_rows(path))
            except Malformed as error:
                raise DataError(f"{error}; mend the line.") from error
        else:
            raise DataError(f"transcripts={given} must be '{BESIDE}', a folder of ID.txt files, or a .tsv or .csv file.")

    def text(self, document: str, audio: Path | None = None) -> str | None:
        """The transcript of `document` (of the file `audio`), white space made single; None if there is none.

        Raises Malformed if its file is no UTF-8, or has a line without text.
        """
        if self._beside:
            text = self._text_beside(audio) if audio else None
        elif self._folder:
            text = _whole_file(self._folder / f"{document}.txt")
        else:
            text = self._table.get(document)
        return None if text is None else " ".join(text.split())

    def _text_beside(self, audio: Path) -> str | None:
        alone = _whole_file(audio.with_suffix(".txt"))
        if alone is not None:
            return alone
        if self._kept is None or self._kept[0] != audio.parent:
            lines = {k: v for file in sorted(audio.parent.glob("*.trans.txt")) for k, v in _trans_lines(file)}
            self._kept = audio.parent, lines
        return self._kept[1].get(audio.stem)


def _whole_file(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise Malformed(file, 0, f"it cannot be read as UTF-8 ({error})") from error


def _trans_lines(file: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate((_whole_file(file) or "").split("\n"), 1):
        name, _, text = line.strip().partition(" ")
        if name and not text.strip():
            raise Malformed(file, number, f"'{name}' has no text")
        if name:
            yield name, text


def _table_rows(file: Path) -> Iterator[tuple[str, str]]:
    content = _whole_file(file)
    if content is None:
        raise DataError(f"transcripts={file} does not exist; give a .tsv or .csv file.")
    key, value = 0, 1
    seen: set[str] = set()
    separated = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if file.suffix == ".tsv" else {}
    csv.field_size_limit(LONGEST_FIELD)
    rows = csv.reader(io.StringIO(content, newline=""), strict=True, **separated)  # type: ignore[arg-type]
    try:
        for row in rows:
            if rows.line_num == 1 and {"id", "text"} <= set(row):
                key, value = row.index("id"), row.index("text")
                continue
            if not row:
                continue
            if len(row) <= max(key, value) or not row[key]:
                raise Malformed(file, rows.line_num, "a line needs an id and a text")
            if row[key] in seen:
                raise Malformed(file, rows.line_num, f"id '{row[key]}' stands on an earlier line too")
            seen.add(row[key])
            yield row[key], row[value]
    except csv.Error as error:
        raise Malformed(file, rows.line_num, f"no CSV ({error})") from error
