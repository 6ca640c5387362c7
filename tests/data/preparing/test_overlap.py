"""The overlap table against one that is counted by hand, and the verb that prints it."""

from __future__ import annotations

import json
from itertools import pairwise

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lst.data.prepare import main
from lst.data.preparing import overlap
from lst.data.preparing.overlap import describe_overlap, measure_overlap
from lst.data.preparing.shard_writer import write_dataset
from lst.data.preparing.text_training import DOCUMENT_BYTES
from lst.data.shards import open_dataset
from tests.toy_corpus import SPEECH_VOCAB, write_toy_jsonl


def dataset(folder, tokenizer, spoken, written=()):
    """A data set of (id, speaker, book, split, text) and (id, book, split, text)."""
    names = ("id", "speaker", "book", "split", "text")
    nothing = {"speech_tokens": [1], "words": [], "word_start": [], "word_end": []}
    speech = [dict(zip(names, row, strict=True)) | nothing for row in spoken]
    text = [dict(zip(("id", "book", "split", "text"), row, strict=True)) for row in written or [("t", "", "train", "none of it")]]
    tables = {"speech": pa.Table.from_pylist(speech), "text": pa.Table.from_pylist(text)}
    write_dataset(folder, tables, tokenizer=tokenizer, speech_vocab=SPEECH_VOCAB)
    return open_dataset(folder)


def test_a_table_counted_by_hand(tmp_path, toy_dataset):
    found = dataset(
        tmp_path / "d",
        toy_dataset / "tokenizer.model",
        [
            ("a", "ann", "one", "train", "It was the best of times"),
            ("b", "bob", "two", "heldout", "and IT was, the best! day"),  # "it was the", "was the best": 4 of 6 words
            ("c", "ann", "one", "heldout", "times of best"),  # the words, in another order
            ("d", "cid", "", "heldout", "two words"),
        ],
        [("e", "two", "train", "a best day for all"), ("f", "", "heldout", "so best day for none")],  # 3 of 5 words
    )
    table = measure_overlap(found.path, found.manifest, ngram=3)
    assert table["speakers"] == {"train": 1, "heldout": 3, "shared": 1, "documents_shared": 1}
    assert table["books"] == {"train": 2, "heldout": 2, "shared": 2, "documents_shared": 2}
    speech, text = table["text"]["speech"], table["text"]["text"]
    assert (speech["documents"], speech["documents_hit"], speech["too_short"]) == (3, 1, 1)
    assert (speech["words"], speech["words_covered"]) == (11, 4)
    assert (text["documents_hit"], text["words_covered"], text["words"]) == (1, 3, 5)
    assert "1 of 3 held-out documents share 3 words in a row; they cover 36.36% of the words" in describe_overlap(table)


@given(
    train=st.lists(st.lists(st.sampled_from("abc"), max_size=8), max_size=4),
    held=st.lists(st.sampled_from("abc"), max_size=10),
    n=st.integers(1, 4),
)
def test_runs_of_words_agree_with_a_plain_count(train, held, n):
    hasher = overlap._Hasher(n)
    texts = [" ".join(words) for words in train]
    runs = {tuple(words[i : i + n]) for words in train for i in range(len(words) - n + 1)}
    hits = [tuple(held[i : i + n]) in runs for i in range(len(held) - n + 1)]
    hashes = {int(h) for found in hasher.runs(texts) for h in found}
    assert [int(h) in hashes for h in hasher.runs([" ".join(held)])[0]] == hits


def test_the_verb_prints_the_table_of_any_data_set(tmp_path, toy_dataset, capsys):
    assert main(["overlap", str(toy_dataset), "ngram=2"]) == 0
    assert "share 2 words in a row" in capsys.readouterr().out
    stored = json.loads((toy_dataset / "overlap.json").read_text())
    assert stored["ngram"] == 13
    assert stored["books"]["shared"] == stored["speakers"]["shared"] == 0


def test_story_items_are_looked_at(capsys):
    table = measure_overlap(open_dataset("embedded").path, open_dataset("embedded").manifest)
    assert table["text"]["stories"]["documents"] == 420


def test_the_option_decides_what_is_stored(tmp_path):
    source = write_toy_jsonl(tmp_path / "in.jsonl", 30)
    options = [f"input={source}", "vocab_size=300", f"speech_vocab={SPEECH_VOCAB}"]
    for n in (2, 5):
        assert main([*options, f"out={tmp_path / str(n)}", f"ngram={n}"]) == 0
    tables = [json.loads((tmp_path / str(n) / "overlap.json").read_text()) for n in (2, 5)]
    assert [t["ngram"] for t in tables] == [2, 5]
    shares = [t["text"]["text"]["share_of_words_covered"] for t in tables]
    assert all(a > b for a, b in pairwise(shares))


def test_a_large_held_out_side_is_measured_on_a_sample(tmp_path, toy_dataset, monkeypatch):
    text = "the cat sat on a mat and saw the moon"
    monkeypatch.setattr(overlap, "SAMPLE_BYTES", 5 * (len(text) + DOCUMENT_BYTES) + 3)
    spoken = [(f"d{i}", "", "", "heldout", text) for i in range(40)]
    found = dataset(tmp_path / "d", toy_dataset / "tokenizer.model", [("t", "", "", "train", "so it goes"), *spoken])
    table = measure_overlap(found.path, found.manifest, ngram=3)["text"]["speech"]
    assert not table["whole"]
    assert table["documents"] == 5


@pytest.mark.parametrize(
    "arguments", [["overlap"], ["overlap", "nowhere"], ["overlap", "embedded", "ngram=0"], ["overlap", "embedded", "ngram=x"]]
)
def test_wrong_arguments_are_one_sentence(capsys, arguments):
    assert main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1
