"""The held-out documents of an evaluation: chosen, interleaved and cut by a fixed seed, the same tokens for every arm.

Numpy only, so that the planner's n-gram references score exactly what the runs are evaluated on. A held-out document is
cut so that BOS, its segments and their markers are at most `context_tokens` ids. Not here: patching and scoring
(lst.evals), and the story-completion items (lst.evals.stories).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lst.config import DataConfig, EvalConfig
from lst.data.boundary_noise import NoiseRange
from lst.data.columns import Place, draw_places
from lst.data.interleave import Document, Segment, SpokenDocument, SpokenDocuments
from lst.data.shards import Dataset
from lst.errors import DataError


def heldout_documents(
    dataset: Dataset,
    evaluation: EvalConfig,
    data: DataConfig,
    *,
    aligned_unit: str = "word",
    boundary_noise_ms: NoiseRange = (0, 0),
) -> dict[str, list[Document]]:
    """The documents of the sets `speech` (one speech segment each), `text` (one text segment) and `interleaved`.

    Their tokens depend on the data set, `evaluation` and the interleaving's span lengths in `data` alone, never on an arm;
    `aligned_unit` says whether their spans are those of words or of text pieces (for an aligned arm), and `boundary_noise_ms`
    by how much these are off. Sets have
    `heldout_documents` documents, or all there are. Raises DataError where the split 'heldout' has none.
    """
    spoken = SpokenDocuments(dataset, aligned_unit, boundary_noise_ms)
    cut = evaluation.context_tokens
    interleaved = []
    for row, place in _chosen(dataset, "speech", evaluation, 2):
        generator = np.random.Generator(np.random.Philox(key=[evaluation.seed, row]))
        interleaved.append(cut_document(spoken.interleaved(SpokenDocument(place), data, generator), cut))
    whole = [spoken.speech(SpokenDocument(place)) for _, place in _chosen(dataset, "speech", evaluation, 0)]
    texts = [Segment("text", place.chunk["text_tokens"].row(place.row)) for _, place in _chosen(dataset, "text", evaluation, 1)]
    return {
        "speech": [cut_document([segment], cut) for segment in whole if len(segment.tokens)],
        "text": [cut_document([segment], cut) for segment in texts if len(segment.tokens)],
        "interleaved": [document for document in interleaved if document],
    }


def cut_document(document: Document, context_tokens: int) -> Document:
    """The document's beginning, of at most `context_tokens` ids with BOS and a marker before each segment.

        context 7:   BOS <t> 12 7 <s> 3 3 | 90 41 <t> 5

    Words that the cut goes through end at the cut. A marker never stands last: a segment keeps a token or goes.
    """
    room = context_tokens - 1  # BOS
    kept = []
    for segment in document:
        count = min(len(segment.tokens), room - 1)
        if count < 1:
            break
        words = segment.words
        if words is not None:
            words = np.minimum(words[words[:, 0] < count], count - 1)
        kept.append(Segment(segment.modality, segment.tokens[:count], words))
        room -= count + 1
    return kept


def _chosen(dataset: Dataset, name: str, evaluation: EvalConfig, which: int) -> Iterator[tuple[int, Place]]:
    """(row of the table, place) of `heldout_documents` documents, drawn without replacement, in file order."""
    documents, rows = dataset.documents(name, "heldout"), dataset.rows(name, "heldout")
    if not documents.tokens:
        raise DataError(f"table '{name}' of '{dataset.path}' has no rows in its split 'heldout'; prepare it with some.")
    generator = np.random.Generator(np.random.Philox(key=[evaluation.seed, which]))
    chosen = draw_places(generator, documents.rows, evaluation.heldout_documents)
    yield from zip((int(rows[place]) for place in chosen), documents.documents(chosen), strict=True)
