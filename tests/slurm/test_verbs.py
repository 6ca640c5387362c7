"""What comes before a study's runs, on a real SLURM: the look at its machines, a data preparation, canaries and their prices."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from launch.ledger import read_attempts
from launch.status import gather
from lst.data.shards import open_dataset
from lst.records import read_json
from tests.launch.test_prepare import write_input
from tests.slurm.lab import ROOT, LabStudy, call, make_study, start, status, wait_for, wait_until_done

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(600)]


def test_preflight_looks_at_a_node_of_each_type_and_says_what_is_wrong(tmp_path: Path, data: Path) -> None:
    study = make_study(tmp_path / "study", data, rows=1)
    process = start("preflight", study.folder, "cluster=slurm", "--json")
    out, err = process.communicate(timeout=300)
    (machine,) = json.loads(out)  # the lab's nodes are alike
    seen = machine["seen"]
    assert seen["host"].startswith("node"), err
    assert seen["collective"] == {"backend": "gloo", "processes": 2}
    assert [seen["disk"][name] for name in ("locks", "creates_once", "replaces", "letter")] == [True] * 4
    assert {"sbatch", "scontrol"} <= set(seen["commands"])
    assert "torch sees 0 GPUs of 1; look at the driver, and at which build of torch is installed." in machine["wrong"]
    assert process.returncode == 1


def test_preflight_looks_at_the_nodes_that_the_jobs_may_use(tmp_path: Path, data: Path) -> None:
    study = make_study(tmp_path / "study", data, rows=1)
    process = start("preflight", study.folder, "cluster=slurm", "exclude=node1", "--json")
    out, err = process.communicate(timeout=300)
    assert [machine["seen"]["host"] for machine in json.loads(out)] == ["node2"], err
    process = start("preflight", study.folder, "cluster=slurm", "exclude=node[1-2]")
    assert "no node that is up under cluster.exclude=node[1-2]" in process.communicate(timeout=300)[1]
    assert process.returncode == 2


def test_a_preparation_runs_its_parts_as_an_array_and_then_joins_them(tmp_path: Path, data: Path) -> None:
    options = [f"input={write_input(tmp_path)}", "speech_vocab=40", "split_by=document", f"tokenizer={data.parent / 'spm.model'}"]
    jobs, out = tmp_path / "jobs", tmp_path / "out"
    call("prepare", jobs, "parts=2", *options, f"out={out}", "cluster=slurm")
    study = LabStudy(jobs, ["part-1-of-2", "part-2-of-2", "merge"], 1)
    wait_for(lambda: all(s["state"] == "done" for s in status(study).values()), "the parts, and then the merge")
    wait_until_done(study)
    attempts = read_attempts(jobs)
    assert {len(tries) for tries in attempts.values()} == {1}
    assert attempts["part-1-of-2"][0].job_id.partition("_")[0] == attempts["part-2-of-2"][0].job_id.partition("_")[0]
    assert (attempts["merge"][0].started or 0.0) > max(attempts[f"part-{n}-of-2"][0].ended or 0.0 for n in (1, 2))
    assert open_dataset(out).data_id
    assert "nothing to submit" in call("prepare", jobs, "parts=2", *options, f"out={out}", "cluster=slurm")


def plan_sweep(*arguments: object) -> str:
    """plan-sweep to its end; what it printed."""
    argv = [sys.executable, "-m", "sweeps.cli", *map(str, arguments)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_grid_follows_a_canary_that_prices_it_anew(tmp_path: Path) -> None:
    gpu = ("price.gpus=1", "price.device=mine", "price.profiles={mine: {float32: 1e9, bfloat16: 1e9, memory_gib: 8}}")
    small = ("budgets=[8e9,9e9]", "sizes=[w8]", "arms=[baseline]", "arm_sizes={}", "evaluation.heldout_documents=2")
    # some 180 steps: the canary is stopped before its last one, also where its worker looks late
    here = ("execution.device=cpu", "execution.peak_flops=1e9")  # the lab's GPUs are pretended
    folder = tmp_path / "study"
    plan_sweep("study=demo", f"out={folder}", *small, *gpu, *here)
    with (folder / "plan.csv").open() as file:
        rows = {row["run_id"]: row for row in csv.DictReader(file)}
    canary, other = rows
    call("submit", folder, "cluster=slurm")
    wait_for(lambda: all(s.state == "done" for s in gather(folder)), "the canary, and then both runs")
    wait_until_done(LabStudy(folder, list(rows), 0))
    attempts = read_attempts(folder)
    assert [(a.state, a.failure) for a in attempts[canary]] == [("interrupted", "canary"), ("done", "")]
    assert (attempts[canary][0].ended or 0.0) < (attempts[other][0].started or 0.0)
    assert attempts[canary][1].step_before == attempts[canary][0].step >= 5
    copy = tmp_path / "copies" / canary
    copy.mkdir(parents=True)
    lines = (folder / "runs" / canary / "train.jsonl").read_text().splitlines(keepends=True)
    (copy / "train.jsonl").write_text("".join(lines[: attempts[canary][0].step]))
    priced = json.loads(plan_sweep("price", folder, "--from-canary", copy, "--json"))["rows"]
    price = {row["run_id"]: row["est_gpu_hours"] for row in priced}
    assert read_json(folder / "launch/price.json") == {"gpu_hours": price}
    assert {s.run_id: s.planned_gpu_hours for s in gather(folder)} == price
    assert all(float(rows[run_id]["est_gpu_hours"]) != price[run_id] > 0 for run_id in rows)
