"""Each benchmark from its own file to its accuracy, against log-likelihoods summed by hand from a table, in fp64."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from lst.data.shards import open_dataset
from lst.data.vocab import Vocabulary
from lst.evals import make_items
from lst.evals.choice_metrics import choice_metrics
from lst.evals.choices import ChoiceOptions, score_choices
from lst.evals.item_set import open_item_set
from lst.evals.make_items import prepare_items
from lst.evals.scoring import Scorer
from tests.evals.item_files import write_lines, write_tone
from tests.evals.known_model import BigramModel
from tests.evals.test_make_items import CountingQuantizer
from tests.train.tiny_run import SPEECH_VOCAB, TEXT_VOCAB, tiny_config

VOCABULARY = Vocabulary(text=TEXT_VOCAB, speech=SPEECH_VOCAB)
Part = str | list[int]  # a text, or speech tokens


class Case(NamedTuple):
    """A benchmark's file, how it is prepared and asked, and what its items must be."""

    source: Path
    options: dict[str, str]
    direction: str
    items: list[tuple[Part | None, list[Part], int]]  # prompt, endings, the right one
    pairs: list[int]  # which pair each item is of


def hellaswag(folder: Path) -> Case:
    rows = [
        {"ind": i, "activity_label": "x", "ctx": c, "endings": e, "label": str(i + 1), "split_type": "y", "source_id": "z"}
        for i, (c, e) in enumerate([("ab cd", ["ef", "gh ij", "kl", "mn op"]), ("qr", ["st", "uv", "wx", "yz ab"])])
    ]
    items: list[Any] = [(r["ctx"], list(r["endings"]), i + 1) for i, r in enumerate(rows)]
    return Case(write_lines(folder / "val.jsonl", rows), {"format": "hellaswag"}, "T->T", items, [0, 1])


def storycloze(folder: Path) -> Case:
    head = "InputStoryid,InputSentence1,InputSentence2,InputSentence3,InputSentence4,RandomFifthSentenceQuiz1,"
    file = folder / "cloze.csv"
    file.write_text(head + "RandomFifthSentenceQuiz2,AnswerRightEnding\ns,ab,cd,ef,gh,ij kl,mn,2\nt,a,b,c,d,ef,gh,1\n")
    return Case(file, {}, "T->T", [("ab cd ef gh", ["ij kl", "mn"], 1), ("a b c d", ["ef", "gh"], 0)], [0, 1])


def spoken_cloze(folder: Path) -> Case:
    parts = [
        {"text": "ab cd", "speech_tokens": [3, 3, 9]},
        {"text": "ef", "speech_tokens": [4]},
        {"text": "g", "speech_tokens": [7, 1]},
    ]
    lines = [{"prompt": parts[0], "endings": parts[1:], "label": 1}]
    return Case(write_lines(folder / "spoken.jsonl", lines), {}, "S->S", [([3, 3, 9], [[4], [7, 1]], 1)], [0])


def read_then_spoken(folder: Path) -> Case:
    return spoken_cloze(folder)._replace(direction="T->S", items=[("ab cd", [[4], [7, 1]], 1)])


def heard_then_written(folder: Path) -> Case:
    return spoken_cloze(folder)._replace(direction="S->T", items=[([3, 3, 9], ["ef", "g"], 1)])


def swuggy(folder: Path) -> Case:
    rows = ["id,filename,voice,frequency,word,phones,length,correct"]
    speech = {"w0A": [1, 2], "n0A": [5, 6, 7], "w0B": [8], "n0B": [9, 1], "w1A": [3, 4, 4], "n1A": [3, 4, 4]}
    rows += [f"{n[1]},{n},{n[2]},30,x,x,1,{int(n[0] == 'w')}" for n in speech]
    (folder / "gold.csv").write_text("\n".join(rows) + "\n")
    (folder / "tokens.txt").write_text("".join(f"{n}\t{','.join(map(str, t))}\n" for n, t in speech.items()))
    items: list[Any] = [(None, [speech[f"w{n}"], speech[f"n{n}"]], 0) for n in ("0A", "0B", "1A")]
    return Case(folder / "gold.csv", {"tokens": str(folder / "tokens.txt")}, "S->S", items, [0, 0, 1])


def sblimp(folder: Path) -> Case:
    (folder / "gold.csv").write_text(
        "id,filename,voice,type,subtype,transcription,correct\n1,x,A,agreement,plural,cats sleeps,0\n1,y,A,agreement,plural,z,1\n"
    )
    write_lines(folder / "tokens.jsonl", [{"id": "x", "speech_tokens": [1, 2]}, {"id": "y", "speech_tokens": [2, 2, 30]}])
    options = {"tokens": str(folder / "tokens.jsonl")}
    return Case(folder / "gold.csv", options, "S->S", [(None, [[1, 2], [2, 2, 30]], 1)], [0])


def salmon(folder: Path) -> Case:
    for number, lengths in ((0, (0.08, 0.16)), (1, (0.2, 0.12))):
        for which, seconds in zip(("a", "b"), lengths, strict=True):
            write_tone(folder / "bench" / "gender" / f"sample_{number}_{which}.wav", seconds)
    items: list[Any] = [(None, [[7] * 2, [7] * 4], 0), (None, [[7] * 5, [7] * 3], 0)]  # the stand-in says 7 every 40 ms
    return Case(folder / "bench", {}, "S->S", items, [0, 1])


def slamkit(folder: Path) -> Case:
    for kind, text in (("correct", "ab cd"), ("incorrect", "ef"), ("mutual", "gh ij")):
        (folder / "slam").mkdir(exist_ok=True)
        (folder / "slam" / f"7_{kind}.txt").write_text(text)
    return Case(folder / "slam", {"format": "slamkit"}, "T->T", [("gh ij", ["ab cd", "ef"], 0)], [0])


CASES: list[Callable[[Path], Case]] = [
    hellaswag, storycloze, spoken_cloze, read_then_spoken, heard_then_written, swuggy, sblimp, salmon, slamkit,
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda make: make.__name__)
def test_a_benchmarks_scores_and_accuracy_are_those_by_hand(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Callable[[Path], Case]
) -> None:
    monkeypatch.setattr(make_items, "_quantizer", lambda _: CountingQuantizer())
    source, options, direction, items, pairs = case(tmp_path)
    prepare_items({"eval": str(source), "out": str(tmp_path / "set"), **options})
    tokenizer = open_dataset(tiny_data).tokenizer
    model = BigramModel(VOCABULARY, seed=4)
    scorer = Scorer(model, tiny_config("lst_static", tiny_data), device=torch.device("cpu"), dtype="float64")  # type: ignore[arg-type]
    records = score_choices(scorer, open_item_set(str(tmp_path / "set")).choices(direction, tokenizer), ChoiceOptions())

    def ids(part: Part) -> list[int]:
        return [int(t) for t in tokenizer.encode(part)] if isinstance(part, str) else [TEXT_VOCAB + t for t in part]

    assert len(records) == len(items)
    shares: dict[int, list[float]] = {}
    right_answers = []
    for record, (prompt, endings, right), pair in zip(records, items, pairs, strict=True):
        marker = VOCABULARY.speech_marker if direction.endswith("S") else VOCABULARY.text_marker
        crossing = prompt is not None and isinstance(prompt, str) != isinstance(endings[0], str)
        before = marker if prompt is None or crossing else ids(prompt)[-1]
        sums = [math.fsum(float(model.log_p[a, b]) for a, b in zip([before, *ids(e)], ids(e), strict=False)) for e in endings]
        assert record["loglik_sum"] == pytest.approx(sums, abs=1e-6, rel=1e-12)
        assert record["ending_tokens"] == [len(ids(e)) for e in endings]
        scores = [s / len(ids(e)) for s, e in zip(sums, endings, strict=True)]
        assert record["scores"] == pytest.approx(scores, abs=1e-6, rel=1e-12)
        others = [s for i, s in enumerate(scores) if i != right]
        tie = any(endings[i] == endings[right] for i in range(len(endings)) if i != right)
        assert (record["right"], record["tie"]) == (right, tie)
        right_answers.append(not tie and scores[right] > max(others))
        shares.setdefault(pair, []).append(0.5 if tie else float(right_answers[-1]))
    found = {m.metric: m.value for m in choice_metrics(records) if "/" not in m.task}
    assert found["accuracy"] == pytest.approx(np.mean(right_answers), abs=1e-12)
    assert found["accuracy_ties_half"] == pytest.approx(np.mean([np.mean(s) for s in shares.values()]), abs=1e-12)
    assert found["chance"] == pytest.approx(1 / len(items[0][1]), abs=1e-12)
    assert json.dumps(records, allow_nan=False)
