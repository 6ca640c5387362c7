"""Transcripts and word alignments laid beside the records of any source, by the documents' ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lst.data.audio.align import frame_spans
from lst.data.audio.alignments import Alignments
from lst.data.audio.embedded_quantizer import SpeechTokenizerCard
from lst.data.audio.transcripts import Malformed, Transcripts
from lst.data.audio.word_times import WordTimes, match_words, spoken_words
from lst.data.piece_spans import CHARACTER_START
from lst.data.sources.base import Block, Record, Refused, Row, Source
from lst.data.vocab import FRAMES_PER_SECOND
from lst.errors import DataError

TOLERANCE = 0.2  # seconds that an alignment may go on behind the speech: encoders give a frame or two less than the audio has


class Annotated:
    """A `Source` whose records without text get one of `transcripts`, and whose words get the times of `alignments`."""

    def __init__(
        self,
        inner: Source,
        *,
        transcripts: Transcripts | None = None,
        alignments: Alignments | None = None,
        card: SpeechTokenizerCard | None = None,
    ) -> None:
        """`card` tells what made the tokens of `inner`."""
        self._inner, self._transcripts, self._alignments, self._card = inner, transcripts, alignments, card

    def blocks(self) -> Sequence[Block]:
        return self._inner.blocks()

    def identity(self) -> dict[str, Any]:
        return self._inner.identity() | ({"speech_tokenizer": self._card.identity()} if self._card else {})

    def read(self, block: Block) -> Iterator[Record | Refused]:
        for record in self._inner.read(block):
            if isinstance(record, Refused):
                yield record
                continue
            try:
                yield record._replace(row=self._annotated(record.row))
            except Malformed as error:
                yield Refused(error.file, f"{error.reason} (document '{record.row['id']}')", error.line)
            except ValueError as error:
                yield Refused(block.file, str(error), record.line, record.place)

    def _annotated(self, row: Row) -> Row:
        """A copy with text and words. Raises ValueError with the reason."""
        row = dict(row)
        if self._transcripts and not row["text"]:
            row["text"] = require_text(self._transcripts.text(row["id"]), row["id"])
        return with_alignment(row, self._alignments) if self._alignments else row


def require_text(text: str | None, document: str) -> str:
    """`text`. Raises ValueError if there is none."""
    if not text:
        raise ValueError(f"no transcript of document '{document}'")
    return text


def with_alignment(row: Row, alignments: Alignments) -> Row:
    """`row` with words and frames of the alignment of its document. Raises ValueError with the reason."""
    found = alignments.words(row["id"])
    if found is None:
        raise ValueError(f"no alignment of document '{row['id']}'")
    file, heard = found
    seconds = len(row["speech_tokens"]) / FRAMES_PER_SECOND
    late = [h for h in heard if h.end is not None and h.end > seconds + TOLERANCE]
    if late:
        raise Malformed(file, late[0].line, f"'{late[0].word}' ends at {late[0].end:g} s, the speech at {seconds:g} s")
    text = row["text"] or " ".join(h.word for h in heard)
    words = spoken_words(text)
    try:
        return with_words({**row, "text": text}, words, WordTimes(match_words(words, heard, seconds)))
    except ValueError as error:
        raise Malformed(file, 0, str(error)) from error


def with_words(row: Row, words: Sequence[str], times: WordTimes) -> Row:
    """`row` with `words` spoken at `times`, and the frame in which each character begins where that is known.

    Raises ValueError if they do not fit into its frames.
    """
    try:
        starts, ends = frame_spans(times.spans, len(row["speech_tokens"]))
    except DataError as error:
        raise ValueError(str(error)) from error
    row = {**row, "words": list(words), "word_start": starts, "word_end": ends}
    if times.characters is not None:
        first = np.repeat(starts, [len(word) for word in words])
        last = np.repeat(ends, [len(word) for word in words])
        frames = np.floor(np.array(times.characters) * FRAMES_PER_SECOND + 1e-6).astype(np.int64)
        row[CHARACTER_START] = np.clip(frames, first, last).tolist()
    return row
