"""DESIGN rule 2 (a, b) on the networks of every arm and option: nothing leaks from the future, and a prefix is enough.

All cuts of a ragged document stand in one batch, a row each, and are compared with as many copies of the original: equal
shapes and equal places, so that equal means equal bits. Where the local modules run on speech alone, the flat products over
text tokens shift with the number of text tokens before them in the batch, and equal means within 1e-12 in fp64.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from lst.config import RunConfig
from lst.model import Batch, make_batch
from tests.model.sequences import (
    CASE_IDS,
    CASES,
    Flat,
    Mutation,
    altered,
    batch_of,
    config_of,
    encoded,
    flat_document,
    network_of,
    repeat_rows,
    segments,
    shown_at_own_end,
    shown_strictly_later,
)

T = U = 48


def unchanged(batch: Batch) -> Batch:
    return batch


def continuations(flat: Flat, cut: int) -> list[Flat]:
    """What might stand from `cut` on: the document's end, a modality switch at once, other tokens of the same modality."""
    other = "text" if flat[cut][0] == "speech" else "speech"
    return [[], [(other, 11)] * 4, altered(flat[cut : cut + 3])]


def joined(batches: Sequence[Batch]) -> Batch:
    """Batches of equal shapes as one."""
    tensors = {f.name: [getattr(b, f.name) for b in batches] for f in dataclasses.fields(Batch)}
    cats = {name: torch.cat(values) for name, values in tensors.items() if isinstance(values[0], Tensor)}
    lengths = {name: tuple(n for b in batches for n in getattr(b, name)) for name in ("tokens", "row_units")}
    return Batch(**cats, **lengths)


def changed_documents(flat: Flat, config: RunConfig) -> Batch:
    """Every continuation at every cut, boundaries made anew; one that ends carries EOS."""
    made = []
    for cut in range(len(flat)):
        for rest in continuations(flat, cut):
            made.append(make_batch([segments(flat[:cut] + rest)], config, tokens=T, units=U, ends=not rest))
    return joined(made)


def same_ids(a: Batch, b: Batch) -> Tensor:
    """bool (B, T): before the first difference, in real tokens of both."""
    return ((a.ids_BT == b.ids_BT) & (a.doc_BT >= 0) & (b.doc_BT >= 0)).cumprod(1).bool()


def leaks(config: RunConfig, flat: Flat, mutation: Mutation = unchanged) -> tuple[set[int], set[int]]:
    """Positions whose logits moved though only later tokens changed, and all positions that stood right before a change."""
    model = network_of(config).eval()
    changed = changed_documents(flat, config)
    original = repeat_rows(batch_of([flat], config, tokens=T, units=U), len(changed.tokens))
    with torch.no_grad():
        before_BTV, after_BTV = model(mutation(original)), model(mutation(changed))
    tolerance = 0.0 if not hasattr(model, "local_text") or model.local_text else 1e-12
    same_BT = same_ids(original, changed)
    moved_BT = (before_BTV - after_BTV).abs().amax(-1) > tolerance
    return set((moved_BT & same_BT).nonzero()[:, 1].tolist()), set((same_BT.sum(1) - 1).tolist())


@pytest.mark.parametrize(("arm", "option", "patch_size"), CASES, ids=CASE_IDS)
def test_no_change_after_t_reaches_the_logits_up_to_t(arm: str, option: str, patch_size: int) -> None:
    flat = flat_document(0)
    config = config_of(arm, option, patch_size)
    moved, edges = leaks(config, flat)
    assert moved == set()
    batch = batch_of([flat], config)
    every = set(range(batch.tokens[0] - 1))
    assert edges >= every if arm != "bpe" else len(every - edges) < 6  # every position stood right before a change
    assert (arm == "bpe") == (encoded(flat, config).frames.max() > 1)  # pieces of several tokens occur


@pytest.mark.parametrize("option", ["default", "preceding", "speech_only", "speech_only_preceding"])
def test_the_search_for_leaks_finds_a_cut_patch_that_is_shown_at_its_own_end(option: str) -> None:
    """The spans of 7, 5 leave patches of 1 and 2; what stands at their ends leaks, and nothing else does."""
    config, flat = config_of("lst_static", option), flat_document(0)
    moved, _ = leaks(config, flat, shown_at_own_end)
    #  BOS <t> 1 2 <s> 7 tokens at 5 .. 11 <t> 1 <s> 3 at 15 .. 17 <t> 3 <s> 5 at 23 .. 27
    assert {11, 27} <= moved
    if not config.model.local_text:
        return
    assert leaks(config, flat, shown_strictly_later)[0] == set()  # too little is no leak: test_freshness.py finds it


@pytest.mark.parametrize(("arm", "option", "patch_size"), CASES, ids=CASE_IDS)
def test_a_prefix_alone_gives_the_same_logits(arm: str, option: str, patch_size: int) -> None:
    """All prefixes, from BOS alone on; those that end inside a patch, at its end, at a marker."""
    config, flat = config_of(arm, option, patch_size), flat_document(2)
    model = network_of(config).eval()
    prefixes = [[*segments(flat[:cut])] for cut in range(len(flat) + 1)]
    prefixes += [[*segments(flat[:cut]), (flat[cut][0], [])] for cut in range(1, len(flat)) if flat[cut][0] != flat[cut - 1][0]]
    batch = make_batch(prefixes, config, tokens=T, units=U)
    original = repeat_rows(batch_of([flat], config, tokens=T, units=U), len(prefixes))
    same_BT = same_ids(batch, original)
    if arm != "bpe":  # whose last piece may be another where the span ends
        assert torch.equal(same_BT, batch.doc_BT >= 0)
        assert set(batch.tokens) == set(range(1, original.tokens[0] + 1)) - {2}
    with torch.no_grad():
        difference_BTV = (model(batch) - model(original))[same_BT]
        tight = model(make_batch(prefixes[14:15], config))[0]  # other shapes: equal to rounding
    tolerance = 1e-12 if config.model.encoder is not None and not config.model.local_text else 0.0
    assert difference_BTV.abs().max() <= tolerance
    torch.testing.assert_close(tight, model(original)[0, : len(tight)], rtol=0, atol=1e-12)


def test_a_cut_patch_is_seen_from_the_next_token_on() -> None:
    """At the marker after a ragged patch, the patch and the marker are both visible (docs/patching.md)."""
    batch = batch_of([[("speech", 5)] * 8 + [("text", 5)]], config_of("lst_static"))
    #                                       BOS <s> a b c d e f g h <t> w
    assert batch.visible_BT[0, :12].tolist() == [1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 6, 7]


ALIGNED = [
    {"silence": "separate"},
    {"silence": "merged", "merge_side": "previous"},
    {"silence": "merged", "merge_side": "next"},
]
ALIGNED_OPTIONS = ["default", "mean", "preceding_three", "speech_only_preceding", "windows"]


@pytest.mark.parametrize("rule", ALIGNED, ids=lambda rule: "-".join(rule.values()))
@pytest.mark.parametrize("option", ALIGNED_OPTIONS)
def test_aligned_boundaries_being_equal_no_token_leaks(option: str, rule: dict[str, str]) -> None:
    """Aligned patching is side information (labelled conditional); token values after t still must not leak."""
    config = config_of("lst_aligned", option, **rule)
    model = network_of(config).eval()
    words, tokens = [(2, 4), (6, 7)], [4, 9, 2, 7, 1, 8, 8, 3, 5]  # docs/patching.md's drawing
    changed = [tokens[:cut] + [29 - t for t in tokens[cut:]] for cut in range(len(tokens) + 1)]
    documents = [[("text", [5, 6]), ("speech", values, words), ("text", [7])] for values in changed]
    with torch.no_grad():
        logits_BTV = model(make_batch(documents, config))
    for cut in range(len(tokens)):
        kept = 5 + cut  # BOS, <t> and two pieces, <s>, then `cut` speech tokens
        assert (logits_BTV[cut, :kept] - logits_BTV[-1, :kept]).abs().max() <= 1e-12
        assert (logits_BTV[cut, kept] - logits_BTV[-1, kept]).abs().max() > 1e-6


@pytest.mark.parametrize("rule", ALIGNED, ids=lambda rule: "-".join(rule.values()))
@pytest.mark.parametrize("option", ALIGNED_OPTIONS)
def test_aligned_patches_do_not_tell_whether_the_span_ends(option: str, rule: dict[str, str]) -> None:
    """Up to a word's end the logits are the same if the span ends there, goes on with silence or words, or is cut by text. The
    first of these documents is the prefix alone."""
    config = config_of("lst_aligned", option, **rule)
    model = network_of(config).eval()
    all_words, all_tokens = [(2, 4), (6, 7), (9, 9)], [4, 9, 2, 7, 1, 8, 8, 3, 6, 5]
    for spoken in (1, 2):
        words = all_words[:spoken]
        tokens = all_tokens[: words[-1][1] + 1]
        documents = [
            [("text", [5]), ("speech", tokens, words)],
            [("text", [5]), ("speech", [*tokens, 1, 2], words)],
            [("text", [5]), ("speech", all_tokens, all_words)],
            [("text", [5]), ("speech", tokens, words), ("text", [9, 9])],
        ]
        kept = 4 + len(tokens)
        with torch.no_grad():
            logits_BTV = model(make_batch(documents, config))
            alone_TV = model(make_batch(documents[:1], config, ends=False))[0]
            ended_TV = model(make_batch(documents[:1], config, ends=True))[0]
        for other_TV in (alone_TV, ended_TV, *logits_BTV):
            assert (other_TV[:kept] - logits_BTV[0, :kept]).abs().max() <= 1e-12
