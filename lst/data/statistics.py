"""What the planner must know of the data: counts of a run's sequences, the mixture, unique tokens, references.

No torch. Where a run is short, its sequences are made and counted one by one, exactly as the trainer will see them;
where it is long, evenly spread windows of consecutive ones stand for the rest.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lst.config import DataConfig, EvalConfig, Format, ModelConfig, Patching, PatchingConfig, RunConfig
from lst.data.columns import draw_places
from lst.data.interleave import Document
from lst.data.ngram import NgramModel
from lst.data.shards import Dataset
from lst.data.speech_bpe import remember, run_pieces
from lst.data.stream import Stream
from lst.data.vocab import FRAMES_PER_SECOND
from lst.errors import DataError
from lst.flops import SequenceCounts, training_flops
from lst.plain import kept

MIXTURE_UNITS = 1 << 20  # of each format: units of the sequences by which the shares are solved ..
MIXTURE_SAMPLE = (1024, 4096)  # .. and their fewest and most: then a mean one's tokens are known to a part in a thousand
REFERENCE_TOKENS = 1 << 25  # of each modality that the references are counted on at most
OUTLINED = 1 << 14  # sequences by which the shares of formats and patchings in a long run are known
WINDOWS = (3, 8, 16)  # stretches of consecutive sequences by which a long run is known: the fewest that hold all it draws from
FIELDS = tuple(f.name for f in dataclasses.fields(SequenceCounts))


@dataclass(frozen=True)
class SequenceTable:
    """Counts of some of a run's sequences: row j of `counts` is sequence `indices[j]`, columns are FIELDS."""

    indices: NDArray[np.int64]
    counts: NDArray[np.float64]
    total_sequences: int  # of the run

    @property
    def exact(self) -> bool:
        """True where every sequence of the run was counted."""
        return len(self.indices) == self.total_sequences

    def total(self) -> SequenceCounts:
        """Counts of the whole run."""
        return self.mean().scaled(self.total_sequences)

    def mean(self) -> SequenceCounts:
        """Counts of the mean sequence."""
        return kept(self, "_mean", lambda table: _counts(table.counts.mean(0)))

    def flops(self, config: RunConfig) -> NDArray[np.float64]:
        """Training FLOPs of each counted sequence. FLOPs are linear in the counts, so unit costs suffice."""
        flops: NDArray[np.float64] = self.counts @ kept(config.model, "_unit_costs", _unit_costs)
        return flops


def _counts(row: NDArray[np.float64]) -> SequenceCounts:
    return SequenceCounts(**dict(zip(FIELDS, row.tolist(), strict=True)))


def _unit_costs(model: ModelConfig) -> NDArray[np.float64]:
    """Training FLOPs of one of each of FIELDS."""
    return np.array([training_flops(model, SequenceCounts(**{name: 1})).total for name in FIELDS])


def count_sequences(dataset: Dataset, config: RunConfig, limit: int = 4096) -> SequenceTable:
    """Counts of the run's sequences, in order; at most `limit`, in evenly spread windows, if there are more."""
    total = config.train.total_sequences
    stream = Stream(dataset, config)
    if total <= limit:
        return SequenceTable(np.arange(total), _count_rows(stream, range(total)), total)
    indices, weights = _sample(stream, total, limit)
    return SequenceTable(indices, _count_rows(stream, indices.tolist()) * weights[:, None], total)


def _sample(stream: Stream, total: int, limit: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Indices that stand for a long run, and what each counts for, one on average: formats and patchings have the run's shares.

    These shares are told without reading data, so that far more sequences than the sample's tell them (post-stratification).
    """
    wider = np.arange(total) if total <= OUTLINED else window_indices(total, OUTLINED, WINDOWS[-1])
    of_run = Counter(stream.outline(int(index)) for index in wider)
    for windows in WINDOWS:
        indices = window_indices(total, limit, windows)
        sample = [stream.outline(int(index)) for index in indices]
        of_sample = Counter(sample)
        if set(of_run) <= set(of_sample):
            break
    weights = np.array([of_run[kind] / of_sample[kind] for kind in sample])
    return indices, weights / weights.mean()


def window_indices(total: int, limit: int, windows: int) -> NDArray[np.int64]:
    """At most `limit` of `total` indices (more than `limit`): one window of consecutive ones from each of equal parts.

    A window is as long as a power of two and begins at a multiple of it: so many points of Sobol's sequence, from which formats,
    starts and patchings are drawn, fill each dimension evenly. Which window of a part is taken differs from part to part, by the
    mirrored bits of the part's number and a fixed draw: at a regular stride near a power of two all would meet the same part of a
    dimension.
    """
    count = min(windows, limit)
    length = 1 << ((limit // count).bit_length() - 1)
    borders = np.arange(count + 1, dtype=np.int64) * (total // length) // count
    raw = np.random.Philox(key=total).random_raw(count).astype(np.float64) / 2.0**64
    mirrored = np.array([int(f"{part:b}"[::-1], 2) / (1 << part.bit_length()) for part in range(count)])
    place = mirrored + raw / (1 << (count - 1).bit_length())
    chosen = np.minimum(borders[:-1] + (place * np.diff(borders)).astype(np.int64), borders[1:] - 1)
    indices: NDArray[np.int64] = (chosen[:, None] * length + np.arange(length)).ravel()
    return indices


def solve_mixture(dataset: Dataset, config: RunConfig) -> DataConfig:
    """`config.data` with data_id, speech_bpe_id, and the shares of interleaved sequences that keep the mixture in tokens.

    Arm `bpe`'s speech pieces are made here where the data set has none yet.

    An interleaved sequence of mean length T_i tokens and a text-only one of T_t, drawn with shares f and 1 - f, hold the
    token share s if f T_i / (f T_i + (1 - f) T_t) = s, so f = s T_t / (s T_t + (1 - s) T_i). With data.mixture, in general: a
    format of share s_k, whose mean sequence holds a_k tokens (or words), has f_k in proportion to s_k / a_k.
    """
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, data_id="", speech_bpe_id=""))
    pieces = run_pieces(config, dataset)
    if pieces:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, speech_bpe_id=remember(pieces).id))
    static = Patching.TOKEN if config.patching.kind is Patching.TOKEN else Patching.STATIC
    kinds = {"static": static}
    if config.patching.kind in (Patching.ALIGNED, Patching.MIXED, Patching.CURRICULUM):
        kinds["aligned"] = Patching.ALIGNED
    solve = _format_shares if config.data.mixture.given else _interleaved_share
    shares = {name: solve(dataset, config, kind) for name, kind in kinds.items()}
    prefix = "mixture_sequences" if config.data.mixture.given else "interleaved_sequence_share"
    solved: dict[str, Any] = {f"{prefix}_{name}": shares.get(name, shares["static"]) for name in ("static", "aligned")}
    return dataclasses.replace(config.data, data_id=dataset.data_id, speech_bpe_id=pieces.id if pieces else "", **solved)


def corpus_statistics(dataset: Dataset) -> dict[str, Any]:
    """Sizes of the training split: documents, unique tokens, seconds of speech, words. Streamed over record batches."""
    spoken, written = dataset.documents("speech", "train"), dataset.documents("text", "train")
    words = transcript = 0
    for chunk, first, last in spoken.runs():
        words += chunk["word_start"].total(first, last)
        transcript += chunk["word_text_tokens"].total(first, last)
    return {
        "data_id": dataset.data_id,
        "spoken_documents": spoken.rows,
        "unique_speech_tokens": spoken.tokens,
        "speech_seconds": spoken.tokens / FRAMES_PER_SECOND,
        "spoken_words": words,
        "unique_transcript_tokens": transcript,
        "text_documents": written.rows,
        "unique_text_tokens": written.tokens,
    }


def document_lengths(dataset: Dataset, places: int) -> dict[str, NDArray[np.int64]]:
    """Lengths in tokens, rising, of the training split's documents in which `places` even places of the stream lie.

    Of `speech` and of `text`; none of a kind without tokens. Memory does not grow with the documents.
    """
    lengths = {}
    for kind in ("speech", "text"):
        split, found = dataset.documents(kind, "train"), []
        for token in ((np.arange(places) + 0.5) / places * split.tokens).astype(np.int64).tolist() if split.tokens else ():
            place = next(split.from_token(token))
            found.append(place.chunk[split.column].total(place.row, place.row + 1))
        lengths[kind] = np.sort(np.array(found, np.int64))
    return lengths


def references(dataset: Dataset, evaluation: EvalConfig, data: DataConfig | None = None) -> dict[str, Any]:
    """Unigram and trigram losses (nats a token) of the very tokens that runs are evaluated on (references.json).

    Counted on the training split, or on documents drawn from it that hold about REFERENCE_TOKENS tokens if it has more.
    """
    from lst.data.heldout import heldout_documents

    sets = heldout_documents(dataset, evaluation, data or DataConfig())
    counted = {"speech": ("speech_tokens", dataset.speech_vocab), "text": ("text_tokens", dataset.text_vocab)}
    losses: dict[str, Any] = {}
    for name, (column, vocabulary) in counted.items():
        train = dataset.documents(name, "train")
        documents = min(train.rows, REFERENCE_TOKENS * train.rows // max(1, train.tokens))
        generator = np.random.Generator(np.random.Philox(key=evaluation.seed))
        places = train.documents(draw_places(generator, train.rows, documents))
        model = NgramModel([place.chunk[column].row(place.row) for place in places], vocabulary)
        scored = [segment.tokens for document in sets[name] for segment in _segments(document)]
        losses[name] = {
            "unigram": model.nats(scored, 1),
            "trigram": model.nats(scored, 3),
            "n_items": int(sum(len(tokens) for tokens in scored)),
        }
    return losses


def _segments(document: Document) -> Sequence[Any]:
    return [segment for segment in document if len(segment.tokens)]


def _interleaved_share(dataset: Dataset, config: RunConfig, kind: Patching) -> float:
    """Rounded to six digits, since it becomes part of the run's identity."""
    share = config.data.interleaved_token_share
    if share in (0.0, 1.0):
        return share
    interleaved = dataclasses.replace(config.data, interleaved_sequence_share_static=1.0, interleaved_sequence_share_aligned=1.0)
    tokens, *_ = _mean_sequence(dataset, config, kind, interleaved)
    text_tokens = config.data.seq_len_units  # a text token is a unit
    return round(share * text_tokens / (share * text_tokens + (1 - share) * tokens), 6)


def _format_shares(dataset: Dataset, config: RunConfig, kind: Patching) -> tuple[float, ...]:
    """Shares of sequences by format: a format's share of tokens (or words) over what its mean sequence holds of them."""
    data, wanted = config.data, config.data.format_shares
    if max(wanted.values()) == 1:
        return tuple(wanted.values())
    rates = _tokens_per_word(dataset) if data.mixture.of == "words" else None
    weights = []
    for name in Format:
        if not wanted[name]:
            weights.append(0.0)
            continue
        alone = tuple(float(name is other) for other in Format)
        only = dataclasses.replace(data, mixture_sequences_static=alone, mixture_sequences_aligned=alone)
        tokens, speech, text = _mean_sequence(dataset, config, kind, only)
        amount = speech / rates[0] + text / rates[1] if rates else tokens
        weights.append(wanted[name] / amount)
    shares = [round(weight / sum(weights), 6) for weight in weights]
    shares[int(np.argmax(shares))] += 1 - sum(shares)
    return tuple(round(share, 6) for share in shares)


def _tokens_per_word(dataset: Dataset) -> tuple[float, float]:
    """Speech tokens and text tokens of a mean spoken word of the training split: what words are counted by, in texts too."""
    sizes = corpus_statistics(dataset)
    if not sizes["spoken_words"] or not sizes["unique_transcript_tokens"]:
        raise DataError(f"data '{dataset.path}' has no spoken words, so data.mixture.of=words has no meaning; give of=tokens.")
    return sizes["unique_speech_tokens"] / sizes["spoken_words"], sizes["unique_transcript_tokens"] / sizes["spoken_words"]


@dataclass(frozen=True)
class _Alone:
    """A configuration under one patching, equal to others whose sequences hold the same tokens."""

    data: DataConfig
    patching: PatchingConfig
    speech_bpe_vocab: int
    config: RunConfig = field(compare=False)


def _mean_sequence(dataset: Dataset, config: RunConfig, kind: Patching, data: DataConfig) -> tuple[float, float, float]:
    """Tokens, speech tokens and text tokens of the mean sequence of `data` under `kind` alone, on MIXTURE_UNITS units.

    Raises DataError where they are empty.
    """
    patching = PatchingConfig(
        kind=kind,
        patch_size=config.patching.patch_size,
        aligned_unit=config.patching.aligned_unit,
        silence=config.patching.silence,
        merge_side=config.patching.merge_side,
        boundary_noise_ms=config.patching.boundary_noise_ms,
    )
    return _mean_tokens(dataset, _Alone(data, patching, config.model.speech_bpe_vocab, config))


@lru_cache(maxsize=64)
def _mean_tokens(dataset: Dataset, alone: _Alone) -> tuple[float, float, float]:
    """Remembered, since arms share their cuttings."""
    low, high = MIXTURE_SAMPLE
    sample = max(low, min(high, MIXTURE_UNITS // alone.data.seq_len_units))
    train = dataclasses.replace(alone.config.train, seed=0, steps=sample, batch_sequences=1, final_batch_sequences=0)
    config = dataclasses.replace(alone.config, data=alone.data, patching=alone.patching, train=train)
    counts = count_sequences(dataset, config).mean()
    if not counts.tokens:
        raise DataError(f"data '{dataset.path}' gives empty sequences; prepare it with longer documents.")
    return counts.tokens, counts.speech_tokens, counts.text_tokens


def _count_rows(stream: Stream, indices: Sequence[int]) -> NDArray[np.float64]:
    rows = [stream.row(i).counts(stream.local) for i in indices]
    return np.array([[getattr(row, name) for name in FIELDS] for row in rows], np.float64)
