"""What the statistics predict of a training step is what the trainer measures: units and FLOPs, on the embedded corpus."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from lst.config import Arm, arm_config
from lst.data.shards import open_dataset
from lst.data.statistics import count_sequences, solve_mixture
from lst.records import read_jsonl
from tests.train.tiny_run import train, write_run

STEPS, BATCH, UNITS = 24, 16, 256


@pytest.mark.slow
@pytest.mark.parametrize("arm", [arm.value for arm in Arm])
def test_statistics_predict_units_and_flops_of_a_step_within_half_a_percent(tmp_path: Path, arm: str) -> None:
    """From half of the run's sequences, so that it is a prediction; from all of them, to the last digit."""
    dataset = open_dataset("embedded")
    model = {"text_vocab": dataset.text_vocab, "speech_vocab": dataset.speech_vocab}
    config = arm_config(
        arm,
        size="w8",
        model=model | ({"speech_bpe_vocab": 1024} if arm == "bpe" else {}),
        data={"seq_len_units": UNITS},
        train={"steps": STEPS, "batch_sequences": BATCH},
        optim={"warmup_steps": 2},
        evaluation={"heldout_documents": 2, "context_tokens": 64, "points": 1, "story_items": 0},
        execution={"data_path": "embedded", "device": "cpu"},
    )
    config = dataclasses.replace(config, data=solve_mixture(dataset, config))
    run_dir = write_run(tmp_path / "run", config)
    finished = train(run_dir)
    assert finished.returncode == 0, finished.stderr
    records = read_jsonl(run_dir / "train.jsonl")
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    measured = {name: records[-1][name] / STEPS for name in ("units", "train_flops")}
    for limit, tolerance in ((STEPS * BATCH // 2, 0.005), (STEPS * BATCH, 1e-9)):
        table = count_sequences(dataset, config, limit)
        assert table.exact == (limit == STEPS * BATCH)
        assert table.mean().units * BATCH == pytest.approx(measured["units"], rel=tolerance)
        assert table.flops(config).mean() * BATCH == pytest.approx(measured["train_flops"], rel=tolerance)
