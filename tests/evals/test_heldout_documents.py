"""The held-out documents: the same for every arm, cut as drawn, and scored by the references on the same tokens."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lst.config import DataConfig, EvalConfig
from lst.data.heldout import cut_document, heldout_documents
from lst.data.interleave import Document, Segment
from lst.data.preparing.shard_writer import write_dataset
from lst.data.shards import open_dataset
from lst.data.statistics import references
from lst.errors import DataError
from lst.evals.scoring import Scorer
from lst.model import build_model
from tests.train.tiny_run import tiny_config

ARMS = ("baseline", "lst_static", "lst_aligned", "lst_mixed", "lst_curriculum")
DEVICE = __import__("torch").device("cpu")


def tokens(document: Document) -> list[tuple[str, list[int]]]:
    return [(s.modality, s.tokens.tolist()) for s in document]


def test_every_arm_is_evaluated_on_the_same_ids(tiny_data: Path) -> None:
    seen = {}
    for arm in ARMS:
        # What differs between matched arms, beside the network: the shares that keep the mixture, and the sequence length.
        data = {"seq_len_units": 96 + len(arm), "interleaved_sequence_share_static": 1 / len(arm)}
        config = tiny_config(arm, tiny_data, data=data, train={"seed": len(arm)})
        documents = heldout_documents(open_dataset(tiny_data), config.evaluation, config.data)
        scorer = Scorer(build_model(config), config, device=DEVICE)
        rows = {name: [scorer.row(d) for d in documents[name]] for name in documents}
        seen[arm] = {name: [r.ids.tolist() for r in rows[name]] for name in rows}
        assert all(len(ids) <= config.evaluation.context_tokens for ids in itertools.chain.from_iterable(seen[arm].values()))
    assert all(ids == seen["baseline"] for ids in seen.values())
    assert len({r for row in seen["baseline"].values() for r in map(tuple, row)}) > 12


def test_units_differ_where_the_patching_does(tiny_data: Path) -> None:
    units = {}
    for arm in ("baseline", "lst_static", "lst_aligned", "lst_curriculum"):
        config = tiny_config(arm, tiny_data)
        documents = heldout_documents(open_dataset(tiny_data), config.evaluation, config.data)["speech"]
        units[arm] = [Scorer(build_model(config), config, device=DEVICE).row(d).units for d in documents]
    assert units["lst_curriculum"] == units["lst_static"] != units["baseline"]
    assert units["lst_aligned"] not in (units["lst_static"], units["baseline"])


def test_selection_is_fixed_by_its_seed_and_comes_from_the_heldout_split(tiny_data: Path) -> None:
    dataset = open_dataset(tiny_data)
    evaluation = EvalConfig(heldout_documents=6, context_tokens=500, seed=7)
    first, again = (heldout_documents(dataset, evaluation, DataConfig()) for _ in range(2))
    other = heldout_documents(dataset, EvalConfig(heldout_documents=6, context_tokens=500, seed=8), DataConfig())
    for name in ("speech", "text", "interleaved"):
        assert [tokens(d) for d in first[name]] == [tokens(d) for d in again[name]]
    assert [tokens(d) for d in first["speech"]] != [tokens(d) for d in other["speech"]]
    heldout = {tuple(dataset.speech["speech_tokens"][int(i)].as_py()) for i in dataset.rows("speech", "heldout")}
    assert all(tuple(d[0].tokens.tolist()) in heldout for d in first["speech"])
    assert {s.modality for d in first["interleaved"] for s in d} == {"speech", "text"}


def test_more_documents_than_there_are_gives_all(tiny_data: Path) -> None:
    dataset = open_dataset(tiny_data)
    sets = heldout_documents(dataset, EvalConfig(heldout_documents=10_000), DataConfig())
    assert len(sets["speech"]) == len(sets["interleaved"]) == len(dataset.rows("speech", "heldout"))
    assert len(sets["text"]) == len(dataset.rows("text", "heldout"))


def segment(modality: str, *values: int, words: list[tuple[int, int]] | None = None) -> Segment:
    return Segment(modality, np.array(values), None if words is None else np.array(words, np.int64).reshape(-1, 2))


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        (7, [("text", [12, 7]), ("speech", [3, 3])]),  # the drawing in cut_document: BOS <t> 12 7 <s> 3 3
        (6, [("text", [12, 7]), ("speech", [3])]),
        (5, [("text", [12, 7])]),  # a marker would stand last
        (4, [("text", [12, 7])]),
        (3, [("text", [12])]),
        (10, [("text", [12, 7]), ("speech", [3, 3, 90, 41])]),
        (11, [("text", [12, 7]), ("speech", [3, 3, 90, 41]), ("text", [5])]),
        (99, [("text", [12, 7]), ("speech", [3, 3, 90, 41]), ("text", [5])]),
    ],
)
def test_cut_is_as_drawn(context: int, expected: list[tuple[str, list[int]]]) -> None:
    document = [segment("text", 12, 7), segment("speech", 3, 3, 90, 41, words=[(0, 1), (2, 3)]), segment("text", 5)]
    assert tokens(cut_document(document, context)) == expected


def test_words_end_at_the_cut() -> None:
    document = [segment("speech", 1, 2, 3, 4, 5, 6, words=[(0, 1), (2, 4), (5, 5)])]
    (cut,) = cut_document(document, 6)  # BOS <s> and four tokens
    assert cut.tokens.tolist() == [1, 2, 3, 4]
    assert cut.words is not None
    assert cut.words.tolist() == [[0, 1], [2, 3]]


def test_references_score_the_tokens_that_the_models_predict(tiny_data: Path) -> None:
    config = tiny_config("lst_static", tiny_data)
    dataset = open_dataset(tiny_data)
    scored = references(dataset, config.evaluation)
    documents = heldout_documents(dataset, config.evaluation, config.data)
    scorer = Scorer(build_model(config), config, device=DEVICE)
    for name, modality in (("text", 0), ("speech", 1)):
        assert scored[name]["n_items"] == sum(s.sums(modality)[1] for s in scorer.score(documents[name]))


def test_data_set_without_heldout_documents_is_refused(tiny_data: Path, tmp_path: Path) -> None:
    dataset = open_dataset(tiny_data)
    columns = ["id", "book", "split", "text"]
    text = dataset.text.select(columns)
    text = text.set_column(2, "split", pa.array(["train"] * text.num_rows))
    speech = dataset.speech.select([n for n in dataset.speech.schema.names if not n.startswith("word_text")])
    write_dataset(tmp_path / "d", {"text": text, "speech": speech}, tokenizer=tiny_data / "tokenizer.model", speech_vocab=40)
    with pytest.raises(DataError, match=r"table 'text' .* has no rows in its split 'heldout'"):
        heldout_documents(open_dataset(tmp_path / "d"), EvalConfig(), DataConfig())
