"""Random HuBERT and wav2vec2 models of a few thousand weights, saved as transformers saves them, and audio made of tones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

WIDTH = 16
STRIDES_25_HZ = (5, 4, 4, 4, 2)  # 640 samples
STRIDES_50_HZ = (5, 4, 4, 4)
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ'"


def _shape(strides: tuple[int, ...], norm: str) -> dict[str, Any]:
    return {
        "initializer_range": 0.5,  # large enough for features that differ from frame to frame
        "hidden_size": WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "conv_dim": [8] * len(strides),
        "conv_kernel": [10, *[s + 1 for s in strides[1:]]],
        "conv_stride": list(strides),
        "num_feat_extract_layers": len(strides),
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 2,
        "feat_extract_norm": norm,
        "do_stable_layer_norm": norm == "layer",
    }


def save_hubert(folder: Path, *, strides: tuple[int, ...] = STRIDES_25_HZ, norm: str = "layer", normalize: bool = True) -> Path:
    """A HubertModel of three blocks with its preprocessor_config.json."""
    import torch
    from transformers import HubertConfig, HubertModel

    torch.manual_seed(0)
    HubertModel(HubertConfig(**_shape(strides, norm))).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": normalize}))
    return folder


def save_ctc(folder: Path, *, letters: str = LETTERS) -> Path:
    """A Wav2Vec2ForCTC at 50 Hz with a vocabulary of `letters`."""
    import torch
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    torch.manual_seed(0)
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, **{c: i for i, c in enumerate(letters, 5)}}
    config = Wav2Vec2Config(**_shape(STRIDES_50_HZ, "layer"), vocab_size=len(vocabulary), pad_token_id=0)
    Wav2Vec2ForCTC(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True}))
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    return folder


def save_centres(file: Path, k: int = 200, width: int = WIDTH) -> Path:
    """Random k-means centres as .npy."""
    np.save(file, np.random.default_rng(1).normal(size=(k, width)).astype(np.float32))
    return file


def tones(seconds: float, seed: int = 0, rate: int = 16_000) -> NDArray[np.float32]:
    """A glide with bursts of noise, representable in 16 bits."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    wave = 0.3 * np.sin(2 * np.pi * (150 + 40 * seed + 60 * time) * time) + 0.3 * np.sin(9 * time) ** 8 * rng.normal(
        size=len(time)
    )
    return (np.round(np.clip(wave, -1, 0.999) * 32768) / 32768).astype(np.float32)


def write_audio(file: Path, audio: NDArray[Any], rate: int = 16_000) -> Path:
    """A wav, flac or ogg file by its ending, 16 bits where it has such."""
    import soundfile

    file.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(file, audio, rate)
    return file
