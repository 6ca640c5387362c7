"""The toy data set opened once, and a small study on it, for the planner's tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lst.data.shards import open_dataset
from sweeps.measure import Measurements
from sweeps.plan import Plan, plan_with
from sweeps.study import StudyConfig


@pytest.fixture(scope="session")
def measure(toy_dataset: Path) -> Measurements:
    """Counts of the toy corpus, shared: what a plan gets does not depend on what was counted before."""
    return Measurements(open_dataset(toy_dataset))


@pytest.fixture(scope="session")
def small_study(toy_dataset: Path) -> dict[str, Any]:
    """Two budgets, two sizes, two arms and a third at one size: ten rows of a few hundred sequences."""
    return {
        "name": "small",
        "data": str(toy_dataset),
        "arms": ["baseline", "lst_static", "lst_curriculum"],
        "sizes": ["tiny", "w48"],
        "arm_sizes": {"lst_curriculum": ["tiny"]},
        "budgets": [2e9, 4e9],
        "seq_len_units": 16,
        "evaluation": {"heldout_documents": 8, "context_tokens": 64},
        "admission": {"max_speech_epochs": 1e6, "warn_speech_epochs": 1e6},
    }


@pytest.fixture(scope="session")
def small_plan(small_study: dict[str, Any], measure: Measurements) -> Plan:
    return plan_with(StudyConfig.from_dict(small_study), measure)
