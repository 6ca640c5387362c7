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
from functools import cache

import numpy as np

from lst.config import DataConfig, Patching, PatchingConfig, RunConfig
from lst.data.columns import Place
from lst.data.draws import Draws
from lst.data.interleave import SpokenDocument, SpokenDocuments, interleaved_spans
from lst.data.pack import LocalTokens, PackedBatch, PackedRow, encode_document
from lst.data.row_builder import RowBuilder
from lst.data.shards import Dataset
from lst.data.speech_bpe import run_pieces
from lst.data.vocab import Vocabulary
from lst.errors import DataError

_PLASTIC = 1.32471795724474602596  # the real root of x^3 = x + 1
_SCALE = 1 << 64

ROWS_BETWEEN_RELEASES = 64  # rows after which mapped pages are let go of: what stays resident in between is theirs
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
        self._documents = {name: dataset.documents(name, "train") for name in ("speech", "text")}
        for name, documents in self._documents.items():
            if not documents.tokens:
                raise DataError(f"the data set has no {name} documents in its split 'train'; prepare it with some.")
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

    def row(self, index: int) -> PackedRow:
        """Sequence `index` of the run."""
        self._rows_made += 1
        if self._rows_made % ROWS_BETWEEN_RELEASES == 0:
            for documents in self._documents.values():
                documents.release()
        kind, interleaved, v, generator = self._outline(index)
        builder = RowBuilder(
            vocabulary=self.vocabulary,
            kind=kind,
            patching=self.config.patching,
            units=self.config.data.seq_len_units,
            spoken=self._spoken,
            speech_bpe=self._speech_bpe,
        )
        documents = self._documents["speech" if interleaved else "text"]
        places = documents.from_token(int(v * documents.tokens))
        if interleaved:
            self._interleave(builder, places, Draws(generator))
        else:
            self._read_text(builder, places)
        return builder.row(interleaved=interleaved)

    def _outline(self, index: int) -> tuple[Patching, bool, float, np.random.Generator]:
        """Patching, whether interleaved, start, and the generator for the rest, of sequence `index`: without reading data."""
        config = self.config
        generator = np.random.Generator(np.random.Philox(key=(config.train.seed << 64) + index))
        u, v = _even_point(config.train.seed, index)
        step = index // config.train.batch_sequences
        draw = generator.random()
        if config.patching.draw == "step":
            draw = _step_draw(config.train.seed, step)
        kind = draw_patching(config.patching, step / config.train.steps, draw)
        return kind, u < sequence_share(config.data, kind), v, generator

    def _interleave(self, builder: RowBuilder, places: Iterator[Place], draws: Draws) -> None:
        for place in places:
            document = SpokenDocument(place)
            if not document.words:
                continue  # nothing to interleave
            first_word = document.first_word_at(place.offset)
            for speech, first, last in interleaved_spans(document.words, self.config.data, draws, first_word=first_word):
                if speech:
                    builder.speech(document, first, last)
                else:
                    builder.text(document.text(first, last))
                if builder.full:
                    return
            builder.end_document()

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


def sequence_share(data: DataConfig, kind: Patching) -> float:
    """Share of sequences that are interleaved under `kind`, such that the mixture holds in tokens."""
    return data.interleaved_sequence_share_aligned if kind is Patching.ALIGNED else data.interleaved_sequence_share_static


def _step_draw(seed: int, step: int) -> float:
    """The number that all sequences of a step share (patching.draw=step); its keys are no sequence's."""
    return float(np.random.Generator(np.random.Philox(key=(1 << 127) + (seed << 64) + step)).random())


def _even_point(seed: int, index: int) -> tuple[float, float]:
    """Point `index` of the R2 sequence, shifted by the seed, in [0, 1)^2."""
    u, v = (((s << 1) + (index + 1) * step) % _SCALE for s, step in zip(_shift(seed), _STEPS, strict=True))
    return u / _SCALE, v / _SCALE


@cache
def _shift(seed: int) -> list[int]:
    shift: list[int] = np.random.Generator(np.random.Philox(key=seed)).integers(0, 1 << 63, 2).tolist()
    return shift
