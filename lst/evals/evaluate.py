"""One evaluation of a run's model: held-out losses, and story completion on the final checkpoint.

The trainer calls `Evaluation.run` at the run's evaluation points and writes what it returns. Not here: when to evaluate
(lst.train.trainer) and what the metrics mean (lst.evals.heldout, lst.evals.stories, docs/evaluation.md).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lst.config import EvalConfig, RunConfig
from lst.data.heldout import heldout_documents
from lst.data.interleave import Document
from lst.data.shards import Dataset
from lst.evals.choice_metrics import choice_metrics
from lst.evals.choices import ChoiceOptions, score_choices
from lst.evals.heldout import Metric, heldout_metrics
from lst.evals.scoring import Scorer
from lst.evals.stories import can_speak, story_items
from lst.train.distributed import Ranks

if TYPE_CHECKING:
    import torch

    from lst.train.losses import Network

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Results:
    """What one evaluation found: metrics, and a record of each story item."""

    metrics: list[Metric]
    items: list[dict[str, Any]] = field(default_factory=list)


class Evaluation:
    """The run's evaluation. The held-out documents are chosen once, when first needed."""

    def __init__(self, dataset: Dataset, config: RunConfig) -> None:
        self.dataset, self.config = dataset, config

    @cached_property
    def _documents(self) -> dict[str, list[Document]]:
        config, patching = self.config, self.config.patching
        return heldout_documents(
            self.dataset, config.evaluation, config.data,
            aligned_unit=patching.aligned_unit, boundary_noise_ms=patching.boundary_noise_ms,
        )  # fmt: skip

    def run(
        self,
        model: Network,
        device: torch.device,
        *,
        final: bool,
        stop: Callable[[], None] | None = None,
        ranks: Ranks | None = None,
    ) -> Results:
        """Evaluate `model`; `final` adds the story items. `stop` may raise between batches, to leave early.

        Several ranks share the batches, and each has all results.
        """
        scorer = Scorer(model, self.config, device=device, stop=stop, ranks=ranks)
        metrics = heldout_metrics(scorer, self._documents, self.dataset.tokenizer)
        evaluation = self.config.evaluation
        if not final or not evaluation.story_items:
            return Results(metrics)
        speech = can_speak(scorer.kind)
        if not speech:
            log.warning("spoken stories have no word spans, so an aligned arm cannot patch them; only written ones are scored")
        items = story_items(
            self.dataset, count=evaluation.story_items, choices=evaluation.story_choices, seed=evaluation.seed, speech=speech
        )
        if not items:
            return Results(metrics)
        records = score_choices(scorer, items, ChoiceOptions(score=evaluation.story_score))
        return Results(metrics + choice_metrics(records), records)


def evaluation_steps(steps: int, evaluation: EvalConfig) -> frozenset[int]:
    """After how many steps to evaluate: `points` times, evenly spaced, the last after the last step."""
    points = evaluation.points
    return frozenset(max(1, round(steps * k / points)) for k in range(1, points + 1))
