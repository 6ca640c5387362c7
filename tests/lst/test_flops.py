"""FLOPs: against torch's counter, against hand counts, and additive over what they count."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lst.config import Arm, ModelConfig, StackConfig, arm_config
from lst.data.shards import open_dataset
from lst.data.statistics import count_sequences, solve_mixture
from lst.data.stream import Stream
from lst.flops import (
    TRAINING_FACTOR,
    DenseShape,
    SequenceCounts,
    dense_forward_flops,
    forward_flops,
    num_params,
    parameter_counts,
    training_flops,
)
from lst.ladder import model_shape
from lst.model import Batch, build_model, count_parameters, make_batch
from lst.model.attention import use_backend
from lst.model.lst import network
from tests.data.made_up_pieces import with_pieces

VOCABULARY = {"text_vocab": 60, "speech_vocab": 40}


def use_dense_attention(model):
    """The reference backend: plain matrix products, which torch's counter can see."""
    use_backend(model, "dense")


def dense_shape(batch):
    """The padded shapes that the networks see."""
    batch = batch.host or batch
    speech = batch.speech_tokens
    return DenseShape(
        sequences=len(batch.tokens),
        tokens=batch.ids_BT.shape[1],
        units=batch.units,
        local_tokens=speech.position_BL.shape[1],
        patches=speech.segments.shape[1],
        others=len(batch.other_tokens[0]),
    )


def counted(model, batch):
    use_dense_attention(model)
    with FlopCounterMode(display=False) as counter:
        model(batch).sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("arm", list(Arm))
@pytest.mark.parametrize("size", ["tiny", "w96"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"queries_per_patch": 3},
        {"decoder_input": "both"},
        {"local_text": False},
        {"cross_attention": "preceding"},
        {"cross_attention": "preceding", "local_text": False, "decoder_input": "embedding"},
        {"tied_head": True, "pooling": "last"},
    ],
)
def test_the_dense_convention_equals_torchs_counter_to_the_last_digit(arm, size, options):
    config = arm_config(arm.value, size=size, **with_pieces(arm.value, VOCABULARY | options))
    speech = ("speech", [1, 2, 3, 4, 5, 6, 7, 8, 9], [(1, 4), (6, 7)])
    batch = make_batch([[("text", [3, 4]), speech], [speech, ("text", [9])]], config)
    dense = dense_forward_flops(config.model, dense_shape(batch))
    assert counted(build_model(config), batch) == TRAINING_FACTOR * dense.total


@pytest.mark.parametrize(
    ("size", "arm", "options"),
    [
        *[("7B", arm, {}) for arm in Arm],
        ("7B", Arm.BASELINE, {"tied_head": True}),
        ("7B", Arm.LST_STATIC, {"local_text": False}),
        ("7B", Arm.LST_STATIC, {"cross_attention": "preceding"}),
        ("7B", Arm.LST_ALIGNED, {"local_text": False, "cross_attention": "preceding", "decoder_input": "both"}),
        ("table7_1b", Arm.BASELINE, {}),
        ("table7_1b", Arm.LST_STATIC, {}),
    ],
)
def test_large_shapes_on_meta_tensors_equal_the_dense_convention(size, arm, options):
    shape = dataclasses.replace(model_shape(size, arm), **options)
    with torch.device("meta"):
        model = network(shape)
    documents = [[("text", [3] * 20), ("speech", [1] * 41, [(3, 9), (12, 20)])]]
    batch = make_batch(documents, arm_config(arm.value, **with_pieces(arm.value, VOCABULARY))).to("meta")
    dense = dense_forward_flops(shape, dense_shape(batch))
    assert counted(model, batch) == TRAINING_FACTOR * dense.total
    assert count_parameters(model) == parameter_counts(shape)


def test_a_hand_count_of_the_baseline():
    """One layer of width 4 and hidden width 8, vocabulary 10, one document of 3 tokens: every product by hand."""
    stack = StackConfig(layers=1, dim=4, heads=2, ffn_dim=8)
    model = ModelConfig(arm=Arm.BASELINE, global_stack=stack, text_vocab=5, speech_vocab=3)
    counts = SequenceCounts(units=3, tokens=3, predicted=2, global_pairs=1 + 2 + 3)
    flops = forward_flops(model, counts)
    projections = 3 * 4 * (2 * 4 * 4)  # q, k, v, out at 3 positions
    feed_forward = 3 * 3 * (2 * 4 * 8)  # gate, value, out
    attention = 6 * (2 * 4 + 2 * 4)  # score and value of 6 pairs
    head = 2 * (2 * 4 * 10)  # the two positions that have a target
    nothing = {"embedding": 0, "encoder": 0, "decoder": 0}
    assert flops.by_group == nothing | {"global": projections + feed_forward + attention, "head": head}
    assert flops.by_kind == {"matmul": projections + feed_forward, "attention": attention, "head": head}
    assert training_flops(model, counts).total == 3 * flops.total


@pytest.mark.parametrize("arm", list(Arm))
def test_parameter_counts_equal_the_built_networks(arm):
    for options in ({}, {"decoder_input": "both"}, {"local_text": False, "cross_attention": "preceding"}):
        config = arm_config(arm.value, size="w64", model=VOCABULARY | options)
        model = build_model(config)
        assert count_parameters(model) == parameter_counts(config.model)
        assert num_params(config.model) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("local_text", [True, False])
def test_pairs_of_a_packed_row_equal_the_masks_of_the_model(toy_dataset, local_text):
    """What FLOPs count as attention is exactly what the masks let through, and what they count as tokens what runs."""
    dataset = open_dataset(toy_dataset)
    config = run_config(dataset, "lst_static", encoder_window=16, local_text=local_text)
    packed = Stream(dataset, config).batch(0)
    counts, batch = packed.counts, Batch.from_packed(packed)
    stream = batch.all_tokens if local_text else batch.speech_tokens
    assert counts.encoder_pairs == visible_pairs(stream.seen(16))
    assert counts.global_pairs == visible_pairs(batch.unit_intervals)
    assert counts.cross_pairs == visible_pairs(stream.visible)
    assert counts.predicted == int((batch.target_BT >= 0).sum())
    assert counts.tokens == int((batch.doc_BT >= 0).sum())
    assert counts.units == int((batch.unit_doc_BU >= 0).sum())
    assert sum(stream.lengths) == (counts.tokens if local_text else counts.speech_tokens)
    speech = batch.speech_tokens
    assert counts.patches == len(speech.places.unit_N)
    assert counts.tokens - counts.speech_tokens == len(batch.other_tokens[0])


def visible_pairs(intervals):
    """Entries of the written-out mask, padding left out."""
    return sum(int(mask[0, :length].sum()) for mask, length in zip(intervals.mask_B1TS, intervals.lengths, strict=True))


def run_config(dataset, arm, encoder_window=512, local_text=True, **sections):
    model = {"text_vocab": dataset.text_vocab, "speech_vocab": dataset.speech_vocab}
    if arm == "bpe":
        model["speech_bpe_vocab"] = 160
    elif arm != "baseline":
        model |= {"encoder": {"window": encoder_window}, "local_text": local_text}
    base = {"data": {"seq_len_units": 64}, "train": {"steps": 12, "batch_sequences": 4}, **sections}
    config = arm_config(arm, size="tiny", model=model, **base)
    return dataclasses.replace(config, data=solve_mixture(dataset, config))


@pytest.mark.parametrize("arm", [a.value for a in Arm])
def test_planned_counts_of_a_short_run_equal_what_its_batches_hold(toy_dataset, arm):
    dataset = open_dataset(toy_dataset)
    config = run_config(dataset, arm)
    table = count_sequences(dataset, config)
    spent = SequenceCounts()
    stream = Stream(dataset, config)
    for step in range(config.train.steps):
        spent += stream.batch(step).counts
    assert table.exact
    assert dataclasses.asdict(table.total()) == pytest.approx(dataclasses.asdict(spent))
    assert table.flops(config).sum() == pytest.approx(training_flops(config, spent).total, rel=1e-12)
