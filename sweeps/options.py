"""Sections of a study that every arm with the option shares: patching, mixture, network, training.

An option that an arm has not is left out of its runs. Not here: the study they belong to (`sweeps.study`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from lst.config import Arm, DataConfig, MixtureConfig, ModelConfig, PatchingConfig, TrainConfig
from lst.ladder import SPEECH_BPE_VOCAB, model_shape


@dataclass(frozen=True, kw_only=True)
class PatchingOptions:
    """The patching of every LST arm of the study; the kind comes from the arm (lst.config.PatchingConfig)."""

    patch_size: int = PatchingConfig.patch_size  # tokens of a static patch
    aligned_unit: str = PatchingConfig.aligned_unit  # word | bpe: what an aligned patch holds
    silence: str = PatchingConfig.silence  # separate | merged: frames outside words in aligned patches
    merge_side: str = PatchingConfig.merge_side  # previous | next: the neighbour that a merged silence joins
    boundary_noise_ms: tuple[int, int] = PatchingConfig.boundary_noise_ms  # aligned boundaries are moved by so much (A.11)
    draw: str = PatchingConfig.draw  # sequence | step: what lst_mixed and lst_curriculum draw static or aligned for
    mixed_aligned_share: float = PatchingConfig.mixed_aligned_share  # lst_mixed: probability of aligned
    curriculum_aligned_until: float = PatchingConfig.curriculum_aligned_until  # share of the steps that is all aligned
    curriculum_static_from: float = PatchingConfig.curriculum_static_from  # share of the steps after which all is static


@dataclass(frozen=True, kw_only=True)
class MixtureOptions:
    """What the training data is mixed from (lst.config.DataConfig)."""

    interleaved_token_share: float = DataConfig.interleaved_token_share  # tokens from interleaved documents
    text_span_words: tuple[int, int] = DataConfig.text_span_words  # words of a text span, smallest and largest
    speech_per_text_words: float = DataConfig.speech_per_text_words  # words of the speech span after it, as a share
    first_modality: str = DataConfig.first_modality  # random | text | speech: how an interleaved document begins
    pair_words: int = DataConfig.pair_words  # asr, tts: words of a pair of speech and text
    formats: MixtureConfig = field(default_factory=MixtureConfig)  # shares by format, in place of interleaved_token_share

    def applied_to(self, data: DataConfig) -> DataConfig:
        return dataclasses.replace(
            data,
            interleaved_token_share=self.interleaved_token_share,
            text_span_words=self.text_span_words,
            speech_per_text_words=self.speech_per_text_words,
            first_modality=self.first_modality,
            pair_words=self.pair_words,
            mixture=self.formats,
        )


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Options of the network that no size decides (lst.config.ModelConfig). The first five are of LST arms alone."""

    pooling: str = ModelConfig.pooling  # max | mean | last
    decoder_input: str = ModelConfig.decoder_input  # encoder | embedding | both
    cross_attention: str = ModelConfig.cross_attention  # all | preceding: closed units that a token sees
    local_text: bool = ModelConfig.local_text  # whether the local modules run on text tokens too
    queries_per_patch: int | None = None  # queries by which a patch reads its tokens; null or 0 = the rung's
    tied_head: bool = ModelConfig.tied_head  # every arm: whether the output head is the input embedding
    rope_theta: float = ModelConfig.rope_theta  # every arm: base of the rotary embedding
    speech_bpe_vocab: int = SPEECH_BPE_VOCAB  # bpe: pieces of speech tokens

    def applied_to(self, shape: ModelConfig) -> ModelConfig:
        """`shape` with the options that its arm has; the others stay out of it, and so out of its run ids."""
        shape = dataclasses.replace(shape, tied_head=self.tied_head, rope_theta=self.rope_theta)
        if shape.arm.plain:
            return shape if shape.arm is Arm.BASELINE else dataclasses.replace(shape, speech_bpe_vocab=self.speech_bpe_vocab)
        return dataclasses.replace(
            shape,
            pooling=self.pooling,
            decoder_input=self.decoder_input,
            cross_attention=self.cross_attention,
            local_text=self.local_text,
            queries_per_patch=self.queries_per_patch or shape.queries_per_patch,
        )

    def validate(self) -> None:
        """Raises ConfigError on a value that cannot be, whichever arms the study has."""
        self.applied_to(model_shape("tiny", Arm.LST_STATIC)).validate()


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What every run of the study does on a bad step and starts from (lst.config.TrainConfig)."""

    init_from: str = TrainConfig.init_from  # content hash of the weights to start from; their folder: execution.init_path
    bad_step: str = TrainConfig.bad_step  # halt | skip: what a non-finite or spiking loss does
    max_skipped_steps: int = TrainConfig.max_skipped_steps  # skip: steps that may be skipped
    spike_factor: float = TrainConfig.spike_factor  # a loss above this times the running mean is a spike; 0 = never
    spike_memory_steps: int = TrainConfig.spike_memory_steps  # steps over which that mean forgets

    def applied_to(self, train: TrainConfig) -> TrainConfig:
        return dataclasses.replace(train, **{f.name: getattr(self, f.name) for f in dataclasses.fields(self)})

    def validate(self) -> None:
        self.applied_to(TrainConfig()).validate()
