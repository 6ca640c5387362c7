"""One pass over a data set's spoken documents: everything that the checks (checks.py) and the page's plots are made of.

    found = measure(open_dataset("data/mine"))

Streamed: memory is bounded by samples.MOST_HASHES and MOST_TOKENS, whatever the number of documents. Not here: verdicts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lst.data.quality.samples import MOST_SCORED, MOST_TOKENS, Repetitions, TokenSample, hashes_of, perplexities
from lst.data.quality.scan import Piece, pieces, rows_at
from lst.data.quality.tally import KEPT, TokenTally, WordLimits, WordTally
from lst.data.shards import Dataset
from lst.data.vocab import FRAMES_PER_SECOND

COLUMNS = ("id", "split", "text", "speech_tokens", "words", "word_start", "word_end")
SHORTEST_SECONDS, LONGEST_SECONDS = 1.0, 3600.0
LIMITS = WordLimits(frame_rate=FRAMES_PER_SECOND, fastest=40.0, longest_frames=2 * FRAMES_PER_SECOND, mostly_silent=0.9)
SPOKEN_SIGNS = r"[^\p{L}\p{M}\p{N}]+"  # what is taken out before texts are compared
SPOKEN_WORD = r"\S*[\p{L}\p{N}]\S*"


@dataclass
class Measures:
    """What was counted. Shares are in [0, 1]; lists of ids are bounded."""

    vocabulary: int
    tokens: TokenTally
    words: WordTally
    same_tokens: Repetitions
    same_texts: Repetitions
    same_ids: Repetitions
    limits: WordLimits = LIMITS
    with_text: int = 0
    transcript_words: int = 0  # of documents that have words
    missing_words: int = 0  # of them, more than the alignment has
    same_letters: int = 0  # documents with words whose words spell their transcript
    too_short: int = 0
    too_long: int = 0
    outside_ids: list[str] = field(default_factory=list)
    perplexities: dict[int, float] = field(default_factory=dict)
    groups: dict[str, list[list[str]]] = field(default_factory=dict)  # ids of equal documents, by what is equal

    @property
    def documents(self) -> int:
        return self.tokens.lengths.number


def measure(dataset: Dataset) -> Measures:
    """Count all spoken documents of both splits. Raises DataError where a file is damaged."""
    size = dataset.speech_vocab
    found = Measures(size, TokenTally(size), WordTally(size), Repetitions(), Repetitions(), Repetitions())
    samples = {"train": TokenSample(MOST_TOKENS), "heldout": TokenSample(MOST_SCORED)}
    for piece in pieces(dataset, "speech", COLUMNS, bound_by="speech_tokens"):
        _add(found, samples, piece)
    found.perplexities = perplexities(samples["train"], samples["heldout"], size)
    found.groups = _named_groups(found, dataset)
    return found


def _add(found: Measures, samples: dict[str, TokenSample], piece: Piece) -> None:
    ids, tokens = piece.strings("id"), piece.lists("speech_tokens")
    rows = np.arange(piece.first, piece.first + len(piece))
    found.tokens.add(tokens, ids)
    seconds = tokens.lengths / FRAMES_PER_SECOND
    short, long = seconds < SHORTEST_SECONDS, seconds > LONGEST_SECONDS
    found.too_short += int(short.sum())
    found.too_long += int(long.sum())
    found.outside_ids += [ids[i] for i in np.flatnonzero(short | long)[: KEPT - len(found.outside_ids)]]
    documents = [np.ascontiguousarray(tokens.row(i), np.uint16) for i in range(len(ids))]
    hashes = hashes_of(document.tobytes() for document in documents)
    found.same_tokens.add(hashes, rows)
    found.same_ids.add(_text_hashes(_plain_ids(piece.column("id"))), rows)
    letters = _letters(piece.column("text"))
    filled = np.array(pc.greater(pc.binary_length(letters), 0).to_pylist(), bool)
    found.with_text += int(filled.sum())
    found.same_texts.add(_text_hashes(letters.filter(pa.array(filled))), rows[filled])
    for name_hash, split, document in zip(hashes.tolist(), piece.strings("split"), documents, strict=True):
        if split in samples:
            samples[split].add(name_hash, document)
    _add_words(found, piece)


def _add_words(found: Measures, piece: Piece) -> None:
    aligned = piece.take((piece.lists("word_start").lengths > 0) & (piece.lists("speech_tokens").lengths > 0))
    if not len(aligned):
        return
    starts = aligned.lists("word_start")
    found.words.add(
        aligned.lists("speech_tokens"),
        starts,
        aligned.lists("word_end"),
        np.array(pc.utf8_length(_letters(aligned.column("words").flatten())).to_pylist(), np.int64),
        aligned.strings("id"),
        found.limits,
    )
    said = np.array(pc.count_substring_regex(aligned.column("text").fill_null(""), SPOKEN_WORD).to_pylist(), np.int64)
    found.transcript_words += int(said.sum())
    found.missing_words += int(np.maximum(said - starts.lengths, 0).sum())
    spelt = _letters(pc.binary_join(aligned.column("words"), ""))
    found.same_letters += int(pc.sum(pc.equal(spelt, _letters(aligned.column("text")))).as_py() or 0)


def _letters(texts: pa.Array) -> pa.Array:
    """Letters and digits alone, in lower case."""
    return pc.replace_substring_regex(pc.utf8_lower(texts.fill_null("")), SPOKEN_SIGNS, "")


def _plain_ids(ids: pa.Array) -> pa.Array:
    """Ids in lower case, each stretch of other signs as one hyphen, numbers without leading zeros: B_007.wav as b-7-wav."""
    hyphens = pc.replace_substring_regex(pc.utf8_lower(ids), SPOKEN_SIGNS, "-")
    return pc.replace_substring_regex(hyphens, r"(^|[^0-9])0+([0-9])", r"\1\2")


def _text_hashes(texts: pa.Array) -> NDArray[np.uint64]:
    return hashes_of(text.encode("utf-8", "surrogatepass") for text in texts.to_pylist())


def _named_groups(found: Measures, dataset: Dataset) -> dict[str, list[list[str]]]:
    """Ids of the documents that equal each other; one more pass where there are any."""
    kinds = {"tokens": found.same_tokens, "texts": found.same_texts, "ids": found.same_ids}
    groups = {name: repeated.groups(most=5) for name, repeated in kinds.items()}
    wanted = [row for of in groups.values() for group in of for row in group]
    ids = rows_at(dataset, "speech", ("id", "speech_tokens"), wanted, bound_by="speech_tokens")
    names = {row: piece.strings("id")[0] for row, piece in ids.items()}
    return {kind: [[names[row] for row in group] for group in of] for kind, of in groups.items()}


def plain(found: Measures) -> dict[str, Any]:
    """The figures as plain values, for --json: shares as computed, stretches in frames."""
    tokens, words = found.tokens, found.words
    return {
        "documents": found.documents,
        "speech_tokens": tokens.lengths.total,
        "repeat_rate": tokens.repeats / max(1, tokens.pairs),
        "perplexities": {str(order): value for order, value in found.perplexities.items()},
        "documents_with_words": words.documents,
        "words": words.words,
        "silence_share": words.silence_share,
        "longest_silences": [[s.document, s.start, s.frames] for s in words.longest_silences.sorted()],
        "longest_runs": [[s.document, s.start, s.frames] for s in tokens.runs.sorted()],
        "equal": found.groups,
    }
