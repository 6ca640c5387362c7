"""Readers of the formats that people have, each a `lst.data.sources.base.Source`, and the table that names them.

A new format of speech is an entry of SPEECH: a function from the options to its source, which imports its module late.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lst.errors import ConfigError, DataError, did_you_mean

if TYPE_CHECKING:
    from lst.data.prepare import PrepareConfig
    from lst.data.sources.base import Source
    from lst.data.sources.contract import SpokenContract

AUTO = "auto"
PAPERS_VOCAB = 501  # the paper's codebook
LINES, TARS = (".jsonl",), (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
AUDIO = (".wav", ".flac", ".ogg")
ENDINGS = {
    LINES: "lst",
    (".parquet",): "parquet",
    TARS: "tar",
    (".tsv",): "fairseq",
    (".units",): "textless",
    AUDIO: "audio",
}
RECORDS = ("lst", "slamkit", "parquet", "huggingface", "tar")
ONLY = {
    "columns": RECORDS,
    "times": RECORDS,
    "rate": (*RECORDS, "fairseq", "textless"),
    "labels": ("fairseq",),
    "sample_rate": ("fairseq",),
    "deduplicated": ("slamkit", "textless"),
    **dict.fromkeys(("align", "ctc_model", "quantizer", "kmeans", "layer", "normalize"), ("audio",)),
    **dict.fromkeys(("max_seconds", "window_seconds", "batch_seconds", "device", "dtype"), ("audio",)),
}
"""Options that mean something in some formats alone."""


def _lst(config: PrepareConfig) -> Source:
    from lst.data.sources.speech_jsonl import SpeechJsonl, own_contract

    contract = _contract(config)
    return SpeechJsonl(_files(config, LINES), contract if config.columns else own_contract(contract))


def _audio(config: PrepareConfig) -> Source:
    from lst.data.sources.audio_options import audio_source

    return audio_source(config)


def _slamkit(config: PrepareConfig) -> Source:
    from lst.data.sources.speech_jsonl import SpeechJsonl, slamkit_contract

    return SpeechJsonl(_files(config, LINES), slamkit_contract(_contract(config, paths=True), deduplicated=config.deduplicated))


def _parquet(config: PrepareConfig) -> Source:
    from lst.data.sources.tables import speech_parquet

    return speech_parquet(_files(config, (".parquet",)), _contract(config))


def _huggingface(config: PrepareConfig) -> Source:
    from lst.data.sources.tables import saved_speech

    return saved_speech(Path(config.input), _contract(config))


def _tar(config: PrepareConfig) -> Source:
    from lst.data.sources.tar_shards import TarShards

    return TarShards(_files(config, TARS), _contract(config))


def _fairseq(config: PrepareConfig) -> Source:
    from lst.data.sources.paired_lines import FairseqLabels

    labels = Path(config.labels) if config.labels else None
    return FairseqLabels(Path(config.input), labels, _contract(config, paths=True), sample_rate=config.sample_rate)


def _textless(config: PrepareConfig) -> Source:
    from lst.data.sources.paired_lines import TextlessUnits

    return TextlessUnits(Path(config.input), _contract(config, paths=True), deduplicated=config.deduplicated)


SPEECH: dict[str, Callable[[PrepareConfig], Source]] = {
    "lst": _lst,
    "audio": _audio,
    "slamkit": _slamkit,
    "parquet": _parquet,
    "huggingface": _huggingface,
    "tar": _tar,
    "fairseq": _fairseq,
    "textless": _textless,
}


def settle(config: PrepareConfig) -> PrepareConfig:
    """`config` with the number of speech tokens that it leaves open: that of the quantizer, of the card, or the paper's.

    Raises ConfigError or DataError; no model is loaded.
    """
    from lst.data.sources.audio_options import card_of, check_audio_options, quantizer_centres

    given, name = config.speech_vocab, _format(config)
    for spec in fields(config):
        if getattr(config, spec.name) != spec.default and name not in ONLY.get(spec.name, (name,)):
            raise ConfigError(
                f"{spec.name}={getattr(config, spec.name)} is an option of format={', '.join(ONLY[spec.name])} alone, and "
                f"this input is {name}; leave it out."
            )
    if name == "audio":
        check_audio_options(config)
        centres = quantizer_centres(config)
        if given not in (0, centres):
            raise ConfigError(f"speech_vocab={given}, but the quantizer has {centres} centres; leave speech_vocab out.")
        return replace(config, speech_vocab=centres)
    card = card_of(config)
    if card and given and card.k > given:
        raise ConfigError(f"speech_vocab={given} is less than the card's {card.k} centres; give that, or leave it out.")
    return replace(config, speech_vocab=given or (card.k if card else PAPERS_VOCAB))


def _format(config: PrepareConfig) -> str:
    name = guess_format(config.input) if config.format == AUTO else config.format
    if name not in SPEECH:
        raise ConfigError(f"format='{name}' is unknown; {did_you_mean(name, [AUTO, *SPEECH])}")
    return name


def open_sources(config: PrepareConfig) -> dict[str, Source]:
    """The source of each table that is read: speech, and text where it is given. Raises ConfigError or DataError.

    `config` is settled: it says how many speech tokens there are.
    """
    name = _format(config)
    source = SPEECH[name](config)
    sources = {"speech": source if name == "audio" else _annotated(source, config)}
    if config.text:
        from lst.data.sources.texts import KEYS, written_source

        sources["text"] = written_source(config.text, column_names("text_columns", config.text_columns, KEYS))
    return sources


def _annotated(source: Source, config: PrepareConfig) -> Source:
    """`source` with the transcripts, the alignments and the card that the options name, if they name any."""
    if not (config.transcripts or config.alignments or config.card):
        return source
    from lst.data.sources.annotate import Annotated
    from lst.data.sources.audio_options import alignments_of, card_of, transcripts_of

    return Annotated(source, transcripts=transcripts_of(config), alignments=alignments_of(config), card=card_of(config))


def guess_format(given: str) -> str:
    """The format of a file, a glob or a folder, by its name, by what lies in it, and by its first line. Raises DataError."""
    from lst.data.sources.files import MAGIC, input_files

    path = Path(given)
    if path.is_dir() and any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        return "huggingface"
    if path.is_dir() or (not path.exists() and MAGIC & set(given)):
        _, files = input_files(given, sum(ENDINGS, ()))
        found = {name for endings, name in ENDINGS.items() if any(file.name.lower().endswith(endings) for file in files)}
        if len(found) != 1:
            told = f"files of {' and '.join(sorted(found))}" if found else "no files of a known format"
            raise DataError(f"input={given} holds {told}; name one by format=, or give a glob of one kind.")
        return found.pop()
    lower = path.name.lower()
    if lower.endswith(".km"):
        raise DataError(f"input={given} has labels alone; give the manifest, as in input=train.tsv labels={given}")
    name = next((name for endings, name in ENDINGS.items() if lower.endswith(endings)), "lst")
    if name == "lst" and path.is_file():
        with path.open("rb") as file:
            start = file.readline(1 << 20)
        if b'"units"' in start and b'"speech_tokens"' not in start:
            return "slamkit"
    return name


def column_names(option: str, given: str, known: Sequence[str]) -> dict[str, str]:
    """`key:name,key:name` as a dictionary. Raises ConfigError."""
    names: dict[str, str] = {}
    for pair in filter(None, given.split(",")):
        key, mark, name = (part.strip() for part in pair.partition(":"))
        if not mark or not name:
            raise ConfigError(f"{option}={given} must be key:name pairs between commas, as in {option}={known[0]}:file_id.")
        if key not in known:
            raise ConfigError(f"{option} has the key '{key}'; {did_you_mean(key, known)}")
        names[key] = name
    return names


def _contract(config: PrepareConfig, *, paths: bool = False) -> SpokenContract:
    """`paths`: the input's ids are paths of audio files; elsewhere they are if layout= or names= say so."""
    from lst.data.sources.audio_names import FileNames
    from lst.data.sources.contract import EVERY_SECOND, KEYS, SpokenContract

    if (config.rate, config.reduce) not in ((25, ""), (50, EVERY_SECOND)):
        raise ConfigError(
            f"rate={config.rate} with reduce='{config.reduce}' does not give 25 Hz; make the tokens at 25 Hz, or keep every "
            f"second of 50 a second by rate=50 reduce={EVERY_SECOND}."
        )
    naming = FileNames(Path(config.input).parent, layout=config.layout, names=config.names)
    return SpokenContract(
        speech_vocab=config.speech_vocab,
        columns=column_names("columns", config.columns, KEYS),
        rate=config.rate,
        reduce=config.reduce,
        times=config.times,
        naming=naming if paths or config.layout or config.names else None,
    )


def _files(config: PrepareConfig, endings: tuple[str, ...]) -> list[Path]:
    from lst.data.sources.files import input_files

    return input_files(config.input, endings)[1]
