"""The chunked cross-entropy against the plain one, its gradients, and what it keeps in memory."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from lst.data.shards import open_dataset
from lst.data.stream import Stream
from lst.data.vocab import SPEECH, TEXT
from lst.model import Batch, build_model
from lst.train import losses
from lst.train.losses import LossSums, accumulate_gradients, token_losses
from tests.train.tiny_run import tiny_config


@pytest.fixture(params=["baseline", "lst_static"])
def case(request: pytest.FixtureRequest, tiny_data: Path, monkeypatch: pytest.MonkeyPatch):
    """A model, the micro-batches of its first step, and chunks of a few positions only."""
    config = tiny_config(request.param, tiny_data)
    packed = Stream(open_dataset(tiny_data), config).batch(0)
    monkeypatch.setattr(losses, "CHUNK_LOGITS", {"cpu": 37 * (config.model.text_vocab + config.model.speech_vocab + 2)})
    monkeypatch.setattr(losses, "CHUNK_ROWS", 1)
    return build_model(config), packed


def plain_losses(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    logits_BTV = model(batch).float()
    target_BT = batch.target_BT.masked_fill(batch.target_BT < 0, -100)
    return F.cross_entropy(logits_BTV.transpose(1, 2), target_BT, reduction="none")


def test_token_losses_equal_the_plain_cross_entropy(case) -> None:
    model, packed = case
    batch = Batch.from_packed(packed)
    torch.testing.assert_close(token_losses(model, batch), plain_losses(model, batch).detach(), rtol=1e-5, atol=1e-6)


def test_gradients_of_micro_batches_equal_autograd_on_the_whole_batch(case) -> None:
    model, packed = case
    parts = packed.split(200)
    assert len(parts) > 1
    sums = LossSums()
    for part in parts:
        sums += accumulate_gradients(model, Batch.from_packed(part), predicted=int(packed.counts.predicted))
    ours = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    batch = Batch.from_packed(packed)
    loss = plain_losses(model, batch).sum() / packed.counts.predicted
    loss.backward()
    assert sums.means()["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_losses_are_split_by_what_is_predicted(case) -> None:
    model, packed = case
    batch = Batch.from_packed(packed)
    sums = accumulate_gradients(model, batch, predicted=int(packed.counts.predicted))
    expected = plain_losses(model, batch).detach()
    there = batch.target_BT >= 0
    for modality, name in ((TEXT, "text"), (SPEECH, "speech")):
        where = there & (batch.target_modality_BT == modality)
        assert getattr(sums, f"{name}_tokens") == int(where.sum()) > 0
        assert sums.means()[f"loss_{name}"] == pytest.approx(float(expected[where].mean()), rel=1e-5)
    assert sums.tokens == packed.counts.predicted


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_more_than_a_chunk_of_logits_lives_at_once(case, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    model, packed = case
    places: set[int] = set()
    sizes: list[int] = []
    gradient = losses._losses_and_gradient

    def watched(logits_CV: torch.Tensor, target_C: torch.Tensor, scale: float) -> torch.Tensor:
        places.add(logits_CV.data_ptr())
        sizes.append(len(logits_CV))
        return gradient(logits_CV, target_C, scale)

    monkeypatch.setattr(losses, "_losses_and_gradient", watched)
    accumulate_gradients(model, Batch.from_packed(packed), predicted=100, dtype=dtype)
    assert len(sizes) > 3
    assert max(sizes) == 37
    assert len(places) == 1  # one buffer, of logits and of their gradient
    assert sum(sizes) == packed.counts.predicted  # padding and document ends cost no head


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_head_rounded_up_as_for_a_gpu_changes_no_loss_and_no_gradient(
    case, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    model, packed = case
    found = []
    for multiple in (1, 64):
        monkeypatch.setitem(losses.ROUND_VOCABULARY, "cpu", multiple)
        model.zero_grad()
        sums = accumulate_gradients(model, Batch.from_packed(packed), predicted=100, dtype=dtype)
        found.append((sums.nats, [p.grad.clone() for p in model.parameters()]))
    (nats, gradients), (rounded_nats, rounded) = found
    assert model.head.out_features % 64
    assert rounded_nats == pytest.approx(nats, rel=1e-6)
    for a, b in zip(gradients, rounded, strict=True):
        assert a.shape == b.shape
        assert (a - b).norm() <= (1e-5 if dtype == "float32" else 2e-2) * a.norm()


def test_gradient_of_the_head_is_handed_over_without_a_copy(case, monkeypatch: pytest.MonkeyPatch) -> None:
    model, packed = case
    made: list[int] = []
    add_product = losses._add_product

    def watched(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
        made.append(total.data_ptr())
        add_product(total, a, b)

    monkeypatch.setattr(losses, "_add_product", watched)
    accumulate_gradients(model, Batch.from_packed(packed), predicted=100)
    assert {model.head.weight.grad.data_ptr()} == set(made)


def test_batch_without_a_target_adds_zeros_to_every_gradient(case) -> None:
    model, packed = case
    batch = Batch.from_packed(packed)
    accumulate_gradients(model, batch, predicted=100)
    before = {n: p.grad.clone() for n, p in model.named_parameters()}
    nothing = dataclasses.replace(batch, target_BT=torch.full_like(batch.target_BT, -1))
    assert accumulate_gradients(model, nothing, predicted=100) == LossSums()
    assert all(torch.equal(before[n], p.grad) for n, p in model.named_parameters())
    model.zero_grad()
    accumulate_gradients(model, nothing, predicted=100)
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_bfloat16_stays_near_float32(case) -> None:
    model, packed = case
    batch = Batch.from_packed(packed)
    exact = token_losses(model, batch)
    rough = token_losses(model, batch, dtype="bfloat16")
    assert rough.dtype == torch.float32
    assert 0 < float((rough - exact).abs().max()) < 0.05
    sums = accumulate_gradients(model, batch, predicted=int(packed.counts.predicted), dtype="bfloat16")
    assert sums.nats == pytest.approx(float(exact.sum()), rel=1e-2)
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())
