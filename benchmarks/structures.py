"""The attention structures of the patched arms against plain ways of computing the same, forward and backward.

    python -m benchmarks.structures [--threads 1] [--rows 4] [--length 4096] [--compiled]

Four structures at width 256 and 4 heads: a patch (1 to 10 tokens) reads its own tokens; a window of 512 with document
boundaries; a token reads all earlier units (patches of 4); a token reads the preceding unit alone (4 keys). "dense" is torch's
fused attention under a written-out mask, and the measure of the ratios. Each way's output is checked against dense first.
--compiled adds the best of torch's compiler on the plain ways (needs a C++ compiler and half a minute).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.measure import machine, take_turns
from lst.model import blocked
from lst.model.intervals import Intervals, causal_intervals, visible_intervals
from lst.model.segments import Segments, read_one_unit, read_own_tokens

E, H, WINDOW, PATCH, KEYS = 256, 4, 512, 4, 4
Way = Callable[..., Tensor]


def heads(x_BTE: Tensor) -> Tensor:
    return x_BTE.unflatten(-1, (H, -1)).transpose(1, 2)


def dense(q_BTE: Tensor, k_BSE: Tensor, v_BSE: Tensor, mask_B1TS: Tensor) -> Tensor:
    out = F.scaled_dot_product_attention(heads(q_BTE), heads(k_BSE), heads(v_BSE), attn_mask=mask_B1TS)
    return out.transpose(1, 2).flatten(2)


def ours(q_BTE: Tensor, k_BSE: Tensor, v_BSE: Tensor, seen: Intervals) -> Tensor:
    q, k, v = (x.unflatten(-1, (H, -1)) for x in (q_BTE, k_BSE, v_BSE))
    return blocked.cross_attention(q, k, v, seen).flatten(2)


def ragged_units(rows: int, length: int) -> tuple[Tensor, int]:
    """Units of 1 to 10 tokens, evenly drawn."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(1, 11, (rows, length), generator=generator)
    ends = drawn.cumsum(1).clamp(max=length)
    unit_BT = torch.searchsorted(ends, torch.arange(length).expand(rows, -1).contiguous(), right=True)
    return unit_BT, int(unit_BT.max()) + 1


def own_tokens(rows: int, length: int) -> tuple[list[Tensor], dict[str, Way]]:
    unit_BT, units = ragged_units(rows, length)
    segments = Segments.of(unit_BT, units)
    own = unit_BT[:, None, :] == torch.arange(units)[None, :, None]
    mask = (own | ~own.any(-1, keepdim=True))[:, None]
    flat_N = (unit_BT + torch.arange(rows)[:, None] * units).flatten()

    def scatter(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Softmax by scatter, under autograd."""
        q_NHD = q.flatten(0, 1).index_select(0, flat_N).unflatten(1, (H, -1))
        k_NHD, v_NHD = (x.flatten(0, 1).unflatten(1, (H, -1)) for x in (k, v))
        score_NH = (q_NHD * k_NHD).sum(-1) / math.sqrt(E // H)
        index_NH = flat_N[:, None].expand_as(score_NH)
        peak_SH = score_NH.new_zeros(rows * units, H).scatter_reduce(0, index_NH, score_NH.detach(), "amax", include_self=False)
        weight_NH = (score_NH - peak_SH.index_select(0, flat_N)).exp()
        total_SH = score_NH.new_zeros(rows * units, H).index_add(0, flat_N, weight_NH)
        share_NH = weight_NH / total_SH.index_select(0, flat_N)
        out_SHD = v.new_zeros(rows * units, H, E // H).index_add(0, flat_N, share_NH[..., None] * v_NHD)
        return out_SHD.flatten(1).unflatten(0, (rows, units))

    def this(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return read_own_tokens(q[:, :, None], k, v, segments, H)[:, :, 0]

    real = own.any(-1)[..., None]
    ways: dict[str, Way] = {"dense": lambda q, k, v: dense(q, k, v, mask) * real, "scatter": scatter, "lst-scaling": this}
    return [torch.randn(rows, n, E) for n in (units, length, length)], ways


def window(rows: int, length: int) -> tuple[list[Tensor], dict[str, Way]]:
    generator = torch.Generator().manual_seed(0)
    begins = torch.rand(rows, length, generator=generator) < 1 / 1500
    begins[:, 0] = True
    step = torch.arange(length)
    position = step - torch.where(begins, step, 0).cummax(1).values
    seen = causal_intervals(position, (length,) * rows, window=WINDOW)
    mask = seen.mask_B1TS
    ways: dict[str, Way] = {
        "dense": lambda q, k, v: dense(q, k, v, mask),
        "lst-scaling": lambda q, k, v: ours(q, k, v, seen),
    }
    return [torch.randn(rows, length, E) for _ in range(3)], ways


def earlier_units(rows: int, length: int) -> tuple[list[Tensor], dict[str, Way]]:
    units = length // PATCH
    visible = (torch.arange(length) // PATCH + 1).expand(rows, -1)
    seen = visible_intervals(visible, torch.zeros_like(visible), units, (length,) * rows)
    mask = seen.mask_B1TS

    def chunks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """512 queries at a time, on the keys up to the last that any of them sees."""
        parts = []
        for start in range(0, length, 512):
            last = (start + 511) // PATCH + 1
            parts.append(dense(q[:, start : start + 512], k[:, :last], v[:, :last], mask[:, :, start : start + 512, :last]))
        return torch.cat(parts, 1)

    ways: dict[str, Way] = {
        "dense": lambda q, k, v: dense(q, k, v, mask),
        "chunks": chunks,
        "lst-scaling": lambda q, k, v: ours(q, k, v, seen),
    }
    return [torch.randn(rows, n, E) for n in (length, units, units)], ways


def preceding_unit(rows: int, length: int) -> tuple[list[Tensor], dict[str, Way]]:
    units = length // PATCH
    unit_BT = (torch.arange(length) // PATCH).expand(rows, -1)
    mask = (unit_BT[..., None] == torch.arange(units)).repeat_interleave(KEYS, dim=2)[:, None]
    flat_N = (unit_BT + torch.arange(rows)[:, None] * units).flatten()

    def gather(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k_NKHD, v_NKHD = (x.reshape(rows * units, KEYS * E).index_select(0, flat_N).view(-1, KEYS, H, E // H) for x in (k, v))
        score_NKH = (q.reshape(-1, 1, H, E // H) * k_NKHD).sum(-1) / math.sqrt(E // H)
        return (torch.softmax(score_NKH, 1)[..., None] * v_NKHD).sum(1).view(rows, length, E)

    def this(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return read_one_unit(q, k.unflatten(1, (units, KEYS)), v.unflatten(1, (units, KEYS)), unit_BT, H)

    ways: dict[str, Way] = {"dense": lambda q, k, v: dense(q, k, v, mask), "gather": gather, "lst-scaling": this}
    return [torch.randn(rows, n, E) for n in (length, units * KEYS, units * KEYS)], ways


STRUCTURES = {
    "a patch reads its own tokens": own_tokens,
    "window of 512 in documents": window,
    "a token reads all earlier units": earlier_units,
    "a token reads the preceding unit": preceding_unit,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"threads": 1, "rows": 4, "length": 4096, "rounds": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--compiled", action="store_true", help="add torch's compiler on the plain ways")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(machine(), f"{options.threads} thread(s), {options.rows} x {options.length} tokens, fp32")
    for title, make in STRUCTURES.items():
        tensors, ways = make(options.rows, options.length)
        if options.compiled:
            ways |= {f"{n}, compiled": torch.compile(ways[n], dynamic=True) for n in ("scatter", "gather") if n in ways}
        for x in tensors:
            x.requires_grad_()
        expected = ways["dense"](*tensors).detach()
        grad = torch.randn_like(expected)

        def run(way: Way, tensors: list[Tensor] = tensors, grad: Tensor = grad) -> None:
            torch.autograd.grad(way(*tensors), tensors, grad)

        for name, way in ways.items():
            error = float((way(*tensors).detach() - expected).abs().max())
            assert error < 1e-4, f"{name} of '{title}' differs from dense by {error}"
        timing = take_turns({name: lambda way=way: run(way) for name, way in ways.items()}, rounds=options.rounds, warm_up=1)
        print(title)
        for name in ways:
            speed = options.rows * options.length / timing.best(name) / 1e3
            print(f"    {name:20} {speed:9,.0f} thousand tokens/s   {timing.ratio(name, 'dense')[0]:7.1f} x dense", flush=True)


if __name__ == "__main__":
    main()
