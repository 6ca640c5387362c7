"""GPUs by name: the only table of them, for the planner's price and the trainer's `mfu`. No torch.

Figures of NVIDIA's data sheets: dense tensor-core FLOP/s (the halves of the sparse ones), SXM modules unless the name says
PCIe. `float32` is TF32, in which the trainer runs float32 products on a GPU. Memory is the data sheet's GB taken as 10^9
bytes, which is a little less than what the driver reports. Not here: a GPU's price, which is no property of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lst.checks import require_positive
from lst.errors import ConfigError

GIGABYTES_PER_GIB = 2**30 / 1e9


@dataclass(frozen=True, kw_only=True)
class GpuProfile:
    """One kind of GPU."""

    bfloat16: float  # peak FLOP/s, dense
    float32: float = 0.0  # the same in TF32; 0 = not given
    memory_gib: float  # of one GPU
    gpus_per_node: int = 8  # GPUs of one machine
    source: str = "given with the study"  # where the figures stand
    dollars_per_hour: float = 0.0  # of one GPU; 0 = not given

    def validate(self, name: str) -> None:
        """Raises ConfigError on a value that cannot be; `name` is what the profile is called there."""
        for key in ("bfloat16", "memory_gib", "gpus_per_node"):
            require_positive(f"{name}.{key}", getattr(self, key))
        for key in ("float32", "dollars_per_hour"):
            value = getattr(self, key)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name}.{key}={value} must be a finite number, 0 or more (0 = not given).")

    def peak_flops(self, dtype: str) -> float:
        return self.bfloat16 if dtype == "bfloat16" else self.float32


def _nvidia(bfloat16: float, gigabytes: float, source: str) -> GpuProfile:
    memory = round(gigabytes / GIGABYTES_PER_GIB, 1)
    return GpuProfile(bfloat16=bfloat16, float32=bfloat16 / 2, memory_gib=memory, source=source)


GPU_PROFILES: dict[str, GpuProfile] = {
    "a100": _nvidia(312e12, 80, "NVIDIA A100 data sheet, SXM 80 GB"),
    "h100": _nvidia(989e12, 80, "NVIDIA H100 data sheet, SXM (1,979 with sparsity)"),
    "h100_pcie": _nvidia(756e12, 80, "NVIDIA H100 data sheet, PCIe (1,513 with sparsity)"),
    "h200": _nvidia(989e12, 141, "NVIDIA H200 data sheet, SXM (1,979 with sparsity)"),
    "b200": _nvidia(2250e12, 180, "NVIDIA DGX B200 data sheet (8 GPUs: 72 PFLOP/s in FP8, dense 36, BF16 half of it; 1,440 GB)"),
}


def gpu_peak_flops(device_name: str, dtype: str) -> float | None:
    """Peak FLOP/s of the GPU that the driver calls `device_name` ("NVIDIA H100 80GB HBM3"); None for one not in the table."""
    words = device_name.lower().replace("-", " ").split()
    for name, profile in sorted(GPU_PROFILES.items(), key=lambda item: -len(item[0])):
        if all(part in words for part in name.split("_")):
            return profile.peak_flops(dtype)
    return None
