"""Beam search for text after speech, with an explicit rule of when it ends.

`beams` hypotheses go on together. At each step every open hypothesis is extended by every allowed id; of all extensions the best
are taken in order of their log-probability: one that ends (EOS, or the marker <s>) is finished, the others stay open, until
`beams` are. A finished hypothesis has the score ln P / length^alpha, length counting its ids with the end.

The search ends when (a) no hypothesis is open, (b) `beams` are finished and no open one can come before the worst of these: its
log-probability only falls, so ln P / max_tokens^alpha is the best that it can reach, or (c) after `max_tokens` ids. What is
returned is the best finished hypothesis; after (c) with none finished the best open one, which is `unfinished`.

With one beam and alpha = 0 this is greedy decoding (tested). Legend: B hypotheses, V ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lst.data.vocab import EOS, Vocabulary
from lst.model.batch import make_batch
from lst.model.generate import allowed_ids
from lst.model.stepper import Stepper

if TYPE_CHECKING:
    from lst.config import RunConfig
    from lst.model.lst import Baseline, LatentSpeechText


@dataclass(frozen=True)
class Hypothesis:
    """A decoded text. `ids` are text pieces, without the end."""

    ids: tuple[int, ...]
    loglik: float  # with the end's, where it is finished
    finished: bool
    context_units: int  # closed units of the prompt


def beam_search(
    model: Baseline | LatentSpeechText, config: RunConfig, speech: list[Any], *, beams: int, max_tokens: int, alpha: float = 0.0
) -> Hypothesis:
    """The best text after the segments of `speech`, which end in speech."""
    vocabulary = Vocabulary.of(config.model)
    device = next(model.parameters()).device
    stepper, logits_BV = Stepper.start(model, make_batch([[*speech, ("text", [])]], config).to(device))
    context = int(stepper.closed_units[0])
    allowed_V = allowed_ids(vocabulary, "S->T").to(device)
    ends = {EOS, vocabulary.speech_marker}
    alive: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    done: list[tuple[float, float, tuple[int, ...]]] = []  # score, ln P, ids
    for _ in range(max_tokens):
        logp_BV = logits_BV.double().log_softmax(1).masked_fill(~allowed_V, -torch.inf)
        total_BV = logp_BV + torch.tensor([loglik for loglik, _ in alive], dtype=torch.float64, device=device)[:, None]
        # Each open hypothesis has two ends, so that at least `beams` of the best 3 x beams go on.
        best = total_BV.flatten().topk(min(3 * beams, int(allowed_V.sum()) * len(alive)))
        parents: list[int] = []
        following: list[tuple[float, tuple[int, ...]]] = []
        for value, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            if len(following) == beams:
                break  # an end that comes behind so many that go on is none: one beam is greedy decoding
            parent, token = divmod(place, vocabulary.size)
            if token in ends:
                length = len(alive[parent][1]) + 1
                done.append((value / length**alpha, value, alive[parent][1]))
            else:
                parents.append(parent)
                following.append((value, (*alive[parent][1], token)))
        done = sorted(done, key=lambda h: -h[0])[:beams]
        alive = following
        reachable = max((loglik / max_tokens**alpha for loglik, _ in alive), default=-np.inf)
        if not alive or (len(done) == beams and done[-1][0] >= reachable):
            break
        stepper.keep(np.array(parents))
        ids_B = np.array([ids[-1] for _, ids in alive])
        logits_BV = stepper.step(ids_B, np.ones(len(alive), bool), np.zeros(len(alive), bool))
    if done:
        _, loglik, ids = done[0]
        return Hypothesis(ids, loglik, True, context)
    loglik, ids = alive[0]
    return Hypothesis(ids, loglik, False, context)
