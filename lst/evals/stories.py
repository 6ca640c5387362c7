"""Story completion on the data set's own items: is the right ending of a spoken or written story more probable than a wrong one?

An item has a prompt, its right ending and wrong ones: `story_elsewhere` takes them from other stories, `story_later` from
later in the same story (harder). S->S scores speech, T->T text. How endings are scored and compared: lst.evals.choices.

These items come from the data set; they are no published benchmark.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from lst.config import Patching
from lst.data.interleave import Segment
from lst.data.shards import Dataset
from lst.evals.choices import ChoiceItem

TASKS = {"story_elsewhere": "elsewhere", "story_later": "later"}  # task -> column of its wrong endings

log = logging.getLogger(__name__)


def story_items(dataset: Dataset, *, count: int, choices: int, seed: int, speech: bool = True) -> list[ChoiceItem]:
    """At most `count` items of the data set (drawn by `seed`), as text and, with `speech`, spoken; each in both tasks.

    An item with too few wrong endings for `choices`, or with an empty ending, is left out of that task and counted in the
    log. No stories in the data set give no items.
    """
    if not dataset.has_stories or not count:
        return []
    table = dataset.stories
    generator = np.random.Generator(np.random.Philox(key=[seed, 0]))
    rows = sorted(int(i) for i in generator.permutation(table.num_rows)[:count])
    items: list[ChoiceItem] = []
    for row in (table.slice(i, 1).to_pylist()[0] for i in rows):
        for task, column in TASKS.items():
            texts = [row["prompt"], row["right"], *row[column][: choices - 1]]
            spoken = [row["prompt_speech"], row["right_speech"], *row[f"{column}_speech"][: choices - 1]]
            if speech:
                items.append(_item(task, row["id"], "speech", spoken))
            sizes = tuple(len(text.encode()) for text in texts[1:])
            items.append(_item(task, row["id"], "text", [dataset.tokenizer.encode(text) for text in texts], sizes))
    whole = [item for item in items if len(item.endings) == choices and all(len(e.tokens) for e in item.endings)]
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


def _item(task: str, name: str, modality: str, parts: Sequence[Sequence[int]], sizes: tuple[int, ...] = ()) -> ChoiceItem:
    prompt, *endings = (Segment(modality, np.asarray(part, np.int64)) for part in parts)
    direction = "S->S" if modality == "speech" else "T->T"
    return ChoiceItem(task=task, direction=direction, item=name, prompt=prompt, endings=tuple(endings), ending_bytes=sizes)
