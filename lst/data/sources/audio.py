"""Folders and lists of audio files through a quantizer: `format=audio`.

    input=FOLDER      every wav, flac and ogg file in it and below but hidden ones, in the order of their paths
    input=LIST        a file of paths, one a line, relative to the list's own folder; what follows a tab is passed over. A first
                      line that is a folder (as in fairseq's manifests) is what the others are relative to

A block is a run of consecutive files: at most FILES_BLOCK of them and, but for a single longer one, BYTES_BLOCK bytes. The
list of paths is held in memory (about 150 bytes a file), one group of waveforms at a time, never a block.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lst.data.audio.alignments import Alignments
from lst.data.audio.quantizers import AudioQuantizer
from lst.data.audio.transcripts import Malformed, Transcripts
from lst.data.audio.waveform import SAMPLE_RATE, SUFFIXES, read_waveform, require_soundfile
from lst.data.audio.word_times import WordTimes, spoken_words
from lst.data.sources.annotate import require_text, with_alignment, with_words
from lst.data.sources.audio_names import FileNames
from lst.data.sources.base import Block, Record, Refused, Row, require_utf8
from lst.data.sources.files import files_below
from lst.errors import DataError

FILES_BLOCK = 256  # constants of the format, as LINES_BLOCK_BYTES is
BYTES_BLOCK = 256 * 2**20
GROUP_SECONDS = 600  # of audio that is held, and offered to the quantizer, at a time
MAX_SECONDS = 7_200.0

log = logging.getLogger(__name__)


class Aligner(Protocol):
    """What tells when the words of a waveform are spoken."""

    def times(self, audio: NDArray[np.float32], words: Sequence[str]) -> WordTimes:
        """Raises DataError or ValueError where the words do not fit into the audio."""

    def identity(self) -> dict[str, Any]:
        """What decides the times."""

    def take_unknown(self) -> Counter[str]:
        """The letters that were left out since the last call, for the model does not know them."""


@dataclass
class _Heard:
    """A file on its way: its waveform, and what its name and transcript tell."""

    file: Path
    row: Row
    audio: NDArray[np.float32]


class AudioFiles:
    """A `lst.data.sources.base.Source` of spoken documents, one a file."""

    def __init__(
        self,
        given: Path,
        quantizer: AudioQuantizer,
        *,
        naming: FileNames | None = None,
        transcripts: Transcripts | None = None,
        alignments: Alignments | None = None,
        aligner: Aligner | None = None,
        max_seconds: float = MAX_SECONDS,
    ) -> None:
        """Raises DataError if `given` has no audio file, an aligner has no transcripts, or `soundfile` is missing."""
        require_soundfile()
        if aligner and not transcripts:
            raise DataError("align= needs the words that are spoken; give transcripts=beside, a folder or a table.")
        self._root, self._paths = list_audio(given)
        self._quantizer, self._aligner = quantizer, aligner
        self._naming = naming or FileNames(self._root)
        self._transcripts, self._alignments, self._max_seconds = transcripts, alignments, max_seconds

    def blocks(self) -> Sequence[Block]:
        blocks: list[Block] = []
        start, held = 0, 0
        for i, path in enumerate(self._paths):
            size = _file_size(self._root / path)
            if i > start and (i - start >= FILES_BLOCK or held + size > BYTES_BLOCK):
                blocks.append(Block(self._root, start, i))
                start, held = i, 0
            held += size
        return [*blocks, Block(self._root, start, len(self._paths))]

    def identity(self) -> dict[str, Any]:
        """The tokenizer's card and, where words are aligned here, the aligner."""
        identity: dict[str, Any] = {"speech_tokenizer": self._quantizer.card.identity()}
        return identity | ({"aligner": self._aligner.identity()} if self._aligner else {})

    def read(self, block: Block) -> Iterator[Record | Refused]:
        """The files of a block, with a bar that shows the hours of audio and how many times faster than it is spoken."""
        from tqdm import tqdm

        paths = self._paths[block.start : block.stop]
        about = f"files {block.start + 1:,}-{block.stop:,} of {len(self._paths):,}"
        group: list[_Heard | Refused] = []
        samples, done, began = 0, 0.0, time.monotonic()
        with tqdm(total=len(paths), desc=about, unit=" files", leave=False, disable=None, delay=2) as bar:
            for i, path in enumerate(paths):
                group.append(self._load(path))
                samples += len(group[-1].audio) if isinstance(group[-1], _Heard) else 0
                if samples >= GROUP_SECONDS * SAMPLE_RATE or i == len(paths) - 1:
                    yield from self._records(group)
                    done += samples / SAMPLE_RATE
                    speed = done / max(1e-9, time.monotonic() - began)
                    bar.set_postfix_str(f"{done / 3600:,.2f} h of audio, {speed:,.0f} times real time")
                    bar.update(len(group))
                    group, samples = [], 0
        if self._aligner:
            _tell_unknown(self._aligner.take_unknown(), block)

    def _load(self, path: str) -> _Heard | Refused:
        file = self._root / path
        try:
            named = self._naming(PurePosixPath(path))
            require_utf8("id", named.id)
            row: Row = {**named._asdict(), "split": "", "text": "", "words": [], "word_start": [], "word_end": []}
            if self._transcripts:
                row["text"] = require_text(self._transcripts.text(named.id, file), named.id)
            return _Heard(file, row, read_waveform(file, max_seconds=self._max_seconds))
        except Malformed as error:
            return Refused(error.file, error.reason, error.line)
        except ValueError as error:
            return Refused(file, str(error))

    def _records(self, group: Sequence[_Heard | Refused]) -> Iterator[Record | Refused]:
        tokens = iter(self._quantizer.tokens([heard.audio for heard in group if isinstance(heard, _Heard)]))
        for heard in group:
            yield heard if isinstance(heard, Refused) else self._record(heard, next(tokens))

    def _record(self, heard: _Heard, tokens: NDArray[np.uint16]) -> Record | Refused:
        try:
            if not len(tokens):
                raise ValueError(f"its {len(heard.audio) / SAMPLE_RATE:.3f} s are too short for a speech token")
            row = {**heard.row, "speech_tokens": tokens}
            if self._alignments:
                row = with_alignment(row, self._alignments)
            elif self._aligner:
                words = spoken_words(row["text"])
                row = with_words(row, words, self._aligner.times(heard.audio, words))
            return Record(row, place=f"file {heard.file}", audio_seconds=len(heard.audio) / SAMPLE_RATE)
        except Malformed as error:
            return Refused(error.file, f"{error.reason} (document '{heard.row['id']}')", error.line)
        except (ValueError, DataError) as error:
            return Refused(heard.file, str(error))


def _tell_unknown(unknown: Counter[str], block: Block) -> None:
    if unknown:
        most = ", ".join(f"'{letter}' {count:,}" for letter, count in unknown.most_common(5))
        log.warning(
            "files %d-%d: %d letters outside the aligner's vocabulary were left out (%s)",
            block.start + 1, block.stop, unknown.total(), most,
        )  # fmt: skip


def list_audio(given: Path) -> tuple[Path, list[str]]:
    """(folder, sorted paths relative to it) of a folder, or of a list of files. Raises DataError if there is none."""
    if given.is_dir():
        root = given
        paths = [str(PurePosixPath(p.relative_to(root))) for p in files_below(root) if p.suffix.lower() in SUFFIXES]
    else:
        root, paths = _listed(given)
    if not paths:
        raise DataError(f"input={given} has no {', '.join(SUFFIXES)} file; give a folder of audio, or a list of files.")
    return root, sorted(paths)


def _listed(file: Path) -> tuple[Path, list[str]]:
    try:
        lines: Iterable[str] = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"input={file} cannot be read as a list of files ({error}); give a folder or a UTF-8 list.") from error
    root = file.parent
    paths: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        path = line.partition("\t")[0].strip()
        if not path:
            continue
        if number == 1 and (root / path).is_dir():
            root = root / path
            continue
        if Path(path).suffix.lower() not in SUFFIXES:
            raise DataError(f"{file}:{number}: '{path}' is no {', '.join(SUFFIXES)} file; list audio files alone.")
        if path in paths:
            raise DataError(f"{file}:{number}: '{path}' stands on line {paths[path]} too; list it once.")
        paths[path] = number
    return root, list(paths)


def _file_size(path: Path) -> int:
    """0 for a file that is not there: it is refused by name when it is read."""
    try:
        return path.stat().st_size
    except OSError:
        return 0
