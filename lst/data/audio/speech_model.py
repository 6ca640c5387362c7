"""Speech encoders of transformers in a local folder: what HuBERT features and CTC alignment share. No network, no pickle.

A folder holds config.json, weights as safetensors, and preprocessor_config.json, whose `do_normalize` tells whether a waveform
is brought to mean 0 and variance 1 first. The convolutions in front decide when a frame is: frame f sees the samples from
`f * stride` on, `receptive` of them.

    kernels 10 3 3 3 3 2 2, strides 5 2 2 2 2 2 2   ->   stride 320 (50 Hz), receptive 400

Speech longer than a window is cut into windows as equal as can be, each encoded apart; none is a short rest:

    2,100 frames, windows of at most 1,500          ->   frames 0..1049, 1050..2099
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lst.data.audio.waveform import SAMPLE_RATE
from lst.errors import ConfigError, DataError

if TYPE_CHECKING:
    import torch

NORMALIZE = ("auto", "yes", "no")
DTYPES = ("float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class ConvFrames:
    """The arithmetic of the convolutions, in samples at 16 kHz."""

    kernels: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def stride(self) -> int:
        """Samples from one frame to the next."""
        return math.prod(self.strides)

    @property
    def receptive(self) -> int:
        """Samples that a frame is made of."""
        samples = 1
        for kernel, stride in zip(reversed(self.kernels), reversed(self.strides), strict=True):
            samples = (samples - 1) * stride + kernel
        return samples

    def frames(self, samples: int) -> int:
        """Frames of a waveform."""
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            samples = max(0, (samples - kernel) // stride + 1)
        return samples

    def windows(self, samples: int, longest: int, multiple: int = 1) -> list[tuple[int, int]]:
        """(first sample, one past the last) of each window of at most `longest` frames; the last one takes the rest."""
        frames = equal_windows(self.frames(samples), longest, multiple)
        cuts = [(a * self.stride, (b - 1) * self.stride + self.receptive) for a, b in frames]
        return [*cuts[:-1], (cuts[-1][0], samples)] if cuts else []


def equal_windows(frames: int, longest: int, multiple: int = 1) -> list[tuple[int, int]]:
    """0..frames cut into as few windows of at most `longest` as can be, of nearly equal length, at multiples of `multiple`."""
    if not frames:
        return []
    groups = -(-frames // multiple)
    count = -(-groups // (longest // multiple))
    cuts = [min(groups * i // count * multiple, frames) for i in range(count + 1)]
    return list(pairwise(cuts))


def pick_device(wanted: str) -> str:
    """`wanted`, or for "auto" cuda if there is one, else cpu. Raises ConfigError."""
    import torch

    if wanted not in DEVICES:
        raise ConfigError(f"device='{wanted}' is unknown; use {', '.join(DEVICES)}.")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda, but torch sees no CUDA device; use device=cpu.")
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


def load_model(folder: Path, class_name: str, kind: str) -> Any:
    """The transformers model `class_name` in `folder` in evaluation mode, fp32, on the CPU. Raises DataError.

    `kind` is what config.json must call its model_type.
    """
    config = _config(folder, "config.json")
    if config.get("model_type") != kind:
        raise DataError(f"'{folder}' holds a model of type '{config.get('model_type')}', not '{kind}'; give another folder.")
    weight_paths(folder, class_name)
    if importlib.util.find_spec("transformers") is None:
        raise DataError(f"{class_name} needs the package 'transformers'; run: pip install lst-scaling[hf]")
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model, info = getattr(transformers, class_name).from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"'{folder}' cannot be loaded as {class_name} ({_first_line(error)}); save it again.") from error
    missing = sorted(key for key in info["missing_keys"] if "masked_spec_embed" not in key)  # that one serves training alone
    if missing:
        raise DataError(f"'{folder}' lacks {len(missing)} weights of {class_name}, such as {missing[0]}; give the whole model.")
    return model.eval()


def weight_paths(folder: Path, class_name: str) -> list[Path]:
    """The safetensors files of `folder`. Raises DataError with the remedy if it has none."""
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        remedy = f"{class_name}.from_pretrained('{folder}').save_pretrained('{folder}-safe')"
        raise DataError(
            f"'{folder}' has no weights as safetensors, and pickled ones are not read; where you trust them, convert them: "
            f'python -c "from transformers import {class_name}; {remedy}"'
        )
    return paths


def files_sha256(paths: Sequence[Path]) -> str:
    """SHA-256 of the files' bytes, one after another."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()


def normalizes(folder: Path, wanted: str) -> bool:
    """Whether waveforms are brought to mean 0 and variance 1: `wanted` (yes, no), or what the folder says. Raises DataError."""
    if wanted not in NORMALIZE:
        raise ConfigError(f"normalize='{wanted}' is unknown; use {', '.join(NORMALIZE)}.")
    if wanted != "auto":
        return wanted == "yes"
    if not (folder / "preprocessor_config.json").is_file():
        raise DataError(f"'{folder}' has no preprocessor_config.json; say how the model was trained: normalize=yes or no.")
    return bool(_config(folder, "preprocessor_config.json").get("do_normalize", True))


def _config(folder: Path, name: str) -> dict[str, Any]:
    try:
        config = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"'{folder}' has no readable {name} ({_first_line(error)}); give a local folder of save_pretrained "
            "(names of a hub are not fetched)."
        ) from error
    if not isinstance(config, dict):
        raise DataError(f"'{folder / name}' is no JSON object; give a folder of save_pretrained.")
    return config


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class ConvModel:
    """A loaded model, its convolutions, and how waveforms are batched for it. One batch's rows do not touch each other.

    Models whose convolutions are normed per frame (`feat_extract_norm="layer"`) take padded batches with a mask. Those normed
    over the whole waveform (`"group"`) would see the padding, so only waveforms of one length share a batch there.
    """

    def __init__(
        self, folder: Path, class_name: str, kind: str, *, normalize: str, device: str, dtype: str, batch_seconds: float
    ) -> None:
        """Raises DataError or ConfigError in one sentence."""
        if dtype not in DTYPES:
            raise ConfigError(f"dtype='{dtype}' is unknown; use {', '.join(DTYPES)}.")
        import torch

        self.device = pick_device(device)
        self.model = load_model(folder, class_name, kind)
        self.normalize = normalizes(folder, normalize)
        self.sha256 = files_sha256(weight_paths(folder, class_name))
        self._dtype = getattr(torch, dtype)
        self.model.to(self.device, self._dtype)
        config = self.model.config
        self.conv = ConvFrames(tuple(config.conv_kernel), tuple(config.conv_stride))
        self.padded = config.feat_extract_norm == "layer"
        self._batch_samples = int(batch_seconds * SAMPLE_RATE)

    def batches(self, lengths: Sequence[int]) -> list[list[int]]:
        """The waveforms' numbers in batches: by length, each at most `batch_seconds` with its padding, or one waveform."""
        batches: list[list[int]] = []
        for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
            if batches:
                longest = lengths[batches[-1][0]]
                fits = (len(batches[-1]) + 1) * longest <= self._batch_samples
                if fits and (self.padded or lengths[i] == longest):
                    batches[-1].append(i)
                    continue
            batches.append([i])
        return batches

    def encode(
        self,
        audios: Sequence[NDArray[np.float32]],
        forward: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor],
        finish: Callable[[torch.Tensor], NDArray[Any]],
        *,
        window_seconds: float,
        multiple: int = 1,
    ) -> list[NDArray[Any]]:
        """For each waveform its windows' `finish(outputs)` joined, where `forward(values_BS, mask_BS)` gives outputs (B, T, X).

        Windows are cut at multiples of `multiple` frames. A waveform too short for a frame gives an empty (0,).
        """
        import torch

        longest = int(window_seconds * SAMPLE_RATE) // self.conv.stride
        cuts = [(i, *cut) for i, audio in enumerate(audios) for cut in self.conv.windows(len(audio), longest, multiple)]
        whole = [self._normed(audio) for audio in audios]
        windows = [whole[i][start:stop] for i, start, stop in cuts]
        done: list[NDArray[Any]] = [np.zeros(0)] * len(windows)
        with torch.inference_mode():
            for batch in self.batches([len(w) for w in windows]):
                outputs_BTX = forward(*self._inputs([windows[n] for n in batch]))
                for row, n in enumerate(batch):
                    done[n] = finish(outputs_BTX[row, : self.conv.frames(len(windows[n]))])
        parts: list[list[NDArray[Any]]] = [[] for _ in audios]
        for (i, _, _), result in zip(cuts, done, strict=True):
            parts[i].append(result)
        return [np.concatenate(p) if p else np.zeros(0) for p in parts]

    def _inputs(self, waveforms: Sequence[NDArray[np.float32]]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, samples) padded with zeros, and the mask (None where there is no padding)."""
        import torch

        longest = max(map(len, waveforms))
        values_BS = torch.from_numpy(np.stack([np.pad(row, (0, longest - len(row))) for row in waveforms]))
        mask_BS = None
        if self.padded and any(len(row) < longest for row in waveforms):
            lengths = torch.tensor([len(row) for row in waveforms])
            mask_BS = (torch.arange(longest)[None] < lengths[:, None]).long().to(self.device)
        return values_BS.to(self.device, self._dtype), mask_BS

    def _normed(self, waveform: NDArray[np.float32]) -> NDArray[np.float32]:
        if not self.normalize:
            return waveform
        wide = waveform.astype(np.float64)
        return np.asarray((wide - wide.mean()) / np.sqrt(wide.var() + 1e-7), np.float32)
