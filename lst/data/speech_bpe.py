"""Speech tokens merged into larger pieces, for arm `bpe` (PAPER, Terms: BPE SpeechLLM): a SentencePiece BPE model.

Each speech token is one character of a private block of Unicode, so that no rule on white space, scripts or normal forms
touches it; every character is a piece, so everything can be encoded and `decode(encode(x)) == x`. Our numbering of pieces
leaves SentencePiece's one control piece out: piece i is its id i + 1.

The model is a function of the data set and the vocabulary: at most 100,000 speech sequences of the training split, drawn by
a fixed seed. It is made once, by the first that needs it (the planner), and kept beside the data, or in the user's cache
where that folder is not ours to write. A run's configuration holds the hash of that model (`data.speech_bpe_id`), so a job
that finds no file, or a damaged one, makes the same pieces again, or says that it cannot. A checkpoint holds the file too.

    pieces = run_pieces(config)            # None for the arms without pieces
    document = pieces.encode_document(document)
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from lst.config import RunConfig
from lst.data.columns import Chunk, draw_places
from lst.data.interleave import Document, Segment
from lst.data.shards import Dataset, open_dataset
from lst.errors import ConfigError, DataError
from lst.records import write_atomically

FIRST_CHARACTER = 0xF0000  # of Supplementary Private Use Area-A, which holds 65,534 characters
MOST_SPEECH_TOKENS = 65_534
TRAINING_SEQUENCES = 100_000  # PAPER: "100k random speech sequences"
SEQUENCE_TOKENS = 1_024  # a longer document is cut into sequences of this length (41 seconds)
SEED = 20
CONTROL_PIECES = 1  # SentencePiece's <unk>, which it cannot do without
MODEL_FILE = "speech_bpe.model"  # in a checkpoint

IntArray = NDArray[np.int64]

log = logging.getLogger(__name__)
_known: dict[str, SpeechBpe] = {}  # by id, of this process: what was read or made once


class SpeechBpe:
    """Pieces of speech tokens. Immutable."""

    def __init__(self, model: bytes) -> None:
        """Raises DataError if `model` is no SentencePiece model of speech pieces."""
        self.model = model
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            texts = [self._processor.id_to_piece(i) for i in range(CONTROL_PIECES, self._processor.get_piece_size())]
        except (RuntimeError, TypeError, ValueError) as error:  # ValueError: a piece that is no UTF-8
            raise DataError(f"speech pieces are no SentencePiece model ({error}); delete the file to make them anew.") from error
        self.pieces: list[tuple[int, ...]] = [tuple(ord(c) - FIRST_CHARACTER for c in text) for text in texts]
        self.speech_vocab = sum(len(piece) == 1 for piece in self.pieces)  # speech tokens: each is a piece
        if {piece[0] for piece in self.pieces if len(piece) == 1} != set(range(self.speech_vocab)) or not self.pieces:
            raise DataError("a SentencePiece model's pieces are not of speech tokens; give speech pieces of this project.")
        self.lengths: IntArray = np.array([len(piece) for piece in self.pieces], np.int64)  # speech tokens of each piece
        self._flat = np.array([token for piece in self.pieces for token in piece], np.int64)
        self._starts = np.cumsum(self.lengths) - self.lengths

    @property
    def size(self) -> int:
        return len(self.pieces)

    @cached_property
    def id(self) -> str:
        """Hash of the model's bytes: scores, types and the normaliser decide how speech is encoded too, not the pieces alone."""
        return hashlib.sha256(self.model).hexdigest()[:12]

    def encode(self, sequences: Sequence[NDArray[np.integer]]) -> list[IntArray]:
        """The pieces of each sequence of speech tokens, each apart. Raises DataError on a token that no piece has."""
        for tokens in map(np.asarray, sequences):
            if tokens.size and not 0 <= tokens.min() <= tokens.max() < self.speech_vocab:
                outside = tokens.min() if tokens.min() < 0 else tokens.max()
                raise DataError(
                    f"speech token {outside} lies outside 0..{self.speech_vocab - 1}, which the speech pieces are made of."
                )
        encoded = [np.asarray(self._processor.encode(as_text(tokens)), np.int64) - CONTROL_PIECES for tokens in sequences]
        if any(len(pieces) and pieces.min() < 0 for pieces in encoded):
            raise DataError("speech pieces encode a speech token as unknown, so their model is damaged; make them anew.")
        return encoded

    def decode(self, pieces: NDArray[np.integer]) -> IntArray:
        """The speech tokens of a sequence of pieces."""
        lengths = self.lengths[pieces]
        within = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        tokens: IntArray = self._flat[np.repeat(self._starts[pieces], lengths) + within]
        return tokens

    def encode_document(self, document: Document) -> Document:
        """The document with its speech in pieces, each span apart; segments that are in pieces already stay."""
        where = [i for i, s in enumerate(document) if s.modality == "speech" and s.frames is None]
        encoded = list(document)
        for i, pieces in zip(where, self.encode([document[i].tokens for i in where]), strict=True):
            encoded[i] = Segment("speech", pieces, frames=self.lengths[pieces])
        return encoded


def as_text(tokens: NDArray[np.integer]) -> str:
    """Speech tokens as characters, one each."""
    return (np.asarray(tokens).astype("<u4") + np.uint32(FIRST_CHARACTER)).tobytes().decode("utf-32-le")


def run_pieces(config: RunConfig, dataset: Dataset | None = None) -> SpeechBpe | None:
    """The pieces of a run, or None for an arm without; read, or made where they are not found.

    `dataset` is the run's, if it is open. Raises ConfigError if the run names no pieces though it names its data, DataError
    if the pieces of the data set are not those that the run was planned with.
    """
    if not config.model.speech_bpe_vocab:
        return None
    wanted = config.data.speech_bpe_id
    if wanted in _known:
        require_sizes(_known[wanted], config)
        return _known[wanted]
    if not wanted and (config.data.data_id or dataset is None):
        raise ConfigError(
            "arm 'bpe' has data.speech_bpe_id='', so its speech pieces are not known; plan the run (plan-sweep), or fill "
            "config.data by lst.data.statistics.solve_mixture."
        )
    dataset = dataset or open_dataset(config.execution.data_path)
    found = dataset_pieces(dataset, config.model.speech_bpe_vocab, wanted)
    if wanted and found.id != wanted:
        raise DataError(
            f"the {found.size} speech pieces of data '{dataset.path}' are {found.id}, the run wants {wanted}; train with the "
            "data set and the sentencepiece version that the run was planned with, or plan again."
        )
    require_sizes(found, config)
    return remember(found)


def require_sizes(pieces: SpeechBpe, config: RunConfig) -> None:
    """Raises DataError if the configuration has other numbers of speech tokens or pieces than `pieces`."""
    model = config.model
    if (pieces.speech_vocab, pieces.size) != (model.speech_vocab, model.speech_bpe_vocab):
        raise DataError(
            f"speech pieces {pieces.id} are {pieces.size} of {pieces.speech_vocab} speech tokens, the model has speech_bpe_vocab="
            f"{model.speech_bpe_vocab} and speech_vocab={model.speech_vocab}; give data.speech_bpe_id of pieces of that size."
        )


def remember(pieces: SpeechBpe) -> SpeechBpe:
    """Let `run_pieces` find these in this process by their id."""
    return _known.setdefault(pieces.id, pieces)


def dataset_pieces(dataset: Dataset, vocabulary: int, wanted: str = "") -> SpeechBpe:
    """The pieces of a data set, `vocabulary` of them: read where they were kept, else made and kept.

    With `wanted`, an id, kept pieces of another id are passed over, and what is made has that id or is not kept.

    Several processes may do this at once: all make the same bytes, and a file appears whole. Raises DataError if the data
    set is too small for so many pieces.
    """
    files = [folder / f"speech_bpe-{dataset.data_id}-{vocabulary}.model" for folder in _folders(dataset)]
    for file in files:
        pieces = _read(file, dataset.speech_vocab, vocabulary)
        if pieces is not None and wanted in ("", pieces.id):
            return pieces
    pieces = SpeechBpe(train_speech_bpe(training_sequences(dataset), speech_vocab=dataset.speech_vocab, vocabulary=vocabulary))
    if wanted not in ("", pieces.id):
        return pieces  # what is kept may be good pieces of another version of sentencepiece
    for file in files:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, pieces.model)
        except OSError:
            continue  # a data set that others own; the next folder may do
        return pieces
    log.warning("speech pieces can be kept in none of %s; set LST_CACHE to a folder that can be written", [str(f) for f in files])
    return pieces


def training_sequences(dataset: Dataset) -> list[NDArray[np.integer]]:
    """At most TRAINING_SEQUENCES sequences of the training split, in file order, drawn by a fixed seed; copies."""
    documents = dataset.documents("speech", "train")
    total = sum(int(_sequence_ends(chunk, first, last)[-1]) for chunk, first, last in documents.runs())
    chosen = np.array(draw_places(np.random.Generator(np.random.Philox(key=SEED)), total, TRAINING_SEQUENCES), np.int64)
    sequences, before = [], 0
    for chunk, first, last in documents.runs():
        ends = before + _sequence_ends(chunk, first, last)
        own = chosen[(chosen >= before) & (chosen < ends[-1])]
        rows = np.searchsorted(ends, own, side="right")
        begins = np.append(before, ends)[rows]
        for row, number in zip(rows.tolist(), (own - begins).tolist(), strict=True):
            start = number * SEQUENCE_TOKENS
            sequences.append(np.array(chunk["speech_tokens"].row(first + row)[start : start + SEQUENCE_TOKENS]))
        before = int(ends[-1])
    return sequences


def _sequence_ends(chunk: Chunk, first: int, last: int) -> IntArray:
    """Sequences of the documents `first` .. `last` - 1 of a record batch, up to each one's end."""
    lengths = np.diff(chunk["speech_tokens"].offsets[first : last + 1]).astype(np.int64)
    return np.cumsum(-(-lengths // SEQUENCE_TOKENS))


def train_speech_bpe(sequences: Sequence[NDArray[np.integer]], *, speech_vocab: int, vocabulary: int) -> bytes:
    """A model of `vocabulary` pieces, serialised; the same bytes for the same sequences. Raises DataError."""
    if speech_vocab > MOST_SPEECH_TOKENS:
        raise DataError(f"speech_vocab={speech_vocab} is more than the {MOST_SPEECH_TOKENS:,} that arm 'bpe' can do.")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_texts(sequences, speech_vocab),
            model_writer=model,
            vocab_size=vocabulary + CONTROL_PIECES,
            model_type="bpe",
            character_coverage=1.0,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            split_by_whitespace=False,
            split_by_unicode_script=False,
            split_by_number=False,
            byte_fallback=False,
            max_sentence_length=8 * SEQUENCE_TOKENS,  # bytes; a longer one would be passed over
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        fitting = re.search(r"<= *(\d+)", str(error))  # SentencePiece says which size would fit
        remedy = f"give model.speech_bpe_vocab={int(fitting[1]) - CONTROL_PIECES} or less" if fitting else "choose another size"
        raise DataError(
            f"the training speech ({len(sequences):,} sequences) is too small for model.speech_bpe_vocab={vocabulary}; {remedy}."
        ) from error
    return model.getvalue()


def _texts(sequences: Sequence[NDArray[np.integer]], speech_vocab: int) -> Iterator[str]:
    """The sequences, and each speech token once alone: all of them are pieces, seen or not, and no pair is added."""
    yield from (as_text(np.array([token])) for token in range(speech_vocab))
    yield from (as_text(tokens) for tokens in sequences)


def _folders(dataset: Dataset) -> list[Path]:
    """Where pieces may be kept, best first: beside the data, but not inside an installed package; the user's cache."""
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "lst-scaling"
    beside = [] if dataset.path.is_relative_to(Path(__file__).parent) else [dataset.path]
    return [*beside, Path(os.environ.get("LST_CACHE") or user)]


def _read(file: Path, speech_vocab: int, vocabulary: int) -> SpeechBpe | None:
    """The pieces in `file`, or None where there is none, or where it is damaged (it is then made anew)."""
    try:
        pieces = SpeechBpe(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, DataError) as error:
        log.warning("'%s' is passed over: %s", file, error)
        return None
    return pieces if (pieces.speech_vocab, pieces.size) == (speech_vocab, vocabulary) else None
