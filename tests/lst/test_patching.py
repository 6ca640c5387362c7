"""Patch boundaries and closing: the paper's worked examples, the drawing of docs/patching.md, and properties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lst.config import Patching
from lst.data.interleave import Segment
from lst.data.pack import encode_document
from lst.data.vocab import Vocabulary
from lst.errors import DataError
from lst.patching import aligned_patches, closing_positions, patch_span, static_patches, visible_units

VOCABULARY = Vocabulary(text=50, speech=20)


def test_static_patches_of_three_as_in_the_papers_example():
    patches = static_patches(8, 3)
    assert patches.lengths.tolist() == [3, 3, 2]
    assert patches.complete.tolist() == [True, True, False]


def test_aligned_patches_as_in_the_papers_example():
    patches = aligned_patches(8, np.array([[2, 4], [6, 7]]))
    assert patches.lengths.tolist() == [2, 3, 1, 2]
    assert patches.complete.tolist() == [True, True, True, True]


def test_a_silence_that_ends_an_aligned_span_is_cut_short():
    patches = aligned_patches(9, np.array([[2, 4], [6, 7]]))
    assert patches.lengths.tolist() == [2, 3, 1, 2, 1]
    assert patches.complete.tolist() == [True, True, True, True, False]


def test_the_drawing_of_docs_patching():
    """<s> a b c | d e f | g h | <t> w without BOS: units, closing positions and visible counts as drawn."""
    speech = Segment("speech", np.arange(8))
    text = Segment("text", np.array([5]))
    document = encode_document([speech, text], VOCABULARY, Patching.STATIC, 3, ends=False)
    lengths, complete = document.unit_lengths[1:], document.complete[1:]  # the drawing leaves BOS out
    assert np.repeat(np.arange(len(lengths)), lengths).tolist() == [0, 1, 1, 1, 2, 2, 2, 3, 3, 4, 5]
    closes = closing_positions(lengths, complete)
    assert closes.tolist() == [0, 3, 6, 9, 9, 10]
    assert visible_units(closes, 11).tolist() == [1, 1, 1, 2, 2, 2, 3, 3, 3, 5, 6]


def test_a_full_last_patch_closes_at_its_own_last_token():
    lengths, complete = static_patches(8, 4)
    assert closing_positions(lengths, complete).tolist() == [3, 7]


def test_a_patch_cut_by_the_end_never_closes():
    lengths, complete = static_patches(6, 4)
    assert closing_positions(lengths, complete).tolist() == [3, 6]
    assert visible_units(closing_positions(lengths, complete), 6).tolist() == [0, 0, 0, 1, 1, 1]


def test_static_patching_restarts_at_each_speech_span():
    spans = [Segment("speech", np.zeros(5, int)), Segment("text", np.array([1])), Segment("speech", np.zeros(6, int))]
    document = encode_document(spans, VOCABULARY, Patching.STATIC, 4, ends=True)
    #                                       BOS <s> p  p  <t> w <s> p  p EOS
    assert document.unit_lengths.tolist() == [1, 1, 4, 1, 1, 1, 1, 4, 2, 1]


def test_speech_without_word_spans_is_refused_by_an_aligned_arm():
    with pytest.raises(DataError, match="needs word spans"):
        patch_span(Patching.ALIGNED, 5, patch_size=4)


def test_words_outside_their_span_are_refused():
    with pytest.raises(DataError, match="outside its span of 4"):
        aligned_patches(4, np.array([[2, 4]]))


spans = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6)), max_size=6)  # (silence before, length) of words


@given(spans, st.integers(0, 4), st.integers(1, 7), st.sampled_from([Patching.TOKEN, Patching.STATIC, Patching.ALIGNED]))
def test_patches_cover_each_speech_token_once(words, silence, patch_size, kind):
    borders, frame = [], 0
    for before, length in words:
        borders.append((frame + before, frame + before + length - 1))
        frame += before + length
    length = frame + silence
    patches = patch_span(kind, length, patch_size=patch_size, words=np.array(borders).reshape(-1, 2))
    assert patches.lengths.sum() == length
    assert (patches.lengths > 0).all()
    assert patches.complete[:-1].all()  # only a span's last patch can be cut short


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 9)), min_size=1, max_size=6), st.integers(1, 5))
def test_units_never_cross_a_modality_switch_and_closing_never_goes_back(segments, patch_size):
    document = [Segment("speech" if s else "text", np.ones(n, int)) for s, n in segments]
    encoded = encode_document(document, VOCABULARY, Patching.STATIC, patch_size, ends=True)
    modality = VOCABULARY.modality(encoded.ids)
    ends = np.cumsum(encoded.unit_lengths)
    for start, end in zip(ends - encoded.unit_lengths, ends, strict=True):
        assert len(set(modality[start:end].tolist())) == 1
    closes = closing_positions(encoded.unit_lengths, encoded.complete)
    assert (np.diff(closes) >= 0).all()
    assert (closes >= ends - 1).all()
    assert (visible_units(closes, len(encoded.ids)) >= 1).all()  # BOS is a unit, so the set is never empty
