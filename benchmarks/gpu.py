"""The speed table on a CUDA GPU: baseline and LST by attention backend, against transformers' Llama, in bf16 autocast.

    python -m benchmarks.gpu [--size 420M] [--rows 4] [--units 4096] [--rounds 10] [--compile] [--backends flex varlen]

Tokens a second, MFU (FLOPs of lst/flops.py over the card's peak, lst/hardware.py) and peak memory; then the baseline over Llama
(speed, memory), and LST's speed-up a token over what the FLOPs promise. Every row trains: forward, loss, backward, on rows that
fill `--units` units with interleaved documents.
A backend that cannot run here prints why. Numbers in docs/speed.md name the card.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from benchmarks.lst_vs_baseline import SPEECH_SPAN, TEXT_SPAN, documents
from lst.config import ExecutionConfig, RunConfig, arm_config
from lst.data.pack import PackedBatch
from lst.errors import LstError
from lst.flops import training_flops
from lst.hardware import gpu_peak_flops
from lst.model import Batch, build_model
from lst.model.attention import use_backend
from lst.train.layers import prepare_layers
from lst.train.losses import accumulate_gradients

BACKENDS = ("flex", "varlen", "xformers", "sdpa")
LLAMA = "transformers' Llama"


@dataclass(frozen=True)
class Result:
    """What one contestant reached."""

    tokens: float  # a second
    flops: float  # a second
    memory: float  # bytes, at the peak

    @property
    def flops_a_token(self) -> float:
        return self.flops / self.tokens


def comparisons(results: dict[str, Result]) -> Iterator[str]:
    """A line for each backend: the baseline over Llama, and LST over the baseline beside what its FLOPs promise."""
    for backend in BACKENDS:
        baseline, lst = (results.get(f"{arm} {backend}") for arm in ("baseline", "lst_static"))
        if baseline and LLAMA in results:
            llama = results[LLAMA]
            speed, memory = baseline.tokens / llama.tokens, baseline.memory / llama.memory
            yield f"{backend:9} baseline over Llama: {speed:.2f} of its speed, {memory:.2f} of its memory"
        if baseline and lst:
            promised, measured = baseline.flops_a_token / lst.flops_a_token, lst.tokens / baseline.tokens
            yield (
                f"{backend:9} LST over the baseline: promised by FLOPs {promised:.2f}, measured {measured:.2f}, "
                f"share {measured / promised:.2f}"
            )


def seconds_a_step(run: Callable[[], object], rounds: int) -> float:
    """Best of `rounds`, after two to warm up; the card is waited for."""
    best = float("inf")
    for number in range(rounds + 2):
        torch.cuda.synchronize()
        started = time.perf_counter()
        run()
        torch.cuda.synchronize()
        if number >= 2:
            best = min(best, time.perf_counter() - started)
    return best


def ours(config: RunConfig, packed: PackedBatch, backend: str, compiled: bool) -> Callable[[], object]:
    model = build_model(config).cuda()
    use_backend(model, backend)
    prepare_layers(model, ExecutionConfig(compile=compiled))
    predicted, batch = int(packed.counts.predicted), Batch.from_packed(packed, "cuda")

    def step() -> None:
        model.zero_grad(set_to_none=True)
        accumulate_gradients(model, batch, predicted=predicted, dtype="bfloat16")

    return step


def llama(config: RunConfig, rows: int, length: int) -> Callable[[], object]:
    from transformers import LlamaConfig, LlamaForCausalLM

    stack, size = config.model.global_stack, config.model.text_vocab + config.model.speech_vocab + 2
    shape = {"hidden_size": stack.dim, "intermediate_size": stack.ffn_dim, "num_attention_heads": stack.heads}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=size, num_hidden_layers=stack.layers, use_cache=False, **shape)).cuda()
    ids = torch.randint(3, size, (rows, length), device="cuda")

    def step() -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()

    return step


def rows_of_the_table(options: argparse.Namespace) -> Iterator[tuple[str, Result]]:
    """Each contestant that runs, by name."""
    for arm in ("baseline", "lst_static"):
        config = arm_config(arm, size=options.size)
        span_units = TEXT_SPAN + 2 + (SPEECH_SPAN if arm == "baseline" else -(-SPEECH_SPAN // config.patching.patch_size))
        packed = documents(config, argparse.Namespace(rows=options.rows, spans=options.units // span_units, bytes=0))
        for backend in options.backends:
            name = f"{arm} {backend}"
            try:
                torch.cuda.reset_peak_memory_stats()
                seconds = seconds_a_step(ours(config, packed, backend, options.compile), options.rounds)
            except (LstError, RuntimeError, NotImplementedError) as error:
                print(f"{name:24} does not run here: {str(error).splitlines()[0]}", flush=True)
                continue
            flops = training_flops(config, packed.counts).total
            yield name, Result(packed.counts.tokens / seconds, flops / seconds, torch.cuda.max_memory_allocated())
        if arm == "baseline":
            torch.cuda.reset_peak_memory_stats()
            length = int(packed.counts.tokens) // options.rows
            seconds = seconds_a_step(llama(config, options.rows, length), options.rounds)
            flops = training_flops(config, packed.counts).total
            yield LLAMA, Result(options.rows * length / seconds, flops / seconds, torch.cuda.max_memory_allocated())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="420M", help="a rung of the ladder (plan-sweep sizes)")
    for name, value in {"rows": 4, "units": 4096, "rounds": 10}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--compile", action="store_true", help="as execution.compile=true does")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(2, "error: this process sees no CUDA GPU; run it where there is one.\n")
    card = torch.cuda.get_device_name()
    peak = gpu_peak_flops(card, "bfloat16")
    print(f"{card}, torch {torch.__version__}, size {options.size}, {options.rows} x {options.units} units, bf16 autocast")
    results: dict[str, Result] = {}
    for name, result in rows_of_the_table(options):
        results[name] = result
        mfu = f"{result.flops / peak:.2f}" if peak else "unknown card"
        print(f"{name:24} {result.tokens:12,.0f} tokens/s   MFU {mfu}   {result.memory / 2**30:6.1f} GiB", flush=True)
    print("\n".join(comparisons(results)))


if __name__ == "__main__":
    main()
