"""What a step's record says of speed follows from the step's own counts, FLOPs and seconds."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from lst.flops import SequenceCounts
from lst.records import read_jsonl
from lst.train.__main__ import main
from lst.train.metrics import peak_flops, wall_clock
from tests.train.tiny_run import tiny_config, write_run

pytestmark = pytest.mark.usefixtures("restore_process")
CPU = torch.device("cpu")


def test_speeds_of_a_step_by_hand() -> None:
    """1,000 units and 2,400 tokens, 1,500 of them speech at 25 a second, in 4 s, of which 1 s was waited for."""
    counts = SequenceCounts(units=1000, tokens=2400, speech_tokens=1500)
    clock = wall_clock(counts, seconds=4.0, data_seconds=1.0, flops=8e9, peak_flops=1e10, device=CPU)
    speeds = {name: value for name, value in clock.items() if name not in ("time", "peak_memory_mib")}
    assert speeds == {
        "seconds": 4.0, "data_seconds": 1.0, "data_wait_share": 0.25, "tokens_per_second": 600.0, "units_per_second": 250.0,
        "audio_seconds_per_second": 15.0, "mfu": 0.2,
    }  # fmt: skip
    assert clock["peak_memory_mib"] > 50  # torch alone is more
    assert "mfu" not in wall_clock(counts, seconds=4.0, data_seconds=1.0, flops=8e9, peak_flops=None, device=CPU)


@pytest.mark.parametrize("arm", ["bpe", "lst_static"])
def test_speeds_in_the_records_are_those_of_what_was_trained_on(tmp_path: Path, tiny_data: Path, arm: str) -> None:
    config = tiny_config(arm, tiny_data, train={"steps": 5}, execution={"peak_flops": 1e9})
    assert peak_flops(config, CPU) == 1e9
    assert peak_flops(tiny_config(arm, tiny_data), CPU) is None
    run_dir = write_run(tmp_path / "run", config)
    assert main([str(run_dir)]) == 0
    for before, after in pairwise(read_jsonl(run_dir / "train.jsonl")):
        seconds = after["seconds"]
        step = {name: after[name] - before[name] for name in ("units", "tokens", "speech_tokens", "train_flops")}
        assert after["units_per_second"] * seconds == pytest.approx(step["units"], rel=0.01)
        assert after["tokens_per_second"] * seconds == pytest.approx(step["tokens"], rel=0.01)
        assert after["audio_seconds_per_second"] * seconds == pytest.approx(step["speech_tokens"] / 25, rel=0.02)
        assert after["mfu"] * seconds == pytest.approx(step["train_flops"] / 1e9, rel=0.01)
        assert after["data_wait_share"] == pytest.approx(after["data_seconds"] / seconds, abs=1e-3)
        assert 0 <= after["data_wait_share"] < 1
