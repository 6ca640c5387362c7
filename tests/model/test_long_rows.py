"""Long rows, where attention runs block by block: the same properties as for short ones, with windows shorter than documents.

Rows have more pairs than `lst.model.intervals.SMALL` in every attention, so that blocks of all kinds occur: masked ones, causal
stretches, and prefixes that all queries see. Comparisons are in fp64 and within 1e-11.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch

from lst.config import RunConfig
from lst.model import Batch
from lst.model.attention import use_backend
from lst.model.intervals import SMALL, Intervals
from tests.model.sequences import (
    OPTIONS,
    Flat,
    altered,
    batch_of_rows,
    config_of,
    cut_decoder_stream,
    cut_self_attention,
    flat_document,
    network_of,
    reach,
    units_by_hand,
    visible_by_hand,
)

LONG = {arm: (arm, "default") for arm in ("baseline", "bpe")} | {name: ("lst_static", name) for name in OPTIONS}
# Options that change who reads whom; pooling, inputs and tied weights do not.
READING = {
    name: LONG[name]
    for name in (
        "baseline",
        "default",
        "preceding_three",
        "speech_only",
        "speech_only_preceding",
        "windows",
        "speech_only_windows",
    )
}
TOLERANCE = 1e-11

TEXT_FIRST = flat_document(1, [("text", 290)])
MIDDLE = flat_document(2, [("text", 11), ("speech", 155), ("text", 90), ("speech", 31)])
SHORT = flat_document(3, [("text", 2), ("speech", 4)])
SPEECH = flat_document(4, [("speech", 263), ("text", 30), ("speech", 100)])
WORDY = flat_document(5, [("text", 290), ("speech", 270)])
ROWS: list[list[Flat]] = [[TEXT_FIRST, MIDDLE, SHORT, SHORT], [SPEECH, SHORT, MIDDLE], [WORDY, SHORT]]


def intervals(batch: Batch, local_text: bool) -> list[Intervals]:
    stream = batch.all_tokens if local_text else batch.speech_tokens
    return [batch.unit_intervals, stream.seen(40), stream.visible]


def test_the_rows_have_blocks_of_every_kind() -> None:
    batch = batch_of_rows(ROWS, config_of("lst_static"))
    kinds = []
    for seen in [*intervals(batch, local_text=True), *intervals(batch, local_text=False)]:
        assert seen.lo_BT.shape[1] * seen.keys > SMALL
        parts = [part for block in seen.blocks for part in block.parts]
        kinds.append({"causal" if part.causal else "prefix" if part.mask is None else "masked" for part in parts})
    units, _, closed, _, _, closed_at_speech = kinds
    assert units == {"causal", "masked"}
    assert closed == {"causal", "prefix", "masked"}
    assert closed_at_speech >= {"prefix", "masked"}


@pytest.mark.parametrize(("arm", "option"), LONG.values(), ids=LONG)
def test_blocks_equal_dense_attention_forward_and_backward(arm: str, option: str) -> None:
    """Whole networks: the logits, and the gradient of every parameter."""
    config = config_of(arm, option, long=True)
    batch, results = batch_of_rows(ROWS, config), []
    for backend in ("auto", "dense"):
        model = network_of(config)
        use_backend(model, backend)
        logits_BTV = model(batch)[batch.doc_BT >= 0]
        along = torch.randn(logits_BTV.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
        (logits_BTV * along).sum().backward()
        results.append((logits_BTV.detach(), {name: p.grad for name, p in model.named_parameters()}))
    (logits, gradients), (expected_logits, expected) = results
    assert (logits - expected_logits).abs().max() < TOLERANCE
    one_key = config.model.cross_attention == "preceding" and config.model.queries_per_patch == 1
    for name, gradient in expected.items():
        assert gradient is not None
        idle = one_key and name.startswith("decoder.cross") and ("to_query." in name or "norm" in name)
        assert (gradient.abs().max() > 0) != idle  # a softmax over one key asks no question
        assert (gradients[name] - gradient).abs().max() <= 1e-11 * gradient.abs().max(), name


def edges(config: RunConfig) -> list[tuple[int, int]]:
    """(row, position) at document ends, patch ends, switches, and inside."""
    found = []
    for row, flats in enumerate(ROWS):
        unit, document, closes = units_by_hand(flats, config, ends=True)
        ends = [t for t in range(len(unit)) if t + 1 == len(unit) or document[t] != document[t + 1]]
        cut = [t for t in range(len(unit) - 1) if unit[t + 1] != unit[t] and closes[unit[t]] > t]
        full = [t for t in range(400, len(unit)) if closes[unit[t]] == t and unit[t - 1] == unit[t]][:1]
        found += [(row, t) for t in {*ends[1:2], *cut[-1:], *[t + 1 for t in cut[-1:]], *full}]
    return found


def rows_of(batch: Batch, picked: Sequence[int]) -> Batch:
    tensors = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    chosen = {name: value[list(picked)] for name, value in tensors.items() if isinstance(value, torch.Tensor)}
    lengths = {name: tuple(tensors[name][row] for row in picked) for name in ("tokens", "row_units")}
    return dataclasses.replace(batch, **chosen, **lengths)


@pytest.mark.parametrize(("arm", "option"), READING.values(), ids=READING)
def test_logits_depend_on_their_own_document_up_to_t_alone(arm: str, option: str) -> None:
    config = config_of(arm, option, long=True)
    batch, places = batch_of_rows(ROWS, config), edges(config)
    rows, positions = zip(*places, strict=True)
    chosen = rows_of(batch, rows)
    found = reach(network_of(config), chosen, positions) > 0
    position_B1 = torch.tensor(positions)[:, None]
    same_BT = chosen.doc_BT == chosen.doc_BT.gather(1, position_B1)
    assert torch.equal(found, same_BT & (torch.arange(found.shape[1]) <= position_B1))


@pytest.mark.parametrize(("arm", "option"), list(READING.values())[1:], ids=list(READING)[1:])
def test_with_nothing_else_to_carry_it_each_token_sees_exactly_the_closed_units(arm: str, option: str) -> None:
    config = config_of(arm, option, long=True)
    batch, places = batch_of_rows(ROWS, config), edges(config)
    model = network_of(config)
    cut_decoder_stream(model)
    cut_self_attention(model.encoder, model.global_transformer, *model.decoder.layers)
    rows, positions = zip(*places, strict=True)
    found = reach(model, rows_of(batch, rows), positions) > 0
    for (row, t), found_T in zip(places, found, strict=True):
        unit, document, closes = units_by_hand(ROWS[row], config, ends=True)
        seen_U = visible_by_hand(unit, document, closes)[t]
        if config.model.cross_attention == "preceding":
            seen_U &= seen_U.cumsum(0) == seen_U.sum()
        expected_T = seen_U[unit]
        if not config.model.local_text and not batch.speech_BT[row, t]:
            expected_T = torch.arange(len(unit)) == t
        assert torch.equal(found_T[: len(unit)], expected_T), (row, t)
        assert not found_T[len(unit) :].any()


@pytest.mark.parametrize(("arm", "option"), READING.values(), ids=READING)
def test_no_change_after_t_reaches_the_logits_up_to_t(arm: str, option: str) -> None:
    """The document in the middle of a row is cut, switched or changed, and what follows it moves along."""
    config = config_of(arm, option, long=True)
    variants: list[list[Flat]] = [[SHORT, SPEECH, MIDDLE]]
    for cut in (1, 50, 263, 264, 300, 392):
        other = "text" if SPEECH[cut][0] == "speech" else "speech"
        for rest in ([], [(other, 11)] * 5, altered(SPEECH[cut:])):
            variants.append([SHORT, SPEECH[:cut] + rest, SHORT])
    batch = batch_of_rows(variants, config)
    model = network_of(config).eval()
    with torch.no_grad():
        logits_BTV = model(batch)
    same_BT = ((batch.ids_BT == batch.ids_BT[:1]) & (batch.doc_BT == batch.doc_BT[:1])).cumprod(1).bool()
    assert min(same_BT.sum(1).tolist()) == 10 + 3  # SHORT as it is packed, then BOS, <s> and the token before the cut
    moved_BT = (logits_BTV - logits_BTV[:1]).abs().amax(-1) > TOLERANCE
    assert not (moved_BT & same_BT).any()
    assert moved_BT[1:].any(1).all()


@pytest.mark.parametrize(("arm", "option"), LONG.values(), ids=LONG)
def test_documents_do_not_see_what_is_packed_beside_them_and_padding_changes_nothing(arm: str, option: str) -> None:
    """Each document alone, unpadded, against its place in long rows of many."""
    config = config_of(arm, option, long=True)
    model = network_of(config).eval()
    with torch.no_grad():
        together = model(batch_of_rows(ROWS, config, tokens=840, units=840))
        assert torch.isfinite(together).all()
        alone = {id(flat): model(batch_of_rows([[flat]], config))[0] for row in ROWS for flat in row}
    for row, flats in enumerate(ROWS):
        start = 0
        for flat in flats:
            expected = alone[id(flat)]
            assert (together[row, start : start + len(expected)] - expected).abs().max() < TOLERANCE
            start += len(expected)
