"""The GPU's attention backends. On a GPU (marker `gpu`) they are compared as they are. On a CPU the kernels that have no code for
it are replaced by what their documentation says they compute, so that all around them runs: documents without padding, windows.

Stand-ins take the very arguments that the real function takes (its signature is asked), and see each document apart.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lst.model.attention import RotaryTable, cross_attention, self_attention, use_backend
from lst.model.intervals import causal_intervals
from tests.model.sequences import batch_of_rows, config_of, flat_document, network_of
from tests.model.test_attention import D, H, closed_units, draw, positions, real, reference

ROWS = [[9, 1, 14], [20], [1]]  # documents of each row
LENGTHS, LONGEST = tuple(map(sum, ROWS)), 24
BACKENDS = ("varlen", "xformers", "flex")


def attended(q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, seen_TS: Tensor) -> Tensor:
    score_HTS = torch.einsum("thd,shd->hts", q_THD, k_THD) / math.sqrt(q_THD.shape[-1])
    return torch.einsum("hts,shd->thd", score_HTS.masked_fill(~seen_TS, -math.inf).softmax(-1), v_THD)


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """torch's varlen_attn and xformers' kernel by their documentation, and FlexAttention's backward pass, which torch has for
    CPUs and refuses. The names of the kernels that were called."""
    flex = pytest.importorskip("torch.nn.attention.flex_attention")
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    xformers = pytest.importorskip("xformers.ops", reason="xformers is not installed (extra: dev, Linux)")
    called: list[str] = []

    def documented(name: str, owner: Any, compute: Callable[..., Tensor]) -> None:
        signature = inspect.signature(getattr(owner, name))

        def replaced(*args: Any, **kwargs: Any) -> Tensor:
            called.append(name)
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            return compute(**bound.arguments)

        monkeypatch.setattr(owner, name, replaced)

    def by_lengths(
        query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int,
        window_size: tuple[int, int], **_: Any,
    ) -> Tensor:  # fmt: skip
        """Flash attention: key s of the query's sequence if t - left <= s <= t + right; -1 is no bound."""
        assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
        assert len(query) > 0  # a kernel is never started for nothing
        sizes = cu_seq_q.diff()
        assert (max_q, max_k) == (int(sizes.max()), int(sizes.max()))
        left, right = window_size
        parts = []
        for a, b in zip(cu_seq_q[:-1].tolist(), cu_seq_q[1:].tolist(), strict=True):
            back = torch.arange(b - a)[:, None] - torch.arange(b - a)
            parts.append(attended(query[a:b], key[a:b], value[a:b], (back <= (left if left >= 0 else b)) & (back >= -right)))
        assert right == 0
        return torch.cat(parts)

    def by_mask(query: Tensor, key: Tensor, value: Tensor, attn_bias: Any, **_: Any) -> Tensor:
        """xformers: attention under the mask that the bias writes out."""
        tokens = query.shape[1]
        seen = attn_bias.materialize((tokens, tokens)) == 0
        return attended(query[0], key[0], value[0], seen)[None]

    documented("varlen_attn", varlen, by_lengths)
    documented("memory_efficient_attention", xformers, by_mask)
    monkeypatch.setattr(flex, "_validate_device", lambda *_: None)
    return called


@pytest.mark.parametrize("window", [0, 1, 7])
@pytest.mark.parametrize("backend", BACKENDS)
def test_self_attention_equals_the_definition_forward_and_backward(stand_ins: list[str], backend: str, window: int) -> None:
    seen = causal_intervals(positions(ROWS, LONGEST), LENGTHS, window=window)
    rotary = RotaryTable(D, 1e4)(positions(ROWS, LONGEST))
    rotary = (rotary[0].double(), rotary[1].double())
    qkv, kept = draw(len(ROWS), LONGEST, 3, H, D), real(ROWS, LONGEST)
    grad = draw(len(ROWS), LONGEST, H, D, seed=1) * kept
    results = []
    for name in (backend, "dense"):
        x = qkv.clone().requires_grad_()
        out = self_attention(x * 1, rotary, seen, name)
        out.backward(grad)
        assert x.grad is not None
        results.append((out.detach() * kept, x.grad * kept[:, :, None]))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    kernels = {"varlen": ["varlen_attn"], "xformers": ["memory_efficient_attention"], "flex": []}
    assert stand_ins == kernels[backend]


@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_to_closed_units_equals_the_definition_forward_and_backward(stand_ins: list[str], backend: str) -> None:
    """Varlen and xformers have no such mask: FlexAttention computes it for them."""
    seen, mask = closed_units([40, 20], 4, 4)
    tensors = [draw(1, n, H, D, seed=s).requires_grad_() for s, n in enumerate((60, seen.keys, seen.keys))]
    grad = draw(1, 60, H, D, seed=9)
    out, expected = cross_attention(*tensors, seen, backend), reference(*tensors, mask)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    pairs = zip(torch.autograd.grad(out, tensors, grad), torch.autograd.grad(expected, tensors, grad), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    assert stand_ins == []


TEXT, SPEECH = flat_document(1, [("text", 5)]), flat_document(2, [("speech", 8)])
BATCHES = {
    "ragged": [[flat_document(3), TEXT], [SPEECH, SPEECH], [TEXT]],
    "text alone": [[TEXT], [TEXT, TEXT]],  # no token of the local modules under local_text=false
}


@pytest.mark.parametrize("rows", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize(
    ("arm", "option"), [("baseline", "default"), ("lst_static", "windows"), ("lst_static", "speech_only_windows")]
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_whole_networks_equal_dense_ones(stand_ins: list[str], backend: str, arm: str, option: str, rows: Any) -> None:
    """The logits, and the gradient of every parameter."""
    config, results = config_of(arm, option), []
    for name in (backend, "dense"):
        model, batch = network_of(config), batch_of_rows(rows, config)
        use_backend(model, name)
        logits_BTV = model(batch)[batch.doc_BT >= 0]
        along = torch.randn(logits_BTV.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
        (logits_BTV * along).sum().backward()
        results.append((logits_BTV.detach(), {n: p.grad for n, p in model.named_parameters()}))
    (logits, gradients), (expected_logits, expected) = results
    torch.testing.assert_close(logits, expected_logits, rtol=0, atol=1e-11)
    for name, gradient in expected.items():
        assert gradients[name] is not None, name
        assert gradient is not None
        torch.testing.assert_close(gradients[name], gradient, rtol=0, atol=1e-11 * max(1.0, float(gradient.abs().max())))


@pytest.mark.gpu
@pytest.mark.parametrize("window", [0, 64])
@pytest.mark.parametrize("backend", ["flex", "varlen", "xformers", "sdpa"])
def test_on_a_gpu_self_attention_equals_the_dense_reference(backend: str, window: int) -> None:
    rows, length = [[280, 12, 20, 160, 128], [40] * 12, [600]], 600
    seen = causal_intervals(positions(rows, length).cuda(), tuple(map(sum, rows)), window=window)
    rotary = RotaryTable(64, 1e4).cuda()(positions(rows, length).cuda())
    qkv = draw(3, length, 3, H, 64, dtype=torch.float32).cuda().bfloat16()
    grad = (draw(3, length, H, 64, seed=1) * real(rows, length)).cuda().bfloat16()
    results = []
    for name in (backend, "dense"):
        x = qkv.clone().requires_grad_()
        out = self_attention(x * 1, rotary, seen, name)
        out.backward(grad)
        assert x.grad is not None
        results.append((out.float() * real(rows, length).cuda(), x.grad.float()))
    for a, b in zip(*results, strict=True):
        assert (a - b).abs().max() < 3e-2 * b.abs().max()


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["flex", "varlen", "xformers", "sdpa"])
@pytest.mark.parametrize(
    ("arm", "option"),
    [("baseline", "default"), *[("lst_static", name) for name in ("windows", "speech_only_windows", "preceding")]],
)
@pytest.mark.parametrize("rows", BATCHES.values(), ids=BATCHES)
def test_on_a_gpu_whole_networks_equal_dense_ones(backend: str, arm: str, option: str, rows: Any) -> None:
    """Forward and backward in bf16 autocast (flash knows no fp32), attention to closed units and to a patch's tokens included."""
    config, results = config_of(arm, option), []
    for name in (backend, "dense"):
        model, batch = network_of(config).float().cuda(), batch_of_rows(rows, config).to("cuda")
        use_backend(model, name)
        with torch.autocast("cuda", torch.bfloat16):
            logits_BTV = model(batch)[batch.doc_BT >= 0].float()
        along = torch.randn(logits_BTV.shape, generator=torch.Generator().manual_seed(8)).cuda()
        (logits_BTV * along).sum().backward()
        results.append([logits_BTV.detach(), *[p.grad for p in model.parameters() if p.grad is not None]])
    assert len(results[0]) == len(results[1])
    for ours, theirs in zip(*results, strict=True):
        assert (ours - theirs).abs().max() <= 5e-2 * theirs.abs().max() + 1e-3
