"""What patches know: which vectors are whose, labels by hand, and the whole command on small models of several arms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from analysis.item_pairs import paired_accuracies
from lst.config import Patching
from lst.data.corpus import synthesis
from lst.data.shards import open_dataset
from lst.errors import DataError, LstError
from lst.evals.__main__ import main
from lst.evals.checkpoints import Checkpoint, open_checkpoint
from lst.evals.patch_states import UnitStates, unit_states
from lst.evals.phones import document_phones, frames_of
from lst.evals.representations import run_representations
from lst.evals.unit_probe import phone_labels, probe, shown_occurrences, unit_labels, word_labels
from lst.evals.utterances import Utterance, heldout_utterances
from lst.model import build_model, export_checkpoint, make_batch
from lst.records import read_jsonl
from tests.train.tiny_run import tiny_config

ARMS = ("baseline", "bpe", "lst_static", "lst_curriculum", "lst_aligned")


@pytest.fixture(scope="module")
def checkpoints(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, made = tmp_path_factory.mktemp("checkpoints"), {}
    for seed, arm in enumerate(ARMS):
        torch.manual_seed(seed)
        config = tiny_config(arm, tiny_data)
        made[arm] = export_checkpoint(build_model(config), config, folder / arm)
    return made


@pytest.fixture(scope="module")
def opened(checkpoints: dict[str, Path]) -> dict[str, Checkpoint]:
    return {arm: open_checkpoint(checkpoints[arm], dtype="float64") for arm in ARMS}


@pytest.fixture(scope="module")
def utterances(tiny_data: Path) -> list[Utterance]:
    return heldout_utterances(open_dataset(tiny_data), count=6, words=5, seed=0)


def test_a_patchs_vector_is_what_the_encoder_makes_of_it(opened: dict[str, Checkpoint], utterances: list[Utterance]) -> None:
    of = opened["lst_static"]
    found = unit_states(of, utterances, Patching.STATIC, "float64")
    for utterance, states in zip(utterances, found, strict=True):
        batch = make_batch([[("speech", utterance.speech.tokens.tolist())]], of.config)
        model: Any = of.model
        with torch.no_grad():
            _, units = model.encoder(model.embedding(batch.ids_BT), batch, batch.all_tokens)
            after = model.global_transformer(units, batch)
        tokens = len(utterance.speech.tokens)
        assert states.unit_F.tolist() == [f // 4 for f in range(tokens)]
        assert states.states["patch"] == pytest.approx(units[0, 2:].numpy(), rel=1e-9)  # behind BOS and the marker
        assert states.states["global"] == pytest.approx(after[0, 2:].numpy(), rel=1e-9)


def test_vectors_do_not_depend_on_what_is_computed_beside_them(
    opened: dict[str, Checkpoint], utterances: list[Utterance]
) -> None:
    for arm in ARMS:
        kind = opened[arm].config.patching.evaluation_kind
        together = unit_states(opened[arm], utterances, kind, "float64")
        alone = [unit_states(opened[arm], [u], kind, "float64")[0] for u in reversed(utterances)][::-1]
        for a, b in zip(together, alone, strict=True):
            assert all(a.states[place] == pytest.approx(b.states[place], rel=1e-9) for place in a.states)


def test_a_word_of_an_aligned_arm_is_its_patch_and_of_the_baseline_its_tokens(
    opened: dict[str, Checkpoint], utterances: list[Utterance]
) -> None:
    (aligned,) = unit_states(opened["lst_aligned"], utterances[:1], Patching.ALIGNED, "float64")
    (plain,) = unit_states(opened["baseline"], utterances[:1], Patching.TOKEN, "float64")
    for first, last in utterances[0].word_spans.tolist():
        (unit,) = set(aligned.unit_F[first : last + 1].tolist())
        assert (aligned.unit_F == unit).sum() == last + 1 - first
        assert aligned.span("patch", first, last) == pytest.approx(aligned.states["patch"][unit], rel=1e-12)
        table = opened["baseline"].model.get_parameter("embedding.weight").detach().numpy()
        ids = [int(t) for t in utterances[0].speech.tokens[first : last + 1]]
        shift = next(s for s in range(len(table)) if np.allclose(plain.states["patch"][first], table[s + ids[0]]))
        assert plain.span("patch", first, last) == pytest.approx(table[[shift + i for i in ids]].mean(0), rel=1e-9)


def made_up(unit_F: list[int], vectors: list[list[float]], words: list[tuple[str, int, int]], document: int = 0) -> UnitStates:
    spans = np.array([(a, b) for _, a, b in words]).reshape(-1, 2)
    tokens = np.zeros(len(unit_F), np.int64)
    speech: Any = type("Segment", (), {"tokens": tokens})
    utterance = Utterance(f"{document}/0", speech, (), "", document, 100, tuple(w for w, _, _ in words), spans)
    return UnitStates(utterance, np.array(unit_F), {place: np.array(vectors) for place in ("patch", "global")})


def test_units_are_labelled_by_most_of_their_frames() -> None:
    of = made_up([0, 0, 0, 0, 1, 1, 1, 1, 2], [[0.0], [8.0], [4.0]], [("The", 1, 2), ("cat.", 3, 5), ("the", 8, 8)])
    # frames: - the the cat | cat cat - - | the
    assert word_labels([of], 5) == [["the", "cat", "the"]]  # at a tie the first
    assert word_labels([of], 1) == [["the", "", "the"]]  # cat is not among the commonest
    assert of.span("patch", 3, 5).tolist() == [pytest.approx((0 + 8 + 8) / 3)]
    phones = ["x"] * 100 + ["a", "a", "b", "c", "", "", "", "d", "e"]
    assert phone_labels([of], {0: phones}) == [["a", "", "e"]]
    assert phone_labels([of], {7: phones}) == [["", "", ""]]
    assert unit_labels(np.array([0, 0, 1]), ["q", "p", "p"]) == ["q", "p"]


def test_shown_words_are_the_commonest_that_are_long_enough_and_come_twice() -> None:
    words = [(w, i, i) for i, w in enumerate(["tree", "a", "House", "a", "tree", "house", "tree", "once", "a"])]
    of = made_up(list(range(9)), [[float(i)] for i in range(9)], words)
    shown = shown_occurrences([of], words=9, letters=4, most=2, seed=0)
    assert [o.word for o in shown] == ["tree", "tree", "house", "house"]
    assert {o.item for o in shown if o.word == "house"} == {"0/102", "0/105"}
    assert {float(o.states["patch"][0]) for o in shown if o.word == "house"} == {2.0, 5.0}
    with pytest.raises(DataError, match="1 words of 5 letters or more come twice"):
        shown_occurrences([of], words=9, letters=5, most=2, seed=0)


def test_a_probe_learns_on_some_documents_and_is_tested_on_others() -> None:
    def document(number: int) -> UnitStates:
        words = [("up", 0, 0), ("down", 1, 1), ("up", 2, 2)]
        return made_up([0, 1, 2], [[1.0, number], [-1.0, number], [1.1, -number]], words, number)

    states = [document(n) for n in range(8)]
    metrics, items = probe(states, "word", word_labels(states, 5), l2=0.01, seed=0)
    assert metrics["patch_probe_word"] == metrics["global_probe_word"] == (1.0, 12)
    assert metrics["chance_word"] == (pytest.approx(2 / 3), 12)
    assert metrics["classes_word"] == (2.0, 12)
    tested = {item["item"].split("/")[0] for item in items}
    assert len(tested) == 4
    assert {item["item"].split("/")[1] for item in items} == {"100", "101", "102"}
    assert len(items) == 2 * 12
    assert all(item["correct"] and item["label"] == item["told"] for item in items)
    with pytest.raises(DataError, match="the probe of words has 0 units to learn from"):
        probe(states, "word", [["", "", ""]] * 8, l2=0.01, seed=0)


def write_phones(path: Path, data: Path) -> Path:
    """Of each held-out document: every frame's phone is its speech token's parity, in seconds."""
    dataset, lines = open_dataset(data), []
    for row in dataset.speech.take(dataset.rows("speech", "heldout")).to_pylist():
        spans = [{"word": "pb"[t % 2], "start": i / 25, "end": (i + 1) / 25} for i, t in enumerate(row["speech_tokens"])]
        lines.append(json.dumps({"id": row["id"], "words": spans}))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("arm", ["baseline", "bpe", "lst_aligned"])
def test_the_command_writes_figures_items_and_a_picture(
    checkpoints: dict[str, Path], tiny_data: Path, tmp_path: Path, arm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out, phones = tmp_path / "o", write_phones(tmp_path / "phones.jsonl", tiny_data)
    small = ["letters=3", "shown_words=5", "occurrences=4", "words=20", "probed_words=10", "perplexity=4"]
    assert main(["representations", str(checkpoints[arm]), f"out={out}", f"phones={phones}", *small]) == 0
    assert {p.name for p in out.iterdir()} == {"evaluation.json", "eval.jsonl", "items.jsonl", "words.jsonl", "words.svg"}
    metrics = {m["metric"]: m for m in read_jsonl(out / "eval.jsonl")}
    kind = "aligned" if arm == "lst_aligned" else "token"
    assert all((m["patching"], m["conditional"]) == (kind, arm == "lst_aligned") for m in metrics.values())
    items, words = read_jsonl(out / "items.jsonl"), read_jsonl(out / "words.jsonl")
    for name in ("word", "phone"):
        rows = [i for i in items if i["task"] == f"probe_{name}_patch"]
        assert metrics[f"patch_probe_{name}"]["value"] == sum(i["correct"] for i in rows) / len(rows)
    assert metrics["classes_phone"]["value"] == 2
    if arm == "baseline":  # a token's embedding says which token it is
        assert metrics["patch_probe_phone"]["value"] == 1.0
    assert len(words) == metrics["patch_silhouette"]["n_items"]
    assert (out / "words.svg").read_text().startswith("<?xml")
    assert "cosine_within" in capsys.readouterr().out
    assert main(["representations", str(checkpoints[arm]), f"out={out}", f"phones={phones}", *small]) == 0
    assert "there already" in capsys.readouterr().out


def test_a_perplexity_that_is_too_much_is_told(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    given = {"letters": 3, "shown_words": 5, "occurrences": 4, "words": 20, "probed_words": 10, "out": str(tmp_path / "o")}
    told = run_representations(checkpoints["baseline"], given | {"perplexity": 100_000.0})
    points = len(read_jsonl(tmp_path / "o" / "words.jsonl"))
    assert told.endswith(f"perplexity=100000 is too much for {points} points; the picture is of {points / 4:g}")
    assert json.loads((tmp_path / "o" / "evaluation.json").read_text())["perplexity"] == points / 4


def test_two_arms_on_the_same_patches_are_compared_item_by_item(
    checkpoints: dict[str, Path], tiny_data: Path, tmp_path: Path
) -> None:
    options = {"letters": 3, "shown_words": 3, "occurrences": 3, "words": 20, "probed_words": 10, "perplexity": 4.0}
    for arm in ("lst_static", "lst_curriculum"):
        run_representations(checkpoints[arm], options | {"out": str(tmp_path / arm)})
    found = {p.task: p for p in paired_accuracies(tmp_path / "lst_static", tmp_path / "lst_curriculum")}
    assert set(found) == {"probe_word_patch", "probe_word_global"}
    assert not found["probe_word_patch"].conditional


def test_phones_are_those_at_the_middle_of_each_frame() -> None:
    # frames 0, 1, 2, 3 have their middles at .02, .06, .10 and .14 s
    assert frames_of([("a", 0.0, 0.05), ("b", 0.05, 0.1), ("c", 0.12, 9.0)], 4) == ["a", "b", "", "c"]


def test_espeak_says_documents_again_and_other_lengths_are_refused(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_dataset(tiny_data)
    with pytest.raises(DataError, match="phones=espeak has phones of no held-out document"):
        document_phones(dataset, [0, 1], "espeak")  # its speaker is no voice of espeak-ng
    table = dataset.speech
    speaker = table.schema.get_field_index("speaker")
    dataset.__dict__["speech"] = table.set_column(speaker, "speaker", [["espeak:en-us"] * table.num_rows])
    frames = len(table["speech_tokens"][int(dataset.rows("speech", "heldout")[1])])
    for more, fine in ((0, True), (5, False)):
        audio = np.zeros((frames + more) * 640, np.float32)
        said = synthesis.Utterance(audio, None, ((0.0, "a"), (0.05, "b")))
        monkeypatch.setattr(synthesis, "speak", lambda words, speaker, said=said: said)
        if fine:
            assert document_phones(dataset, [1], "espeak") == {1: ["a"] + ["b"] * (frames - 1)}
        else:
            with pytest.raises(DataError, match=rf"has {frames} frames, and this espeak-ng says it in {frames + 5}"):
                document_phones(dataset, [1], "espeak")


@pytest.mark.parametrize(
    ("arm", "options", "reason"),
    [
        ("lst_static", {"shown_words": 1}, "shown_words=1 compares nothing"),
        ("lst_static", {"shown_words": 200}, "shown_words=200 with occurrences=30 are more than 5,000 points"),
        ("lst_static", {"perplexity": 0.0}, "perplexity=0.0 must be positive"),
        ("lst_static", {"phones": "nowhere"}, "phones=nowhere must be a folder"),
        ("lst_static", {"letters": 99}, "0 words of 99 letters or more come twice"),
        ("lst_static", {"shard": "1/2"}, "unknown key 'shard'"),
        ("baseline", {"patching": "static"}, "arm 'baseline' has no patches"),
        ("lst_static", {"patching": "mixed"}, "patching='mixed' is unknown"),
    ],
)
def test_wrong_options_are_one_sentence(
    checkpoints: dict[str, Path], tmp_path: Path, arm: str, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(LstError, match=reason):
        run_representations(checkpoints[arm], {"out": str(tmp_path / "o"), **options})
    assert list(tmp_path.iterdir()) == []
