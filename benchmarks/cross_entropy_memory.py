"""Peak memory of the cross-entropy over a vocabulary of 32k at 4 x 4,096 positions: by chunks against full logits.

    python -m benchmarks.cross_entropy_memory [--rows 4] [--length 4096] [--vocabulary 32503] [--width 256]

Each contestant is a fresh process; the figure is its largest resident set above what it held before the loss. "full" is
torch's cross_entropy on all logits, as most trainers do it. The gradient of the head's weights is part of both.
"""

from __future__ import annotations

import argparse

import torch
from torch.nn import functional as F

from benchmarks.measure import machine, peak_mib, print_peak
from lst.config import arm_config
from lst.model import build_model, make_batch
from lst.train.losses import accumulate_gradients

CONTESTANTS = ("chunks", "full")


def child(options: argparse.Namespace) -> None:
    stack = {"layers": 1, "dim": options.width, "heads": max(1, options.width // 64), "ffn_dim": options.width}
    config = arm_config("baseline", model={"global_stack": stack, "text_vocab": options.vocabulary - 503, "speech_vocab": 501})
    model = build_model(config)
    batch = make_batch([[("text", [5] * (options.length - 2))] for _ in range(options.rows)], config)

    def full() -> None:
        F.cross_entropy(model(batch).flatten(0, 1), batch.target_BT.flatten(), ignore_index=-1).backward()

    def chunks() -> None:
        accumulate_gradients(model, batch, predicted=int((batch.target_BT >= 0).sum()))

    print_peak({"full": full, "chunks": chunks}[options.child])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"rows": 4, "length": 4096, "vocabulary": 32503, "width": 256}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--child", choices=CONTESTANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(2)
    if options.child:
        return child(options)
    same = [f"--{name}={getattr(options, name)}" for name in ("rows", "length", "vocabulary", "width")]
    peaks = {name: peak_mib("benchmarks.cross_entropy_memory", "--child", name, *same) for name in CONTESTANTS}
    logits = options.rows * options.length * options.vocabulary * 4 / 2**20
    print(machine(), f"{options.rows} x {options.length} positions, {options.vocabulary} ids, width {options.width}")
    print(f"one copy of the logits in fp32 is {logits:,.0f} MiB")
    for name, mib in peaks.items():
        print(f"{name:8} {mib:9,.0f} MiB above the start")
    print(f"ratio    {peaks['chunks'] / peaks['full']:.2f}")
    return None


if __name__ == "__main__":
    main()
