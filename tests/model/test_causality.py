"""DESIGN rule 2 on the real networks: no leak, prefix equality, freshness, at every position of ragged sequences.

A sequence is a flat list of (modality, token); segments, markers and unit boundaries are made anew for each changed one.
"""

import dataclasses
import random
from itertools import groupby

import numpy as np
import pytest
import torch

from lst.config import Arm, Patching, arm_config
from lst.data.interleave import Segment
from lst.data.pack import PackedBatch, PackedRow, encode_document
from lst.data.vocab import Vocabulary
from lst.model import Batch, build_model, make_batch
from tests.data.made_up_pieces import with_pieces

TEXT_VOCAB, SPEECH_VOCAB, T, U = 40, 30, 48, 48
VOCABULARY = Vocabulary(text=TEXT_VOCAB, speech=SPEECH_VOCAB)
UNALIGNED = [Arm.BASELINE, Arm.LST_STATIC, Arm.LST_MIXED, Arm.LST_CURRICULUM]
OPTIONS = [{}, {"pooling": "mean"}, {"pooling": "last"}, {"decoder_input": "embedding"}, {"decoder_input": "both"}]


def config_of(arm, model=None, patch_size=3):
    vocabulary = {"text_vocab": TEXT_VOCAB, "speech_vocab": SPEECH_VOCAB}
    sections = with_pieces(arm.value, vocabulary | (model or {}))
    return arm_config(arm.value, size="tiny", patching={"patch_size": patch_size}, **sections)


CASES = [(arm, {}) for arm in UNALIGNED] + [(Arm.LST_STATIC, option) for option in OPTIONS[1:]]


def flat_document(seed):
    """Text and speech spans of ragged lengths: full patches, patches of one and two left over, switches both ways."""
    rng = random.Random(seed)
    spans = [("text", 2), ("speech", 7), ("text", 1), ("speech", 3), ("text", 3), ("speech", 5), ("text", 1), ("speech", 6)]
    return [(m, rng.randrange(3, 30)) for m, n in spans for _ in range(n)]


def segments(flat):
    return [(modality, [token for _, token in run]) for modality, run in groupby(flat, key=lambda item: item[0])]


def batch_of(flat, config, ends=False):
    return make_batch([segments(flat)], config, tokens=T, units=U, ends=ends)


def common_prefix(a, b, length):
    equal = (a.ids_BT[0, :length] == b.ids_BT[0, :length]).tolist()
    return equal.index(False) if False in equal else length


@pytest.mark.parametrize(("arm", "options"), CASES)
def test_no_change_after_t_reaches_the_logits_up_to_t(arm, options):
    config = config_of(arm, options)
    model = build_model(config).eval()
    flat = flat_document(0)
    original = batch_of(flat, config)
    length = int((original.doc_BT >= 0).sum())
    with torch.no_grad():
        logits = model(original)
    checked = set()
    for cut in range(1, len(flat)):
        other = "text" if flat[cut][0] == "speech" else "speech"
        continuations = [
            [],  # the document ends here
            [(other, 11)] * 4,  # a modality switch at once
            [(flat[cut][0], 31 - token) for _, token in flat[cut:]][:3],  # other tokens of the same modality
        ]
        for continuation in continuations:
            changed = batch_of(flat[:cut] + continuation, config, ends=not continuation)
            same = min(common_prefix(original, changed, length), int((changed.doc_BT >= 0).sum()))
            with torch.no_grad():
                assert torch.equal(model(changed)[0, :same], logits[0, :same]), (cut, continuation)
            checked.add(same)
    assert len(checked) >= len(flat) - 1  # every position stood at the edge once


@pytest.mark.parametrize(("arm", "options"), CASES)
def test_a_prefix_alone_gives_the_same_logits(arm, options):
    config = config_of(arm, options)
    model = build_model(config).double().eval()
    flat = flat_document(1)
    with torch.no_grad():
        logits = model(batch_of(flat, config))
        for cut in range(1, len(flat)):
            prefix = make_batch([segments(flat[:cut])], config)  # other shapes: equal to rounding
            length = prefix.ids_BT.shape[1]
            torch.testing.assert_close(model(prefix)[0], logits[0, :length], rtol=0, atol=1e-12)


@pytest.mark.parametrize("arm", [Arm.LST_STATIC, Arm.LST_CURRICULUM])
def test_global_outputs_are_as_fresh_as_they_may_be(arm):
    """With the decoder's own stream cut off, what it knows of token t comes through closed units alone."""
    config = config_of(arm)
    model = build_model(config).double().eval()
    model.decoder.register_forward_pre_hook(lambda _, args: (torch.ones_like(args[0]), *args[1:]))
    flat = flat_document(2)
    original = batch_of(flat, config)
    ids = original.ids_BT[0]
    length = int((original.doc_BT >= 0).sum())
    speech = VOCABULARY.modality(ids.numpy()) == 1
    unit, visible = original.unit_BT[0], original.visible_BT[0]
    with torch.no_grad():
        logits = model(original)
        fresh = stale = 0
        for t in range(1, length):
            changed = ids.clone()
            changed[t] = TEXT_VOCAB + (ids[t] - TEXT_VOCAB + 1) % SPEECH_VOCAB if speech[t] else 39 - int(ids[t] == 39)
            altered = dataclasses.replace(original, ids_BT=changed[None])
            moved = not torch.equal(model(altered)[0, t], logits[0, t])
            closed_at_t = bool(unit[t] < visible[t])
            assert moved == closed_at_t, t
            fresh, stale = fresh + closed_at_t, stale + (not closed_at_t)
    # 2 + 1 + 3 + 1 text tokens, 7 markers (BOS's neighbour included), and the full patches of 7, 3, 5 and 6 tokens.
    assert fresh == 7 + 8 + (2 + 1 + 1 + 2)
    assert stale == 21 - (2 + 1 + 1 + 2)


def test_a_cut_patch_is_seen_from_the_next_token_on():
    """At the marker after a ragged patch, the patch and the marker are both visible (docs/patching.md)."""
    config = config_of(Arm.LST_STATIC)
    batch = batch_of([("speech", 5)] * 8 + [("text", 5)], config)
    #                                       BOS <s> a b c d e f g h <t> w
    assert batch.visible_BT[0, :12].tolist() == [1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 6, 7]


@pytest.mark.parametrize("arm", list(Arm))
def test_gradients_reach_the_own_token_and_no_later_one(arm):
    config = config_of(arm)
    model = build_model(config).double()
    flat = flat_document(3)[:18]
    kind = Patching.ALIGNED if arm is Arm.LST_ALIGNED else None
    documents = [[(m, tokens, [(0, 0)]) if m == "speech" else (m, tokens) for m, tokens in segments(flat)]]
    batch = make_batch(documents, config, kind=kind)
    states = {}
    model.embedding.register_forward_hook(lambda _, __, out: states.update(x=out.detach().requires_grad_()) or states["x"])
    if getattr(model, "decoder_embedding", None) is not None:
        pytest.skip("one embedding stream only")
    logits = model(batch)
    for t in range(batch.ids_BT.shape[1]):
        (gradient,) = torch.autograd.grad(logits[0, t].square().sum(), states["x"], retain_graph=True)
        reach = gradient[0].abs().sum(-1)
        assert reach[t] > 0
        assert not reach[t + 1 :].any()


def test_aligned_boundaries_being_equal_no_token_leaks():
    """Aligned patching is side information (labelled conditional); token values after t still must not leak."""
    config = config_of(Arm.LST_ALIGNED)
    model = build_model(config).eval()
    words = [(1, 3), (5, 6)]
    tokens = [4, 9, 2, 7, 1, 8, 8, 3]
    with torch.no_grad():
        original = model(make_batch([[("text", [5, 6]), ("speech", tokens, words)]], config))
        for cut in range(1, len(tokens)):
            changed = tokens[:cut] + [29 - t for t in tokens[cut:]]
            logits = model(make_batch([[("text", [5, 6]), ("speech", changed, words)]], config))
            kept = 1 + 3 + 1 + cut  # BOS, <t> and two pieces, <s>, then `cut` speech tokens
            assert torch.equal(logits[0, :kept], original[0, :kept])


@pytest.mark.parametrize("arm", [Arm.BASELINE, Arm.LST_STATIC])
def test_a_document_does_not_see_what_is_packed_beside_it(arm):
    config = config_of(arm)
    model = build_model(config).double().eval()
    kind = config.patching.kind
    encoded = []
    for seed in (4, 5, 6):
        whole = make_batch([segments(flat_document(seed))], config, ends=True)  # checks the ids below
        documents = [(m, np.array(tokens)) for m, tokens in segments(flat_document(seed))]
        encoded.append(encode_document([Segment(*d) for d in documents], VOCABULARY, kind, 3, ends=True))
        assert encoded[-1].ids.tolist() == whole.ids_BT[0].tolist()
    packed = Batch.from_packed(PackedBatch([PackedRow.pack(encoded, VOCABULARY, interleaved=True)]))
    with torch.no_grad():
        together = model(packed)[0]
        start = 0
        for document in encoded:
            row = PackedRow.pack([document], VOCABULARY, interleaved=True)
            alone = model(Batch.from_packed(PackedBatch([row])))[0]
            torch.testing.assert_close(together[start : start + len(alone)], alone, rtol=0, atol=1e-12)
            start += len(alone)


@pytest.mark.parametrize("arm", list(Arm))
def test_padding_changes_no_logit(arm):
    config = config_of(arm)
    model = build_model(config).double().eval()
    document = [("text", [3, 4, 5]), ("speech", [1, 2, 3, 4, 5, 6, 7], [(0, 2), (4, 6)])]
    with torch.no_grad():
        tight = model(make_batch([document], config))
        padded = model(make_batch([document, [("text", list(range(3, 30)))]], config, tokens=T, units=U))
    torch.testing.assert_close(padded[0, : tight.shape[1]], tight[0], rtol=0, atol=1e-12)
    assert torch.isfinite(padded).all()
