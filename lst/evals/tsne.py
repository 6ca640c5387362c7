"""Places of vectors in a picture: t-SNE (van der Maaten and Hinton 2008) by scikit-learn. It shows neighbourhoods: neither the
distance between clusters nor their size means anything, so no figure is computed from it.
"""

from __future__ import annotations

import importlib.util

import numpy as np
from numpy.typing import NDArray

from lst.errors import DataError

Array = NDArray[np.float64]


def require_scikit_learn() -> None:
    """Raises DataError naming the extra if scikit-learn is not installed."""
    if importlib.util.find_spec("sklearn") is None:
        raise DataError("the picture of words needs the package 'scikit-learn'; run: pip install lst-scaling[embeddings]")


def lowered(perplexity: float, points: int) -> float:
    """The perplexity that `tsne` takes: at most a fourth of the points, as neighbours of one cannot be more than there are."""
    return max(1.0, min(perplexity, points / 4))


def tsne(points_NG: Array, *, perplexity: float = 15.0) -> Array:
    """(N, 2) places, the same at each call: exact, started at the first two principal components, by the perplexity `lowered`.

    Raises DataError without scikit-learn.
    """
    require_scikit_learn()
    from sklearn.manifold import TSNE

    fitting = lowered(perplexity, len(points_NG))
    return np.asarray(TSNE(perplexity=fitting, init="pca", method="exact", random_state=0).fit_transform(points_NG), np.float64)
