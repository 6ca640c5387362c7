"""Decoding token by token with caches is the full forward, for every arm and option, whatever the prompt's length."""

import dataclasses
import random
from itertools import groupby

import pytest
import torch

from lst.config import Arm, Patching
from lst.model import make_batch
from lst.model.stepper import Stepper
from tests.model.decoding_cases import CASES, config_of, network


def flat_document(seed):
    """Full patches, patches cut short, switches both ways, spans of one token."""
    rng = random.Random(seed)
    spans = [("text", 2), ("speech", 7), ("text", 1), ("speech", 3), ("text", 3), ("speech", 1), ("text", 1), ("speech", 5)]
    spans = spans[seed % 3 :]
    return [(m, rng.randrange(3, 30)) for m, n in spans for _ in range(n)]


def document(flat):
    """Segments of a flat list, speech with word spans (which only aligned patches read)."""
    runs = [(modality, [token for _, token in run]) for modality, run in groupby(flat, key=lambda item: item[0])]
    return [(m, tokens, words(len(tokens))) if m == "speech" else (m, tokens) for m, tokens in runs]


def words(length):
    return [(first, last) for first, last in ((1, 2), (3, 3), (5, 6)) if last < length]


def closing(batch, t):
    """For each row, whether the unit of token t closes at it; by the whole sequence's own boundaries."""
    return (batch.unit_BT[:, t] < batch.visible_BT[:, t]).numpy()


def head_of(batch, length):
    """The first `length` tokens of each row. Units that end later are cut: nothing sees them."""
    tokens = {f.name: getattr(batch, f.name)[:, :length] for f in dataclasses.fields(batch) if f.name.endswith("_BT")}
    units = max(int(tokens["unit_BT"].max()) + 1, 1)
    kept = {name: getattr(batch, name)[:, :units] for name in ("unit_doc_BU", "unit_position_BU")}
    rows = len(batch.tokens)
    row_units = tuple(int(u) + 1 for u in tokens["unit_BT"].amax(1))
    return dataclasses.replace(batch, **tokens, **kept, tokens=(length,) * rows, row_units=row_units)


def walk(model, batch, full_BTV, start, steps=10**9, tolerance=1e-10):
    """Prefill `start` tokens, step on, and compare each token's logits with the full forward."""
    length = min(*batch.tokens, start + steps)
    stepper, logits_BV = Stepper.start(model, head_of(batch, start))
    for t in range(start, length + 1):
        torch.testing.assert_close(logits_BV, full_BTV[:, t - 1], rtol=0, atol=tolerance, msg=lambda m, t=t: f"{t}: {m}")
        assert stepper.closed_units.tolist() == batch.visible_BT[:, t - 1].tolist()
        if t < length:
            ids_B = batch.ids_BT[:, t].numpy()
            logits_BV = stepper.step(ids_B, closing(batch, t), batch.speech_BT[:, t].numpy())


def ragged(arm, options, seeds, dtype):
    """A model, documents with all kinds of ends, and the full forward's logits."""
    config = config_of(arm, options)
    model = network(config, dtype)
    kind = Patching.ALIGNED if arm is Arm.LST_ALIGNED else None
    batch = make_batch([document(flat_document(seed)) for seed in seeds], config, kind=kind, ends=True)
    with torch.no_grad():
        return model, batch, model(batch)


@pytest.mark.parametrize(("arm", "options"), CASES)
def test_stepping_equals_the_full_forward_from_every_cut(arm, options):
    model, batch, full_BTV = ragged(arm, options, (0, 1, 2), torch.float64)
    walk(model, batch, full_BTV, 1)
    for start in range(2, min(batch.tokens)):
        walk(model, batch, full_BTV, start, steps=5)  # beyond the windows, and over two patches' ends


@pytest.mark.parametrize(("arm", "options"), CASES)
def test_stepping_equals_the_full_forward_in_single_precision(arm, options):
    model, batch, full_BTV = ragged(arm, options, (3, 4), torch.float32)
    walk(model, batch, full_BTV, 1, tolerance=1e-4)


def test_a_tied_head_is_used():
    model, batch, full_BTV = ragged(Arm.BASELINE, {"tied_head": True}, (0,), torch.float64)
    walk(model, batch, full_BTV, 5)


def test_prompts_of_unequal_length_equal_their_full_forwards():
    config = config_of(patch_size=4)
    model = network(config)
    batch = make_batch([document(flat_document(seed)[: 4 + 5 * seed]) for seed in range(4)], config)
    stepper, logits_BV = Stepper.start(model, batch)
    assert len(set(batch.tokens)) == 4
    for row, tokens in enumerate(batch.tokens):
        alone = make_batch([document(flat_document(row)[: 4 + 5 * row])], config)
        torch.testing.assert_close(logits_BV[row], model(alone)[0, tokens - 1], rtol=0, atol=1e-10)
        assert stepper.closed_units[row] == alone.visible_BT[0, -1]


def test_the_drawing_of_the_open_patch():
    """docs/generation.md: <s> a b c d e <t> under patches of three."""
    config = config_of(patch_size=3)
    batch = make_batch([[("speech", [1, 2, 3, 4, 5]), ("text", [])]], config)
    stepper, _ = Stepper.start(network(config), head_of(batch, 2))
    held, closed = [], []
    for t in range(1, 8):
        if t > 1:
            stepper.step(batch.ids_BT[:, t].numpy(), closing(batch, t), batch.speech_BT[:, t].numpy())
        held.append(int(stepper.open_tokens[0]))
        closed.append(int(stepper.closed_units[0]))
    assert held == [0, 1, 2, 0, 1, 2, 0]
    assert closed == [2, 2, 2, 3, 3, 3, 5]
