"""From the options of `prepare-data` to the parts of an audio source: quantizer, names, transcripts, alignments, aligner."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lst.errors import ConfigError

if TYPE_CHECKING:
    from lst.data.audio.alignments import Alignments
    from lst.data.audio.embedded_quantizer import SpeechTokenizerCard
    from lst.data.audio.quantizers import AudioQuantizer
    from lst.data.audio.transcripts import Transcripts
    from lst.data.prepare import PrepareConfig
    from lst.data.sources.audio import Aligner, AudioFiles

EMBEDDED = "embedded"
CTC = "ctc"
ALIGN = (CTC, EMBEDDED)


def check_audio_options(config: PrepareConfig) -> None:
    """What the options alone tell, before any package or model is asked for. Raises ConfigError."""
    from lst.data.audio.quantizers import REDUCE
    from lst.data.audio.speech_model import DEVICES, DTYPES, NORMALIZE

    if config.card:
        raise ConfigError(f"card={config.card} is about ready tokens; with format=audio the quantizer tells its own card.")
    for key, known in (("normalize", NORMALIZE), ("dtype", DTYPES), ("device", DEVICES), ("reduce", REDUCE), ("align", ALIGN)):
        if getattr(config, key) not in ("", *known):
            raise ConfigError(f"{key}='{getattr(config, key)}' is unknown; use {', '.join(filter(None, known))}.")
    given = [key for key in ("kmeans", "layer", "reduce") if getattr(config, key)]
    if config.quantizer == EMBEDDED and given:
        raise ConfigError(f"{given[0]}={getattr(config, given[0])} is for a HuBERT; name its folder: quantizer=FOLDER.")
    if config.quantizer != EMBEDDED and not (config.kmeans and config.layer):
        raise ConfigError(f"quantizer={config.quantizer} needs kmeans=FILE and layer=N: which centres, of which block.")
    if config.align and config.alignments:
        raise ConfigError(f"give either alignments={config.alignments} or align={config.align}.")
    if config.ctc_model and config.align != CTC:
        raise ConfigError(f"ctc_model={config.ctc_model} aligns nothing without align={CTC}.")
    if config.align == CTC and not config.ctc_model:
        raise ConfigError(f"align={CTC} needs ctc_model=FOLDER, of a Wav2Vec2ForCTC with its vocab.json.")
    if config.align and not config.transcripts:
        raise ConfigError(f"align={config.align} needs the words that are spoken: transcripts=beside, a folder or a table.")


def quantizer_centres(config: PrepareConfig) -> int:
    """How many centres the quantizer has, from its card or its centres alone. Raises DataError."""
    from lst.data.audio.embedded_quantizer import SpeechTokenizerCard
    from lst.data.audio.quantizers import read_centres
    from lst.data.shards import embedded_path

    if config.quantizer == EMBEDDED:
        return SpeechTokenizerCard.read(embedded_path()).k
    return len(read_centres(Path(config.kmeans)))


def audio_source(config: PrepareConfig) -> AudioFiles:
    """The source of format=audio, whose options are checked. Raises ConfigError or DataError; what is cheap is asked first."""
    from lst.data.audio.waveform import require_soundfile
    from lst.data.sources.audio import AudioFiles, list_audio
    from lst.data.sources.audio_names import FileNames

    naming = FileNames(list_audio(Path(config.input))[0], layout=config.layout, names=config.names)
    transcripts, alignments = transcripts_of(config), alignments_of(config)
    require_soundfile()
    return AudioFiles(
        Path(config.input),
        quantizer_of(config),
        naming=naming,
        transcripts=transcripts,
        alignments=alignments,
        aligner=aligner_of(config),
        max_seconds=config.max_seconds,
    )


def quantizer_of(config: PrepareConfig) -> AudioQuantizer:
    """The quantizer that `quantizer` names."""
    from lst.data.audio.quantizers import EmbeddedQuantizer, HubertQuantizer

    if config.quantizer == EMBEDDED:
        return EmbeddedQuantizer(config.window_seconds)
    return HubertQuantizer(
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


def transcripts_of(config: PrepareConfig) -> Transcripts | None:
    from lst.data.audio.transcripts import Transcripts

    return Transcripts(config.transcripts) if config.transcripts else None


def alignments_of(config: PrepareConfig) -> Alignments | None:
    from lst.data.audio.alignments import Alignments

    return Alignments(Path(config.alignments), tier=config.tier) if config.alignments else None


def card_of(config: PrepareConfig) -> SpeechTokenizerCard | None:
    """The card of ready tokens."""
    from lst.data.audio.embedded_quantizer import SpeechTokenizerCard

    return SpeechTokenizerCard.read_file(Path(config.card)) if config.card else None


def aligner_of(config: PrepareConfig) -> Aligner | None:
    """What `align` names, or None."""
    if not config.align:
        return None
    from lst.data.audio.ctc import CtcAligner, EmbeddedAligner

    if config.align == EMBEDDED:
        return EmbeddedAligner()
    return CtcAligner(
        Path(config.ctc_model),
        normalize=config.normalize,
        window_seconds=config.window_seconds,
        device=config.device,
        dtype=config.dtype,
    )
