"""Seconds of planning 10,000 rows by stage (processor: of this program and of the kernel for it; clock), and its peak memory.

    python benchmarks/planning.py [--seeds 10] [--budgets 25] [--folder DIR]

The grid is `study=isoflop` from stated statistics: budgets x 10 sizes x 4 arms x seeds, priced on H100s whose number the
planner chooses. Each grid is planned, written, and priced again from its folder, in a process of its own; then `plan-sweep
--help`. A folder each run: where thousands of folders were deleted in the last minutes, ext4 steps over each of their inodes, and
writing takes many times as long (`--folder /dev/shm` has no such memory).
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

UNTIL_WRITTEN = ("import", "read the study", "plan and price", "write")
ARMS = ("baseline", "lst_static", "lst_aligned", "lst_curriculum")


def measure(budgets: int, seeds: int, folder: Path) -> dict[str, Any]:
    """Seconds of each stage (this process, the kernel for it, the clock), peak memory in MiB, and the rows planned."""
    found: dict[str, Any] = {}

    def timed(stage: str, work: Callable[[], Any]) -> Any:
        started = seconds()
        result = work()
        found[stage] = [after - before for before, after in zip(started, seconds(), strict=True)]
        return result

    def imported() -> None:
        import sweeps.cli
        import sweeps.plan
        import sweeps.reprice  # noqa: F401

    timed("import", imported)
    from sweeps.cli import compose_study
    from sweeps.plan import plan, read_plan
    from sweeps.reprice import reprice

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


def seconds() -> tuple[float, float, float]:
    """Of the processor in this program, in the kernel for it, and by the clock, so far."""
    spent = resource.getrusage(resource.RUSAGE_SELF)
    return spent.ru_utime, spent.ru_stime, time.monotonic()


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
    found = json.loads(done.stdout)
    stages = {name: value for name, value in found.items() if isinstance(value, list)}
    written = [sum(part) for part in zip(*(stages[name] for name in UNTIL_WRITTEN), strict=True)]
    print(f"{'seconds':>24}  {'own':>6} {'kernel':>6} {'clock':>6}")
    for name, (own, kernel, clock) in (stages | {"planned, priced, written": written}).items():
        print(f"{name:>24}: {own:6.2f} {kernel:6.2f} {clock:6.2f}")
    print(f"{found['rows']:,} rows, at most {found['MiB']:.0f} MiB, torch imported: {found['torch']}")
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "sweeps.cli", "--help"], stdout=subprocess.DEVNULL, check=True)
    after, clock = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - started
    print(f"{'--help':>24}: {after.ru_utime - before.ru_utime:6.2f} {after.ru_stime - before.ru_stime:6.2f} {clock:6.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
