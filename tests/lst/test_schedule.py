"""Schedules by their closed forms; what a branch may be."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lst.config import OptimConfig, arm_config
from lst.errors import ConfigError
from lst.schedule import fork_step, learning_rate

PAPER = OptimConfig(lr=4e-4, warmup_steps=2_000, final_lr_ratio=0.01)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 4e-4 / 2_000),
        (999, 2e-4),
        (1_999, 4e-4),
        (100_999, 4e-4 * (0.01 + 0.99 / 2)),  # half-way between the end of the warm-up and the last step
        (51_499, 4e-4 * (0.01 + 0.99 * (1 + math.cos(math.pi / 4)) / 2)),
        (199_999, 4e-6),
    ],
)
def test_schedule_has_the_papers_values(step: int, expected: float) -> None:
    assert learning_rate(step, steps=200_000, optim=PAPER) == pytest.approx(expected, rel=1e-12)


def test_schedule_without_warmup_starts_below_the_peak_and_ends_at_the_ratio() -> None:
    optim = OptimConfig(lr=1.0, warmup_steps=0, final_lr_ratio=0.1)
    rates = [learning_rate(s, steps=50, optim=optim) for s in range(50)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0.1)


def test_run_shorter_than_its_warmup_only_warms_up() -> None:
    optim = OptimConfig(lr=1.0, warmup_steps=10)
    assert [learning_rate(s, steps=4, optim=optim) for s in range(4)] == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_wsd_is_stable_after_the_warmup_and_then_falls_as_its_shape_says() -> None:
    optim = OptimConfig(lr=1.0, warmup_steps=4, schedule="wsd", decay_share=0.25, final_lr_ratio=0.2)
    rates = [learning_rate(s, steps=16, optim=optim) for s in range(16)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates[4:12] == [1.0] * 8
    assert rates[12:] == pytest.approx([0.2 + 0.8 * (1 - math.sqrt(k / 4)) for k in (1, 2, 3, 4)])
    linear = OptimConfig(lr=1.0, warmup_steps=4, schedule="wsd", decay_share=0.25, final_lr_ratio=0.2, decay_shape="linear")
    assert [learning_rate(s, steps=16, optim=linear) for s in range(12, 16)] == pytest.approx([0.8, 0.6, 0.4, 0.2])


def test_wsd_runs_of_any_length_share_their_path_up_to_the_shorter_ones_fork() -> None:
    optim = OptimConfig(lr=1.0, warmup_steps=3, schedule="wsd", decay_share=0.2)
    assert [fork_step(s, optim) for s in (1, 4, 10, 12, 13)] == [0, 3, 8, 10, 10]
    short, long = ([learning_rate(s, steps=n, optim=optim) for s in range(n)] for n in (20, 50))
    assert short[:16] == long[:16]
    assert short[16] < long[16]


@pytest.mark.parametrize(
    ("arm", "overrides", "message"),
    [
        ("lst_static", {"train": {"steps": 20, "branch_steps": [10]}}, "train.branch_steps=[10] needs optim.schedule='wsd'"),
        ("lst_curriculum", {"train": {"steps": 20, "branch_steps": [10]}, "optim": {"schedule": "wsd"}}, "depends on the run's"),
        (
            "baseline",
            {"train": {"steps": 20, "branch_steps": [10, 20]}, "optim": {"schedule": "wsd"}},
            "lie below train.steps=20",
        ),
        ("baseline", {"train": {"steps": 20, "branch_steps": [10, 5]}, "optim": {"schedule": "wsd"}}, "must rise"),
        ("baseline", {"train": {"steps": 20, "branch_steps": [10.5]}, "optim": {"schedule": "wsd"}}, "branch_steps[0]=10.5"),
        ("baseline", {"train": {"steps": 20, "branch_steps": 10}, "optim": {"schedule": "wsd"}}, "must be a list"),
        ("baseline", {"optim": {"schedule": "wsd", "warmup_steps": 17}, "train": {"steps": 20}}, "begins after step 16, inside"),
        ("baseline", {"optim": {"schedule": "wds"}}, "did you mean 'wsd'?"),
        ("baseline", {"optim": {"decay_shape": "cubic"}}, "optim.decay_shape='cubic'"),
        ("baseline", {"optim": {"decay_share": 0.0}}, "optim.decay_share=0.0 must lie in (0, 1]"),
        ("baseline", {"train": {"bad_step": "ignore"}}, "train.bad_step='ignore'"),
        ("baseline", {"train": {"spike_factor": 0.9}}, "train.spike_factor=0.9 must be above 1"),
        ("baseline", {"train": {"max_skipped_steps": -1}}, "train.max_skipped_steps=-1 is negative"),
        ("baseline", {"train": {"spike_memory_steps": 0}}, "train.spike_memory_steps=0 must be positive"),
        ("baseline", {"execution": {"peak_flops": -1.0}}, "execution.peak_flops=-1.0 is negative"),
    ],
)
def test_nonsense_is_refused_in_one_sentence(arm: str, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        arm_config(arm, **{"optim": {"warmup_steps": 2}} | overrides)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
