"""Scores against a model whose probabilities are known, and against themselves under padding, batching and order."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from lst.config import RunConfig
from lst.data.heldout import heldout_documents
from lst.data.interleave import Document, Segment
from lst.data.shards import open_dataset
from lst.data.speech_bpe import SpeechBpe, run_pieces
from lst.data.vocab import BOS, SPEECH, TEXT, Vocabulary
from lst.evals.evaluate import evaluation_steps
from lst.evals.heldout import heldout_metrics
from lst.evals.scoring import Scorer, batches_by_length
from lst.evals.stories import can_speak, story_items
from lst.model import build_model
from tests.evals.known_model import BigramModel
from tests.train.tiny_run import SPEECH_VOCAB, TEXT_VOCAB, tiny_config

VOCABULARY = Vocabulary(text=TEXT_VOCAB, speech=SPEECH_VOCAB)
TEXT_MARK, SPEECH_MARK = VOCABULARY.text_marker, VOCABULARY.speech_marker
DEVICE = torch.device("cpu")


@pytest.fixture
def config(tiny_data: Path) -> RunConfig:
    return tiny_config("lst_static", tiny_data)


@pytest.fixture
def known(config: RunConfig) -> Scorer:
    return Scorer(BigramModel(VOCABULARY), config, device=DEVICE, dtype="float64")  # type: ignore[arg-type]


def text(*values: int) -> Segment:
    return Segment("text", np.array(values))


def speech(*values: int) -> Segment:
    return Segment("speech", np.array(values), np.zeros((0, 2), np.int64))


def test_document_losses_are_those_of_the_table(known: Scorer) -> None:
    documents: list[Document] = [[text(12, 7), speech(3, 3, 39), text(5)], [speech(1)], [text(9, 9, 9, 9, 9)]]
    ids = [BOS, TEXT_MARK, 12, 7, SPEECH_MARK, 93, 93, 129, TEXT_MARK, 5]
    log_p = known.model.log_p
    scored = known.score(documents)[0]
    assert scored.row.ids.tolist() == ids
    expected = [-log_p[a, b] for a, b in itertools.pairwise(ids)] + [0.0]
    assert scored.nats_T == pytest.approx(expected, rel=1e-9)
    assert scored.sums() == (pytest.approx(sum(expected), rel=1e-9), 9)
    assert scored.sums(TEXT) == (pytest.approx(expected[1] + expected[2] + expected[8], rel=1e-9), 3)
    assert scored.sums(SPEECH) == (pytest.approx(sum(expected[4:7]), rel=1e-9), 3)


def test_metrics_are_the_documented_formulas(known: Scorer, tiny_data: Path) -> None:
    dataset = open_dataset(tiny_data)
    pieces = [dataset.tokenizer.encode(t) for t in ("ab cd", "xyz ab")]
    spoken = [[3, 3, 39], [1, 2]]
    documents = {
        "speech": [[speech(*s)] for s in spoken],
        "text": [[text(*p)] for p in pieces],
        "interleaved": [[speech(*spoken[0]), text(*pieces[0])]],
    }
    model = known.model
    found = {(m.task, m.metric): m for m in heldout_metrics(known, documents, dataset.tokenizer)}
    assert {m.direction for k, m in found.items() if k[0] in ("heldout_interleaved", "heldout_mixture")} == {"ST->ST"}

    speech_nats = sum(model.nats([SPEECH_MARK, *(TEXT_VOCAB + t for t in s)]) for s in spoken) / 5
    assert found["heldout_speech", "nats_per_token"].value == pytest.approx(speech_nats, rel=1e-9)
    assert found["heldout_speech", "bits_per_second"].value == pytest.approx(25 * speech_nats / math.log(2), rel=1e-9)
    assert found["heldout_speech", "nats_per_token"].n_items == 5

    text_sum = sum(model.nats([TEXT_MARK, *p]) for p in pieces)
    text_nats = text_sum / sum(map(len, pieces))
    assert found["heldout_text", "nats_per_token"].value == pytest.approx(text_nats, rel=1e-9)
    assert found["heldout_text", "bits_per_byte"].value == pytest.approx(text_sum / math.log(2) / len("ab cdxyz ab"), rel=1e-9)

    ids = [BOS, SPEECH_MARK, *(TEXT_VOCAB + t for t in spoken[0]), TEXT_MARK, *pieces[0]]
    interleaved = model.nats(ids) / (len(ids) - 1)
    assert found["heldout_interleaved", "nats_per_token"].value == pytest.approx(interleaved, rel=1e-9)
    assert found["heldout_interleaved", "nats_per_token"].n_items == len(ids) - 1
    assert found["heldout_interleaved", "nats_per_speech_token"].n_items == 3
    # interleaved_token_share is 0.5 in this configuration
    assert found["heldout_mixture", "nats_per_token"].value == pytest.approx((interleaved + text_nats) / 2, rel=1e-9)


@pytest.fixture
def known_bpe(tiny_data: Path) -> tuple[Scorer, SpeechBpe]:
    """A known table over text and speech pieces, and the pieces."""
    config = tiny_config("bpe", tiny_data)
    pieces = run_pieces(config)
    assert pieces is not None
    return Scorer(BigramModel(Vocabulary.of(config.model)), config, device=DEVICE), pieces  # type: ignore[arg-type]


def test_losses_of_pieces_are_per_token_of_their_content(known_bpe: tuple[Scorer, SpeechBpe], tiny_data: Path) -> None:
    """So that nats per token, bits per second and bits per byte divide by the same number for every arm."""
    scorer, pieces = known_bpe
    dataset = open_dataset(tiny_data)
    sets = heldout_documents(dataset, scorer.config.evaluation, scorer.config.data)
    found = {(m.task, m.metric): m for m in heldout_metrics(scorer, sets, dataset.tokenizer)}
    marks, model = scorer.vocabulary.speech_marker, scorer.model
    spoken = [document[0].tokens for document in sets["speech"]]
    encoded = pieces.encode(spoken)
    assert sum(map(len, encoded)) < sum(map(len, spoken))
    nats = sum(model.nats([marks, *(TEXT_VOCAB + ids).tolist()]) for ids in encoded)
    frames = sum(map(len, spoken))
    speech = found["heldout_speech", "nats_per_token"]
    assert (speech.value, speech.n_items) == (pytest.approx(nats / frames, rel=1e-9), frames)
    assert found["heldout_speech", "bits_per_second"].value == pytest.approx(nats / math.log(2) / (frames / 25), rel=1e-9)
    other = Scorer(BigramModel(VOCABULARY), tiny_config("baseline", tiny_data), device=DEVICE)  # type: ignore[arg-type]
    plain = {(m.task, m.metric): m.n_items for m in heldout_metrics(other, sets, dataset.tokenizer)}
    assert plain == {key: metric.n_items for key, metric in found.items()}


def test_interleaved_losses_have_bits_of_each_modality(known: Scorer, tiny_data: Path) -> None:
    dataset = open_dataset(tiny_data)
    sets = heldout_documents(dataset, known.config.evaluation, known.config.data)
    found = {m.metric: m for m in heldout_metrics(known, sets, dataset.tokenizer) if m.task == "heldout_interleaved"}
    assert found["bits_per_second"].value == pytest.approx(25 * found["nats_per_speech_token"].value / math.log(2))
    texts = [dataset.tokenizer.decode(s.tokens.tolist()) for d in sets["interleaved"] for s in d if s.modality == "text"]
    nats = found["nats_per_text_token"].value * found["nats_per_text_token"].n_items
    assert found["bits_per_byte"].value == pytest.approx(nats / math.log(2) / sum(len(t.encode()) for t in texts))


@pytest.mark.parametrize("arm", ["baseline", "bpe", "lst_static", "lst_aligned"])
def test_batching_padding_and_order_change_no_score(tiny_data: Path, arm: str) -> None:
    config = tiny_config(arm, tiny_data)
    model = build_model(config).eval()
    sets = heldout_documents(open_dataset(tiny_data), config.evaluation, config.data)
    documents = [d for name in sets for d in sets[name]]
    results = []
    for micro_batch_tokens, order in ((1, 1), (700, 1), (100_000, -1)):
        run = tiny_config(arm, tiny_data, execution={"micro_batch_tokens": micro_batch_tokens})
        scored = Scorer(model, run, device=DEVICE).score(documents[::order])[::order]
        results.append([s.sums()[0] / s.sums()[1] for s in scored])
    assert results[0] == pytest.approx(results[1], rel=1e-5)
    assert results[0] == pytest.approx(results[2], rel=1e-5)


def test_story_items_have_the_choices_asked_for(tiny_data: Path) -> None:
    dataset = open_dataset(tiny_data)
    for choices in (2, 4):
        items = story_items(dataset, count=5, choices=choices, seed=1)
        assert len(items) == 5 * 2 * 2
        assert {len(i.endings) for i in items} == {choices}
    row = {r["id"]: r for r in dataset.stories.to_pylist()}[items[0].item]
    spoken = next(i for i in items if i.direction == "S->S" and i.task == "story_later")
    assert spoken.prompt is not None
    assert spoken.prompt.tokens.tolist() == row["prompt_speech"]
    assert [e.tokens.tolist() for e in spoken.endings] == [row["right_speech"], *row["later_speech"]]
    written = next(i for i in items if i.direction == "T->T" and i.task == "story_elsewhere")
    assert written.prompt is not None
    assert dataset.tokenizer.decode([*written.prompt.tokens, *written.endings[0].tokens]) == f"{row['prompt']} {row['right']}"
    assert written.ending_bytes == tuple(len(text.encode()) for text in (row["right"], *row["elsewhere"]))
    assert {i.item for i in story_items(dataset, count=5, choices=2, seed=1)} == {i.item for i in items}


def test_items_without_enough_endings_are_left_out_and_counted(tiny_data: Path, caplog: pytest.LogCaptureFixture) -> None:
    items = story_items(open_dataset(tiny_data), count=5, choices=5, seed=1)
    assert items == []
    assert "left out 20 of 20" in caplog.text


def test_aligned_patching_cannot_speak_stories(tiny_data: Path) -> None:
    kinds = {arm: tiny_config(arm, tiny_data).patching.evaluation_kind for arm in ("baseline", "lst_aligned", "lst_curriculum")}
    assert {arm: can_speak(kind) for arm, kind in kinds.items()} == {
        "baseline": True,
        "lst_aligned": False,
        "lst_curriculum": True,
    }


def test_batches_hold_each_place_once_and_respect_the_limit() -> None:
    lengths = [5, 100, 7, 30, 30, 6, 28, 1, 99]
    batches = batches_by_length(lengths, 120)
    assert sorted(i for b in batches for i in b) == list(range(len(lengths)))
    for batch in batches:
        widest = max(lengths[i] for i in batch)
        assert len(batch) == 1 or widest * len(batch) <= 120
        assert min(lengths[i] for i in batch) >= 0.75 * widest
    assert [1] in batches
    assert [3, 4, 6] in batches


def test_evaluations_are_evenly_spaced_and_the_last_is_at_the_end(tiny_data: Path) -> None:
    def steps(points: int, total: int) -> list[int]:
        return sorted(evaluation_steps(total, tiny_config("baseline", tiny_data, evaluation={"points": points}).evaluation))

    assert steps(1, 100) == [100]
    assert steps(4, 100) == [25, 50, 75, 100]
    assert steps(3, 10) == [3, 7, 10]
    assert steps(8, 3) == [1, 2, 3]


def test_evaluation_leaves_the_model_in_training_mode_and_without_gradients(config: RunConfig) -> None:
    model = build_model(config).train()
    Scorer(model, config, device=DEVICE).score([[text(3, 4)]])
    assert model.training
    assert all(p.grad is None for p in model.parameters())
