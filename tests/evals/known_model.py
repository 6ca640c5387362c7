"""A model whose every probability is known: the next id depends on the current one alone, by a table."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from lst.data.vocab import Vocabulary
from lst.model import Batch


class BigramModel(nn.Module):
    """`log_p[current, next]`, as hidden states that are one-hot and a head that is the table. In fp64."""

    def __init__(self, vocabulary: Vocabulary, seed: int = 0) -> None:
        super().__init__()
        generator = np.random.Generator(np.random.Philox(key=seed))
        table = generator.normal(size=(vocabulary.size, vocabulary.size))
        self.log_p = table - np.log(np.exp(table).sum(1, keepdims=True))
        self.head = nn.Linear(vocabulary.size, vocabulary.size, bias=False)
        self.head.weight.data = torch.tensor(table.T, dtype=torch.float64)

    def hidden(self, batch: Batch) -> torch.Tensor:
        return nn.functional.one_hot(batch.ids_BT, self.head.in_features).to(self.head.weight.dtype)

    def forward(self, batch: Batch, read: Callable[..., Any]) -> Any:
        return read(self.hidden(batch), self.head)

    def nats(self, ids: list[int]) -> float:
        """Of each id after the first, summed."""
        return -float(sum(self.log_p[a, b] for a, b in itertools.pairwise(ids)))
