"""`prepare-data speak DIR id=ID out=FILE.wav`: a spoken document's tokens back to audio, to hear what a data set holds.

    prepare-data speak embedded id=carroll-alice-0012-0 out=said.wav [vocoder=FOLDER] [voice=NAME]

Not here: the vocoders (lst/data/vocoders/vocoder.py). No torch at import.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lst.errors import ConfigError, DataError
from lst.plain import from_dict

EXAMPLE = "prepare-data speak data/mine id=b1-0001 out=said.wav"


@dataclass(frozen=True, kw_only=True)
class SpeakConfig:
    """Options of `prepare-data speak`, given as key=value."""

    id: str  # of a spoken document
    out: str  # a .wav file, written anew
    vocoder: str = "embedded"  # or the folder of a unit vocoder
    voice: str = ""  # a voice or speaker of the vocoder; default: its own choice

    def validate(self) -> None:
        if not self.id or Path(self.out).suffix != ".wav":
            raise ConfigError(f"speak needs id=ID and out=FILE.wav, not id='{self.id}' out='{self.out}', as in: {EXAMPLE}")


def speak(arguments: Sequence[str]) -> int:
    """The verb; returns the exit status. Raises ConfigError and DataError."""
    folder, *given = arguments or [""]
    options = dict(a.split("=", 1) for a in given if "=" in a)
    if not folder or len(options) != len(given):
        raise ConfigError(f"speak needs one folder, then each option once as key=value, as in: {EXAMPLE}")
    config = from_dict(SpeakConfig, {"id": "", "out": "", **options})
    config.validate()
    out = Path(config.out)
    if not out.parent.is_dir():
        raise DataError(f"out={out}: folder '{out.parent}' does not exist; make it first.")
    seconds = speak_document(folder, config.id, out, vocoder=config.vocoder, voice=config.voice)
    print(f"{out}: {seconds:.2f} s of document '{config.id}', by the vocoder '{config.vocoder}'.")
    return 0


def speak_document(folder: str, name: str, out: Path, *, vocoder: str = "embedded", voice: str = "") -> float:
    """Write the document `name` of a data set as a WAV file and return its seconds.

    The table is read batch by batch up to the document. Raises DataError if there is none of that name, or the vocoder
    cannot be opened or speaks other tokens.
    """
    from lst.data.shard_files import table_batches
    from lst.data.shards import open_dataset
    from lst.data.vocoders.vocoder import open_vocoder, write_wav

    dataset = open_dataset(folder)
    speaking = open_vocoder(vocoder, voice=voice)
    speaking.check_units(dataset)
    first = ""
    for batch in table_batches(dataset.path, dataset.manifest, "speech", ["id", "speech_tokens"]):
        row = batch["id"].index(name).as_py()
        if row >= 0:
            audio, rate = speaking(batch["speech_tokens"][row].as_py())
            write_wav(out, audio, rate)
            return len(audio) / rate
        first = first or str(batch["id"][0])
    raise DataError(f"'{dataset.path}' has no spoken document of id={name}; the first is id={first}.")
