"""The counts against counting by hand: loops over rows, pandas, and the patcher itself; whatever file holds the data."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lst.data.ngram import NgramModel
from lst.data.quality import scan
from lst.data.quality.measure import measure, plain
from lst.data.quality.samples import Repetitions, TokenSample, hashes_of
from lst.data.quality.tally import LengthCounts
from lst.data.shards import Dataset
from lst.errors import DataError
from tests.data.quality.made_data import VOCABULARY, in_shards, made_dataset, sound_rows


@pytest.fixture(scope="module")
def dataset(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return made_dataset(tmp_path_factory.mktemp("quality") / "data", sound_rows(30), toy_dataset / "tokenizer.model")


def silences(row: pd.Series) -> list[tuple[int, int]]:
    """(first frame, frames) of each stretch outside words, frame by frame."""
    inside = set()
    for start, end in zip(row["word_start"], row["word_end"], strict=True):
        inside |= set(range(start, end + 1))
    found, begin = [], None
    for frame in range(len(row["speech_tokens"]) + 1):
        outside = frame < len(row["speech_tokens"]) and frame not in inside
        if outside and begin is None:
            begin = frame
        if not outside and begin is not None:
            found.append((begin, frame - begin))
            begin = None
    return found


def test_counts_equal_those_of_pandas(dataset: Dataset) -> None:
    frame = dataset.speech.to_pandas()
    found = measure(dataset)
    tokens = frame["speech_tokens"].explode().astype(int)
    assert found.tokens.counts.tolist() == tokens.value_counts().reindex(range(VOCABULARY), fill_value=0).tolist()
    repeats = tokens.groupby(level=0).apply(lambda row: (row.diff() == 0).sum()).sum()
    assert (found.tokens.repeats, found.tokens.pairs) == (repeats, len(tokens) - len(frame))
    gaps = [(n, row["id"], begin) for _, row in frame.iterrows() for begin, n in silences(row)]
    assert found.words.silences.total == sum(n for n, _, _ in gaps)
    assert found.words.silences.number == len(gaps)
    assert found.words.silence_share == sum(n for n, _, _ in gaps) / len(tokens)
    kept = [(s.frames, s.document, s.start) for s in found.words.longest_silences.sorted()]
    assert kept == sorted(gaps, key=lambda gap: (-gap[0], *gap[1:]))[:10]
    words = frame[["words", "word_start", "word_end"]].explode(["words", "word_start", "word_end"])
    lengths, durations = words["words"].str.len(), words["word_end"].astype(int) - words["word_start"].astype(int) + 1
    assert found.words.durations.quantile(0.5) == durations.quantile(0.5, interpolation="lower")
    assert found.words.length_correlation == pytest.approx(lengths.corr(durations))
    assert found.words.fast == (lengths * 25 > 40 * durations).sum()


def test_longest_runs_are_those_of_a_loop(dataset: Dataset) -> None:
    runs = []
    for row in dataset.speech.select(["id", "speech_tokens"]).to_pylist():
        begin = 0
        for i, token in enumerate(row["speech_tokens"]):
            if i + 1 == len(row["speech_tokens"]) or row["speech_tokens"][i + 1] != token:
                runs.append((i + 1 - begin, row["id"], begin))
                begin = i + 1
    kept = [(s.frames, s.document, s.start) for s in measure(dataset).tokens.runs.sorted()]
    assert kept == sorted(runs, key=lambda run: (-run[0], *run[1:]))[:10]


def test_what_a_token_tells_of_silence_is_its_mutual_information(dataset: Dataset) -> None:
    joint: Counter[tuple[int, bool]] = Counter()
    for _, row in dataset.speech.to_pandas().iterrows():
        outside = {f for begin, n in silences(row) for f in range(begin, begin + n)}
        joint.update((int(t), i in outside) for i, t in enumerate(row["speech_tokens"]))
    total = sum(joint.values())
    by_token, by_kind = Counter(), Counter()
    for (token, kind), count in joint.items():
        by_token[token] += count
        by_kind[kind] += count
    told = sum(n / total * math.log(n * total / by_token[t] / by_kind[k]) for (t, k), n in joint.items())
    entropy = -sum(n / total * math.log(n / total) for n in by_kind.values())
    bias = (len(by_token) - 1) / (2 * total)
    assert measure(dataset).words.silence_information == pytest.approx((told - bias) / entropy)


def test_perplexities_are_those_of_the_references(toy_dataset: Path, tmp_path: Path) -> None:
    rows = sound_rows(80)
    found = measure(made_dataset(tmp_path / "data", rows, toy_dataset / "tokenizer.model"))
    splits = {s: [np.array(r["speech_tokens"]) for r in rows if r["split"] == s] for s in ("train", "heldout")}
    model = NgramModel(splits["train"], VOCABULARY)
    expected = {order: math.exp(model.nats(splits["heldout"], order)) for order in (1, 2, 3)}
    assert found.perplexities == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("form", ["parquet", "shards", "small pieces"])
def test_counts_do_not_depend_on_how_the_data_lie(
    form: str, dataset: Dataset, tmp_path: Path, toy_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if form == "parquet":
        other = made_dataset(tmp_path / "data", sound_rows(30), toy_dataset / "tokenizer.model", compress=True)
    elif form == "shards":
        other = in_shards(dataset, tmp_path / "data")
    else:
        monkeypatch.setattr(scan, "PIECE_TOKENS", 700)
        other = dataset
    first, second = measure(dataset), measure(other)
    assert json.dumps(plain(second), sort_keys=True) == json.dumps(plain(first), sort_keys=True)
    assert second.tokens.counts.tolist() == first.tokens.counts.tolist()


def test_pieces_are_bounded_and_whole(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "PIECE_TOKENS", 1000)
    found = list(scan.pieces(dataset, "speech", ("id", "speech_tokens"), bound_by="speech_tokens"))
    assert [i for piece in found for i in piece.strings("id")] == dataset.speech["id"].to_pylist()
    assert [piece.first for piece in found] == np.cumsum([0, *map(len, found[:-1])]).tolist()
    assert all(len(piece.lists("speech_tokens").values) <= 1000 or len(piece) == 1 for piece in found)
    assert len(found) > 10


def test_a_missing_shard_is_named(dataset: Dataset, tmp_path: Path) -> None:
    other = in_shards(dataset, tmp_path / "data")
    (other.path / "speech-00001.arrow").unlink()
    with pytest.raises(DataError, match=r"speech-00001\.arrow.*cannot be read.*prepare the data set again"):
        measure(other)


@given(st.lists(st.integers(0, 30), max_size=300), st.integers(1, 40))
def test_repetitions_are_exact_until_dropped_and_equal_things_stay_together(values: list[int], most: int) -> None:
    hashes = hashes_of(str(v).encode() for v in values)
    whole, bounded = Repetitions(most=1000), Repetitions(most=most)
    for repeated in (whole, bounded):
        for start in range(0, len(values), 17):
            repeated.add(hashes[start : start + 17], np.arange(start, min(start + 17, len(values))))
    counts = Counter(values)
    assert whole.exact
    assert whole.share == pytest.approx(1 - len(counts) / len(values) if values else 0.0)
    assert whole.groups(300) == sorted(
        ([i for i, v in enumerate(values) if v == value] for value, n in counts.items() if n > 1),
        key=lambda rows: (-len(rows), rows[0]),
    )
    assert bounded.sampled <= most
    kept = [set(group) for group in bounded.groups(300)]
    assert all(len(group) == counts[values[min(group)]] for group in kept)


def test_repetitions_of_a_sample_estimate_the_whole() -> None:
    """One in four of 40,000 documents repeats an earlier one."""
    values = [n % 30_000 for n in range(40_000)]
    repeated = Repetitions(most=4_096)
    repeated.add(hashes_of(n.to_bytes(4) for n in values), np.arange(len(values)))
    assert not repeated.exact
    assert repeated.share == pytest.approx(0.25, abs=0.03)


@given(st.permutations(range(40)))
def test_a_token_sample_does_not_depend_on_the_order(order: list[int]) -> None:
    documents = [np.full(1 + n % 7, n) for n in range(40)]
    hashes = hashes_of(bytes([n]) for n in range(40)).tolist()
    samples = []
    for numbers in (range(40), order):
        sample = TokenSample(50)
        for n in numbers:
            sample.add(hashes[n], documents[n])
        samples.append(sample)
    first, second = ([d.tolist() for d in sample.documents()] for sample in samples)
    assert first == second
    assert 44 <= sum(map(len, first)) <= 50


def test_lengths_beyond_the_counted_keep_their_sum() -> None:
    counts = LengthCounts()
    counts.add(np.array([1, 5, 5, 1 << 20]))
    counts.add(np.zeros(0, np.int64))
    assert (counts.number, counts.total, counts.longest) == (4, 11 + (1 << 20), 1 << 20)
    assert [counts.quantile(q) for q in (0.1, 0.25, 0.5, 0.75)] == [1, 1, 5, 5]
