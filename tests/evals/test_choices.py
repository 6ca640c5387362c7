"""Scores of endings against a table of known probabilities, by hand, in fp64; and what may not change them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lst.config import Patching, RunConfig
from lst.data.interleave import Segment
from lst.data.speech_bpe import run_pieces
from lst.data.vocab import BOS, Vocabulary
from lst.errors import ConfigError, DataError
from lst.evals.choice_metrics import choice_metrics
from lst.evals.choices import SCORES, ChoiceItem, ChoiceOptions, record_scores, score_choices
from lst.evals.scoring import Scorer
from lst.model import Batch, build_model
from tests.evals.known_model import BigramModel
from tests.train.tiny_run import SPEECH_VOCAB, TEXT_VOCAB, tiny_config

VOCABULARY = Vocabulary(text=TEXT_VOCAB, speech=SPEECH_VOCAB)
MARK = {"text": VOCABULARY.text_marker, "speech": VOCABULARY.speech_marker}
OFFSET = {"text": 0, "speech": TEXT_VOCAB}
NAMES = {"S": "speech", "T": "text"}
DEVICE = torch.device("cpu")


@pytest.fixture
def config(tiny_data: Path) -> RunConfig:
    return tiny_config("lst_static", tiny_data)


@pytest.fixture
def known(config: RunConfig) -> Scorer:
    return Scorer(BigramModel(VOCABULARY), config, device=DEVICE, dtype="float64")  # type: ignore[arg-type]


def segment(modality: str, values: list[int], words: list[tuple[int, int]] | None = None) -> Segment:
    return Segment(modality, np.array(values), None if words is None else np.array(words).reshape(-1, 2))


def choice(direction: str, prompt: list[int] | None, *endings: list[int], **fields: object) -> ChoiceItem:
    given, asked = (NAMES[d] for d in direction.split("->"))
    parts = tuple(segment(asked, e) for e in endings)
    whole = None if prompt is None else segment(given, prompt)
    sizes = tuple(range(3, 3 + len(parts))) if asked == "text" else ()
    values = {"task": "t", "item": "i", "ending_bytes": sizes} | fields
    return ChoiceItem(direction=direction, prompt=whole, endings=parts, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize("direction", ["S->S", "T->T", "S->T", "T->S"])
def test_every_score_is_its_formula(known: Scorer, direction: str) -> None:
    given, asked = (NAMES[d] for d in direction.split("->"))
    prompt, endings = [4, 5], ([7, 8, 9], [1])
    (record,) = score_choices(known, [choice(direction, prompt, *endings)], ChoiceOptions())
    model, at = known.model, OFFSET[asked]
    before = OFFSET[given] + 5 if given == asked else MARK[asked]
    sums = [-model.nats([before, *(at + t for t in e)]) for e in endings]
    alone = [-model.nats([MARK[asked], *(at + t for t in e)]) for e in endings]
    expected = {
        "loglik_sum": sums,
        "loglik_per_token": [sums[0] / 3, sums[1]],
        "loglik_per_second": [sums[0] / (3 / 25), sums[1] / (1 / 25)],
        "loglik_per_byte": [sums[0] / 3, sums[1] / 4],
        "loglik_gain": [sums[0] - alone[0], sums[1] - alone[1]],
    }
    expected.pop("loglik_per_byte" if asked == "speech" else "loglik_per_second")
    found = record_scores(record)
    assert list(found) == [s for s in SCORES if s in expected]
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, abs=1e-6, rel=1e-12)
    assert record["scores"] == found["loglik_per_token"]
    assert record["correct"] == (found["loglik_per_token"][0] > found["loglik_per_token"][1])
    assert record["context_tokens"] == (4 if given == asked else 5)


@pytest.mark.parametrize("score", SCORES)
def test_the_score_that_decides_is_the_option(known: Scorer, score: str) -> None:
    direction = "S->S" if score == "loglik_per_second" else "T->T"
    items = [choice(direction, [a, a + 1], [b], [b + 1, b, b + 2], item=f"{a}-{b}") for a in range(6) for b in range(6)]
    records = score_choices(known, items, ChoiceOptions(score=score))
    assert all(r["scores"] == record_scores(r)[score] and r["score"] == score for r in records)
    assert [r["correct"] for r in records] == [r["scores"][0] > r["scores"][1] for r in records]
    metrics = choice_metrics(records)
    values = {m.metric: m.value for m in metrics}
    assert values["accuracy"] == sum(r["correct"] for r in records) / 36
    assert {m.about["score"] for m in metrics} == {score}
    other = "loglik_sum" if score != "loglik_sum" else "loglik_per_token"
    assert values[f"accuracy_{other}"] == sum(record_scores(r)[other][0] > record_scores(r)[other][1] for r in records) / 36


def test_items_without_prompt_are_scored_whole_and_have_no_gain(known: Scorer) -> None:
    item = choice("S->S", None, [3, 4], [5])
    (record,) = score_choices(known, [item], ChoiceOptions(score="loglik_sum"))
    start = MARK["speech"]
    expected = [-known.model.nats([start, TEXT_VOCAB + 3, TEXT_VOCAB + 4]), -known.model.nats([start, TEXT_VOCAB + 5])]
    assert record["loglik_sum"] == pytest.approx(expected, abs=1e-6)
    assert (record["context_tokens"], "loglik_unconditional" in record) == (2, False)
    with pytest.raises(ConfigError, match=r"score=loglik_gain is not defined for item 'i' .* loglik_sum, loglik_per_token"):
        score_choices(known, [item], ChoiceOptions(score="loglik_gain"))


def test_the_right_ending_may_stand_anywhere(known: Scorer) -> None:
    endings = [[7], [8], [9], [10]]
    model = known.model
    best = min(range(4), key=lambda i: model.nats([5, *endings[i]]))
    records = score_choices(known, [choice("T->T", [5], *endings, right=i, item=str(i)) for i in range(4)], ChoiceOptions())
    assert [r["correct"] for r in records] == [i == best for i in range(4)]
    (chance,) = (m for m in choice_metrics(records) if m.metric == "chance")
    assert chance.value == 0.25


def test_tie_counts_as_wrong_and_equal_endings_as_duplicates(known: Scorer) -> None:
    records = score_choices(known, [choice("T->T", [4], [7, 8], [7, 8]), choice("T->T", [4], [7, 8], [7, 9])], ChoiceOptions())
    assert records[0]["scores"][0] == records[0]["scores"][1]
    assert [(r["tie"], r["duplicates"]) for r in records] == [(True, 1), (False, 0)]
    assert not records[0]["correct"]
    values = {m.metric: m.value for m in choice_metrics(records)}
    assert (values["ties"], values["duplicate_endings"]) == (1, 1)
    assert values["accuracy_ties_half"] == (0.5 + records[1]["correct"]) / 2


def test_voices_of_a_pair_are_averaged_before_pairs_are(known: Scorer) -> None:
    items = [choice("S->S", None, [a], [b], pair=p, item=f"{p}{a}") for p, a, b in (("x", 1, 2), ("x", 3, 4), ("y", 5, 6))]
    records = score_choices(known, items, ChoiceOptions())
    x, x2, y = (float(r["correct"]) for r in records)
    (found,) = (m for m in choice_metrics(records) if m.metric == "accuracy_ties_half")
    assert found.value == ((x + x2) / 2 + y) / 2


def test_groups_of_a_task_have_an_accuracy_each(known: Scorer) -> None:
    items = [choice("T->T", [4], [7 + i], [20], group="ab"[i % 2], item=str(i)) for i in range(5)]
    records = score_choices(known, items, ChoiceOptions())
    found = {m.task: (m.value, m.n_items) for m in choice_metrics(records) if m.metric == "accuracy"}
    correct = [r["correct"] for r in records]
    assert found == {"t": (sum(correct) / 5, 5), "t/a": (sum(correct[::2]) / 3, 3), "t/b": (sum(correct[1::2]) / 2, 2)}


def test_long_prompts_lose_their_beginning_alike_for_all_endings(known: Scorer) -> None:
    item = choice("T->T", [1, 2, 3, 4, 5], [7], [8, 9])
    whole, cut = (score_choices(known, [item], ChoiceOptions(context_tokens=n))[0] for n in (9, 7))
    assert (whole["truncated"], whole["context_tokens"]) == (0, 7)
    assert (cut["truncated"], cut["context_tokens"]) == (2, 5)  # BOS, marker and three tokens; the longest ending has two
    assert cut["loglik_sum"] == whole["loglik_sum"]  # the table looks one token back
    assert {m.metric: m.value for m in choice_metrics([cut])}["truncated"] == 1
    with pytest.raises(ConfigError, match=r"context_tokens=4 has no room for an ending of 2 tokens \(item 'i' of t\)"):
        score_choices(known, [item], ChoiceOptions(context_tokens=4))


def test_a_cut_prompt_keeps_the_words_that_are_left(tiny_data: Path) -> None:
    config = tiny_config("lst_aligned", tiny_data)
    scorer = Scorer(build_model(config), config, device=DEVICE)
    endings = (segment("speech", [7, 8], [(0, 1)]), segment("speech", [9], []))
    prompts = [segment("speech", [1, 2, 3, 4, 5, 6], [(0, 1), (2, 4)]), segment("speech", [4, 5, 6], [(0, 1)])]
    items = [ChoiceItem(task="t", direction="S->S", item="i", prompt=prompt, endings=endings) for prompt in prompts]
    records = score_choices(scorer, items, ChoiceOptions(context_tokens=7))
    assert [r["truncated"] for r in records] == [3, 0]
    assert records[0]["loglik_sum"] == records[1]["loglik_sum"]
    assert records[0]["context_units"] == 2 + 2  # BOS, marker; one word, one silence


@pytest.mark.parametrize(
    ("join", "units", "context_units"),
    [("straddle", 2 + 2, 2 + 2), ("closed", 2 + 3, 2 + 2)],  # (0 0 0 0)(0 1 1) or (0 0 0 0)(0)(1 1)
)
def test_a_patch_straddles_the_join_or_breaks_there(config: RunConfig, join: str, units: int, context_units: int) -> None:
    scorer = Scorer(build_model(config), config, device=DEVICE)
    item = choice("S->S", [0] * 5, [1, 1], [1, 2])
    (record,) = score_choices(scorer, [item], ChoiceOptions(join=join))
    assert record["context_units"] == context_units
    assert record["context_units"] + record["ending_units"][0] == units
    assert record["join"] == join


def test_a_break_closes_the_prompts_last_patch_only_at_the_endings_first_token(config: RunConfig) -> None:
    scorer = Scorer(build_model(config), config, device=DEVICE)
    row = scorer.row([segment("speech", [0] * 5), segment("speech", [1, 1, 1])])
    assert row.ids.tolist() == [BOS, MARK["speech"], *([TEXT_VOCAB] * 5), *([TEXT_VOCAB + 1] * 3)]
    assert row.unit.tolist() == [0, 1, 2, 2, 2, 2, 3, 4, 4, 4]
    assert row.visible.tolist() == [1, 2, 2, 2, 2, 3, 3, 4, 4, 4]


def test_aligned_arm_is_scored_aligned_and_labelled_conditional(tiny_data: Path) -> None:
    config = tiny_config("lst_aligned", tiny_data)
    scorer = Scorer(build_model(config), config, device=DEVICE)
    spoken = [segment("speech", [1, 2, 3, 4], [(0, 2)]), segment("speech", [7, 8, 9], [(0, 0), (1, 2)])]
    item = ChoiceItem(task="t", direction="S->S", item="i", prompt=spoken[0], endings=(spoken[1], spoken[0]))
    (record,) = score_choices(scorer, [item], ChoiceOptions())
    assert (record["patching"], record["conditional"]) == ("aligned", True)
    assert record["context_units"] == 2 + 2  # a word and a silence
    assert record["ending_units"] == [2, 2]
    bare = choice("S->S", [1, 2], [3], [4])
    with pytest.raises(DataError, match="needs word spans"):
        score_choices(scorer, [bare], ChoiceOptions())
    static = Scorer(build_model(config), config, device=DEVICE, kind=Patching.STATIC)
    (record,) = score_choices(static, [bare], ChoiceOptions())
    assert (record["patching"], record["conditional"]) == ("static", False)
    (written,) = score_choices(scorer, [choice("T->T", [1, 2], [3], [4])], ChoiceOptions())
    assert (written["patching"], written["conditional"]) == ("", False)


def test_spoken_endings_in_pieces_are_encoded_apart_and_scored_per_speech_token(tiny_data: Path) -> None:
    config = tiny_config("bpe", tiny_data)
    pieces = run_pieces(config)
    assert pieces is not None
    vocabulary = Vocabulary.of(config.model)
    scorer = Scorer(BigramModel(vocabulary), config, device=DEVICE, dtype="float64")  # type: ignore[arg-type]
    learnt = next(piece for piece in pieces.pieces if len(piece) == 2)
    prompt, endings = [4, learnt[0]], ([learnt[1], 9, 9], [1])
    assert len(pieces.encode([np.array(prompt + endings[0])])[0]) < len(prompt) + len(endings[0])  # together they would merge
    (record,) = score_choices(scorer, [choice("S->S", prompt, *endings)], ChoiceOptions())
    before = TEXT_VOCAB + int(pieces.encode([np.array(prompt)])[0][-1])
    spelt = [(TEXT_VOCAB + pieces.encode([np.array(e)])[0]).tolist() for e in endings]
    sums = [-scorer.model.nats([before, *ids]) for ids in spelt]
    alone = [-scorer.model.nats([vocabulary.speech_marker, *ids]) for ids in spelt]
    assert record["scores"] == pytest.approx([s / len(e) for s, e in zip(sums, endings, strict=True)], abs=1e-6)
    assert record["loglik_unconditional"] == pytest.approx(alone, abs=1e-6)


def many_items(seed: int, count: int = 24) -> list[ChoiceItem]:
    generator = np.random.Generator(np.random.Philox(key=seed))

    def tokens(most: int) -> list[int]:
        return generator.integers(3, SPEECH_VOCAB, generator.integers(1, most)).tolist()

    made = []
    for i in range(count):
        direction = ("S->S", "T->T", "S->T", "T->S")[i % 4]
        made.append(choice(direction, tokens(60), tokens(20), tokens(20), tokens(20), item=str(i)))
    return made


@pytest.mark.parametrize("arm", ["baseline", "lst_static"])
def test_batching_padding_and_order_change_no_score_and_no_decision(tiny_data: Path, arm: str) -> None:
    model, items, found = build_model(tiny_config(arm, tiny_data)), many_items(3), []
    for micro_batch_tokens, order in ((1, 1), (300, 1), (100_000, -1)):
        config = tiny_config(arm, tiny_data, execution={"micro_batch_tokens": micro_batch_tokens})
        scorer = Scorer(model, config, device=DEVICE)
        found.append(score_choices(scorer, items[::order], ChoiceOptions(score="loglik_gain"))[::order])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert a["loglik_sum"] == pytest.approx(b["loglik_sum"], rel=1e-5)
            assert a["loglik_unconditional"] == pytest.approx(b["loglik_unconditional"], rel=1e-5)
            assert (a["correct"], a["tie"]) == (b["correct"], b["tie"])


class RoundingModel(BigramModel):
    """The table, but losses differ by up to 1e-6 relative with the batch's shape and the row's place in it, as kernels may."""

    def hidden(self, batch: Batch) -> torch.Tensor:
        rows, tokens = batch.ids_BT.shape
        rounding_B11 = 1 + 1e-6 * torch.sin(13.0 * torch.arange(rows) + 7 * rows + tokens)[:, None, None]
        return super().hidden(batch) * rounding_B11


@given(st.integers(0, 1_000), st.integers(1, 400))
@settings(max_examples=3, deadline=None)
def test_decisions_between_near_equal_endings_do_not_depend_on_the_batch(shared: RunConfig, seed: int, tokens: int) -> None:
    model = RoundingModel(VOCABULARY)
    twin, other = TEXT_VOCAB - 1, TEXT_VOCAB - 2
    with torch.no_grad():  # two tokens that nothing but rounding tells apart
        model.head.weight[twin] = model.head.weight[other] * (1 + 1e-7)
    pairs = [choice("T->T", [3 + i], [twin] * (1 + i % 3), [other] * (1 + i % 3), item=str(i)) for i in range(12)]
    items = [*pairs, *many_items(seed, 8)]
    runs = []
    for limit in (1, tokens, 100_000):
        config = RunConfig(**{**vars(shared), "execution": type(shared.execution)(micro_batch_tokens=limit)})
        records = score_choices(Scorer(model, config, device=DEVICE, dtype="float32"), items, ChoiceOptions())  # type: ignore[arg-type]
        runs.append([(r["correct"], r["tie"]) for r in records])
    assert runs[0] == runs[1] == runs[2]


@pytest.fixture(scope="session")
def shared(tiny_data: Path) -> RunConfig:
    return tiny_config("lst_static", tiny_data)


def test_longer_sequences_than_the_training_are_counted(tiny_data: Path) -> None:
    config = tiny_config("baseline", tiny_data)  # sequences of 96 units
    scorer = Scorer(build_model(config), config, device=DEVICE)
    records = score_choices(scorer, [choice("T->T", [3] * n, [4], [5], item=str(n)) for n in (93, 94)], ChoiceOptions())
    assert [r["longer_than_trained"] for r in records] == [False, True]
    assert {m.metric: m.value for m in choice_metrics(records)}["longer_than_trained"] == 1


@pytest.mark.parametrize("wrong", [{"score": "loglik_per_tokn"}, {"join": "open"}, {"context_tokens": 3}, {"context_tokens": -1}])
def test_options_that_cannot_be_are_refused(wrong: dict[str, object]) -> None:
    (key,) = wrong
    with pytest.raises(ConfigError, match=key):
        ChoiceOptions(**wrong).validate()  # type: ignore[arg-type]
