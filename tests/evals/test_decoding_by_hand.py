"""Speech recognition and synthesis by hand, in fp64: what a model with known probabilities says, step by step.

A checkpoint of real layout in which nothing is added to the embeddings (all `to_out` are 0), so that the next id depends on the
current one alone. Its probabilities (all other ids have about e^-60):

    after <t>   one .5    two .4    EOS .1                after <s>   3 16/29   5 9/29   EOS 4/29
    after one   six .41   one .24   EOS .2   <s> .15      after 3     5 16/29   3 9/29   <t> 4/29
    after two   EOS .9    two .1                          after 5     7 16/29   3 9/29   EOS 4/29
    after six   six .4    EOS .35   one .25               after 7     8 16/29   EOS 9/29  7 4/29
                                                          after 8     9 16/29   3 9/29   <t> 4/29
                                                          after 9     EOS 16/29  9 9/29  3 4/29

Held-out utterances, of at most three words: "one six two" of 7 speech tokens (0.28 s), and "ten two" of 5 (0.20 s).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import sentencepiece
import torch

from lst.data.preparing.shard_writer import write_dataset
from lst.data.shards import open_dataset
from lst.data.vocab import BOS, EOS, Vocabulary
from lst.data.vocoders import vocoder
from lst.evals import recogniser
from lst.evals.__main__ import main
from lst.evals.asr import AsrConfig, transcribe
from lst.evals.beam import beam_search
from lst.evals.checkpoints import open_checkpoint
from lst.evals.tts import TtsConfig, speak_utterance
from lst.evals.utterances import heldout_utterances
from lst.model import build_model, export_checkpoint, generate
from lst.model.generate import Stop
from lst.records import read_jsonl
from tests.evals.test_asr_tts import Tones
from tests.train.tiny_run import SPEECH_VOCAB, tiny_config

WORDS = ("one", "two", "six", "ten", "red")
TABLE: dict[str | int, dict[str | int, float]] = {
    "<t>": {"one": 0.5, "two": 0.4, "EOS": 0.1},
    "one": {"six": 0.41, "one": 0.24, "EOS": 0.2, "<s>": 0.15},
    "two": {"EOS": 0.9, "two": 0.1},
    "six": {"six": 0.4, "EOS": 0.35, "one": 0.25},
    "<s>": {3: 16 / 29, 5: 9 / 29, "EOS": 4 / 29},
    3: {5: 16 / 29, 3: 9 / 29, "<t>": 4 / 29},
    5: {7: 16 / 29, 3: 9 / 29, "EOS": 4 / 29},
    7: {8: 16 / 29, "EOS": 9 / 29, 7: 4 / 29},
    8: {9: 16 / 29, 3: 9 / 29, "<t>": 4 / 29},
    9: {"EOS": 16 / 29, 9: 9 / 29, 3: 4 / 29},
}
OTHERS = -60.0  # ln P
ARMS = ("baseline", "lst_static")


def write_words(folder: Path) -> Path:
    """A data set of one held-out document, "one six two ten two", whose every word is a text piece."""
    (folder / "words.txt").write_text("\n".join([" ".join(WORDS)] * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "words.txt"), model_prefix=str(folder / "words"), vocab_size=3 + len(WORDS), model_type="word",
        bos_id=1, eos_id=2, unk_id=0, pad_id=-1, minloglevel=2, num_threads=1,
    )  # fmt: skip
    spoken = []
    for split in ("heldout", "train"):
        about = {"id": split, "speaker": "v", "book": "b", "split": split, "text": "one six two ten two"}
        words = {"words": about["text"].split(), "word_start": [0, 3, 5, 7, 10], "word_end": [2, 4, 6, 9, 11]}
        spoken.append(about | words | {"speech_tokens": list(range(12))})
    written = [{"id": f"t-{split}", "book": "b", "split": split, "text": "red ten"} for split in ("heldout", "train")]
    tables = {name: pa.Table.from_pylist(rows) for name, rows in (("speech", spoken), ("text", written))}
    write_dataset(folder / "data", tables, tokenizer=folder / "words.model", speech_vocab=SPEECH_VOCAB)
    return folder / "data"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("by-hand")


@pytest.fixture(scope="module")
def checkpoints(folder: Path) -> dict[str, Path]:
    data = write_words(folder)
    tokenizer = open_dataset(data).tokenizer
    found = {}
    for arm in ARMS:
        config = tiny_config(arm, data, model={"text_vocab": 3 + len(WORDS)})
        vocabulary = Vocabulary.of(config.model)
        named = {"EOS": EOS, "<t>": vocabulary.text_marker, "<s>": vocabulary.speech_marker}

        def number(name: str | int, named: dict[str, int] = named, vocabulary: Vocabulary = vocabulary) -> int:
            if isinstance(name, int):
                return vocabulary.text + name
            return named[name] if name in named else int(tokenizer.encode(name)[0])

        model = build_model(config)
        weights = dict(model.named_parameters())
        width = weights["head.weight"].shape[1]
        with torch.no_grad():
            for name, weight in weights.items():
                if name.endswith("to_out.weight"):
                    weight.zero_()
            weights["embedding.weight"].zero_()[:, 0] = 1e6  # so large that the norm's epsilon is nothing beside it
            weights["head.weight"].fill_(OTHERS / math.sqrt(width))
            for place, (current, following) in enumerate(TABLE.items(), 1):
                weights["embedding.weight"][number(current), [0, place]] = torch.tensor([0.0, 1e6])
                for name, p in following.items():
                    weights["head.weight"][number(name), place] = math.log(p) / math.sqrt(width)
        found[arm] = export_checkpoint(model, config, folder / arm)
    return found


def evaluated(out: Path) -> tuple[list[dict[str, Any]], dict[str, float]]:
    return read_jsonl(out / "items.jsonl"), {row["metric"]: row["value"] for row in read_jsonl(out / "eval.jsonl")}


ASR = ["words=3", "tokens_per_second=12.5", "extra_tokens=2", "dtype=float64"]
"""Limits: ceil(12.5 x 0.28) + 2 = 6 text tokens, and ceil(12.5 x 0.20) + 2 = 5."""
UNITS = {"baseline": (10, 8), "lst_static": (5, 5)}  # BOS, two markers, and 7 and 5 tokens: in patches of four, two and two


@pytest.mark.parametrize("arm", ARMS)
def test_greedy_recognition_by_hand(checkpoints: dict[str, Path], tmp_path: Path, arm: str) -> None:
    """Always the likeliest: one (.5), six (.41), six (.4), ... without an end, cut after 6 and 5 tokens.

    "one six six six six six" for "one six two": one substitution, three insertions. "one six six six six" for "ten two": two
    substitutions, three insertions. Five words were said.
    """
    assert main(["asr", str(checkpoints[arm]), *ASR, f"out={tmp_path / 'o'}"]) == 0
    records, values = evaluated(tmp_path / "o")
    assert [r["said"] for r in records] == ["one six two", "ten two"]
    assert [r["heard"] for r in records] == ["one six six six six six", "one six six six six"]
    assert [(r["substitutions"], r["deletions"], r["insertions"], r["finished"]) for r in records] == [
        (1, 0, 3, False), (2, 0, 3, False),
    ]  # fmt: skip
    assert tuple(r["context_units"] for r in records) == UNITS[arm]
    expected = {
        "wer": 9 / 5, "substitutions_rate": 3 / 5, "deletions_rate": 0.0, "insertions_rate": 6 / 5, "unfinished_share": 1.0,
        "empty_share": 0.0, "repeating_share": 0.0, "too_long_share": 1.0, "mean_context_tokens": 9.0,
        "mean_context_units": sum(UNITS[arm]) / 2, "units_per_token": (sum(UNITS[arm]) - 6) / 12, "mean_generated_tokens": 5.5,
    }  # fmt: skip
    assert values == pytest.approx(expected, abs=1e-12)
    opened = open_checkpoint(checkpoints[arm], dtype="float64")
    (decoded,) = generate(opened.model, opened.config, [[("speech", [1, 2, 3])]], direction="S->T", max_tokens=6)
    assert decoded.logliks == pytest.approx([math.log(p) for p in (0.5, 0.41, 0.4, 0.4, 0.4, 0.4)], abs=1e-6)


BEAMS = {
    # Open after a step, of two: {one .5, two .4}; {one six .205, one one .12}, two EOS .36 ends; {one six six .082, one six one
    # .05125}, one six EOS .07175 ends. None open can pass .36 any more: it is the best of all texts.
    0.0: ((["two", "two"], [math.log(0.36)] * 2), {"wer": 3 / 5, "deletions_rate": 3 / 5, "insertions_rate": 0.0}),
    # The end counts: ln(.36) / 2^1.25 = -.43 of two EOS stands before one six .. to the last step that is allowed,
    # ln(.5 x .41 x .4^3 x .35) / 6^1.25 = -.57 and ln(.5 x .41 x .4^2 x .35) / 5^1.25 = -.60. Without the end the longest would
    # win: -1.02 / 1^1.25 against -5.38 / 5^1.25 = -.72 and -4.47 / 4^1.25 = -.79.
    1.25: ((["two", "two"], [math.log(0.36)] * 2), {"wer": 3 / 5, "deletions_rate": 3 / 5, "insertions_rate": 0.0}),
    # ln P / length^2 is nearest 0 for the longest: one six six .., which ends at the last step that is allowed, the 6th and 5th:
    # ln(.5 x .41 x .4^3 x .35) / 36 = -.15 against two EOS ln(.36) / 4 = -.26; ln(.5 x .41 x .4^2 x .35) / 25 = -.18.
    2.0: (
        (["one six six six six", "one six six six"], [math.log(0.5 * 0.41 * 0.4**n * 0.35) for n in (3, 2)]),
        {"wer": 7 / 5, "deletions_rate": 0.0, "insertions_rate": 4 / 5},
    ),
}


@pytest.mark.parametrize("alpha", list(BEAMS))
@pytest.mark.parametrize("arm", ARMS)
def test_recognition_with_two_beams_by_hand(checkpoints: dict[str, Path], tmp_path: Path, arm: str, alpha: float) -> None:
    """Both end by themselves, at EOS. "two" for "one six two" and "ten two": three deletions. "one six six six six" for "one six
    two": a substitution, two insertions; "one six six six" for "ten two": two of each."""
    (heard, logliks), rates = BEAMS[alpha]
    given = ["beams=2", f"length_penalty={alpha}", f"out={tmp_path / 'o'}"]
    assert main(["asr", str(checkpoints[arm]), *ASR, *given]) == 0
    records, values = evaluated(tmp_path / "o")
    assert [r["heard"] for r in records] == heard
    assert [r["generated_tokens"] for r in records] == [len(text.split()) for text in heard]
    assert {name: values[name] for name in rates} == pytest.approx(rates, abs=1e-12)
    assert (values["unfinished_share"], values["mean_context_units"]) == (0.0, sum(UNITS[arm]) / 2)
    opened = open_checkpoint(checkpoints[arm], dtype="float64")
    for limit, loglik in zip((6, 5), logliks, strict=True):
        best = beam_search(
            opened.model,
            opened.config,
            [("speech", list(range(7)))],
            beams=2,
            max_tokens=limit,
            alpha=alpha,  # type: ignore[arg-type]
        )
        assert (best.finished, best.loglik) == (True, pytest.approx(loglik, abs=1e-6))


def test_beams_that_end_nowhere_are_the_likeliest_open_text(checkpoints: dict[str, Path]) -> None:
    """One step: one .5 and two .4 stand before EOS .1, which is behind as many open ones as there are beams."""
    opened = open_checkpoint(checkpoints["baseline"], dtype="float64")
    best = beam_search(opened.model, opened.config, [("speech", [1])], beams=2, max_tokens=1)  # type: ignore[arg-type]
    assert (opened.dataset.tokenizer.decode(best.ids), best.finished) == ("one", False)
    assert best.loglik == pytest.approx(math.log(0.5), abs=1e-6)


@pytest.mark.parametrize("end", ["EOS", "<s>"])
def test_a_transcript_ends_at_eos_or_at_the_speech_marker(checkpoints: dict[str, Path], end: str) -> None:
    """Behind "one", where six has .41, stands an end in its place: "one" is all. The end is one of the ids that the limit counts:
    of two, ceil(1 x 0.28) + 1, it is the last; of one it comes too late. Each utterance has its own limit: at 4 tokens a second
    ceil(4 x 0.28) = 2 and ceil(4 x 0.20) = 1, so that the end comes in time for the first and too late for the second."""
    opened = open_checkpoint(checkpoints["lst_static"], dtype="float64")
    vocabulary = Vocabulary.of(opened.config.model)
    rows = [{"EOS": EOS, "<s>": vocabulary.speech_marker}[end], int(opened.dataset.tokenizer.encode("six")[0])]
    head = opened.model.get_submodule("head")
    with torch.no_grad():
        head.weight[rows] = head.weight[rows[::-1]].clone()  # type: ignore[operator,index]
    utterances = heldout_utterances(opened.dataset, count=2, words=3, seed=0)
    for record in transcribe(opened, utterances, AsrConfig()):
        assert (record["heard"], record["finished"], record["generated_tokens"]) == ("one", True, 1)
    for rate, extra, finished in ((1, 1, [True, True]), (1, 0, [False, False]), (4, 0, [True, False])):
        for beams in (1, 2):
            config = AsrConfig(tokens_per_second=rate, extra_tokens=extra, beams=beams)
            found = transcribe(opened, utterances, config)
            assert beams == 2 or {r["heard"] for r in found} == {"one"}
            assert [r["finished"] for r in found] == finished


@pytest.mark.parametrize("arm", ARMS)
def test_a_model_reads_the_utterance_from_its_first_token_on(checkpoints: dict[str, Path], arm: str) -> None:
    """What goes into the embedding of ids at first: "one six two" is tokens 0 .. 6 and "ten two" 7 .. 11, heard between <s> and
    <t>; read, they are their words in order between <t> and <s>. What is behind a row's end is padding."""
    opened = open_checkpoint(checkpoints[arm], dtype="float64")
    vocabulary, tokenizer = Vocabulary.of(opened.config.model), opened.dataset.tokenizer
    utterances, seen = heldout_utterances(opened.dataset, count=2, words=3, seed=0), list[list[list[int]]]()
    embedding = opened.model.get_submodule("embedding")
    hook = embedding.register_forward_hook(lambda _module, given, _result: seen.append(given[0].tolist()))
    spoken = [[BOS, vocabulary.speech_marker, *(vocabulary.text + t for t in tokens)] for tokens in (range(7), range(7, 12))]
    heard = [[*ids, vocabulary.text_marker] for ids in spoken]
    written = [[int(tokenizer.encode(word)[0]) for word in text] for text in (["one", "six", "two"], ["ten", "two"])]
    for beams in (1, 2):
        seen.clear()
        transcribe(opened, utterances, AsrConfig(beams=beams))
        read = seen[0] if beams == 1 else [part[0] for part in seen if len(part[0]) > 1]
        assert [row[: len(ids)] for row, ids in zip(read, heard, strict=True)] == heard
    for number, words in enumerate(written):
        seen.clear()
        speak_utterance(opened, utterances[number], TtsConfig(), number)
        assert seen[0] == [[BOS, vocabulary.text_marker, *words, vocabulary.speech_marker]]
    hook.remove()


TTS = ["words=3", "seconds_per_word=0.05", "extra_seconds=0.07", "dtype=float64"]
"""Limits: ceil(25 x (3 x 0.05 + 0.07)) = ceil(5.5) = 6 ids, and ceil(25 x (2 x 0.05 + 0.07)) = ceil(4.25) = 5."""


@pytest.mark.parametrize("arm", ARMS)
def test_greedy_synthesis_by_hand(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arm: str
) -> None:
    """Always the likeliest: 3 5 7 8 9 EOS, each 16/29. Six ids are the first's limit; the second is cut after five.

    Steps: the last id is not processed, so the baseline takes five and four; of patches of four one has closed in each. Both
    are heard as "one six": four deletions from "one six two"; from "ten two" 3 + 3 substitutions, the space stays.
    """
    monkeypatch.setattr(vocoder, "open_vocoder", lambda name, voice="": vocoder.Vocoder(Tones(), "tones"))
    monkeypatch.setattr(recogniser, "open_recogniser", lambda name: lambda audio: "One six!")
    assert main(["tts", str(checkpoints[arm]), *TTS, "recognisers=ear", f"out={tmp_path / 'o'}"]) == 0
    records, values = evaluated(tmp_path / "o")
    steps = {"baseline": (5, 4), "lst_static": (1, 1)}[arm]
    counts = [(r["generated_tokens"], r["generated_ids"], r["generated_units"], r["finished"]) for r in records]
    assert counts == [(5, 6, steps[0], True), (5, 5, steps[1], False)]
    assert [r["wrong_characters_ear"] for r in records] == [4, 6]
    expected = {
        "seconds": 10 / 25, "duration_ratio": 10 / 12, "unfinished_share": 0.5, "empty_share": 0.0, "cer_ear": 10 / 18,
        "units_per_token": sum(steps) / 10, "generated_units_per_second": sum(steps) / (10 / 25),
    }  # fmt: skip
    assert {name: values[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    opened = open_checkpoint(checkpoints[arm], dtype="float64")
    (result,) = generate(opened.model, opened.config, [[("text", [3])]], direction="T->S", max_tokens=6)
    assert result.segments == (("speech", (3, 5, 7, 8, 9)),)
    assert (result.stop, result.global_steps) == (Stop.EOS, steps[0])
    assert result.loglik_sum == pytest.approx(6 * math.log(16 / 29), abs=1e-6)


SAMPLERS: dict[str, tuple[float, ...]] = {
    "temperature=1": (16 / 29, 25 / 29, 1),
    "temperature=2": (4 / 9, 7 / 9, 1),  # roots: 4, 3, 2
    "temperature=0.5": (256 / 353, 337 / 353, 1),  # squares: 256, 81, 16
    "temperature=2 top_k=2": (4 / 7, 1),
    "temperature=1 top_p=0.9": (16 / 29, 25 / 29, 1),  # 25/29 = .86 do not reach .9 yet, so the third stays
    "temperature=1 top_p=0.8": (16 / 25, 1),
    "temperature=1 top_p=0.5": (1,),  # the first alone has 16/29 = .55
    "temperature=2 top_k=2 top_p=0.6": (4 / 7, 1),  # of what top_k left the first has .571
    "temperature=2 top_k=2 top_p=0.55": (1,),
}
"""Options -> probabilities of the likeliest id, of it and the second, ...: each row of the table has weights 16 : 9 : 4."""


@pytest.mark.parametrize("given", list(SAMPLERS))
@pytest.mark.parametrize("arm", ARMS)
def test_drawn_synthesis_by_hand(checkpoints: dict[str, Path], tmp_path: Path, arm: str, given: str) -> None:
    """An id is the first whose cumulated probability passes the draw. Utterance n's draws are those of the generator with seed
    seed x 1,000,003 + n: its first whole number is the seed of the stream."""
    options = ["utterances=2", "words=1", "seconds_per_word=0.3", "extra_seconds=0.09", "seed=5", "vocoder=none", "dtype=float64"]
    limit, draws_seen = 10, []  # ceil(25 x 0.39) = ceil(9.75)
    assert main(["tts", str(checkpoints[arm]), *options, *given.split(), f"out={tmp_path / 'o'}"]) == 0
    records, values = evaluated(tmp_path / "o")
    opened, cumulated = open_checkpoint(checkpoints[arm], dtype="float64"), np.array(SAMPLERS[given])
    utterances = heldout_utterances(opened.dataset, count=2, words=1, seed=5)
    sampling: dict[str, Any] = {name: float(value) for name, value in (option.split("=") for option in given.split())}
    sampling |= {"top_k": int(sampling.get("top_k", 0))}
    config = TtsConfig(words=1, seconds_per_word=0.3, extra_seconds=0.09, seed=5, **sampling)
    for number, record in enumerate(records):
        of_row = torch.Generator().manual_seed(5 * 1_000_003 + number)
        stream = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=of_row)))
        draws = torch.rand(limit, generator=stream, dtype=torch.float64).tolist()
        ids: list[str | int] = ["<s>"]
        while ids[-1] not in ("EOS", "<t>") and len(ids) <= limit:
            place = int(np.searchsorted(cumulated, draws[len(ids) - 1], side="right"))
            ids.append(list(TABLE[ids[-1]])[place])
            draws_seen.append(place)
        ended = ids[-1] in ("EOS", "<t>")
        tokens, processed = len(ids) - 1 - ended, len(ids) - 2
        assert (record["generated_tokens"], record["generated_ids"], record["finished"]) == (tokens, len(ids) - 1, ended)
        assert record["generated_units"] == (processed if arm == "baseline" else processed // 4)
        said = speak_utterance(opened, utterances[number], config, number)
        assert said["speech_tokens"] == ids[1 : 1 + tokens]
    assert set(draws_seen) <= set(range(len(cumulated)))
    assert values["unfinished_share"] == np.mean([not r["finished"] for r in records])
