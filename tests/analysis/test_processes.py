"""Work shared by processes: its order, its errors, and what is left when one of them ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from analysis import processes, run_tables
from analysis.collect import collect_into
from analysis.processes import in_order
from lst.errors import DataError, FitError
from tests.analysis.squares import squares
from tests.analysis.study_folder import Synthetic, write_study

ROOT = Path(__file__).parents[2]


def test_results_keep_their_order_and_stretches_grow_to_the_size_of_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "RESULT_BYTES", 50)
    found = [row for part in in_order(squares, range(40), 2, lambda rows: 10 * len(rows)) for row in part]
    assert [square for square, _ in found] == [number * number for number in range(40)]
    assert [together for _, together in found] == [1] * 6 + [5] * 30 + [4] * 4


@pytest.mark.parametrize(("number", "error", "said"), [(-1, DataError, "square another one"), (-2, FitError, "was killed")])
def test_what_ends_a_process_is_raised_by_the_one_that_waits(number: int, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        list(in_order(squares, [1, 2, number, 3], 2, len))


def test_many_runs_are_collected_by_several_processes_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_study(tmp_path, Synthetic(budgets=(1e18,), sizes=3))
    names = ("results.csv", "runs.csv", "attempts.csv", "curves.parquet", "items.parquet", "item_pairs.csv")

    def written(processes: int) -> dict[str, bytes]:
        told: list[int] = []
        collect_into(tmp_path, processes=processes, progress=lambda done, total: told.append(done))
        assert told[-1] == 6
        return {name: (tmp_path / name).read_bytes() for name in names}

    alone = written(1)
    monkeypatch.setattr(run_tables, "FEW_RUNS", 2)
    started: list[int] = []
    monkeypatch.setattr(run_tables, "in_order", lambda *given: started.append(given[2]) or in_order(*given))
    assert written(8) == alone
    assert started == [3]


WAITING = """
import os, sys, time
from analysis.processes import in_order

def work(numbers):
    print(os.getpid(), flush=True)
    time.sleep(30)
    print("still here", flush=True)

if __name__ == "__main__":
    list(in_order(work, range(2), 2, len))
"""


def test_processes_end_with_the_one_that_started_them_though_it_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "waiting.py"
    script.write_text(WAITING)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        children = {int(parent.stdout.readline()) for _ in range(2)}
        assert len(children) == 2
        parent.kill()
        assert parent.stdout.read() == ""  # the pipe's other ends, the children's, are closed, and not at their own end
