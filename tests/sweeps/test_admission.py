"""Each reason of admission by itself: what refuses a row, what only warns, no row is dropped; and two shapes of study."""

from __future__ import annotations

from typing import Any

import pytest

from lst.errors import ConfigError
from sweeps.admit import AdmissionConfig
from sweeps.explain import explain_text
from sweeps.plan import Plan, plan

STUDY: dict[str, Any] = {
    "name": "one", "data": "paper", "sizes": ["420M"], "budgets": [1e20], "seq_len_units": 4096, "dtype": "bfloat16",
    "recipe": {"name": "step_law"}, "price": {"device": "h100"},
}  # fmt: skip
REFUSED = [
    ({"admission": {"min_steps": 10**6}}, "steps are fewer than admission.min_steps=1000000"),
    ({"recipe": {"name": "step_law", "warmup_steps": 10**4}}, "warm-up takes 10000 of "),
    ({"admission": {"min_batch_units": 10**9}}, "units a batch are under admission.min_batch_units=1000000000"),
    ({"admission": {"max_peak_gib": 1.0}}, "GiB, over admission.max_peak_gib=1"),
    ({"admission": {"max_speech_epochs": 0.5}}, "speech epochs are over admission.max_speech_epochs=0.5"),
    ({"sizes": ["7B"], "budgets": [1e21]}, "it needs about "),
    ({"budgets": [2e14], "admission": {"min_steps": 1, "max_warmup_share": 1.0}}, "its FLOPs are off by"),
]
WARNED = [
    ({"admission": {"warn_speech_epochs": 0.5}}, "speech epochs, over 0.5"),
    ({"budgets": [1e23], "admission": {"max_speech_epochs": 1e6}}, "warning: recipe 'step_law' is outside its range ("),
    (
        {"sizes": ["100M", "200M", "420M", "630M"], "budgets": [1e21]},
        "warning: its budget has its expected optimum at 2.89e+09 parameters (20 tokens each), outside its sizes",
    ),
]


def planned(changes: dict[str, Any]) -> Plan:
    return plan({**STUDY, **changes})


def test_a_study_without_a_fault_is_admitted_without_a_word() -> None:
    assert {(row.status, row.reason) for row in planned({}).rows} == {("admitted", "")}


@pytest.mark.parametrize(("changes", "reason"), REFUSED)
def test_a_row_is_refused_with_its_reason_and_stays_in_the_plan(changes: dict[str, Any], reason: str) -> None:
    found = planned(changes)
    assert len(found.rows) == 2
    refused = [row for row in found.rows if not row.admitted]
    assert refused
    assert all(reason in row.reason for row in refused)
    assert not {row.run_id for row in refused} & set(found.run_configs)


@pytest.mark.parametrize(("changes", "reason"), WARNED)
def test_a_row_is_admitted_with_a_warning(changes: dict[str, Any], reason: str) -> None:
    found = planned(changes)
    assert {row.status for row in found.rows} == {"admitted"}
    assert all(reason in row.reason for row in found.rows)
    assert found.warnings


@pytest.mark.parametrize("key", ["min_steps", "max_speech_epochs", "warn_speech_epochs", "max_match_gap", "warn_match_gap"])
def test_a_negative_threshold_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=f"admission.{key}=-1 must be a finite number"):
        AdmissionConfig(**{key: -1}).validate()


def test_an_over_training_ladder_reads_its_multiples_of_the_parameters() -> None:
    found = planned({"budgets": [], "tokens_per_param": [20.0, 40.0, 80.0], "admission": {"max_speech_epochs": 1e6}})
    ladder = [row.tokens_per_param for row in found.rows if row.arm == "baseline"]
    assert ladder == pytest.approx([20, 40, 80], rel=1e-4)
    assert len({row.match_group for row in found.rows}) == 3


def test_a_triplet_of_learning_rates_scales_every_arm_alike() -> None:
    lrs = [{row.lr for row in planned({"recipe": {"name": "step_law", "lr_scale": scale}}).rows} for scale in (0.5, 1.0, 2.0)]
    assert [len(values) for values in lrs] == [1, 1, 1]
    low, middle, high = (values.pop() for values in lrs)
    assert [low / middle, high / middle] == pytest.approx([0.5, 2.0], rel=1e-5)


def test_the_reason_of_each_row_fits_into_100_columns() -> None:
    found = planned({"arms": ["baseline", "lst_curriculum"], "seeds": [0, 1]})
    lines = explain_text(found).splitlines()
    assert max(map(len, lines)) <= 100
    starts = [line.split()[0] for line in lines if not line.startswith(" ")]
    assert starts == ["run", *(row.run_id for row in found.rows)]
    together = " ".join(" ".join(lines).split())
    assert together.count("matched to baseline in FLOPs; seed 1 of 2") == 1
