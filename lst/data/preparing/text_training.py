"""Trains the text tokenizer of a data set on a bounded sample of its training text.

The sample is the documents whose ids have the lowest hashes, as many as fit into SAMPLE_BYTES, in the input's order: the
whole text of a small corpus, and of a large one a draw that depends neither on the order nor on the parts of its preparation.
"""

from __future__ import annotations

import heapq
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from lst.data.preparing.splits import rank
from lst.data.vocab import BOS, EOS
from lst.errors import DataError

SAMPLE_BYTES = 1 << 25  # 32 MiB of memory, about five million words of long documents
DOCUMENT_BYTES = 200  # what a document takes beside its text
BYTES = 256  # pieces that every tokenizer has, so that any text can be written
SENTENCE_BYTES = 4_000  # SentencePiece skips longer ones


@dataclass
class TextSample:
    """The texts of the lowest ranks, at most `limit` bytes of memory together, whatever order they come in."""

    limit: int = SAMPLE_BYTES
    _heap: list[tuple[int, int, str, str]] = field(default_factory=list)  # (-rank, -number, name, text): the highest rank first
    _size: int = 0
    _cut: int = 1 << 64  # ranks from here on are out
    _seen: int = 0

    def add(self, name: str, text: str) -> None:
        place = rank(name)
        self._seen += 1
        if place >= self._cut:
            return
        heapq.heappush(self._heap, (-place, -self._seen, name, text))
        self._size += len(text.encode()) + DOCUMENT_BYTES
        while self._size > self.limit and len(self._heap) > 1:
            highest, _, _, text = heapq.heappop(self._heap)
            self._size -= len(text.encode()) + DOCUMENT_BYTES
            self._cut = min(self._cut, -highest)

    @property
    def whole(self) -> bool:
        """Whether every text that came is in the sample."""
        return len(self._heap) == self._seen

    def items(self) -> list[tuple[str, str]]:
        """(name, text) in the order in which they came."""
        return [(name, text) for _, _, name, text in sorted(self._heap, key=lambda item: -item[1])]


def sentences(text: str) -> Iterator[str]:
    """`text` cut at white space into pieces that SentencePiece does not skip."""
    if len(text.encode()) <= SENTENCE_BYTES:
        yield text
        return
    kept: list[str] = []
    size = 0
    for word in text.split():
        size += len(word.encode()) + 1
        if size > SENTENCE_BYTES and kept:
            yield " ".join(kept)
            kept, size = [], len(word.encode()) + 1
        kept.append(word)
    yield " ".join(kept)


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> bytes:
    """A SentencePiece BPE model of `vocab_size` pieces (unk 0, bos 1, eos 2), serialised. Raises DataError."""
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            vocab_size=vocab_size,
            model_type="bpe",
            byte_fallback=True,
            num_threads=1,
            unk_id=0,
            bos_id=BOS,
            eos_id=EOS,
            pad_id=-1,
            minloglevel=2,
        )
    except RuntimeError as error:
        # SentencePiece says which size would fit: "Please set it to a value <= 404."
        fitting = re.search(r"<= *(\d+)", str(error))
        if fitting:
            found = f"the training text is too small for a tokenizer of vocab_size={vocab_size}"
            remedy = f"give vocab_size={fitting[1]} or less"
        else:
            found = f"vocab_size={vocab_size} is too small for the {BYTES} bytes and the letters of the training text"
            remedy = f"give more, such as {2 * BYTES}"
        raise DataError(f"{found}; {remedy}, or tokenizer=FILE.") from error
    return model.getvalue()
