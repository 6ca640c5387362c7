"""What the correctness tests share: documents, networks of every arm and option, and who may read what by definition.

A document is a flat list of (modality, token), so that a test may change, cut or continue it anywhere; segments, markers and
unit boundaries are made anew for each changed one. What may be read is worked out here position by position from the rule of
docs/patching.md, never from `visible_BT`, so that a wrong vector cannot excuse itself.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lst.config import Patching, RunConfig, arm_config
from lst.data.interleave import Segment
from lst.data.pack import EncodedDocument, PackedBatch, PackedRow, encode_document
from lst.data.speech_bpe import run_pieces
from lst.data.vocab import Vocabulary
from lst.model import Batch, build_model, make_batch
from tests.data.made_up_pieces import with_pieces

TEXT_VOCAB, SPEECH_VOCAB = 40, 30
Flat = list[tuple[str, int]]

SPEECH_ONLY = {"local_text": False}
PRECEDING = {"cross_attention": "preceding"}
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "mean": {"pooling": "mean"},
    "last": {"pooling": "last"},
    "one_query": {"queries_per_patch": 1},
    "three_queries": {"queries_per_patch": 3},
    "own_embedding": {"decoder_input": "embedding"},
    "both_inputs": {"decoder_input": "both"},
    "tied": {"tied_head": True},
    "preceding": PRECEDING,
    "preceding_three": PRECEDING | {"queries_per_patch": 3, "pooling": "mean"},
    "speech_only": SPEECH_ONLY,
    "speech_only_preceding": SPEECH_ONLY | PRECEDING | {"queries_per_patch": 1, "decoder_input": "both", "pooling": "last"},
    "windows": {"encoder": {"window": 5}, "decoder": {"window": 4}},
    "speech_only_windows": SPEECH_ONLY | {"encoder": {"window": 5}, "decoder": {"window": 4}, "decoder_input": "embedding"},
}
LONG_WINDOWS = {"encoder": {"window": 40}, "decoder": {"window": 24}}  # for rows of hundreds of tokens
LONG_OPTIONS = {"windows": LONG_WINDOWS, "speech_only_windows": OPTIONS["speech_only_windows"] | LONG_WINDOWS}
LST = [("lst_static", name, 3) for name in OPTIONS]
CASES = [
    ("baseline", "default", 3),
    ("baseline", "tied", 3),
    ("bpe", "default", 3),
    *LST,
    *[("lst_static", name, patch) for name in ("default", "preceding", "speech_only") for patch in (1, 4)],
    *[(arm, name, 3) for arm in ("lst_mixed", "lst_curriculum") for name in ("default", "speech_only_preceding")],
]
CASE_IDS = [f"{arm}-{name}-{patch}" for arm, name, patch in CASES]


def config_of(arm: str, option: str = "default", patch_size: int = 3, *, long: bool = False, **patching: Any) -> RunConfig:
    """A tiny run with two heads and two decoder layers."""
    model: dict[str, Any] = {"text_vocab": TEXT_VOCAB, "speech_vocab": SPEECH_VOCAB, "global_stack": {"heads": 2}}
    given = dict((OPTIONS | LONG_OPTIONS if long else OPTIONS)[option])
    if arm in ("baseline", "bpe"):
        model |= given
    else:
        for stack, shape in (("encoder", {"heads": 2}), ("decoder", {"heads": 2, "layers": 2})):
            model[stack] = shape | given.pop(stack, {})
        model |= given
    return arm_config(arm, size="tiny", patching={"patch_size": patch_size, **patching}, **with_pieces(arm, model))


def network_of(config: RunConfig) -> nn.Module:
    """The network in fp64, its gains drawn (ones would hide a norm that is left out)."""
    model = build_model(config).double()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gain"):
                parameter.uniform_(0.5, 1.5, generator=generator)
    return model


def flat_document(seed: int, spans: Sequence[tuple[str, int]] | None = None) -> Flat:
    """Text and speech spans of ragged lengths: full patches, patches of one and two left over, switches both ways."""
    rng = random.Random(seed)
    ragged = [("text", 2), ("speech", 7), ("text", 1), ("speech", 3), ("text", 3), ("speech", 5), ("text", 1), ("speech", 6)]
    flat, speech = [], 0
    for modality, length in spans or ragged:
        for _ in range(length):
            speech += rng.choice((0, 1, 1, 2, 7))  # as in the sequences of made_up_pieces, so that arm bpe finds pieces
            flat.append((modality, 3 + speech % 27 if modality == "speech" else rng.randrange(3, 30)))
    return flat


def altered(flat: Flat) -> Flat:
    """Other tokens of the same modalities."""
    return [(modality, 3 + (token + 10) % 27) for modality, token in flat]


def segments(flat: Flat) -> list[tuple[str, list[int]]]:
    return [(modality, [token for _, token in run]) for modality, run in groupby(flat, key=lambda item: item[0])]


def batch_of(flats: Sequence[Flat], config: RunConfig, **padding: int) -> Batch:
    """One document a row."""
    return make_batch([segments(flat) for flat in flats], config, **padding)


def batch_of_rows(rows: Sequence[Sequence[Flat]], config: RunConfig, **padding: int) -> Batch:
    """Several documents a row, each with EOS."""
    return Batch.from_packed(PackedBatch([packed_row(row, config) for row in rows]), **padding)


def packed_row(flats: Sequence[Flat], config: RunConfig) -> PackedRow:
    return PackedRow.pack([encoded(flat, config) for flat in flats], Vocabulary.of(config.model), interleaved=True)


def encoded(flat: Flat, config: RunConfig) -> EncodedDocument:
    options, vocabulary, pieces = config.patching, Vocabulary.of(config.model), run_pieces(config)
    parts = [Segment(modality, np.array(tokens)) for modality, tokens in segments(flat)]
    document = pieces.encode_document(parts) if pieces else parts
    return encode_document(document, vocabulary, options.evaluation_kind, options.patch_size, ends=True)


def units_by_hand(flats: Sequence[Flat], config: RunConfig, *, ends: bool) -> tuple[list[int], list[int], list[int]]:
    """For documents of one row: each token's unit and document, and the position at which each unit closes."""
    patch = 1 if config.patching.kind is Patching.TOKEN else config.patching.patch_size
    unit: list[int] = []
    document: list[int] = []
    closes: list[int] = []

    def add(tokens: int, closes_late: bool = False) -> None:
        unit.extend([len(closes)] * tokens)
        closes.append(len(unit) - 1 + closes_late)

    for number, flat in enumerate(flats):
        add(1)
        for modality, tokens in segments(flat):
            add(1)
            size = patch if modality == "speech" else 1
            for start in range(0, len(tokens), size):
                add(min(size, len(tokens) - start), closes_late=start + size > len(tokens))
        if ends:
            add(1)
        document.extend([number] * (len(unit) - len(document)))
    return unit, document, closes


def visible_by_hand(unit: list[int], document: list[int], closes: list[int]) -> Tensor:
    """bool (T, U): the units of its document that are closed at each token (DESIGN rule 2)."""
    owner_U = torch.zeros(len(closes), dtype=torch.long).index_copy(0, torch.tensor(unit), torch.tensor(document))
    closed_TU = torch.tensor(closes) <= torch.arange(len(unit))[:, None]
    return closed_TU & (owner_U == torch.tensor(document)[:, None])


def embeddings(model: nn.Module) -> list[nn.Embedding]:
    return [module for module in model.modules() if isinstance(module, nn.Embedding)]


def reach(model: nn.Module, batch: Batch, position_B: Sequence[int]) -> Tensor:
    """(B, T): how strongly row b's logits at `position_B[b]` depend on the embedding of each of the row's tokens.

    The largest absolute gradient of a random projection of these logits; exactly zero where there is no way at all.
    """
    inputs: list[Tensor] = []
    hooks = [
        e.register_forward_hook(lambda _, __, out: inputs.append(out.detach().requires_grad_()) or inputs[-1])
        for e in embeddings(model)
    ]
    try:
        logits_BTV = model(batch)
    finally:
        for hook in hooks:
            hook.remove()
    rows = torch.arange(len(position_B))
    along_V = torch.randn(logits_BTV.shape[-1], dtype=logits_BTV.dtype, generator=torch.Generator().manual_seed(6))
    total = (logits_BTV[rows, torch.tensor(position_B)] @ along_V).sum()
    gradients = torch.autograd.grad(total, inputs, allow_unused=True)
    return torch.stack([g.abs().amax(-1) for g in gradients if g is not None]).amax(0)


def repeat_rows(batch: Batch, times: int) -> Batch:
    """A batch of one row, `times` times."""
    tensors = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    repeated = {n: v.expand(times, -1).clone() for n, v in tensors.items() if isinstance(v, Tensor)}
    return dataclasses.replace(batch, tokens=batch.tokens * times, row_units=batch.row_units * times, **repeated)


def cut_decoder_stream(model: nn.Module) -> None:
    """What the decoder knows of tokens comes through the global transformer alone: its own stream is constant."""
    model.decoder.register_forward_pre_hook(lambda _, args: (torch.ones_like(args[0]), *args[1:]))


def cut_self_attention(*modules: nn.Module) -> None:
    """Positions exchange nothing inside these modules."""
    with torch.no_grad():
        for module in modules:
            for name, parameter in module.named_parameters():
                if name.endswith("attention.to_out.weight"):
                    parameter.zero_()


Mutation = Callable[[Batch], Batch]


def shown_at_own_end(batch: Batch) -> Batch:
    """A wrong vector: each patch is seen at its last token, though nobody knows yet that a cut one ends there."""
    unit_BT = batch.unit_BT
    last_BT = torch.ones_like(unit_BT, dtype=torch.bool)
    last_BT[:, :-1] = unit_BT[:, 1:] != unit_BT[:, :-1]
    visible_BT = (unit_BT + last_BT).where(batch.doc_BT >= 0, 0)
    return dataclasses.replace(batch, visible_BT=visible_BT)


def shown_strictly_later(batch: Batch) -> Batch:
    """A wrong vector: a token sees the units before its own (and the document's first one), as strict masks have it."""
    rows_B1 = torch.arange(len(batch.tokens))[:, None]
    first_BT = batch.unit_BT.clamp(max=batch.units - 1)
    first_BT = first_BT - batch.unit_position_BU[rows_B1, first_BT]
    visible_BT = torch.maximum(batch.unit_BT, first_BT + 1).where(batch.doc_BT >= 0, 0)
    return dataclasses.replace(batch, visible_BT=visible_BT)
