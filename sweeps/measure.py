"""The data side of planning, measured once and shared: counts of training sequences, the mixture, unique tokens.

Counts do not depend on a model's size, so all sizes and budgets of an arm share one table. A run of up to `count_limit`
sequences is counted sequence by sequence, exactly as the trainer will see it; in a longer one the mean stands for the rest.
What a run gets does not depend on what else is in the plan, so widening a study keeps every id. Not here: FLOPs and
solving (`sweeps.allocate`).
"""

from __future__ import annotations

import dataclasses
import json
import math
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from lst.config import DataConfig, EvalConfig, Patching, RunConfig
from lst.errors import DataError
from lst.plain import to_dict

if TYPE_CHECKING:
    from lst.data.shards import Dataset
    from lst.data.statistics import SequenceTable
    from sweeps.stated_file import StatedStatistics

COUNTED_UNITS = 4_000_000  # units counted of one arm at most, within the bounds below
COUNT_BOUNDS = (512, 4096)  # sequences


class Measure(Protocol):
    """What a plan asks of the data: measured on a data set (below), or stated (`sweeps.stated`)."""

    @property
    def stated(self) -> StatedStatistics | None:
        """The statistics, where they are stated and there is no data set to train on."""

    @property
    def data_id(self) -> str: ...

    @property
    def text_vocab(self) -> int: ...

    @property
    def speech_vocab(self) -> int: ...

    @property
    def has_stories(self) -> bool: ...

    @property
    def unique_speech_tokens(self) -> float:
        """Speech tokens of the training split."""

    def count_limit(self, config: RunConfig) -> int:
        """Sequences up to which a run is counted whole."""

    def mixture(self, config: RunConfig) -> DataConfig:
        """`config.data` with data_id and the solved shares of interleaved sequences."""

    def prefix(self, config: RunConfig, sequences: int, *, batch_sequences: int) -> SequenceTable:
        """Counts of the first sequences of a run whose sequences do not depend on its length."""

    def run(self, config: RunConfig, *, steps: int, batch_sequences: int, limit: int | None = None) -> SequenceTable:
        """Counts of a run of `steps` full batches."""

    def references(self, evaluation: EvalConfig, data: DataConfig) -> dict[str, Any] | None:
        """Content of references.json, if there is any."""


class Measurements:
    """What a plan asks of one data set."""

    stated = None

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self._prefixes: dict[str, SequenceTable] = {}
        self._runs: dict[str, SequenceTable] = {}
        self._mixtures: dict[str, DataConfig] = {}

    @property
    def data_id(self) -> str:
        return self.dataset.data_id

    @property
    def text_vocab(self) -> int:
        return self.dataset.text_vocab

    @property
    def speech_vocab(self) -> int:
        return self.dataset.speech_vocab

    @property
    def has_stories(self) -> bool:
        return self.dataset.has_stories

    @cached_property
    def unique_speech_tokens(self) -> int:
        """Speech tokens of the training split. Raises DataError where there are none."""
        from lst.data.statistics import corpus_statistics

        unique = int(corpus_statistics(self.dataset)["unique_speech_tokens"])
        if not unique:
            raise DataError(f"data '{self.dataset.path}' has no speech to train on; prepare it with spoken documents.")
        return unique

    def count_limit(self, config: RunConfig) -> int:
        """Sequences up to which a run is counted whole."""
        low, high = COUNT_BOUNDS
        return max(low, min(high, COUNTED_UNITS // config.data.seq_len_units))

    def mixture(self, config: RunConfig) -> DataConfig:
        """`config.data` with data_id, the speech pieces' id and the solved shares of interleaved sequences."""
        from lst.data.statistics import solve_mixture

        key = _key(config.data, config.patching, config.model.speech_bpe_vocab)
        if key not in self._mixtures:
            self._mixtures[key] = solve_mixture(self.dataset, config)
        return self._mixtures[key]

    def prefix(self, config: RunConfig, sequences: int, *, batch_sequences: int) -> SequenceTable:
        """Counts of the first `sequences` (or more) of a run whose sequences do not depend on its length.

        They depend on the batch only where the patching is drawn for a whole step.

        At most `count_limit` are counted: a run's sequences are spread evenly over the corpus from the first on, so their
        mean stands for the later ones (to some hundredths of a percent of the FLOPs on the embedded corpus).
        """
        assert config.patching.kind is not Patching.CURRICULUM, "a curriculum's sequences depend on the run's length"
        wanted = min(sequences, self.count_limit(config))
        batch = batch_sequences if config.patching.kind is Patching.MIXED and config.patching.draw == "step" else 1
        key = _key(config.data, config.patching, config.train.seed, _local(config), batch)
        known = self._prefixes.get(key)
        if known is None or known.total_sequences < wanted:
            steps = math.ceil(wanted / batch)
            known = self._prefixes[key] = self.run(config, steps=steps, batch_sequences=batch, limit=steps * batch)
        return known

    def run(self, config: RunConfig, *, steps: int, batch_sequences: int, limit: int | None = None) -> SequenceTable:
        """Counts of a run of `steps` full batches; of at most `limit` (default: count_limit) in evenly spread windows."""
        from lst.data.statistics import count_sequences

        train = dataclasses.replace(config.train, steps=steps, batch_sequences=batch_sequences, final_batch_sequences=0)
        limit = limit or self.count_limit(config)
        key = _key(config.data, config.patching, train, _local(config), limit)
        if key not in self._runs:
            self._runs[key] = count_sequences(self.dataset, dataclasses.replace(config, train=train), limit)
        return self._runs[key]

    def references(self, evaluation: EvalConfig, data: DataConfig) -> dict[str, Any]:
        """Content of references.json."""
        from lst.data.statistics import references

        return references(self.dataset, evaluation, data)


def open_measure(data: str) -> Measure:
    """What a study's `data` names: stated statistics, or a prepared data set. Raises ConfigError or DataError."""
    from sweeps.stated_file import is_stated, read_stated

    if is_stated(data):
        from sweeps.stated import StatedMeasurements

        return StatedMeasurements(read_stated(data))
    from lst.data.shards import open_dataset

    return Measurements(open_dataset(data))


def _local(config: RunConfig) -> list[Any]:
    """What the counts of pairs depend on: attention windows, and whether the local modules run on text."""
    model = config.model
    windows = [stack.window for stack in (model.encoder, model.decoder) if stack is not None]
    return [*windows, model.local_text]


def _key(*parts: Any) -> str:
    plain = [to_dict(part) if dataclasses.is_dataclass(part) else part for part in parts]
    return json.dumps(plain, sort_keys=True)
