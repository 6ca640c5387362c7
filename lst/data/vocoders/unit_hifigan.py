"""A HiFi-GAN unit vocoder from a local folder: `config.json` and `model.safetensors`.

    token -> its embedding (and the speaker's, beside it) -> HiFi-GAN generator (transformers' SpeechT5HifiGan) -> audio

Folders follow the public unit vocoders of textlesslib and fairseq ("CodeHiFiGAN"): their config.json and the names of their
tensors, weight normalisation folded or not. Those ship as pickled checkpoints, which may run code when they are opened; this
program reads safetensors only, and `CONVERSION` is the command that makes one in an environment of the user's own.

Tokens are spoken as they are, one frame each: ours are not deduplicated, so a model's duration predictor is not run and its
tensors are not read. Models that want pitch, styles or an external speaker embedding beside the tokens are refused.

Sources: Kong et al. 2020 (HiFi-GAN), Polyak et al. 2021 (speech resynthesis from units). Needs the extra `hf`.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lst.data.vocab import FRAMES_PER_SECOND
from lst.errors import DataError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
CONVERSION = (
    "python -c \"import torch; from safetensors.torch import save_file; state = torch.load('model.pt', map_location='cpu', "
    "weights_only=True); state = state.get('generator', state); save_file({name: value.contiguous() for name, value in "
    "state.items()}, 'model.safetensors')\""
)

_UNSUPPORTED = {"f0": "pitch", "multistyle": "styles", "embedder_params": "an external speaker embedding"}
_NOT_READ = ("dur_predictor.",)
_LISTS = ("upsample_rates", "upsample_kernel_sizes", "resblock_kernel_sizes")
_PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl")


@dataclass(frozen=True)
class UnitHifiGan:
    """A loaded model with one of its speakers. `tokens_KD` and `speaker_D` are embeddings that stand side by side."""

    tokens_KD: torch.Tensor
    speaker_D: torch.Tensor | None
    generator: Any  # transformers.SpeechT5HifiGan
    rate: int
    units: str

    @property
    def num_tokens(self) -> int:
        return len(self.tokens_KD)

    def synthesize(self, tokens_T: torch.Tensor) -> torch.Tensor:
        """Audio (T * rate / 25,) of at least one token."""
        with torch.inference_mode():
            x_TD = self.tokens_KD[tokens_T]
            if self.speaker_D is not None:
                x_TD = torch.cat([x_TD, self.speaker_D.expand(len(x_TD), -1)], 1)
            audio_N: torch.Tensor = self.generator(x_TD)
            return audio_N


def load_unit_hifigan(folder: Path, *, speaker: str = "") -> UnitHifiGan:
    """The model of `folder`, speaking as number `speaker` (by default 0) where it has several speakers.

    Raises DataError if a file is missing or damaged, the weights are pickled or do not fit the configuration, the frame rate is
    not 25 Hz, or the model wants more than tokens and a speaker.
    """
    config = _read_config(folder)
    settings = _generator_settings(config, folder)
    state = _read_weights(folder)
    try:
        tokens_KD = state.pop("dict.weight")
        speakers = state.pop("spkr.weight") if config.get("multispkr") else None
    except KeyError as error:
        raise DataError(f"'{folder / WEIGHTS}' has no tensor {error}; convert the unit vocoder's whole generator.") from error
    wanted = (config["num_embeddings"], config["embedding_dim"])
    if tuple(tokens_KD.shape) != wanted:
        raise DataError(
            f"'{folder / WEIGHTS}' has an embedding of {tuple(tokens_KD.shape)}, {CONFIG} wants {wanted}; correct one."
        )
    speaker_D = _choose_speaker(speakers, speaker, folder)
    width = tokens_KD.shape[1] + (0 if speaker_D is None else len(speaker_D))
    if width != settings["model_in_dim"]:
        raise DataError(f"'{folder / CONFIG}' has model_in_dim={settings['model_in_dim']}, its embeddings {width}; correct it.")
    generator = _build_generator(settings, state, folder)
    units = str(config.get("quantizer_sha256", ""))
    return UnitHifiGan(tokens_KD, speaker_D, generator, int(settings["sampling_rate"]), units)


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("no object")
    except (OSError, ValueError) as error:
        raise DataError(f"'{folder / CONFIG}' cannot be read ({error}); give 'embedded' or a unit vocoder's folder.") from error
    for key, meaning in _UNSUPPORTED.items():
        if config.get(key):
            raise DataError(f"'{folder / CONFIG}' has {key}, so the model wants {meaning} beside tokens; choose a model without.")
    return config


def _generator_settings(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What SpeechT5HifiGanConfig wants, checked for 25 Hz."""
    try:
        settings: dict[str, Any] = {
            "model_in_dim": int(config.get("model_in_dim", config["embedding_dim"])),
            "sampling_rate": int(config.get("sampling_rate", 16_000)),
            "upsample_initial_channel": int(config["upsample_initial_channel"]),
            "normalize_before": False,
            **{key: [int(v) for v in config[key]] for key in _LISTS},
            "resblock_dilation_sizes": [[int(v) for v in sizes] for sizes in config["resblock_dilation_sizes"]],
        }
        if len(settings["upsample_rates"]) != len(settings["upsample_kernel_sizes"]):
            raise ValueError("as many upsample_kernel_sizes as upsample_rates are needed")
        if len(settings["resblock_kernel_sizes"]) != len(settings["resblock_dilation_sizes"]):
            raise ValueError("as many resblock_dilation_sizes as resblock_kernel_sizes are needed")
        int(config["num_embeddings"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"'{folder / CONFIG}' is no unit HiFi-GAN configuration ({error!r}); see docs/vocoder.md.") from error
    if str(config.get("resblock", "1")) != "1":
        raise DataError(f"'{folder / CONFIG}' has resblock={config['resblock']}; only HiFi-GAN's V1 and V2 blocks (1) are read.")
    hop, rate = math.prod(settings["upsample_rates"]), settings["sampling_rate"]
    if hop * FRAMES_PER_SECOND != rate:
        raise DataError(
            f"'{folder / CONFIG}' makes {hop} samples a token at {rate:,} Hz, that is {rate / hop:g} tokens a second; "
            f"give a model of {FRAMES_PER_SECOND} ({rate // FRAMES_PER_SECOND} samples)."
        )
    strides = zip(settings["upsample_kernel_sizes"], settings["upsample_rates"], strict=True)
    if any(kernel < stride or (kernel - stride) % 2 for kernel, stride in strides):
        raise DataError(f"'{folder / CONFIG}' has an upsample_kernel_size that is no even number above its rate; correct it.")
    return settings


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The generator's tensors in single precision, weight normalisation folded, without what is not run."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = folder / WEIGHTS
    pickled = [p.name for p in sorted(folder.iterdir()) if p.suffix in _PICKLED]
    if not file.is_file() and pickled:
        raise DataError(
            f"'{folder / pickled[0]}' is a pickled checkpoint, which this program never opens; convert it to {WEIGHTS} with the "
            "command of docs/vocoder.md."
        )
    try:
        state = {name: value.float() for name, value in load_file(file).items() if not name.startswith(_NOT_READ)}
        return fold_weight_norm(state)
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise DataError(f"'{file}' cannot be read ({error}); copy or convert the weights again.") from error


def fold_weight_norm(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`weight_g` and `weight_v` replaced by `weight` = g v / |v|, the norm over all axes but the first."""
    folded = {name: value for name, value in state.items() if not name.endswith((".weight_g", ".weight_v"))}
    for name, direction in state.items():
        if name.endswith(".weight_v"):
            stem = name.removesuffix("_v")
            norm = direction.flatten(1).norm(dim=1).view(-1, *[1] * (direction.dim() - 1))
            folded[stem] = state[f"{stem}_g"] * direction / norm
    return folded


def _choose_speaker(speakers: torch.Tensor | None, wanted: str, folder: Path) -> torch.Tensor | None:
    if speakers is None:
        if wanted:
            raise DataError(f"'{folder}' has one voice, so voice='{wanted}' cannot be chosen; leave it out.")
        return None
    number = wanted or "0"
    if not number.isdecimal() or int(number) >= len(speakers):
        raise DataError(f"'{folder}' has speakers 0..{len(speakers) - 1}, not voice='{wanted}'; give one of those numbers.")
    return speakers[int(number)]


def _build_generator(settings: Mapping[str, Any], state: Mapping[str, torch.Tensor], folder: Path) -> Any:
    if importlib.util.find_spec("transformers") is None:
        raise DataError("a HiFi-GAN unit vocoder needs the package 'transformers'; run: pip install lst-scaling[hf]")
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    generator: Any = SpeechT5HifiGan(SpeechT5HifiGanConfig(**settings))
    named = {name.replace("ups.", "upsampler.", 1) if name.startswith("ups.") else name: t for name, t in state.items()}
    # Statistics of mel spectrograms, which a model of units has none of and which are not used.
    named |= {name: generator.state_dict()[name] for name in ("mean", "scale")}
    try:
        generator.load_state_dict(named)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"'{folder / WEIGHTS}' does not fit {CONFIG} ({reason}); give the files of one model.") from error
    return generator.eval()
