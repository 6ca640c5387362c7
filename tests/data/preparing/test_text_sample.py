"""The sample that a tokenizer is trained on: bounded, and the same in whatever order the texts come."""

from hypothesis import given
from hypothesis import strategies as st

from lst.data.preparing.text_training import DOCUMENT_BYTES, SENTENCE_BYTES, TextSample, sentences


@given(
    sizes=st.lists(st.integers(0, 400), min_size=1, max_size=30),
    limit=st.integers(700, 4_000),
    order=st.randoms(use_true_random=False),
)
def test_a_sample_is_bounded_and_does_not_depend_on_the_order(sizes, limit, order):
    texts = [(f"d{i}", "x" * size) for i, size in enumerate(sizes)]
    found = []
    for _ in range(2):
        sample = TextSample(limit)
        for name, text in texts:
            sample.add(name, text)
        found.append(sorted(sample.items()))
        assert sum(len(text) + DOCUMENT_BYTES for _, text in sample.items()) <= limit
        assert sample.whole == (sum(sizes) + DOCUMENT_BYTES * len(sizes) <= limit)
        assert [t for t in texts if t in sample.items()] == sample.items()  # in the order in which they came
        order.shuffle(texts)
    assert found[0] == found[1]


@given(words=st.lists(st.text("ab\u00e9", min_size=1, max_size=30), min_size=1, max_size=400))
def test_long_texts_are_cut_between_words_and_nothing_is_lost(words):
    pieces = list(sentences(" ".join(words)))
    assert [word for piece in pieces for word in piece.split()] == words
    assert all(len(piece.encode()) <= SENTENCE_BYTES for piece in pieces)
