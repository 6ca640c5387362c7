"""Statistics of a prepared data set, stated: what `plan-sweep statistics study=NAME out=FILE.yaml` writes.

Measured for one study: under its mixture and length of sequence, and for the ways of cutting that its arms have. Sequences
of interleaved documents are made and counted as the trainer makes them; 64 lengths stand for the documents'. A plan from
the file agrees with the plan on the data set within `TOLERANCE` (tests/sweeps/test_export.py). Not here: planning from the
file (`sweeps.stated`).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lst.config import Patching, RunConfig
from lst.errors import ConfigError, DataError, PlanError
from lst.records import write_atomically
from sweeps.folder import to_yaml
from sweeps.stated import kinds_of, realised_spans
from sweeps.stated_file import (
    SPEECH_TOKENS_PER_HOUR,
    SUFFIXES,
    InterleavedStatistics,
    StatedStatistics,
    TextStatistics,
    UnitLength,
    is_stated,
    to_plain,
    unit_key,
)

if TYPE_CHECKING:
    from lst.data.shards import Dataset
    from lst.flops import SequenceCounts
    from sweeps.study import StudyConfig

SAMPLE = 2048  # sequences that are counted for each way of cutting
QUANTILES = 64  # lengths that stand for all documents of a kind
PLACES = 64 * QUANTILES  # even places of the stream whose documents are measured
TOLERANCE = 0.005  # relative difference of FLOPs a step and tokens a unit between a stated plan and a measured one


def measure_statistics(dataset: Dataset, configs: list[RunConfig], *, name: str) -> StatedStatistics:
    """The statistics that plans of `configs` (an arm each, one mixture and length of sequence) need.

    Raises DataError where the data set has nothing to count.
    """
    from lst.data.statistics import corpus_statistics, document_lengths

    corpus = corpus_statistics(dataset)
    if not corpus["spoken_words"]:
        raise DataError(f"data '{dataset.path}' has no spoken words, so nothing is interleaved; prepare it with alignments.")
    found: dict[str, tuple[SequenceCounts, UnitLength]] = {}
    for config in configs:
        for kind in kinds_of(config.patching):
            key = unit_key(kind, config.patching, config.model.speech_bpe_vocab)
            if key not in found:
                counts = _sample(dataset, config, kind)
                found[key] = (
                    counts,
                    UnitLength(mean_length=_digits(counts.mean_patch_length), complete=_complete(counts, config, kind)),
                )
    counts, _ = next(iter(found.values()))
    mixed = _interleaved(counts, configs[0], corpus)
    _, ratio = realised_spans(configs[0].data)
    stretch = ratio / (1 + ratio) / mixed.speech_share  # interleaved tokens to one speech token of the document
    lengths = document_lengths(dataset, PLACES)
    spoken, written = (lengths[kind][PLACES // QUANTILES // 2 :: PLACES // QUANTILES].tolist() for kind in ("speech", "text"))
    source = f"measured on data_id {dataset.data_id}"
    keys = ("text_vocab", "speech_vocab", "speech_hours", "interleaved", "text", *(f"units.{key}" for key in found if key))
    return StatedStatistics(
        name=name,
        source=f"{source}, sequences of {configs[0].data.seq_len_units} units",
        text_vocab=dataset.text_vocab,
        speech_vocab=dataset.speech_vocab,
        speech_hours={"train": corpus["unique_speech_tokens"] / SPEECH_TOKENS_PER_HOUR},
        interleaved=dataclasses.replace(mixed, document_tokens=tuple(_digits(n * stretch) for n in spoken)),
        text=TextStatistics(document_tokens=tuple(float(n) for n in written)),
        units={key: unit for key, (_, unit) in found.items() if key},
        sources=dict.fromkeys(keys, source),
    )


def study_statistics(study: StudyConfig, *, name: str) -> StatedStatistics:
    """The statistics of a study's data set, for the study's plans. Raises ConfigError where its data are stated already."""
    from lst.data.shards import open_dataset
    from sweeps.base import Group, base_config
    from sweeps.measure import Measurements

    if is_stated(study.data):
        raise ConfigError(f"data='{study.data}' are stated statistics already; give data=FOLDER, a prepared data set.")
    dataset = open_dataset(study.data)
    measure, group = Measurements(dataset), Group(study.lengths[0], study.sizes[0], study.seeds[0])
    configs = [base_config(study.of_arm(arm), measure, group, arm) for arm in study.ordered_arms]
    return measure_statistics(dataset, configs, name=name)


def require_new_file(out: Path) -> None:
    """Raises ConfigError on another ending than .yaml, PlanError where the file is there already."""
    if out.suffix not in SUFFIXES:
        raise ConfigError(f"out={out} must end in .yaml, so that data={out} is read as statistics.")
    if out.exists():
        raise PlanError(f"out={out} is there already; delete it, or choose another file.")


def write_statistics(stated: StatedStatistics, out: Path) -> None:
    """Write the file that `data=FILE.yaml` reads. Raises PlanError where it is there already or cannot be written."""
    require_new_file(out)
    try:
        write_atomically(out, to_yaml(to_plain(stated)).encode())
    except OSError as error:
        raise PlanError(f"out={out} cannot be written ({error.strerror or error}); choose another file.") from error


def _sample(dataset: Dataset, config: RunConfig, kind: Patching) -> SequenceCounts:
    """The mean of SAMPLE interleaved sequences whose speech is cut by `kind`."""
    from lst.data.statistics import count_sequences

    data = dataclasses.replace(config.data, interleaved_sequence_share_static=1.0, interleaved_sequence_share_aligned=1.0)
    train = dataclasses.replace(config.train, seed=0, steps=SAMPLE, batch_sequences=1, final_batch_sequences=0)
    patching = dataclasses.replace(config.patching, kind=kind)
    return count_sequences(dataset, dataclasses.replace(config, data=data, train=train, patching=patching)).mean()


def _interleaved(counts: SequenceCounts, config: RunConfig, corpus: dict[str, Any]) -> InterleavedStatistics:
    """Shares of all tokens but BOS and EOS."""
    content = counts.tokens - _ends(counts, config)
    span, ratio = realised_spans(config.data)
    return InterleavedStatistics(
        speech_per_text_words=_digits(ratio),
        text_span_words=_digits(span),
        speech_share=_digits(counts.speech_tokens / content),
        text_share=_digits(counts.text_tokens / content),
        speech_tokens_per_word=_digits(corpus["unique_speech_tokens"] / corpus["spoken_words"]),
    )


def _ends(counts: SequenceCounts, config: RunConfig) -> float:
    """BOS and EOS of the mean sequence: each document predicts from all its positions but the last."""
    positions = counts.tokens - counts.speech_tokens + (counts.patches if config.model.arm.plain else counts.speech_tokens)
    return 2 * (positions - counts.predicted) - 1


def _complete(counts: SequenceCounts, config: RunConfig, kind: Patching) -> float:
    """Share of units that close at their own last token: of a span, static patches all but the last, which is seldom full."""
    if kind is not Patching.STATIC:
        return 1.0
    spans = (counts.tokens - counts.speech_tokens - counts.text_tokens - _ends(counts, config)) / 2
    cut = spans * (1 - 1 / config.patching.patch_size)
    return _digits(max(0.0, 1 - cut / counts.patches))


def _digits(value: float) -> float:
    """Seven digits: a sample's mean claims no more."""
    return float(f"{value:.7g}")
