"""LST against the baseline arm on the same documents: the speed-up that comes out over the one that the FLOPs promise.

    python -m benchmarks.lst_vs_baseline [--threads 1] [--width 512] [--layers 12] [--rows 2] [--spans 40] [--dtype float32]
    python -m benchmarks.lst_vs_baseline --bytes 1024 --rows 4 --width 256 --layers 3

Both networks train (forward, loss, backward) on the same interleaved documents: spans of text and of speech in turn, 0.77 of
the tokens speech, as in the paper's interleaved data. LST has the ladder's proportions (local modules of half the width, one
encoder layer, a decoder of a third of the depth). Promised is FLOPs of the baseline over FLOPs of LST (lst/flops.py: the pairs
that the masks let through); share is speed-up over promise. The shares of the GEMM peak stand beside it.

`--bytes N` takes rows of N bytes in patches of four instead, as byte models are measured: ids are 256 speech tokens, and there is
no text. `--cross_attention preceding` shows a token the last closed patch alone, as BLT does.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.measure import gemm_share, has_fast_bf16, machine, take_turns, with_gemm
from lst.config import RunConfig, arm_config
from lst.data.interleave import Segment
from lst.data.pack import LocalTokens, PackedBatch, PackedRow, encode_document
from lst.data.vocab import Vocabulary
from lst.flops import num_params, training_flops
from lst.model import Batch, build_model
from lst.train.losses import accumulate_gradients

TEXT_SPAN, SPEECH_SPAN = 12, 40  # tokens: 0.77 of them speech


def networks(options: argparse.Namespace) -> dict[str, RunConfig]:
    width, local = options.width, options.width // 2
    wide = {"layers": options.layers, "dim": width, "heads": max(1, width // 64), "ffn_dim": 16 * round(width / 6)}
    narrow = {"dim": local, "heads": max(1, local // 64), "ffn_dim": 16 * round(local / 6), "window": 512}
    decoder = max(1, round(options.layers / 3))
    vocabulary = {"text_vocab": options.vocabulary - 503, "speech_vocab": 501}
    if options.bytes:
        vocabulary = {"text_vocab": 4, "speech_vocab": 256}
    local_stacks = {"encoder": {"layers": 1, **narrow}, "decoder": {"layers": decoder, **narrow}}
    return {
        "baseline": arm_config("baseline", model={"global_stack": wide, **vocabulary}),
        "lst_static": arm_config(
            "lst_static", model={"global_stack": wide, **local_stacks, **vocabulary, "cross_attention": options.cross_attention}
        ),
    }


def documents(config: RunConfig, options: argparse.Namespace) -> PackedBatch:
    """The same documents for both arms, patched as the arm does."""
    model = config.model
    vocabulary = Vocabulary(text=model.text_vocab, speech=model.speech_vocab)
    generator = np.random.default_rng(0)
    rows = []
    for _ in range(options.rows):
        spans = []
        for _ in range(0 if options.bytes else options.spans):
            spans.append(Segment("text", generator.integers(3, model.text_vocab, TEXT_SPAN)))
            spans.append(Segment("speech", generator.integers(0, model.speech_vocab, SPEECH_SPAN)))
        if options.bytes:
            spans.append(Segment("speech", generator.integers(0, model.speech_vocab, options.bytes)))
        encoded = encode_document(spans, vocabulary, config.patching.kind, config.patching.patch_size, ends=True)
        rows.append(PackedRow.pack([encoded], vocabulary, interleaved=True))
    return PackedBatch(rows, LocalTokens.of(model))


def step(config: RunConfig, packed: PackedBatch, dtype: str) -> Callable[[], object]:
    model, predicted = build_model(config), int(packed.counts.predicted)

    def run() -> None:
        for parameter in model.parameters():
            parameter.grad = None
        accumulate_gradients(model, Batch.from_packed(packed), predicted=predicted, dtype=dtype)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = {"threads": 1, "width": 512, "layers": 12, "rows": 2, "spans": 40, "vocabulary": 1000, "rounds": 3, "bytes": 0}
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--cross_attention", choices=["all", "preceding"], default="all")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    configs = networks(options)
    batches = {name: documents(config, options) for name, config in configs.items()}
    flops = {name: training_flops(configs[name], packed.counts).total for name, packed in batches.items()}
    steps = {name: step(configs[name], batches[name], options.dtype) for name in configs}
    timing = take_turns(with_gemm(steps, getattr(torch, options.dtype)), rounds=options.rounds, warm_up=1)
    print(machine(), f"{options.threads} thread(s), {options.dtype}")
    tokens = int(batches["baseline"].counts.tokens)
    print(f"{options.layers} layers x {options.width}, {tokens:,} tokens in {options.rows} rows, cross={options.cross_attention}")
    if options.dtype == "bfloat16" and not has_fast_bf16():
        print("this processor has no fast bf16 products: what follows says nothing of one that has")
    for name in configs:
        seconds = timing.best(name)
        share = gemm_share(timing, name, flops[name])
        units, params = int(batches[name].counts.units), num_params(configs[name].model) / 1e6
        print(
            f"{name:12} {params:6.2f} M parameters {units:8,} units   {tokens / seconds:9,.0f} tokens/s   "
            f"{share:.2f} of the GEMM peak"
        )
    promised = flops["baseline"] / flops["lst_static"]
    median, low, high = timing.ratio("lst_static", "baseline")
    print(f"speed-up     promised by FLOPs {promised:.2f}, measured {median:.2f} ({low:.2f} to {high:.2f})")
    print(f"share        {median / promised:.2f} of the promise")


if __name__ == "__main__":
    main()
