"""The whole way of fine-tuning on the embedded corpus: planned, trained after its parent, evaluated, and kept out of the fits."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

from lst.records import read_json, read_jsonl
from sweeps.plan import plan
from tests.launch.study import ROOT, status

TINY = {"utterances": 2, "words": 3, "tokens_per_second": 1.0, "extra_tokens": 2}
STUDY = {
    "name": "tuned",
    "data": "embedded",
    "arms": ["lst_static"],
    "reference_arm": "lst_static",
    "sizes": ["w8"],
    "units": [20_000.0],
    "mixture": {"interleaved_token_share": 1.0},
    "matching": "unit",
    "seq_len_units": 96,
    "recipe": {"name": "small", "batch_sequences": 8},
    "evaluation": {"heldout_documents": 4, "context_tokens": 48},
    "after": {"kind": "finetune", "task": "asr", "steps": [20], "batch_sequences": 2, "evaluate": True, "options": TINY},
}


def run(*arguments: object) -> str:
    argv = [sys.executable, "-m", *map(str, arguments)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, env=dict(os.environ), check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_planned_fine_tuning_is_trained_from_its_parents_weights_and_evaluated(tmp_path: Path) -> None:
    study = tmp_path / "study"
    planned = plan(STUDY)
    planned.write(study)
    pretrained, tuned, evaluated = planned.rows
    assert (evaluated.kind, evaluated.parent_run_id) == ("eval", tuned.run_id)
    assert "3 done" in run("launch.cli", "submit", study, "cluster=local", "parallel=2")
    assert {found["state"] for found in status(study).values()} == {"done"}
    ended = read_json(study / "runs" / tuned.run_id / "exit.json")
    assert ended is not None
    assert ended["warm_start"]["init_from"] == f"run:{pretrained.run_id}"
    assert ended["warm_start"]["random"] == 0
    assert ended["train_flops"] == tuned.planned_flops
    assert ended["speech_tokens"] == tuned.speech_tokens
    losses = [record["loss_text"] for record in read_jsonl(study / "runs" / tuned.run_id / "train.jsonl")]
    assert len(losses) == tuned.steps
    run("analysis.cli", "collect", study)
    excluded = {row["run_id"]: row["excluded"] for row in csv.DictReader((study / "runs.csv").read_text().splitlines())}
    assert excluded == {
        pretrained.run_id: "",
        tuned.run_id: f"goes on from run {pretrained.run_id} (finetune)",
        evaluated.run_id: f"goes on from run {tuned.run_id} (eval)",
    }
    card = read_json(
        study / "runs" / tuned.run_id / "evals" / str(planned.evaluations[evaluated.run_id]["out"]) / "evaluation.json"
    )
    assert card is not None
    assert card["decided_by"]["run_id"] == tuned.run_id
    assert read_json(study / "runs" / evaluated.run_id / "exit.json") == {"run_id": evaluated.run_id, "status": "done", "step": 1}
