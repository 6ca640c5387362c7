"""What runs of a plan have really done, from their records, and what that says of the others.

    plan-sweep price studies/a --from-canary studies/a         # its finished and partial runs
    plan-sweep price studies/a --from-canary copies/0123456789ab

Of each run that has records of two steps or more: FLOP/s, MFU, seconds a step and peak memory, medians over the
steps but the first and skipped ones. A run that was measured takes its own speed; another that of the
nearest one, first of its own arm, then by the logarithm of the parameters. The records say on how many processes they were made
(one, where they say nothing). Not here: how a speed becomes hours (`sweeps.estimate`).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lst.errors import PlanError
from lst.records import TRAIN_RECORDS, iter_jsonl
from sweeps.columns import PlanRow
from sweeps.placement import Placement
from sweeps.price import PriceConfig, Speed

RUNS = "runs"
PEAK_TOLERANCE = 0.02  # by which the peak FLOP/s that the records' mfu implies may differ from the priced device's


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One run's speed."""

    run_id: str
    arm: str
    num_params: int
    steps: int  # that were measured
    processes: int
    step_seconds: float  # median
    flops_per_second: float  # of one process, median
    mfu: float | None  # of one process; None on a CPU
    peak_gib: float  # as the process saw it
    est_peak_gib: float  # the plan's estimate of the same: without the CUDA context on a GPU

    @property
    def peak_flops(self) -> float | None:
        """Of the device, as its records imply."""
        return self.flops_per_second / self.mfu if self.mfu else None


@dataclass(frozen=True, kw_only=True)
class Canary:
    """The measured runs of a plan."""

    runs: tuple[Measured, ...]
    foreign: int  # run folders that belong to another plan

    def nearest(self, row: PlanRow) -> Measured:
        """The run itself if it was measured, else the nearest one."""
        return min(
            self.runs,
            key=lambda run: (
                run.run_id != row.run_id,
                run.arm != row.arm,
                abs(math.log(run.num_params / row.num_params)),
                run.run_id,
            ),
        )

    def speed(self, row: PlanRow, price: PriceConfig, placement: Placement) -> Speed:
        """Of `row` as it is placed. GPUs beyond the measured number lose what price.gpu_efficiency says."""
        run = self.nearest(row)
        gpus = max(1, placement.gpus)
        lost = math.pow(price.gpu_efficiency, math.log2(gpus / run.processes))
        return Speed(flops_per_second=run.flops_per_second * gpus * lost, step_seconds=0.0, startup_seconds=price.startup_seconds)


def read_canary(path: Path, rows: Sequence[PlanRow], price: PriceConfig) -> Canary:
    """The records below `path` (a run's folder, a folder of them, or a study's) that belong to the plan's rows.

    Raises PlanError where there are none, where they are another plan's or another device's, or lack what is needed.
    """
    known = {row.run_id: row for row in rows}
    folders = list(_run_folders(path))
    if not folders:
        raise PlanError(f"'{path}' holds no {TRAIN_RECORDS}; give a run's folder, or a study's in which runs have begun.")
    ours = [folder for folder in folders if folder.name in known]
    if not ours:
        raise PlanError(
            f"'{path}' holds records of another study: none of its {len(folders)} runs is in this plan, the first is "
            f"'{folders[0].name}'; give runs of this plan."
        )
    found = [measured for folder in ours if (measured := _measure(folder, known[folder.name])) is not None]
    if not found:
        raise PlanError(f"'{path}' has records of fewer than two steps of each run; train some more steps and price again.")
    for run in found:
        _require_device(run, price)
    return Canary(runs=tuple(found), foreign=len(folders) - len(ours))


def canary_json(canary: Canary, rows: Sequence[PlanRow]) -> dict[str, Any]:
    """What was measured, and each other row's source."""
    measured = {run.run_id for run in canary.runs}
    return {
        "measured": [dataclasses.asdict(run) for run in canary.runs],
        "extrapolated": {row.run_id: canary.nearest(row).run_id for row in rows if row.run_id not in measured},
        "foreign": canary.foreign,
    }


def _run_folders(path: Path) -> Iterator[Path]:
    for folder in (path, *sorted(path.glob("*")), *sorted((path / RUNS).glob("*"))):
        if (folder / TRAIN_RECORDS).is_file():
            yield folder.resolve()


def _measure(folder: Path, row: PlanRow) -> Measured | None:
    """The run's speed; None where fewer than two steps are recorded."""
    records = list(iter_jsonl(folder / TRAIN_RECORDS))
    seconds, speeds = [], []
    for before, record in itertools.pairwise(records):
        if "skipped" in record or record.get("branch") != before.get("branch"):
            continue
        flops = _number(folder, record, "train_flops") - _number(folder, before, "train_flops")
        steps = _number(folder, record, "step") - _number(folder, before, "step")
        took = _number(folder, record, "seconds")
        if flops <= 0 or steps <= 0 or took <= 0:
            raise PlanError(f"'{folder / TRAIN_RECORDS}' is damaged: FLOPs, steps and seconds must rise; collect it again.")
        seconds.append(took)
        speeds.append(flops / steps / took)
    if not seconds:
        return None
    last = records[-1]
    processes = int(_number(folder, last, "processes", 1))
    mfus = [float(r["mfu"]) for r in records[1:] if isinstance(r.get("mfu"), int | float) and r["mfu"] > 0]
    peak = max(_number(folder, record, "peak_memory_mib") for record in records) / 1024
    return Measured(
        run_id=row.run_id,
        arm=row.arm,
        num_params=row.num_params,
        steps=len(seconds),
        processes=processes,
        step_seconds=statistics.median(seconds),
        flops_per_second=statistics.median(speeds) / processes,
        mfu=statistics.median(mfus) if mfus else None,
        peak_gib=peak,
        est_peak_gib=row.est_peak_gib - (row.est_gib_runtime if mfus else 0.0),
    )


def _number(folder: Path, record: Mapping[str, Any], name: str, default: float | None = None) -> float:
    value = record.get(name, default)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise PlanError(
            f"'{folder / TRAIN_RECORDS}' has a record without {name} (step {record.get('step', '?')}), so nothing can be priced "
            "from it; give runs of this version."
        )
    return float(value)


def _require_device(run: Measured, price: PriceConfig) -> None:
    """PlanError where the records tell of another device than the one that is priced."""
    if price.gpu is None:
        return
    if run.peak_flops is None:
        raise PlanError(
            f"the canary {run.run_id} has no mfu, so it ran on a CPU or an unknown GPU, and price.device is '{price.device}'; "
            "give records of that GPU, or price.device=cpu."
        )
    peaks = {peak for dtype in ("bfloat16", "float32") if (peak := price.gpu.peak_flops(dtype))}
    if all(abs(run.peak_flops / peak - 1) > PEAK_TOLERANCE for peak in peaks):
        raise PlanError(
            f"the canary {run.run_id} ran on a device of {run.peak_flops:.3g} peak FLOP/s, and price.device='{price.device}' has "
            f"{max(peaks):.3g}; give price.device of the canary's GPU."
        )
