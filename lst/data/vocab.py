"""The one place that numbers ids: text pieces, then speech tokens, then the two modality markers.

    id      0 .. text_vocab - 1                 text pieces, as the text tokenizer numbers them (BOS 1, EOS 2)
    id      text_vocab .. + speech_vocab - 1    speech tokens (k-means centres), not deduplicated
            .. + speech_pieces - 1              in their place, arm `bpe`: pieces of speech tokens (lst/data/speech_bpe.py)
    id      .. + 0                              marker <t>: text follows
    id      .. + 1                              marker <s>: speech follows

PAPER (Terms): 32k text pieces and 501 speech tokens; interleaved sequences carry the markers. Padding has no id of its
own: a padded position carries document -1 and is masked wherever it could be seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from lst.config import ModelConfig

BOS = 1  # as in Llama 2's and the embedded tokenizer
EOS = 2
FRAMES_PER_SECOND = 25  # speech tokens a second (PAPER: 25 Hz)

TEXT, SPEECH, MARKER = 0, 1, 2  # what an id is


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Offsets of the joint vocabulary."""

    text: int  # text pieces
    speech: int  # speech tokens
    speech_pieces: int = 0  # pieces of speech tokens that are ids in their place; 0 = speech tokens are

    @classmethod
    def of(cls, model: ModelConfig) -> Vocabulary:
        """The vocabulary of a network."""
        return cls(text=model.text_vocab, speech=model.speech_vocab, speech_pieces=model.speech_bpe_vocab)

    @property
    def speech_size(self) -> int:
        """Ids that stand for speech: pieces, or speech tokens."""
        return self.speech_pieces or self.speech

    @property
    def text_marker(self) -> int:
        return self.text + self.speech_size

    @property
    def speech_marker(self) -> int:
        return self.text_marker + 1

    @property
    def size(self) -> int:
        return self.text_marker + 2

    def speech_ids(self, tokens: NDArray[np.integer]) -> NDArray[np.int64]:
        """Speech tokens, or pieces where speech is in pieces, as ids."""
        return np.asarray(tokens, np.int64) + self.text

    def modality(self, ids: NDArray[np.integer]) -> NDArray[np.int8]:
        """TEXT, SPEECH or MARKER for each id; BOS and EOS count as markers, for no modality predicts them."""
        kinds = np.full(np.shape(ids), TEXT, np.int8)
        kinds[ids >= self.text] = SPEECH
        kinds[(ids >= self.text_marker) | (ids == BOS) | (ids == EOS)] = MARKER
        return kinds
