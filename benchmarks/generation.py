"""Generated tokens a second: with caches, against the full forward pass anew for each token. Prints docs/generation.md's table.

    python -m benchmarks.generation --size w128 --prompt 128 --tokens 128

Greedy S->S of one prompt on one thread, by CPU seconds of the process, so that other work on the machine tells little; both
ways are checked to give the same tokens. Ratios carry over to other machines, tokens a second do not. Weights are random:
what comes does not matter here, and nothing may end it early.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor, nn

from lst.config import RunConfig, arm_config
from lst.data.vocab import EOS, Vocabulary
from lst.model import build_model, generate, make_batch

SPEECH_VOCAB = 501


def never_ending(model: nn.Module, config: RunConfig) -> nn.Module:
    """The model, with logits of EOS and the markers so low that no generation ends."""
    vocabulary = Vocabulary.of(config.model)
    ends = torch.tensor([EOS, vocabulary.text_marker, vocabulary.speech_marker])
    model.get_submodule("head").register_forward_hook(lambda _, __, logits: logits.index_fill(-1, ends, -1e4))
    return model


@torch.no_grad()
def by_full_forwards(model: nn.Module, config: RunConfig, prompt: list[int], tokens: int) -> list[int]:
    """The speech tokens, each from a forward pass over the whole document."""
    text, new = config.model.text_vocab, []
    for _ in range(tokens):
        batch = make_batch([[("speech", prompt + new)]], config)
        hidden_BTE: Tensor = model.hidden(batch)  # type: ignore[operator]
        logits_V = model.get_submodule("head")(hidden_BTE[0, -1:])[0]
        new.append(int(logits_V[text : text + SPEECH_VOCAB].argmax()))
    return new


def measure(arm: str, options: dict[str, object], arguments: argparse.Namespace) -> tuple[float, float, int]:
    """Tokens a second with caches and without, and steps of the global transformer with them."""
    config = arm_config(arm, size=arguments.size, model={"text_vocab": 1000, "speech_vocab": SPEECH_VOCAB} | options)
    model = never_ending(build_model(config).eval(), config)
    prompt = torch.randint(SPEECH_VOCAB, (arguments.prompt,), generator=torch.Generator().manual_seed(0)).tolist()
    generate(model, config, [[("speech", prompt)]], direction="S->S", max_tokens=4)  # warm
    best, result = float("inf"), None
    for _ in range(arguments.repeats):
        start = time.process_time()
        [result] = generate(model, config, [[("speech", prompt)]], direction="S->S", max_tokens=arguments.tokens)
        best = min(best, time.process_time() - start)
    assert result is not None
    start = time.process_time()
    expected = by_full_forwards(model, config, prompt, arguments.tokens)
    full = time.process_time() - start
    if list(result.segments[0][1]) != expected:
        raise SystemExit(f"{arm}: caches and full forwards gave other tokens")
    return arguments.tokens / best, arguments.tokens / full, result.global_steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="w128", help="a size of plan-sweep sizes")
    parser.add_argument("--prompt", type=int, default=128, help="speech tokens of the prompt")
    parser.add_argument("--tokens", type=int, default=128, help="speech tokens to generate")
    parser.add_argument("--repeats", type=int, default=3, help="cached runs, of which the fastest counts")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"size {arguments.size}, prompt of {arguments.prompt} speech tokens, {arguments.tokens} generated, fp32, one thread\n")
    print("| arm | tokens/CPU s, caches | tokens/CPU s, full forwards | ratio | global steps |\n|---|---|---|---|---|")
    for arm, options in (
        ("baseline", {}),
        ("lst_static", {}),
        ("lst_static", {"local_text": False}),
        ("lst_static", {"cross_attention": "preceding"}),
    ):
        cached, full, steps = measure(arm, options, arguments)
        name = " ".join([arm, *(f"{key}={value}" for key, value in options.items())])
        print(f"| {name} | {cached:,.0f} | {full:,.0f} | {cached / full:.1f} | {steps} |", flush=True)


if __name__ == "__main__":
    main()
