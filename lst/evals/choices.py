"""Which ending does a model find most probable? Items of two or more endings, scored in one pass in every way that is usual.

    direction   document (| = the join)                           scored
    S->S        BOS <s> p p p | e e                               the ending's speech tokens, given all before them
    T->T        BOS <t> p p p | e e                               the ending's text tokens
    T->S        BOS <t> p p p <s> | e e                           its speech tokens: the marker is given, not scored
    S->T        BOS <s> p p p <t> | e e                           its text tokens
    no prompt   BOS <s> | e e e                                   the whole sequence (pairs of words or sentences)

Prompt and endings are tokenised apart and then joined, so that all endings of an item share the prompt's ids (asserted). The
ending without the prompt, BOS <s> | e e, is scored in the same pass: what it gives is the unconditional log-likelihood.
docs/evaluation.md defines each score. Not here: where items come from (lst.evals.stories, lst.evals.item_set).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lst.checks import require_choice
from lst.config import Patching
from lst.data.interleave import Document, Segment
from lst.data.pack import PackedRow
from lst.data.vocab import FRAMES_PER_SECOND
from lst.errors import ConfigError, DataError
from lst.evals.scoring import Scored, Scorer

SCORES = ("loglik_sum", "loglik_per_token", "loglik_per_second", "loglik_per_byte", "loglik_gain")
DIRECTIONS = ("S->S", "T->T", "S->T", "T->S")
JOINS = ("straddle", "closed")
CLOSE = {"float64": 1e-10, "float32": 1e-4, "bfloat16": 1e-2}
"""Relative to log-likelihoods: scores that differ by less are too near for the arithmetic, and are computed again one by one."""


@dataclass(frozen=True, kw_only=True)
class ChoiceOptions:
    """How items are scored. All of it stands in every record."""

    score: str = "loglik_per_token"  # the score that decides: one of SCORES
    join: str = "straddle"  # straddle | closed: whether a patch may reach over the join of prompt and ending (S->S)
    context_tokens: int = 0  # ids of the longest sequence of an item, BOS and markers included; 0 = no limit

    def validate(self) -> None:
        require_choice("score", self.score, SCORES)
        require_choice("join", self.join, JOINS)
        if self.context_tokens < 0 or 0 < self.context_tokens < 4:
            raise ConfigError(f"context_tokens={self.context_tokens} is no length; give 4 or more, or 0 for no limit.")


@dataclass(frozen=True, kw_only=True)
class ChoiceItem:
    """One choice in one direction. Segments are numbered as their tokenizers number them, not in pieces of arm `bpe`."""

    task: str
    direction: str
    item: str  # its id
    endings: tuple[Segment, ...]
    prompt: Segment | None = None
    right: int = 0  # which ending is right
    group: str = ""  # a part of the task whose accuracy is shown apart
    pair: str = ""  # items of one pair (the same words in several voices) are averaged first; "" = none
    ending_bytes: tuple[int, ...] = ()  # of the endings' text in UTF-8, where they are text


class _Sequence(NamedTuple):
    """What is scored: one ending, with its prompt or alone."""

    document: Document
    first: int  # position whose target is the ending's first id
    ids: int  # ids of the ending

    @classmethod
    def of(cls, scorer: Scorer, prompt: Segment | None, ending: Segment, join: str) -> _Sequence:
        parts = scorer.apart([ending] if prompt is None else [prompt, ending])
        before, ids = sum(len(p.tokens) for p in parts[:-1]), len(parts[-1].tokens)
        if prompt is not None and prompt.modality != ending.modality:
            return cls(parts, 2 + before, ids)  # at the ending's marker, behind BOS, the prompt's marker and the prompt
        whole = [_joined(*parts)] if prompt is not None and join == "straddle" else parts
        return cls(whole, 1 + before, ids)


@dataclass
class _Pass:
    """The sequences of a pass, each once: equal endings of equal prompts get equal scores, to the bit."""

    scorer: Scorer
    join: str
    places: dict[Any, int] = field(default_factory=dict)
    sequences: list[_Sequence] = field(default_factory=list)
    scored: list[Scored] = field(default_factory=list)

    def place(self, prompt: Segment | None, ending: Segment) -> int:
        key = (_key(prompt), _key(ending))
        if key not in self.places:
            self.places[key] = len(self.sequences)
            self.sequences.append(_Sequence.of(self.scorer, prompt, ending, self.join))
        return self.places[key]

    def run(self) -> None:
        self.scored = self._score(range(len(self.sequences)), alone=False)

    def again(self, places: Sequence[int]) -> None:
        """Score some sequences anew, each in a forward pass of its own."""
        for place, scored in zip(places, self._score(places, alone=True), strict=True):
            self.scored[place] = scored

    def logliks(self, places: Sequence[int]) -> list[float]:
        """Of each sequence's ending, summed over its ids in fp64."""
        chosen = [(self.scored[i].nats_T, self.sequences[i]) for i in places]
        return [-float(nats_T[s.first : s.first + s.ids].sum()) for nats_T, s in chosen]

    def row(self, place: int) -> PackedRow:
        return self.scored[place].row

    def _score(self, places: Sequence[int], *, alone: bool) -> list[Scored]:
        chosen = [self.sequences[i] for i in places]
        return self.scorer.score([s.document for s in chosen], first=[s.first for s in chosen], alone=alone)


class _Places(NamedTuple):
    """Where an item's sequences stand in the pass."""

    given: list[int]  # of each ending after the prompt
    alone: list[int]  # of each ending without it; empty for an item without prompt
    removed: int  # ids of the prompt that were cut off


def score_choices(scorer: Scorer, items: Sequence[ChoiceItem], options: ChoiceOptions) -> list[dict[str, Any]]:
    """A record of each item (docs/evaluation.md), in the items' order.

    Batches, padding and the order of items change no score by more than rounding, and no decision: where the deciding scores
    of the right and the best wrong ending are nearer than rounding could tell (CLOSE), the item is scored again with every
    sequence in a forward pass of its own. Raises as `check_choices`.
    """
    check_choices(items, options)
    run, places = _Pass(scorer, options.join), []
    for item in items:
        prompt, removed = _shortened(item, options.context_tokens)
        given = [run.place(prompt, ending) for ending in item.endings]
        alone = [] if prompt is None else [run.place(None, ending) for ending in item.endings]
        places.append(_Places(given, alone, removed))
    run.run()
    for item, at in zip(items, places, strict=True):
        _require_one_prompt(item, [run.row(i).ids[: run.sequences[i].first + 1] for i in at.given])
    near = {
        i for item, at in zip(items, places, strict=True) if _is_close(run, item, at, options) for i in (*at.given, *at.alone)
    }
    if near:
        run.again(sorted(near))
    return [_record(run, item, at, options) for item, at in zip(items, places, strict=True)]


def check_choices(items: Sequence[ChoiceItem], options: ChoiceOptions) -> None:
    """Raises ConfigError where the deciding score is not defined for an item or its context does not fit, DataError where one
    of its parts has no token: some texts have none in a tokenizer that drops characters."""
    options.validate()
    for item in items:
        for name, part in (("prompt", item.prompt), *((f"ending {i}", ending) for i, ending in enumerate(item.endings))):
            if part is not None and not len(part.tokens):
                raise DataError(
                    f"item '{item.item}' of {item.task} {item.direction}: its {name} has no token in the data set's tokenizer; "
                    "prepare the items without it."
                )
        _require_score(item, options.score)
        _shortened(item, options.context_tokens)


def decide(scores: Sequence[float], right: int) -> tuple[bool, bool]:
    """(correct, tie): correct if the right ending's score is strictly the highest; a tie with another at the top is wrong."""
    best_other = max(score for i, score in enumerate(scores) if i != right)
    return scores[right] > best_other, scores[right] == best_other


def score_table(
    direction: str, sums: Sequence[float], *, tokens: Sequence[int], sizes: Sequence[int] = (), alone: Sequence[float] = ()
) -> dict[str, list[float]]:
    """Every score that is defined, of each ending: from its log-likelihood `sums`, its `tokens` by content, the bytes of its
    text (`sizes`) and its log-likelihood without the prompt (`alone`), which may be missing."""
    table = {"loglik_sum": list(sums), "loglik_per_token": [s / n for s, n in zip(sums, tokens, strict=True)]}
    if direction.endswith("S"):
        table["loglik_per_second"] = [s * FRAMES_PER_SECOND / n for s, n in zip(sums, tokens, strict=True)]
    elif sizes:
        table["loglik_per_byte"] = [s / n for s, n in zip(sums, sizes, strict=True)]
    if alone:
        table["loglik_gain"] = [s - a for s, a in zip(sums, alone, strict=True)]
    return table


def record_scores(record: Mapping[str, Any]) -> dict[str, list[float]]:
    """The table of an item's record."""
    return score_table(
        record["direction"],
        record["loglik_sum"],
        tokens=record["ending_tokens"],
        sizes=record.get("ending_bytes", ()),
        alone=record.get("loglik_unconditional", ()),
    )


def _table(item: ChoiceItem, sums: Sequence[float], alone: Sequence[float]) -> dict[str, list[float]]:
    tokens = [len(e.tokens) for e in item.endings]
    return score_table(item.direction, sums, tokens=tokens, sizes=item.ending_bytes, alone=alone)


def _require_score(item: ChoiceItem, score: str) -> None:
    ones = [1.0] * len(item.endings)
    defined = _table(item, ones, ones if item.prompt else ())
    if score not in defined:
        raise ConfigError(
            f"score={score} is not defined for item '{item.item}' of {item.task} {item.direction}; "
            f"choose one of {', '.join(defined)}, or leave {item.direction} out of directions=."
        )


def _shortened(item: ChoiceItem, context_tokens: int) -> tuple[Segment | None, int]:
    """The prompt without its first ids, so that BOS, markers, prompt and the longest ending fit; how many went.

    It is the same for all endings. Raises ConfigError where an ending alone does not fit.
    """
    prompt = item.prompt
    if not context_tokens:
        return prompt, 0
    longest = max(len(e.tokens) for e in item.endings)
    crossing = prompt is not None and prompt.modality != item.endings[0].modality
    room = context_tokens - 2 - crossing - longest
    if room < (prompt is not None):
        raise ConfigError(
            f"context_tokens={context_tokens} has no room for an ending of {longest} tokens (item '{item.item}' of {item.task}); "
            "give more, or 0 for no limit."
        )
    if prompt is None or len(prompt.tokens) <= room:
        return prompt, 0
    cut = len(prompt.tokens) - room
    words = prompt.words
    if words is not None:
        words = np.maximum(words[words[:, 1] >= cut] - cut, 0)
    return Segment(prompt.modality, prompt.tokens[cut:], words), cut


def _joined(prompt: Segment, ending: Segment) -> Segment:
    """One span: tokens one after the other, and the ending's words moved behind the prompt's."""
    words = frames = None
    if prompt.words is not None and ending.words is not None:
        words = np.concatenate([prompt.words, ending.words + len(prompt.tokens)])
    if prompt.frames is not None and ending.frames is not None:
        frames = np.concatenate([prompt.frames, ending.frames])
    return Segment(prompt.modality, np.concatenate([prompt.tokens, ending.tokens]), words, frames)


def _key(segment: Segment | None) -> Any:
    if segment is None:
        return None
    words = None if segment.words is None else segment.words.tobytes()
    return segment.modality, np.asarray(segment.tokens, np.int64).tobytes(), words


def _require_one_prompt(item: ChoiceItem, prompts: Sequence[NDArray[np.int64]]) -> None:
    same = all(np.array_equal(ids, prompts[0]) for ids in prompts)
    assert same, f"the prompt's ids of item '{item.item}' of {item.task} depend on the ending"


def _is_close(run: _Pass, item: ChoiceItem, at: _Places, options: ChoiceOptions) -> bool:
    """Whether rounding could turn the decision: the two scores lie nearer than CLOSE of what they were summed from."""
    sums, alone = run.logliks(at.given), run.logliks(at.alone)
    scores = _table(item, sums, alone)[options.score]
    summed = _table(item, [abs(s) for s in sums], [-abs(a) for a in alone])[options.score]
    doubt = [CLOSE[run.scorer.dtype] * s for s in summed]
    right = item.right
    return any(abs(scores[right] - scores[i]) <= doubt[right] + doubt[i] for i in range(len(sums)) if i != right)


def _record(run: _Pass, item: ChoiceItem, at: _Places, options: ChoiceOptions) -> dict[str, Any]:
    sums, alone = run.logliks(at.given), run.logliks(at.alone)
    scores = _table(item, sums, alone)[options.score]
    correct, tie = decide(scores, item.right)
    rows, firsts = [run.row(i) for i in at.given], [run.sequences[i].first for i in at.given]
    given, unit = rows[0].content[: firsts[0] + 1], rows[0].unit
    tokens = [len(e.tokens) for e in item.endings]
    kind, speech = run.scorer.kind, any(s.modality == "speech" for s in (*item.endings, item.prompt) if s)
    record = {
        "task": item.task,
        "direction": item.direction,
        "item": item.item,
        "score": options.score,
        "scores": scores,
        "right": item.right,
        "correct": correct,
        "tie": tie,
        "loglik_sum": sums,
        "ending_tokens": tokens,
        "ending_units": [row.units - int(row.unit[first]) - 1 for row, first in zip(rows, firsts, strict=True)],
        "context_tokens": int(given.sum()),
        "context_units": int(unit[firsts[0]]) + 1,
        "truncated": at.removed,
        "duplicates": len(tokens) - len(set(at.given)),
        "longer_than_trained": max(row.units for row in rows) > run.scorer.config.data.seq_len_units,
        "join": options.join,
        "patching": str(kind) if speech else "",
        "conditional": speech and kind is Patching.ALIGNED,
    }
    optional = {"loglik_unconditional": alone, "ending_bytes": list(item.ending_bytes), "group": item.group, "pair": item.pair}
    return record | {name: value for name, value in optional.items() if value}
