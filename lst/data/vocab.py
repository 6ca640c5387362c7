"""The one place that numbers ids: text pieces, then speech tokens, then the two modality markers.

    id      0 .. text_vocab - 1                 text pieces, as the text tokenizer numbers them (BOS 1, EOS 2)
    id      text_vocab .. + speech_vocab - 1    speech tokens (k-means centres), not deduplicated
    id      .. + 0                              marker <t>: text follows
    id      .. + 1                              marker <s>: speech follows

PAPER (Terms): 32k text pieces and 501 speech tokens; interleaved sequences carry the markers. Padding has no id of its
own: a padded position carries document -1 and is masked wherever it could be seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BOS = 1  # as in Llama 2's and the embedded tokenizer
EOS = 2
FRAMES_PER_SECOND = 25  # speech tokens a second (PAPER: 25 Hz)

TEXT, SPEECH, MARKER = 0, 1, 2  # what an id is


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Offsets of the joint vocabulary."""

    text: int  # text pieces
    speech: int  # speech tokens

    @property
    def text_marker(self) -> int:
        return self.text + self.speech

    @property
    def speech_marker(self) -> int:
        return self.text + self.speech + 1

    @property
    def size(self) -> int:
        return self.text + self.speech + 2

    def speech_ids(self, tokens: NDArray[np.integer]) -> NDArray[np.int64]:
        """Speech tokens (0 .. speech - 1) as ids."""
        return np.asarray(tokens, np.int64) + self.text

    def modality(self, ids: NDArray[np.integer]) -> NDArray[np.int8]:
        """TEXT, SPEECH or MARKER for each id; BOS and EOS count as markers, for no modality predicts them."""
        kinds = np.full(np.shape(ids), TEXT, np.int8)
        kinds[ids >= self.text] = SPEECH
        kinds[(ids >= self.text_marker) | (ids == BOS) | (ids == EOS)] = MARKER
        return kinds
