"""Plans from stated statistics: closed forms against sums over whole places, the file, and what such a plan may not do."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.rows import STATED as STATED_IN_ROWS
from launch.rows import read_rows, require_data
from lst.config import DataConfig, Patching, PatchingConfig, RunConfig, arm_config
from lst.errors import ConfigError, LaunchError
from lst.plain import to_dict
from sweeps.cli import main
from sweeps.folder import run_yaml, to_yaml
from sweeps.plan import plan, read_plan
from sweeps.stated import Content, StatedMeasurements, aligned_share, interleaved_content, pairs, sequence_counts
from sweeps.stated_file import STATED, UnitLength, from_plain, read_stated, to_plain

SMALL = {
    "name": "small",
    "data": "paper",
    "arms": ["baseline", "lst_static", "lst_curriculum"],
    "sizes": ["420M"],
    "units": [524288.0 * 30000],
    "matching": "unit",
    "recipe": {"name": "paper"},
}


def walked(row: int, lengths: list[int], window: float) -> float:
    """min(place in its document, window) over `row` positions, averaged over every start in documents of these lengths."""
    places = [place for length in lengths for place in range(length)]  # of every position of the stream, from 0
    total = 0.0
    for start in range(len(places)):
        inside = itertools.islice(itertools.cycle(places[start:] + places[:start]), row)
        since = 0
        for t, place in enumerate(inside):
            since = 0 if place == 0 or t == 0 else since + 1  # a sequence's start is the start of a document
            total += min(since + 1, window)
    return total / len(places)


def at_even_places(lengths: list[int]) -> list[float]:
    return [float(length) for length in lengths for _ in range(length)]


@settings(max_examples=40, deadline=None)
@given(
    row=st.integers(1, 60),
    lengths=st.lists(st.integers(3, 40), min_size=1, max_size=4),
    window=st.sampled_from([8, 25, math.inf]),
)
def test_pairs_are_those_of_every_start_in_the_stream(row: int, lengths: list[int], window: float) -> None:
    """But for the half places of the integral: no place counts more than one too many or too few."""
    assert pairs(row, at_even_places(lengths), window) == pytest.approx(walked(row, lengths, window), rel=0.03, abs=row * 0.5)


def test_pairs_of_one_endless_document_are_exact() -> None:
    assert pairs(100, []) == sum(range(1, 101))
    assert pairs(100, [], 10) == pytest.approx(sum(min(t, 10) for t in range(1, 101)), rel=0.01)


@given(
    steps=st.integers(1, 400),
    start=st.sampled_from([0.0, 0.2, 1 / 3, 0.5]),
    end=st.sampled_from([0.5, 2 / 3, 0.9, 1.0]),
)
def test_a_curriculums_share_is_the_mean_of_its_schedule(steps: int, start: float, end: float) -> None:
    patching = PatchingConfig(kind=Patching.CURRICULUM, curriculum_aligned_until=start, curriculum_static_from=end)
    each = [patching.aligned_probability(k / steps) for k in range(steps)]
    assert aligned_share(patching, steps) == pytest.approx(sum(each) / steps, abs=1e-9)


def test_units_and_tokens_of_a_sequence_by_hand() -> None:
    """0.77 / p + 0.23 units a token; every token of an endless document counts once."""
    content = Content(0.77, 0.23, 0.0, (), UnitLength(mean_length=4.0))
    counts = sequence_counts(content, 1000, [512, 512])
    assert counts.tokens == pytest.approx(1000 / (0.77 / 4 + 0.23))
    assert counts.patches == pytest.approx(counts.speech_tokens / 4)
    assert counts.units == pytest.approx(counts.patches + counts.text_tokens)
    assert counts.global_pairs == 1000 * 1001 / 2
    # of a patch of four, three tokens see the 0-based place of their unit, the last one more; so does a text token
    seen = counts.tokens * 1001 / 2 - counts.speech_tokens * 3 / 4
    assert counts.cross_pairs == pytest.approx(seen)


def test_documents_cost_a_bos_and_an_eos_each() -> None:
    content = Content(0.5, 0.4, 0.1, (50.0, 50.0), UnitLength(mean_length=2.0))
    counts = sequence_counts(content, 301, [64, 64])
    assert counts.tokens == pytest.approx((300 / (0.75 + 2 / 50)) * (1 + 2 / 50) + 1)
    documents = counts.tokens - counts.predicted
    assert documents == pytest.approx(1 + (counts.tokens - 1) / 52)


@pytest.mark.parametrize("ratio", [1 / 4, 1 / 3, 1.0])
def test_other_mixtures_follow_the_words(ratio: float) -> None:
    paper = read_stated("paper").interleaved
    data = DataConfig(speech_per_text_words=ratio, text_span_words=(12, 12))
    content = interleaved_content(paper, data, UnitLength(mean_length=1.0))
    assert content.speech / content.text == pytest.approx(0.77 / 0.23 * 2 * ratio)
    assert content.speech + content.text == pytest.approx(1)


def test_mean_lengths_of_the_paper_follow_from_its_figures() -> None:
    """Words of 5.8 tokens, silences of 3.7, 9.4 a word with its silence; pieces of 5.0; BPE saves 8.2%."""
    units = {key: unit.mean_length for key, unit in read_stated("paper").units.items()}
    silences, pieces = (9.4 - 5.8) / 3.7, 5.8 / 5.0
    assert units["static_4"] == pytest.approx(0.77 / 0.19)
    assert units["aligned_word_separate"] == pytest.approx((5.8 + silences * 3.7) / (1 + silences))
    assert units["aligned_bpe_separate"] == pytest.approx(9.4 / (pieces + silences))
    assert units["aligned_bpe_previous"] == units["aligned_bpe_next"] == pytest.approx(9.4 / pieces)
    assert 1 - (0.77 / units["pieces_1000"] + 0.23 + 2) / 3 == pytest.approx(0.082)


def test_a_transcripts_sequence_has_the_words_in_both_modalities() -> None:
    """As many text tokens a word as the interleaved share says: 9.4 x 2 x 0.23 / 0.77 / 4."""
    measure = StatedMeasurements(read_stated("paper"))
    pairs = {"data": {"mixture": {"asr": 1.0}}}
    counts = measure.mean(arm_config("baseline", size="420M", **pairs))
    assert counts.speech_tokens / counts.text_tokens == pytest.approx(9.4 / (9.4 / 2 * 0.23 / 0.77))
    lst = measure.mean(arm_config("lst_static", size="420M", **pairs))
    assert lst.patches == pytest.approx(lst.speech_tokens * 0.19 / 0.77)


def test_plans_are_told_apart_from_measured_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "study"
    planned = plan(SMALL)
    planned.write(out)
    assert all(row.data_id == read_stated("paper").data_id and row.data_id.startswith(STATED) for row in planned.rows)
    assert not (out / "references.json").exists()
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    planned.write(out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert read_plan(out).rows == planned.rows
    assert main(["study=lst_table8", "--dry-run"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "planned from stated statistics (Latent Speech-Text Transformer, arXiv 2510.06195v2; stated:" in text
    assert "not measured. To run it, plan again with data=FOLDER" in text


def test_submitting_such_a_plan_is_refused_with_the_remedy(tmp_path: Path) -> None:
    from launch.cli import main as submit

    plan(SMALL).write(tmp_path / "study")
    assert STATED == STATED_IN_ROWS
    with pytest.raises(LaunchError, match=r"plan the study again with plan-sweep \.\.\. data=FOLDER"):
        require_data(read_rows(tmp_path / "study"))
    assert submit(["submit", str(tmp_path / "study")]) == 2
    assert not (tmp_path / "study" / "launch").exists()


def test_a_mixture_of_formats_is_refused_in_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    formats = ["mixture.formats.interleaved=0.3", "mixture.formats.asr=0.2", "mixture.formats.text=0.5"]
    assert main(["study=lst_table8", *formats, "--dry-run"]) == 2
    printed = capsys.readouterr()
    assert "mixture.formats is given, but statistics 'paper' know interleaved and text sequences alone" in printed.err
    assert printed.out == ""
    assert "Traceback" not in printed.err


def test_a_users_file_reads_back_what_was_written(tmp_path: Path) -> None:
    stated = read_stated("paper")
    file = tmp_path / "mine.yaml"
    file.write_text(to_yaml(to_plain(dataclasses.replace(stated, name="mine"))))
    assert read_stated(str(file)) == dataclasses.replace(stated, name="mine")
    ids = [[row.run_id for row in plan(SMALL | {"data": data}).rows] for data in ("paper", str(file))]
    assert ids[0] == ids[1]  # the same numbers under another name
    other = to_plain(stated)
    other["speech_hours"]["Spotify podcasts"] += 1.0
    file.write_text(to_yaml(other))
    assert [row.run_id for row in plan(SMALL | {"data": str(file)}).rows] != ids[0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"interleaved": {"speech_share": 0.9}}, "must be positive shares that sum to 1 at most"),
        ({"interleaved": {"speech_shar": 0.7}}, "did you mean 'speech_share'"),
        ({"interleaved": {"speech_tokens_per_word": float("nan")}}, "must be finite"),
        ({"interleaved": {"speech_tokens_per_word": -1.0}}, "must be a finite number, 0 or more"),
        ({"units": {"static_4": {"mean_length": 0.5}}}, "a unit has 1 token or more"),
        ({"units": {"static_5": {"mean_length": 5.0}}}, "units.static_5.mean_length=5.0 of the statistics 'paper' has no source"),
        ({"speech_hours": {"LibriLight": "many"}}, "must be a number of hours"),
        ({"text_vocab": 0.5}, "text_vocab=0.5 must be of type int"),
        ({"sources": {"speech_vocab": ""}}, "sources.speech_vocab='' must be a text"),
    ],
)
def test_a_wrong_file_is_one_sentence(change: dict[str, Any], says: str) -> None:
    from lst.plain import merge

    with pytest.raises(ConfigError) as error:
        from_plain(merge(to_plain(read_stated("paper")), change))
    assert says in str(error.value)


def test_a_cutting_that_is_not_stated_is_told_with_what_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study=lst_table8", "patching.patch_size=5", "--dry-run"]) == 2
    assert "have no units.static_5, only static_4, static_6" in capsys.readouterr().err


def test_a_missing_file_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study=lst_table8", "data=nowhere.yaml", "--dry-run"]) == 2
    assert "data='nowhere.yaml' is no file" in capsys.readouterr().err


def test_text_and_id_put_together_from_sections_are_those_of_the_whole_for_every_seed() -> None:
    """Shared sections are hashed and written once, and other seeds are copied: as if each run had been made alone."""
    grid = {"name": "grid", "data": "paper", "arms": ["baseline", "lst_curriculum"], "budgets": [1e11, 3e11]}
    together, alone = plan({**grid, "seeds": [0, 1, 2]}), plan({**grid, "seeds": [2]})
    assert {row for row in together.rows if row.seed == 2} == set(alone.rows)
    for run_id, config in together.run_configs.items():
        content = to_dict(config)
        whole = to_yaml({"run_id": run_id, "config": content})
        assert run_yaml(RunConfig.from_dict(content)) == run_yaml(config) == whole
        assert RunConfig.from_dict(content).run_id == run_id
