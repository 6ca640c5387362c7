"""FLOPs of rows against a count that knows no formula: every weight of the built network times the positions that it meets,
and every pair of written-out masks. Packed documents, ragged patches, windows, every option; and the example of docs/flops.md.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lst.config import Patching, RunConfig, arm_config
from lst.data.interleave import Segment
from lst.data.pack import LocalTokens, PackedBatch, PackedRow, encode_document
from lst.data.vocab import SPEECH, Vocabulary
from lst.flops import KINDS, FlopsBreakdown, forward_flops, training_flops
from lst.model.lst import network
from tests.model.sequences import CASE_IDS, CASES, Flat, config_of, flat_document, packed_row, units_by_hand, visible_by_hand

FLOPS_DOC = Path(__file__).resolve().parents[2] / "docs" / "flops.md"
TEXT = flat_document(3, [("text", 5)])
ROWS: list[list[Flat]] = [[flat_document(1), TEXT, flat_document(2, [("speech", 8)])], [TEXT], [flat_document(4)] * 2]


def seen_tokens(document: list[int], window: int) -> Tensor:
    """bool (T, T): the same or an earlier token of the document, inside the window."""
    doc, step = torch.tensor(document), torch.arange(len(document))
    back = step[:, None] - step
    return (doc[:, None] == doc) & (back >= 0) & ((back < window) if window else True)


def counted_by_hand(config: RunConfig, row: PackedRow, seen_TU: Tensor) -> dict[tuple[str, str], float]:
    """FLOPs of a forward pass by (group, kind); `row` gives ids, documents and units alone, `seen_TU` the closed units."""
    model, k = config.model, config.model.queries_per_patch
    speech = torch.tensor(row.modality == SPEECH)
    local = torch.ones_like(speech) if model.local_text else speech
    units = len(row.unit_doc)
    patches = len(set(row.unit[local.numpy()].tolist()))
    tokens, others = int(local.sum()), int((~local).sum())
    predicted = sum(a == b for a, b in zip(row.doc[:-1], row.doc[1:], strict=True))
    positions = {  # of the parts of a network that are no layer: how many vectors each weight is multiplied with
        "encoder.to_queries": patches, "encoder.to_query": patches * k, "encoder.to_key_value": tokens,
        "encoder.to_out": patches * k, "encoder.to_global": patches, "encoder.text_to_global": others,
        "decoder.cross.to_query": tokens, "decoder.cross.to_key_value": units, "decoder.cross.to_out": tokens,
        "decoder.text_from_global": others, "head": predicted,
    }  # fmt: skip
    cells: Counter[tuple[str, str]] = Counter()
    for name, parameter in network(model).named_parameters(remove_duplicate=False):
        group = {"global_transformer": "global"}.get(name.split(".")[0], name.split(".")[0])
        if parameter.ndim < 2 or "embedding" in name:
            continue
        part = re.sub(r"\.\d+|\.weight", "", name)
        layers = {"encoder.layers": tokens, "decoder.layers": tokens, "global_transformer.layers": units}
        count = positions[part] if part in positions else layers[".".join(part.split(".")[:2])]
        cells[group, "head" if group == "head" else "matmul"] += 2 * parameter.numel() * count
    own = seen_tokens(row.unit_doc.tolist(), 0)
    cells["global", "attention"] = int(own.sum()) * model.global_stack.layers * 4 * model.global_stack.dim
    if model.encoder is not None and model.decoder is not None:
        streams = {s: seen_tokens(row.doc[local.numpy()].tolist(), s.window) for s in (model.encoder, model.decoder)}
        unit = torch.tensor(row.unit)[local]
        read = k * int((unit[:, None] == torch.arange(units)).sum())
        cross = int(seen_TU[local].sum()) if model.cross_attention == "all" else k * int(seen_TU[local].any(1).sum())
        e, d = model.encoder, model.decoder
        cells["encoder", "attention"] = (e.layers * int(streams[e].sum()) + read) * 4 * e.dim
        cells["decoder", "attention"] = d.layers * (int(streams[d].sum()) + cross) * 4 * d.dim
    return {cell: float(value) for cell, value in cells.items() if value}


def nonzero(flops: FlopsBreakdown) -> dict[tuple[str, str], float]:
    return {cell: value for cell, value in flops.cells.items() if value}


@pytest.mark.parametrize(("arm", "option", "patch_size"), CASES, ids=CASE_IDS)
def test_flops_of_a_row_equal_the_count_by_hand_in_every_group_and_kind(arm: str, option: str, patch_size: int) -> None:
    config = config_of(arm, option, patch_size)
    local, total = LocalTokens.of(config.model), Counter[tuple[str, str]]()
    rows = [packed_row(flats, config) for flats in ROWS]
    for flats, row in zip(ROWS, rows, strict=True):
        closed = visible_by_hand(*units_by_hand(flats, config, ends=True))
        expected = counted_by_hand(config, row, closed)  # the baseline and bpe read no closed units
        assert nonzero(forward_flops(config.model, row.counts(local))) == expected
        total.update(expected)
    batch = PackedBatch(rows, local)
    assert nonzero(training_flops(config, batch.counts)) == {cell: 3 * value for cell, value in total.items()}


@pytest.mark.parametrize("option", ["default", "speech_only", "preceding_three", "windows"])
@pytest.mark.parametrize("silence", ["separate", "previous", "next"])
def test_flops_under_aligned_patches_equal_the_count_by_hand(option: str, silence: str) -> None:
    """Nine frames with words at [2, 4] and [6, 7], then text: the drawing of docs/patching.md."""
    config = config_of("lst_aligned", option)
    vocabulary = Vocabulary.of(config.model)
    closes = {"separate": [1, 4, 5, 7, 9], "previous": [1, 5, 9], "next": [4, 7, 9]}[silence]
    words = torch.tensor([[2, 4], [6, 7]]).numpy()
    speech, text = Segment("speech", torch.arange(9).numpy(), words), Segment("text", torch.tensor([5, 6]).numpy())
    document = encode_document([speech, text], vocabulary, Patching.ALIGNED, 3, ends=False, silence=silence)
    row = PackedRow.pack([document], vocabulary, interleaved=True)
    at = [0, 1, *(2 + c for c in closes), 11, 12, 13]  # BOS, <s>, the patches, <t>, two text tokens
    seen_TU = torch.tensor(at) <= torch.arange(14)[:, None]
    expected = counted_by_hand(config, row, seen_TU)
    assert nonzero(forward_flops(config.model, row.counts(LocalTokens.of(config.model)))) == expected


def test_shares_by_kind_and_group_sum_to_the_whole() -> None:
    config = config_of("lst_static")
    flops = training_flops(config, packed_row(ROWS[0], config).counts(LocalTokens.of(config.model)))
    assert set(flops.by_kind) == set(KINDS)
    assert sum(flops.by_kind.values()) == sum(flops.by_group.values()) == flops.total
    assert flops.by_kind["head"] == flops.by_group["head"] > 0


def example(**model: object) -> tuple[RunConfig, PackedRow]:
    """docs/flops.md: BOS <s> a b c d e f g h <t> w in patches of three."""
    stacks = {
        "global_stack": {"layers": 2, "dim": 8, "heads": 1, "ffn_dim": 16},
        "encoder": {"layers": 1, "dim": 4, "heads": 1, "ffn_dim": 8, "window": 4},
        "decoder": {"layers": 1, "dim": 4, "heads": 1, "ffn_dim": 8, "window": 4},
    }
    sizes = {"text_vocab": 50, "speech_vocab": 48, "queries_per_patch": 2}
    config = arm_config("lst_static", size="tiny", model=stacks | sizes | model, patching={"patch_size": 3})
    vocabulary = Vocabulary.of(config.model)
    speech, text = Segment("speech", torch.arange(8).numpy()), Segment("text", torch.tensor([5]).numpy())
    document = encode_document([speech, text], vocabulary, Patching.STATIC, 3, ends=False)
    return config, PackedRow.pack([document], vocabulary, interleaved=True)


def documented(caption: str) -> dict[str, list[float]]:
    """Rows of the first table after `caption`: name -> numbers."""
    table = FLOPS_DOC.read_text().split(caption, 1)[1].split("\n\n")[1]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {name: [float(cell.replace(",", "")) for cell in cells] for name, *cells in rows}


OPTION_COLUMNS = [{}, {"local_text": False}, {"cross_attention": "preceding"}]


def test_the_example_of_the_documents_holds() -> None:
    runs = [example(**option) for option in OPTION_COLUMNS]
    counts = [row.counts(LocalTokens.of(config.model)) for config, row in runs]
    for name, numbers in documented("counts of the example").items():
        assert numbers == [getattr(c, name) for c in counts], name
    flops = [forward_flops(config.model, c) for (config, _), c in zip(runs, counts, strict=True)]
    table = documented("forward FLOPs of the example")
    cells = [("encoder", "matmul"), ("encoder", "attention"), ("global", "matmul"), ("global", "attention")]
    cells += [("decoder", "matmul"), ("decoder", "attention"), ("head", "head")]
    assert table.pop("all") == [f.total for f in flops]
    assert table.pop("training") == [training_flops(config, c).total for (config, _), c in zip(runs, counts, strict=True)]
    assert table == {f"{group}, {kind}": [f.cells[group, kind] for f in flops] for group, kind in cells}
