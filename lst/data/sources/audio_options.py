"""From the options of `prepare-data` to the parts of an audio source: quantizer, names, transcripts, alignments, aligner."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from lst.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from lst.data.audio.alignments import Alignments
    from lst.data.audio.embedded_quantizer import SpeechTokenizerCard
    from lst.data.audio.quantizers import AudioQuantizer
    from lst.data.audio.transcripts import Transcripts
    from lst.data.prepare import PrepareConfig
    from lst.data.sources.audio import Aligner, AudioFiles

EMBEDDED = "embedded"
ALIGN = ("ctc", EMBEDDED)
OF_AUDIO = ("align", "ctc_model", "quantizer", "kmeans", "layer", "normalize")
"""Options that mean nothing without audio."""


def audio_source(config: PrepareConfig) -> AudioFiles:
    """The source of format=audio. Raises ConfigError or DataError."""
    from lst.data.audio.waveform import require_soundfile
    from lst.data.sources.audio import AudioFiles, list_audio
    from lst.data.sources.audio_names import FileNames

    if config.card:
        raise ConfigError(f"card={config.card} is about ready tokens; with format=audio the quantizer tells its own card.")
    require_soundfile()
    return AudioFiles(
        Path(config.input),
        quantizer_of(config),
        naming=FileNames(list_audio(Path(config.input))[0], layout=config.layout, names=config.names),
        transcripts=transcripts_of(config),
        alignments=alignments_of(config),
        aligner=aligner_of(config),
        max_seconds=config.max_seconds,
    )


def quantizer_of(config: PrepareConfig) -> AudioQuantizer:
    """The quantizer that `quantizer` names; its tokens must fit into `speech_vocab`."""
    from lst.data.audio.quantizers import EmbeddedQuantizer, HubertQuantizer

    quantizer: AudioQuantizer
    if config.quantizer == EMBEDDED:
        given = [key for key in ("kmeans", "layer", "reduce") if getattr(config, key)]
        if given:
            raise ConfigError(f"{given[0]}={getattr(config, given[0])} is for a HuBERT; name its folder: quantizer=FOLDER.")
        quantizer = EmbeddedQuantizer(config.window_seconds)
    else:
        if not config.kmeans or not config.layer:
            raise ConfigError(f"quantizer={config.quantizer} needs kmeans=FILE and layer=N: which centres, of which block.")
        quantizer = HubertQuantizer(
            Path(config.quantizer),
            kmeans=Path(config.kmeans),
            layer=config.layer,
            reduce=config.reduce,
            normalize=config.normalize,
            window_seconds=config.window_seconds,
            batch_seconds=config.batch_seconds,
            device=config.device,
            dtype=config.dtype,
        )
    if quantizer.card.k > config.speech_vocab:
        raise ConfigError(
            f"speech_vocab={config.speech_vocab} is less than the quantizer's {quantizer.card.k} centres; give that."
        )
    return quantizer


def transcripts_of(config: PrepareConfig) -> Transcripts | None:
    from lst.data.audio.transcripts import Transcripts

    return Transcripts(config.transcripts) if config.transcripts else None


def alignments_of(config: PrepareConfig) -> Alignments | None:
    from lst.data.audio.alignments import Alignments

    return Alignments(Path(config.alignments), tier=config.tier) if config.alignments else None


def card_of(config: PrepareConfig) -> SpeechTokenizerCard | None:
    """The card of ready tokens; its centres must fit into `speech_vocab`."""
    from lst.data.audio.embedded_quantizer import SpeechTokenizerCard

    if not config.card:
        return None
    card = SpeechTokenizerCard.read_file(Path(config.card))
    if card.k > config.speech_vocab:
        raise ConfigError(f"speech_vocab={config.speech_vocab} is less than the card's {card.k} centres; give that.")
    return card


def aligner_of(config: PrepareConfig) -> Aligner | None:
    """What `align` names, or None."""
    if not config.align:
        if config.ctc_model:
            raise ConfigError(f"ctc_model={config.ctc_model} aligns nothing without align=ctc.")
        return None
    if config.align not in ALIGN:
        raise ConfigError(f"align='{config.align}' is unknown; {did_you_mean(config.align, ALIGN)}")
    if config.alignments:
        raise ConfigError(f"give either alignments={config.alignments} or align={config.align}.")
    from lst.data.audio.ctc import CtcAligner, EmbeddedAligner

    if config.align == EMBEDDED:
        return EmbeddedAligner()
    if not config.ctc_model:
        raise ConfigError("align=ctc needs ctc_model=FOLDER, of a Wav2Vec2ForCTC with its vocab.json.")
    return CtcAligner(
        Path(config.ctc_model),
        normalize=config.normalize,
        window_seconds=config.window_seconds,
        device=config.device,
        dtype=config.dtype,
    )


def refuse_audio_options(config: PrepareConfig) -> None:
    """ConfigError if ready tokens are given an option that only audio has."""
    for spec in fields(config):
        if spec.name in OF_AUDIO and getattr(config, spec.name) != spec.default:
            raise ConfigError(f"{spec.name}={getattr(config, spec.name)} is an option of format=audio alone; leave it out.")
