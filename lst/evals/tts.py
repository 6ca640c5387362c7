"""`python -m lst.evals tts CHECKPOINT`: text to speech: generated tokens and units, the sound, character errors (PAPER: Table 5).

    python -m lst.evals tts studies/mine/runs/0123456789ab utterances=50 recognisers=models/whisper-small.en

Text of held-out utterances is continued as speech (T->S), greedily or by sampling; a vocoder makes the sound, kept as WAV
files; recognisers from local folders write down what they hear, and character errors are counted against the text. The
model should have been trained on the format `tts`. docs/evaluation.md defines each metric.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lst.config import RunConfig
from lst.errors import ConfigError
from lst.plain import from_dict

if TYPE_CHECKING:
    from lst.data.vocoders.vocoder import Vocoder
    from lst.evals.checkpoints import Checkpoint
    from lst.evals.utterances import Utterance

WAVES = "audio"
PART = 4  # utterances spoken between two writes
WALL_CLOCK = ("generation_seconds", "vocoder_seconds")


@dataclass(frozen=True, kw_only=True)
class TtsConfig:
    """Options of `python -m lst.evals tts`, given as key=value."""

    test: str = ""  # folder of another prepared data set, of the same speech tokens, whose held-out texts are spoken
    utterances: int = 50  # drawn by `seed`
    words: int = 0  # most words of an utterance; 0 = as in training (data.pair_words)
    temperature: float = 0.0  # 0: greedy
    top_k: int = 0
    top_p: float = 1.0
    seconds_per_word: float = 1.0  # of speech after which a generation is cut ..
    extra_seconds: float = 2.0  # .. and so many more
    static_fallback: bool = False  # an aligned arm generates under static patches, on which it was not trained
    vocoder: str = "embedded"  # or a unit vocoder's folder; none: no sound
    voice: str = ""  # of the vocoder
    recognisers: str = ""  # folders of Whispers, pocketsphinx; divided by commas; none: no character errors
    normaliser: str = "plain-english-1"
    seed: int = 0
    shard: str = "1/1"  # i/N: this process makes every N-th part of the utterances; who finishes last joins them
    out: str = ""
    data: str = ""
    device: str = "auto"
    dtype: str = "float32"

    @property
    def recogniser_names(self) -> list[str]:
        return [name for name in self.recognisers.split(",") if name]

    def validate(self) -> None:
        from lst.checks import require_choice, require_positive, require_seed
        from lst.evals.checkpoints import require_place
        from lst.evals.edit_errors import NORMALISERS
        from lst.sampling import Sampling

        for key in ("utterances", "seconds_per_word"):
            require_positive(key, getattr(self, key))
        if self.words < 0 or self.extra_seconds < 0:
            raise ConfigError(f"words={self.words} and extra_seconds={self.extra_seconds} must not be negative.")
        Sampling(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p).validate()
        if not self.temperature and (self.top_k or self.top_p != 1):
            raise ConfigError(f"top_k={self.top_k} and top_p={self.top_p} have no effect at temperature=0; give temperature=1.")
        if self.vocoder == "none" and self.recognisers:
            raise ConfigError(f"recognisers={self.recognisers} hear nothing with vocoder=none; name a vocoder.")
        require_seed("seed", self.seed)
        require_place(self.device, self.dtype)
        require_choice("normaliser", self.normaliser, tuple(NORMALISERS))

    def check_arm(self, run: RunConfig) -> None:
        """Raises ConfigError where the arm cannot generate speech so."""
        from lst.sampling import generation_patching

        generation_patching(run, "T->S", static_fallback=self.static_fallback)

    def check_data(self, path: str, data_id: str) -> None:
        """Raises DataError where `path`, or `data`, is no data set `data_id`, `test` none of its tokens, or a recogniser
        none that is here."""
        from lst.evals.checkpoints import trained_dataset, utterance_dataset
        from lst.evals.recogniser import require_folder

        utterance_dataset(trained_dataset(path, data_id, given=self.data), self.test)
        for name in self.recogniser_names:
            require_folder(name)


def run_tts(source: Path, values: dict[str, Any]) -> str:
    """Evaluate; the text to print. Raises LstError, OSError on a full disk."""
    from lst.evals.utterances import heldout_utterances, in_parts, open_evaluation
    from lst.train.folder import versions

    config = from_dict(TtsConfig, values)
    config.validate()
    checkpoint, dataset, folder, words = open_evaluation("tts", source, asdict(config))
    if folder.is_done:
        return f"{folder.out}: this evaluation is there already."
    judge = _Judge(config, checkpoint)
    chosen = heldout_utterances(dataset, count=config.utterances, words=words, seed=config.seed)
    waves = folder.work / WAVES

    def speak(part: Sequence[Utterance], first: int) -> list[dict[str, Any]]:
        waves.mkdir(parents=True, exist_ok=True)
        records = []
        for number, utterance in enumerate(part, first):
            record = speak_utterance(checkpoint, utterance, config, number)
            tokens = record.pop("speech_tokens")
            records.append(record | judge.judge(tokens, utterance.text, waves / f"{number:04}.wav"))
        return records

    sizes, make = in_parts(chosen, PART, speak)
    with folder.records(sizes, make) as records:
        if records is None:
            return folder.left
        about = {"evaluation_id": folder.id, "normaliser": config.normaliser, "patching": records[0]["patching"]}
        about |= {"conditional": False}  # no speech is generated under aligned patches
        metrics = [{**checkpoint.spent, **row, **about} for row in tts_metrics(records)]
        folder.finish(checkpoint.about | {"versions": versions(), "test": str(dataset.path)}, records, metrics)
    found = {row["metric"]: row["value"] for row in metrics}
    judged = [f"CER {value:.3f} by {name.removeprefix('cer_')}" for name, value in found.items() if name.startswith("cer_")]
    rate = found.get("generated_units_per_second")
    made = "no speech was generated" if rate is None else f"{rate:.2f} units a second of {found['seconds']:.1f} s generated"
    told = [made, *judged]
    return "\n".join([*told, f"written: {folder.out}"])


def speak_utterance(checkpoint: Checkpoint, utterance: Utterance, config: TtsConfig, number: int) -> dict[str, Any]:
    """One text as speech tokens, and what they took. Its draws depend on the seed and its number alone."""
    import torch

    from lst.data.vocab import FRAMES_PER_SECOND
    from lst.model import generate

    words = len(utterance.text.split())
    limit = math.ceil((config.seconds_per_word * words + config.extra_seconds) * FRAMES_PER_SECOND)
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + number) if config.temperature else None
    start = time.perf_counter()
    (result,) = generate(
        checkpoint.model, checkpoint.config, [[("text", utterance.pieces)]], direction="T->S", max_tokens=limit,
        temperature=config.temperature, top_k=config.top_k, top_p=config.top_p, generator=generator,
        static_fallback=config.static_fallback,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    tokens = [t for modality, segment in result.segments for t in segment if modality == "speech"]
    return {
        "task": "tts",
        "direction": "T->S",
        "item": utterance.id,
        "speech_tokens": tokens,
        "generated_tokens": len(tokens),
        "generated_ids": len(result.ids),
        "generated_units": result.global_steps,
        "finished": result.stop != "max_tokens",
        "patching": str(result.patching),
        "note": result.note,
        "seconds": len(tokens) / FRAMES_PER_SECOND,
        "said_seconds": utterance.seconds,
        "generation_seconds": round(seconds, 4),
    }


class _Judge:
    """The vocoder and the recognisers."""

    def __init__(self, config: TtsConfig, checkpoint: Checkpoint) -> None:
        """Raises DataError where one cannot be opened, or the vocoder speaks other tokens."""
        from lst.data.vocoders.vocoder import open_vocoder
        from lst.evals.edit_errors import NORMALISERS
        from lst.evals.recogniser import open_recogniser

        self.vocoder: Vocoder | None = None
        if config.vocoder != "none":
            self.vocoder = open_vocoder(config.vocoder, voice=config.voice)
            self.vocoder.check_units(checkpoint.dataset)
        self.recognisers = {Path(name).name: open_recogniser(name) for name in config.recogniser_names}
        self.normalise = NORMALISERS[config.normaliser]

    def judge(self, tokens: Sequence[int], text: str, file: Path) -> dict[str, Any]:
        """Write the sound; what each recogniser heard, and its character errors. Nothing generated is heard as nothing."""
        from lst.data.audio.waveform import resample
        from lst.data.vocoders.vocoder import write_wav
        from lst.evals.edit_errors import character_errors

        said = self.normalise(text)
        record: dict[str, Any] = {"said": said, "said_characters": len(said), "vocoder_seconds": 0.0}
        audio = None
        if self.vocoder is not None and tokens:
            start = time.perf_counter()
            audio, rate = self.vocoder(tokens)
            record["vocoder_seconds"] = round(time.perf_counter() - start, 4)
            write_wav(file, audio, rate)
            audio = resample(audio, rate)
        for name, hear in self.recognisers.items():
            heard = self.normalise(hear(audio)) if audio is not None else ""
            errors = character_errors(said, heard)
            wrong = errors.substitutions + errors.deletions + errors.insertions
            record |= {f"heard_{name}": heard, f"wrong_characters_{name}": wrong}
        return record


def tts_metrics(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sums over all utterances before they are divided, where there is something to divide by; shares of utterances."""
    n = len(records)
    total = {
        key: sum(r[key] for r in records)
        for key in ("seconds", "said_seconds", "generated_units", "generated_tokens", *WALL_CLOCK)
    }
    values = {
        "seconds": total["seconds"],
        "duration_ratio": total["seconds"] / max(total["said_seconds"], 1e-9),
        "unfinished_share": sum(not r["finished"] for r in records) / n,
        "empty_share": sum(not r["generated_tokens"] for r in records) / n,
    }
    if total["generated_tokens"]:  # of no speech there is no rate
        values |= {
            "generated_units_per_second": total["generated_units"] / total["seconds"],
            "units_per_token": total["generated_units"] / total["generated_tokens"],
            "real_time_factor": (total["generation_seconds"] + total["vocoder_seconds"]) / total["seconds"],
        }
    characters = max(1, sum(r["said_characters"] for r in records))
    for key in (key for key in records[0] if key.startswith("wrong_characters_")):
        values[f"cer_{key.removeprefix('wrong_characters_')}"] = sum(r[key] for r in records) / characters
    return [{"task": "tts", "direction": "T->S", "metric": name, "value": value, "n_items": n} for name, value in values.items()]
