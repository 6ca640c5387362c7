"""Which phone is said in each frame of held-out documents: from alignments, or by having espeak-ng say them again.

phones=FOLDER or FILE      alignments of phones, as prepare-data's alignments= (docs/data.md) with phones for words; the tier
                           `phones` of a TextGrid, as the Montreal Forced Aligner writes it
phones=espeak              of documents that an espeak-ng voice spoke, as the embedded corpus' (extra `speech`): the engine
                           tells when each phoneme starts. Others have none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lst.data.shards import Dataset
from lst.data.vocab import FRAMES_PER_SECOND
from lst.errors import DataError

if TYPE_CHECKING:
    from lst.data.audio.alignments import Alignments

PAUSE = ""
ESPEAK = "espeak"
Reader = Callable[[str, str, list[str], int], list[str] | None]  # id, speaker, words and frames of a document -> its phones
TOLERANCE = 2  # frames by which what espeak-ng says now may be longer or shorter than the document


def document_phones(dataset: Dataset, documents: Iterable[int], given: str, *, tier: str = "phones") -> dict[int, list[str]]:
    """The phone at the middle of each frame (PAUSE where there is none) of held-out documents, by their numbers.

    Documents without phones are left out. Raises DataError where none has any, an alignment is malformed, or espeak-ng now says
    something of another length.
    """
    rows = dataset.rows("speech", "heldout")
    table = dataset.speech.select(["id", "speaker", "words", "speech_tokens"])
    found: dict[int, list[str]] = {}
    read = _aligned(open_phones(given, tier)) if given != ESPEAK else _said_again
    for number in sorted(set(documents)):
        row = table.slice(int(rows[number]), 1).to_pylist()[0]
        phones = read(row["id"], row["speaker"], row["words"], len(row["speech_tokens"]))
        if phones is not None:
            found[number] = phones
    if not found:
        raise DataError(f"phones={given} has phones of no held-out document of data '{dataset.path}'.")
    return found


def frames_of(spans: Iterable[tuple[str, float, float]], frames: int) -> list[str]:
    """The label at the middle of each frame, of spans in seconds that come in order."""
    labels, middles = [PAUSE] * frames, (np.arange(frames) + 0.5) / FRAMES_PER_SECOND
    for label, start, end in spans:
        first, last = np.searchsorted(middles, [start, end])
        labels[first:last] = [label] * (last - first)
    return labels


def open_phones(given: str, tier: str) -> Alignments:
    """The alignments in a folder or file. Raises DataError where there are none."""
    from lst.data.audio.alignments import Alignments

    try:
        return Alignments(Path(given), tier=tier)
    except DataError as error:
        raise DataError(str(error).replace("alignments=", "phones=")) from error


def _aligned(alignments: Alignments) -> Reader:
    from lst.data.audio.transcripts import Malformed

    def read(document: str, _speaker: str, _words: list[str], frames: int) -> list[str] | None:
        try:
            heard = alignments.words(document)
        except Malformed as error:
            raise DataError(f"{error}; mend the alignment.") from error
        if heard is None:
            return None
        return frames_of([(h.word, h.start, h.end) for h in heard[1] if h.start is not None and h.end is not None], frames)

    return read


def _said_again(document: str, speaker: str, words: list[str], frames: int) -> list[str] | None:
    from lst.data.corpus.measure import frame_phones
    from lst.data.corpus.synthesis import speak

    if not speaker.startswith("espeak:"):
        return None
    said = speak(words, speaker)
    seconds = len(said.audio) / 16_000
    if said.phones is None or abs(seconds * FRAMES_PER_SECOND - frames) > TOLERANCE:
        raise DataError(
            f"phones=espeak: document '{document}' has {frames} frames, and this espeak-ng says it in "
            f"{seconds * FRAMES_PER_SECOND:.0f}; give phones=FOLDER with alignments."
        )
    return frame_phones(said.phones, frames)
