"""A random Whisper of a few thousand weights with a byte-level tokenizer, saved to a folder as the published ones are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_tiny_whisper(folder: Path, transformers: Any) -> Path:
    folder.mkdir(parents=True)
    letters = [chr(c) for c in range(33, 127)] + ["Ġ"]
    specials = ["<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"]
    vocabulary = {token: i for i, token in enumerate([*letters, *specials])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.WhisperTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"),
        unk_token=specials[0], bos_token=specials[0], eos_token=specials[0], pad_token=specials[0],
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    transformers.WhisperFeatureExtractor(feature_size=16).save_pretrained(folder)
    size, end = len(vocabulary), vocabulary[specials[0]]
    config = transformers.WhisperConfig(
        vocab_size=size, num_mel_bins=16, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_target_positions=32,
        decoder_start_token_id=vocabulary[specials[1]], bos_token_id=end, eos_token_id=end, pad_token_id=end,
        begin_suppress_tokens=None, suppress_tokens=None, max_length=12,
    )  # fmt: skip
    transformers.WhisperForConditionalGeneration(config).save_pretrained(folder, safe_serialization=True)
    return folder
