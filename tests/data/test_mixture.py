"""The mixture as given: shares of tokens and of words over a window, errors, and what the run's identity keeps."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from lst.config import DataConfig, Format, MixtureConfig, Patching, RunConfig, arm_config
from lst.data.draws import Draws
from lst.data.interleave import SpokenDocument, interleaved_spans
from lst.data.shards import Dataset, open_dataset
from lst.data.statistics import corpus_statistics, solve_mixture
from lst.data.stream import Stream
from lst.errors import ConfigError
from lst.flops import SequenceCounts

ALL = {"interleaved": 0.3, "speech": 0.1, "asr": 0.15, "tts": 0.15, "text": 0.3}


@pytest.fixture(scope="module")
def embedded() -> Dataset:
    return open_dataset("embedded")


def planned(dataset: Dataset, arm: str, **sections: Any) -> RunConfig:
    model = {"text_vocab": dataset.text_vocab, "speech_vocab": dataset.speech_vocab}
    data = {"seq_len_units": 512} | sections.pop("data", {})
    config = arm_config(arm, model=model, data=data, train={"batch_sequences": 16, "steps": 256} | sections.pop("train", {}))
    return dataclasses.replace(config, data=solve_mixture(dataset, config))


def counts_by_format(dataset: Dataset, config: RunConfig, first: int, count: int) -> dict[Format, SequenceCounts]:
    stream = Stream(dataset, config)
    totals = dict.fromkeys(Format, SequenceCounts())
    for index in range(first, first + count):
        row = stream.row(index)
        totals[row.format] += row.counts(stream.local)
    return totals


@pytest.mark.parametrize(
    ("arm", "of", "seed"), [("lst_static", "tokens", 0), ("lst_mixed", "tokens", 1), ("baseline", "words", 2)]
)
def test_every_format_has_its_share_over_a_window(embedded: Dataset, arm: str, of: str, seed: int) -> None:
    """1,024 sequences in the middle of a run: within 1%, for sequences of a format differ in tokens."""
    config = planned(embedded, arm, data={"mixture": ALL | {"of": of}}, train={"seed": seed})
    totals = counts_by_format(embedded, config, 1000, 1024)
    sizes = corpus_statistics(embedded)
    if of == "words":
        speech, text = (sizes[f"unique_{name}_tokens"] / sizes["spoken_words"] for name in ("speech", "transcript"))
        held = {name: c.speech_tokens / speech + c.text_tokens / text for name, c in totals.items()}
    else:
        held = {name: c.tokens for name, c in totals.items()}
    for name, wanted in ALL.items():
        assert held[Format(name)] / sum(held.values()) == pytest.approx(wanted, abs=0.01), name


def test_formats_of_sequences_hold_within_a_tenth_of_a_percent_over_2048_sequences(embedded: Dataset) -> None:
    """Of any window and seed; for a mixed arm against the share of its own draws' mean."""
    for seed in range(4):
        stream = Stream(embedded, planned(embedded, "lst_static", data={"mixture": ALL}, train={"seed": seed}))
        shares = stream.config.data.sequence_shares(Patching.STATIC)
        formats = [stream._outline(index)[1] for index in range(4096)]
        for first in (0, 300, 1111, 2048):
            window = formats[first : first + 2048]
            for name, share in zip(Format, shares, strict=True):
                assert window.count(name) / 2048 == pytest.approx(share, abs=0.001)


@pytest.mark.parametrize(("seed", "ratio", "speech_share"), [(0, 0.5, 1 / 3), (1, 1.0, 1 / 2), (2, 1 / 3, 1 / 4)])
def test_words_of_speech_to_text_are_the_ratio_on_the_embedded_corpus(
    embedded: Dataset, seed: int, ratio: float, speech_share: float
) -> None:
    """PAPER: 1:2, 1:1, 1:3. Within 2%: documents of 42 words end in the middle of a span."""
    draws = Draws(np.random.Generator(np.random.Philox(key=seed)))
    documents = embedded.documents("speech", "train")
    spoken = total = 0
    for place in documents.documents(range(documents.rows)):
        words = SpokenDocument(place).words
        spans = interleaved_spans(words, DataConfig(speech_per_text_words=ratio), draws)
        spoken += sum(span.last - span.first for span in spans if span.speech)
        total += words
    assert spoken / total == pytest.approx(speech_share, abs=0.02)


def test_the_mixture_is_given_once_and_sums_to_one() -> None:
    with pytest.raises(ConfigError, match=r"data\.mixture's shares sum to 0\.9"):
        arm_config("baseline", data={"mixture": {"text": 0.9}})
    with pytest.raises(ConfigError, match="both say what is interleaved"):
        arm_config("baseline", data={"mixture": {"text": 1.0}, "interleaved_token_share": 0.5})
    with pytest.raises(ConfigError, match="plan the run"):
        arm_config("baseline", data={"mixture": {"text": 1.0}}).data.sequence_shares(Patching.TOKEN)
    assert DataConfig(mixture=MixtureConfig(text=1.0)).format_shares[Format.INTERLEAVED] == 0


def test_options_that_came_later_change_an_id_only_where_they_are_used() -> None:
    plain = arm_config("baseline").run_id
    assert arm_config("baseline", data={"first_modality": "random", "pair_words": 64, "mixture": {}}).run_id == plain
    for change in ({"first_modality": "text"}, {"pair_words": 9}, {"mixture": {"text": 1.0}}):
        assert arm_config("baseline", data=change).run_id != plain
