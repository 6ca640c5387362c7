"""Recognisers that are not transformers': which package hears which name, by stand-ins of the packages."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lst.errors import DataError
from lst.evals.recogniser import open_recogniser

SOUND = np.array([0.0, 0.5, -2.0], np.float32)


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> None:
    module = types.ModuleType(name)
    module.__dict__.update(content)
    module.__spec__ = importlib.util.spec_from_loader(name, None)
    monkeypatch.setitem(sys.modules, name, module)


def write_folder(path: Path) -> Path:
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "model.bin").write_bytes(b"x")
    return path


def test_a_ctranslate2_folder_is_heard_by_faster_whisper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    class WhisperModel:
        def __init__(self, folder: str, **options: Any) -> None:
            asked.update(options, folder=folder)
            if folder.endswith("broken"):
                raise RuntimeError("Unsupported model binary version\nand more")

        def transcribe(self, audio: Any, **options: Any) -> Any:
            asked.update(options)
            return iter([types.SimpleNamespace(text=" one"), types.SimpleNamespace(text=" two ")]), None

    stand_in(monkeypatch, "faster_whisper", WhisperModel=WhisperModel)
    folder = write_folder(tmp_path / "w")
    assert open_recogniser(str(folder))(SOUND) == "one two"
    assert (asked["folder"], asked["local_files_only"], asked["beam_size"], asked["temperature"]) == (str(folder), True, 1, 0.0)
    with pytest.raises(DataError, match=r"cannot be opened \(Unsupported model binary version\)"):
        open_recogniser(str(write_folder(tmp_path / "broken")))


def test_pocketsphinx_hears_sixteen_bit_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[bytes] = []

    class Decoder:
        def __init__(self, **options: Any) -> None:
            assert options["samprate"] == 16_000

        def start_utt(self) -> None: ...

        def end_utt(self) -> None: ...

        def process_raw(self, data: bytes, full_utt: bool) -> None:
            heard.append(data)

        def hyp(self) -> Any:
            return types.SimpleNamespace(hypstr="said") if any(heard[-1]) else None

    stand_in(monkeypatch, "pocketsphinx", Decoder=Decoder)
    hear = open_recogniser("pocketsphinx")
    assert (hear(SOUND), hear(np.zeros(2, np.float32))) == ("said", "")
    assert np.frombuffer(heard[0], "<i2").tolist() == [0, 16383, -32767]


def test_a_missing_package_is_named_with_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    folder = write_folder(tmp_path / "w")
    for name, package in (("pocketsphinx", "pocketsphinx"), (str(folder), "faster-whisper")):
        with pytest.raises(DataError, match=f"needs the package '{package}'; run: pip install {package}"):
            open_recogniser(name)
    (folder / "model.bin").rename(folder / "model.safetensors")
    with pytest.raises(DataError, match=r"needs the package 'transformers'; run: pip install lst-scaling\[hf\]"):
        open_recogniser(str(folder))
