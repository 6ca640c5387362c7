"""Items in folders of files: SALMon's recordings, and slamkit's pairs.

salmon       a folder of SALMon: a folder a part, sample_N_*.wav in pairs, of which the first by name is right
slamkit      a folder of NAME_correct, NAME_incorrect and, where there is one, NAME_mutual (the prompt): .wav, .txt or both
"""

from __future__ import annotations

import re
from pathlib import Path

from lst.data.sources.base import Refused
from lst.errors import DataError
from lst.evals.found_items import AUDIO, Found, Part, Reader

WHICH = ("mutual", "correct", "incorrect")  # slamkit's prompt and endings


def salmon(folder: Path) -> Reader:
    """SALMon's pairs. What is no recording of a pair is refused, by its file."""
    inner = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    for part in inner or [folder]:
        samples: dict[int, list[Path]] = {}
        for file in sorted(f for f in part.iterdir() if f.suffix.lower() in AUDIO):
            number = re.fullmatch(r"sample_([0-9]+)_.*", file.stem)
            if number is None:
                yield Refused(file, "its name is no sample_N_NAME")
            else:
                samples.setdefault(int(number[1]), []).append(file)
        for number_, files in sorted(samples.items()):
            if len(files) != 2:
                yield Refused(files[0], f"sample {number_} has {len(files)} recordings; a pair has two")
            else:
                name = part.name if inner else ""
                yield Found(f"{name}/{number_}".lstrip("/"), tuple(Part(audio=f) for f in files), False, 0, group=name)


def slamkit(folder: Path) -> Reader:
    """slamkit's pairs. An ending or a prompt without the others is refused, by its name."""
    items: dict[Path, dict[str, list[Path]]] = {}  # NAME -> which part -> its files
    for file in sorted(folder.rglob("*")):
        name, _, which = file.stem.rpartition("_")
        if which in WHICH and file.suffix.lower() in (*AUDIO, ".txt"):
            items.setdefault(file.parent / name, {}).setdefault(which, []).append(file)
    if not items:
        raise DataError(f"eval={folder} has no NAME_correct.wav or NAME_correct.txt; give a folder of slamkit's pairs.")
    for base, files in sorted(items.items()):
        missing = [which for which in WHICH[1:] if which not in files]
        if missing:
            yield Refused(base, f"it has no {base.name}_{missing[0]} of sound or text")
            continue
        try:
            parts = tuple(_sound_and_text(files[which]) for which in WHICH if which in files)
        except (OSError, ValueError) as error:
            yield Refused(base, str(error))
            continue
        yield Found(str(base.relative_to(folder)), parts, "mutual" in files, 0)


def _sound_and_text(files: list[Path]) -> Part:
    """A recording, its text, or both. Raises ValueError on two recordings, or bytes that are no UTF-8."""
    sounds = [file for file in files if file.suffix.lower() in AUDIO]
    if len(sounds) > 1:
        raise ValueError(f"'{sounds[0].name}' and '{sounds[1].name}' are both there; leave one")
    written = [file.read_text(encoding="utf-8-sig").strip() for file in files if file not in sounds]
    return Part(" ".join(written), audio=sounds[0] if sounds else None)
