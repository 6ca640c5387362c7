"""A run that starts from a text-only model: what is taken, what stays random, once only, and what is refused."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lst.config import RunConfig
from lst.data.speech_bpe import remember
from lst.errors import CheckpointError, ConfigError
from lst.model import build_model, export_checkpoint, load_checkpoint
from lst.model.huggingface import to_llama
from lst.model.warm_start import copy_rows, warm_start
from lst.records import read_json
from lst.train.__main__ import main
from lst.weight_files import weights_hash
from tests.data.made_up_pieces import made_up_pieces
from tests.train.tiny_run import SPEECH_BPE_VOCAB, SPEECH_VOCAB, TEXT_VOCAB, records, tiny_config, train, write_run


def text_model(data: Path, folder: Path, **sections: Any) -> tuple[Path, RunConfig]:
    """A text-only model, trained for some steps here and saved: its run's folder."""
    mixture = {
        "interleaved_token_share": 0.0,
        "interleaved_sequence_share_static": 0.0,
        "interleaved_sequence_share_aligned": 0.0,
    }
    evaluation = {"heldout_documents": 2, "points": 1, "story_items": 0}
    config = tiny_config("baseline", data, **({"data": mixture, "evaluation": evaluation, "train": {"seed": 5}} | sections))
    run_dir = write_run(folder, config)
    assert main([str(run_dir)]) == 0
    return run_dir, config


@pytest.fixture(scope="module")
def source(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_model(tiny_data, tmp_path_factory.mktemp("source") / "run")[0]


@pytest.fixture(scope="module")
def text_only_llama(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as others publish text-only ones: a Llama folder with the text pieces' rows alone."""
    folder = to_llama(source, tmp_path_factory.mktemp("llama") / "llama")
    for name in ("lst_config.json", "manifest.json"):
        (folder / name).unlink()
    tensors = load_file(folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][:TEXT_VOCAB].contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"vocab_size": TEXT_VOCAB}))
    return folder


def started(arm: str, data: Path, init_path: Path, **sections: Any) -> RunConfig:
    """The tiny configuration that starts from `init_path`'s weights."""
    folder = init_path / "checkpoints" / "final"
    digits = weights_hash(folder if folder.is_dir() else init_path)
    train_section = {"init_from": digits} | sections.pop("train", {})
    execution = {"init_path": str(init_path)} | sections.pop("execution", {})
    return tiny_config(arm, data, train=train_section, execution=execution, **sections)


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed_and_taken(model: torch.nn.Module, config: RunConfig, trained: dict[str, torch.Tensor]) -> tuple[set[str], set[str]]:
    """Names of tensors that the warm start changed, and of those that equal the trained ones."""
    before = weights(model)
    warm_start(model, config)
    after = weights(model)
    taken = {name for name in after if name in trained and torch.equal(after[name], trained[name])}
    return {name for name in after if not torch.equal(after[name], before[name])}, taken


@pytest.mark.parametrize("arm", ["lst_static", "lst_curriculum"])
def test_an_lst_arm_takes_the_global_transformer_alone(tiny_data: Path, source: Path, arm: str) -> None:
    trained = weights(load_checkpoint(source)[0])
    config = started(arm, tiny_data, source)
    changed, taken = changed_and_taken(build_model(config), config, trained)
    assert changed == taken == {name for name in trained if name.startswith("global_transformer.")}


def test_a_baseline_takes_every_row_of_an_equal_vocabulary(tiny_data: Path, source: Path) -> None:
    trained = weights(load_checkpoint(source)[0])
    config = started("baseline", tiny_data, source)
    _, taken = changed_and_taken(build_model(config), config, trained)
    assert taken == set(trained)


def test_a_baseline_takes_the_text_rows_of_a_text_only_llama(tiny_data: Path, source: Path, text_only_llama: Path) -> None:
    trained = weights(load_checkpoint(source)[0])
    config = started("baseline", tiny_data, text_only_llama)
    model = build_model(config)
    before = weights(model)
    record = warm_start(model, config)
    after = weights(model)
    for name in ("embedding.weight", "head.weight"):
        assert torch.equal(after[name][:TEXT_VOCAB], trained[name][:TEXT_VOCAB])
        assert torch.equal(after[name][TEXT_VOCAB:], before[name][TEXT_VOCAB:])
    assert record["rows"] == TEXT_VOCAB
    assert record["random"] == 2 * (SPEECH_VOCAB + 2) * config.model.global_stack.dim
    assert sum(record["loaded"].values()) + record["random"] == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("same_pieces", [True, False])
@pytest.mark.parametrize("form", ["checkpoint", "llama"])
def test_rows_of_speech_pieces_are_taken_from_equal_pieces_alone(
    tiny_data: Path, tmp_path: Path, same_pieces: bool, form: str
) -> None:
    made_up = remember(made_up_pieces(SPEECH_VOCAB, SPEECH_BPE_VOCAB)).id  # as many, others
    pieces = {} if same_pieces else {"data": {"speech_bpe_id": made_up}}
    theirs = tiny_config("bpe", tiny_data, train={"seed": 9}, **pieces)
    folder = export_checkpoint(build_model(theirs), theirs, tmp_path / "theirs")
    folder = to_llama(folder, tmp_path / "llama") if form == "llama" else folder
    config = started("bpe", tiny_data, folder)
    model, trained = build_model(config), build_model(theirs)
    before = weights(model)
    warm_start(model, config)
    for name in ("embedding.weight", "head.weight"):
        equal = (model.state_dict()[name] == trained.state_dict()[name]).all(1)
        assert equal[:TEXT_VOCAB].all()
        assert equal[TEXT_VOCAB:].all() == same_pieces
        assert same_pieces or torch.equal(model.state_dict()[name][TEXT_VOCAB:], before[name][TEXT_VOCAB:])


def test_another_tokenizers_rows_stay_random(tiny_data: Path, text_only_llama: Path) -> None:
    config = started("baseline", tiny_data, text_only_llama, model={"text_vocab": TEXT_VOCAB + 1})
    record = warm_start(build_model(config), config)
    assert set(record["loaded"]) == {"global"}
    assert record["rows"] == 0


def test_a_tied_source_gives_its_embedding_to_the_head(tiny_data: Path, tmp_path: Path) -> None:
    tied = tiny_config("baseline", tiny_data, model={"tied_head": True}, train={"seed": 8})
    saved = export_checkpoint(build_model(tied), tied, tmp_path / "tied")
    config = started("baseline", tiny_data, saved)
    model = build_model(config)
    warm_start(model, config)
    assert torch.equal(model.head.weight, model.embedding.weight)
    assert torch.equal(model.embedding.weight, load_file(saved / "model.safetensors")["embedding.weight"])


def test_a_run_trains_from_a_text_only_model_and_says_so(tiny_data: Path, text_only_llama: Path, tmp_path: Path) -> None:
    config = started("lst_static", tiny_data, text_only_llama)
    result = train(write_run(tmp_path / "run", config))
    assert result.returncode == 0, result.stderr
    assert f"warm start from '{text_only_llama}' ({config.train.init_from}): loaded global" in result.stdout
    ended = read_json(tmp_path / "run" / "exit.json")
    assert ended["warm_start"]["init_from"] == config.train.init_from
    assert set(ended["warm_start"]["loaded"]) == {"global"}
    cold = tiny_config("lst_static", tiny_data)
    train(write_run(tmp_path / "cold", cold))
    assert "warm_start" not in read_json(tmp_path / "cold" / "exit.json")
    first, cold_first = (records(tmp_path / name)["train.jsonl"][0] for name in ("run", "cold"))
    assert first["batch_hash"] == cold_first["batch_hash"]
    assert first["loss"] != cold_first["loss"]


def test_a_resume_does_not_load_the_weights_again(
    tiny_data: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after a checkpoint and resumed with the source gone, the run ends with the same bits as an uninterrupted one."""
    from lst.train import trainer

    copy = export_checkpoint(*load_checkpoint(source), tmp_path / "copy")
    config = started("lst_static", tiny_data, copy)
    whole = write_run(tmp_path / "whole", config)
    assert main([str(whole)]) == 0
    broken = write_run(tmp_path / "broken", config)
    step = trainer.Trainer.train_step

    def stops(self: Any) -> dict[str, Any]:
        if self.state.step == 5:
            self.save()
            raise RuntimeError("killed")
        return step(self)

    monkeypatch.setattr(trainer.Trainer, "train_step", stops)
    assert main([str(broken)]) == 1
    monkeypatch.setattr(trainer.Trainer, "train_step", step)
    for file in copy.iterdir():
        file.unlink()
    assert main([str(broken)]) == 0
    assert records(broken) == records(whole)
    ends = [load_file(run / "checkpoints" / "final" / "model.safetensors") for run in (whole, broken)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert read_json(broken / "exit.json")["warm_start"] == read_json(whole / "exit.json")["warm_start"]


def test_the_start_is_part_of_the_identity_and_its_place_is_not(tiny_data: Path, source: Path) -> None:
    config = started("baseline", tiny_data, source)
    assert config.run_id != tiny_config("baseline", tiny_data).run_id
    assert started("baseline", tiny_data, source, execution={"init_path": "elsewhere"}).run_id == config.run_id


def test_the_hash_follows_the_values_and_not_the_files(source: Path, tmp_path: Path) -> None:
    final = source / "checkpoints" / "final"
    tensors = load_file(final / "model.safetensors")
    names = sorted(tensors)
    save_file({name: tensors[name] for name in names[:5]}, tmp_path / "a.safetensors")
    save_file({name: tensors[name] for name in names[5:]}, tmp_path / "b.safetensors")
    index = {"weight_map": {name: "a.safetensors" if name in names[:5] else "b.safetensors" for name in names}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert weights_hash(tmp_path) == weights_hash(final)
    tensors[names[3]].view(-1)[0] += 1
    save_file({name: tensors[name] for name in names[:5]}, tmp_path / "a.safetensors")
    assert weights_hash(tmp_path) != weights_hash(final)


@pytest.mark.parametrize(
    ("stack", "named"),
    [
        ({"layers": 3}, "global_stack.layers=2"),
        ({"ffn_dim": 96}, "global_stack.ffn_dim=80"),
        ({"heads": 2}, "global_stack.heads=1"),
    ],
)
def test_other_shapes_are_refused_by_number(tiny_data: Path, source: Path, stack: dict[str, int], named: str) -> None:
    config = started("baseline", tiny_data, source, model={"global_stack": stack})
    with pytest.raises(CheckpointError, match=named):
        warm_start(build_model(config), config)


def test_another_theta_is_refused(tiny_data: Path, source: Path) -> None:
    config = started("lst_static", tiny_data, source, model={"rope_theta": 1e4})
    with pytest.raises(CheckpointError, match=r"rope_theta=500000.0, the run has model.rope_theta=10000.0"):
        warm_start(build_model(config), config)


def test_a_missing_tensor_is_refused_by_name_and_nothing_is_copied(
    tiny_data: Path, text_only_llama: Path, tmp_path: Path
) -> None:
    tensors = load_file(text_only_llama / "model.safetensors")
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((text_only_llama / "config.json").read_text())
    config = started("lst_static", tiny_data, tmp_path)
    model = build_model(config)
    before = weights(model)
    with pytest.raises(CheckpointError, match=r"lacks the tensor 'model.layers.1.mlp.down_proj.weight'"):
        warm_start(model, config)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), weights(model).values(), strict=True))


def test_wrong_weights_end_the_run_with_one_sentence(tiny_data: Path, source: Path, tmp_path: Path) -> None:
    config = started("lst_static", tiny_data, source, train={"init_from": "0123456789ab"})
    result = train(write_run(tmp_path / "run", config))
    assert result.returncode == 2
    assert "the run wants 0123456789ab" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
    assert read_json(tmp_path / "run" / "failure.json")["class"] == "config"


def test_a_folder_that_is_none_or_is_not_given_is_refused(tiny_data: Path, source: Path, tmp_path: Path) -> None:
    config = started("lst_static", tiny_data, source, execution={"init_path": ""})
    with pytest.raises(ConfigError, match=r"execution.init_path is empty"):
        warm_start(build_model(config), config)
    config = started("lst_static", tiny_data, source, execution={"init_path": str(tmp_path / "nothing")})
    with pytest.raises(CheckpointError, match="does not exist"):
        warm_start(build_model(config), config)
    config = started("lst_static", tiny_data, source, execution={"init_path": str(tmp_path)})
    with pytest.raises(CheckpointError, match=r"is no checkpoint"):
        warm_start(build_model(config), config)
    with pytest.raises(ConfigError, match=r"^execution.init_path='x' .* train.init_from is empty; .*python -m lst.weights hash"):
        tiny_config("baseline", tiny_data, execution={"init_path": "x"})
    with pytest.raises(ConfigError, match=r"train.init_from='text-model' is no content hash"):
        tiny_config("baseline", tiny_data, train={"init_from": "text-model"})


def copy_in_ranks(rank: int, port: int) -> None:
    """One of two processes that share a parameter by rows: 3 of 5 rows are copied into it, then all of them."""
    import torch.distributed as dist
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    before, found = torch.zeros(5, 2), torch.arange(10.0).reshape(5, 2)
    target = distribute_tensor(before, mesh, [Shard(0)])
    with torch.no_grad():
        copy_rows(target, found, 3)
        expected = torch.cat([found[:3], before[3:]])
        assert torch.equal(target.full_tensor(), expected)
        copy_rows(target, found, 5)
        assert torch.equal(target.full_tensor(), found)
    dist.destroy_process_group()


def test_rows_are_copied_into_a_parameter_that_two_processes_share() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(copy_in_ranks, args=(port,), nprocs=2)


@pytest.mark.parametrize("kind", ["one row", "one column", "q for k", "flat", "int32", "leftover"])
def test_a_llama_that_is_not_its_configurations_changes_nothing(
    tiny_data: Path, text_only_llama: Path, tmp_path: Path, kind: str
) -> None:
    embedding, bias = "model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.bias"
    q, k = (f"model.layers.0.self_attn.{name}_proj.weight" for name in "qk")
    tensors = load_file(text_only_llama / "model.safetensors")
    dim = tensors[q].shape[0]
    changed, named = {
        "one row": ({embedding: torch.ones(1, dim)}, embedding),
        "one column": ({embedding: torch.ones(TEXT_VOCAB, 1)}, embedding),
        "q for k": ({q: torch.ones(dim + 10, dim), k: torch.ones(dim - 10, dim)}, q),
        "flat": ({q: torch.ones(dim)}, q),
        "int32": ({q: tensors[q].int()}, "of type I32"),
        "leftover": ({bias: torch.ones(dim)}, f"{bias}' .* is in no place of the model"),
    }[kind]
    save_file(tensors | changed, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((text_only_llama / "config.json").read_text())
    config = started("baseline", tiny_data, tmp_path)
    model = build_model(config)
    before = weights(model)
    with pytest.raises(CheckpointError, match=named):
        warm_start(model, config)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), weights(model).values(), strict=True))
