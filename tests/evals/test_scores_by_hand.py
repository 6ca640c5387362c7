"""What no benchmark's file brings, by hand, in fp64: the trainer's stories, alignment noise, word vectors' figures."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lst.data.shards import open_dataset
from lst.data.vocab import Vocabulary
from lst.evals import item_set
from lst.evals.choice_metrics import choice_metrics
from lst.evals.choices import ChoiceOptions, score_choices
from lst.evals.item_set import open_item_set
from lst.evals.make_items import prepare_items
from lst.evals.scoring import Scorer
from lst.evals.stories import story_items
from lst.evals.unit_probe import Occurrence, word_metrics
from lst.model import Batch
from tests.evals.item_files import write_lines
from tests.evals.known_model import BigramModel
from tests.train.tiny_run import SPEECH_VOCAB, TEXT_VOCAB, tiny_config

VOCABULARY = Vocabulary(text=TEXT_VOCAB, speech=SPEECH_VOCAB)


def test_stories_by_hand(tiny_data: Path) -> None:
    """Each row of the data set's stories: S->S and T->T, the right ending first, then those of its column, four in all."""
    dataset, model = open_dataset(tiny_data), BigramModel(VOCABULARY, seed=2)
    scorer = Scorer(model, tiny_config("baseline", tiny_data), device=torch.device("cpu"), dtype="float64")  # type: ignore[arg-type]
    records = score_choices(scorer, story_items(dataset, count=99, choices=4, seed=0), ChoiceOptions(score="loglik_sum"))
    rows = {row["id"]: row for row in dataset.stories.to_pylist()}
    assert len(records) == len(rows) * 2 * 2
    right: dict[tuple[str, str], list[bool]] = {}
    for record in records:
        row, column = rows[record["item"]], record["task"].removeprefix("story_")
        if record["direction"] == "S->S":
            parts = [row["prompt_speech"], row["right_speech"], *row[f"{column}_speech"]]
            prompt, *endings = ([TEXT_VOCAB + token for token in part] for part in parts)
        else:
            prompt, *endings = (dataset.tokenizer.encode(part) for part in [row["prompt"], row["right"], *row[column]])
        sums = [-model.nats([int(i) for i in (prompt[-1], *ending)]) for ending in endings]
        assert record["scores"] == pytest.approx(sums, abs=1e-6, rel=1e-12)
        right.setdefault((record["task"], record["direction"]), []).append(sums[0] > max(sums[1:]))
    found = {(m.task, m.direction): m.value for m in choice_metrics(records) if m.metric == "accuracy"}
    assert found == pytest.approx({key: np.mean(values) for key, values in right.items()}, abs=1e-12)


class CountingModel(nn.Module):
    """Of u closed units that a position sees, P(7) = 1 / (u + 1) and P(8) = u / (u + 1): scores tell where patches end."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(20, VOCABULARY.size, bias=False, dtype=torch.float64)
        self.head.weight.data.fill_(-60.0)
        for u in range(1, 20):
            self.head.weight.data[[TEXT_VOCAB + 7, TEXT_VOCAB + 8], u] = torch.tensor([1 / (u + 1), u / (u + 1)]).double().log()

    def hidden(self, batch: Batch) -> torch.Tensor:
        return nn.functional.one_hot(batch.visible_BT, 20).double()

    def forward(self, batch: Batch, read: Callable[..., Any]) -> Any:
        return read(self.hidden(batch), self.head)


@pytest.mark.parametrize(
    ("noise", "seen"),
    [
        # BOS <s> |p p p |e e |e e)         closed when each e is asked for, BOS and <s> among them: behind the prompt's word 3,
        #  1   2   2 2 3   3 4  4           in the ending's word 3, behind it 4, in the silence that is cut short 4
        ((0, 0), (3, 3, 4, 4)),
        # BOS <s> |p |p p |e |e e |e)       each border a frame later, the prompt's end stays: silences of a frame before both
        #  1   2   3  3 4  5  5 6           words, the ending's own silence a frame shorter
        ((40, 40), (4, 5, 5, 6)),
    ],
)
def test_alignment_noise_by_hand(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noise: tuple[int, int], seen: tuple[int, ...]
) -> None:
    """A word of three frames; a word of two and a silence of two. 40 ms are a frame, here always to the later side."""
    monkeypatch.setattr(item_set, "frame_moves", lambda starts, frames, _: np.ones(frames + 1, np.int64))
    prompt = {"text": "ab", "speech_tokens": [1, 2, 3], "words": [[0, 2]]}
    endings = [{"text": "ab", "speech_tokens": [token] * 4, "words": [[0, 1]]} for token in (7, 8)]
    lines = [{"prompt": prompt, "endings": endings, "label": 1}]
    prepare_items({"eval": str(write_lines(tmp_path / "noise.jsonl", lines)), "out": str(tmp_path / "set")})
    config = tiny_config("lst_aligned", tiny_data)
    scorer = Scorer(CountingModel(), config, device=torch.device("cpu"), dtype="float64")  # type: ignore[arg-type]
    items = open_item_set(str(tmp_path / "set")).choices("S->S", open_dataset(tiny_data).tokenizer, noise=noise)
    (record,) = score_choices(scorer, items, ChoiceOptions())
    expected = [sum(math.log(1 / (u + 1)) for u in seen), sum(math.log(u / (u + 1)) for u in seen)]
    assert record["loglik_sum"] == pytest.approx(expected, abs=1e-6)
    assert (record["correct"], record["conditional"], record["patching"]) == (True, True, "aligned")


def test_word_vectors_figures_by_hand() -> None:
    """Words x at (2, 0) and (0, 2), y at (-2, 0) and (-4, 0) under `patch`: the mean vector is (-1, 1/2).

    As they are: cosines within x 0, within y 1; between -1, -1, 0, 0. Silhouettes (2 - 1) / 2, (1 - 1) / 1, twice
    (3/2 - 0) / (3/2). `global` is `patch` with (5, 5) added: after the mean is taken away it is the same.
    """
    places = [(2, 0), (0, 2), (-2, 0), (-4, 0)]
    shown = [
        Occurrence(word, f"0/{n}", 1, {"patch": np.array(at, float), "global": np.array(at, float) + 5})
        for n, (word, at) in enumerate(zip("xxyy", places, strict=True))
    ]
    found = {name: value for name, (value, n) in word_metrics(shown).items() if n == 4}
    assert [found[f"patch_{name}"] for name in ("cosine_within", "cosine_between", "silhouette")] == pytest.approx(
        [0.5, -0.5, 0.625], abs=1e-12
    )
    # centred: (3, -.5), (1, 1.5), (-1, -.5), (-3, -.5), of squared lengths 9.25, 3.25, 1.25, 9.25
    a, b, c, d = 9.25**0.5, 3.25**0.5, 1.25**0.5, 9.25**0.5
    within_x, within_y = (3 - 0.75) / (a * b), (3 + 0.25) / (c * d)
    ac, ad, bc, bd = (-3 + 0.25) / (a * c), (-9 + 0.25) / (a * d), (-1 - 0.75) / (b * c), (-3 - 0.75) / (b * d)
    nearer = [
        (1 - within_x, 1 - (ac + ad) / 2), (1 - within_x, 1 - (bc + bd) / 2),
        (1 - within_y, 1 - (ac + bc) / 2), (1 - within_y, 1 - (ad + bd) / 2),
    ]  # fmt: skip
    silhouette = sum((far - near) / max(near, far) for near, far in nearer) / 4
    for place in ("patch", "global"):
        assert found[f"{place}_cosine_within_centred"] == pytest.approx((within_x + within_y) / 2, abs=1e-12)
        assert found[f"{place}_cosine_between_centred"] == pytest.approx((ac + ad + bc + bd) / 4, abs=1e-12)
        assert found[f"{place}_silhouette_centred"] == pytest.approx(silhouette, abs=1e-12)
