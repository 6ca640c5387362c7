"""Text to pieces: a thin face of SentencePiece that encodes word by word.

Words are encoded one at a time, which for a BPE model that never merges across white space equals encoding the whole
text, and which gives each word its own pieces, as interleaving needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from lst.data.vocab import BOS, EOS
from lst.errors import DataError


class TextTokenizer:
    """A SentencePiece model whose BOS is 1 and EOS is 2."""

    def __init__(self, path: Path) -> None:
        """Raises DataError if `path` is no SentencePiece model, or numbers BOS and EOS otherwise."""
        if not path.is_file():
            raise DataError(f"text tokenizer '{path}' does not exist; give a SentencePiece .model file.")
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except RuntimeError as error:
            raise DataError(f"text tokenizer '{path}' is no SentencePiece model ({error}); give another file.") from error
        if (self._model.bos_id(), self._model.eos_id()) != (BOS, EOS):
            raise DataError(
                f"text tokenizer '{path}' has bos={self._model.bos_id()} and eos={self._model.eos_id()}; "
                f"train it with bos_id={BOS} and eos_id={EOS}."
            )

    @property
    def size(self) -> int:
        return int(self._model.get_piece_size())

    @cached_property
    def characters(self) -> NDArray[np.int64]:
        """(size,) characters of the text that each piece stands for; the white space mark and control pieces are none.

        A character in several byte pieces counts at its first byte.
        """
        model = self._model
        counts = [len(model.id_to_piece(i).replace("\u2581", "")) for i in range(self.size)]
        for i in range(self.size):
            if model.is_control(i):
                counts[i] = 0
            elif model.is_unknown(i):
                counts[i] = 1
            elif model.is_byte(i):
                counts[i] = int(not 0x80 <= int(model.id_to_piece(i)[1:-1], 16) < 0xC0)  # 10xxxxxx goes on a character
        return np.array(counts, np.int64)

    def encode(self, text: str) -> list[int]:
        return list(self._model.encode(text))

    def encode_words(self, words: Sequence[str]) -> list[list[int]]:
        """The pieces of each word."""
        return [list(pieces) for pieces in self._model.encode(list(words))]

    def decode(self, pieces: Sequence[int]) -> str:
        return str(self._model.decode([int(p) for p in pieces]))
