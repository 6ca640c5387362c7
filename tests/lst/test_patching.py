"""Patch boundaries and closing: the paper's worked examples, the drawing of docs/patching.md, and properties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lst.config import Patching
from lst.data.interleave import Segment
from lst.data.pack import PackedRow, encode_document
from lst.data.vocab import Vocabulary
from lst.errors import DataError
from lst.patching import aligned_patches, closing_positions, patch_span, static_patches, visible_units

VOCABULARY = Vocabulary(text=50, speech=20)
SILENCE = ["separate", "previous", "next"]
KINDS = [(Patching.TOKEN, "separate"), (Patching.STATIC, "separate"), *((Patching.ALIGNED, s) for s in SILENCE)]


def test_static_patches_of_three_as_in_the_papers_example():
    patches = static_patches(8, 3)
    assert patches.lengths.tolist() == [3, 3, 2]
    assert patches.complete.tolist() == [True, True, False]


def test_aligned_patches_as_in_the_papers_example():
    patches = aligned_patches(8, np.array([[2, 4], [6, 7]]))
    assert patches.lengths.tolist() == [2, 3, 1, 2]
    assert patches.complete.tolist() == [True, True, True, True]


@pytest.mark.parametrize(
    ("length", "silence", "lengths", "closes"),
    [
        (9, "separate", [2, 3, 1, 2, 1], [1, 4, 5, 7, 9]),
        (9, "previous", [2, 4, 3], [1, 5, 9]),
        (9, "next", [5, 3, 1], [4, 7, 9]),
        (8, "separate", [2, 3, 1, 2], [1, 4, 5, 7]),
        (8, "previous", [2, 4, 2], [1, 5, 8]),
        (8, "next", [5, 3], [4, 7]),
    ],
)
def test_the_drawings_of_aligned_patches(length, silence, lengths, closes):
    patches = aligned_patches(length, np.array([[2, 4], [6, 7]]), silence)
    assert patches.lengths.tolist() == lengths
    assert closing_positions(*patches).tolist() == closes


@pytest.mark.parametrize("silence", SILENCE)
def test_a_span_without_words_is_one_silence_that_is_cut_short(silence):
    patches = aligned_patches(5, np.zeros((0, 2)), silence)
    assert (patches.lengths.tolist(), patches.complete.tolist()) == ([5], [False])
    assert len(aligned_patches(0, np.zeros((0, 2)), silence).lengths) == 0


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


@pytest.mark.parametrize("words", [[[0, 2], [2, 3]], [[3, 4], [0, 1]], [[2, 1]], [[0, 0], [3, 2]]])
def test_words_that_overlap_or_run_backwards_are_refused_in_one_sentence(words):
    with pytest.raises(DataError, match=r"word \d at frames .* overlaps the word before it, or ends before it starts; give") as e:
        aligned_patches(5, np.array(words))
    assert "\n" not in str(e.value)


spans = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6)), max_size=6)  # (silence before, length) of words


def laid_out(words, silence):
    """(first, last) frames of words that follow one another with silences, and the span's length."""
    borders, frame = [], 0
    for before, length in words:
        borders.append((frame + before, frame + before + length - 1))
        frame += before + length
    return borders, frame + silence


@given(spans, st.integers(0, 4), st.integers(1, 7), st.sampled_from(KINDS))
def test_patches_cover_each_speech_token_once(words, silence, patch_size, kind):
    borders, length = laid_out(words, silence)
    patches = patch_span(kind[0], length, patch_size=patch_size, words=np.array(borders).reshape(-1, 2), silence=kind[1])
    assert patches.lengths.sum() == length
    assert (patches.lengths > 0).all()
    assert patches.complete[:-1].all()  # only a span's last patch can be cut short


segments = st.lists(
    st.one_of(st.integers(1, 5), st.tuples(spans, st.integers(0, 4)).filter(lambda s: laid_out(*s)[1] > 0)),
    min_size=1,
    max_size=6,
)  # a text of n pieces, or speech as (words, silence at its end)


def document_of(parts):
    document = []
    for part in parts:
        if isinstance(part, int):
            document.append(Segment("text", np.ones(part, int)))
        else:
            borders, length = laid_out(*part)
            document.append(Segment("speech", np.ones(length, int), np.array(borders, np.int64).reshape(-1, 2)))
    return document


def owner(frame, kind, patch_size, silence, word_of):
    """What a frame is grouped with: a number, a word, or a silence."""
    if kind is Patching.TOKEN:
        return frame
    if kind is Patching.STATIC:
        return frame // patch_size
    if frame in word_of or silence == "separate":
        return word_of.get(frame, "silence")
    before = [w for f, w in word_of.items() if f < frame]
    after = [w for f, w in word_of.items() if f > frame]
    if silence == "previous":
        return max(before) if before else "silence"
    return min(after) if after else "silence"


def oracle(document, kind, patch_size, silence, ends):
    """(start, end, closes) of each unit, straight from the definitions, token by token: a group begins at a token if a rule says
    so, and closes at its end unless the end is known only by what comes next."""
    position, units = 0, [(0, 0, 0)]  # BOS

    def single():
        nonlocal position
        position += 1
        units.append((position, position, position))

    for segment in document:
        single()  # the marker
        if segment.modality == "text":
            for _ in segment.tokens:
                single()
            continue
        n = len(segment.tokens)
        words = segment.words.tolist() if kind is Patching.ALIGNED else []
        word_of = {f: w for w, (a, b) in enumerate(words) for f in range(a, b + 1)}
        start = 0
        for f in range(n):
            last = f == n - 1
            if not last and owner(f, kind, patch_size, silence, word_of) == owner(f + 1, kind, patch_size, silence, word_of):
                continue
            known = not last  # inside the span, the boundary is known
            if last and kind is Patching.TOKEN:
                known = True
            if last and kind is Patching.STATIC:
                known = f - start + 1 == patch_size
            if last and kind is Patching.ALIGNED:
                known = f in word_of and silence != "previous"
            units.append((position + 1 + start, position + 1 + f, position + 1 + f + (not known)))
            start = f + 1
        position += n
    if ends:
        single()
    return units


@given(segments, st.integers(1, 5), st.sampled_from(KINDS), st.booleans())
def test_units_closing_and_visible_are_those_of_the_definition(parts, patch_size, kind, ends):
    document = document_of(parts)
    encoded = encode_document(document, VOCABULARY, kind[0], patch_size, ends=ends, silence=kind[1])
    expected = oracle(document, kind[0], patch_size, kind[1], ends)
    last = np.cumsum(encoded.unit_lengths) - 1
    closes = closing_positions(encoded.unit_lengths, encoded.complete)
    found = list(zip((last - encoded.unit_lengths + 1).tolist(), last.tolist(), closes.tolist(), strict=True))
    assert found == expected
    visible = visible_units(closes, len(encoded.ids))
    assert visible.tolist() == [sum(c <= t for _, _, c in expected) for t in range(len(encoded.ids))]
    assert (visible >= 1).all()  # BOS is a unit, so the set is never empty


@given(segments, st.integers(1, 5), st.sampled_from(KINDS))
def test_units_never_cross_a_modality_switch_nor_a_document(parts, patch_size, kind):
    encoded = [
        encode_document(document_of(p), VOCABULARY, kind[0], patch_size, ends=True, silence=kind[1]) for p in (parts, parts[::-1])
    ]
    row = PackedRow.pack(encoded, VOCABULARY, interleaved=True)
    for unit in range(row.units):
        inside = row.unit == unit
        assert len(set(row.modality[inside].tolist())) == len(set(row.doc[inside].tolist())) == 1
    assert np.bincount(row.unit).sum() == row.tokens
    assert np.array_equal(
        np.flatnonzero(np.diff(row.unit)) + 1, np.cumsum(np.bincount(row.unit))[:-1]
    )  # each token once, in order


@given(segments, st.integers(1, 5))
def test_static_patching_starts_anew_at_each_speech_span(parts, patch_size):
    encoded = encode_document(document_of(parts), VOCABULARY, Patching.STATIC, patch_size, ends=False)
    start = 1
    borders = set((np.cumsum(encoded.unit_lengths) - encoded.unit_lengths).tolist())
    for segment in document_of(parts):
        start += 1
        if segment.modality == "speech":
            frames = range(len(segment.tokens))
            assert {f for f in frames if start + f in borders} == {f for f in frames if f % patch_size == 0}
        start += len(segment.tokens)


@given(segments, st.data())
def test_what_follows_a_span_never_shows_before_its_end(parts, data):
    """Documents that share their tokens up to t and, aligned, the words that began there, see the same units at t (rule 2)."""
    kind, silence = data.draw(st.sampled_from(KINDS))
    words, _ = data.draw(st.tuples(spans.filter(len), st.integers(0, 4)))
    borders, length = laid_out(words, 0)
    seen = []
    for tail in (0, 1, 4):  # the same words; no silence, some, more, and then a switch or the document's end
        span = Segment("speech", np.ones(length + tail, int), np.array(borders, np.int64))
        for after in ([], [Segment("text", np.ones(2, int))]):
            encoded = encode_document([*document_of(parts), span, *after], VOCABULARY, kind, 3, ends=True, silence=silence)
            shared = 1 + sum(1 + len(s.tokens) for s in document_of(parts)) + 1 + length
            visible = visible_units(closing_positions(encoded.unit_lengths, encoded.complete), len(encoded.ids))
            seen.append(visible[:shared].tolist())
    assert all(v == seen[0] for v in seen)
