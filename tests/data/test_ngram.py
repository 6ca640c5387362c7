"""N-gram references against probabilities worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lst.data.ngram import NgramModel


def nats(*probabilities):
    return -np.log(probabilities).mean()


def test_unigram_with_one_added_to_each_count():
    model = NgramModel([np.array([0, 0, 1])], vocabulary=3)
    assert model.nats([np.array([0, 1, 2])], 1) == pytest.approx(nats(3 / 6, 2 / 6, 1 / 6))


def test_witten_bell_trigram_by_hand():
    """Training on 0 1 0 1 2. After 0: {1: 2}; after 1: {0: 1, 2: 1}; after 0 1: {0: 1, 2: 1}; after 1 0: {1: 1}."""
    model = NgramModel([np.array([0, 1, 0, 1, 2])], vocabulary=3)
    p1 = {0: 3 / 8, 1: 3 / 8, 2: 2 / 8}
    p2_1_after_0 = (2 + 1 * p1[1]) / (2 + 1)
    p2_2_after_1 = (1 + 2 * p1[2]) / (2 + 2)
    p3_2_after_01 = (1 + 2 * p2_2_after_1) / (2 + 2)
    assert model.nats([np.array([0, 1, 2])], 3) == pytest.approx(nats(p1[0], p2_1_after_0, p3_2_after_01))


def test_an_unseen_context_falls_back_to_the_lower_order():
    model = NgramModel([np.array([0, 1, 0, 1])], vocabulary=4)
    p1 = {3: 1 / 8, 0: 3 / 8}
    assert model.nats([np.array([3, 0])], 3) == pytest.approx(nats(p1[3], p1[0]))


token = st.integers(0, 3)


@given(st.lists(st.lists(token, min_size=1, max_size=8), min_size=1, max_size=5), st.lists(token, max_size=3))
def test_probabilities_of_all_continuations_sum_to_one(documents, history):
    model = NgramModel([np.array(d) for d in documents], vocabulary=4)
    total = sum(float(model._probabilities(np.array([*history, x]), 3)[-1]) for x in range(4))
    assert total == pytest.approx(1.0)
