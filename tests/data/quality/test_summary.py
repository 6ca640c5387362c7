"""statistics.json against the patcher, against counting by hand, and against what the trainer's stream holds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lst.config import Arm, Patching, arm_config
from lst.data.quality.cli import statistics
from lst.data.quality.show import patching_grid, summary_text
from lst.data.quality.summary import PATCH_SIZES, STATISTICS, Budget, at_budget, summarise, summary_of, write_summary
from lst.data.shards import Dataset
from lst.data.statistics import corpus_statistics, count_sequences, solve_mixture
from lst.errors import ConfigError
from lst.patching import aligned_patches, patch_span
from lst.records import file_sha256
from tests.data.quality.made_data import changed, in_shards, made_dataset, sound_rows


@pytest.fixture(scope="module")
def dataset(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    rows = sound_rows(30)
    rows[7] |= {"words": [], "word_start": [], "word_end": []}  # a document without words
    return made_dataset(tmp_path_factory.mktemp("summary") / "data", rows, toy_dataset / "tokenizer.model")


def test_patch_lengths_are_those_of_the_patcher(dataset: Dataset) -> None:
    found = summarise(dataset)["speech"]
    for split in ("train", "heldout"):
        rows = [row for row in dataset.speech.to_pylist() if row["split"] == split]
        for size in PATCH_SIZES:
            patches = [patch_span(Patching.STATIC, len(r["speech_tokens"]), patch_size=size).lengths for r in rows]
            expected = found[split]["patching"][f"static({size})"]
            assert expected["mean_patch_length"] == pytest.approx(np.concatenate(patches).mean())
            assert expected["units_per_document"] == pytest.approx(np.mean([len(p) for p in patches]))
        aligned = [row for row in rows if row["words"]]
        for rule in ("separate", "previous", "next"):
            patches = [
                aligned_patches(len(r["speech_tokens"]), np.stack([r["word_start"], r["word_end"]], 1), rule).lengths
                for r in aligned
            ]
            expected = found[split]["patching"][f"aligned, silence {rule}"]
            assert expected["mean_patch_length"] == pytest.approx(np.concatenate(patches).mean())
            assert expected["units_per_document"] == pytest.approx(np.mean([len(p) for p in patches]))


def test_sizes_are_those_of_the_corpus(dataset: Dataset) -> None:
    sizes, found = corpus_statistics(dataset), summarise(dataset)
    speech, text = found["speech"]["train"], found["text"]["train"]
    assert speech["documents"] == sizes["spoken_documents"]
    assert speech["speech_tokens"] == sizes["unique_speech_tokens"]
    assert speech["seconds"] == sizes["speech_seconds"]
    assert speech["words"] == sizes["spoken_words"]
    assert (text["documents"], text["text_tokens"]) == (sizes["text_documents"], sizes["unique_text_tokens"])
    words = [row for row in dataset.speech.to_pylist() if row["split"] == "train" and row["words"]]
    assert speech["documents_with_words"] == len(words)
    assert speech["patching"]["words"]["mean_patch_length"] == pytest.approx(
        np.mean([e - s + 1 for row in words for s, e in zip(row["word_start"], row["word_end"], strict=True)])
    )


def test_the_summary_does_not_depend_on_how_the_data_lie(dataset: Dataset, tmp_path: Path) -> None:
    assert summarise(in_shards(dataset, tmp_path / "shards")) == summarise(dataset)


def test_a_stored_summary_is_read_and_one_that_was_changed_or_is_of_another_version_is_not(
    toy_dataset: Path, tmp_path: Path
) -> None:
    made = made_dataset(tmp_path / "data", sound_rows(6), toy_dataset / "tokenizer.model")
    counted = summarise(made)
    file, told = made.path / STATISTICS, counted | {"refused": {"not JSON": 3}}
    write_summary(made.path, told)
    made.manifest["files"][STATISTICS] = file_sha256(file)
    assert summary_of(made) == told
    file.write_text(file.read_text().replace('"words": ', '"words": 1'))  # JSON still, of this data by its own words
    assert summary_of(made) == counted
    file.write_text('{"summary_version": 1,')
    assert summary_of(made) == counted
    write_summary(made.path, told | {"summary_version": 0})
    made.manifest["files"][STATISTICS] = file_sha256(file)
    assert summary_of(made) == counted


@pytest.mark.parametrize("arm", [Arm.BASELINE, Arm.LST_STATIC, Arm.LST_ALIGNED])
def test_a_budget_is_what_the_stream_of_that_arm_holds(arm: Arm, toy_dataset: Path) -> None:
    """Counted from a run's own sequences, with the mixture that the planner solves.

    Of 800 sequences some 200 are interleaved, whose speech varies by a quarter: five standard errors are about 8%.
    """
    toy = Dataset(toy_dataset)
    budget = Budget(steps=100, batch=8, seq_len_units=256, patch_size=4, arms=(arm,))
    sections = {
        "model": {"text_vocab": toy.text_vocab, "speech_vocab": toy.speech_vocab},
        "data": {"seq_len_units": 256},
        "patching": {"patch_size": 4},
        "train": {"steps": 100, "batch_sequences": 8},
    }
    config = arm_config(arm.value, **sections)
    data = {**sections["data"], **{k: v for k, v in vars(solve_mixture(toy, config)).items() if "share" in k}}
    stream = count_sequences(toy, arm_config(arm.value, **{**sections, "data": data})).total()
    (row,) = at_budget(toy, summarise(toy), budget)
    assert row["units"] == pytest.approx(stream.units, rel=0.01)
    assert row["mean_patch_length"] == pytest.approx(stream.mean_patch_length, rel=0.01)
    for key in ("tokens", "speech_tokens", "text_tokens"):
        assert row[key] == pytest.approx(getattr(stream, key), rel=0.08), key
    unique = corpus_statistics(toy)["unique_speech_tokens"]
    assert row["speech_epochs"] == pytest.approx(row["speech_tokens"] / unique)


def test_preparation_stores_the_summary_with_a_checksum(toy_dataset: Path) -> None:
    toy = Dataset(toy_dataset)
    assert json.loads((toy_dataset / STATISTICS).read_text()) == summarise(toy)
    assert STATISTICS in toy.manifest["files"]
    assert summarise(toy)["refused"] == {}


def test_twice_the_tokens_are_twice_the_epochs(toy_dataset: Path) -> None:
    toy = Dataset(toy_dataset)
    once, twice = (
        at_budget(toy, summarise(toy), Budget(tokens=t, seq_len_units=256, arms=(Arm.BASELINE,)))[0] for t in (1e5, 2e5)
    )
    assert once["tokens"] == pytest.approx(1e5)
    assert twice["speech_epochs"] == pytest.approx(2 * once["speech_epochs"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "nothing is given where one folder is wanted"),
        (["a", "b"], "a b is given where one folder is wanted"),
        (["a", "token=3"], "did you mean 'tokens'"),
        (["a", "tokens=many"], "tokens=many is no number"),
        (["a", "tokens=0"], "tokens=0.0 must be positive"),
        (["a", "tokens=nan"], "tokens=nan must be positive"),
        (["a", "tokens=1", "tokens=2"], "tokens is given twice"),
        (["a", "tokens=1", "steps=2"], "either tokens=NUMBER, or steps=NUMBER batch=NUMBER"),
        (["a", "steps=2"], "either tokens=NUMBER, or steps=NUMBER batch=NUMBER"),
        (["a", "json=yes"], "json=yes must be true or false"),
        (["a", "arms=lst_statik"], "did you mean 'lst_static'"),
    ],
)
def test_wrong_options_are_told_in_a_sentence(options: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as told:
        statistics(options)
    assert said in str(told.value)


def test_the_table_fits_100_columns_and_json_holds_the_same(toy_dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(toy_dataset), "tokens=1e12", "seq_len_units=256"]
    assert statistics(arguments) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines()[1:])) <= 100
    assert statistics([*arguments, "json=true"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert f"{values['speech']['train']['speech_tokens']:,}" in printed
    assert f"{values['budget'][0]['speech_epochs']:.2f}" in printed
    assert [row["arm"] for row in values["budget"]] == ["baseline", "lst_static", "lst_aligned"]


def test_the_rows_stand_in_one_order_whether_counted_or_stored(toy_dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy = Dataset(toy_dataset)
    assert statistics([str(toy_dataset)]) == 0  # from statistics.json
    assert capsys.readouterr().out == summary_text(toy, summarise(toy), []) + "\n"
    rows = [row[0] for row in patching_grid(json.loads((toy_dataset / STATISTICS).read_text())).rows]
    assert rows[:7] == ["token", "static(2)", "static(3)", "static(4)", "static(5)", "static(6)", "static(8)"]
    assert rows[7:] == ["words", "silences", *(f"aligned, silence {rule}" for rule in ("separate", "previous", "next"))]


def test_speech_without_any_words_has_no_aligned_figures(toy_dataset: Path, tmp_path: Path) -> None:
    rows = changed(sound_rows(6), lambda row: row | {"words": [], "word_start": [], "word_end": []})
    found = summarise(made_dataset(tmp_path / "data", rows, toy_dataset / "tokenizer.model"))["speech"]["train"]
    assert found["words"] == found["documents_with_words"] == 0
    assert set(found["patching"]) == {"token", *(f"static({p})" for p in PATCH_SIZES)}
