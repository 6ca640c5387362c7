"""`cluster=debug`: a run in the process of the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from launch.ledger import read_attempts
from tests.launch.study import ROOT, call, finish, plan_real_runs, status
from tests.train.tiny_run import records, tiny_config, train, write_run, write_tiny_dataset

# A debugger's stand-in: says in which process the trainer runs, and presses Ctrl-C there if it is told to.
WATCHED = """
import os, signal, sys
from lst.train.trainer import Trainer
run = Trainer.run
def watched(self):
    print("trainer", os.getpid(), "lease", bool(os.environ.get("LST_LEASE")), flush=True)
    if "ctrl-c" in sys.argv:
        os.kill(os.getpid(), signal.SIGINT)
    return run(self)
Trainer.run = watched
from launch.cli import main
print("cli", os.getpid(), flush=True)
sys.exit(main([word for word in sys.argv[1:] if word != "ctrl-c"]))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_dataset(tmp_path_factory.mktemp("data"))


def watched(*arguments: object) -> tuple[int, str, str]:
    argv = [sys.executable, "-c", WATCHED, *map(str, arguments)]
    return finish(subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))


def test_a_run_is_trained_in_the_process_of_the_command_line_and_goes_on_after_ctrl_c(tmp_path: Path, data: Path) -> None:
    config, study = tiny_config("baseline", data), tmp_path / "study"
    plan_real_runs(study, [config, tiny_config("lst_static", data)])
    words = ("submit", study, "cluster=debug", "--run", config.run_id[:6])
    code, out, err = watched(*words, "ctrl-c")
    assert code == 130, err
    assert f"trainer {out.partition('cli ')[2].split()[0]} lease True" in out
    found = status(study)[config.run_id]
    assert (found["state"], found["cause"].partition(";")[0]) == ("planned", "stopped by SIGINT")
    code, out, err = watched(*words)
    assert code == 0, err
    assert "1 run submitted; 1 runs: 1 done" in out
    assert [a.state for a in read_attempts(study)[config.run_id]] == ["interrupted", "done"]
    assert sorted(s["state"] for s in status(study).values()) == ["done", "planned"]
    alone = write_run(tmp_path / "alone", config)
    assert train(alone).returncode == 0
    assert records(study / "runs" / config.run_id) == records(alone)


def test_a_failure_shows_its_traceback_and_is_in_the_ledger(tmp_path: Path, data: Path) -> None:
    config = tiny_config("baseline", data, execution={"data_path": str(tmp_path / "nowhere")})
    plan_real_runs(tmp_path / "study", [config])
    code, out, err = call("submit", tmp_path / "study", "cluster=debug")
    assert code == 1
    assert "Traceback" in out
    assert "nowhere" in err
    assert status(tmp_path / "study")[config.run_id]["state"] == "failed"


def test_what_cannot_run_in_one_process_is_refused(tmp_path: Path, data: Path) -> None:
    plan_real_runs(tmp_path / "study", [tiny_config("baseline", data)])
    code, _, err = call("submit", tmp_path / "study", "cluster=debug", "--detach")
    assert (code, "leave --detach out" in err) == (2, True)
    words = ["parts=1", f"input={tmp_path}", f"out={tmp_path / 'out'}", "cluster=debug"]
    code, _, err = call("prepare", tmp_path / "jobs", *words)
    assert (code, "or call prepare-data itself" in err, (tmp_path / "jobs").exists()) == (2, True, False)
