"""What the speed benchmarks share: paired timing, the machine's matrix-product peak, peak memory of a child process.

Timings are noisy, so contestants take turns in one process and the ratio is taken round by round: `ratio` is the median of
the rounds' ratios, with its range beside it. Seconds are of the wall clock; with one thread, of the processor (so that other
programs disturb less). Run by hand on an otherwise idle machine; nothing here is a test.
"""

from __future__ import annotations

import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of each round, by contestant."""

    seconds: dict[str, list[float]]

    def best(self, name: str) -> float:
        return min(self.seconds[name])

    def ratio(self, faster: str, slower: str) -> tuple[float, float, float]:
        """How many times faster `faster` is: median, smallest and largest over the rounds."""
        ratios = [b / a for a, b in zip(self.seconds[faster], self.seconds[slower], strict=True)]
        return statistics.median(ratios), min(ratios), max(ratios)


def take_turns(contestants: Mapping[str, Callable[[], object]], *, rounds: int = 7, warm_up: int = 2) -> Timing:
    """Time each contestant once a round."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for round_number in range(warm_up + rounds):
        for name, run in contestants.items():
            started = clock()
            run()
            if round_number >= warm_up:
                seconds[name].append(clock() - started)
    return Timing(seconds)


def gemm(rows: int, width: int, dtype: torch.dtype) -> tuple[Callable[[], object], float]:
    """A (rows, width) x (width, width) product and its FLOPs."""
    a, b = torch.randn(rows, width).to(dtype), torch.randn(width, width).to(dtype)
    return lambda: a @ b, 2.0 * rows * width * width


GEMM = "gemm"
GEMM_WIDTH = 1024


def with_gemm(contestants: Mapping[str, Callable[[], object]], dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """The contestants, and plain (4,096, 1,024) x (1,024, 1,024) products, eight a turn, whose speed is the machine's peak."""
    product, _ = gemm(4096, GEMM_WIDTH, dtype)
    return {GEMM: lambda: [product() for _ in range(8)], **contestants}


def gemm_share(timing: Timing, name: str, flops: float) -> float:
    """FLOP/s of a contestant that computes `flops`, over those of the products of the same round: the median."""
    products = 8 * 2.0 * 4096 * GEMM_WIDTH**2
    pairs = zip(timing.seconds[name], timing.seconds[GEMM], strict=True)
    return statistics.median((flops / own) / (products / peak) for own, peak in pairs)


def has_fast_bf16() -> bool:
    """Whether products in bf16 are at least half as fast as in fp32 here (older processors emulate them, very slowly)."""
    fp32, _ = gemm(256, 256, torch.float32)
    bf16, _ = gemm(256, 256, torch.bfloat16)
    timing = take_turns({"fp32": fp32, "bf16": bf16}, rounds=5)
    return timing.best("bf16") < 2 * timing.best("fp32")


def peak_mib(module: str, *arguments: str) -> float:
    """Largest resident memory of a fresh process that runs `python -m MODULE ARGUMENTS`, above what it held before its work.

    The module prints the two, in bytes, with `print_peak`.
    """
    done = subprocess.run([sys.executable, "-m", module, *arguments], check=True, capture_output=True, text=True)
    before, peak = (int(x) for x in done.stdout.split()[-2:])
    return (peak - before) / 2**20


def print_peak(work: Callable[[], object]) -> None:
    """Run `work` and print the resident bytes before it and at the peak."""
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    work()
    print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def machine() -> str:
    """One line: processor, cores, torch."""
    name = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            name = line.split(":", 1)[1].strip()
            break
    return f"{name}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"
