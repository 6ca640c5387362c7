"""A speech recogniser from a local folder, by which generated speech is judged: transformers' Whisper (extra `hf`).

    hear = open_recogniser("models/whisper-small.en")      # config, weights as safetensors, tokenizer and feature extractor
    hear(audio)                                            # 16 kHz, -1..1 -> text

Judging tokens that were made by a Whisper encoder with a Whisper is circular: name a second recogniser beside it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lst.errors import DataError

LONGEST = 30.0  # seconds that Whisper hears at once


def open_recogniser(folder: str) -> Callable[[NDArray[np.float32]], str]:
    """Greedy transcripts. Raises DataError if transformers is missing or the folder holds no Whisper in safetensors."""
    if importlib.util.find_spec("transformers") is None:
        raise DataError("recogniser= needs the package 'transformers'; run: pip install lst-scaling[hf]")
    path = Path(folder)
    if not (path / "config.json").is_file() or not list(path.glob("*.safetensors")):
        raise DataError(f"recogniser={folder} has no config.json and safetensors; give the local folder of a Whisper.")
    import torch
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    try:
        processor: Any = WhisperProcessor.from_pretrained(folder, local_files_only=True)
        model: Any = WhisperForConditionalGeneration.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"recogniser={folder} cannot be opened ({str(error).splitlines()[0]}); give a Whisper's folder."
        ) from error

    model.eval()

    @torch.no_grad()
    def hear(audio: NDArray[np.float32]) -> str:
        size, texts = int(LONGEST * 16_000), []
        for first in range(0, len(audio), size):
            features = processor(audio[first : first + size], sampling_rate=16_000, return_tensors="pt").input_features
            ids = model.generate(features, do_sample=False, num_beams=1)
            texts.append(processor.batch_decode(ids, skip_special_tokens=True)[0].strip())
        return " ".join(filter(None, texts))

    return hear
