"""HiFi-GAN unit vocoders of a local folder: tiny random models in the layout of the public ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from lst.data.vocoders.unit_hifigan import CONVERSION, fold_weight_norm
from lst.data.vocoders.vocoder import open_vocoder
from lst.errors import DataError

pytest.importorskip("transformers", reason="the extra `hf` is not installed")

CONFIG: dict[str, Any] = {
    "resblock": "1",
    "upsample_rates": [5, 4, 4, 4, 2],
    "upsample_kernel_sizes": [11, 8, 8, 8, 4],
    "upsample_initial_channel": 64,
    "resblock_kernel_sizes": [3, 7],
    "resblock_dilation_sizes": [[1, 3], [1, 3]],
    "num_embeddings": 20,
    "embedding_dim": 6,
    "model_in_dim": 6,
    "sampling_rate": 16_000,
}


def random_state(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Tensors under the names of the public checkpoints, from the configuration alone."""
    random = torch.Generator().manual_seed(0)

    def tensor(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random) * 0.2

    width = config["upsample_initial_channel"]
    state = {"dict.weight": tensor(config["num_embeddings"], config["embedding_dim"])}
    state |= {"conv_pre.weight": tensor(width, config["model_in_dim"], 7), "conv_pre.bias": tensor(width)}
    blocks = 0
    for i, kernel in enumerate(config["upsample_kernel_sizes"]):
        half = width // 2
        state |= {f"ups.{i}.weight": tensor(width, half, kernel), f"ups.{i}.bias": tensor(half)}
        for size, dilations in zip(config["resblock_kernel_sizes"], config["resblock_dilation_sizes"], strict=True):
            for j in range(len(dilations)):
                for part in ("convs1", "convs2"):
                    name = f"resblocks.{blocks}.{part}.{j}"
                    state |= {f"{name}.weight": tensor(half, half, size), f"{name}.bias": tensor(half)}
            blocks += 1
        width = half
    return state | {"conv_post.weight": tensor(1, width, 7), "conv_post.bias": tensor(1)}


def write_model(folder: Path, config: dict[str, Any] | None = None, state: dict[str, torch.Tensor] | None = None) -> Path:
    config = CONFIG if config is None else config
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(random_state(config) if state is None else state, folder / "model.safetensors")
    return folder


def by_the_paper(state: dict[str, torch.Tensor], config: dict[str, Any], tokens: list[int]) -> torch.Tensor:
    """HiFi-GAN's equations written down with functions alone (Kong et al. 2020, section 2 and appendix A)."""
    x = F.conv1d(state["dict.weight"][tokens].T[None], state["conv_pre.weight"], state["conv_pre.bias"], padding=3)
    kernels, block = len(config["resblock_kernel_sizes"]), 0
    for i, (kernel, rate) in enumerate(zip(config["upsample_kernel_sizes"], config["upsample_rates"], strict=True)):
        x = F.leaky_relu(x, 0.1)
        x = F.conv_transpose1d(x, state[f"ups.{i}.weight"], state[f"ups.{i}.bias"], rate, (kernel - rate) // 2)
        outputs = []
        for size, dilations in zip(config["resblock_kernel_sizes"], config["resblock_dilation_sizes"], strict=True):
            h = x
            for j, dilation in enumerate(dilations):
                first, second = (f"resblocks.{block}.{part}.{j}" for part in ("convs1", "convs2"))
                g = F.leaky_relu(h, 0.1)
                g = F.conv1d(g, state[f"{first}.weight"], state[f"{first}.bias"], 1, dilation * (size - 1) // 2, dilation)
                g = F.leaky_relu(g, 0.1)
                h = h + F.conv1d(g, state[f"{second}.weight"], state[f"{second}.bias"], padding=(size - 1) // 2)
            outputs.append(h)
            block += 1
        x = sum(outputs[1:], outputs[0]) / kernels
    x = F.leaky_relu(x, 0.01)
    return torch.tanh(F.conv1d(x, state["conv_post.weight"], state["conv_post.bias"], padding=3))[0, 0]


def test_each_token_lasts_40_ms_and_the_sound_is_the_papers_equations(tmp_path: Path) -> None:
    tokens = [3, 3, 19, 0, 7]
    audio, rate = open_vocoder(write_model(tmp_path / "m"))(tokens)
    assert (len(audio), rate) == (5 * 640, 16_000)
    assert audio.std() > 1e-3
    np.testing.assert_allclose(audio, by_the_paper(random_state(CONFIG), CONFIG, tokens), atol=1e-5)


def test_the_same_tokens_sound_the_same_and_others_do_not(tmp_path: Path) -> None:
    vocoder = open_vocoder(write_model(tmp_path / "m"))
    first, again, other = (vocoder(t)[0] for t in ([1, 2, 3], [1, 2, 3], [1, 2, 4]))
    assert first.tobytes() == again.tobytes()
    assert not np.array_equal(first, other)


def test_weight_normalisation_is_folded(tmp_path: Path) -> None:
    """`torch.nn.utils.weight_norm`, by whose names the public checkpoints are stored, is the reference."""
    layer = nn.utils.weight_norm(nn.ConvTranspose1d(4, 3, 5))
    with torch.no_grad():
        layer.weight_g.mul_(1.7)
    layer(torch.zeros(1, 4, 2))  # computes layer.weight
    stored = {f"ups.0.{name}": value.detach() for name, value in layer.named_parameters()}
    folded = fold_weight_norm(stored)
    assert set(folded) == {"ups.0.weight", "ups.0.bias"}
    torch.testing.assert_close(folded["ups.0.weight"], layer.weight.detach())


def test_a_normalised_checkpoint_sounds_like_the_folded_one(tmp_path: Path) -> None:
    state = random_state(CONFIG)
    split: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        if name.endswith(".weight") and value.dim() == 3:
            split[f"{name}_g"] = value.flatten(1).norm(dim=1).view(-1, 1, 1)
            split[f"{name}_v"] = 3.0 * value
        else:
            split[name] = value
    plain, normed = (open_vocoder(write_model(tmp_path / n, CONFIG, s))([5, 6])[0] for n, s in (("a", state), ("b", split)))
    np.testing.assert_allclose(plain, normed, atol=1e-5)


def test_a_speaker_is_chosen_by_number(tmp_path: Path) -> None:
    config = {**CONFIG, "multispkr": "_", "num_speakers": 3, "model_in_dim": 12}
    speakers = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    folder = write_model(tmp_path / "m", config, {**random_state(config), "spkr.weight": speakers})
    sounds = [open_vocoder(folder, voice=v)([4, 9])[0] for v in ("", "0", "2")]
    assert np.array_equal(sounds[0], sounds[1])
    assert not np.array_equal(sounds[0], sounds[2])
    for wrong in ("3", "-1", "anna"):
        with pytest.raises(DataError, match=r"has speakers 0\.\.2, not voice="):
            open_vocoder(folder, voice=wrong)


def test_a_duration_predictor_is_left_alone(tmp_path: Path) -> None:
    state = random_state(CONFIG)
    with_predictor = {**state, "dur_predictor.conv1.0.weight": torch.randn(3, 6, 3)}
    folders = write_model(tmp_path / "a"), write_model(tmp_path / "b", {**CONFIG, "dur_predictor_params": {}}, with_predictor)
    a, b = (open_vocoder(folder)([1, 1, 1, 2])[0] for folder in folders)
    assert np.array_equal(a, b)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"upsample_rates": [5, 4, 4, 2, 2], "upsample_kernel_sizes": [11, 8, 8, 4, 4]}, "that is 50 tokens a second"),
        ({"sampling_rate": 24_000}, "that is 37.5 tokens a second"),
        ({"resblock": "2"}, "resblock=2"),
        ({"f0": True}, "wants pitch beside tokens"),
        ({"multistyle": True}, "wants styles"),
        ({"embedder_params": {"k": 1}}, "external speaker embedding"),
        ({"upsample_kernel_sizes": [10, 8, 8, 8, 4]}, "no even number above its rate"),
        ({"upsample_kernel_sizes": [11, 8, 8, 8]}, "as many upsample_kernel_sizes"),
        ({"resblock_dilation_sizes": [[1, 3]]}, "as many resblock_dilation_sizes"),
        ({"upsample_rates": "many"}, "no unit HiFi-GAN configuration"),
        ({"upsample_initial_channel": 32}, "does not fit config.json"),
        ({"num_embeddings": 21}, "has an embedding of"),
        ({"model_in_dim": 12}, "has model_in_dim=12, its embeddings 6"),
        ({"multispkr": "_", "model_in_dim": 12}, "no tensor 'spkr.weight'"),
    ],
)
def test_configurations_that_do_not_fit_are_refused_in_one_sentence(
    tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    folder = write_model(tmp_path / "m", {**CONFIG, **change}, random_state(CONFIG))
    with pytest.raises(DataError, match=sentence) as caught:
        open_vocoder(folder)
    assert "\n" not in str(caught.value)


def test_damaged_and_missing_files_are_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(DataError, match="cannot be read"):
        open_vocoder(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(DataError, match=r"config\.json' cannot be read"):
        open_vocoder(folder)
    with pytest.raises(DataError, match="give 'embedded' or a unit vocoder's folder"):
        open_vocoder(tmp_path / "none")


def test_a_pickle_is_never_opened_and_the_documented_command_converts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_model(tmp_path / "m")
    wanted = open_vocoder(folder)([2, 8])[0]
    torch.save({"generator": load_file(folder / "model.safetensors")}, folder / "model.pt")
    (folder / "model.safetensors").unlink()
    with pytest.raises(DataError, match="pickled checkpoint, which this program never opens; convert it"):
        open_vocoder(folder)
    shown = (Path(__file__).parents[3] / "docs" / "vocoder.md").read_text()
    assert CONVERSION in shown
    monkeypatch.chdir(folder)
    exec(CONVERSION.split('"', 1)[1].rsplit('"', 1)[0], {})
    assert np.array_equal(open_vocoder(folder)([2, 8])[0], wanted)


def test_a_tokens_number_beyond_the_embedding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has tokens 0\.\.19, not 20"):
        open_vocoder(write_model(tmp_path / "m"))([1, 20])
