"""submit-sweep and the real trainer together, on runs of a dozen steps."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lst.records import read_json
from tests.launch.study import ROOT, finish, plan_real_runs, status, wait_for
from tests.train.tiny_run import records, tiny_config, train, write_run, write_tiny_dataset


def command(*arguments: object) -> subprocess.Popen[str]:
    """submit-sweep as installed: no stand-in."""
    argv = [sys.executable, "-m", "launch.cli", *map(str, arguments)]
    return subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_dataset(tmp_path_factory.mktemp("data"))


@pytest.mark.slow
def test_a_stopped_study_ends_with_the_records_of_an_undisturbed_one(tmp_path: Path, data: Path) -> None:
    study = tmp_path / "study"
    steps = 60
    configs = [tiny_config(arm, data, train={"steps": steps}) for arm in ("baseline", "lst_static")]
    plan_real_runs(study, configs)
    process = command("submit", study, "cluster=local", "parallel=2")
    wait_for(lambda: all(s["step"] > 2 for s in status(study).values()) or process.poll() is not None, "both runs to train")
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    assert (code, err) == (130, "")
    assert {s["state"] for s in status(study).values()} == {"planned"}

    detached = command("submit", study, "cluster=local", "--detach")
    code, out, _ = finish(detached)
    assert code == 0
    assert "runs the study" in out
    wait_for(lambda: {s["state"] for s in status(study).values()} <= {"done", "failed"}, "the detached submitter")
    found = status(study)
    assert {s["state"] for s in found.values()} == {"done"}, json.dumps(found)
    assert {s["attempts"] for s in found.values()} == {2}
    undisturbed = write_run(tmp_path / "alone", configs[1])
    assert train(undisturbed).returncode == 0
    assert records(study / "runs" / configs[1].run_id) == records(undisturbed)
    ended = read_json(study / "runs" / configs[1].run_id / "exit.json")
    assert ended is not None
    assert (ended["status"], ended["step"], ended["attempts"]) == ("done", steps, 2)
