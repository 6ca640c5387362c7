"""What `execution.compile=true` gains a step and costs at the start, on batches whose shapes differ.

    python -m benchmarks.compiled_layers [--threads 1] [--size w128]

Both networks train on the same eight batches of interleaved documents of unequal lengths, in turns; the first pass over them,
in which the compiler works, is reported apart. It pays once the seconds won a step have made up for the start.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from benchmarks.measure import machine, take_turns
from lst.config import ExecutionConfig, RunConfig, arm_config
from lst.model import Batch, build_model, make_batch
from lst.train.layers import prepare_layers
from lst.train.losses import accumulate_gradients

LENGTHS = (200, 230, 210, 400, 333, 280, 500, 450)  # tokens of each span


def batches(config: RunConfig) -> list[Batch]:
    spans = [[("text", [5] * n), ("speech", [3] * (2 * n))] for n in LENGTHS]
    return [make_batch([document, spans[0]], config) for document in spans]


def training(config: RunConfig, *, compiled: bool) -> Callable[[], object]:
    model, data = build_model(config), batches(config)
    prepare_layers(model, ExecutionConfig(compile=compiled))

    def run() -> None:
        for batch in data:
            model.zero_grad(set_to_none=True)
            accumulate_gradients(model, batch, predicted=int((batch.target_BT >= 0).sum()))

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", default="w128", help="a size of plan-sweep sizes")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(machine(), f"{options.threads} thread(s), size {options.size}, {len(LENGTHS)} batches, fp32")
    for arm in ("baseline", "lst_static"):
        config = arm_config(arm, size=options.size, model={"text_vocab": 500, "speech_vocab": 100})
        ways = {"compiled": training(config, compiled=True), "plain": training(config, compiled=False)}
        first = {}
        for name, run in ways.items():
            started = time.perf_counter()
            run()
            first[name] = time.perf_counter() - started
        timing = take_turns(ways, rounds=5, warm_up=1)
        median, low, high = timing.ratio("compiled", "plain")
        cost, won = first["compiled"] - timing.best("compiled"), (timing.best("plain") - timing.best("compiled")) / len(LENGTHS)
        print(f"{arm:12} {median:.2f} x as fast ({low:.2f} to {high:.2f}); {cost:.0f} s at the start, {won:.3f} s won a step")


if __name__ == "__main__":
    main()
