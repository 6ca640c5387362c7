"""The baseline arm against Hugging Face transformers' Llama of the same shape and vocabulary: speed, and peak memory.

    python -m benchmarks.baseline_vs_llama [--threads 1] [--width 256] [--layers 6] [--rows 4] [--length 1024] [--vocabulary 1000]

Both train (forward, loss, backward) on the same rows of one document each, in turns, in one process. Shares are of the
machine's matrix-product peak, measured in the same run, by the FLOPs of lst/flops.py (causal pairs alone are counted). Memory is
the largest resident set of a fresh process for each, above what it held before its first step.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch

from benchmarks.measure import gemm_share, has_fast_bf16, machine, peak_mib, print_peak, take_turns, with_gemm
from lst.config import RunConfig, arm_config
from lst.flops import SequenceCounts, training_flops
from lst.model import Batch, build_model, make_batch
from lst.train.losses import accumulate_gradients


def shape(options: argparse.Namespace) -> RunConfig:
    width = options.width
    stack = {"layers": options.layers, "dim": width, "heads": max(1, width // 64), "ffn_dim": 16 * round(width / 6)}
    vocabulary = {"text_vocab": options.vocabulary - 503, "speech_vocab": 501}
    return arm_config("baseline", model={"global_stack": stack, **vocabulary})


def one_document_rows(config: RunConfig, rows: int, length: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    texts = torch.randint(3, config.model.text_vocab, (rows, length - 2), generator=generator)
    return make_batch([[("text", row.tolist())] for row in texts], config)


def ours(config: RunConfig, batch: Batch, dtype: str) -> Callable[[], object]:
    model = build_model(config)
    predicted = int((batch.target_BT >= 0).sum())

    def step() -> None:
        for parameter in model.parameters():
            parameter.grad = None
        accumulate_gradients(model, batch, predicted=predicted, dtype=dtype)

    return step


def llama(config: RunConfig, batch: Batch, dtype: str) -> Callable[[], object]:
    from transformers import LlamaConfig, LlamaForCausalLM

    stack = config.model.global_stack
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.model.text_vocab + config.model.speech_vocab + 2,
            hidden_size=stack.dim,
            intermediate_size=stack.ffn_dim,
            num_hidden_layers=stack.layers,
            num_attention_heads=stack.heads,
            max_position_embeddings=batch.ids_BT.shape[1],
            attn_implementation="sdpa",
            use_cache=False,
        )
    ).train()

    def step() -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = model(input_ids=batch.ids_BT, labels=batch.ids_BT).loss
        loss.backward()

    return step


CONTESTANTS = {"lst-scaling": ours, "llama": llama}


def counts(batch: Batch) -> SequenceCounts:
    rows, length = batch.ids_BT.shape
    pairs = rows * length * (length + 1) / 2
    return SequenceCounts(units=rows * length, tokens=rows * length, predicted=rows * (length - 1), global_pairs=pairs)


def compare(options: argparse.Namespace, dtype: str) -> None:
    config = shape(options)
    batch = one_document_rows(config, options.rows, options.length)
    flops = training_flops(config, counts(batch)).total
    contestants = {name: make(config, batch, dtype) for name, make in CONTESTANTS.items()}
    timing = take_turns(with_gemm(contestants, getattr(torch, dtype)), rounds=options.rounds)
    tokens = batch.ids_BT.numel()
    for name in CONTESTANTS:
        seconds = timing.best(name)
        share = gemm_share(timing, name, flops)
        print(f"{dtype:9} {name:12} {tokens / seconds:10,.0f} tokens/s   {share:.2f} of the GEMM peak")
    median, low, high = timing.ratio("lst-scaling", "llama")
    print(f"{dtype:9} ratio        {median:.2f} ({low:.2f} to {high:.2f})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {
        "threads": 1,
        "width": 256,
        "layers": 6,
        "rows": 4,
        "length": 1024,
        "vocabulary": 1000,
        "rounds": 5,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--memory", action="store_true", help="compare peak memory (at 4 x 4,096 and 32k ids, say) instead")
    parser.add_argument("--child", choices=list(CONTESTANTS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.child:
        config = shape(options)
        return print_peak(CONTESTANTS[options.child](config, one_document_rows(config, options.rows, options.length), "float32"))
    print(machine(), f"{options.threads} thread(s)")
    print(f"{options.layers} layers x {options.width}, {options.rows} x {options.length} positions, {options.vocabulary} ids")
    if options.memory:
        same = [f"--{name}={getattr(options, name)}" for name in ("threads", "width", "layers", "rows", "length", "vocabulary")]
        peaks = {name: peak_mib("benchmarks.baseline_vs_llama", "--child", name, *same) for name in CONTESTANTS}
        for name, mib in peaks.items():
            print(f"memory    {name:12} {mib:10,.0f} MiB above the start")
        print(f"memory    ratio        {peaks['lst-scaling'] / peaks['llama']:.2f}")
        return None
    compare(options, "float32")
    if has_fast_bf16():
        compare(options, "bfloat16")
    else:
        print("bfloat16  not compared: this processor has no fast bf16 products")
    return None


if __name__ == "__main__":
    main()
