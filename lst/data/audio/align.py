"""When each word is spoken: CTC forced alignment for audio without exact times, and the rule from seconds to frames.

`WordAligner` finds the best path of a text's phonemes through the frame probabilities of `hama`'s phoneme recogniser
(50 Hz). CTC probabilities peak late and briefly, so a constant is taken off each start and added to each end; both were
calibrated on espeak-ng speech, whose times are exact. `frame_spans` turns any spans in seconds into the data set's
inclusive 25 Hz frames.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from math import ceil, floor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lst.data.audio.waveform import SAMPLE_RATE
from lst.data.corpus.synthesis import require_package, spoken_word
from lst.data.vocab import FRAMES_PER_SECOND
from lst.errors import DataError

_HOP_SECONDS = 0.02
START_BIAS = 0.08  # seconds by which a word's first CTC peak is late
END_BIAS = 0.02  # seconds by which a word goes on after its last CTC peak's frame began
_IMPOSSIBLE = -1e30


def frame_spans(spans: Sequence[tuple[float, float]], frames: int) -> tuple[list[int], list[int]]:
    """First and last 25 Hz frame of each word, both inside, increasing and without overlap, for a document of `frames`.

        seconds  0.00   0.04   0.08   0.12   0.16          frame f covers [f / 25, (f + 1) / 25)
        "of"     [-----------------)                       0.00-0.10 -> frames 0..2
        "the"                      [-------)               0.10-0.15 -> frames 2..3
        result   of: 0..1, the: 2..3                       the shared frame 2 goes to the later word

    Every word keeps at least one frame, if need be by moving later. Raises DataError if there are more words than frames.
    """
    if len(spans) > frames:
        raise DataError(f"{len(spans)} words do not fit into {frames} frames of speech; check the transcript.")
    starts: list[int] = []
    for start, _ in spans:
        starts.append(max(floor(start * FRAMES_PER_SECOND + 1e-6), starts[-1] + 1 if starts else 0))
    for i in range(len(starts)):
        starts[-1 - i] = min(starts[-1 - i], frames - 1 - i, *([starts[-i] - 1] if i else []))
    ends: list[int] = []
    for i, (_, end) in enumerate(spans):
        limit = starts[i + 1] - 1 if i + 1 < len(starts) else frames - 1
        ends.append(min(max(ceil(end * FRAMES_PER_SECOND - 1e-6) - 1, starts[i]), limit))
    return starts, ends


def ctc_path(log_probs: NDArray[np.float32], targets: Sequence[int], blank: int) -> list[int]:
    """The best monotonic path: for each frame the index into `targets`, or -1 for a blank.

    Viterbi over blank, target, blank, ... (Graves et al. 2006); ties stay where they are. Time and memory grow with frames times
    targets. Raises DataError if the targets cannot fit into the frames, or there is no frame.
    """
    if not len(log_probs):
        raise DataError("the audio is too short for a frame of the aligner; check the file.")
    frames, states = len(log_probs), 2 * len(targets) + 1
    labels = np.full(states, blank)
    labels[1::2] = targets
    skip_cost = np.full(states, _IMPOSSIBLE)  # from the target before, past the blank between: not where both are the same
    skip_cost[3::2][labels[3::2] != labels[1:-2:2]] = 0.0
    padded = np.full(states + 2, _IMPOSSIBLE)  # two states before the first, which no path comes from
    score, one_before, two_before = padded[2:], padded[1:-1], padded[:-2]
    score[:2] = log_probs[0, labels[:2]]
    back = np.zeros((frames, states), np.int8)
    best, skipped = np.empty(states), np.empty(states)
    for t in range(1, frames):
        np.greater(one_before, score, out=back[t].view(bool))
        np.maximum(score, one_before, out=best)
        np.add(two_before, skip_cost, out=skipped)
        back[t][skipped > best] = 2
        np.maximum(best, skipped, out=best)
        np.add(best, log_probs[t, labels], out=score)
    state = states - 1 if states == 1 or score[-1] >= score[-2] else states - 2
    if score[state] <= _IMPOSSIBLE / 2:
        raise DataError(f"{len(targets)} sounds do not fit into {frames} frames of the aligner; check the transcript.")
    path = [state]
    for t in range(frames - 1, 0, -1):
        state -= int(back[t, state])
        path.append(state)
    return [s // 2 if s % 2 else -1 for s in reversed(path)]


class WordAligner:
    """hama's phoneme recogniser and its letter-to-phoneme model, as a forced aligner of English."""

    def __init__(self) -> None:
        require_package("hama", "hama")
        hama: Any = importlib.import_module("hama")
        self._recogniser, self._letters = hama.ASRModel(), hama.G2PModel()
        self._ids = {token: i for i, token in enumerate(self._recogniser.decoder_tokens)}
        self._known: dict[str, list[int]] = {}

    def spans(self, audio: NDArray[np.float32], words: Sequence[str]) -> list[tuple[float, float]]:
        """Start and end of each word in seconds, for 16 kHz audio."""
        targets: list[int] = []
        owners: list[int] = []  # word of each target, -1 for a word boundary
        for i, word in enumerate(words):
            if i:
                targets.append(self._ids["<wb>"])
                owners.append(-1)
            phonemes = self._phonemes(word)
            targets += phonemes
            owners += [i] * len(phonemes)
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        for frame, target in enumerate(ctc_path(self._log_probs(audio), targets, self._recogniser.blank_id)):
            if target >= 0 and (word_index := owners[target]) >= 0:
                first.setdefault(word_index, frame)
                last[word_index] = frame
        spans: list[tuple[float, float]] = []
        for i in range(len(words)):
            before = spans[-1][1] if spans else 0.0  # a word without phonemes stands right behind the one before it
            start = first[i] * _HOP_SECONDS - START_BIAS if i in first else before
            end = last[i] * _HOP_SECONDS + END_BIAS if i in last else before
            spans.append((max(0.0, start), min(end, len(audio) / SAMPLE_RATE)))
        return spans

    def _phonemes(self, word: str) -> list[int]:
        bare = "".join(c for c in spoken_word(word).lower() if c.isalnum() or c in "'")
        if bare not in self._known:
            alignments = self._letters.predict(bare).alignments
            self._known[bare] = [self._ids[a.phoneme] for a in alignments if a.phoneme in self._ids]
        return self._known[bare]

    def _log_probs(self, audio: NDArray[np.float32]) -> NDArray[np.float32]:
        model = self._recogniser
        outputs, lengths = model.session.run(
            [model._log_probs_output_name, model._out_lengths_output_name],
            {
                model._waveform_input_name: audio.reshape(1, -1).astype(np.float32),
                model._waveform_lengths_input_name: np.array([len(audio)], np.int64),
            },
        )
        return np.asarray(outputs[0][: int(np.ravel(lengths)[0])], np.float32)
