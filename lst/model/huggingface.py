"""The baseline arm (and `bpe`, its network over pieces) as a Hugging Face LlamaForCausalLM folder, and back: equal logits.

Writing needs no transformers.

    to_llama("study/runs/0123456789ab", "my-llama")
    model, config = from_llama("my-llama")

Both networks are pre-norm decoders with RMS norm, rotary positions (first half of a head paired with the second) and SwiGLU;
they differ in names and in what is fused: our query-key-value and gate-value matrices are theirs on top of each other. Equal
logits hold for one document a row: Llama attends to everything before, our packed rows do not look across documents.

A folder that `to_llama` wrote holds `lst_config.json` (the run's configuration) and a manifest of checksums beside Llama's own
files. Not here: LST arms, which no Llama can hold; starting a run from such weights (lst.model.warm_start).
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lst.config import ARM_PATCHING, Arm, ModelConfig, PatchingConfig, RunConfig, StackConfig
from lst.data.vocab import BOS, EOS, Vocabulary
from lst.errors import CheckpointError, ConfigError, LstError
from lst.model.export import (
    CONFIG,
    MANIFEST,
    copy_tensors,
    load_checkpoint,
    model_tensors,
    new_folder,
    read_pieces,
    read_tensors,
    seal_folder,
    verify_folder,
    write_file,
    write_tensors,
)
from lst.model.llama_card import tokenizer_files
from lst.plain import to_dict
from lst.weight_files import FLOATS, MODEL, checkpoint_folder, parse_json, require_folder, stored_tensors, weight_files

if TYPE_CHECKING:
    import torch
    from torch import nn

LST_CONFIG = "lst_config.json"
NORM_EPS = 1e-5  # lst.model.blocks.RMSNorm
_GLOBAL, _LAYER = "global_transformer.", "global_transformer.layers.{}."
_THEIR_LAYER = "model.layers.{}."
_WHOLE = {"embedding.weight": "model.embed_tokens.weight", "head.weight": "lm_head.weight"}
_NORM = (_GLOBAL + "norm.gain", "model.norm.weight")
_FREQUENCIES = "rotary_emb.inv_freq"  # tables that some versions stored
# A layer's tensors: ours -> theirs, those that are ours on top of each other.
_LAYER_TENSORS: dict[str, tuple[str, ...]] = {
    "attention_norm.gain": ("input_layernorm.weight",),
    "attention.to_query_key_value.weight": (
        "self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight",
    ),
    "attention.to_out.weight": ("self_attn.o_proj.weight",),
    "ffn_norm.gain": ("post_attention_layernorm.weight",),
    "ffn.to_gate_value.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "ffn.to_out.weight": ("mlp.down_proj.weight",),
}  # fmt: skip


def to_llama(checkpoint: str | Path, folder: str | Path) -> Path:
    """Write a checkpoint of arm baseline or bpe (its folder, or a finished run's) as the Llama folder `folder`; its path.

    The data set's tokenizer goes with it where the data set is at hand (README.md in the folder says so). Raises
    CheckpointError for an arm with local modules, what is no checkpoint or a damaged one, or a `folder` that is not empty.
    """
    model, config = load_checkpoint(checkpoint)
    if config.model.encoder is not None:
        raise CheckpointError(
            f"'{checkpoint}' is of arm '{config.model.arm}', which has local modules; a Llama holds arms baseline and bpe alone."
        )
    target = Path(folder)
    with new_folder(target) as inside:
        files = {MODEL: write_tensors(inside / MODEL, theirs(model_tensors(model)), metadata={"format": "pt"})}
        texts = {CONFIG: _json(llama_config(config)), LST_CONFIG: _json(to_dict(config)), **tokenizer_files(config)}
        for name, data in texts.items():
            files[name] = write_file(inside / name, data)
        seal_folder(inside, files)
    return target


def from_llama(folder: str | Path, *, speech_vocab: int = 501, device: str = "cpu") -> tuple[nn.Module, RunConfig]:
    """The baseline with the weights of a LlamaForCausalLM folder (in evaluation mode, fp32), and its configuration.

    Logits equal the Llama's for every id. Which ids are speech is a matter of the configuration: it comes from the folder's
    `lst_config.json` where there is one, else the last `speech_vocab` ids but two count as speech tokens and the last two as
    markers. Raises CheckpointError, naming key and value, on a folder that is no such Llama or is damaged.
    """
    path = Path(folder)
    config = read_llama(path, speech_vocab=speech_vocab)
    read_pieces(path, config)
    tensors = ours(path, config.model, _vocabulary(config.model))  # before the network: they bound its size
    from lst.model.lst import network

    model = network(config.model)
    copy_tensors(path, model_tensors(model), tensors)
    return model.to(device).eval(), config


def read_llama(folder: Path, *, speech_vocab: int) -> RunConfig:
    """The configuration of a Llama folder as a baseline. Raises CheckpointError on what our network does not have."""
    own = own_config(folder)
    if own is not None:
        read_llama_shape(folder)
        return own
    shape, _ = read_llama_shape(folder)
    vocabulary = shape.text_vocab
    if vocabulary <= speech_vocab + 2 or speech_vocab < 1:
        raise CheckpointError(
            f"'{folder / CONFIG}' has vocab_size={vocabulary}, too few for speech_vocab={speech_vocab}, two markers and text; "
            "give another speech_vocab."
        )
    model = dataclasses.replace(shape, text_vocab=vocabulary - speech_vocab - 2, speech_vocab=speech_vocab)
    return RunConfig(model=model, patching=PatchingConfig(kind=ARM_PATCHING[Arm.BASELINE]))


def read_llama_shape(folder: Path) -> tuple[ModelConfig, bool]:
    """The network of a Llama folder, and whether all its ids count as text, for want of an `lst_config.json`.

    Raises CheckpointError on what our network does not have, and on a damaged folder of our own.
    """
    if (folder / MANIFEST).is_file():
        verify_folder(folder)
    given = read_llama_config(folder)
    vocabulary = _whole_number(folder, given, "vocab_size")
    tied = given.get("tie_word_embeddings", False)
    if not isinstance(tied, bool):
        raise CheckpointError(f"'{folder / CONFIG}' has tie_word_embeddings={tied!r}, which must be true or false.")
    shape = ModelConfig(
        arm=Arm.BASELINE,
        global_stack=llama_stack(folder, given),
        text_vocab=vocabulary,
        rope_theta=rope_theta(folder, given),
        tied_head=tied,
    )
    own = own_config(folder)
    if own is None:
        try:
            shape.validate()
        except ConfigError as error:
            raise CheckpointError(f"'{folder / CONFIG}' is no shape for the baseline: {error}") from error
        return shape, True
    ids = Vocabulary.of(own.model).size
    same = ("global_stack", "rope_theta", "tied_head")
    if ids != vocabulary or any(getattr(own.model, key) != getattr(shape, key) for key in same):
        raise CheckpointError(
            f"'{folder / LST_CONFIG}' and {CONFIG} beside it differ in shape; delete the former to do without it."
        )
    return own.model, False


def is_llama(folder: Path) -> bool:
    """Whether config.json is one of transformers' (and not of this program's checkpoints)."""
    try:
        content = parse_json((folder / CONFIG).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "model_type" in content


def llama_config(config: RunConfig) -> dict[str, Any]:
    """config.json of a LlamaForCausalLM with the baseline's shape, for transformers 4 and 5 and what reads their folders."""
    model, stack = config.model, config.model.global_stack
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": _vocabulary(model),
        "hidden_size": stack.dim,
        "intermediate_size": stack.ffn_dim,
        "num_hidden_layers": stack.layers,
        "num_attention_heads": stack.heads,
        "num_key_value_heads": stack.heads,
        "head_dim": stack.dim // stack.heads,
        "hidden_act": "silu",
        "max_position_embeddings": config.data.seq_len_units,
        "rms_norm_eps": NORM_EPS,
        "rope_theta": model.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_theta},
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": model.tied_head,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "dtype": "float32",
        "use_cache": True,
    }


def read_llama_config(folder: Path) -> dict[str, Any]:
    """config.json of a Llama folder. Raises CheckpointError on anything that our network does not compute."""
    file = folder / CONFIG
    require_folder(folder, "the folder of a LlamaForCausalLM")
    own = checkpoint_folder(folder)
    if own != folder or (file.is_file() and not is_llama(folder) and (folder / MANIFEST).is_file()):
        raise CheckpointError(f"'{own}' is a checkpoint of this program already, and no Llama; read it with load_checkpoint.")
    try:
        given = parse_json(file.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"'{file}' cannot be read ({error}); give the folder of a LlamaForCausalLM.") from error
    if not isinstance(given, dict):
        raise CheckpointError(f"'{file}' is no mapping; give the folder of a LlamaForCausalLM.")
    expected: dict[str, tuple[Any, Any]] = {  # key -> what we compute, what a missing key means
        "model_type": ("llama", None),
        "hidden_act": ("silu", "silu"),
        "attention_bias": (False, False),
        "mlp_bias": (False, False),
        "rms_norm_eps": (NORM_EPS, 1e-6),
        "quantization_config": (None, None),
        "num_key_value_heads": (given.get("num_attention_heads"), given.get("num_attention_heads")),
    }
    for key, (wanted, default) in expected.items():
        found = given.get(key, default)
        if found is None and key == "num_key_value_heads":
            continue
        if found != wanted:
            raise CheckpointError(f"'{file}' has {key}={found!r}, the baseline computes {wanted!r} alone; it cannot be taken.")
    return given


def llama_stack(folder: Path, given: Mapping[str, Any]) -> StackConfig:
    """The stack of layers that a Llama's config.json describes."""
    keys = {"layers": "num_hidden_layers", "dim": "hidden_size", "heads": "num_attention_heads", "ffn_dim": "intermediate_size"}
    stack = StackConfig(**{ours: _whole_number(folder, given, theirs) for ours, theirs in keys.items()})
    width = given.get("head_dim")
    if width is not None and width != stack.dim / stack.heads:
        raise CheckpointError(
            f"'{folder / CONFIG}' has head_dim={width}, the baseline computes hidden_size / num_attention_heads alone; "
            "it cannot be taken."
        )
    return stack


def rope_theta(folder: Path, given: Mapping[str, Any]) -> float:
    """The base of the rotary embedding, which stands in one of two places. Raises CheckpointError on scaled positions."""
    file = folder / CONFIG
    for key in ("rope_scaling", "rope_parameters"):
        section = given.get(key) or {}
        kind = section.get("rope_type", section.get("type", "default")) if isinstance(section, dict) else section
        if not isinstance(section, dict) or kind != "default" or section.get("partial_rotary_factor", 1.0) != 1.0:
            raise CheckpointError(
                f"'{file}' has {key}={section!r}, the baseline computes plain rotary positions alone; it cannot be taken."
            )
    theta = (given.get("rope_parameters") or {}).get("rope_theta", given.get("rope_theta", 10_000.0))
    if isinstance(theta, bool) or not isinstance(theta, int | float) or not 0 < theta <= sys.float_info.max:
        raise CheckpointError(f"'{file}' has rope_theta={theta!r}, which must be a positive number.")
    return float(theta)


def read_llama_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a Llama folder by their names, but for tables of frequencies, which some versions stored."""
    tensors = {name: tensor for file in weight_files(folder) for name, tensor in read_tensors(file).items()}
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(_FREQUENCIES)}


def check_llama_tensors(folder: Path, model: ModelConfig, ids: int) -> None:
    """The tensors of a Llama folder, by the headers of its files, against network `model` with a vocabulary of `ids`.

    Raises CheckpointError on a missing, unknown or misshapen one, and on one that holds no floating-point numbers.
    """
    stored = stored_tensors(folder)
    left = {name for name in stored if not name.endswith(_FREQUENCIES)}
    if model.tied_head:
        left.discard(_WHOLE["head.weight"])
    for name, shape in _promised(model, ids):
        if name not in left:
            raise CheckpointError(f"'{folder}' lacks the tensor '{name}' that its {CONFIG} promises; save or download it again.")
        left.remove(name)
        if stored[name].shape != shape:
            raise CheckpointError(
                f"tensor '{name}' of '{folder}' is {stored[name].shape}, its {CONFIG} promises {shape}; save it again."
            )
        if stored[name].dtype not in FLOATS:
            raise CheckpointError(
                f"tensor '{name}' of '{folder}' is of type {stored[name].dtype}; save it as one of {', '.join(FLOATS)}."
            )
    for name in sorted(left):
        raise CheckpointError(
            f"tensor '{name}' of '{folder}' is in no place of the model; the checkpoint belongs to another configuration."
        )


def _promised(model: ModelConfig, ids: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a Llama's tensors, one by one: a configuration may announce more layers than anyone can list."""
    dim, ffn = model.global_stack.dim, model.global_stack.ffn_dim
    yield _NORM[1], (dim,)
    for our, their in _WHOLE.items():
        if not (model.tied_head and our == "head.weight"):
            yield their, (ids, dim)
    for layer in range(model.global_stack.layers):
        for parts in _LAYER_TENSORS.values():
            for part in parts:
                shape = (dim,) if "norm" in part else (dim, dim)
                if part.startswith("mlp."):
                    shape = (dim, ffn) if "down" in part else (ffn, dim)
                yield _THEIR_LAYER.format(layer) + part, shape


def theirs(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The baseline's tensors under Llama's names, fused ones split."""
    layers = 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith(_LAYER.format("")[:-1]))
    found = {their: tensors[our] for our, their in (*_WHOLE.items(), _NORM) if our in tensors}
    for layer in range(layers):
        for our, parts in _LAYER_TENSORS.items():
            chunks = tensors[_LAYER.format(layer) + our].chunk(len(parts))
            found |= {_THEIR_LAYER.format(layer) + part: chunk for part, chunk in zip(parts, chunks, strict=True)}
    return found


def ours(folder: Path, model: ModelConfig, ids: int) -> dict[str, torch.Tensor]:
    """Llama's tensors of `folder` under our names, in fp32, for network `model` with a vocabulary of `ids`.

    Raises CheckpointError, before any is read, if they are not that network's.
    """
    import torch

    check_llama_tensors(folder, model, ids)
    left = read_llama_tensors(folder)

    def take(*names: str) -> torch.Tensor:
        return torch.cat([left.pop(name) for name in names]).float()

    found = {our: take(their) for our, their in (*_WHOLE.items(), _NORM) if not (model.tied_head and our == "head.weight")}
    for layer in range(model.global_stack.layers):
        for our, parts in _LAYER_TENSORS.items():
            found[_LAYER.format(layer) + our] = take(*(_THEIR_LAYER.format(layer) + part for part in parts))
    return found


def own_config(folder: Path) -> RunConfig | None:
    """The configuration that `to_llama` left in a folder, if it did."""
    file = folder / LST_CONFIG
    if not file.is_file():
        return None
    try:
        config = RunConfig.from_dict(parse_json(file.read_text()))
    except (OSError, ValueError, LstError) as error:
        raise CheckpointError(f"'{file}' holds no configuration of this program: {error}") from error
    if config.model.encoder is not None:
        raise CheckpointError(f"'{file}' is of arm '{config.model.arm}', which no Llama holds; delete it to do without it.")
    return config


def _vocabulary(model: ModelConfig) -> int:
    return Vocabulary.of(model).size


def _whole_number(folder: Path, given: Mapping[str, Any], key: str) -> int:
    value = given.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise CheckpointError(f"'{folder / CONFIG}' has {key}={value!r}, which must be a positive whole number.")
    return value


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()
