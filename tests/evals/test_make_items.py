"""`prepare-data eval=`: from benchmarks' files to an item set, whole, with an identity, or not at all."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lst.data.prepare import main
from lst.data.shards import manifest_text, open_dataset
from lst.errors import ConfigError, DataError, LstError, RunFailed
from lst.evals import make_items, voices
from lst.evals.item_set import ItemSet, open_item_set
from lst.evals.make_items import prepare_items
from tests.evals.item_files import CARD, spoken_items, write_card, write_lines, write_tone


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "mine.jsonl", spoken_items(6))


def prepare(source: Path, out: Path, **options: Any) -> ItemSet:
    prepare_items({"eval": str(source), "out": str(out), **options})
    return open_item_set(str(out))


def test_an_item_set_holds_what_its_file_says(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = write_card(tmp_path / "card.json")
    assert main([f"eval={source}", f"out={tmp_path / 'set'}", f"card={card}", "licence=CC0"]) == 0
    assert "6 items of 'mine' (S->S, T->T, S->T, T->S)" in capsys.readouterr().out
    items = open_item_set(str(tmp_path / "set"))
    wanted = spoken_items(6)
    rows = items.table.to_pylist()
    assert [r["id"] for r in rows] == [f"i{i}" for i in range(6)]
    assert rows[1]["right"] == 1
    assert rows[3]["texts"] == ["ab cd ef", "gg xyz", "hh xyz"]
    assert rows[3]["speech"][0] == wanted[3]["prompt"]["speech_tokens"]
    assert rows[3]["words"][1] == [0, 2, 4, 6]
    assert (items.task, len(items), items.manifest["licence"], items.manifest["aligned"]) == ("mine", 6, "CC0", True)
    assert items.manifest["speech_tokenizer"]["quantizer_sha256"] == CARD["quantizer_sha256"]
    assert list(tmp_path.glob(".*")) == []


def test_the_identity_is_of_content_and_of_the_tokens_card(source: Path, tmp_path: Path) -> None:
    card, other = write_card(tmp_path / "a.json"), write_card(tmp_path / "b.json", quantizer_sha256="other")
    first = prepare(source, tmp_path / "1", card=str(card))
    assert prepare(source, tmp_path / "2", card=str(card), task="renamed").items_id == first.items_id
    assert prepare(source, tmp_path / "3", card=str(other)).items_id != first.items_id
    changed = spoken_items(6)
    changed[5]["endings"][1]["speech_tokens"][0] = 39 - changed[5]["endings"][1]["speech_tokens"][0]
    assert prepare(write_lines(tmp_path / "m.jsonl", changed), tmp_path / "4", card=str(card)).items_id != first.items_id


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a missing ending": ({"endings": ["one"]}, "'endings' must be a list of two or more"),
    "a wrong label": ({"label": 2}, r"label 2 is not one of its 2 endings \(0..1\)"),
    "an empty ending": ({"endings": ["x", " "], "prompt": "y"}, "ending 1 is empty"),
    "no speech tokens": ({"prompt": {"speech_tokens": []}}, "the prompt has no speech tokens"),
    "a token out of range": ({"prompt": {"text": "a", "speech_tokens": [501]}}, r"speech token 501, outside 0..500"),
    "speech in one part alone": ({"prompt": "only text"}, "some of its parts have speech and others have none"),
    "words outside": ({"prompt": {"text": "a", "speech_tokens": [1], "words": [[0, 1]]}}, "lie outside its span of 1"),
    "an unknown key of a part": ({"prompt": {"txt": "a"}}, "unknown key 'txt'; did you mean 'text'"),
    "an unknown key": ({"promt": "a"}, "unknown key 'promt'; did you mean 'prompt'"),
    "text that is none": ({"prompt": {"text": None}}, "'text' must be text, not null"),
    "a group that is no name": ({"group": ["a"]}, "'group' must be text"),
    "nothing that can be seen": (
        {"endings": ["a", "\u200b"], "prompt": "y"},
        r"ending 1 has text without a character that can be",
    ),
    "another's id": ({"id": "i0"}, "its id 'i0' is that of line 1"),
    "no UTF-8": ({"prompt": {"text": "\ud800", "speech_tokens": [1]}}, "no UTF-8 text"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_item_is_refused_by_its_line(tmp_path: Path, name: str) -> None:
    change, reason = BAD[name]
    lines = spoken_items(5)
    lines[2] |= change
    source = write_lines(tmp_path / "mine.jsonl", lines)
    with pytest.raises(DataError, match=rf"mine.jsonl:3: .*{reason}.*refuse=skip"):
        prepare(source, tmp_path / "set")
    assert not (tmp_path / "set").exists()
    items = prepare(source, tmp_path / "set", refuse="skip", max_refused=0.2)
    assert [r["id"] for r in items.table.to_pylist()] == ["i0", "i1", "i3", "i4"]
    assert len(items.manifest["refused"]) == 1
    assert items.manifest["refused_share"] == 0.2


def test_the_few_of_another_kind_are_refused_by_their_line(tmp_path: Path) -> None:
    lines = spoken_items(5)
    lines[3] = {"id": "t", "prompt": "a", "endings": ["b", "c"], "label": 0}
    source = write_lines(tmp_path / "mine.jsonl", lines)
    with pytest.raises(DataError, match=r"mine.jsonl:4: item 't' has no speech, and most others have;"):
        prepare(source, tmp_path / "set")
    texts = [{"id": f"t{i}", "prompt": "a", "endings": ["b", "c"], "label": 0} for i in range(4)]
    source = write_lines(tmp_path / "texts.jsonl", [texts[0], spoken_items(1)[0], *texts[1:]])
    items = prepare(source, tmp_path / "set", refuse="skip", max_refused=0.2)
    assert items.manifest["refused"] == [f"{source}:2: item 'i0' has speech, and most others have none"]
    assert items.directions == ["T->T"]


def test_what_leaves_nothing_to_go_on_from_leaves_no_file(tmp_path: Path) -> None:
    lines = [line | {"label": 9} for line in spoken_items(2)]
    source = write_lines(tmp_path / "mine.jsonl", lines)
    for options in ({}, {"refuse": "skip", "max_refused": 0.9}):
        with pytest.raises(DataError, match="label 9 is not one of its 2 endings"):
            prepare(source, tmp_path / "set", **options)
        assert list(tmp_path.iterdir()) == [source]
    with pytest.raises(DataError, match="max_words=2 leaves none of the 2 items"):
        prepare(write_lines(source, spoken_items(2)), tmp_path / "set", max_words=2)


def test_two_preparations_of_one_folder_are_refused(source: Path, tmp_path: Path) -> None:
    with make_items._alone(tmp_path / "set"), pytest.raises(RunFailed, match="is being made by another prepare-data"):
        prepare(source, tmp_path / "set")
    assert len(prepare(source, tmp_path / "set")) == 6
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.parametrize("options", [{"eval": "nowhere.jsonl"}, {"label": 9}, {"max_words": 1}, {"card": "nowhere.json"}])
def test_what_is_refused_makes_no_folder_above_its_out(tmp_path: Path, options: dict[str, Any]) -> None:
    lines = [line | ({"label": 9} if "label" in options else {}) for line in spoken_items(2)]
    source = write_lines(tmp_path / "mine.jsonl", lines)
    given = {name: value for name, value in options.items() if name not in ("label", "eval")}
    with pytest.raises(LstError):
        prepare(Path(options.get("eval", source)), tmp_path / "a" / "b" / "set", **given)
    assert list(tmp_path.iterdir()) == [source]
    prepare(write_lines(source, spoken_items(2)), tmp_path / "a" / "b" / "set")
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == ["set"]


def test_a_folder_that_was_made_meanwhile_is_left_alone(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another preparation ends between the reading of the input and the lock."""
    prepare(source, tmp_path / "other")
    wanted = make_items._Maker.wanted

    def overtaken(maker: Any) -> Any:
        (tmp_path / "other").rename(tmp_path / "set")
        return wanted(maker)

    monkeypatch.setattr(make_items._Maker, "wanted", overtaken)
    before = {p: p.read_bytes() for p in (tmp_path / "other").iterdir()}
    with pytest.raises(LstError, match="is not empty; give a new or an empty folder"):
        prepare(source, tmp_path / "set")
    assert {tmp_path / "other" / p.name: p.read_bytes() for p in (tmp_path / "set").iterdir()} == before


def test_a_share_of_bad_items_above_the_limit_stops(tmp_path: Path) -> None:
    lines = spoken_items(5)
    for i in (1, 3):
        lines[i]["label"] = 9
    source = write_lines(tmp_path / "mine.jsonl", lines)
    with pytest.raises(DataError, match=r"2 of 5 items are refused, more than max_refused=0.2; the first: .*:2"):
        prepare(source, tmp_path / "set", refuse="skip", max_refused=0.2)
    assert not (tmp_path / "set").exists()


def test_the_sample_is_drawn_by_its_seed_and_long_items_are_left_out(tmp_path: Path) -> None:
    items = [{"id": f"t{i}", "prompt": "word " * (i + 1), "endings": ["a b", "c"], "label": 0} for i in range(10)]
    source = write_lines(tmp_path / "mine.jsonl", items)
    short = prepare(source, tmp_path / "1", max_words=7)  # the prompt's and the longest ending's
    assert [r["id"] for r in short.table.to_pylist()] == [f"t{i}" for i in range(5)]
    assert (short.directions, short.manifest["left_out"]) == (["T->T"], 5)
    samples = [
        [r["id"] for r in prepare(source, tmp_path / f"s{k}", sample=4, seed=s).table.to_pylist()]
        for k, s in enumerate((1, 1, 2))
    ]
    assert samples[0] == samples[1] == sorted(samples[0])
    assert samples[0] != samples[2]


class CountingQuantizer:
    """Tokens that tell the length of the audio; breaks off at the given call."""

    def __init__(self, stop_at: int = 0) -> None:
        from lst.data.audio.embedded_quantizer import SpeechTokenizerCard

        self.card = SpeechTokenizerCard(**CARD)  # type: ignore[arg-type]
        self.calls, self.stop_at = 0, stop_at

    def tokens(self, audios: list[np.ndarray]) -> list[np.ndarray]:
        self.calls += 1
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        return [np.full(len(a) // 640, 7, np.uint16) for a in audios]


def test_audio_is_quantized_and_an_interrupted_preparation_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [write_tone(tmp_path / f"{i}.wav", 0.4 + 0.04 * i).name for i in range(8)]
    lines = [{"id": str(i), "endings": [{"audio": files[2 * i]}, {"audio": files[2 * i + 1]}], "label": 0} for i in range(4)]
    source = write_lines(tmp_path / "mine.jsonl", lines)
    first, second, whole = CountingQuantizer(stop_at=6), CountingQuantizer(), CountingQuantizer()
    monkeypatch.setattr(make_items, "_quantizer", lambda _: first)
    with pytest.raises(KeyboardInterrupt):
        prepare(source, tmp_path / "set")
    assert not (tmp_path / "set").exists()
    monkeypatch.setattr(make_items, "_quantizer", lambda _: second)
    items = prepare(source, tmp_path / "set")
    assert second.calls == 4  # the first two items were finished
    assert [len(s) for r in items.table.to_pylist() for s in r["speech"]] == list(range(10, 18))
    monkeypatch.setattr(make_items, "_quantizer", lambda _: whole)
    assert prepare(source, tmp_path / "again").items_id == items.items_id
    assert items.directions == ["S->S"]


def test_refused_items_are_corrected_or_skipped_without_making_the_others_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [write_tone(tmp_path / f"{i}.wav", 0.4).name for i in range(2)]
    lines = [{"id": str(i), "endings": [{"audio": name} for name in files], "label": 0} for i in range(3)]
    source = write_lines(tmp_path / "mine.jsonl", [*lines, {"id": "x", "endings": [{"audio": "no.wav"}] * 2, "label": 0}])
    first, second = CountingQuantizer(), CountingQuantizer()
    monkeypatch.setattr(make_items, "_quantizer", lambda _: first)
    with pytest.raises(DataError, match=r"mine.jsonl:4: item 'x': ending 0, '.*no.wav': it cannot be read"):
        prepare(source, tmp_path / "set")
    monkeypatch.setattr(make_items, "_quantizer", lambda _: second)
    assert len(prepare(source, tmp_path / "set", refuse="skip", max_refused=0.3)) == 3
    assert (first.calls, second.calls) == (6, 0)


def test_ctrl_c_tells_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    files = [write_tone(tmp_path / f"{i}.wav", 0.4).name for i in range(2)]
    lines = [{"id": str(i), "endings": [{"audio": name} for name in files], "label": 0} for i in range(3)]
    source = write_lines(tmp_path / "mine.jsonl", lines)
    for stop_at, kept in ((1, []), (3, [".set.items-work.jsonl"])):
        monkeypatch.setattr(make_items, "_quantizer", lambda _, n=stop_at: CountingQuantizer(stop_at=n))
        assert main([f"eval={source}", f"out={tmp_path / 'set'}"]) == 130
        told = "nothing was written." if not kept else f"is kept in '{tmp_path / kept[0]}', and the same command goes on"
        assert told in capsys.readouterr().err
        assert [p.name for p in tmp_path.glob(".*")] == kept


def test_empty_and_damaged_audio_is_refused_by_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_items, "_quantizer", lambda _: CountingQuantizer())
    good = write_tone(tmp_path / "good.wav", 0.5).name
    write_tone(tmp_path / "short.wav", 0.03)
    (tmp_path / "empty.wav").write_bytes(b"")
    reasons = {"empty.wav": "the file is empty", "short.wav": "too short for a speech token", "gone.wav": "it cannot be read"}
    for name, reason in reasons.items():
        lines = [
            {"endings": [{"audio": good}, {"audio": good}], "label": 0},
            {"endings": [{"audio": good}, {"audio": name}], "label": 0},
        ]
        with pytest.raises(DataError, match=rf"mine.jsonl:2: .*{reason}"):
            prepare(write_lines(tmp_path / "mine.jsonl", lines), tmp_path / "set")


def test_the_voice_and_its_version_are_part_of_the_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class MadeUpVoice:
        def __init__(self, name: str) -> None:
            self.identity = {"engine": "made up", "voice": name, "versions": {"made-up": "1.0"}}

        def say(self, text: str) -> voices.Said:
            words = text.split()
            return voices.Said(np.zeros(16_000 * len(words), np.float32), [(i, i + 0.5) for i in range(len(words))])

    monkeypatch.setattr(make_items, "_quantizer", lambda _: CountingQuantizer())
    monkeypatch.setattr(voices, "Voice", MadeUpVoice)
    source = write_lines(tmp_path / "mine.jsonl", [{"prompt": "ab cd", "endings": ["ef", "gh ij"], "label": 1}])
    one, other = (prepare(source, tmp_path / v, voice=v) for v in ("a", "b"))
    assert one.items_id != other.items_id
    assert one.manifest["voice"] == {"engine": "made up", "voice": "a", "versions": {"made-up": "1.0"}}
    (row,) = one.table.to_pylist()
    assert [len(s) for s in row["speech"]] == [50, 25, 50]
    assert row["words"][2] == [0, 12, 25, 37]  # 0.5 s are 12.5 frames; both ends inside
    assert one.directions == ["S->S", "T->T", "S->T", "T->S"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"quantizer": "none"}, "quantizer=none is no folder; audio and voices need one: quantizer=embedded, or the folder of"),
        ({"quantizer": "."}, "quantizer=. needs kmeans=FILE and layer=N"),
        ({"layer": 3}, "layer=3 is for a HuBERT; name its folder"),
    ],
)
def test_audio_without_a_quantizer_is_refused_by_its_options(tmp_path: Path, options: dict[str, Any], reason: str) -> None:
    name = write_tone(tmp_path / "a.wav", 0.4).name
    source = write_lines(tmp_path / "mine.jsonl", [{"endings": [{"audio": name}, {"audio": name}], "label": 0}])
    with pytest.raises(ConfigError, match=reason):
        prepare(source, tmp_path / "set", **options)
    assert not (tmp_path / "set").exists()


def test_an_item_that_needs_a_quantizer_among_ready_ones_is_told_by_its_line(tmp_path: Path) -> None:
    lines = [*spoken_items(2), {"id": "heard", "endings": [{"audio": "a.wav"}, {"audio": "b.wav"}], "label": 0}]
    with pytest.raises(DataError, match=r"mine.jsonl:3: item 'heard' has parts that need a quantizer, and others have ready"):
        prepare(write_lines(tmp_path / "mine.jsonl", lines), tmp_path / "set")


@pytest.mark.skipif(importlib.util.find_spec("espeakng_loader") is None, reason="needs espeakng-loader, of the extra `speech`")
def test_espeak_says_a_text_and_tells_its_words() -> None:
    said = voices.Voice("espeak:en-us").say("The cat -- sat.")
    assert said.spans is not None
    assert len(said.spans) == 3
    assert 0.3 < len(said.audio) / 16_000 < 3
    with pytest.raises(ValueError, match="no word to speak"):
        voices.Voice("espeak:en-us").say("--")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"voice": "espeek:en"}, "voice=espeek:en is unknown; did you mean 'espeak'"),
        ({"quantizer": "none"}, "quantizer=none has no effect: .* has no audio, and no voice= speaks"),
        ({"layer": 3}, "layer=3 has no effect"),
        ({"format": "helaswag"}, "format='helaswag' is unknown; did you mean 'hellaswag'"),
        ({"refuse": "never"}, "refuse='never' is unknown"),
        ({"max_refused": 1.0}, r"max_refused=1.0 must lie in 0..1"),
        ({"voize": "x"}, "unknown key 'voize'; did you mean 'voice'"),
        ({"card": "c.json", "voice": "espeak:en-us"}, "card=c.json is about ready tokens"),
    ],
)
def test_wrong_options_are_one_sentence(tmp_path: Path, options: dict[str, Any], reason: str) -> None:
    source = write_lines(tmp_path / "mine.jsonl", [{"prompt": "ab", "endings": ["ef", "gh"], "label": 1}])
    with pytest.raises((ConfigError, DataError), match=reason):
        prepare(source, tmp_path / "set", **options)


def test_a_folder_that_is_not_empty_is_left_alone(source: Path, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "mine.txt").write_text("keep")
    assert main([f"eval={source}", f"out={tmp_path / 'set'}"]) == 2
    assert [p.name for p in (tmp_path / "set").iterdir()] == ["mine.txt"]


def test_a_damaged_item_set_is_not_opened(source: Path, tmp_path: Path) -> None:
    folder = prepare(source, tmp_path / "set").path
    table, manifest = folder / "items.parquet", folder / "manifest.json"
    content, text = table.read_bytes(), manifest.read_text()
    table.write_bytes(content[:-1])
    with pytest.raises(DataError, match="missing or damaged"):
        open_item_set(str(folder))
    table.write_bytes(content)
    manifest.write_text(json.dumps(json.loads(text) | {"task": "hellaswag"}))
    with pytest.raises(DataError, match="checksum differs"):
        open_item_set(str(folder))
    for change in ({"rows": 9}, {"rows": "3"}, {"task": "../../x"}, {"directions": ["S->Q"]}, {"directions": []}, {"aligned": 1}):
        manifest.write_text(manifest_text(json.loads(text) | change))
        with pytest.raises(DataError, match=r"does not describe its items\.parquet"):
            open_item_set(str(folder))
    manifest.write_text(manifest_text({k: v for k, v in json.loads(text).items() if k != "files"}))
    with pytest.raises(DataError, match="missing or damaged"):
        open_item_set(str(folder))
    with pytest.raises(DataError, match=r"no manifest\.json"):
        open_item_set(str(tmp_path))


@pytest.mark.parametrize("task", ["../x", "a/b", ".hidden", "a\nb"])
def test_a_task_that_is_no_folders_name_is_refused(source: Path, tmp_path: Path, task: str) -> None:
    with pytest.raises(ConfigError, match="cannot be part of a folder's name"):
        prepare(source, tmp_path / "set", task=task)


def test_the_smoke_set_that_ships_fits_the_embedded_corpus_and_says_what_it_is() -> None:
    items = open_item_set("hellaswag_spoken_smoke")
    items.require_tokens_of(open_dataset("embedded"))
    assert (len(items), items.directions, items.manifest["endings"]) == (200, ["S->S", "T->T", "S->T", "T->S"], [4])
    assert "never a comparison" in items.manifest["note"]
    assert "MIT License" in items.manifest["licence"]
    assert len({row["id"] for row in items.table.to_pylist()}) == 200
