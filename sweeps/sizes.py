"""The ladder of sizes as a table: `plan-sweep sizes`, and the same text in docs/sizes.md.

Counts come from `lst.flops.parameter_counts` at the paper's vocabulary; shapes from `lst.ladder`. Rungs that are named by
their width are left out: they are meant for tiny vocabularies, where these counts would say nothing.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from lst.config import Arm, ModelConfig
from lst.flops import GROUPS, num_non_embedding_params, num_params, parameter_counts
from lst.ladder import SIZES, BaselineMatch, model_shape, named_count
from sweeps.text import aligned

COUNTED = tuple(size for size in SIZES if named_count(size) is not None or size == "table7_1b")


@dataclass(frozen=True, kw_only=True)
class SizeRow:
    """One rung: shapes, and parameters of both arms."""

    size: str
    layers: int
    dim: int
    heads: int
    ffn_dim: int
    local_dim: int
    local_heads: int
    local_ffn_dim: int
    encoder_layers: int
    decoder_layers: int
    baseline_params: int
    baseline_non_embedding_params: int
    lst_params: int
    lst_non_embedding_params: int
    lst_params_by_group: dict[str, int]
    matched_layers: int  # of the baseline with LST's non-embedding parameters
    matched_ffn_dim: int
    matched_non_embedding_params: int

    @property
    def off(self) -> float | None:
        """How far the count is from the name, as a share; None where the name is no count."""
        named = named_count(self.size)
        return self.baseline_params / named - 1 if named else None


def size_rows() -> list[SizeRow]:
    """All rungs that are named by count, and Table 7's, in the ladder's order."""
    return [_row(size) for size in COUNTED]


def size_json() -> list[dict[str, object]]:
    return [dataclasses.asdict(row) for row in size_rows()]


def size_text() -> str:
    """Three tables: shapes, parameters, and the baseline that is matched to LST's parameters."""
    rows = size_rows()
    head = ["", *["global"] * 4, *["local"] * 5]
    shapes = [["size", "layers", "width", "heads", "ffn", "width", "heads", "ffn", "encoder", "decoder"]]
    for r in rows:
        local = (r.local_dim, r.local_heads, r.local_ffn_dim, r.encoder_layers, r.decoder_layers)
        shapes.append([r.size, *(f"{n:,}" for n in (r.layers, r.dim, r.heads, r.ffn_dim, *local))])
    shapes.insert(0, head)
    totals = [["size", "baseline", "off %", "non-emb.", "LST", "non-emb.", *GROUPS]]
    for r in rows:
        off = "-" if r.off is None else f"{100 * r.off:+.1f}"
        lst = (r.lst_params, r.lst_non_embedding_params, *(r.lst_params_by_group[g] for g in GROUPS))
        line = [r.size, millions(r.baseline_params), off, millions(r.baseline_non_embedding_params)]
        totals.append([*line, *(millions(n) for n in lst)])
    matched = [["size", "layers", "ffn", "non-emb.", "LST's"]]
    for r in rows:
        counts = (r.matched_non_embedding_params, r.lst_non_embedding_params)
        matched.append([r.size, f"{r.matched_layers}", f"{r.matched_ffn_dim:,}", *(millions(n) for n in counts)])
    return "\n\n".join(
        (
            "shapes (encoder, decoder: layers)\n" + aligned(shapes, left={0}),
            "parameters in millions, untied head, 32,000 + 501 + 2 ids (off %: the baseline from its name)\n"
            + aligned(totals, left={0}),
            "the baseline under baseline_match=lst_params (width and heads as above)\n" + aligned(matched, left={0}),
        )
    )


def millions(count: int) -> str:
    """0.0356, 4.36, 39.1, 425.3, 6,945"""
    value = count / 1e6
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def _row(size: str) -> SizeRow:
    baseline, lst = model_shape(size, Arm.BASELINE), model_shape(size, Arm.LST_STATIC)
    matched = model_shape(size, Arm.BASELINE, baseline_match=BaselineMatch.LST_PARAMS)
    return SizeRow(
        size=size,
        **dataclasses.asdict(SIZES[size]),
        **_counts("baseline", baseline),
        **_counts("lst", lst),
        lst_params_by_group=parameter_counts(lst),
        matched_layers=matched.global_stack.layers,
        matched_ffn_dim=matched.global_stack.ffn_dim,
        matched_non_embedding_params=num_non_embedding_params(matched),
    )


def _counts(arm: str, model: ModelConfig) -> dict[str, int]:
    return {f"{arm}_params": num_params(model), f"{arm}_non_embedding_params": num_non_embedding_params(model)}
