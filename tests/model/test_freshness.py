"""DESIGN rule 2 (c): what the logits at t depend on, token by token, is exactly what the rule says; no more and no less.

Row t of a batch of copies of one document is asked for the gradient of its logits at t: one backward pass gives the whole
matrix of who reads whom. It is compared with matrices written down from the rule (tests/model/sequences.py).
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lst.config import RunConfig
from lst.model import Batch, make_batch
from tests.model.sequences import (
    CASE_IDS,
    CASES,
    Mutation,
    batch_of,
    config_of,
    cut_decoder_stream,
    cut_self_attention,
    flat_document,
    network_of,
    reach,
    repeat_rows,
    shown_at_own_end,
    shown_strictly_later,
    units_by_hand,
    visible_by_hand,
)

PATCHING_DOC = Path(__file__).resolve().parents[2] / "docs" / "patching.md"
LST_CASES = [case for case in CASES if case[0].startswith("lst")]
LST_IDS = [case_id for case_id in CASE_IDS if case_id.startswith("lst")]


def matrix(model: torch.nn.Module, batch: Batch) -> Tensor:
    """(T, T): whether the logits at t depend on the embedding of token s."""
    length = batch.tokens[0]
    return reach(model, repeat_rows(batch, length), range(length)) > 0


@pytest.mark.parametrize(("arm", "option", "patch_size"), CASES, ids=CASE_IDS)
def test_logits_depend_on_every_token_up_to_t_and_on_none_after_it(arm: str, option: str, patch_size: int) -> None:
    config = config_of(arm, option, patch_size)
    found = matrix(network_of(config), batch_of([flat_document(3)], config))
    assert torch.equal(found, torch.ones_like(found).tril())


@pytest.mark.parametrize("option", ["default", "preceding", "speech_only", "both_inputs"])
@pytest.mark.parametrize("silence", ["separate", "merged"])
def test_under_aligned_patches_too(option: str, silence: str) -> None:
    config = config_of("lst_aligned", option, silence=silence)
    document = [("text", [5, 6]), ("speech", [4, 9, 2, 7, 1, 8, 8, 3, 5], [(2, 4), (6, 7)]), ("text", [7])]
    found = matrix(network_of(config), make_batch([document], config))
    assert torch.equal(found, torch.ones_like(found).tril())


# docs/patching.md, "Aligned patches, drawn": lengths of the patches of nine frames, and the frame at which each closes.
DRAWN = {
    "separate": ({"silence": "separate"}, [2, 3, 1, 2, 1], [1, 4, 5, 7, 9]),
    "previous": ({"silence": "merged", "merge_side": "previous"}, [2, 4, 3], [1, 5, 9]),
    "next": ({"silence": "merged", "merge_side": "next"}, [5, 3, 1], [4, 7, 9]),
}


@pytest.mark.parametrize("rule", DRAWN)
@pytest.mark.parametrize(
    "option", ["default", "mean", "last", "preceding_three", "speech_only", "speech_only_preceding", "windows"]
)
def test_aligned_units_are_fresh_and_seen_when_they_close(option: str, rule: str) -> None:
    """What the next three tests show under static patches: its own stream cut, the decoder knows the tokens whose unit is closed;
    with all self-attention cut too, exactly the closed units."""
    patching, lengths, frames = DRAWN[rule]
    config = config_of("lst_aligned", option, **patching)
    document = [("text", [5, 6]), ("speech", [4, 9, 2, 7, 1, 8, 8, 3, 5], [(2, 4), (6, 7)]), ("text", [7])]
    model, batch = network_of(config), make_batch([document], config)
    unit = [u for u, n in enumerate([1, 1, 1, 1, 1, *lengths, 1, 1]) for _ in range(n)]  # BOS <t> 5 6 <s>, patches, <t> 7
    closes = [0, 1, 2, 3, 4, *(5 + frame for frame in frames), 14, 15]
    cut_decoder_stream(model)
    assert matrix(model, batch).diagonal().tolist() == [closes[u] <= t for t, u in enumerate(unit)]
    cut_self_attention(model.encoder, model.global_transformer, *model.decoder.layers)
    assert torch.equal(matrix(model, batch), seen_by_the_rule(config, batch, unit, [0] * len(unit), closes))


def seen_by_the_rule(config: RunConfig, batch: Batch, unit: list[int], document: list[int], closes: list[int]) -> Tensor:
    """(T, T): the tokens of the units that each token reads, where nothing but units carries anything."""
    seen_TU = visible_by_hand(unit, document, closes)
    if config.model.cross_attention == "preceding":
        seen_TU &= seen_TU.cumsum(1) == seen_TU.sum(1, keepdim=True)  # the last of them
    if config.model.local_text:
        return seen_TU[:, unit]
    passes = ~batch.speech_BT[0]  # text and markers read their own unit, with no cross-attention
    return torch.where(passes[:, None], torch.eye(len(unit), dtype=torch.bool), seen_TU[:, unit])


def fresh_tokens(arm: str, option: str, patch_size: int, mutation: Mutation | None = None) -> list[bool]:
    """For each t: do the logits at t change with token t through the global transformer?"""
    config = config_of(arm, option, patch_size)
    model, batch = network_of(config), batch_of([flat_document(2)], config)
    cut_decoder_stream(model)
    return matrix(model, batch if mutation is None else mutation(batch)).diagonal().tolist()


@pytest.mark.parametrize(("arm", "option", "patch_size"), LST_CASES, ids=LST_IDS)
def test_with_its_own_stream_cut_the_decoder_knows_each_token_whose_unit_is_closed(
    arm: str, option: str, patch_size: int
) -> None:
    """Fresh at each text token, marker and full patch's end; stale inside patches and at a cut patch's end."""
    unit, _, closes = units_by_hand([flat_document(2)], config_of(arm, option, patch_size), ends=False)
    expected = [closes[u] <= t for t, u in enumerate(unit)]
    assert fresh_tokens(arm, option, patch_size) == expected
    full = {1: 7 + 3 + 5 + 6, 3: 2 + 1 + 1 + 2, 4: 1 + 0 + 1 + 1}[patch_size]  # patches of the spans of 7, 3, 5 and 6 tokens
    assert sum(expected) == 1 + 8 + 7 + full  # BOS, a marker a span, and 2 + 1 + 3 + 1 text tokens


@pytest.mark.parametrize("option", ["default", "preceding", "speech_only", "speech_only_preceding"])
def test_vectors_that_show_too_little_or_too_much_would_be_found(option: str) -> None:
    """Strictly earlier units only: no token is fresh but BOS (and text, where it passes the local modules by). Each patch at
    its own last token: cut patches are fresh where nobody may know that they end."""
    config = config_of("lst_static", option)
    unit, _, closes = units_by_hand([flat_document(2)], config, ends=False)
    last = {u: t for t, u in enumerate(unit)}
    expected = [closes[u] <= t for t, u in enumerate(unit)]
    strict = fresh_tokens("lst_static", option, 3, shown_strictly_later)
    passes_by = (~batch_of([flat_document(2)], config).speech_BT[0]).tolist()
    assert strict == ([t == 0 for t in range(len(unit))] if config.model.local_text else passes_by)
    late = fresh_tokens("lst_static", option, 3, shown_at_own_end)
    cut_ends = [last[u] for u in last if closes[u] > last[u]]
    assert len(cut_ends) == 2
    assert [t for t in last.values() if late[t] != expected[t]] == cut_ends


@pytest.mark.parametrize(("arm", "option", "patch_size"), LST_CASES, ids=LST_IDS)
def test_with_nothing_else_to_carry_it_each_token_sees_exactly_the_closed_units(arm: str, option: str, patch_size: int) -> None:
    """All self-attention cut: a unit holds its own tokens alone, so the matrix is the visible vector, unit by unit."""
    config, flats = config_of(arm, option, patch_size), [flat_document(4)]
    model, batch = network_of(config), batch_of(flats, config)
    cut_decoder_stream(model)
    cut_self_attention(model.encoder, model.global_transformer, *model.decoder.layers)
    by_hand = units_by_hand(flats, config, ends=False)
    assert torch.equal(matrix(model, batch), seen_by_the_rule(config, batch, *by_hand))


def drawn(number: int) -> list[list[bool]]:
    """The drawings of docs/patching.md, "Who reads whom": a row for each token, a column for each unit."""
    lines = PATCHING_DOC.read_text().split("## Who reads whom")[1].split("```")[1].strip("\n").splitlines()
    places = [place for place, character in enumerate(lines[1]) if character.isdigit()][6 * number :][:6]
    return [[line[place] in "#=" for place in places] for line in lines[2:]]


@pytest.mark.parametrize(("number", "option"), [(0, "default"), (1, "preceding"), (2, "speech_only")])
def test_the_drawings_of_who_reads_whom(number: int, option: str) -> None:
    config = config_of("lst_static", option)
    model, batch = network_of(config), batch_of([[("speech", 5)] * 8 + [("text", 5)]], config)
    cut_decoder_stream(model)
    cut_self_attention(model.encoder, model.global_transformer, *model.decoder.layers)
    found_TT = matrix(model, batch)[1:, 1:]  # the drawing leaves out BOS
    first = [0, 1, 4, 7, 9, 10]  # token of each unit
    assert found_TT[:, first].tolist() == drawn(number)


def test_the_baseline_without_attention_knows_its_own_token() -> None:
    config = config_of("baseline")
    model = network_of(config)
    cut_self_attention(model)
    found = matrix(model, batch_of([flat_document(4)], config))
    assert torch.equal(found, torch.eye(len(found), dtype=torch.bool))
