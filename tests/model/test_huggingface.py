"""The baseline as a Hugging Face Llama and back: equal logits both ways, and refusals that name what cannot be taken."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import sentencepiece
import torch
import transformers
from safetensors.torch import load_file, save_file

from lst.config import RunConfig, arm_config
from lst.data.preparing.shard_writer import write_dataset
from lst.data.shards import open_dataset
from lst.data.vocab import Vocabulary
from lst.errors import CheckpointError
from lst.model import build_model, export_checkpoint, make_batch
from lst.model.huggingface import from_llama, read_llama_tensors, to_llama
from tests.data.made_up_pieces import with_pieces
from tests.data.test_text_tokenizers import KINDS as TOKENIZERS

DOCUMENTS = [
    [("text", [12, 7, 30]), ("speech", [3, 3, 9, 31, 7, 7]), ("text", [5])],
    [("speech", [1, 2, 3, 4, 5, 6, 7])],
]
MODEL = {"text_vocab": 60, "speech_vocab": 40}
LLAMA = {"vocab_size": 102, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}


def checkpoint(folder: Path, **model: Any) -> tuple[torch.nn.Module, RunConfig, Path]:
    """An untrained baseline whose gains are no ones, as a checkpoint."""
    config = arm_config("baseline", size="w64", model=MODEL | model)
    network = build_model(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("gain"):
                parameter.uniform_(0.5, 1.5, generator=generator)
    return network, config, export_checkpoint(network, config, folder / "checkpoint")


def llama(folder: Path, **changes: Any) -> Any:
    """A Llama of transformers' own making, saved."""
    torch.manual_seed(7)
    config = transformers.LlamaConfig(**(LLAMA | {"rms_norm_eps": 1e-5, "max_position_embeddings": 64} | changes))
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    return model


def assert_equal_logits(ours: torch.nn.Module, theirs: Any, config: RunConfig) -> None:
    for document in DOCUMENTS:
        batch = make_batch([document], config)
        with torch.no_grad():
            torch.testing.assert_close(ours(batch), theirs(batch.ids_BT).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_an_exported_baseline_has_equal_logits_in_transformers(tmp_path: Path, tied: bool) -> None:
    ours, config, saved = checkpoint(tmp_path, tied_head=tied)
    folder = to_llama(saved, tmp_path / "llama")
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert {key: report[key] for key in ("missing_keys", "unexpected_keys") if report[key]} == {}
    assert theirs.dtype == torch.float32
    assert_equal_logits(ours, theirs.eval(), config)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
def test_a_llama_of_transformers_has_equal_logits_here(tmp_path: Path, tied: bool, theta: float) -> None:
    theirs = llama(tmp_path, tie_word_embeddings=tied, rope_parameters={"rope_type": "default", "rope_theta": theta})
    ours, config = from_llama(tmp_path, speech_vocab=40)
    assert (config.model.text_vocab, config.model.rope_theta, config.model.tied_head) == (60, theta, tied)
    assert_equal_logits(ours, theirs, config)


def test_a_round_trip_gives_back_configuration_and_every_bit(tmp_path: Path) -> None:
    ours, config, saved = checkpoint(tmp_path)
    back, back_config = from_llama(to_llama(saved, tmp_path / "llama"))
    assert back_config == config
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), back.state_dict().values(), strict=True))


def test_a_folder_that_transformers_saved_again_can_be_read(tmp_path: Path) -> None:
    ours, config, saved = checkpoint(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(to_llama(saved, tmp_path / "llama"))
    theirs.save_pretrained(tmp_path / "again", max_shard_size="20KB")
    assert len(list((tmp_path / "again").glob("*.safetensors"))) > 1
    back, _ = from_llama(tmp_path / "again", speech_vocab=40)
    assert_equal_logits(back, theirs.eval(), config)
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), back.state_dict().values(), strict=True))


def test_transformers_continues_as_we_would(tmp_path: Path) -> None:
    """Greedy continuation by transformers' cached generation equals the argmax of our full forward, token by token."""
    ours, config, saved = checkpoint(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(to_llama(saved, tmp_path / "llama")).eval()
    prompt = make_batch([DOCUMENTS[0]], config).ids_BT
    ids = theirs.generate(prompt, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert ids.shape[1] == prompt.shape[1] + 12
    batch = one_row(ids, config)
    with torch.no_grad():
        best = ours(batch)[0].argmax(-1)
    assert torch.equal(best[prompt.shape[1] - 1 : -1], ids[0, prompt.shape[1] :])


def one_row(ids: torch.Tensor, config: RunConfig) -> Any:
    """A batch of these very ids as one document of the baseline."""
    base = make_batch([[("text", [3] * (ids.shape[1] - 2))]], config)
    assert base.ids_BT.shape == ids.shape
    return dataclasses.replace(base, ids_BT=ids)


@pytest.mark.parametrize(("arm", "name"), [("baseline", "<|speech_{}|>"), ("bpe", "<|speech_piece_{}|>")])
def test_the_data_sets_tokenizer_goes_with_the_weights(tmp_path: Path, toy_dataset: Path, arm: str, name: str) -> None:
    dataset = open_dataset(toy_dataset)
    sections = with_pieces(arm, {"text_vocab": dataset.text_vocab, "speech_vocab": dataset.speech_vocab})
    sections["data"] = {"data_id": dataset.data_id} | sections.get("data", {})
    config = arm_config(arm, execution={"data_path": str(toy_dataset)}, **sections)
    folder = to_llama(export_checkpoint(build_model(config), config, tmp_path / "checkpoint"), tmp_path / "llama")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = dataset.text["text"][0].as_py()
    assert tokenizer.encode(text) == [1, *dataset.tokenizer.encode(text)]
    batch = make_batch([[("text", dataset.tokenizer.encode(text)), ("speech", [3, 0, 1, 2, 3, 4])]], config)
    ids, vocabulary = batch.ids_BT[0].tolist(), Vocabulary.of(config.model)
    speech = [name.format(i - vocabulary.text) for i in ids[ids.index(vocabulary.speech_marker) + 1 :]]
    assert tokenizer.encode(f"<|text|> {text}<|speech|>{''.join(speech)}") == ids
    stored = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    pieces = [stored.id_to_piece(i) for i in range(vocabulary.text)]
    names = [*pieces, *(name.format(i) for i in range(vocabulary.speech_size)), "<|text|>", "<|speech|>"]
    assert tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))) == names
    readme = (folder / "README.md").read_text()
    assert f"added tokens `{names[vocabulary.text]}` and so on" in readme
    assert ("Pieces are no speech tokens" in readme) == ("`speech_bpe.model` beside this file" in readme) == (arm == "bpe")
    assert (folder / "speech_bpe.model").is_file() == (arm == "bpe")


@pytest.mark.parametrize("kind", ["llama2", "llama3"])
def test_a_tokenizer_json_goes_with_the_weights(tmp_path: Path, kind: str) -> None:
    (tmp_path / "given.json").write_text(json.dumps(TOKENIZERS[kind]()))
    rows = [{"id": str(i), "book": "", "split": "train", "text": "The cat didn't sit, for 42 minutes."} for i in range(3)]
    write_dataset(tmp_path / "d", {"text": pa.Table.from_pylist(rows)}, tokenizer=tmp_path / "given.json", speech_vocab=40)
    dataset = open_dataset(tmp_path / "d")
    sizes = {"text_vocab": dataset.text_vocab, "speech_vocab": dataset.speech_vocab}
    data = {"data_id": dataset.data_id}
    config = arm_config("baseline", execution={"data_path": str(tmp_path / "d")}, model=sizes, data=data)
    folder = to_llama(export_checkpoint(build_model(config), config, tmp_path / "checkpoint"), tmp_path / "llama")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = rows[0]["text"]
    batch = make_batch([[("text", dataset.tokenizer.encode(text)), ("speech", [3, 0, 1, 39])]], config)
    ids = batch.ids_BT[0].tolist()
    assert tokenizer.encode(f"<|text|>{text}<|speech|><|speech_3|><|speech_0|><|speech_1|><|speech_39|>") == ids
    assert tokenizer.decode(ids[2 : 2 + len(dataset.tokenizer.encode(text))]) == text
    assert len(tokenizer) == Vocabulary.of(config.model).size
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    assert "The text tokenizer is `tokenizer.json`" in (folder / "README.md").read_text()


def test_without_the_data_set_ids_are_said_to_be_raw(tmp_path: Path) -> None:
    _, _, saved = checkpoint(tmp_path)
    folder = to_llama(saved, tmp_path / "llama")
    assert "ids are raw" in (folder / "README.md").read_text()
    assert "| 60 .. 99 | speech tokens 0 .. 39 |" in (folder / "README.md").read_text()
    assert not list(folder.glob("tokenizer*"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "mistral"}, "model_type='mistral'"),
        ({"num_key_value_heads": 2}, "num_key_value_heads=2"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"mlp_bias": True}, "mlp_bias=True"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"rms_norm_eps": 1e-6}, "rms_norm_eps=1e-06"),
        ({"head_dim": 32}, "head_dim=32"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling="),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "rope_parameters="),
        ({"quantization_config": {"bits": 4}}, "quantization_config="),
        ({"vocab_size": 20}, "vocab_size=20"),
        ({"vocab_size": "many"}, "vocab_size='many'"),
        ({"hidden_size": 62}, "head_dim=16"),
        ({"hidden_size": 62, "head_dim": None}, "no shape for the baseline"),
        ({"num_hidden_layers": 2}, "layers.2"),
        ({"num_hidden_layers": 4}, "layers.3"),
        ({"intermediate_size": 100}, "mlp.gate_proj"),
    ],
)
def test_a_llama_that_is_not_ours_is_refused_by_key_and_value(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    llama(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(CheckpointError) as error:
        from_llama(tmp_path, speech_vocab=40)
    assert named in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_and_an_unknown_tensor_are_refused_by_name(tmp_path: Path) -> None:
    llama(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    bias = {"model.layers.1.self_attn.q_proj.bias": torch.zeros(64)}
    save_file(tensors | bias, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layers.1.self_attn.q_proj.bias.* is in no place of the model"):
        from_llama(tmp_path, speech_vocab=40)
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks the tensor 'model.layers.2.mlp.up_proj.weight'"):
        from_llama(tmp_path, speech_vocab=40)


def test_a_folder_that_is_none_or_pickled_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        from_llama(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="cannot be read"):
        from_llama(tmp_path)
    llama(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pickled in pytorch_model.bin"):
        from_llama(tmp_path, speech_vocab=40)


def test_damage_of_a_folder_that_we_wrote_is_found(tmp_path: Path) -> None:
    _, _, saved = checkpoint(tmp_path)
    folder = to_llama(saved, tmp_path / "llama")
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model.safetensors' is damaged"):
        from_llama(folder)
    (folder / "manifest.json").unlink()
    file.write_bytes(data[:-100])
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        from_llama(folder)


def test_an_arm_with_local_modules_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    config = arm_config("lst_static", size="tiny", model=MODEL)
    saved = export_checkpoint(build_model(config), config, tmp_path / "lst")
    with pytest.raises(CheckpointError, match="arm 'lst_static', which has local modules"):
        to_llama(saved, tmp_path / "llama")
    assert [p.name for p in tmp_path.iterdir()] == ["lst"]


def test_nothing_is_written_over(tmp_path: Path) -> None:
    _, _, saved = checkpoint(tmp_path)
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    with pytest.raises(CheckpointError, match="is not empty; give a new or an empty folder"):
        to_llama(saved, saved)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before


def test_shards_are_read_as_one_folder(tmp_path: Path) -> None:
    model = llama(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="50KB")
    one, many = (read_llama_tensors(tmp_path / name) for name in ("one", "many"))
    assert one.keys() == many.keys()
    assert all(torch.equal(one[name], many[name]) for name in one)


def reconfigure(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rope_scaling": "default"}, "has rope_scaling='default'"),
        ({"rope_parameters": None, "rope_theta": 10**400}, "must be a positive number"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings='false', which must be true or false"),
        ({"num_hidden_layers": 10**9}, r"lacks the tensor 'model.layers.3.input_layernorm.weight'"),
        ({"vocab_size": 2**40}, r"'model.embed_tokens.weight' .* promises \(1099511627776, 64\)"),
    ],
)
def test_a_hostile_configuration_is_one_error(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    llama(tmp_path)
    reconfigure(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=named):
        from_llama(tmp_path, speech_vocab=40)


def test_deep_brackets_are_one_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="nested too deeply"):
        from_llama(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="is no index of weights"):
        read_llama_tensors(tmp_path)


EMBEDDING, Q, K = "model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight"
MISSHAPEN = [
    ({EMBEDDING: torch.ones(1, 64)}, EMBEDDING),
    ({EMBEDDING: torch.ones(102, 1)}, EMBEDDING),
    ({Q: torch.ones(74, 64), K: torch.ones(54, 64)}, Q),
    ({Q: torch.ones(64, 63)}, Q),
    ({Q: torch.ones(64)}, Q),
    ({Q: torch.ones(64, 64, dtype=torch.int32)}, "of type I32"),
    ({Q: torch.ones(64, 64).to(torch.float8_e4m3fn)}, "of type F8_E4M3"),
]


@pytest.mark.parametrize(("changed", "named"), MISSHAPEN)
def test_tensors_of_other_shapes_or_types_are_refused_by_name(
    tmp_path: Path, changed: dict[str, torch.Tensor], named: str
) -> None:
    llama(tmp_path)
    save_file(load_file(tmp_path / "model.safetensors") | changed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=named):
        from_llama(tmp_path, speech_vocab=40)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_floats_are_taken_as_fp32(tmp_path: Path, dtype: torch.dtype) -> None:
    llama(tmp_path)
    stored = {name: tensor.to(dtype) for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    save_file(stored, tmp_path / "model.safetensors")
    model, _ = from_llama(tmp_path, speech_vocab=40)
    assert torch.equal(model.state_dict()["embedding.weight"], stored[EMBEDDING].float())
