"""Packing and padding: a document's logits depend on neither. In fp64, within 1e-12; long rows stand in test_long_rows.py."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from lst.config import Patching, RunConfig, arm_config
from lst.data.interleave import Segment
from lst.data.pack import PackedBatch, PackedRow, encode_document
from lst.data.vocab import Vocabulary
from lst.errors import DataError
from lst.model import Batch, make_batch
from tests.model.sequences import (
    CASE_IDS,
    CASES,
    batch_of,
    batch_of_rows,
    config_of,
    flat_document,
    network_of,
)

A, B, C = flat_document(4), flat_document(5, [("speech", 8), ("text", 2)]), flat_document(6, [("text", 3)])
PLACES = [[A], [B], [C], [A, B, C], [C, A, B], [B, B, A], [C, C, C, B]]  # alone, before and after others, beside itself


@pytest.mark.parametrize(("arm", "option", "patch_size"), CASES, ids=CASE_IDS)
def test_a_document_does_not_see_what_is_packed_beside_it(arm: str, option: str, patch_size: int) -> None:
    config = config_of(arm, option, patch_size)
    model = network_of(config).eval()
    batch = batch_of_rows(PLACES, config)
    with torch.no_grad():
        logits_BTV = model(batch)
        alone = {id(flat): model(batch_of_rows([[flat]], config))[0] for flat in (A, B, C)}
    for row, flats in enumerate(PLACES):
        expected = torch.cat([alone[id(flat)] for flat in flats])
        assert batch.tokens[row] == len(expected)
        torch.testing.assert_close(logits_BTV[row, : len(expected)], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("arm", "option", "patch_size"), CASES, ids=CASE_IDS)
def test_padding_changes_no_logit(arm: str, option: str, patch_size: int) -> None:
    """More padded tokens and units, longer rows beside it, rows without speech, and rows of speech alone."""
    config = config_of(arm, option, patch_size)
    model = network_of(config).eval()
    texts, speech = flat_document(7, [("text", 40)]), flat_document(8, [("speech", 41)])
    cases = [([A], {"tokens": 61, "units": 61}), ([texts, speech, A, C], {}), ([C, A], {"tokens": 50, "units": 50})]
    with torch.no_grad():
        tight = model(batch_of([A], config))[0]
        for flats, padding in cases:
            logits_BTV = model(batch_of(flats, config, **padding))
            assert torch.isfinite(logits_BTV).all()
            torch.testing.assert_close(logits_BTV[flats.index(A), : len(tight)], tight, rtol=0, atol=1e-12)


@pytest.mark.parametrize("option", ["default", "preceding_three", "speech_only", "speech_only_preceding"])
@pytest.mark.parametrize("silence", ["separate", "merged"])
def test_padding_and_packing_under_aligned_patches(option: str, silence: str) -> None:
    config = config_of("lst_aligned", option, silence=silence)
    model = network_of(config).eval()
    document = [("text", [3, 4, 5]), ("speech", [1, 2, 3, 4, 5, 6, 7], [(0, 2), (4, 6)])]
    other = [("speech", [9, 8, 7, 6, 5], [(1, 3)]), ("text", [6]), ("speech", [4, 4], [(0, 1)])]
    with torch.no_grad():
        tight = model(make_batch([document], config))
        padded = model(make_batch([[("text", list(range(3, 30)))], document], config, tokens=48, units=40))
        torch.testing.assert_close(padded[1, : tight.shape[1]], tight[0], rtol=0, atol=1e-12)
        assert torch.isfinite(padded).all()
        alone = {id(d): model(aligned_rows([[d]], config))[0] for d in (document, other)}
        rows = [[document, other], [other, other, document]]
        packed = model(aligned_rows(rows, config))
    for row, documents in zip(packed, rows, strict=True):
        expected = torch.cat([alone[id(d)] for d in documents])
        torch.testing.assert_close(row[: len(expected)], expected, rtol=0, atol=1e-12)


def aligned_rows(rows: list[list[Any]], config: RunConfig) -> Batch:
    """Several documents a row, each with EOS and its own word spans."""
    vocabulary, rule = Vocabulary.of(config.model), config.patching.silence_rule
    packed = []
    for documents in rows:
        spans = [[Segment(m, np.array(tokens), *map(np.array, words)) for m, tokens, *words in d] for d in documents]
        encoded = [encode_document(s, vocabulary, Patching.ALIGNED, 3, ends=True, silence=rule) for s in spans]
        packed.append(PackedRow.pack(encoded, vocabulary, interleaved=True))
    return Batch.from_packed(PackedBatch(packed))


@pytest.mark.parametrize("option", ["default", "preceding_three", "speech_only"])
def test_padding_gets_and_gives_no_gradient(option: str) -> None:
    """Gradients of a loss over real tokens are those without padding."""
    config = config_of("lst_static", option)
    gradients = []
    for padding in ({}, {"tokens": 90, "units": 70}):
        model, batch = network_of(config), batch_of([A, C], config, **padding)
        batch = dataclasses.replace(batch, ids_BT=batch.ids_BT.where(batch.doc_BT >= 0, 7))
        logits = model(batch)[batch.doc_BT >= 0]
        along = torch.randn(logits.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        (logits * along).sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for tight, padded in zip(*gradients, strict=True):
        torch.testing.assert_close(padded, tight, rtol=0, atol=1e-12 * float(tight.abs().max()))


@pytest.mark.parametrize(
    ("arm", "sizes", "sentence"),
    [
        ("lst_static", {"tokens": 3}, "tokens=3 or units=5 is too few for rows of up to 6 tokens and 5 units"),
        ("baseline", {"tokens": 9}, "tokens=9 and units=None differ, but each token is a unit here"),
    ],
)
def test_sizes_that_do_not_fit_are_one_sentence(arm, sizes, sentence):
    with pytest.raises(DataError, match=sentence):
        make_batch([[("text", [5]), ("speech", [1, 2])]], arm_config(arm), **sizes)
