"""The data side of planning from stated statistics: counts of the mean sequence in closed form, without any data.

A sequence of U units starts at an even place of its kind's token stream and packs documents (lst/data/stream.py). With
shares s, x, m of speech, text and markers and mean units of p speech tokens it holds

    T = (U - 1) / (s/p + x + m + 2/l) tokens of content        (l: a document's mean length; endless: T = U / (s/p + x + m))

in 1 + T/l documents, each led by BOS and, where it ends, followed by EOS. A position that is t places after the start of
the sequence is min(t, A) places after the start of its document, where A is even in 0..L and L the length of the document
in which an even place of the stream lies (so 1/l is the mean of 1/L); attention's pairs are integrals of that (`pairs`). A
token sees the units before its own, and its own where it closes it. A mixed arm's sequence is the mean of both cuttings, a
curriculum's their mean under its schedule, summed over the run's steps.

Other mixtures than the stated one: tokens of speech and of text follow the words, markers follow the spans.
Not here: the file (`sweeps.stated_file`), planning on a data set (`sweeps.measure`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from lst.config import DataConfig, EvalConfig, Patching, PatchingConfig, RunConfig
from lst.errors import ConfigError
from lst.flops import SequenceCounts
from sweeps.stated_file import InterleavedStatistics, StatedStatistics, UnitLength

if TYPE_CHECKING:
    from lst.data.statistics import SequenceTable

ENDLESS = 2**50  # sequences of a run that is not counted


@dataclass(frozen=True)
class Content:
    """What a kind of sequence is made of: shares of its content tokens (speech, text, markers), and its documents."""

    speech: float
    text: float
    markers: float
    documents: tuple[
        float, ...
    ]  # lengths in content tokens (StatedStatistics); () = endless, and then BOS and EOS are not counted
    unit: UnitLength  # how its speech is cut

    @property
    def units_per_token(self) -> float:
        return self.speech / self.unit.mean_length + self.text + self.markers


class StatedMeasurements:
    """What a plan asks, answered from stated statistics (the interface of `sweeps.measure.Measurements`)."""

    def __init__(self, stated: StatedStatistics) -> None:
        self.stated = stated
        self.data_id = stated.data_id
        self.text_vocab, self.speech_vocab = stated.text_vocab, stated.speech_vocab
        self.unique_speech_tokens = stated.unique_speech_tokens
        self.has_stories = True  # items are no statistics: what a study asks for is priced
        self._counts: dict[Any, SequenceCounts] = {}
        self._tables: dict[SequenceCounts, SequenceTable] = {}

    def count_limit(self, config: RunConfig) -> int:
        """No sequence is counted: the mean stands for each."""
        return 1

    def mixture(self, config: RunConfig) -> DataConfig:
        """`config.data` with data_id and the shares of interleaved sequences that keep the mixture in tokens.

        Raises ConfigError where the mixture is given by formats, but for pairs of speech and text alone (fine-tuning).
        """
        if config.data.mixture.given:
            if not _pairs_alone(config.data):
                raise ConfigError(
                    f"mixture.formats is given, but statistics '{self.stated.name}' know interleaved and text sequences alone; "
                    "give mixture.interleaved_token_share, or plan on a prepared data set (data=FOLDER)."
                )
            shares = tuple(config.data.mixture.shares.values())
            return dataclasses.replace(
                config.data, data_id=self.data_id, mixture_sequences_static=shares, mixture_sequences_aligned=shares
            )
        kinds = kinds_of(config.patching)
        static, aligned = (self._sequence_share(config, kind) for kind in (kinds[0], kinds[-1]))
        return dataclasses.replace(
            config.data,
            data_id=self.data_id,
            interleaved_sequence_share_static=static,
            interleaved_sequence_share_aligned=aligned,
        )

    def prefix(self, config: RunConfig, sequences: int, *, batch_sequences: int) -> SequenceTable:
        """The mean sequence of a run of any length."""
        mean = self.mean(config)
        if mean not in self._tables:
            self._tables[mean] = _table(mean, ENDLESS)
        return self._tables[mean]

    def run(self, config: RunConfig, *, steps: int, batch_sequences: int, limit: int | None = None) -> SequenceTable:
        """The mean sequence of a run of `steps` full batches."""
        return _table(self.mean(config, steps), steps * batch_sequences)

    def mean(self, config: RunConfig, steps: int | None = None) -> SequenceCounts:
        """Counts of the mean sequence of `config`; a curriculum's over `steps` steps."""
        first, *others = (self._of_kind(config, kind) for kind in kinds_of(config.patching))
        if not others:
            return first
        share = aligned_share(config.patching, steps or config.train.steps)
        return first.scaled(1 - share) + others[0].scaled(share)

    def _transcripts(self, config: RunConfig, kind: Patching) -> SequenceCounts:
        """The mean sequence of words that stand in it twice, as speech and as text (fine-tuning ASR and TTS).

        Its documents are as long as a sequence; markers are not counted.
        """
        model, mixed = config.model, self.stated.interleaved
        spoken = mixed.speech_per_text_words / (1 + mixed.speech_per_text_words)
        text_per_word = mixed.text_share / (1 - spoken) / (mixed.speech_share / spoken) * mixed.speech_tokens_per_word
        speech = mixed.speech_tokens_per_word / (mixed.speech_tokens_per_word + text_per_word)
        unit = self.stated.unit_length(kind, config.patching, model.speech_bpe_vocab)
        stacks = [stack.window for stack in (model.encoder, model.decoder) if stack is not None]
        content = Content(speech, 1 - speech, 0.0, (), unit)
        return sequence_counts(content, config.data.seq_len_units, stacks, local_text=model.local_text)

    def references(self, evaluation: EvalConfig, data: DataConfig) -> None:
        """None: there are no held-out tokens, so no losses of n-gram models on them."""

    def _of_kind(self, config: RunConfig, kind: Patching) -> SequenceCounts:
        """The mean sequence whose speech is cut by `kind`: interleaved, text only or pairs of both, as the mixture has it."""
        if _pairs_alone(config.data):
            return self._transcripts(config, kind)
        model, data = config.model, config.data
        stacks = [stack.window for stack in (model.encoder, model.decoder) if stack is not None]
        key = (kind, config.patching, _mixture(data), tuple(stacks), model.local_text, model.speech_bpe_vocab)
        if key not in self._counts:
            share = self._sequence_share(config, kind)
            mixed = sequence_counts(self._interleaved(config, kind), data.seq_len_units, stacks, local_text=model.local_text)
            text = sequence_counts(self._text(), data.seq_len_units, stacks, local_text=model.local_text)
            text = dataclasses.replace(text, text_only_tokens=text.text_tokens, interleaved_tokens=0.0)
            self._counts[key] = mixed.scaled(share) + text.scaled(1 - share)
        return self._counts[key]

    def _sequence_share(self, config: RunConfig, kind: Patching) -> float:
        """As `lst.data.statistics.solve_mixture`: six digits, since it becomes part of the run's identity."""
        share, units = config.data.interleaved_token_share, config.data.seq_len_units
        if share in (0.0, 1.0):
            return share
        mixed, text = (sequence_counts(c, units, []).tokens for c in (self._interleaved(config, kind), self._text()))
        return round(share * text / (share * text + (1 - share) * mixed), 6)

    def _interleaved(self, config: RunConfig, kind: Patching) -> Content:
        unit = self.stated.unit_length(kind, config.patching, config.model.speech_bpe_vocab)
        return interleaved_content(self.stated.interleaved, config.data, unit)

    def _text(self) -> Content:
        documents = tuple(length + 1 for length in self.stated.text.document_tokens)  # one marker a document
        marker = _mean([1 / length for length in documents])
        return Content(0.0, 1.0 - marker, marker, documents, UnitLength(mean_length=1.0))


def interleaved_content(stated: InterleavedStatistics, data: DataConfig, unit: UnitLength) -> Content:
    """Interleaved documents under the mixture of `data`: speech and text follow their words, markers the spans."""
    span, ratio = realised_spans(data)
    then, now = stated.speech_per_text_words, ratio
    spoken_then, spoken_now = then / (1 + then), now / (1 + now)
    speech = stated.speech_share * spoken_now / spoken_then
    text = stated.text_share * (1 - spoken_now) / (1 - spoken_then)
    markers = stated.marker_share * (1 + then) / (1 + now) * stated.text_span_words / span
    total = speech + text + markers
    documents = tuple(length * total for length in stated.document_tokens)
    return Content(speech / total, text / total, markers / total, documents, unit)


def sequence_counts(content: Content, units: int, windows: Sequence[int], *, local_text: bool = True) -> SequenceCounts:
    """Counts of the mean sequence of `units` units; `windows` of encoder and decoder, or none (a plain network).

    All its tokens count as interleaved ones.
    """
    per_token, lengths = content.units_per_token, content.documents
    ends = 2 * _mean([1 / length for length in lengths])  # BOS and EOS a content token
    tokens = (units - 1) / (per_token + ends) if lengths else units / per_token
    documents = 1 + tokens * ends / 2
    others = 2 * documents - 1 if lengths else 0.0
    speech = tokens * content.speech
    patches = speech / content.unit.mean_length
    all_tokens = tokens + others
    global_pairs = pairs(units, [length * per_token + 2 for length in lengths])
    seen = global_pairs / units  # units up to a position's own, on the mean
    unclosed = speech - content.unit.complete * patches  # speech tokens that do not close their unit
    row, scale = (all_tokens, 1.0) if local_text else (speech, content.speech)
    local_lengths = [length * scale + 2 * local_text for length in lengths]
    encoder, decoder = (pairs(row, local_lengths, window) for window in windows) if windows and row else (0.0, 0.0)
    positions = units if not windows else all_tokens  # a plain network's positions are its units
    return SequenceCounts(
        sequences=1,
        units=units,
        tokens=all_tokens,
        text_tokens=tokens * content.text,
        interleaved_tokens=all_tokens,
        speech_tokens=speech,
        patches=patches,
        predicted=positions - documents,
        global_pairs=global_pairs,
        encoder_pairs=encoder,
        decoder_pairs=decoder,
        cross_pairs=max(0.0, row * seen - unclosed) if windows else 0.0,
    )


def pairs(row: float, lengths: Sequence[float], window: float = math.inf) -> float:
    """Sum of min(place in its document, window), counted from 1, over `row` positions of documents of these lengths.

    The integral over t from 0 to `row` of E min(t, A, window) (module's docstring), and half a place for each position
    inside the window, by which the sum over whole places exceeds it. No lengths: one endless document.
    """
    window = window or math.inf
    inside = min(row, window)
    if not lengths:
        return inside**2 / 2 + (row - inside) * inside + inside / 2
    below = _mean([_rise(inside, length) for length in lengths])
    full = _mean([(m := min(window, length)) - m**2 / (2 * length) for length in lengths]) if row > window else 0.0
    return below + (row - inside) * full + inside / 2


def _rise(row: float, length: float) -> float:
    """The integral over t from 0 to `row` of E min(t, A) = m - m^2 / (2 length), m = min(t, length)."""
    if row <= length:
        return row**2 / 2 - row**3 / (6 * length)
    return length**2 / 3 + length / 2 * (row - length)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def aligned_share(patching: PatchingConfig, steps: int) -> float:
    """The mean over a run's steps k of the probability of aligned patches at progress k / steps."""
    if patching.kind is not Patching.CURRICULUM:
        return patching.aligned_probability(0.0)
    start, end = patching.curriculum_aligned_until, patching.curriculum_static_from
    first, last = math.ceil(start * steps - 1e-9), math.ceil(end * steps - 1e-9)  # the first steps of the fall and after it
    if first >= last:
        return first / steps
    fall = (last - first) * end - (first + last - 1) * (last - first) / 2 / steps
    return (first + fall / (end - start)) / steps


def kinds_of(patching: PatchingConfig) -> tuple[Patching, ...]:
    """The cuttings that occur: one, or static and aligned."""
    if patching.kind in (Patching.MIXED, Patching.CURRICULUM):
        return (Patching.STATIC, Patching.ALIGNED)
    return (patching.kind,)


def _pairs_alone(data: DataConfig) -> bool:
    """Whether all sequences are of words that stand in them as speech and as text."""
    return data.mixture.given and data.mixture.asr + data.mixture.tts == 1


def _mixture(data: DataConfig) -> tuple[Any, ...]:
    return (data.seq_len_units, data.interleaved_token_share, data.text_span_words, data.speech_per_text_words)


def realised_spans(data: DataConfig) -> tuple[float, float]:
    """Mean words of a text span, and words of speech to one of text, as whole words make it (lst/data/interleave.py)."""
    return _spans(data.text_span_words, data.speech_per_text_words)


@lru_cache
def _spans(text_span_words: tuple[int, int], ratio: float) -> tuple[float, float]:
    low, high = text_span_words
    spans = range(low, high + 1)
    mean = sum(spans) / len(spans)
    return mean, sum(max(1, round(span * ratio)) for span in spans) / len(spans) / mean


def _table(mean: SequenceCounts, sequences: int) -> SequenceTable:
    import numpy as np

    from lst.data.statistics import FIELDS, SequenceTable

    counts = np.array([[getattr(mean, name) for name in FIELDS]])
    return SequenceTable(np.zeros(1, np.int64), counts, sequences)
