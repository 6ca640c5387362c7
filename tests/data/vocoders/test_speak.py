"""`prepare-data speak`: one document of a data set as a WAV file."""

from __future__ import annotations

import wave
from pathlib import Path

import pytest

from lst.data.prepare import main
from lst.data.shards import open_dataset
from lst.data.vocoders.vocoder import open_vocoder, wav_bytes


@pytest.fixture(scope="module")
def document() -> tuple[str, list[int]]:
    """The shortest spoken document of the embedded corpus."""
    table = open_dataset("embedded").speech
    row = min(range(table.num_rows), key=lambda i: len(table["speech_tokens"][i]))
    return str(table["id"][row]), list(table["speech_tokens"][row].as_py())


def test_the_file_is_the_vocoders_sound_of_that_documents_tokens(
    tmp_path: Path, document: tuple[str, list[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    name, tokens = document
    out = tmp_path / "said.wav"
    assert main(["speak", "embedded", f"id={name}", f"out={out}", "voice=espeak:en-us+m3"]) == 0
    assert f"{len(tokens) / 25:.2f} s of document '{name}'" in capsys.readouterr().out
    assert out.read_bytes() == wav_bytes(*open_vocoder("embedded", voice="espeak:en-us+m3")(tokens))
    with wave.open(str(out)) as file:
        assert file.getnframes() == 640 * len(tokens)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "speak needs one folder"),
        (["embedded"], "speak needs id=ID and out=FILE.wav"),
        (["embedded", "id=a", "out=OUT.mp3"], "out=FILE.wav"),
        (["embedded", "id=a", "id=b", "out=OUT.wav"], "each option once"),
        (["embedded", "id=a", "out=OUT.wav", "voise=x"], "voise"),
        (["embedded", "id=none-such", "out=OUT.wav"], "has no spoken document of id=none-such"),
        (["embedded", "id=a", "out=OUT.wav", "vocoder=NOWHERE"], "cannot be read"),
        (["embedded", "id=a", "out=OUT.wav", "voice=x"], "has no voice 'x'"),
        (["embedded", "id=a", "out=NOWHERE/x.wav"], "make it first"),
        (["NOWHERE", "id=a", "out=OUT.wav"], "has no manifest.json"),
    ],
)
def test_mistakes_are_told_in_one_sentence_and_nothing_is_written(
    tmp_path: Path, arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    placed = [a.replace("NOWHERE", str(tmp_path / "none")).replace("OUT", str(tmp_path / "o")) for a in arguments]
    assert main(["speak", *placed]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
