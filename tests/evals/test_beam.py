"""Beam search against the best of all texts, found by trying every one."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lst.config import RunConfig
from lst.data.vocab import EOS, Vocabulary
from lst.evals.beam import beam_search
from lst.model import build_model, generate, make_batch
from tests.train.tiny_run import tiny_config

SPEECH = [("speech", [3, 9, 12, 5, 5, 1], [(0, 1), (2, 4)])]


def sharp_model(arm: str, data: Path, seed: int) -> tuple[Any, RunConfig]:
    """Random weights whose logits differ much, and end likely enough."""
    torch.manual_seed(seed)
    config = tiny_config(arm, data)
    model = build_model(config).double().eval()
    with torch.no_grad():
        model.get_submodule("head").weight.mul_(6.0)
    return model, config


@pytest.mark.parametrize("arm", ["baseline", "lst_static", "lst_aligned"])
def test_one_beam_is_greedy_decoding(tiny_data: Path, arm: str) -> None:
    for seed in range(4):
        model, config = sharp_model(arm, tiny_data, seed)
        (greedy,) = generate(model, config, [SPEECH], direction="S->T", max_tokens=12)
        best = beam_search(model, config, list(SPEECH), beams=1, max_tokens=12)
        text = tuple(i for _, tokens in greedy.segments for i in tokens)
        assert (best.ids, best.finished) == (text, greedy.stop != "max_tokens")
        assert best.loglik == pytest.approx(sum(greedy.logliks), rel=1e-9)
        assert best.context_units == greedy.prompt_units


@torch.no_grad()
def loglik(model: Any, config: RunConfig, ids: tuple[int, ...], end: int) -> float:
    batch = make_batch([[*SPEECH, ("text", list(ids))]], config)
    logp_TV = model(batch)[0].double().log_softmax(1)
    start = len(batch.ids_BT[0]) - len(ids) - 1
    return float(sum(logp_TV[start + n, i] for n, i in enumerate((*ids, end))))


def test_enough_beams_find_the_best_of_all_texts(tiny_data: Path) -> None:
    """Over a vocabulary cut to five pieces, every text of at most two pieces is tried."""
    model, config = sharp_model("lst_static", tiny_data, 5)
    vocabulary = Vocabulary.of(config.model)
    kept = [10, 11, 12, 13, 14, EOS, vocabulary.speech_marker]
    mask = torch.full((vocabulary.size,), -1e9, dtype=torch.float64)
    mask[kept] = 0.0
    model.get_submodule("head").register_forward_hook(lambda _, __, logits: logits + mask)
    for alpha in (0.0, 1.0):
        everything = {
            (ids, end): loglik(model, config, ids, end) / (len(ids) + 1) ** alpha
            for length in (0, 1, 2)
            for ids in itertools.product(kept[:5], repeat=length)
            for end in (EOS, vocabulary.speech_marker)
        }
        (ids, _), score = max(everything.items(), key=lambda pair: pair[1])
        found = beam_search(model, config, list(SPEECH), beams=60, max_tokens=3, alpha=alpha)
        assert found.finished
        assert found.ids == ids
        assert found.loglik / (len(ids) + 1) ** alpha == pytest.approx(score, rel=1e-9)


def test_ends_that_come_first_leave_as_many_hypotheses_open(tiny_data: Path) -> None:
    """Each end is likelier than any piece, at every step; scores by length^2 prefer the longest text of all."""
    model, config = sharp_model("baseline", tiny_data, 1)
    vocabulary = Vocabulary.of(config.model)
    same = torch.full((vocabulary.size,), -1e9, dtype=torch.float64)
    same[[EOS, vocabulary.speech_marker]], same[[10, 11]] = math.log(0.3), math.log(0.2)
    model.get_submodule("head").register_forward_hook(lambda _, __, logits: same.expand_as(logits))
    found = beam_search(model, config, list(SPEECH), beams=2, max_tokens=5, alpha=2.0)
    assert (found.finished, len(found.ids)) == (True, 4)
    assert found.loglik == pytest.approx(4 * math.log(0.2) + math.log(0.3), rel=1e-9)


def test_a_search_that_never_ends_is_cut_and_called_unfinished(tiny_data: Path) -> None:
    model, config = sharp_model("baseline", tiny_data, 1)
    vocabulary = Vocabulary.of(config.model)
    ends = torch.tensor([EOS, vocabulary.speech_marker])
    model.get_submodule("head").register_forward_hook(lambda _, __, logits: logits.index_fill(-1, ends, -1e9))
    found = beam_search(model, config, list(SPEECH), beams=3, max_tokens=5)
    assert (found.finished, len(found.ids)) == (False, 5)
    assert math.isfinite(found.loglik)
