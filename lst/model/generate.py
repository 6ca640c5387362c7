"""Documents that go on: text or speech after a prompt, token by token with caches (lst.model.stepper).

    [result] = generate(model, config, [[("text", [12, 7])]], direction="T->S", max_tokens=100)
    result.segments          # (("speech", (3, 90, ...)),): speech tokens as their tokenizer numbers them

What may come (docs/generation.md), V the vocabulary of lst/data/vocab.py:

    direction       prompt ends in    put after it     may come, all else is masked                        ends
    T->S            text              marker <s>       speech tokens, EOS, marker <t>                      at EOS, at <t>
    S->S            speech            -                the same
    S->T            speech            marker <t>       text pieces (not BOS), EOS, marker <s>              at EOS, at <s>
    T->T            text              -                the same
    None            text or speech    -                every id: nothing is masked                         at EOS

and each ends after `max_tokens` ids. Arm `bpe` has pieces of speech tokens for speech tokens. Generated speech is cut into
static patches of `patching.patch_size`, which go on from the prompt's last one: an alignment would have to come from the
future (DESIGN rule 2). Not here: how a token's logits are made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lst.config import Patching, RunConfig
from lst.data.speech_bpe import SpeechBpe, run_pieces
from lst.data.vocab import EOS, MARKER, SPEECH, TEXT, Vocabulary
from lst.errors import ConfigError, DataError, RunFailed, did_you_mean
from lst.flops import parameter_counts
from lst.model.batch import Batch, make_batch
from lst.model.build import count_parameters
from lst.model.lst import Baseline, LatentSpeechText
from lst.model.stepper import Stepper
from lst.sampling import Sampling, generation_patching

DIRECTIONS = ("S->S", "T->T", "S->T", "T->S")
_NAMES = {"S": "speech", "T": "text"}
FALLBACK = "generated under static patches, on which arm 'lst_aligned' was not trained"


class Stop(StrEnum):
    """Why a generation ended."""

    MAX_TOKENS = "max_tokens"
    EOS = "eos"
    SWITCH = "switch"  # the marker of the other modality, in a direction


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What came after one prompt."""

    ids: tuple[int, ...]  # ids of the joint vocabulary (arm bpe: of pieces), an EOS or marker that ended it included
    segments: tuple[tuple[str, tuple[int, ...]], ...]  # the same as make_batch takes it; without markers, BOS and EOS
    logliks: tuple[float, ...]  # of each id: log-probability (nats) by the model's own logits, unmasked, at temperature 1
    stop: Stop
    prompt_units: int  # closed units of the prompt, with the marker that the direction puts
    global_steps: int  # units that closed after the prompt: steps of the global transformer. The last id is not processed
    patching: Patching  # of the speech: token | static | aligned (then in the prompt only)
    note: str = ""  # what a reader of the result must be told, or ""

    @property
    def units(self) -> int:
        """Closed units of the whole document."""
        return self.prompt_units + self.global_steps

    @property
    def loglik_sum(self) -> float:
        return math.fsum(self.logliks)


def generate(
    model: nn.Module,
    config: RunConfig,
    prompts: Sequence[Sequence[Any]],
    *,
    direction: str | None = None,
    max_tokens: int,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    static_fallback: bool = False,
) -> list[Generation]:
    """Continue each of `prompts`, documents of segments as `make_batch` takes them; a prompt's result does not depend on others.

    `direction` says what may come (see the module). `temperature` 0 is greedy; above 0 ids are drawn with `generator`, from
    which each prompt gets a stream of its own, in order. `static_fallback` lets arm `lst_aligned` generate under static
    patches (prompts included), which the result's `note` says. The model stays as it is, on its device. Prompts have no limit.

    Raises ConfigError on an option that cannot be, DataError on a prompt that cannot be, RunFailed on logits that are no
    finite numbers.
    """
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    sampling.validate()
    if max_tokens < 1:
        raise ConfigError(f"max_tokens={max_tokens} must be 1 or more.")
    if direction is not None and direction not in DIRECTIONS:
        raise ConfigError(f"direction='{direction}' is unknown; {did_you_mean(direction, DIRECTIONS)}")
    if temperature > 0 and generator is None:
        raise ConfigError(f"temperature={temperature} draws ids; give a torch.Generator, or temperature=0 for the most probable.")
    network = _network(model, config)
    kind = generation_patching(config, direction, static_fallback=static_fallback)
    documents = [_document(number, prompt, direction) for number, prompt in enumerate(prompts)]
    if not documents:
        return []
    batch = make_batch(documents, config, kind=kind).to(next(network.parameters()).device)
    run = _Run(network, config, batch, kind, direction, sampling)
    draws_BN = _draws(generator, len(documents), max_tokens) if temperature > 0 else None
    note = FALLBACK if kind is not config.patching.evaluation_kind else ""
    return [row.result(run, kind, note) for row in run.to_the_end(max_tokens, draws_BN)]


class _Row:
    """What has come after one prompt."""

    def __init__(self, number: int, prompt_units: int) -> None:
        self.number, self.prompt_units, self.units = number, prompt_units, prompt_units
        self.ids: list[int] = []
        self.logliks: list[float] = []
        self.stop = Stop.MAX_TOKENS

    def result(self, run: _Run, kind: Patching, note: str) -> Generation:
        return Generation(
            ids=tuple(self.ids),
            segments=_segments(np.array(self.ids), run.vocabulary, run.pieces),
            logliks=tuple(self.logliks),
            stop=self.stop,
            prompt_units=self.prompt_units,
            global_steps=self.units - self.prompt_units,
            patching=kind,
            note=note,
        )


class _Run:
    """Prompts on their way. Rows that have stopped leave the batch."""

    def __init__(
        self,
        network: Baseline | LatentSpeechText,
        config: RunConfig,
        batch: Batch,
        kind: Patching,
        direction: str | None,
        sampling: Sampling,
    ) -> None:
        self.vocabulary, self.pieces = Vocabulary.of(config.model), run_pieces(config)
        self.patch_size = 1 if kind is Patching.TOKEN else config.patching.patch_size
        self.sampling = sampling
        self.allowed_V = None if direction is None else allowed_ids(self.vocabulary, direction).to(batch.ids_BT.device)
        self.stepper, self.logits_BV = Stepper.start(network, batch)
        self.rows = [_Row(number, int(units)) for number, units in enumerate(self.stepper.closed_units)]

    def to_the_end(self, max_tokens: int, draws_BN: Tensor | None) -> list[_Row]:
        running = list(self.rows)
        for n in range(max_tokens):
            draw_B = None if draws_BN is None else draws_BN[[row.number for row in running], n]
            ids_B, logliks_B = choose(self.logits_BV, self.allowed_V, self.sampling, draw_B)
            self._take(running, ids_B, logliks_B)
            going = np.flatnonzero([row.stop is Stop.MAX_TOKENS for row in running])
            if not len(going) or n + 1 == max_tokens:
                break
            if len(going) < len(running):
                self.stepper.keep(going)
                running, ids_B = [running[i] for i in going], ids_B[going]
            self._step(running, ids_B)
        return self.rows

    def _take(self, running: list[_Row], ids_B: NDArray[np.int64], logliks_B: NDArray[np.float64]) -> None:
        kinds_B = self.vocabulary.modality(ids_B)
        for row, token, loglik, kind in zip(running, ids_B.tolist(), logliks_B.tolist(), kinds_B.tolist(), strict=True):
            if not math.isfinite(loglik):
                raise RunFailed(
                    f"prompt {row.number}: the model's logits of generated id {len(row.ids)} are no finite numbers; "
                    "its weights are damaged or its training diverged."
                )
            row.ids.append(token)
            row.logliks.append(loglik)
            if token == EOS:
                row.stop = Stop.EOS
            elif kind == MARKER and self.allowed_V is not None:
                row.stop = Stop.SWITCH

    def _step(self, running: list[_Row], ids_B: NDArray[np.int64]) -> None:
        """A static patch closes at its p-th token, all else at itself (lst/patching.py)."""
        speech_B = self.vocabulary.modality(ids_B) == SPEECH
        closes_B = ~speech_B | (self.stepper.open_tokens + 1 == self.patch_size)
        self.logits_BV = self.stepper.step(ids_B, closes_B, speech_B)
        for row, units in zip(running, self.stepper.closed_units.tolist(), strict=True):
            row.units = units


def choose(
    logits_BV: Tensor, allowed_V: Tensor | None, sampling: Sampling, draw_B: Tensor | None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The next id of each row, and its log-probability by the logits alone. `draw_B` is uniform in [0, 1)."""
    wide_BV = logits_BV.double()
    masked_BV = wide_BV if allowed_V is None else wide_BV.masked_fill(~allowed_V, -math.inf)
    if sampling.temperature == 0:
        id_B1 = masked_BV.argmax(1, keepdim=True)
    else:
        assert draw_B is not None
        id_B1 = _sample(masked_BV / sampling.temperature, sampling, draw_B.to(masked_BV.device))
    loglik_B = wide_BV.log_softmax(1).gather(1, id_B1)[:, 0]
    return id_B1[:, 0].cpu().numpy(), loglik_B.cpu().numpy()


def _sample(scores_BV: Tensor, sampling: Sampling, draw_B: Tensor) -> Tensor:
    """The id at which the cumulated probability of the kept ids, most probable first, passes the draw."""
    p_BV, order_BV = scores_BV.softmax(1).sort(dim=1, descending=True, stable=True)
    if sampling.top_k:
        p_BV[:, sampling.top_k :] = 0
    before_BV = p_BV.cumsum(1) - p_BV
    p_BV = p_BV.masked_fill(before_BV >= sampling.top_p * p_BV.sum(1, keepdim=True), 0)
    total_BV = p_BV.cumsum(1)
    place_B1 = torch.searchsorted(total_BV, draw_B[:, None] * total_BV[:, -1:], right=True)
    last_B1 = ((p_BV > 0).sum(1, keepdim=True) - 1).clamp(min=0)  # a draw that rounding carries past the end
    return order_BV.gather(1, place_B1.minimum(last_B1))


def _draws(generator: torch.Generator | None, prompts: int, tokens: int) -> Tensor:
    """Uniform numbers for each prompt and token. Prompt i's depend on the generator and on i alone."""
    assert generator is not None
    seeds = [int(torch.randint(2**62, (), generator=generator, device=generator.device)) for _ in range(prompts)]
    streams = [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.stack([torch.rand(tokens, generator=stream, dtype=torch.float64) for stream in streams])


def allowed_ids(vocabulary: Vocabulary, direction: str) -> Tensor:
    """Which ids may come in a direction, (V,)."""
    to_speech = direction.endswith("S")
    kinds = vocabulary.modality(np.arange(vocabulary.size))
    allowed = kinds == (SPEECH if to_speech else TEXT)
    allowed[[EOS, vocabulary.text_marker if to_speech else vocabulary.speech_marker]] = True
    return torch.from_numpy(allowed)


def _network(model: nn.Module, config: RunConfig) -> Baseline | LatentSpeechText:
    if not isinstance(model, Baseline | LatentSpeechText) or count_parameters(model) != parameter_counts(config.model):
        raise ConfigError(
            f"the model is not the one that the configuration describes (arm '{config.model.arm}'); "
            "give the configuration that it was built from."
        )
    return model


def _document(number: int, prompt: Sequence[Any], direction: str | None) -> list[Any]:
    """The prompt, and the marker of what `direction` asks for as a segment without tokens."""
    if not len(prompt):
        raise DataError(f'prompt {number} is empty; give a segment, or ("text", []) for a document from its start.')
    document = list(prompt)
    if direction is None:
        return document
    source, target = (_NAMES[name] for name in direction.split("->"))
    if document[-1][0] != source and document[-1][0] in _NAMES.values():  # make_batch refuses other names
        fitting = f"{document[-1][0][:1].upper()}->{direction[-1]}"
        raise DataError(
            f"prompt {number} ends in {document[-1][0]}, and direction='{direction}' goes on from {source}; use '{fitting}'."
        )
    return document if source == target else [*document, (target, [])]


def _segments(
    ids: NDArray[np.int64], vocabulary: Vocabulary, pieces: SpeechBpe | None
) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Runs of text and of speech; markers, BOS and EOS part them. Arm `bpe`: speech tokens of the pieces."""
    kinds = vocabulary.modality(ids)
    segments: list[tuple[str, tuple[int, ...]]] = []
    for kind, run in groupby(zip(kinds.tolist(), ids.tolist(), strict=True), key=lambda item: item[0]):
        tokens = np.array([token for _, token in run])
        if kind == SPEECH:
            speech = tokens - vocabulary.text
            segments.append(("speech", tuple((pieces.decode(speech) if pieces else speech).tolist())))
        elif kind == TEXT:
            segments.append(("text", tuple(tokens.tolist())))
    return tuple(segments)
