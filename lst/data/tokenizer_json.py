"""A Hugging Face `tokenizer.json` (byte pair encoding) as a text tokenizer whose BOS is 1 and EOS is 2. Needs the extra `hf`.

Other numbers are changed to those, once, when the file is read, and the changed file is what a data set keeps:

    Llama 3     128000 <|begin_of_text|>     1 "     2 #            as it comes
                1 <|begin_of_text|>     2 <|end_of_text|>     128000 "     128001 #            as it is kept

A tokenizer that has no BOS or EOS of its own (GPT-2 has one token for both: the EOS) gets a new one. BOS and EOS are told by
their names among the special tokens. Text is plain text: a special token's name in it is encoded letter by letter.

Words are encoded one by one. Where a tokenizer marks the space before a word (byte-level ones: Llama 3, GPT-2, Qwen), every word
of a document but the first is encoded with its space, so that the pieces of all words are those of the whole text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lst.data.vocab import BOS, EOS
from lst.errors import DataError

BOS_NAMES = ("<s>", "<|begin_of_text|>", "<bos>", "<|bos|>", "<|startoftext|>", "<｜begin▁of▁sentence｜>", "[BOS]")
EOS_NAMES = ("</s>", "<|end_of_text|>", "<eos>", "<|eos|>", "<|endoftext|>", "<｜end▁of▁sentence｜>", "[EOS]")
NEW_NAMES = ("<|document_begins|>", "<|document_ends|>")
SPACE_MARK = "\u2581"
# Words that differ alone and in a text, if any do, and a text that must come back as it is.
PROBE = ("The", "don't", "stop,", "42", "Übermut", "(or)", "東京", "a-b", "x.")


class JsonTokenizer:
    """See `lst.data.text.TextTokenizer`, which this serves. `content` is the file with BOS 1 and EOS 2."""

    def __init__(self, name: str, content: bytes) -> None:
        """Raises DataError on what is no such tokenizer, or one that words cannot be encoded with one by one."""
        try:
            import tokenizers
        except ImportError as error:
            raise DataError(f"text tokenizer '{name}' needs the package tokenizers; install lst-scaling[hf].") from error
        try:
            given = json.loads(content)
            document = renumbered(given)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(f"text tokenizer '{name}' is no tokenizer.json of byte pair encoding ({error}).") from error
        self.content = content if document == given else (json.dumps(document, ensure_ascii=False) + "\n").encode()
        try:
            self._model = tokenizers.Tokenizer.from_str(self.content.decode())
        except Exception as error:  # the package raises Exception itself
            raise DataError(f"text tokenizer '{name}' cannot be read by tokenizers ({error}); give another file.") from error
        self._model.no_truncation()
        self._model.no_padding()
        self._model.encode_special_tokens = True
        self._document = document
        self._pieces = {number: piece for piece, number in self._model.get_vocab(with_added_tokens=True).items()}
        self.size = len(self._pieces)
        if sorted(self._pieces) != list(range(self.size)):
            raise DataError(f"text tokenizer '{name}' numbers its pieces with gaps or twice; give another file.")
        self._spaced = self._marks_spaces(name)

    def encode(self, text: str) -> list[int]:
        return list(self._model.encode(text, add_special_tokens=False).ids)

    def encode_words(self, words: Sequence[str]) -> list[list[int]]:
        spaced = [f" {word}" if self._spaced and place else word for place, word in enumerate(words)]
        return [list(found.ids) for found in self._model.encode_batch(spaced, add_special_tokens=False)]

    def decode(self, pieces: Sequence[int]) -> str:
        return str(self._model.decode(list(pieces), skip_special_tokens=True))

    def characters(self) -> NDArray[np.int64]:
        """(size,) characters of text that each piece stands for, as `TextTokenizer.characters` counts them."""
        added = {entry["id"]: entry for entry in self._document["added_tokens"]}
        count = _count_byte_level if "ByteLevel" in _kinds(self._document["decoder"]) else _count_marked
        counts = np.zeros(self.size, np.int64)
        for number, piece in self._pieces.items():
            if number not in added:
                counts[number] = count(piece)
            elif not added[number]["special"]:
                counts[number] = len(piece.replace(" ", ""))
        return counts

    def _marks_spaces(self, name: str) -> bool:
        """Whether words but the first are encoded with the space before them. Raises DataError if neither way is right."""
        text = " ".join(PROBE)
        whole = self.encode(text)
        if self.decode(whole) != text:
            raise DataError(f"text tokenizer '{name}' does not give a text back as it was; give one that keeps case and spaces.")
        for self._spaced in (False, True):
            if [piece for pieces in self.encode_words(PROBE) for piece in pieces] == whole:
                return self._spaced
        raise DataError(f"text tokenizer '{name}' joins words across spaces, so they cannot be encoded one by one; give another.")


def renumbered(document: Any) -> dict[str, Any]:
    """A copy of a decoded tokenizer.json in which BOS is 1 and EOS is 2, every id has a piece, and a text begins with BOS.

    Raises ValueError, KeyError or TypeError on what is none.
    """
    model, added = document["model"], [dict(entry) for entry in document["added_tokens"]]
    if model.get("type", "BPE") != "BPE":
        raise ValueError(f"its model is {model['type']}; a SentencePiece .model may be given instead")
    ids = {**model["vocab"], **{entry["content"]: entry["id"] for entry in added}}
    special = {entry["content"] for entry in added if entry["special"]}
    names = []
    for known, new in zip((BOS_NAMES, EOS_NAMES), NEW_NAMES, strict=True):
        name = next((n for n in known if n in special), new)
        if name not in ids:
            ids[name] = max(ids.values()) + 1
            plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
            added.append({"id": ids[name], "content": name, **plain})
        names.append(name)
    places = {number: piece for piece, number in ids.items()}
    places |= {number: f"<|unused_{number}|>" for number in range(max(places)) if number not in places}
    for wanted, name in zip((BOS, EOS), names, strict=True):
        now = next(number for number, piece in places.items() if piece == name)
        places[now], places[wanted] = places[wanted], places[now]
    numbers = {piece: number for number, piece in sorted(places.items())}
    # Ids of added tokens that the vocabulary does not hold would be given anew when the file is read: it holds all of them.
    return {
        **document,
        "model": {**model, "vocab": numbers if numbers != model["vocab"] else model["vocab"]},
        "added_tokens": sorted(({**e, "id": numbers[e["content"]]} for e in added), key=lambda e: int(e["id"])),
        "post_processor": _begins_with(names[0]),
    }


def with_added(content: bytes, names: Sequence[str]) -> bytes:
    """A `content` of JsonTokenizer with further pieces, numbered from its size on, that text is searched for."""
    document = json.loads(content)
    vocabulary = document["model"]["vocab"]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    first = len(vocabulary)
    document["added_tokens"] += [{"id": first + place, "content": name, **plain} for place, name in enumerate(names)]
    return (json.dumps(document, ensure_ascii=False) + "\n").encode()


def special_names(content: bytes) -> tuple[str, str]:
    """The names of BOS and EOS in a `content` of JsonTokenizer."""
    names = {entry["id"]: str(entry["content"]) for entry in json.loads(content)["added_tokens"]}
    return names[BOS], names[EOS]


def _begins_with(bos: str) -> dict[str, Any]:
    begin = {"SpecialToken": {"id": bos, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [begin, first],
        "pair": [begin, first, second],
        "special_tokens": {bos: {"id": bos, "ids": [BOS], "tokens": [bos]}},
    }


def _kinds(part: Any) -> set[str]:
    """The types of a decoder and of those inside it."""
    if not isinstance(part, dict):
        return set()
    return {str(part.get("type"))}.union(*map(_kinds, part.get("decoders", ())))


def _byte_letters() -> dict[str, int]:
    """Letter -> byte of byte-level vocabularies: printable bytes stand for themselves, the others for U+0100 and on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + place): b for place, b in enumerate(others)}


_LETTERS = _byte_letters()


def _begins_character(byte: int) -> bool:
    """Whether a character other than a space begins at a byte; 10xxxxxx goes on a character."""
    return byte != 0x20 and not 0x80 <= byte < 0xC0


def _count_byte_level(piece: str) -> int:
    return sum(_begins_character(_LETTERS[letter]) for letter in piece if letter in _LETTERS)


def _count_marked(piece: str) -> int:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return int(_begins_character(int(piece[3:5], 16)))
    return len(piece.replace(SPACE_MARK, ""))
