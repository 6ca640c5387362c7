"""The mixture as given: shares of tokens and of words over a window, errors, and what the run's identity keeps."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import qmc

import lst.data.stream as stream_module
from lst.config import Arm, DataConfig, Format, MixtureConfig, Patching, RunConfig, arm_config
from lst.data.draws import Draws
from lst.data.interleave import SpokenDocument, interleaved_spans
from lst.data.shards import Dataset, open_dataset
from lst.data.statistics import corpus_statistics, solve_mixture, window_indices
from lst.data.stream import Stream
from lst.errors import ConfigError

WINDOW = 16_384  # sequences over which the mixture holds (docs/stream.md)
ALL = {"interleaved": 0.3, "speech": 0.1, "asr": 0.15, "tts": 0.15, "text": 0.3}


@pytest.fixture(scope="module")
def embedded() -> Dataset:
    return open_dataset("embedded")


def planned(dataset: Dataset, arm: str, **sections: Any) -> RunConfig:
    model = {"text_vocab": dataset.text_vocab, "speech_vocab": dataset.speech_vocab} | sections.pop("model", {})
    data = {"seq_len_units": 512} | sections.pop("data", {})
    config = arm_config(arm, model=model, data=data, train={"batch_sequences": 16, "steps": 256} | sections.pop("train", {}))
    return dataclasses.replace(config, data=solve_mixture(dataset, config))


def amounts(dataset: Dataset, config: RunConfig, count: int) -> NDArray[np.float64]:
    """(count, formats) tokens, or words, that each sequence holds of its format.

    A sequence of text is full of tokens, markers included, so that every 16th of them is made, to see that it is.
    """
    stream, held = Stream(dataset, config), np.zeros((count, len(Format)))
    sizes = corpus_statistics(dataset)
    speech, text = (sizes[f"unique_{name}_tokens"] / sizes["spoken_words"] for name in ("speech", "transcript"))
    full, written = config.data.seq_len_units, list(Format).index(Format.TEXT)
    for index in range(count):
        texts = stream.outline(index)[1] is Format.TEXT and config.data.mixture.of == "tokens"
        if texts and index % 16:
            held[index, written] = full
            continue
        counts = (row := stream.row(index)).counts(stream.local)
        assert counts.tokens == full or not texts
        words = counts.speech_tokens / speech + counts.text_tokens / text
        held[index, list(Format).index(row.format)] = words if config.data.mixture.of == "words" else counts.tokens
    return held


def largest_error(config: RunConfig, held: NDArray[np.float64]) -> float:
    """Of the shares of any WINDOW consecutive sequences, from what the configuration asks for."""
    sums = np.vstack([np.zeros(len(Format)), held.cumsum(0)])
    windows = sums[WINDOW:] - sums[:-WINDOW]
    wanted = [config.data.format_shares[name] for name in Format]
    return float(abs(windows / windows.sum(1, keepdims=True) - wanted).max())


@pytest.mark.slow
@pytest.mark.parametrize("arm", [arm.value for arm in Arm])
def test_the_mixture_holds_within_a_tenth_of_a_percent_over_the_window_for_every_arm(embedded: Dataset, arm: str) -> None:
    """Every window of docs/stream.md in a run of 1.25 of it; a curriculum's has all its patchings."""
    model = {"speech_bpe_vocab": 1024} if arm == "bpe" else {}
    count = WINDOW + WINDOW // 4
    config = planned(embedded, arm, data={"seq_len_units": 256}, model=model, train={"steps": count // 16})
    assert largest_error(config, amounts(embedded, config, count)) < 0.001


@pytest.mark.slow
@pytest.mark.parametrize(("arm", "of", "seed"), [("lst_mixed", "tokens", 1), ("baseline", "words", 2)])
def test_every_format_has_its_share_over_the_window(embedded: Dataset, arm: str, of: str, seed: int) -> None:
    """Of a mixed arm the shares are solved for static patches and for aligned ones."""
    count = WINDOW + 512
    mixture = {"mixture": ALL | {"of": of}, "seq_len_units": 256}
    config = planned(embedded, arm, data=mixture, train={"seed": seed, "steps": count // 16})
    assert largest_error(config, amounts(embedded, config, count)) < 0.001


def test_half_of_a_mixed_runs_sequences_are_aligned_over_any_512(embedded: Dataset) -> None:
    """Half of a mixed run's sequences are aligned: within four, where coins would be off by 11 and more in a third."""
    stream = Stream(embedded, planned(embedded, "lst_mixed", data={"interleaved_token_share": 1.0}))
    aligned = [stream._outline(index)[0] is Patching.ALIGNED for index in range(4096)]
    for first in (0, 512, 700, 1111, 3000):
        assert abs(sum(aligned[first : first + 512]) - 256) <= 4


def test_starts_formats_and_patchings_are_sobols_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """As sets, unshifted, those of scipy."""
    monkeypatch.setattr(stream_module, "_shifts", lambda seed: [0, 0, 0])
    points = sorted(stream_module._even_point(0, index) for index in range(1024))
    assert points == sorted(map(tuple, qmc.Sobol(3, scramble=False, bits=52).random(1024).tolist()))


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


@given(total=st.integers(2, 10**9), share=st.floats(0, 1), windows=st.sampled_from([1, 3, 8, 16]))
def test_windows_stand_for_a_run_with_distinct_indices_of_it(total, share, windows):
    limit = max(1, min(4096, int(share * (total - 1))))
    indices = window_indices(total, limit, windows)
    assert limit / 4 < len(indices) <= limit
    assert len(set(indices.tolist())) == len(indices)
    assert indices.min() >= 0
    assert indices.max() < total


@pytest.mark.parametrize("total", [4096, 8191, 8192, 12_288, 16_381, 16_384, 65_536, 100_000])
def test_the_sample_of_a_long_run_holds_its_formats_in_their_shares_whatever_its_length(total):
    for seed in range(3):
        points = [stream_module._even_point(seed, int(index)) for index in window_indices(total, 2048, 8)]
        for dimension in np.array(points).T:
            assert abs((dimension < 0.334).mean() - 0.334) < 0.0025
