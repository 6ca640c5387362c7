"""Peak FLOP/s of GPUs by name: the only table of them, for the planner's price and the trainer's `mfu`. No torch.

Dense tensor-core figures of NVIDIA's data sheets (the halves of the sparse ones), SXM modules unless the name says PCIe.
`float32` is TF32, in which the trainer runs float32 products on a GPU.
"""

from __future__ import annotations

GPU_PEAK_FLOPS: dict[str, dict[str, float]] = {
    "a100": {"bfloat16": 312e12, "float32": 156e12},
    "h100": {"bfloat16": 989e12, "float32": 494e12},
    "h100_pcie": {"bfloat16": 756e12, "float32": 378e12},
    "h200": {"bfloat16": 989e12, "float32": 494e12},
    "b200": {"bfloat16": 2250e12, "float32": 1125e12},
}


def gpu_peak_flops(device_name: str, dtype: str) -> float | None:
    """Peak FLOP/s of the GPU that the driver calls `device_name` ("NVIDIA H100 80GB HBM3"); None for one not in the table."""
    words = device_name.lower().replace("-", " ").split()
    for name, peaks in sorted(GPU_PEAK_FLOPS.items(), key=lambda item: -len(item[0])):
        if all(part in words for part in name.split("_")):
            return peaks[dtype]
    return None
