"""The training stream: the global batch of a step is a pure function of (data, configuration, seed, step).

Sequence i of a run (i = step x batch_sequences + its place in the batch) draws all it needs from its own index, so the
order does not depend on world size, workers or restarts, any step can be made without the ones before it, and memory
does not grow with the corpus:

- its kind (interleaved or text only) is u_i < share, and its start is the fraction v_i of that kind's token stream, where
  (u_i, v_i) are the points of the R2 sequence (an additive recurrence with the plastic number), shifted by the seed. They
  fill the unit square evenly: shares hold closely over any window, and starts cover the corpus evenly without a shuffle;
- its patching (mixed, curriculum) and its interleaving are drawn by a counter-based generator keyed by (seed, i); with
  patching.draw=step the patching is drawn by one keyed by (seed, step), for the whole batch.

From its start a sequence reads documents in file order, wrapping round, until `seq_len_units` units are full.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from lst.config import DataConfig, Patching, PatchingConfig, RunConfig
from lst.data.interleave import Document, Segment, SpokenDocuments
from lst.data.pack import EncodedDocument, LocalTokens, PackedBatch, PackedRow, encode_document, pack_units
from lst.data.shards import Dataset, Ragged, ragged
from lst.data.speech_bpe import run_pieces
from lst.data.vocab import Vocabulary
from lst.errors import DataError

_PLASTIC = 1.32471795724474602596  # the real root of x^3 = x + 1
_SCALE = 1 << 64
_STEPS = (int(_SCALE / _PLASTIC), int(_SCALE / _PLASTIC**2))


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
        self._spoken = SpokenDocuments(dataset, config.patching.aligned_unit)
        spoken = dataset.rows("speech", "train")
        with_words = spoken[self._spoken.word_start.lengths[spoken] > 0]  # without words there is nothing to interleave
        self._speech_rows = _Rows(self._spoken.tokens, with_words, "spoken")
        self._pieces = ragged(dataset.text, "text_tokens")
        self._text_rows = _Rows(self._pieces, dataset.rows("text", "train"), "text")
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

    def row(self, index: int) -> PackedRow:
        """Sequence `index` of the run."""
        config = self.config
        kind, interleaved, v, generator = self._outline(index)
        documents = self._interleaved_from(v, generator) if interleaved else self._text_from(v)
        encoded = self._encode(documents, kind)
        packed = pack_units(encoded, config.data.seq_len_units)
        return PackedRow.pack(packed, self.vocabulary, interleaved=interleaved)

    def _outline(self, index: int) -> tuple[Patching, bool, float, np.random.Generator]:
        """Patching, whether interleaved, start, and the generator for the rest, of sequence `index`: without reading data."""
        config = self.config
        generator = np.random.Generator(np.random.Philox(key=(config.train.seed << 64) + index))
        u, v = _even_point(config.train.seed, index)
        step = index // config.train.batch_sequences
        draws = {"sequence": generator.random(), "step": _step_draw(config.train.seed, step)}
        kind = draw_patching(config.patching, step / config.train.steps, draws[config.patching.draw])
        return kind, u < sequence_share(config.data, kind), v, generator

    def _encode(self, documents: Iterator[Document], kind: Patching) -> Iterator[EncodedDocument]:
        patching = self.config.patching
        for document in documents:
            if self._speech_bpe is not None:
                document = self._speech_bpe.encode_document(document)
            yield encode_document(document, self.vocabulary, kind, patching.patch_size, ends=True, silence=patching.silence_rule)

    def _interleaved_from(self, start: float, generator: np.random.Generator) -> Iterator[Document]:
        first, frame = self._speech_rows.locate(start)
        for place, row in enumerate(self._speech_rows.from_place(first)):
            skip = int(np.searchsorted(self._spoken.word_start[row], frame)) if place == 0 else 0
            document = self._spoken.interleaved(row, self.config.data, generator, first_word=skip)
            if document:
                yield document

    def _text_from(self, start: float) -> Iterator[Document]:
        first, offset = self._text_rows.locate(start)
        for place, row in enumerate(self._text_rows.from_place(first)):
            yield [Segment("text", self._pieces[row][offset if place == 0 else 0 :])]


class _Rows:
    """The rows of one kind as one long token stream that wraps round."""

    def __init__(self, column: Ragged, rows: NDArray[np.int64], name: str) -> None:
        lengths = column.lengths[rows]
        self._rows = rows[lengths > 0]
        self._ends = np.cumsum(lengths[lengths > 0])
        if not len(self._rows):
            raise DataError(f"the data set has no {name} documents in its split 'train'; prepare it with some.")

    def locate(self, fraction: float) -> tuple[int, int]:
        """(place among the rows, token offset inside the row) at `fraction` of the stream."""
        token = int(fraction * int(self._ends[-1]))
        place = int(np.searchsorted(self._ends, token, side="right"))
        return place, token - (int(self._ends[place - 1]) if place else 0)

    def from_place(self, place: int) -> Iterator[int]:
        count = len(self._rows)
        while True:
            yield int(self._rows[place % count])
            place += 1


def draw_patching(patching: PatchingConfig, progress: float, draw: float) -> Patching:
    """TOKEN, STATIC or ALIGNED for a sequence at `progress` in [0, 1) of the run, given its `draw` from [0, 1)."""
    if patching.kind is Patching.TOKEN:
        return Patching.TOKEN
    return Patching.ALIGNED if draw < patching.aligned_probability(progress) else Patching.STATIC


def sequence_share(data: DataConfig, kind: Patching) -> float:
    """Share of sequences that are interleaved under `kind`, such that the mixture holds in tokens."""
    return data.interleaved_sequence_share_aligned if kind is Patching.ALIGNED else data.interleaved_sequence_share_static


def _step_draw(seed: int, step: int) -> float:
    """The number that all sequences of a step share (patching.draw=step); its keys are no sequence's."""
    return float(np.random.Generator(np.random.Philox(key=(1 << 127) + (seed << 64) + step)).random())


def _even_point(seed: int, index: int) -> tuple[float, float]:
    """Point `index` of the R2 sequence, shifted by the seed, in [0, 1)^2."""
    shift = np.random.Generator(np.random.Philox(key=seed)).integers(0, 1 << 63, 2)
    u, v = (((int(s) << 1) + (index + 1) * step) % _SCALE for s, step in zip(shift, _STEPS, strict=True))
    return u / _SCALE, v / _SCALE
