"""Seconds of the processor and peak memory of planning 10,000 rows, by stage, and of `plan-sweep --help`.

    python benchmarks/planning.py [--seeds 10] [--budgets 25] [--folder DIR]

The grid is `study=isoflop` from stated statistics: budgets x 10 sizes x 4 arms x seeds, priced on H100s whose number the
planner chooses. Each grid is planned, written, and priced again from its folder, in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ARMS = ("baseline", "lst_static", "lst_aligned", "lst_curriculum")


def measure(budgets: int, seeds: int, folder: Path) -> dict[str, Any]:
    """Processor seconds of each stage in this process, its peak memory in MiB, and the rows planned."""
    found: dict[str, Any] = {}

    def timed(stage: str, work: Callable[[], Any]) -> Any:
        started = time.process_time()
        result = work()
        found[stage] = time.process_time() - started
        return result

    found["import"] = time.process_time()
    from sweeps.cli import compose_study
    from sweeps.plan import plan, read_plan
    from sweeps.reprice import reprice

    found["import"] = time.process_time() - found["import"]
    overrides = {
        "study": "isoflop",
        "arms": f"[{','.join(ARMS)}]",
        "budgets": f"[{','.join(f'{1e19 * 1000 ** (place / max(1, budgets - 1)):.6g}' for place in range(budgets))}]",
        "seeds": f"[{','.join(map(str, range(seeds)))}]",
        "spend.sizes_per_budget": "10",
    }
    study = timed("read the study", lambda: compose_study(overrides))
    planned = timed("plan and price", lambda: plan(study))
    timed("write", lambda: planned.write(folder))
    found["rows"], found["MiB"] = len(planned.rows), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    timed("price again", lambda: reprice(read_plan(folder), study.price))
    found["torch"] = "torch" in sys.modules
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--budgets", type=int, default=25)
    parser.add_argument("--folder", type=Path, default=None, help="where to work; default: the system's temporary folder")
    parser.add_argument("--measure", type=Path, default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        print(json.dumps(measure(arguments.budgets, arguments.seeds, arguments.measure)))
        return 0
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        command = [sys.executable, __file__, f"--seeds={arguments.seeds}", f"--budgets={arguments.budgets}"]
        done = subprocess.run([*command, "--measure", str(Path(folder) / "study")], stdout=subprocess.PIPE, check=True)
    for name, value in json.loads(done.stdout).items():
        print(f"{name:>16}: {value:.2f}" if isinstance(value, float) else f"{name:>16}: {value}")
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", "sweeps.cli", "--help"], stdout=subprocess.DEVNULL, check=True)
    print(f"{'--help (clock)':>16}: {time.monotonic() - started:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
