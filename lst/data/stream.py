"""The training stream: the global batch of a step is a pure function of (data, configuration, seed, step).

Sequence i of a run (i = step x batch_sequences + its place in the batch) draws all it needs from its own index, so the
order does not depend on world size, workers or restarts, any step can be made without the ones before it, and memory
does not grow with the corpus:

- its format (interleaved, text, ..) is the one into whose share u_i falls, its start is the fraction v_i of the token stream
  of the spoken or the text documents, and its patching (mixed, curriculum) is aligned if w_i is below that share, where
  (u_i, v_i, w_i) are the points of Sobol's sequence in three dimensions, shifted by the seed. Of any 2^m consecutive points
  from a multiple of 2^m on, each box of 2^-a by 2^(a-m) in u and v holds exactly one: shares hold closely over any window,
  those of both patchings as well, and the starts of each format cover the corpus evenly without a shuffle, whatever its size
  (points of a lattice, such as the R2 sequence's, do one or the other, but leave holes in the starts of a format);
- its interleaving is drawn by a counter-based generator keyed by (seed, i); with patching.draw=step the patching is drawn by
  one keyed by (seed, step), for the whole batch.

From its start a sequence reads documents in file order, wrapping round, until `seq_len_units` units are full. A spoken document
is begun at its first word from there on. One without words is speech alone: sequences that need words pass it over.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import accumulate

import numpy as np

from lst.config import Format, Patching, PatchingConfig, RunConfig
from lst.data.columns import Place
from lst.data.draws import Draws
from lst.data.interleave import SpokenDocument, SpokenDocuments, interleaved_spans, stretches
from lst.data.pack import LocalTokens, PackedBatch, PackedRow, encode_document
from lst.data.repetition import Repetition
from lst.data.row_builder import RowBuilder
from lst.data.shards import Dataset
from lst.data.speech_bpe import run_pieces
from lst.data.vocab import Vocabulary
from lst.errors import DataError

_BITS = 52  # of a coordinate; a run has fewer than 2^52 sequences
ROWS_BETWEEN_RELEASES = 64  # rows after which mapped pages are let go of: what stays resident in between is theirs


class Stream:
    """The training sequences of one run."""

    def __init__(self, dataset: Dataset, config: RunConfig) -> None:
        """Raises DataError where the data set is not the one that was planned for, or has nothing to train on.

        ConfigError or DataError where arm `bpe` has no speech pieces, or others (lst.data.speech_bpe.run_pieces).
        """
        if config.data.data_id and config.data.data_id != dataset.data_id:
            raise DataError(
                f"data '{dataset.path}' has data_id={dataset.data_id}, the run wants {config.data.data_id}; plan again."
            )
        self.config = config
        pieces = config.model.speech_bpe_vocab
        self.vocabulary = Vocabulary(text=dataset.text_vocab, speech=dataset.speech_vocab, speech_pieces=pieces)
        self._speech_bpe = run_pieces(config, dataset)
        self._spoken = SpokenDocuments(dataset, config.patching.aligned_unit, config.patching.boundary_noise_ms)
        self._documents = {name: dataset.documents(name, "train") for name in ("speech", "text")}
        kinds = {Patching.ALIGNED, Patching.STATIC} if config.patching.kind is not Patching.TOKEN else {Patching.TOKEN}
        used = {name for kind in kinds for name, share in self._shares(kind) if share}
        for table in {"text" if name is Format.TEXT else "speech" for name in used}:
            if not self._documents[table].tokens:
                raise DataError(f"the data set has no {table} documents in its split 'train'; prepare it with some.")
        sizes = {f"{name}_tokens": documents.tokens for name, documents in self._documents.items()}
        self.repetition = Repetition.of(config.data, **sizes)
        self._rows_made = 0
        self.local = LocalTokens.of(config.model)

    def batch(self, step: int, *, rank: int = 0, size: int = 1) -> PackedBatch:
        """The global batch of 0-based `step`, or the share of `rank` among `size` processes; only those rows are made.

        Rows of one kind are about equally long, so each kind is dealt out evenly: the shares hold as many rows and about as
        many tokens.
        """
        first, count = step * self.config.train.batch_sequences, self.config.train.sequences_at(step)
        indices = range(first, first + count)
        if size > 1:
            dealt = sorted(indices, key=lambda i: (self._outline(i)[:2], i))
            return PackedBatch([self.row(i) for i in sorted(dealt[rank::size])], self.local)
        return PackedBatch([self.row(i) for i in indices], self.local)

    def idle_row(self) -> PackedRow:
        """A row of BOS alone, which predicts nothing: what a process computes where the others have a micro-batch more."""
        nothing = encode_document([], self.vocabulary, Patching.TOKEN, 1, ends=False)
        return PackedRow.pack([nothing], self.vocabulary, interleaved=False)

    def outline(self, index: int) -> tuple[Patching, Format]:
        """Patching and format of sequence `index`, without reading data."""
        return self._outline(index)[:2]

    def row(self, index: int) -> PackedRow:
        """Sequence `index` of the run."""
        self._rows_made += 1
        if self._rows_made % ROWS_BETWEEN_RELEASES == 0:
            for documents in self._documents.values():
                documents.release()
        kind, layout, start, generator = self._outline(index)
        builder = RowBuilder(
            vocabulary=self.vocabulary,
            kind=kind,
            patching=self.config.patching,
            units=self.config.data.seq_len_units,
            spoken=self._spoken,
            speech_bpe=self._speech_bpe,
        )
        documents = self._documents["text" if layout is Format.TEXT else "speech"]
        places = documents.from_token(int(start * documents.tokens))
        if layout is Format.TEXT:
            self._read_text(builder, places)
        elif layout is Format.INTERLEAVED:
            self._interleave(builder, places, Draws(generator))
        elif layout is Format.SPEECH:
            self._read_speech(builder, places, needs_words=kind is Patching.ALIGNED)
        else:
            self._read_pairs(builder, places, speech_first=layout is Format.ASR)
        return builder.row(format=layout)

    def _shares(self, kind: Patching) -> list[tuple[Format, float]]:
        return list(zip(Format, self.config.data.sequence_shares(kind), strict=True))

    def _outline(self, index: int) -> tuple[Patching, Format, float, np.random.Generator]:
        """Patching, format, start, and the generator for the rest, of sequence `index`: without reading data."""
        config = self.config
        generator = np.random.Generator(np.random.Philox(key=(config.train.seed << 64) + index))
        u, v, draw = _even_point(config.train.seed, index)
        step = index // config.train.batch_sequences
        if config.patching.draw == "step":
            draw = _step_draw(config.train.seed, step)
        kind = draw_patching(config.patching, step / config.train.steps, draw)
        ends = accumulate(config.data.sequence_shares(kind))
        layout = next((layout for layout, end in zip(Format, ends, strict=True) if u < end), Format.TEXT)
        return kind, layout, v, generator

    def _interleave(self, builder: RowBuilder, places: Iterator[Place], draws: Draws) -> None:
        for document, first_word in self._spoken_from(places):
            for speech, first, last in interleaved_spans(document.words, self.config.data, draws, first_word=first_word):
                if speech:
                    builder.speech(document, first, last)
                else:
                    builder.text(document.text(first, last))
                if builder.full:
                    return
            builder.end_document()

    def _read_pairs(self, builder: RowBuilder, places: Iterator[Place], *, speech_first: bool) -> None:
        for document, first_word in self._spoken_from(places):
            for first, last in stretches(document.words, self.config.data.pair_words, first_word=first_word):
                if speech_first:
                    builder.speech(document, first, last)
                builder.text(document.text(first, last))
                if not speech_first:
                    builder.speech(document, first, last)
                builder.end_document()
                if builder.full:
                    return

    def _read_speech(self, builder: RowBuilder, places: Iterator[Place], *, needs_words: bool) -> None:
        for document, first_word in self._spoken_from(places, needs_words=needs_words):
            if first_word < document.words or not document.words:
                builder.speech(document, first_word, document.words)
                builder.end_document()
            if builder.full:
                return

    def _spoken_from(self, places: Iterator[Place], *, needs_words: bool = True) -> Iterator[tuple[SpokenDocument, int]]:
        """Documents, and the first word to read of each. Those without words are passed over where words are needed."""
        passed_over = 0
        for place in places:
            document = SpokenDocument(place)
            if document.words or (len(document.tokens) and not needs_words):
                passed_over = 0
                yield document, document.first_word_at(place.offset)
            elif (passed_over := passed_over + 1) > self._documents["speech"].rows:
                raise DataError("no spoken document of the split 'train' has words; prepare the data with alignments.")

    def _read_text(self, builder: RowBuilder, places: Iterator[Place]) -> None:
        for chunk, row, offset in places:
            tokens = chunk["text_tokens"].row(row)[offset:]
            if len(tokens):
                builder.text(tokens)
                builder.end_document()
            if builder.full:
                return


def draw_patching(patching: PatchingConfig, progress: float, draw: float) -> Patching:
    """TOKEN, STATIC or ALIGNED for a sequence at `progress` in [0, 1) of the run, given its `draw` from [0, 1)."""
    if patching.kind is Patching.TOKEN:
        return Patching.TOKEN
    return Patching.ALIGNED if draw < patching.aligned_probability(progress) else Patching.STATIC


def _step_draw(seed: int, step: int) -> float:
    """The number that all sequences of a step share (patching.draw=step); its keys are no sequence's."""
    return float(np.random.Generator(np.random.Philox(key=(1 << 127) + (seed << 64) + step)).random())


def _even_point(seed: int, index: int) -> tuple[float, float, float]:
    """Point `index` of the first three dimensions of Sobol's sequence, digitally shifted by the seed, in [0, 1)^3."""
    u = int(f"{index:0{_BITS}b}"[::-1], 2)  # van der Corput: the bits mirrored at the point
    v = w = bit = 0
    while index:
        if index & 1:
            v ^= _DIRECTIONS[0][bit]
            w ^= _DIRECTIONS[1][bit]
        bit += 1
        index >>= 1
    shift_u, shift_v, shift_w = _shifts(seed)
    return (u ^ shift_u) / (1 << _BITS), (v ^ shift_v) / (1 << _BITS), (w ^ shift_w) / (1 << _BITS)


def _directions() -> tuple[list[int], list[int]]:
    """Direction numbers of the second and third dimensions (polynomials x + 1 and x^2 + x + 1; Joe and Kuo 2008)."""
    second, third = [1 << (_BITS - 1)], [1 << (_BITS - 1), 3 << (_BITS - 2)]
    while len(second) < _BITS:
        second.append(second[-1] ^ second[-1] >> 1)
    while len(third) < _BITS:
        third.append(third[-1] ^ third[-2] ^ third[-2] >> 2)
    return second, third


_DIRECTIONS = _directions()


@cache
def _shifts(seed: int) -> list[int]:
    shifts: list[int] = np.random.Generator(np.random.Philox(key=seed)).integers(0, 1 << _BITS, 3).tolist()
    return shifts
