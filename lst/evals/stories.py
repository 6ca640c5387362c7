"""Story completion: does the model find the right ending of a spoken or written story more probable than a wrong one?

An item has a prompt, its right ending and wrong ones: `story_elsewhere` takes them from other stories, `story_later` from
later in the same story (harder). S->S scores speech, T->T text. Prompt and ending are tokenised apart and joined in one
segment, so that all endings of an item share the prompt's tokens. The score of an ending is its log-likelihood per token;
an item is right if the right ending's score is strictly the highest: a tie is wrong, and counted.

These items come from the data set; they are no published benchmark.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lst.config import Patching
from lst.data.shards import Dataset
from lst.evals.heldout import Metric
from lst.evals.scoring import Scorer

TASKS = {"story_elsewhere": "elsewhere", "story_later": "later"}  # task -> column of its wrong endings

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StoryItem:
    """One choice in one modality."""

    task: str
    modality: str  # speech | text
    item: str  # its id
    prompt: NDArray[np.int64]
    endings: list[NDArray[np.int64]]  # the right one first

    @property
    def direction(self) -> str:
        return "S->S" if self.modality == "speech" else "T->T"


def story_metrics(scorer: Scorer, items: Sequence[StoryItem]) -> tuple[list[Metric], list[dict[str, Any]]]:
    """Accuracy and chance of each task and direction, and a record of each item."""
    endings = list(_unique((item.modality, item.item, e) for item in items for e in _keys(item)))
    by_key = {(item.modality, item.item, key): (item.prompt, e) for item in items for key, e in _keys(item).items()}
    scores = dict(zip(endings, _ending_scores(scorer, [(k[0], *by_key[k]) for k in endings]), strict=True))
    records = []
    for item in items:
        of_item = [scores[item.modality, item.item, key] for key in _keys(item)]
        correct = all(of_item[0] > other for other in of_item[1:])
        records.append({"task": item.task, "direction": item.direction, "item": item.item, "scores": of_item, "correct": correct})
    return _accuracies(items, records), records


def story_items(dataset: Dataset, *, count: int, choices: int, seed: int, speech: bool = True) -> list[StoryItem]:
    """At most `count` items of the data set (drawn by `seed`), as text and, with `speech`, spoken; each in both tasks.

    An item with too few wrong endings for `choices`, or with an empty ending, is left out of that task and counted in the
    log. No stories in the data set give no items.
    """
    if not dataset.has_stories or not count:
        return []
    table = dataset.stories
    generator = np.random.Generator(np.random.Philox(key=[seed, 0]))
    rows = sorted(int(i) for i in generator.permutation(table.num_rows)[:count])
    items: list[StoryItem] = []
    for row in (table.slice(i, 1).to_pylist()[0] for i in rows):
        for task, column in TASKS.items():
            text = [np.asarray(p, np.int64) for p in map(dataset.tokenizer.encode, (row["prompt"], row["right"], *row[column]))]
            spoken = [np.asarray(p, np.int64) for p in (row["prompt_speech"], row["right_speech"], *row[f"{column}_speech"])]
            for modality, (prompt, *endings) in (("speech", spoken), ("text", text))[0 if speech else 1 :]:
                items.append(StoryItem(task=task, modality=modality, item=row["id"], prompt=prompt, endings=endings[:choices]))
    whole = [item for item in items if len(item.endings) == choices and all(len(e) for e in item.endings)]
    if len(whole) < len(items):
        log.warning(
            "left out %d of %d story choices: fewer than %d endings, or an empty one",
            len(items) - len(whole),
            len(items),
            choices,
        )
    return whole


def can_speak(kind: Patching) -> bool:
    """Whether spoken items can be patched by `kind`: they have no word spans, which aligned patches need."""
    return kind is not Patching.ALIGNED


def _keys(item: StoryItem) -> dict[str, NDArray[np.int64]]:
    """The item's endings by a name that tasks share: the right ending is scored once for both."""
    return {("right" if i == 0 else f"{item.task}/{i}"): ending for i, ending in enumerate(item.endings)}


def _unique(keys: Iterator[tuple[str, str, str]]) -> Iterator[tuple[str, str, str]]:
    return iter(dict.fromkeys(keys))


def _ending_scores(scorer: Scorer, sequences: list[tuple[str, NDArray[np.int64], NDArray[np.int64]]]) -> list[float]:
    """Log-likelihood per token of each (modality, prompt, ending)'s ending, summed in fp64; speech tokens by content.

    BOS  <s>  p0  p1  e0  e1     prompt of 2 and ending of 2: e0 is predicted at position 3 = 1 + len(prompt)
    """
    joined = [scorer.joined(modality, (prompt, ending)) for modality, prompt, ending in sequences]
    firsts = [1 + ids[0] for _, ids in joined]
    prompts: dict[tuple[str, bytes], NDArray[np.int64]] = {}
    scores = []
    for i, scored in enumerate(scorer.score([[segment] for segment, _ in joined], first=firsts)):
        modality, prompt, ending = sequences[i]
        ids = scored.row.ids[2 : 1 + firsts[i]]
        assert np.array_equal(ids, prompts.setdefault((modality, prompt.tobytes()), ids)), "a prompt's ids depend on its ending"
        scores.append(-float(scored.nats_T[firsts[i] : firsts[i] + joined[i][1][1]].sum()) / len(ending))
    return scores


def _accuracies(items: Sequence[StoryItem], records: Sequence[dict[str, Any]]) -> list[Metric]:
    metrics = []
    for task, direction in dict.fromkeys((i.task, i.direction) for i in items):
        group = [(i, r) for i, r in zip(items, records, strict=True) if (i.task, i.direction) == (task, direction)]
        ties = sum(max(r["scores"][1:]) == r["scores"][0] for _, r in group)
        if ties:
            log.warning("%s %s: %d of %d items tie at the top and count as wrong", task, direction, ties, len(group))
        values = {
            "accuracy": sum(r["correct"] for _, r in group) / len(group),
            "chance": sum(1 / len(i.endings) for i, _ in group) / len(group),
        }
        metrics += [Metric(task=task, direction=direction, metric=m, value=v, n_items=len(group)) for m, v in values.items()]
    return metrics
