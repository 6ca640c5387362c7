"""What generated speech costs by arm: tokens a second, time to the first token, FLOPs and memory of a second of audio. Prints
the table of docs/evaluation.md.

    python -m benchmarks.inference [--scale 4] [--prompt 128] [--tokens 128]

Shapes have the proportions of the paper's Table 7, its widths divided by `scale`: a global transformer of 25 layers, twice as
wide as one layer of patch encoder and nine of patch decoder. The baseline is that global transformer alone. One prompt of speech
goes on as speech (S->S), greedily, with caches, on one thread, in CPU seconds of the process; weights are random.
Mixed and curriculum arms generate as lst_static does; an aligned arm generates no speech. Arm bpe is the baseline's network on
1,000 SentencePiece pieces of the embedded corpus' speech: it takes as many speech tokens as the others, in pieces that hold so
many of them as in the corpus' held-out documents (printed).
"""

from __future__ import annotations

import argparse
import functools
import time

import numpy as np
import torch

from benchmarks.generation import SPEECH_VOCAB, never_ending
from benchmarks.measure import machine
from lst.config import RunConfig, arm_config
from lst.data.interleave import Segment
from lst.data.pack import LocalTokens, PackedRow, encode_document
from lst.data.shards import open_dataset
from lst.data.speech_bpe import SpeechBpe, dataset_pieces, remember
from lst.data.vocab import FRAMES_PER_SECOND, Vocabulary
from lst.flops import forward_flops
from lst.ladder import SIZES
from lst.model import build_model, make_batch
from lst.model.generate import generate
from lst.model.kv_cache import KeyValues
from lst.model.stepper import AllUnits, Stepper

PIECES = 1000
ARMS: tuple[tuple[str, dict[str, object]], ...] = (
    ("baseline", {}),
    ("lst_static", {}),
    ("lst_static", {"local_text": False}),
    ("lst_static", {"cross_attention": "preceding"}),
    ("bpe", {}),
)


def scaled(arm: str, options: dict[str, object], scale: int) -> RunConfig:
    """The arm in Table 7's proportions, narrower: widths and heads divided, layers kept."""
    full = SIZES["table7_1b"]
    heads, local_heads = max(1, full.heads // scale), max(1, full.local_heads // scale)
    shape: dict[str, object] = {"text_vocab": 1000, "speech_vocab": SPEECH_VOCAB, **options}
    shape["global_stack"] = {
        "layers": full.layers, "dim": full.dim // scale, "heads": heads, "ffn_dim": full.ffn_dim // scale,
    }  # fmt: skip
    if arm == "bpe":
        shape |= {"speech_vocab": corpus_pieces().speech_vocab, "speech_bpe_vocab": PIECES}
        return arm_config(arm, size="table7_1b", model=shape, data={"speech_bpe_id": remember(corpus_pieces()).id})
    if arm != "baseline":
        local = {"dim": full.local_dim // scale, "heads": local_heads, "ffn_dim": full.local_ffn_dim // scale, "window": 512}
        shape["encoder"], shape["decoder"] = {**local, "layers": full.encoder_layers}, {**local, "layers": full.decoder_layers}
    return arm_config(arm, size="table7_1b", model=shape)


@functools.cache
def corpus_pieces() -> SpeechBpe:
    """Of the embedded corpus' training speech."""
    return dataset_pieces(open_dataset("embedded"), PIECES)


@functools.cache
def heldout_speech() -> list[np.ndarray]:
    dataset = open_dataset("embedded")
    return [np.array(r) for r in dataset.speech["speech_tokens"].take(dataset.rows("speech", "heldout")).to_pylist()]


def tokens_of_an_id(arm: str) -> float:
    """Speech tokens that an id of speech stands for, in the mean."""
    if arm != "bpe":
        return 1.0
    return sum(map(len, heldout_speech())) / sum(map(len, corpus_pieces().encode(heldout_speech())))


def cache_bytes(stepper: Stepper) -> float:
    """Bytes of the keys and values in use."""

    def used(cache: KeyValues, keys: int) -> float:
        slots = cache.key.shape[2]
        return (cache.key.nbytes + cache.value.nbytes) * min(keys, slots) / slots

    units = int(stepper.closed_units[0])
    total = sum(used(cache, units) for cache in stepper.units.caches)
    if stepper.local is not None:
        tokens = int(stepper.local.count_B[0])
        total += sum(used(cache, tokens) for cache in (*stepper.local.encoder_caches, *stepper.local.decoder_caches))
        total += sum(used(seen.cache, units if isinstance(seen, AllUnits) else seen.keys) for seen in stepper.local.seen)
    return total


def flops(config: RunConfig, ids: int) -> float:
    """Forward FLOPs (lst/flops.py) of a document of so many ids of speech."""
    vocabulary = Vocabulary.of(config.model)
    frames = np.ones(ids, np.int64) if vocabulary.speech_pieces else None
    document = [Segment("speech", np.zeros(ids, np.int64), frames=frames)]
    encoded = encode_document(document, vocabulary, config.patching.evaluation_kind, config.patching.patch_size, ends=False)
    row = PackedRow.pack([encoded], vocabulary, interleaved=True)
    return forward_flops(config.model, row.counts(LocalTokens.of(config.model))).total


def measure(arm: str, options: dict[str, object], arguments: argparse.Namespace) -> dict[str, float]:
    config = scaled(arm, options, arguments.scale)
    model = never_ending(build_model(config).eval(), config)
    stream, share = np.concatenate(heldout_speech()).tolist(), tokens_of_an_id(arm)
    document = [("speech", stream[: arguments.prompt])]
    new = round(arguments.tokens / share)  # ids
    generate(model, config, [document], direction="S->S", max_tokens=2)  # warm
    first, whole = [], []
    for _ in range(arguments.repeats):
        for ids, seconds in ((1, first), (new + 1, whole)):
            start = time.process_time()
            generate(model, config, [document], direction="S->S", max_tokens=ids)
            seconds.append(time.process_time() - start)
    memory = []
    for length in (arguments.prompt, 2 * arguments.prompt):
        stepper, _ = Stepper.start(model, make_batch([[("speech", stream[:length])]], config))  # type: ignore[arg-type]
        memory.append(cache_bytes(stepper))
    before, after = (round(tokens / share) for tokens in (arguments.prompt, arguments.prompt + arguments.tokens))
    return {
        "params": sum(p.numel() for p in model.parameters()),
        "speed": new * share / (min(whole) - min(first)),
        "first": min(first),
        "flops": (flops(config, after) - flops(config, before)) / arguments.tokens * FRAMES_PER_SECOND,
        "cache": (memory[1] - memory[0]) / arguments.prompt * FRAMES_PER_SECOND,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=int, default=4, help="Table 7's widths are divided by this")
    parser.add_argument("--prompt", type=int, default=128, help="speech tokens of the prompt")
    parser.add_argument("--tokens", type=int, default=128, help="speech tokens to generate after the first")
    parser.add_argument("--repeats", type=int, default=3, help="of which the fastest counts")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{machine()}; prompt of {arguments.prompt} speech tokens, {arguments.tokens} generated, fp32, one thread\n")
    print(f"a piece of arm bpe is {tokens_of_an_id('bpe'):.2f} speech tokens\n")
    columns = ("arm", "parameters, M", "tokens/CPU s", "against the baseline", "first token, CPU s", "GFLOPs", "cache, KiB")
    print(f"| {' | '.join(columns)} |")  # the last two a second of audio
    print("|---|---|---|---|---|---|---|")
    baseline = 0.0
    for arm, options in ARMS:
        found = measure(arm, options, arguments)
        baseline = baseline or found["speed"]
        name = " ".join([arm, *(f"{key}={value}" for key, value in options.items())])
        numbers = f"{found['params'] / 1e6:,.0f} | {found['speed']:,.1f} | {found['speed'] / baseline:.2f} | {found['first']:.2f}"
        print(f"| {name} | {numbers} | {found['flops'] / 1e9:,.2f} | {found['cache'] / 1024:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
