"""Speech to text and text to speech on a small model: figures by hand, folders whole, resumed to the same records."""

from __future__ import annotations

import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lst.data.shards import open_dataset
from lst.errors import LstError
from lst.evals import asr, tts
from lst.evals.__main__ import main
from lst.evals.asr import AsrConfig, asr_metrics, run_asr
from lst.evals.recogniser import open_recogniser
from lst.evals.tts import run_tts, tts_metrics
from lst.evals.utterances import heldout_utterances
from lst.model import build_model, export_checkpoint
from lst.records import read_jsonl
from tests.train.tiny_run import tiny_config


@pytest.fixture(scope="module")
def checkpoint(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = tiny_config("lst_static", tiny_data)
    return export_checkpoint(build_model(config), config, tmp_path_factory.mktemp("c") / "model")


def test_utterances_are_the_held_out_documents_cut_by_words(tiny_data: Path) -> None:
    dataset = open_dataset(tiny_data)
    found = heldout_utterances(dataset, count=1000, words=7, seed=0)
    rows = dataset.speech.take(dataset.rows("speech", "heldout")).to_pylist()
    assert len(found) == sum(-(-len(row["words"]) // 7) for row in rows)
    first = [u for u in found if u.id.startswith("0/")]
    assert first[0].text == " ".join(rows[0]["words"][:7])
    assert np.concatenate([u.speech.tokens for u in first]).tolist() == rows[0]["speech_tokens"]
    assert {u.id for u in heldout_utterances(dataset, count=5, words=7, seed=1)} != {u.id for u in found[:5]}


def record(said: int, heard: int, wrong: tuple[int, int, int], **changes: Any) -> dict[str, Any]:
    names = ("substitutions", "deletions", "insertions")
    lengths = {"context_tokens": 103, "context_units": 28, "generated_tokens": 9, "seconds": 4.0}
    basic = {"said_words": said, "heard_words": heard, "finished": True, "repeats": False} | lengths
    return basic | dict(zip(names, wrong, strict=True)) | changes


def test_asr_rates_are_of_all_words_and_hallucinations_shares_of_utterances() -> None:
    records = [
        record(10, 10, (2, 0, 0)),
        record(10, 18, (0, 1, 9), finished=False, repeats=True),
        record(20, 0, (0, 20, 0), context_units=32),
        record(10, 15, (1, 0, 5)),
    ]
    found = {row["metric"]: (row["value"], row["n_items"]) for row in asr_metrics(records)}
    assert found["wer"] == (pytest.approx(38 / 50, abs=1e-12), 50)
    assert found["insertions_rate"] == (pytest.approx(14 / 50, abs=1e-12), 50)
    assert found["unfinished_share"] == found["empty_share"] == found["repeating_share"] == (0.25, 4)
    assert found["too_long_share"] == (0.25, 4)  # 18 > 1.5 x 10; 15 is not
    assert found["mean_context_units"] == (29.0, 4)
    assert found["units_per_token"] == (pytest.approx((3 * 25 + 29) / 400, abs=1e-12), 4)  # 25 of 100 tokens thrice, and 29


@pytest.mark.parametrize("beams", [1, 3])
def test_asr_writes_what_was_heard_and_its_errors(checkpoint: Path, tmp_path: Path, beams: int) -> None:
    out = tmp_path / "o"
    assert main(["asr", str(checkpoint), f"out={out}", "utterances=5", "words=4", f"beams={beams}", "extra_tokens=2"]) == 0
    records, metrics = read_jsonl(out / "items.jsonl"), read_jsonl(out / "eval.jsonl")
    assert len(records) == 5
    wrong = sum(r["substitutions"] + r["deletions"] + r["insertions"] for r in records)
    (wer,) = (m for m in metrics if m["metric"] == "wer")
    assert wer["value"] == pytest.approx(wrong / sum(r["said_words"] for r in records))
    assert (wer["normaliser"], wer["beams"], wer["patching"]) == ("plain-english-1", beams, "static")
    for r in records:
        tokens = r["context_tokens"] - 3
        assert r["context_units"] == 3 + -(-tokens // 4)  # BOS, two markers, patches of four
        limit = int(np.ceil(8 * tokens / 25)) + 2
        assert r["generated_tokens"] <= limit
        assert r["finished"] or r["generated_tokens"] == limit


def test_an_interrupted_asr_goes_on_to_the_same_records(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asr, "PART", 2)
    options = {"utterances": 5, "words": 4}
    run_asr(checkpoint, options | {"out": str(tmp_path / "whole")})
    real, calls = asr.transcribe, 0

    def stops(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(asr, "transcribe", stops)
    with pytest.raises(KeyboardInterrupt):
        run_asr(checkpoint, options | {"out": str(tmp_path / "cut")})
    run_asr(checkpoint, options | {"out": str(tmp_path / "cut")})
    assert calls == 2 + 2
    assert (tmp_path / "cut" / "items.jsonl").read_bytes() == (tmp_path / "whole" / "items.jsonl").read_bytes()


def test_transcripts_do_not_depend_on_what_is_decoded_beside_them(checkpoint: Path, tiny_data: Path) -> None:
    from lst.evals.checkpoints import open_checkpoint

    opened = open_checkpoint(checkpoint, dtype="float64")
    utterances = heldout_utterances(open_dataset(tiny_data), count=4, words=5, seed=2)
    together = asr.transcribe(opened, utterances, AsrConfig())
    apart = [asr.transcribe(opened, [u], AsrConfig())[0] for u in utterances]
    assert together == apart


def test_tts_figures_by_hand() -> None:
    basic = {"finished": True, "said_characters": 20, "generation_seconds": 1.0, "vocoder_seconds": 0.5}
    records = [
        basic | {"seconds": 4.0, "said_seconds": 2.0, "generated_units": 25, "generated_tokens": 100, "wrong_characters_w": 5},
        basic | {"seconds": 0.0, "said_seconds": 2.0, "generated_units": 0, "generated_tokens": 0, "wrong_characters_w": 20},
    ]
    found = {row["metric"]: row["value"] for row in tts_metrics(records)}
    assert (found["units_per_token"], found["generated_units_per_second"]) == (0.25, 6.25)
    assert (found["duration_ratio"], found["real_time_factor"]) == (1.0, 0.75)
    assert (found["cer_w"], found["empty_share"]) == (0.625, 0.5)
    silent = {row["metric"]: row["value"] for row in tts_metrics(records[1:])}  # nothing generated has no rate
    assert set(silent) == {"seconds", "duration_ratio", "unfinished_share", "empty_share", "cer_w"}


def test_sound_of_another_evaluation_that_never_ended_goes(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"utterances": 2, "words": 2, "vocoder": "none", "seconds_per_word": 0.1, "extra_seconds": 0.1}
    monkeypatch.setattr("lst.evals.tts.PART", 1)
    speak, calls = tts.speak_utterance, []

    def stops(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return speak(*arguments)

    monkeypatch.setattr(tts, "speak_utterance", stops)
    with pytest.raises(KeyboardInterrupt):
        run_tts(checkpoint, given | {"out": str(tmp_path / "o")})
    (tmp_path / ".o.work" / "audio" / "0000.wav").write_bytes(b"of greedy decoding")
    run_tts(checkpoint, given | {"out": str(tmp_path / "o"), "temperature": 1.0})
    assert list((tmp_path / "o" / "audio").iterdir()) == []


def test_tts_writes_units_and_sampling_is_fixed_by_its_seed(checkpoint: Path, tmp_path: Path) -> None:
    given = {"utterances": 3, "words": 3, "vocoder": "none", "extra_seconds": 0.2, "seconds_per_word": 0.3, "temperature": 1.0}
    for name in ("a", "b"):
        assert "units a second" in run_tts(checkpoint, given | {"out": str(tmp_path / name)})
    rows = [read_jsonl(tmp_path / name / "items.jsonl") for name in ("a", "b")]
    clocks = ("generation_seconds", "vocoder_seconds")
    plain = [[{k: v for k, v in r.items() if k not in clocks} for r in part] for part in rows]
    assert plain[0] == plain[1]
    stated = {(m["patching"], m["conditional"], m["normaliser"]) for m in read_jsonl(tmp_path / "a" / "eval.jsonl")}
    assert stated == {("static", False, "plain-english-1")}
    for r in rows[0]:
        assert r["generated_units"] <= -(-r["generated_tokens"] // 4) + 2
    assert json.loads((tmp_path / "a" / "evaluation.json").read_text())["decided_by"]["temperature"] == 1.0


class Tones:
    """A vocoder of 25 tokens a second."""

    rate, num_tokens, units = 16_000, 40, ""

    def synthesize(self, tokens_T: torch.Tensor) -> torch.Tensor:
        return torch.sin(torch.arange(640)[None] * (tokens_T[:, None] + 1) / 50).flatten()


@pytest.fixture
def whisper(tmp_path: Path) -> Path:
    """A tiny random Whisper in a local folder, with its tokenizer."""
    transformers = pytest.importorskip("transformers", reason="needs transformers, of the extra `hf`")
    from tests.evals.tiny_whisper import write_tiny_whisper

    return write_tiny_whisper(tmp_path / "whisper-tiny", transformers)


def test_generated_sound_is_heard_by_a_recogniser_of_a_local_folder(
    checkpoint: Path, tmp_path: Path, whisper: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lst.data.vocoders import vocoder

    monkeypatch.setattr(vocoder, "open_vocoder", lambda name, voice="": vocoder.Vocoder(Tones(), "tones"))
    given = {"utterances": 2, "words": 3, "recognisers": str(whisper), "temperature": 1.0, "extra_seconds": 0.4}
    run_tts(checkpoint, given | {"out": str(tmp_path / "o"), "seconds_per_word": 0.2})
    records, metrics = read_jsonl(tmp_path / "o" / "items.jsonl"), read_jsonl(tmp_path / "o" / "eval.jsonl")
    (cer,) = (m for m in metrics if m["metric"] == "cer_whisper-tiny")
    assert cer["value"] == pytest.approx(
        sum(r["wrong_characters_whisper-tiny"] for r in records) / sum(r["said_characters"] for r in records)
    )
    spoken = [r for r in records if r["generated_tokens"]]
    files = sorted((tmp_path / "o" / "audio").glob("*.wav"))
    assert len(files) == len(spoken) > 0
    with wave.open(str(files[0])) as sound:
        assert sound.getnframes() == 640 * spoken[0]["generated_tokens"]


@pytest.mark.parametrize(
    ("verb", "options", "reason"),
    [
        (run_asr, {"beams": 0}, "beams=0 must be positive"),
        (run_asr, {"length_penalty": 1.0}, "has no effect on one beam"),
        (run_asr, {"normaliser": "none-such"}, "normaliser='none-such' is unknown"),
        (run_asr, {"test": "embedded"}, "has another speech tokenizer"),
        (run_tts, {"temperature": -1.0}, "temperature"),
        (run_tts, {"top_p": 0.5}, "top_k=0 and top_p=0.5 have no effect at temperature=0"),
        (run_asr, {"beams": 101}, "beams=101 is more than 100"),
        (run_tts, {"vocoder": "none", "recognisers": "x"}, "recognisers=x hear nothing"),
        (run_tts, {"recognisers": "nowhere"}, "recognisers=nowhere has no config.json"),
        (run_tts, {}, "vocoder"),  # the embedded one speaks the embedded corpus' tokens alone
    ],
)
def test_wrong_options_are_one_sentence(
    checkpoint: Path, tmp_path: Path, verb: Any, options: dict[str, Any], reason: str
) -> None:
    if "recognisers" in options and "vocoder" not in options:
        with pytest.raises(LstError, match=reason):
            open_recogniser(options["recognisers"])
        return
    with pytest.raises(LstError, match=reason):
        verb(checkpoint, {"out": str(tmp_path / "o"), **options})
    assert not (tmp_path / "o").exists()


def test_an_option_that_is_neither_true_nor_false_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tts", "nowhere", "static_fallback=maybe"]) == 2
    assert "static_fallback=maybe must be true or false" in capsys.readouterr().err
