"""Readers of the formats that people have, each a `lst.data.sources.base.Source`, and the table that names them.

A new format of speech is an entry of SPEECH: a function from the options to its source, which imports its module late.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from lst.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from lst.data.prepare import PrepareConfig
    from lst.data.sources.base import Source

AUTO = "auto"


def _lst(config: PrepareConfig) -> Source:
    from lst.data.sources.contract import SpokenContract
    from lst.data.sources.speech_jsonl import SpeechJsonl, own_contract

    return SpeechJsonl([Path(config.input)], own_contract(SpokenContract(speech_vocab=config.speech_vocab)))


def _audio(config: PrepareConfig) -> Source:
    from lst.data.sources.audio_options import audio_source

    return audio_source(config)


SPEECH: dict[str, Callable[[PrepareConfig], Source]] = {"lst": _lst, "audio": _audio}


def open_sources(config: PrepareConfig) -> dict[str, Source]:
    """The source of each table that is read: speech, and text where it is given. Raises ConfigError or DataError."""
    name = guess_format(Path(config.input)) if config.format == AUTO else config.format
    if name not in SPEECH:
        raise ConfigError(f"format='{name}' is unknown; {did_you_mean(name, [AUTO, *SPEECH])}")
    sources = {"speech": SPEECH[name](config) if name == "audio" else _annotated(SPEECH[name](config), config)}
    if config.text:
        from lst.data.sources.texts import written_source

        sources["text"] = written_source(config.text, {})
    return sources


def _annotated(source: Source, config: PrepareConfig) -> Source:
    """`source` with the transcripts, the alignments and the card that the options name, if they name any."""
    from lst.data.sources.audio_options import refuse_audio_options

    refuse_audio_options(config)
    if not (config.transcripts or config.alignments or config.card):
        return source
    from lst.data.sources.annotate import Annotated
    from lst.data.sources.audio_options import alignments_of, card_of, transcripts_of

    return Annotated(source, transcripts=transcripts_of(config), alignments=alignments_of(config), card=card_of(config))


def guess_format(path: Path) -> str:
    """The format of a file or a folder, by its name and first bytes."""
    return "lst"
