"""Attention: every backend against plain matrix products over a written-out mask, forward and backward, in fp64.

A mask here is made from the definition, position by position; the networks never build one.
"""

import math

import pytest
import torch

from lst.model import blocked
from lst.model.attention import RotaryTable, cross_attention, rotate, self_attention
from lst.model.blocks import RMSNorm, _Gate
from lst.model.intervals import causal_intervals, visible_intervals
from lst.model.segments import Segments, pool_segments, read_one_unit, read_own_tokens

H, D = 2, 8
LONG = 600  # positions: more than a small row, so that the plan has blocks of every kind
ROWS = [[280, 12, 20, 160, 128], [40] * 12, [600]]  # documents of each row; the second row ends in padding


def positions(rows, length):
    out = torch.zeros(len(rows), length, dtype=torch.long)
    for row, documents in enumerate(rows):
        counted = torch.cat([torch.arange(n) for n in documents])
        out[row, : len(counted)] = counted
    return out


def mask_from_definition(rows, length, window):
    mask = torch.zeros(len(rows), 1, length, length, dtype=torch.bool)
    for row, documents in enumerate(rows):
        start = 0
        for n in documents:
            for t in range(start, start + n):
                mask[row, 0, t, max(start, t - window + 1 if window else start) : t + 1] = True
            start += n
    return mask


def reference(q, k, v, mask_B1TS):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    score = (q @ k.transpose(-1, -2) / math.sqrt(D)).masked_fill(~mask_B1TS, -math.inf)
    return (torch.softmax(score, -1).nan_to_num(0) @ v).transpose(1, 2)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def closed_units(documents, *patches):
    """Intervals and mask of tokens that see one unit more at every `patch` tokens, from their document's first on."""
    visible, first, units = [], [], 0
    for n, patch in zip(documents, patches, strict=True):
        visible += [units + 1 + t // patch for t in range(n)]
        first += [units] * n
        units += 1 + (n - 1) // patch
    visible, first, step = torch.tensor([visible]), torch.tensor([first]), torch.arange(units)
    mask = ((step < visible[..., None]) & (step >= first[..., None]))[:, None]
    return visible_intervals(visible, first, units, (sum(documents),)), mask


def real(rows, length):
    return torch.tensor([[t < sum(documents) for t in range(length)] for documents in rows])[:, :, None, None]


@pytest.mark.parametrize("window", [0, 1, 64, 300])
@pytest.mark.parametrize("rows", [ROWS, [[40, 5], [17]], [[LONG], [LONG]]])
@pytest.mark.parametrize("backend", ["blocked", "sdpa", "dense"])
def test_self_attention_equals_the_definition_forward_and_backward(backend, rows, window):
    length = max(map(sum, rows))
    lengths = tuple(map(sum, rows))
    seen = causal_intervals(positions(rows, length), lengths, window=window)
    rotary = tuple(x.double() for x in RotaryTable(D, 1e4)(positions(rows, length)))
    qkv = draw(len(rows), length, 3, H, D)
    grad = draw(len(rows), length, H, D, seed=1) * real(rows, length)

    ours = qkv.clone().requires_grad_()
    out = self_attention(ours * 1, rotary, seen, backend)
    out.backward(grad)
    theirs = qkv.clone().requires_grad_()
    q, k, v = theirs.unbind(2)
    expected = reference(rotate(q, rotary), rotate(k, rotary), v, mask_from_definition(rows, length, window))
    expected.backward(grad)
    assert torch.allclose(out * real(rows, length), expected, atol=1e-12, rtol=0)
    assert torch.allclose(ours.grad * real(rows, length)[:, :, None], theirs.grad, atol=1e-12, rtol=0)


@pytest.mark.parametrize("backend", ["blocked", "sdpa"])
@pytest.mark.parametrize(("documents", "patches"), [([400, 200], (1, 1)), ([40, 560], (4, 1)), ([400, 200], (4, 4))])
def test_attention_to_closed_units_equals_the_definition(backend, documents, patches):
    seen, mask = closed_units(documents, *patches)
    tensors = [draw(1, n, H, D, seed=s).requires_grad_() for s, n in enumerate((LONG, seen.keys, seen.keys))]
    grad = draw(1, LONG, H, D, seed=9)
    out, expected = cross_attention(*tensors, seen, backend), reference(*tensors, mask)
    assert torch.allclose(out, expected, atol=1e-12, rtol=0)
    pairs = zip(torch.autograd.grad(out, tensors, grad), torch.autograd.grad(expected, tensors, grad), strict=True)
    assert all(torch.allclose(a, b, atol=1e-11, rtol=0) for a, b in pairs)


def test_flex_attention_equals_the_definition():
    """Forward, as it runs on a CPU; backward stands in test_gpu_backends.py."""
    rows, length = [[40, 5], [17]], 45
    for window in (0, 1, 7):
        seen = causal_intervals(positions(rows, length), (45, 17), window=window)
        q, k, v = (draw(2, length, H, D, seed=s) for s in range(3))
        expected = reference(q, k, v, mask_from_definition(rows, length, window))
        assert torch.allclose(cross_attention(q, k, v, seen, "flex") * real(rows, length), expected, atol=1e-12, rtol=0)
    seen, mask = closed_units([40, 20], 4, 4)
    q, k, v = (draw(1, n, H, D, seed=n) for n in (60, seen.keys, seen.keys))
    assert torch.allclose(cross_attention(q, k, v, seen, "flex"), reference(q, k, v, mask), atol=1e-12, rtol=0)


def test_blocks_cover_each_query_once_and_compute_little_that_is_hidden():
    """The point of the plan: a window of 64 over 1,500 positions meets far fewer pairs than 1,500 x 1,500."""
    rows, length = [[700, 30, 50, 400, 320], [100] * 12, [1500]], 1500
    seen = causal_intervals(positions(rows, length), tuple(map(sum, rows)), window=64)
    covered = torch.zeros(len(rows), length)
    pairs = 0
    for block in seen.blocks:
        covered[block.rows, block.queries] += 1
        queries = block.queries.stop - block.queries.start
        pairs += queries * sum(part.keys.stop - part.keys.start for part in block.parts)
    assert torch.equal(covered, real(rows, length)[:, :, 0, 0].float())
    assert pairs < 0.12 * len(rows) * length * length


def kinds_of_parts(seen):
    parts = [part for block in seen.blocks for part in block.parts]
    return {"causal" if part.causal else "prefix" if part.mask is None else "masked" for part in parts}


def test_the_rows_of_these_tests_have_blocks_of_every_kind():
    lengths = tuple(map(sum, ROWS))
    assert kinds_of_parts(causal_intervals(positions(ROWS, LONG), lengths)) == {"causal", "masked"}
    assert kinds_of_parts(causal_intervals(positions(ROWS, LONG), lengths, window=64)) == {"masked"}
    assert kinds_of_parts(closed_units([400, 200], 1, 1)[0]) == {"causal"}
    assert kinds_of_parts(closed_units([400, 200], 4, 4)[0]) == {"masked"}
    assert kinds_of_parts(closed_units([40, 560], 4, 1)[0]) == {"masked", "prefix"}


def test_blocked_attention_in_fp32_and_bf16_is_within_rounding_of_the_definition():
    seen = causal_intervals(positions([[300]], 300), (300,), window=100)
    mask = mask_from_definition([[300]], 300, 100)
    q, k, v = (draw(1, 300, H, D, seed=s) for s in range(3))
    expected = reference(q, k, v, mask)
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 2e-2)):
        out = blocked.cross_attention(q.to(dtype), k.to(dtype), v.to(dtype), seen)
        assert out.dtype == dtype
        assert (out.double() - expected).abs().max() < tolerance


@pytest.mark.parametrize("window", [0, 1, 7])
def test_our_intervals_are_xformers_masks(window):
    """Off by one: xformers' local attention of window w keeps w keys, the token itself among them, and so do ours."""
    pytest.importorskip("xformers", reason="xformers is not installed (extra: dev, Linux)")
    from lst.model.xformers_attention import document_mask

    rows = [[9, 1, 14], [20]]
    seen = causal_intervals(positions(rows, 24), (24, 20), window=window)
    theirs = document_mask(seen).materialize((44, 44)) == 0
    ours = torch.zeros(44, 44, dtype=torch.bool)
    ours[:24, :24], ours[24:, 24:] = seen.mask_B1TS[0, 0], seen.mask_B1TS[1, 0, :20, :20]
    assert torch.equal(ours, theirs)


UNITS = torch.tensor([[0, 1, 2, 2, 2, 3, 3, 3, 3, 4, 4, 5], [0, 0, 1, 2, 2, 2, 2, 6, 6, 6, 6, 6]])  # 6 marks padding


def test_patches_read_their_own_tokens_and_nothing_else():
    q, k, v = (draw(2, n, *shape, seed=s).requires_grad_() for s, (n, *shape) in enumerate([(6, 3, 8), (12, 8), (12, 8)]))
    out = read_own_tokens(q, k, v, Segments.of(UNITS, 6), 2)
    expected = torch.zeros(2, 6, 3, 8, dtype=torch.float64)
    for b in range(2):
        for u in range(6):
            own = (UNITS[b] == u).nonzero().squeeze(1)
            if len(own):
                heads = [slice(0, 4), slice(4, 8)]
                shares = [torch.softmax(q[b, u, :, h] @ k[b, own][:, h].T / 2, -1) @ v[b, own][:, h] for h in heads]
                expected[b, u] = torch.cat(shares, -1)
    assert torch.allclose(out, expected, atol=1e-12)
    grad = draw(2, 6, 3, 8, seed=5)
    pairs = zip(torch.autograd.grad(out, (q, k, v), grad), torch.autograd.grad(expected, (q, k, v), grad), strict=True)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in pairs)


def test_gradients_of_hand_written_functions_equal_finite_differences():
    unit = torch.tensor([[0, 0, 3, 1], [2, 2, 2, 0]])
    inputs = [draw(*shape, seed=s).requires_grad_() for s, shape in enumerate([(2, 4, 8), (2, 4, 3, 8), (2, 4, 3, 8)])]
    assert torch.autograd.gradcheck(lambda q, k, v: read_one_unit(q, k, v, unit, 2), inputs)
    x = draw(2, 12, 4).requires_grad_()
    for how in ("max", "mean", "last"):
        assert torch.autograd.gradcheck(lambda x, how=how: pool_segments(x, Segments.of(UNITS, 6), how), x)
    norm = RMSNorm(4).double()
    torch.nn.init.uniform_(norm.gain)
    assert torch.autograd.gradcheck(lambda x, _: norm(x), (x, norm.gain))
    assert torch.autograd.gradcheck(_Gate.apply, x)


def test_pooling_by_hand():
    x = torch.arange(12.0).view(1, 12, 1)
    unit = torch.tensor([[0, 1, 1, 1, 2, 2, 3, 9, 9, 9, 9, 9]])
    segments = Segments.of(unit, 9)
    assert pool_segments(x, segments, "max")[0, :5, 0].tolist() == [0, 3, 5, 6, 0]
    assert pool_segments(x, segments, "mean")[0, :5, 0].tolist() == [0, 2, 4.5, 6, 0]
    assert pool_segments(-x, segments, "max")[0, :5, 0].tolist() == [0, -1, -4, -6, 0]
    assert pool_segments(-x, segments, "last")[0, :5, 0].tolist() == [0, -3, -5, -6, 0]


def test_a_model_cast_to_bf16_still_tells_neighbouring_positions_apart():
    """Positions and frequencies in half precision would make 1,000 and 1,001 one."""
    table = RotaryTable(64, 1e4).to(torch.bfloat16)
    cos, sin = table(torch.tensor([[1000, 1001, 4096]]))
    angles = torch.tensor([1000.0, 1001.0, 4096.0])
    assert torch.allclose(cos[0, :, 0, 0], angles.cos(), atol=1e-3)
    assert torch.allclose(sin[0, :, 0, 32], angles.sin(), atol=1e-3)


def test_hand_written_gradients_refuse_to_be_differentiated_again():
    """Their own gradients were never written: a silent wrong number would be worse than an error."""
    norm, x = RMSNorm(4).double(), draw(2, 4).requires_grad_()
    (grad,) = torch.autograd.grad(norm(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
