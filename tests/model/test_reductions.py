"""What LST reduces to (docs/patching.md, "What LST reduces to"): closed forms around the baseline's own transformer, in fp64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lst.config import Patching, arm_config
from lst.model import Batch, make_batch
from lst.model.lst import Baseline
from tests.model.sequences import OPTIONS, batch_of, batch_of_rows, config_of, flat_document, network_of

TOLERANCE = {"rtol": 0, "atol": 1e-12}


def baseline_around(transformer: nn.Module, embedding_VG: Tensor, head_VG: Tensor | None = None) -> Baseline:
    """A baseline with these weights, which are a function of an LST network's."""
    model = network_of(config_of("baseline"))
    model.global_transformer.load_state_dict(transformer.state_dict())
    with torch.no_grad():
        model.embedding.weight.copy_(embedding_VG)
        if head_VG is not None:
            model.head.weight.copy_(head_VG)
    return model


@pytest.mark.parametrize("option", [name for name, given in OPTIONS.items() if given.get("local_text") is False])
def test_on_text_alone_lst_without_local_text_is_a_plain_transformer(option: str) -> None:
    """embedding x text_to_global^T, the global transformer with its final norm, head x text_from_global; no local norm."""
    config = config_of("lst_static", option)
    model = network_of(config)
    plain = baseline_around(
        model.global_transformer,
        model.embedding.weight @ model.encoder.text_to_global.weight.T,
        model.head.weight @ model.decoder.text_from_global.weight,
    )
    batch = batch_of_rows([[flat_document(1, [("text", n)]) for n in lengths] for lengths in ((7, 3), (14,), (1, 1))], config)
    real = batch.doc_BT >= 0
    torch.testing.assert_close(model(batch)[real], plain(batch)[real], **TOLERANCE)
    # Text before any speech is such a text, whatever follows.
    flat = flat_document(2, [("text", 6), ("speech", 8), ("text", 3)])
    mixed, tokens = batch_of([flat], config), batch_of([flat], config_of("baseline"))
    difference_T = (model(mixed)[0] - plain(tokens)[0]).abs().amax(-1)
    assert difference_T[:8].max() < 1e-12
    assert difference_T[9:].min() > 1e-3


def silence_local_layers(model: nn.Module) -> None:
    """Encoder and decoder layers add nothing; the reads between tokens and units stay."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("encoder.layers", "decoder.layers")) and name.endswith("to_out.weight"):
                parameter.zero_()


@pytest.mark.parametrize("arm", ["lst_static", "lst_aligned"])
@pytest.mark.parametrize("pooling", ["max", "mean", "last"])
def test_with_units_of_one_token_lst_is_the_baselines_transformer_over_a_remade_embedding(arm: str, pooling: str) -> None:
    """z = G(P(Q e + O V norm(e))) and logits = head(norm(e + sum over decoder layers of O_l V_l z)), e the embedding."""
    sizes: dict[str, Any] = {"queries_per_patch": 1, "cross_attention": "preceding", "pooling": pooling}
    config = arm_config(
        arm,
        size="tiny",
        model={"text_vocab": 40, "speech_vocab": 30, "global_stack": {"heads": 2}, "decoder": {"layers": 2}} | sizes,
        patching={"patch_size": 1},
    )
    model = network_of(config)
    silence_local_layers(model)
    e, d = model.encoder, model.decoder
    table_VE = model.embedding.weight
    _, value_VE = e.to_key_value(e.token_norm(table_VE)).chunk(2, dim=-1)
    plain = baseline_around(model.global_transformer, e.to_global(e.to_queries(table_VE) + e.to_out(value_VE)))

    speech = [3, 1, 4, 1, 5, 9, 2, 6]
    words = [(i, i) for i in range(len(speech))]
    kind = Patching.ALIGNED if arm == "lst_aligned" else Patching.STATIC
    batch = make_batch([[("text", [5, 6]), ("speech", speech, words), ("text", [7])], [("text", [3])]], config, kind=kind)
    assert batch.units == batch.ids_BT.shape[1]
    z_BTG = plain.hidden(batch)
    h_BTE = model.embedding(batch.ids_BT)
    for cross in d.cross:
        h_BTE = h_BTE + cross.to_out(cross.to_key_value(z_BTG).chunk(2, dim=-1)[1])
    real = batch.doc_BT >= 0
    torch.testing.assert_close(model(batch)[real], model.head(d.norm(h_BTE))[real], **TOLERANCE)


@pytest.mark.parametrize(("share", "other"), [(0.0, "lst_static"), (1.0, "lst_aligned")])
def test_mixed_at_probability_0_and_1_gives_the_logits_of_static_and_aligned(share: float, other: str) -> None:
    """Equal seeds give equal weights; the patching that is drawn is the other arm's (tests/data/test_stream.py)."""
    mixed, alone = config_of("lst_mixed", mixed_aligned_share=share), config_of(other)
    assert mixed.patching.aligned_probability(0.5) == share
    document = [("text", [5, 6]), ("speech", [4, 9, 2, 7, 1, 8, 8, 3, 5], [(2, 4), (6, 7)]), ("text", [7])]
    batches: list[Batch] = [
        make_batch([document], mixed, kind=Patching.ALIGNED if share else Patching.STATIC),
        make_batch([document], alone),
    ]
    first, second = (network_of(config)(batch) for config, batch in zip((mixed, alone), batches, strict=True))
    assert torch.equal(first, second)
