"""What decides one run: frozen, keyword-only dataclasses, read strictly from plain dicts, with a content hash.

A `RunConfig` is everything `lst.train` needs. Its `run_id` is the hash of what decides the result (model, patching, data,
optimiser, training, evaluation) and leaves out `execution` (paths, threads, micro-batches, checkpoint interval), so that
the same run keeps its id when it is priced, placed or scheduled otherwise. This module is not a command line: Hydra and
OmegaConf stay at the edges and hand plain dicts to `from_dict`.

    config = arm_config("lst_static", size="tiny", patching={"patch_size": 3})
    config.run_id        # 12 hex digits
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, get_type_hints

from lst.checks import require_choice, require_positive, require_seed, require_share
from lst.config_mixture import Format as Format
from lst.config_mixture import MixtureConfig as MixtureConfig
from lst.config_patching import Patching as Patching
from lst.config_patching import PatchingConfig as PatchingConfig
from lst.errors import ConfigError, did_you_mean
from lst.parent_run import PARENT_RUN as PARENT_RUN
from lst.parent_run import require_init_from
from lst.plain import check_once, from_dict, kept, merge, sections_hash, to_dict
from lst.schedule import DECAY_SHAPES, SCHEDULES, check_schedule


class Arm(StrEnum):
    """One side of a comparison (PAPER: Table 3)."""

    BASELINE = "baseline"
    BPE = "bpe"
    LST_STATIC = "lst_static"
    LST_ALIGNED = "lst_aligned"
    LST_MIXED = "lst_mixed"
    LST_CURRICULUM = "lst_curriculum"

    @property
    def plain(self) -> bool:
        """Whether the network is the global transformer alone, each id a unit."""
        return ARM_PATCHING[self] is Patching.TOKEN


ARM_PATCHING = {
    Arm.BASELINE: Patching.TOKEN,
    Arm.BPE: Patching.TOKEN,
    Arm.LST_STATIC: Patching.STATIC,
    Arm.LST_ALIGNED: Patching.ALIGNED,
    Arm.LST_MIXED: Patching.MIXED,
    Arm.LST_CURRICULUM: Patching.CURRICULUM,
}


ATTENTION_BACKENDS = ("auto", "blocked", "flex", "varlen", "xformers", "sdpa", "dense")


@dataclass(frozen=True, kw_only=True)
class StackConfig:
    """The shape of one stack of transformer layers."""

    layers: int  # number of layers
    dim: int  # width of the residual stream
    heads: int  # attention heads; dim / heads must be even (rotary embedding)
    ffn_dim: int  # hidden width of the gated feed-forward module
    window: int = 0  # causal attention window in tokens, the token itself included; 0 = unlimited

    def validate(self, name: str) -> None:
        for key in ("layers", "dim", "heads", "ffn_dim"):
            require_positive(f"{name}.{key}", getattr(self, key))
        if self.dim % self.heads or (self.dim // self.heads) % 2:
            raise ConfigError(
                f"{name}.dim={self.dim} does not split into {self.heads} heads of even width; "
                f"choose {name}.heads so that dim / heads is even."
            )
        if self.window < 0:
            raise ConfigError(f"{name}.window={self.window} is negative; give a number of tokens, or 0 for no window.")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network. The baseline and `bpe` have `global_stack` alone; LST arms have all three stacks."""

    arm: Arm  # which arm this network belongs to
    global_stack: StackConfig  # the transformer over units
    encoder: StackConfig | None = None  # patch encoder (local, token rate); None for the baseline
    decoder: StackConfig | None = None  # patch decoder (local, token rate); None for the baseline
    text_vocab: int = 32_000  # pieces of the text tokenizer
    speech_vocab: int = 501  # speech tokens (k-means centres)
    speech_bpe_vocab: int = 0  # bpe: pieces of speech tokens, which are ids in their place (PAPER: 1k); 0 for other arms
    queries_per_patch: int = 2  # k queries by which a patch reads its tokens (PAPER: BLT's dim_global / dim_local)
    pooling: str = "max"  # max | mean | last: how a patch's hidden states become its query
    decoder_input: str = "encoder"  # encoder | embedding | both: the decoder's token stream
    cross_attention: str = "all"  # all | preceding: closed units that a token's cross-attention sees (the paper's, or BLT's)
    local_text: bool = True  # encoder and decoder run on text tokens and markers too; false: on speech tokens alone
    tied_head: bool = False  # share the input embedding with the output head (only where widths agree)
    rope_theta: float = 500_000.0  # base of the rotary embedding (PAPER: 5e5)

    def validate(self) -> None:
        self.global_stack.validate("model.global_stack")
        local = (self.encoder, self.decoder)
        if self.arm.plain:
            if any(local):
                raise ConfigError(f"model.encoder and model.decoder must be null for arm '{self.arm}'; it has no local modules.")
        elif self.encoder is None or self.decoder is None:
            raise ConfigError(f"arm '{self.arm}' needs model.encoder and model.decoder; give both a shape.")
        else:
            self.encoder.validate("model.encoder")
            self.decoder.validate("model.decoder")
            if self.encoder.dim != self.decoder.dim:
                raise ConfigError(
                    f"model.encoder.dim={self.encoder.dim} differs from model.decoder.dim={self.decoder.dim}; "
                    "the decoder continues the encoder's token states, so make them equal."
                )
        if self.global_stack.window:
            raise ConfigError("model.global_stack.window must be 0; units attend to every earlier unit of their document.")
        require_choice("model.pooling", self.pooling, ("max", "mean", "last"))
        require_choice("model.decoder_input", self.decoder_input, ("encoder", "embedding", "both"))
        require_choice("model.cross_attention", self.cross_attention, ("all", "preceding"))
        for key in ("text_vocab", "speech_vocab", "queries_per_patch", "rope_theta"):
            require_positive(f"model.{key}", getattr(self, key))
        if self.text_vocab < 3:  # the ids of lst/data/vocab.py
            raise ConfigError(f"model.text_vocab={self.text_vocab} has no room for BOS (1) and EOS (2); give 3 or more.")
        if self.arm is not Arm.BPE and self.speech_bpe_vocab:
            raise ConfigError(f"model.speech_bpe_vocab={self.speech_bpe_vocab} is for arm 'bpe'; give 0 for arm '{self.arm}'.")
        if self.arm is Arm.BPE and self.speech_bpe_vocab <= self.speech_vocab:
            raise ConfigError(
                f"model.speech_bpe_vocab={self.speech_bpe_vocab} must exceed model.speech_vocab={self.speech_vocab}; each speech "
                "token is a piece, and merged ones come on top."
            )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which data, mixed and interleaved how. The path of the data is execution; its content is `data_id`."""

    data_id: str = ""  # content hash of the prepared data set
    speech_bpe_id: str = ""  # bpe: content hash of its speech pieces; the planner fills it in
    seq_len_units: int = 4096  # units of one packed sequence
    interleaved_token_share: float = 1 / 3  # tokens that come from interleaved documents; the rest is text only
    interleaved_sequence_share_static: float = 1 / 3  # sequences' share that keeps it, static or token patching
    interleaved_sequence_share_aligned: float = 1 / 3  # the same under the aligned patching
    text_span_words: tuple[int, int] = (4, 16)  # words of a text span: smallest and largest, uniform
    speech_per_text_words: float = 0.5  # words of the following speech span, as a share of the text span's
    first_modality: str = "random"  # random | text | speech: how an interleaved document begins
    pair_words: int = 64  # asr, tts: words of a pair of speech and text; a longer document is several pairs
    mixture: MixtureConfig = field(default_factory=MixtureConfig)  # shares by format, in place of interleaved_token_share
    mixture_sequences_static: tuple[float, ...] = ()  # shares of sequences by format (Format's order) that keep the mixture
    mixture_sequences_aligned: tuple[float, ...] = ()  # the same under the aligned patching; the planner fills in both

    def validate(self) -> None:
        require_positive("data.seq_len_units", self.seq_len_units)
        for key in ("interleaved_token_share", "interleaved_sequence_share_static", "interleaved_sequence_share_aligned"):
            require_share(f"data.{key}", getattr(self, key))
        low, high = self.text_span_words
        if not 1 <= low <= high:
            raise ConfigError(f"data.text_span_words={[low, high]} is no range of words; give [smallest, largest].")
        if not self.speech_per_text_words > 0:
            raise ConfigError(f"data.speech_per_text_words={self.speech_per_text_words} must be positive (the paper's is 0.5).")
        require_choice("data.first_modality", self.first_modality, ("random", "text", "speech"))
        require_positive("data.pair_words", self.pair_words)
        self.mixture.validate()
        if self.mixture.given and self.interleaved_token_share != DataConfig.interleaved_token_share:
            raise ConfigError(
                f"data.interleaved_token_share={self.interleaved_token_share} and data.mixture both say what is interleaved; "
                "give one of them."
            )
        for key in ("mixture_sequences_static", "mixture_sequences_aligned"):
            shares = getattr(self, key)
            if shares and (len(shares) != len(Format) or min(shares) < 0 or abs(sum(shares) - 1) > 1e-4):
                raise ConfigError(f"data.{key}={list(shares)} are no {len(Format)} shares that sum to 1; plan the run again.")

    @property
    def format_shares(self) -> dict[Format, float]:
        """The share of each format in tokens (or words: mixture.of)."""
        if self.mixture.given:
            return self.mixture.shares
        return dict.fromkeys(Format, 0.0) | {
            Format.INTERLEAVED: self.interleaved_token_share,
            Format.TEXT: 1 - self.interleaved_token_share,
        }

    def sequence_shares(self, patching: Patching) -> tuple[float, ...]:
        """Shares of sequences by format, in Format's order, under `patching`. Raises ConfigError where they are not solved."""
        aligned = patching is Patching.ALIGNED
        if not self.mixture.given:
            share = self.interleaved_sequence_share_aligned if aligned else self.interleaved_sequence_share_static
            return (share, 0.0, 0.0, 0.0, 1 - share)
        shares = self.mixture_sequences_aligned if aligned else self.mixture_sequences_static
        if not shares:
            raise ConfigError(
                "data.mixture is given, but not the sequences' shares that keep it; plan the run (plan-sweep), or fill "
                "config.data by lst.data.statistics.solve_mixture."
            )
        return shares


FIELDS_SINCE = {
    "data": ("first_modality", "pair_words", "mixture", "mixture_sequences_static", "mixture_sequences_aligned"),
    "evaluation": ("story_score",),
    "patching": ("boundary_noise_ms",),
}
"""Fields by section that came after runs had ids. At their defaults they change nothing, and are no part of the identity."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW and its schedule (PAPER: A.3)."""

    lr: float = 4e-4  # peak learning rate
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1  # on matrices only, not on gains and embeddings' norms
    warmup_steps: int = 2_000  # linear warm-up
    schedule: str = "cosine"  # cosine | wsd: after the warm-up, a cosine to the end, or stable and then a decay
    decay_share: float = 0.2  # wsd: share of all steps that decays, at the end
    decay_shape: str = "sqrt"  # wsd: sqrt (the factor 1 - sqrt(progress)) | linear
    final_lr_ratio: float = 0.01  # the last step's learning rate as a share of the peak
    clip: float = 1.0  # largest global gradient norm

    def validate(self) -> None:
        for key in ("lr", "eps", "clip"):
            require_positive(f"optim.{key}", getattr(self, key))
        for key in ("beta1", "beta2", "final_lr_ratio"):
            require_share(f"optim.{key}", getattr(self, key))
        for key in ("beta1", "beta2"):
            if getattr(self, key) == 1:
                raise ConfigError(f"optim.{key}=1 would never forget the first gradient; give a number below 1.")
        if self.warmup_steps < 0 or self.weight_decay < 0:
            raise ConfigError("optim.warmup_steps and optim.weight_decay must not be negative.")
        require_choice("optim.schedule", self.schedule, SCHEDULES)
        require_choice("optim.decay_shape", self.decay_shape, DECAY_SHAPES)
        if not 0 < self.decay_share <= 1:
            raise ConfigError(f"optim.decay_share={self.decay_share} must lie in (0, 1].")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length, batch and precision of the run."""

    steps: int = 200_000  # optimiser steps, the last included
    batch_sequences: int = 128  # sequences of a global batch
    final_batch_sequences: int = 0  # sequences of the LAST batch, to land on the budget; 0 = as the others
    seed: int = 0  # initial weights and data order
    init_from: str = ""  # weights to start from: by content (python -m lst.weights hash), or run:<run_id>; "" = random
    dtype: str = "float32"  # float32 | bfloat16 (autocast; weights stay float32)
    branch_steps: tuple[int, ...] = ()  # steps of earlier budgets: a WSD run yields a decayed checkpoint for each
    bad_step: str = "halt"  # halt | skip: what a non-finite or spiking loss does (skip: the weights stay as they are)
    max_skipped_steps: int = 10  # skip: steps that may be skipped; one more halts the run
    spike_factor: float = 0.0  # a loss above this times the running mean of the losses is a spike; 0 = never
    spike_memory_steps: int = 50  # steps over which that mean forgets; no spike is seen in as many first steps

    def validate(self) -> None:
        require_positive("train.steps", self.steps)
        require_positive("train.batch_sequences", self.batch_sequences)
        if not 0 <= self.final_batch_sequences <= self.batch_sequences:
            raise ConfigError(f"train.final_batch_sequences={self.final_batch_sequences} must lie in 0..{self.batch_sequences}.")
        require_seed("train.seed", self.seed)
        require_init_from(self.init_from)
        require_choice("train.dtype", self.dtype, ("float32", "bfloat16"))
        require_choice("train.bad_step", self.bad_step, ("halt", "skip"))
        require_positive("train.spike_memory_steps", self.spike_memory_steps)
        if self.max_skipped_steps < 0:
            raise ConfigError(f"train.max_skipped_steps={self.max_skipped_steps} is negative; give 0 or more.")
        if self.spike_factor and not self.spike_factor > 1:
            raise ConfigError(f"train.spike_factor={self.spike_factor} must be above 1, or 0 to look for no spikes.")
        if list(self.branch_steps) != sorted({s for s in self.branch_steps if 0 < s < self.steps}):
            raise ConfigError(
                f"train.branch_steps={list(self.branch_steps)} must rise and lie below train.steps={self.steps}; "
                "the run's own end needs no branch."
            )

    def sequences_at(self, step: int) -> int:
        """Sequences of the global batch of `step` (0-based)."""
        last = step == self.steps - 1 and self.final_batch_sequences > 0
        return self.final_batch_sequences if last else self.batch_sequences

    @property
    def total_sequences(self) -> int:
        return self.batch_sequences * (self.steps - 1) + self.sequences_at(self.steps - 1)


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Held-out evaluation. The documents and their interleaving are fixed, so that arms are compared on the same tokens."""

    heldout_documents: int = 256  # documents of each held-out set (speech, text, interleaved)
    context_tokens: int = 512  # tokens of a held-out document, cut there for every arm alike
    points: int = 1  # evaluations over the run, evenly spaced in steps, the last at the end
    story_items: int = 0  # story-completion items scored on the final checkpoint; 0 = none
    story_choices: int = 2  # endings of an item: 2 or 4
    story_score: str = "loglik_per_token"  # what decides: loglik_sum | loglik_per_token | loglik_gain (docs/evaluation.md)
    seed: int = 1234  # fixes held-out documents' choice and interleaving

    def validate(self) -> None:
        for key in ("heldout_documents", "points"):
            require_positive(f"evaluation.{key}", getattr(self, key))
        if self.context_tokens < 3:
            raise ConfigError(f"evaluation.context_tokens={self.context_tokens} is too short: BOS, a marker and a token are 3.")
        require_seed("evaluation.seed", self.seed)
        if self.story_items < 0:
            raise ConfigError(f"evaluation.story_items={self.story_items} is negative; give 0 for none.")
        if self.story_choices not in (2, 4):
            raise ConfigError(f"evaluation.story_choices={self.story_choices} is not offered; choose 2 or 4.")
        require_choice("evaluation.story_score", self.story_score, ("loglik_sum", "loglik_per_token", "loglik_gain"))


@dataclass(frozen=True, kw_only=True)
class ExecutionConfig:
    """Where and how fast: nothing here may change the result beyond rounding, so it is no part of the identity."""

    data_path: str = "embedded"  # folder of the prepared data set, or 'embedded'
    init_path: str = ""  # folder of what train.init_from names; run:<run_id>: "" = beside the run's own
    micro_batch_tokens: int = 16_384  # padded tokens of one forward pass; larger batches are accumulated
    threads: int = 1  # CPU threads of the process
    checkpoint_every_seconds: float = 60.0  # wall-clock seconds between checkpoints
    keep_steps: tuple[int, ...] = ()  # steps whose weights stay, in checkpoints/kept-<step>, to be evaluated meanwhile or later
    checkpoint_async: bool = False  # write checkpoints while training goes on, from a copy in the CPU's memory
    activation_checkpointing: str = "none"  # none | layers: keep only a layer's input, and compute it again backwards
    compile: bool = False  # torch.compile for the transformer layers: needs a C++ compiler, and minutes to start
    log_every: int = 1  # steps between training records
    device: str = "auto"  # auto | cpu | cuda
    peak_flops: float = 0.0  # FLOP/s of a process at which `mfu` would be 1; 0 = the GPU's in lst/hardware.py (a CPU: no mfu)
    attention: str = "auto"  # auto | one of ATTENTION_BACKENDS (lst/model/attention.py): same numbers, other speed

    def validate(self) -> None:
        for key in ("micro_batch_tokens", "threads", "checkpoint_every_seconds", "log_every"):
            require_positive(f"execution.{key}", getattr(self, key))
        require_choice("execution.activation_checkpointing", self.activation_checkpointing, ("none", "layers"))
        require_choice("execution.device", self.device, ("auto", "cpu", "cuda"))
        if list(self.keep_steps) != sorted({step for step in self.keep_steps if step > 0}):
            raise ConfigError(f"execution.keep_steps={list(self.keep_steps)} must be positive and rise.")
        if self.peak_flops < 0:
            raise ConfigError(f"execution.peak_flops={self.peak_flops} is negative; give 0 for the table's.")
        require_choice("execution.attention", self.attention, ATTENTION_BACKENDS)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run, whole."""

    model: ModelConfig
    patching: PatchingConfig
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvalConfig = field(default_factory=EvalConfig)
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)

    def validate(self) -> None:
        """Raises ConfigError on the first value that cannot be."""
        for section in dataclasses.fields(self):
            check_once(getattr(self, section.name))
        expected = ARM_PATCHING[self.model.arm]
        if self.patching.kind is not expected:
            raise ConfigError(f"patching.kind='{self.patching.kind}' does not fit arm '{self.model.arm}'; use '{expected}'.")
        if self.execution.init_path and not self.train.init_from:
            raise ConfigError(
                f"execution.init_path='{self.execution.init_path}' has no effect while train.init_from is empty; set "
                "train.init_from to what `python -m lst.weights hash FOLDER` prints, or leave both empty."
            )
        check_schedule(self.optim, self.train, length_decides_patching=self.patching.kind is Patching.CURRICULUM)

    @property
    def run_id(self) -> str:
        """Hash of what decides the result (DESIGN rule 6)."""
        return kept(self, "_run_id", lambda run: sections_hash(run, without="execution", optional=FIELDS_SINCE))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RunConfig:
        """Read strictly: an unknown key, a missing one or a wrong type is a ConfigError that names it."""
        config = from_dict(cls, values)
        config.validate()
        return config


def arm_config(arm: str, *, size: str = "tiny", baseline_match: str = "global_shape", **overrides: Any) -> RunConfig:
    """The configuration of `arm` at the ladder's `size`, with sections overridden by nested dicts.

    `overrides` are section names with dicts, as in `arm_config("lst_static", train={"steps": 10})`. `baseline_match` says what
    the baseline shares with the LST arms (lst.ladder.BaselineMatch: global_shape | lst_params); other arms do not change with it.
    Raises ConfigError on an unknown arm, size, baseline_match, section or key.
    """
    from lst.ladder import model_shape

    if arm not in list(Arm):
        raise ConfigError(f"arm='{arm}' is unknown; {did_you_mean(arm, list(Arm))}")
    values: dict[str, Any] = {
        "model": to_dict(model_shape(size, Arm(arm), baseline_match=baseline_match)),
        "patching": {"kind": ARM_PATCHING[Arm(arm)].value},
    }
    sections = get_type_hints(RunConfig)
    for key in (key for key in overrides if key not in sections):
        places = [f"{name}={{'{key}': ...}}" for name, of in sections.items() if key in get_type_hints(of)]
        if places:
            raise ConfigError(f"'{key}' is a key of a section, not a section; give {' or '.join(places)}.")
    return RunConfig.from_dict(merge(values, overrides))
