"""The stream: a pure function of (seed, step), the mixture in tokens, packing, interleaving."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch

from lst.config import Arm, DataConfig, Format, Patching, arm_config
from lst.data.draws import Draws
from lst.data.interleave import SpokenDocument, SpokenDocuments, interleaved_spans
from lst.data.shards import open_dataset
from lst.data.statistics import count_sequences, solve_mixture
from lst.data.stream import Stream
from lst.data.vocab import BOS, EOS, SPEECH, TEXT
from lst.errors import DataError
from lst.model import Batch, build_model


def run_config(dataset, arm="lst_static", **sections):
    model = {"text_vocab": dataset.text_vocab, "speech_vocab": dataset.speech_vocab}
    if arm == "bpe":
        model["speech_bpe_vocab"] = 160
    base = {"data": {"seq_len_units": 64}, "train": {"steps": 200, "batch_sequences": 4}} | sections
    config = arm_config(arm, size="tiny", model=model, **base)
    return dataclasses.replace(config, data=solve_mixture(dataset, config))


@pytest.fixture(scope="module")
def dataset(toy_dataset):
    return open_dataset(toy_dataset)


def test_a_batch_depends_on_seed_and_step_alone(dataset):
    config = run_config(dataset)
    forward = [Stream(dataset, config).batch(s).hash for s in range(5)]
    stream = Stream(dataset, config)
    assert [stream.batch(s).hash for s in reversed(range(5))] == forward[::-1]
    assert len(set(forward)) == 5
    other = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=1))
    assert Stream(dataset, other).batch(0).hash != forward[0]


@pytest.mark.parametrize("arm", [a.value for a in Arm])
def test_the_mixture_holds_in_tokens_for_every_arm(dataset, arm):
    counts = count_sequences(dataset, run_config(dataset, arm)).total()
    assert counts.interleaved_tokens / counts.tokens == pytest.approx(1 / 3, abs=0.02)


def test_rows_are_full_and_documents_are_kept_apart(dataset):
    stream = Stream(dataset, run_config(dataset))
    for row in stream.batch(3).rows:
        assert row.units == 64
        firsts = np.flatnonzero(np.diff(row.doc, prepend=-1))
        assert (row.ids[firsts] == BOS).all()
        assert (row.position[firsts] == 0).all()
        lasts = np.append(firsts[1:] - 1, row.tokens - 1)
        assert (row.target[lasts] == -1).all()
        inside = np.setdiff1d(np.arange(row.tokens), lasts)
        assert (row.target[inside] == row.ids[inside + 1]).all()
        assert (row.ids[lasts[:-1]] == EOS).all()


def test_the_last_batch_may_be_smaller(dataset):
    config = run_config(dataset, train={"steps": 3, "batch_sequences": 4, "final_batch_sequences": 1})
    assert [len(Stream(dataset, config).batch(s).rows) for s in range(3)] == [4, 4, 1]
    assert config.train.total_sequences == 9


def test_curriculum_goes_from_aligned_to_static(dataset):
    """Patches of four tokens only, at the end; words and silences at the beginning."""
    config = run_config(dataset, "lst_curriculum")
    stream = Stream(dataset, config)

    def speech_lengths(step):
        for row in stream.batch(step).rows:
            for unit in np.unique(row.unit[row.modality == SPEECH]):
                yield int((row.unit == unit).sum())

    assert max(length for step in range(60) for length in speech_lengths(step)) > 4
    assert max(length for step in range(140, 200) for length in speech_lengths(step)) == 4


def test_sequences_cover_the_corpus_evenly(dataset):
    """After many sequences, no training document is read far more often than its length asks for."""
    config = run_config(dataset, "baseline", train={"steps": 400, "batch_sequences": 4})
    stream = Stream(dataset, config)
    lengths = np.array([len(dataset.text["text_tokens"][int(r)]) for r in dataset.rows("text", "train")])
    seen = np.zeros(len(lengths))
    for index in range(1600):
        _, layout, start, _ = stream._outline(index)
        if layout is Format.TEXT:
            seen[np.searchsorted(np.cumsum(lengths), int(start * lengths.sum()), side="right")] += 1
    share = lengths / lengths.sum()
    expected = share * seen.sum()
    assert (abs(seen - expected) <= 3 + 0.5 * expected).all()


def test_the_wrong_data_set_is_refused(dataset):
    config = run_config(dataset)
    wrong = dataclasses.replace(config, data=dataclasses.replace(config.data, data_id="0" * 12))
    with pytest.raises(DataError, match="the run wants 000000000000"):
        Stream(dataset, wrong)


def spoken_documents(dataset, split="train"):
    documents = dataset.documents("speech", split)
    return [SpokenDocument(place) for place in documents.documents(range(documents.rows))]


def test_interleaving_uses_each_word_once_and_keeps_speech_spans_on_word_borders(dataset):
    spoken = SpokenDocuments(dataset)
    data = DataConfig(text_span_words=(2, 6))
    for number, row in enumerate(spoken_documents(dataset)):
        document = spoken.interleaved(row, data, np.random.default_rng(number))
        assert all(a.modality != b.modality for a, b in pairwise(document))
        spans = list(interleaved_spans(row.words, data, Draws(np.random.default_rng(number))))
        assert [w for span in spans for w in range(span.first, span.last)] == list(range(row.words))
        texts = np.concatenate([row.text(s.first, s.last) for s in spans if not s.speech] or [np.zeros(0)])
        assert texts.tolist() == [t for s in document if s.modality == "text" for t in s.tokens.tolist()]
        for segment in document:
            if segment.modality == "speech":
                assert segment.words[0, 0] >= 0
                assert segment.words[-1, 1] < len(segment.tokens)


@pytest.mark.parametrize("first", ["text", "speech"])
def test_the_first_modality_may_be_fixed(dataset, first):
    data = DataConfig(first_modality=first)
    documents = [SpokenDocuments(dataset).interleaved(d, data, np.random.default_rng(0)) for d in spoken_documents(dataset)]
    assert {document[0].modality for document in documents} == {first}


def test_the_word_ratio_of_speech_to_text_is_one_to_two(dataset):
    data, generator = DataConfig(), np.random.default_rng(0)
    spoken_words = total = 0
    for document in spoken_documents(dataset):
        spans = interleaved_spans(document.words, data, Draws(generator))
        spoken_words += sum(span.last - span.first for span in spans if span.speech)
        total += document.words
    assert spoken_words / total == pytest.approx(1 / 3, abs=0.05)


def test_aligned_patches_of_the_stream_are_words_and_silences(dataset):
    config = run_config(dataset, "lst_aligned")
    row = next(r for s in range(20) for r in Stream(dataset, config).batch(s).rows if r.interleaved)
    silence = row.ids == stream_silence(dataset)
    for unit in np.unique(row.unit[row.modality == SPEECH]):
        inside = silence[row.unit == unit]
        assert inside.all() or not inside.any()  # the toy corpus marks silence by a token of its own


@pytest.mark.parametrize(
    "options", [{}, {"silence": "merged"}, {"aligned_unit": "bpe", "silence": "merged", "merge_side": "next"}]
)
@pytest.mark.parametrize(("share", "arm"), [(0.0, "lst_static"), (1.0, "lst_aligned")])
def test_mixed_at_probability_0_and_1_is_static_and_aligned(dataset, options, share, arm):
    """The same rows, and the same logits from the same weights."""
    mixed = run_config(dataset, "lst_mixed", patching=options | {"mixed_aligned_share": share})
    pure = run_config(dataset, arm, patching=options)
    for step in (0, 57, 199):
        one, two = (Stream(dataset, config).batch(step) for config in (mixed, pure))
        for a, b in zip(one.rows, two.rows, strict=True):
            assert all(np.array_equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    with torch.no_grad():
        logits = [build_model(c)(Batch.from_packed(p)) for c, p in ((mixed, one), (pure, two))]
    assert torch.equal(*logits)


def aligned_rows(dataset, config, step):
    """Whether each row with speech of a step was patched by words (a patch longer than static ones)."""
    rows = [r for r in Stream(dataset, config).batch(step).rows if (r.modality == SPEECH).sum() >= 8]
    return [int(np.bincount(r.unit).max()) > config.patching.patch_size for r in rows]


@pytest.mark.parametrize("arm", ["lst_mixed", "lst_curriculum"])
def test_the_patching_is_drawn_for_each_sequence_or_for_the_whole_step(dataset, arm):
    sections = {"train": {"steps": 60, "batch_sequences": 24}, "data": {"seq_len_units": 64}}
    seen = {}
    for draw in ("sequence", "step"):
        config = run_config(dataset, arm, patching={"draw": draw, "patch_size": 2}, **sections)
        seen[draw] = [aligned_rows(dataset, config, step) for step in range(20, 40)]
    assert all(len(set(step)) == 1 for step in seen["step"])
    assert {step[0] for step in seen["step"]} == {True, False}
    assert any(len(set(step)) == 2 for step in seen["sequence"])


def stream_silence(dataset):
    from tests.toy_corpus import SILENCE

    return dataset.text_vocab + SILENCE


def test_modalities_of_ids(dataset):
    row = Stream(dataset, run_config(dataset)).batch(0).rows[0]
    assert ((row.modality == TEXT) == ((row.ids < dataset.text_vocab) & (row.ids > EOS) | (row.ids == 0))).all()


@pytest.mark.parametrize("kind", [Patching.STATIC, Patching.ALIGNED])
def test_splitting_into_micro_batches_loses_no_row(dataset, kind):
    arm = {"static": "lst_static", "aligned": "lst_aligned"}[kind.value]
    batch = Stream(dataset, run_config(dataset, arm, train={"steps": 2, "batch_sequences": 16})).batch(1)
    parts = batch.split(max_tokens=300)
    assert sorted(r.ids.tobytes() for p in parts for r in p.rows) == sorted(r.ids.tobytes() for r in batch.rows)
    for part in parts:
        longest = max(r.tokens for r in part.rows)
        assert len(part.rows) == 1 or longest * len(part.rows) <= 300
