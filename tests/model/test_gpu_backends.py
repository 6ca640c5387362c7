"""The GPU's attention backends. On a GPU (marker `gpu`) they are compared as they are. On a CPU the kernels that have no code for
it are replaced by what their documentation says they compute, so that all around them runs: documents without padding, windows.

Stand-ins take the very arguments that the real function takes (its signature is asked), and see each document apart.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from lst.errors import ConfigError
from lst.model.attention import RotaryTable, cross_attention, self_attention, use_backend
from lst.model.gpu_attention import _block_mask
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


def test_xformers_without_a_kernel_for_the_device_is_one_clear_error() -> None:
    """As on a CPU, where it has none; on a GPU it is a build for another torch."""
    pytest.importorskip("xformers.ops", reason="xformers is not installed (extra: dev, Linux)")
    seen = causal_intervals(positions([[4]], 4), (4,))
    with pytest.raises(ConfigError, match=r"attention='xformers'.*no kernel for torch\.float32 on this cpu.*choose 'flex'"):
        self_attention(draw(1, 4, 3, H, D, dtype=torch.float32), RotaryTable(D, 1e4)(positions([[4]], 4)), seen, "xformers")


@pytest.mark.parametrize("case", ["documents", "window", "units"])
def test_blocks_of_the_fused_mask_are_those_of_the_written_out_mask(case: str) -> None:
    """One that is seen in part must be marked, and one that is marked as whole have no hidden pair: the kernel looks no more."""
    from torch.nn.attention.flex_attention import create_block_mask

    if case == "units":
        seen, _ = closed_units([700, 260], 2, 3)
    else:
        rows, length = [[280, 12, 20, 160, 328], [40] * 12, [900]], 900
        seen = causal_intervals(positions(rows, length), tuple(map(sum, rows)), window=300 if case == "window" else 0)
    made, mask_B1TS = _block_mask(seen), seen.mask_B1TS

    def written(b: Tensor, _: Tensor, q: Tensor, s: Tensor) -> Tensor:
        return mask_B1TS[b, 0, q, s]

    rows_, _, queries, keys = mask_B1TS.shape
    expected = create_block_mask(written, rows_, None, queries, keys, device="cpu")
    assert torch.equal(made.to_dense(), expected.to_dense())
    for counts, places in (("kv_num_blocks", "kv_indices"), ("full_kv_num_blocks", "full_kv_indices")):
        assert torch.equal(getattr(made, counts), getattr(expected, counts))
        assert torch.equal(getattr(made, places), getattr(expected, places))
    assert made.full_kv_num_blocks.any()


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


NETWORKS = [("baseline", "default"), *[("lst_static", name) for name in ("windows", "speech_only_windows", "preceding")]]


def distances(results: dict[str, list[Tensor]]) -> Iterator[tuple[float, float]]:
    """Of each tensor the distances from the truth in fp64: the backend's, and that of plain products in bf16."""
    for truth, plain, ours in zip(results["truth"], results["dense"], results["ours"], strict=True):
        assert ours.isfinite().all()
        yield float((ours.double() - truth).norm()), float((plain.double() - truth).norm())


@pytest.mark.gpu
@pytest.mark.parametrize("width", [8, 64])
@pytest.mark.parametrize("window", [0, 64])
@pytest.mark.parametrize("backend", ["flex", "varlen", "xformers", "sdpa"])
def test_on_a_gpu_self_attention_rounds_no_worse_than_plain_products(backend: str, window: int, width: int) -> None:
    rows, length = [[280, 12, 20, 160, 128], [40] * 12, [600]], 600
    seen = causal_intervals(positions(rows, length).cuda(), tuple(map(sum, rows)), window=window)
    rotary = RotaryTable(width, 1e4).cuda()(positions(rows, length).cuda())
    kept = real(rows, length).cuda()
    qkv = draw(3, length, 3, H, width, dtype=torch.float32).cuda().bfloat16()
    grad = draw(3, length, H, width, seed=1).cuda().bfloat16() * kept.bfloat16()
    results: dict[str, list[Tensor]] = {}
    for role, name in {"ours": backend, "dense": "dense", "truth": "dense"}.items():
        dtype = torch.float64 if role == "truth" else torch.bfloat16
        x = qkv.to(dtype, copy=True).requires_grad_()
        out = self_attention(x * 1, (rotary[0].to(dtype), rotary[1].to(dtype)) if role == "truth" else rotary, seen, name)
        out.backward(grad.to(dtype))
        assert x.grad is not None
        results[role] = [out.detach() * kept, x.grad * kept[:, :, None]]
    for ours, plain in distances(results):
        assert ours <= 1.5 * plain


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["flex", "varlen", "xformers", "sdpa"])
@pytest.mark.parametrize(("arm", "option"), NETWORKS)
@pytest.mark.parametrize("rows", BATCHES.values(), ids=BATCHES)
def test_on_a_gpu_whole_networks_round_no_worse_than_dense_ones(backend: str, arm: str, option: str, rows: Any) -> None:
    """Logits and the gradient of every parameter, in bf16 autocast (flash knows no fp32), against the same network in fp64:
    attention to closed units and to a patch's tokens included. Pooled by means: another largest state is no rounding."""
    config = config_of(arm, option)
    if arm != "baseline":
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, pooling="mean"))
    results: dict[str, list[Tensor]] = {}
    for role, name in {"ours": backend, "dense": "dense", "truth": "dense"}.items():
        model, batch = network_of(config).cuda(), batch_of_rows(rows, config).to("cuda")
        use_backend(model, name)
        with contextlib.nullcontext() if role == "truth" else torch.autocast("cuda", torch.bfloat16):
            logits_BTV = (model if role == "truth" else model.float())(batch)[batch.doc_BT >= 0]
        along = torch.randn(logits_BTV.shape, generator=torch.Generator().manual_seed(8)).cuda()
        (logits_BTV * along).sum().backward()
        results[role] = [logits_BTV.detach(), *[p.grad for p in model.parameters() if p.grad is not None]]
    for ours, plain in distances(results):
        assert ours <= 3 * plain + 1e-6


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["flex", "sdpa"])
@pytest.mark.parametrize(("arm", "option"), NETWORKS)
@pytest.mark.parametrize("rows", BATCHES.values(), ids=BATCHES)
def test_on_a_gpu_whole_networks_in_fp32_equal_dense_ones(backend: str, arm: str, option: str, rows: Any) -> None:
    """Without bf16's rounding a wrong mask or a lost gradient has nowhere to hide."""
    config, results = config_of(arm, option), []
    for name in (backend, "dense"):
        model, batch = network_of(config).float().cuda(), batch_of_rows(rows, config).to("cuda")
        use_backend(model, name)
        logits_BTV = model(batch)[batch.doc_BT >= 0]
        along = torch.randn(logits_BTV.shape, generator=torch.Generator().manual_seed(8)).cuda()
        (logits_BTV * along).sum().backward()
        results.append([logits_BTV.detach(), *[p.grad for p in model.parameters() if p.grad is not None]])
    for a, b in zip(*results, strict=True):
        assert (a - b).norm() <= 2e-4 * b.norm() + 1e-6
