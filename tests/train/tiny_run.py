"""A data set of a few thousand tokens and runs of a few steps, for tests that really train."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import sentencepiece

from lst.config import RunConfig, arm_config
from lst.data.preparing.shard_writer import write_dataset
from lst.data.shards import open_dataset
from lst.data.speech_bpe import dataset_pieces
from lst.plain import merge, to_dict
from lst.records import WALL_CLOCK_FIELDS, read_jsonl

SPEECH_VOCAB = 40
SPEECH_BPE_VOCAB = 70
TEXT_VOCAB = 90
ROOT = Path(__file__).parents[2]


def write_tiny_dataset(folder: Path) -> Path:
    """A prepared data set: words of a small vocabulary, each with speech tokens of its own."""
    generator = np.random.Generator(np.random.Philox(key=5))
    letters = list("abcdefghijklmnopqrstuvwxyz")
    words = ["".join(generator.choice(letters, generator.integers(2, 7))) for _ in range(80)]
    sounds = {w: generator.integers(0, SPEECH_VOCAB, generator.integers(2, 6)).tolist() for w in words}

    def sentence(length: int) -> list[str]:
        return [str(w) for w in generator.choice(words, length)]

    spoken = [_spoken(i, sentence(int(generator.integers(15, 60))), sounds) for i in range(40)]
    written = [
        {"id": f"t{i}", "book": "b", "split": "heldout" if i % 4 == 0 else "train", "text": " ".join(sentence(120))}
        for i in range(24)
    ]
    stories = [_story(i, [sentence(n) for n in (12, 6, 5, 7, 6, 4, 6, 5)], sounds) for i in range(12)]
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _train_tokenizer(folder, [row["text"] for row in written])
    tables = {"speech": spoken, "text": written, "stories": stories}
    out = folder / "data"
    write_dataset(
        out, {n: pa.Table.from_pylist(rows) for n, rows in tables.items()}, tokenizer=tokenizer, speech_vocab=SPEECH_VOCAB
    )
    return out


def tiny_config(arm: str, data_path: Path, **overrides: Any) -> RunConfig:
    """A run of 12 steps of 4 sequences of 96 units."""
    manifest = json.loads((data_path / "manifest.json").read_text())
    values: dict[str, Any] = {
        "model": {"text_vocab": TEXT_VOCAB, "speech_vocab": SPEECH_VOCAB},
        "data": {"data_id": manifest["data_id"], "seq_len_units": 96, "interleaved_token_share": 0.5},
        "optim": {"warmup_steps": 3, "lr": 3e-3},
        "train": {"steps": 12, "batch_sequences": 4},
        "evaluation": {"heldout_documents": 6, "context_tokens": 64, "points": 2, "story_items": 5},
        "execution": {"data_path": str(data_path), "micro_batch_tokens": 400, "device": "cpu"},
    }
    values["data"] |= {"interleaved_sequence_share_static": 0.5, "interleaved_sequence_share_aligned": 0.5}
    if arm == "bpe":
        values["model"]["speech_bpe_vocab"] = SPEECH_BPE_VOCAB
        values["data"]["speech_bpe_id"] = dataset_pieces(open_dataset(data_path), SPEECH_BPE_VOCAB).id
    return arm_config(arm, **merge(values, overrides))


def write_run(folder: Path, config: RunConfig) -> Path:
    """A run folder with its run.yaml (JSON is YAML)."""
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text(json.dumps({"run_id": config.run_id, "config": to_dict(config)}))
    return folder


def train(run_dir: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """`python -m lst.train RUN_DIR` to its end."""
    command = [sys.executable, "-m", "lst.train", str(run_dir)]
    return subprocess.run(
        command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=120, check=False, **options
    )


def records(run_dir: Path) -> dict[str, list[dict[str, Any]]]:
    """All records of a run without their wall-clock fields."""
    names = ("train.jsonl", "eval.jsonl", "items.jsonl")
    return {n: [{k: v for k, v in r.items() if k not in WALL_CLOCK_FIELDS} for r in read_jsonl(run_dir / n)] for n in names}


def _spoken(number: int, words: list[str], sounds: dict[str, list[int]]) -> dict[str, Any]:
    tokens: list[int] = [number % SPEECH_VOCAB]
    starts, ends = [], []
    for place, word in enumerate(words):
        starts.append(len(tokens))
        tokens += sounds[word]
        ends.append(len(tokens) - 1)
        tokens += [0] * (place % 3 == 0)
    return {
        "id": f"s{number}", "speaker": "v", "book": "b", "split": "heldout" if number % 4 == 0 else "train",
        "text": " ".join(words), "speech_tokens": tokens, "words": words, "word_start": starts, "word_end": ends,
    }  # fmt: skip


def _story(number: int, parts: list[list[str]], sounds: dict[str, list[int]]) -> dict[str, Any]:
    texts = [" ".join(p) for p in parts]
    spoken = [[token for word in p for token in sounds[word]] for p in parts]
    return {
        "id": f"story{number}", "book": "b", "speaker": "v", "prompt": texts[0], "right": texts[1],
        "elsewhere": texts[2:5], "later": texts[5:8], "prompt_speech": spoken[0], "right_speech": spoken[1],
        "elsewhere_speech": spoken[2:5], "later_speech": spoken[5:8],
    }  # fmt: skip


def _train_tokenizer(folder: Path, texts: list[str]) -> Path:
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(texts))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(folder / "spm"), vocab_size=TEXT_VOCAB, model_type="bpe",
        bos_id=1, eos_id=2, unk_id=0, pad_id=-1, minloglevel=2, byte_fallback=False, num_threads=1,
    )  # fmt: skip
    return folder / "spm.model"
