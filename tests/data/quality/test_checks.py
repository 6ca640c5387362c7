"""Each check on data whose fault is known: a sound corpus is ok everywhere, and each fault is found by its own check."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lst.data.quality.checks import CHECKS, Check, Range, Rule, Verdict, judge
from lst.data.quality.measure import measure
from tests.data.quality.made_data import Row, changed, made_dataset, sound_rows


@pytest.fixture(scope="module")
def tokenizer(toy_dataset: Path) -> Path:
    return toy_dataset / "tokenizer.model"


def checks_of(folder: Path, rows: list[Row], tokenizer: Path, **manifest: Any) -> dict[str, Check]:
    dataset = made_dataset(folder / "data", rows, tokenizer, **manifest)
    return {check.rule.name: check for check in judge(measure(dataset), dataset.manifest)}


def seconds_of(rows: list[Row], rate: float = 25.0) -> float:
    return sum(len(row["speech_tokens"]) for row in rows) / rate


def repeat_rate(rows: list[Row]) -> float:
    """Counted pair by pair."""
    pairs = [(a, b) for row in rows for a, b in zip(row["speech_tokens"], row["speech_tokens"][1:], strict=False)]
    return sum(a == b for a, b in pairs) / len(pairs)


def test_sound_data_are_ok_in_every_check(tmp_path: Path, tokenizer: Path) -> None:
    rows = sound_rows()
    about = {"speech_tokenizer": {"measured": {"repeat_rate": repeat_rate(rows)}}}
    found = checks_of(tmp_path, rows, tokenizer, audio_seconds=seconds_of(rows), refused={}, about=about)
    assert {name: check.shown for name, check in found.items() if check.verdict is not Verdict.OK} == {}


def without_words(row: Row) -> Row:
    return row | {"words": [], "word_start": [], "word_end": []}


def constant(row: Row) -> Row:
    return row | {"speech_tokens": [5] * len(row["speech_tokens"])}


def doubled(row: Row) -> Row:
    """The same speech as tokens at 50 Hz."""
    return row | {
        "speech_tokens": np.repeat(row["speech_tokens"], 2).tolist(),
        "word_start": [2 * s for s in row["word_start"]],
        "word_end": [2 * e + 1 for e in row["word_end"]],
    }


def deduplicated(row: Row) -> Row:
    tokens = np.array(row["speech_tokens"])
    return without_words(row) | {"speech_tokens": tokens[np.append(True, tokens[1:] != tokens[:-1])].tolist()}


def shuffled_tokens(row: Row) -> Row:
    return row | {"speech_tokens": np.random.default_rng(1).permutation(row["speech_tokens"]).tolist()}


def reversed_words(row: Row) -> Row:
    """Times of the words read backwards: each word has another's times, and frames of words and silences are mixed up."""
    last = len(row["speech_tokens"]) - 1
    return row | {
        "word_start": [last - e for e in reversed(row["word_end"])],
        "word_end": [last - s for s in reversed(row["word_start"])],
    }


def one_word(row: Row) -> Row:
    """An alignment that found the first word alone: the rest of the document counts as silence."""
    return row | {key: row[key][:1] for key in ("words", "word_start", "word_end")}


def padded(row: Row) -> Row:
    return row | {"speech_tokens": row["speech_tokens"] + [39] * 400}


def cut_short(row: Row) -> Row:
    return without_words(row) | {"speech_tokens": row["speech_tokens"][:20]}


FAULTS: dict[str, tuple[Callable[[Row], Row], dict[str, Verdict]]] = {
    "constant": (
        constant,
        {
            "centres_never_used": Verdict.BAD,
            "token_spread": Verdict.BAD,
            "commonest_token": Verdict.BAD,
            "repeat_rate": Verdict.BAD,
            "longest_run": Verdict.BAD,
            "dominated_documents": Verdict.BAD,
            "tokens_know_silence": Verdict.BAD,
        },
    ),
    "at 50 Hz": (doubled, {"speaking_rate": Verdict.LOOK, "repeat_rate": Verdict.LOOK}),
    "deduplicated": (deduplicated, {"repeat_rate": Verdict.BAD, "alignment_coverage": Verdict.BAD}),
    "shuffled tokens": (shuffled_tokens, {"token_order": Verdict.BAD, "tokens_know_silence": Verdict.BAD}),
    "shuffled alignment": (reversed_words, {"length_follows_letters": Verdict.BAD, "tokens_know_silence": Verdict.BAD}),
    "lost alignment": (
        one_word,
        {
            "words_without_frames": Verdict.BAD,
            "words_spell_text": Verdict.BAD,
            "silence_share": Verdict.BAD,
            "silent_documents": Verdict.BAD,
            "longest_silence": Verdict.LOOK,
        },
    ),
    "padded": (padded, {"longest_run": Verdict.BAD, "longest_silence": Verdict.LOOK, "silence_share": Verdict.LOOK}),
    "cut short": (cut_short, {"length_limits": Verdict.BAD}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_by_its_checks(tmp_path: Path, tokenizer: Path, fault: str) -> None:
    change, expected = FAULTS[fault]
    found = checks_of(tmp_path, changed(sound_rows(), change), tokenizer)
    assert {name: found[name].verdict for name in expected} == expected, {n: found[n].shown for n in expected}


@pytest.mark.parametrize(
    ("rate", "verdict"),
    [(25, Verdict.OK), (24.8, Verdict.OK), (24.7, Verdict.LOOK), (26, Verdict.LOOK), (50, Verdict.BAD), (12.5, Verdict.BAD)],
)
def test_unit_rate_is_tokens_a_second_of_audio(tmp_path: Path, tokenizer: Path, rate: float, verdict: Verdict) -> None:
    rows = sound_rows(6)
    found = checks_of(tmp_path, rows, tokenizer, audio_seconds=seconds_of(rows, rate))["unit_rate"]
    assert found.found.value == pytest.approx(rate)
    assert found.verdict is verdict


def test_without_durations_the_rate_is_unknown(tmp_path: Path, tokenizer: Path) -> None:
    found = checks_of(tmp_path, sound_rows(6), tokenizer)["unit_rate"]
    assert (found.verdict, found.shown) == (Verdict.UNKNOWN, "unknown")
    assert found.found.detail == "the source recorded no durations of audio"


def test_one_silent_document_of_many_is_named(tmp_path: Path, tokenizer: Path) -> None:
    rows = sound_rows(200)
    rows[17] = rows[17] | {"speech_tokens": [39] * 300, "words": ["a"], "word_start": [3], "word_end": [4]}
    found = checks_of(tmp_path, rows, tokenizer)
    assert found["silent_documents"].verdict is Verdict.LOOK
    assert found["silent_documents"].found.detail == "1 of 200 documents: doc-17"
    assert found["dominated_documents"].found.detail == "1 of 200 documents: doc-17"
    assert found["longest_silence"].found.value == 295 / 25
    assert found["longest_silence"].found.detail.startswith("doc-17 at 0.20 s")
    assert found["longest_run"].found.value == 300 / 25


def test_duplicates_are_counted_and_named(tmp_path: Path, tokenizer: Path) -> None:
    rows = sound_rows(40)
    rows.append(rows[8] | {"id": "again"})  # tokens and text
    rows.append(rows[9] | {"id": "DOC_0009", "speech_tokens": [*rows[9]["speech_tokens"], 1]})  # text and nearly the id
    found = checks_of(tmp_path, rows, tokenizer)
    assert found["equal_tokens"].found.value == pytest.approx(1 / 42)
    assert found["equal_tokens"].found.detail == "of 42: doc-8 = again"
    assert found["equal_texts"].found.value == pytest.approx(2 / 42)
    assert found["near_ids"].found.detail == "of 42: doc-9 = DOC_0009"
    assert found["near_ids"].verdict is Verdict.BAD
    assert found["equal_texts"].verdict is Verdict.LOOK


def test_refusals_are_a_share_of_all_records(tmp_path: Path, tokenizer: Path) -> None:
    told = {"speech": {"records": 5, "by_reason": {"not JSON": 4, "no id": 1}}, "text": {"records": 9, "by_reason": {"x": 9}}}
    found = checks_of(tmp_path, sound_rows(45), tokenizer, refused=told)["refused"]
    assert (found.found.value, found.verdict) == (0.1, Verdict.BAD)
    assert found.found.detail == "5 of 50 records"


def test_the_card_is_compared_by_its_worst_figure(tmp_path: Path, tokenizer: Path) -> None:
    rows = sound_rows(12)
    rate = repeat_rate(rows)
    for stated, verdict in ((rate, Verdict.OK), (rate * 1.5, Verdict.LOOK), (rate / 3, Verdict.BAD)):
        card = {"speech_tokenizer": {"measured": {"repeat_rate": stated}}}
        found = checks_of(tmp_path / f"{stated}", rows, tokenizer, about=card)["tokenizer_card"]
        assert found.found.value == pytest.approx(max(rate / stated, stated / rate))
        assert found.verdict is verdict


def test_a_rule_judges_at_its_borders() -> None:
    rule = Rule("x", "x", lambda m, _: None, Range(1, 2), Range(0, 4), str, "")  # type: ignore[arg-type, return-value]
    values = [-0.1, 0, 0.9, 1, 2, 2.1, 4, 4.1, None, math.nan]
    expected = ["bad", "look", "look", "ok", "ok", "look", "look", "bad", "unknown", "unknown"]
    assert [rule.verdict(v) for v in values] == expected


def test_every_rule_gives_a_reason_and_looks_wider_than_it_passes() -> None:
    assert len({rule.name for rule in CHECKS}) == len(CHECKS)
    for rule in CHECKS:
        assert len(rule.reason) > 40
        assert rule.look.low <= rule.ok.low <= rule.ok.high <= rule.look.high
