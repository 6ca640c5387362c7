"""Text to pieces: a thin face of SentencePiece models and Hugging Face `tokenizer.json` files that encodes word by word.

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

from lst.data.tokenizer_json import JsonTokenizer
from lst.data.vocab import BOS, EOS
from lst.errors import DataError

SENTENCEPIECE_FILE, JSON_FILE = "tokenizer.model", "tokenizer.json"


def tokenizer_file(folder: Path) -> Path:
    """Where a data set keeps its text tokenizer."""
    return folder / (JSON_FILE if (folder / JSON_FILE).is_file() else SENTENCEPIECE_FILE)


class TextTokenizer:
    """A text tokenizer whose BOS is 1 and EOS is 2. `content` is its file, `file` the name that a data set keeps it under."""

    def __init__(self, path: Path) -> None:
        """Raises DataError if `path` is neither a SentencePiece model with these ids nor a tokenizer.json."""
        try:
            self.content = path.read_bytes()
        except OSError as error:
            raise DataError(
                f"text tokenizer '{path}' does not exist or cannot be read; give a SentencePiece .model file or a tokenizer.json."
            ) from error
        self._model: JsonTokenizer | SentencePieces
        if self.content.lstrip()[:1] == b"{":
            self._model = JsonTokenizer(str(path), self.content)
            self.content, self.file = self._model.content, JSON_FILE
        else:
            self._model, self.file = SentencePieces(str(path), self.content), SENTENCEPIECE_FILE

    @property
    def size(self) -> int:
        return self._model.size

    @cached_property
    def characters(self) -> NDArray[np.int64]:
        """(size,) characters of the text that each piece stands for; spaces and control pieces are none.

        A character in several byte pieces counts at its first byte.
        """
        return self._model.characters()

    def encode(self, text: str) -> list[int]:
        return self._model.encode(text)

    def encode_words(self, words: Sequence[str]) -> list[list[int]]:
        """The pieces of each word of a document, the first word first: together those of the words between single spaces."""
        return self._model.encode_words(words)

    def decode(self, pieces: Sequence[int]) -> str:
        return self._model.decode([int(p) for p in pieces])


class SentencePieces:
    """A SentencePiece model, of which each word begins with the space mark."""

    def __init__(self, name: str, content: bytes) -> None:
        self._model = sentencepiece.SentencePieceProcessor()
        try:
            self._model.LoadFromSerializedProto(content)
        except RuntimeError as error:
            raise DataError(f"text tokenizer '{name}' is no SentencePiece model ({error}); give another file.") from error
        if (self._model.bos_id(), self._model.eos_id()) != (BOS, EOS):
            raise DataError(
                f"text tokenizer '{name}' has bos={self._model.bos_id()} and eos={self._model.eos_id()}; "
                f"train it with bos_id={BOS} and eos_id={EOS}."
            )
        self.size = int(self._model.get_piece_size())

    def characters(self) -> NDArray[np.int64]:
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
        return [list(pieces) for pieces in self._model.encode(list(words))]

    def decode(self, pieces: Sequence[int]) -> str:
        return str(self._model.decode(list(pieces)))
