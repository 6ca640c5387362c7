"""Every arm and option that decoding is tested with, in tiny networks."""

import torch

from lst.config import Arm, arm_config
from lst.model import build_model
from tests.data.made_up_pieces import with_pieces

TEXT_VOCAB, SPEECH_VOCAB = 40, 30
LOCAL = {"pooling": "last", "decoder_input": "both"}
OPTIONS = [
    {},
    {"pooling": "mean"},
    {"pooling": "last"},
    {"queries_per_patch": 3},
    {"cross_attention": "preceding"},
    {"decoder_input": "embedding"},
    {"decoder_input": "both"},
    {"local_text": False},
    {"local_text": False, "cross_attention": "preceding", **LOCAL},
    {"encoder": {"window": 4}, "decoder": {"window": 5, "layers": 2}},
    {"encoder": {"window": 3, "layers": 2}, "decoder": {"window": 2}, "local_text": False},
    {"encoder": {"window": 0}, "decoder": {"window": 1}},
]
CASES = [(Arm.BASELINE, {}), (Arm.BPE, {}), (Arm.LST_CURRICULUM, {}), (Arm.LST_MIXED, {}), (Arm.LST_ALIGNED, {})]
CASES += [(Arm.LST_STATIC, option) for option in OPTIONS]


def config_of(arm=Arm.LST_STATIC, model=None, patch_size=3):
    vocabulary = {"text_vocab": TEXT_VOCAB, "speech_vocab": SPEECH_VOCAB}
    sections = with_pieces(arm.value, vocabulary | (model or {}))
    return arm_config(arm.value, size="tiny", **sections, patching={"patch_size": patch_size})


def network(config, dtype=torch.float64):
    return build_model(config).to(dtype).eval()
