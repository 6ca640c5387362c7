"""Audio -> speech tokens: Whisper layer-3 features, cleaned of position and speaker, whitened, nearest of 500 centres.

    features_FD --minus what the position predicts--> --minus the utterance's mean--> PCA-64, whitened --> nearest centre

All but the last step is linear and is stored folded: y = (f - basis @ position) @ projection, minus y's mean over the
utterance, minus bias. The quantizer itself runs in float64 numpy; only the encoder's float32 differs between machines.

Not deduplicated, 25 tokens a second. The tokens are units of an English ASR encoder, not the paper's HuBERT units.
Shapes: F frames at 25 Hz, D width of the encoder (384), C components (64), K centres (500).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lst.data.vocab import FRAMES_PER_SECOND
from lst.errors import DataError, did_you_mean

NUM_CENTRES = 500
MOST_CENTRES = 1 << 16  # whose numbers 16 bits hold
CARD_KEYS = ("model", "layer", "k", "rate_hz", "dedup")  # that a card must have
NUM_COMPONENTS = 64
_RIDGE = 10.0
_MAX_FRAMES = 750
_ITERATIONS = 40


@dataclass(frozen=True)
class Quantizer:
    """The fitted numbers, float32 as stored."""

    projection_DC: NDArray[np.float32]  # PCA axes divided by their standard deviations
    position_DC: NDArray[np.float32]  # sinusoids of the frame number -> what they predict, already projected
    bias_C: NDArray[np.float32]
    centres_KC: NDArray[np.float32]

    def embed(self, features_FD: NDArray[np.float32]) -> NDArray[np.float64]:
        """Whitened components (F, C) of one utterance that starts at frame 0."""
        y = features_FD.astype(np.float64) @ self.projection_DC.astype(np.float64)
        y -= position_basis(len(y), len(self.position_DC)) @ self.position_DC.astype(np.float64)
        return np.asarray(y - y.mean(0) - self.bias_C, np.float64)

    def tokens(self, features_FD: NDArray[np.float32]) -> NDArray[np.uint16]:
        """The nearest centre of each frame, 0..499; ties go to the lower number."""
        if not len(features_FD):
            return np.zeros(0, np.uint16)
        return nearest(self.embed(features_FD), self.centres_KC.astype(np.float64)).astype(np.uint16)

    def save(self, file: Path) -> None:
        from safetensors.numpy import save_file

        save_file({f.name: np.ascontiguousarray(getattr(self, f.name)) for f in dataclasses.fields(self)}, file)

    @classmethod
    def load(cls, file: Path) -> Quantizer:
        """Raises DataError if the file is missing or lacks a part."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            return cls(**load_file(file))
        except (OSError, SafetensorError, TypeError) as error:
            raise DataError(f"quantizer '{file}' cannot be read ({error}); rebuild it: prepare-data corpus=embedded.") from error


def position_basis(frames: int, width: int = 384) -> NDArray[np.float64]:
    """Whisper's position sinusoids at 50 Hz, averaged over the two encoder frames of each 25 Hz frame: (frames, width)."""
    half = width // 2
    rates = np.exp(-np.log(10_000) / (half - 1) * np.arange(half))
    angles = np.arange(2 * frames)[:, None] * rates[None]
    waves = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    return np.asarray(waves.reshape(frames, 2, width).mean(1), np.float64)


def nearest(points_NC: NDArray[np.float64], centres_KC: NDArray[np.float64]) -> NDArray[np.int64]:
    """Index of the centre with the smallest squared distance, in blocks."""
    norms = (centres_KC**2).sum(1)
    blocks = np.array_split(points_NC, max(1, len(points_NC) // 8192))
    return np.concatenate([(norms - 2 * block @ centres_KC.T).argmin(1) for block in blocks])


def fit_quantizer(
    utterances: Sequence[NDArray[np.float32]],
    *,
    seed: int,
    centres: int = NUM_CENTRES,
    components: int = NUM_COMPONENTS,
    iterations: int = _ITERATIONS,
) -> Quantizer:
    """Fit position regression, PCA and k-means on the features of `utterances` (each (F, D), starting at frame 0).

    Raises DataError if there are fewer frames than ten a centre.
    """
    frames = sum(len(u) for u in utterances)
    if frames < 10 * centres:
        raise DataError(f"{frames:,} frames are too few for {centres} centres; give at least {10 * centres:,}.")
    weights_DD = _regress_position(utterances)
    basis = position_basis(_MAX_FRAMES, len(weights_DD))
    covariance = np.zeros_like(weights_DD)
    for utterance in utterances:
        residual = utterance - basis[: len(utterance)] @ weights_DD
        residual -= residual.mean(0)
        covariance += residual.T @ residual
    projection = _whitening(covariance / frames, components)
    unplaced = Quantizer(
        projection.astype(np.float32),
        (weights_DD @ projection).astype(np.float32),
        np.zeros(components, np.float32),
        np.zeros((0, components), np.float32),
    )
    points = np.concatenate([unplaced.embed(u) for u in utterances])
    bias = points.mean(0).astype(np.float32)
    found = fit_kmeans(points - bias, centres, iterations=iterations, seed=seed)
    return dataclasses.replace(unplaced, bias_C=bias, centres_KC=found.astype(np.float32))


def _regress_position(utterances: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
    """Ridge regression (D, D) from centred position sinusoids to centred features."""
    width = utterances[0].shape[1]
    basis = position_basis(_MAX_FRAMES, width)
    counts, sums = np.zeros(_MAX_FRAMES), np.zeros((_MAX_FRAMES, width))
    for utterance in utterances:  # all that the regression needs: how many frames stand at each position, and their sum
        counts[: len(utterance)] += 1
        sums[: len(utterance)] += utterance
    centred = basis - counts @ basis / counts.sum()
    gram = (centred * counts[:, None]).T @ centred
    cross = centred.T @ (sums - counts[:, None] * (sums.sum(0) / counts.sum()))
    return np.asarray(np.linalg.solve(gram + _RIDGE * np.eye(width), cross), np.float64)


def _whitening(covariance_DD: NDArray[np.float64], components: int) -> NDArray[np.float64]:
    """The leading principal axes (D, C), each divided by its standard deviation; the largest entry of each is positive."""
    values, vectors = np.linalg.eigh(covariance_DD)
    values, vectors = values[::-1][:components], vectors[:, ::-1][:, :components]
    signs = np.sign(vectors[np.abs(vectors).argmax(0), np.arange(components)])
    return np.asarray(vectors * signs / np.sqrt(values), np.float64)


def fit_kmeans(points_NC: NDArray[np.float64], centres: int, *, iterations: int, seed: int) -> NDArray[np.float64]:
    """Lloyd's algorithm from seeded points; an empty centre restarts at a seeded point."""
    rng = np.random.default_rng(seed)
    centres_KC = points_NC[rng.choice(len(points_NC), centres, replace=False)].copy()
    for _ in range(iterations):
        owner = nearest(points_NC, centres_KC)
        counts = np.bincount(owner, minlength=centres)
        order = np.argsort(owner, kind="stable")
        filled = np.flatnonzero(counts)
        firsts = np.concatenate([[0], np.cumsum(counts[filled])[:-1]])
        centres_KC[filled] = np.add.reduceat(points_NC[order], firsts, axis=0) / counts[filled, None]
        empty = np.flatnonzero(counts == 0)
        centres_KC[empty] = points_NC[rng.choice(len(points_NC), len(empty), replace=False)]
    return centres_KC


@dataclass(frozen=True, kw_only=True)
class SpeechTokenizerCard:
    """What made a data set's speech tokens: enough to tell whether two data sets can be mixed."""

    model: str  # the feature encoder
    layer: int  # blocks run
    k: int  # centres
    rate_hz: int
    dedup: bool
    features: str = ""  # what happens between the encoder and the centres
    quantizer_sha256: str = ""  # of the centres' file; "" is not known
    weights_sha256: str = ""  # of the encoder's weights
    fitted_on: Mapping[str, Any] = field(default_factory=dict)  # documents, frames, speakers, seed
    versions: Mapping[str, str] = field(default_factory=dict)  # packages
    measured: Mapping[str, Any] = field(default_factory=dict)  # phone accuracy, perplexities, repeat rate

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def identity(self) -> dict[str, Any]:
        """What decides the tokens. A model's name counts only where no checksum says which one it is."""
        decisive = ("layer", "k", "rate_hz", "dedup", "features", "quantizer_sha256", "weights_sha256")
        return {name: getattr(self, name) for name in decisive} | ({} if self.weights_sha256 else {"model": self.model})

    @classmethod
    def read_file(cls, file: Path) -> SpeechTokenizerCard:
        """The card that a user wrote about ready tokens: model, layer, k, rate_hz, dedup and, if known, the rest.

        Raises DataError if a key is unknown, missing or of another type, or it does not tell of 25 Hz with repetitions.
        """
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            content = content.get("speech_tokenizer", content)
            given = set(content.keys())
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            wanted = f"write JSON with {', '.join(CARD_KEYS)}"
            raise DataError(f"card={file} is no card of a speech tokenizer ({error}); {wanted}.") from error
        known = [spec.name for spec in dataclasses.fields(cls)]
        for key in sorted(given - set(known)):
            raise DataError(f"card={file} has the key '{key}'; {did_you_mean(key, known)}")
        for key in CARD_KEYS:
            if key not in given:
                raise DataError(f"card={file} lacks '{key}'; a card has {', '.join(CARD_KEYS)}.")
        card = cls(**content)
        for spec in dataclasses.fields(cls):
            kind = {"str": str, "int": int, "bool": bool}.get(str(spec.type), Mapping)
            if not isinstance(getattr(card, spec.name), kind) or (kind is int and isinstance(getattr(card, spec.name), bool)):
                raise DataError(f"card={file}: {spec.name}={getattr(card, spec.name)!r} must be of type {spec.type}.")
        if not 1 <= card.k <= MOST_CENTRES:
            raise DataError(f"card={file}: k={card.k} must lie in 1..{MOST_CENTRES}, for speech tokens are kept in 16 bits.")
        if card.rate_hz != FRAMES_PER_SECOND or card.dedup:
            raise DataError(
                f"card={file} tells of {card.rate_hz} tokens a second, dedup={card.dedup}; data sets hold {FRAMES_PER_SECOND} a "
                "second with their repetitions: tell how they were brought to that in `features`."
            )
        return card

    @classmethod
    def read(cls, folder: Path) -> SpeechTokenizerCard:
        """The card of a data folder, checked against its quantizer file. Raises DataError if they disagree."""
        try:
            card = cls(**json.loads((folder / "card.json").read_text(encoding="utf-8"))["speech_tokenizer"])
            digest = hashlib.sha256((folder / "quantizer.safetensors").read_bytes()).hexdigest()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"'{folder}' has no readable speech tokenizer card ({error}); rebuild the data set.") from error
        if digest != card.quantizer_sha256:
            raise DataError(f"'{folder / 'quantizer.safetensors'}' is not the file of its card; rebuild the data set.")
        return card
