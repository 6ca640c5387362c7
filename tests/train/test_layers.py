"""How layers are run changes no result: recomputation to the bit, compilation by rounding."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lst.config import ExecutionConfig, RunConfig
from lst.data.shards import open_dataset
from lst.data.stream import Stream
from lst.errors import ConfigError
from lst.model import Batch, build_model
from lst.train.layers import prepare_layers, transformer_layers
from lst.train.losses import LossSums, accumulate_gradients
from tests.train.tiny_run import tiny_config


def one_step(config: RunConfig, data: Path, execution: ExecutionConfig) -> tuple[LossSums, dict[str, torch.Tensor]]:
    packed = Stream(open_dataset(data), config).batch(0)
    model = build_model(config)
    prepare_layers(model, execution)
    losses = LossSums()
    for part in packed.split(400):
        losses += accumulate_gradients(model, Batch.from_packed(part), predicted=int(packed.counts.predicted))
    return losses, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("arm", ["baseline", "lst_static"])
def test_activation_checkpointing_gives_the_same_gradients_to_the_bit(tiny_data: Path, arm: str) -> None:
    config = tiny_config(arm, tiny_data)
    losses, gradients = one_step(config, tiny_data, ExecutionConfig())
    again, recomputed = one_step(config, tiny_data, ExecutionConfig(activation_checkpointing="layers"))
    assert losses == again
    assert gradients.keys() == recomputed.keys()
    assert all(torch.equal(gradients[name], recomputed[name]) for name in gradients)


def test_activation_checkpointing_keeps_less(tiny_data: Path) -> None:
    """Bytes that autograd keeps for the backward pass, all but parameters."""
    config = tiny_config("baseline", tiny_data, model={"global_stack": {"layers": 6, "dim": 64, "heads": 4, "ffn_dim": 128}})
    batch = Batch.from_packed(Stream(open_dataset(tiny_data), config).batch(0))

    def kept(execution: ExecutionConfig) -> int:
        model = build_model(config)
        prepare_layers(model, execution)
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            logits = model(batch)
        assert logits.requires_grad
        return sum(sizes.values())

    assert kept(ExecutionConfig(activation_checkpointing="layers")) < 0.5 * kept(ExecutionConfig())


@pytest.mark.slow
def test_compiled_layers_give_the_same_gradients_to_rounding(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One layer, and its graph as the compiler traces it: generating C++ would take minutes here."""
    seen: list[Any] = []
    compile_ = torch.compile

    def compiled(function: Any, **options: Any) -> Any:
        seen.append(function)
        return compile_(function, backend="eager", **options)

    monkeypatch.setattr(torch, "compile", compiled)
    config = tiny_config("baseline", tiny_data, model={"global_stack": {"layers": 1, "dim": 32, "heads": 2, "ffn_dim": 64}})
    losses, gradients = one_step(config, tiny_data, ExecutionConfig())
    again, others = one_step(config, tiny_data, ExecutionConfig(compile=True, activation_checkpointing="layers"))
    assert len(seen) == len(transformer_layers(build_model(config))) == 1
    assert again.nats == pytest.approx(losses.nats, rel=1e-6)
    for name in gradients:
        torch.testing.assert_close(others[name], gradients[name], rtol=1e-4, atol=1e-6, msg=name)


def test_missing_compiler_is_one_sentence(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setenv("CXX", "nothing++")
    with pytest.raises(ConfigError, match=r"needs a C\+\+ compiler, and there is no 'nothing\+\+'; install one"):
        prepare_layers(build_model(tiny_config("baseline", tiny_data)), ExecutionConfig(compile=True))


def test_choices_of_execution_are_no_part_of_a_runs_identity(tiny_data: Path) -> None:
    plain = tiny_config("baseline", tiny_data)
    execution = {"checkpoint_async": True, "activation_checkpointing": "layers", "compile": True}
    assert tiny_config("baseline", tiny_data, execution=execution).run_id == plain.run_id
    with pytest.raises(ConfigError, match=r"execution.activation_checkpointing='layer' is unknown; did you mean 'layers'"):
        tiny_config("baseline", tiny_data, execution={"activation_checkpointing": "layer"})
