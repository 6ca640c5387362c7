"""The estimate of a run's memory against what a process really takes."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from lst.config import arm_config
from lst.flops import num_params
from lst.memory import GIB, memory_by_part
from lst.plain import to_dict
from tests.train.tiny_run import ROOT

ROWS, TEXT_TOKENS, SPEECH_TOKENS = 4, 300, 721
STEP = """
import json, sys
from pathlib import Path
import torch
from lst.config import RunConfig
from lst.model import build_model, make_batch
from lst.train.losses import accumulate_gradients
from lst.train.optim import AdamW

config = RunConfig.from_dict(json.loads(sys.argv[1]))
rows, text, speech = map(int, sys.argv[2:])
torch.set_num_threads(1)
document = [("text", [i % 1990 for i in range(text)]), ("speech", [i % 490 for i in range(speech)])]
model = build_model(config).train()
optimizer = AdamW(model, config.optim)
batch = make_batch([document] * rows, config)
for _ in range(2):  # the moments' pages are touched by the first update
    optimizer.zero_grad()
    accumulate_gradients(model, batch, predicted=int((batch.target_BT >= 0).sum()))
    optimizer.step(1e-3)
lines = Path("/proc/self/status").read_text().splitlines()
peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
print(json.dumps({"peak": peak * 1024, "tokens": batch.ids_BT.numel(), "units": rows * batch.units}))
"""


def shape(arm: str) -> dict[str, Any]:
    model: dict[str, Any] = {
        "global_stack": {"layers": 6, "dim": 256, "heads": 4, "ffn_dim": 680},
        "text_vocab": 2000,
        "speech_vocab": 501,
    }
    if arm != "baseline":
        local = {"dim": 128, "heads": 2, "ffn_dim": 340, "window": 512}
        model |= {"encoder": {"layers": 1} | local, "decoder": {"layers": 2} | local}
    return model


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize("arm", ["baseline", "lst_static"])
def test_estimate_is_near_the_peak_of_a_process(arm: str) -> None:
    config = arm_config(arm, model=shape(arm))
    command = [sys.executable, "-c", STEP, json.dumps(to_dict(config)), *map(str, (ROWS, TEXT_TOKENS, SPEECH_TOKENS))]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    parts = memory_by_part(config.model, tokens=found["tokens"], units=found["units"], gpu=False)
    assert parts["activations"] > 0.2  # what is tested is more than what a process holds anyhow
    assert sum(parts.values()) * GIB == pytest.approx(found["peak"], rel=0.2)


def test_parts_are_what_their_names_say() -> None:
    config = arm_config("baseline", model=shape("baseline"))
    few, many = (memory_by_part(config.model, tokens=n, units=n, gpu=False) for n in (1000, 2000))
    assert few["weights"] * GIB == pytest.approx(4 * num_params(config.model), rel=1e-3)
    assert few["optimiser"] == pytest.approx(2 * few["gradients"], rel=1e-3)
    assert many["activations"] == pytest.approx(2 * few["activations"], rel=1e-3)
    assert many["logits"] == few["logits"]  # a chunk of them
    half = memory_by_part(config.model, tokens=1e3, units=1e3, gpu=True, dtype="bfloat16")
    # of 8 widths and 3 x 680 the residual stream, 2 widths, stays float32
    share = (2 * 256 * 4 + (6 * 256 + 3 * 680) * 2) / ((8 * 256 + 3 * 680) * 4)
    assert half["activations"] == pytest.approx(few["activations"] * share, rel=1e-3)
