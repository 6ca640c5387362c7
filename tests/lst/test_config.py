"""Configurations: strict reading, identity, arms."""

import pytest

from lst.config import ARM_PATCHING, Arm, Patching, PatchingConfig, RunConfig, arm_config
from lst.errors import ConfigError
from lst.plain import merge, to_dict


@pytest.mark.parametrize("arm", list(Arm))
def test_a_configuration_survives_a_round_trip_through_plain_values(arm):
    config = arm_config(arm.value)
    assert RunConfig.from_dict(to_dict(config)) == config
    assert config.patching.kind is ARM_PATCHING[arm]


def test_the_run_id_ignores_execution_and_nothing_else():
    base = arm_config("lst_static")
    assert arm_config("lst_static", execution={"threads": 4, "data_path": "elsewhere"}).run_id == base.run_id
    for change in (
        {"train": {"seed": 1}},
        {"optim": {"lr": 1e-3}},
        {"data": {"seq_len_units": 64}},
        {"patching": {"patch_size": 3}},
        {"evaluation": {"seed": 3}},
        {"model": {"pooling": "mean"}},
    ):
        assert arm_config("lst_static", **change).run_id != base.run_id, change


def test_the_run_id_is_frozen():
    """Ids name folders on disk: a change of this value orphans every finished run, so it must be deliberate."""
    assert arm_config("baseline", size="tiny").run_id == "2747f6d6a465"


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"optim": {"learning_rate": 1.0}}, "unknown key 'optim.learning_rate'"),
        ({"optim": {"beta2": 1.0}}, "optim.beta2=1 would never forget"),
        ({"model": {"text_vocab": 2}}, "model.text_vocab=2 has no room for BOS"),
        ({"optim": {"lrr": 1.0}}, "did you mean 'lr'"),
        ({"optim": {"lr": "fast"}}, "optim.lr='fast' must be of type float"),
        ({"optim": {"lr": float("nan")}}, "optim.lr=nan must be finite"),
        ({"optim": {"lr": -1.0}}, "optim.lr=-1.0 must be positive"),
        ({"train": {"steps": 0}}, "train.steps=0 must be positive"),
        ({"train": {"steps": True}}, "must be of type int, not bool"),
        ({"train": 3}, "train=3 is no mapping"),
        ({"model": {"pooling": "median"}}, "model.pooling='median' is unknown"),
        ({"model": {"global_stack": {"heads": 5}}}, "does not split into 5 heads"),
        ({"data": {"text_span_words": [9, 2]}}, "is no range of words"),
        ({"patching": {"kind": "static"}}, "does not fit arm 'baseline'"),
        ({"patching": {"curriculum_aligned_until": 0.9, "curriculum_static_from": 0.2}}, "lies after"),
        ({"evaluation": {"story_choices": 3}}, "choose 2 or 4"),
        ({"model": {"speech_bpe_vocab": 1000}}, "model.speech_bpe_vocab=1000 is for arm 'bpe'; give 0 for arm 'baseline'"),
        ({"model": {"arm": "bpe", "speech_bpe_vocab": 501}}, "model.speech_bpe_vocab=501 must exceed model.speech_vocab=501"),
        ({"patching": {"aligned_unit": "phone"}}, "patching.aligned_unit='phone' is unknown; known: bpe, word"),
        ({"patching": {"silence": "merge"}}, "patching.silence='merge' is unknown; did you mean 'merged'?"),
        ({"patching": {"merge_side": "left"}}, "patching.merge_side='left' is unknown; known: next, previous"),
        ({"patching": {"draw": "batch"}}, "patching.draw='batch' is unknown; known: sequence, step"),
        ({"exec": {}}, "unknown key 'exec'; did you mean 'execution'"),
    ],
)
def test_bad_values_are_named_in_one_sentence(values, sentence):
    base = to_dict(arm_config("baseline"))
    with pytest.raises(ConfigError) as error:
        RunConfig.from_dict(merge(base, values))
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_arm_and_size_suggest_the_closest():
    with pytest.raises(ConfigError, match="did you mean 'lst_static'"):
        arm_config("lst_statik")
    with pytest.raises(ConfigError, match="did you mean 'w128'"):
        arm_config("baseline", size="w1288")


def test_a_key_that_is_given_as_a_section_is_shown_its_section():
    with pytest.raises(ConfigError, match=r"'local_text' is a key of a section, .*; give model=\{'local_text': ...\}\.$"):
        arm_config("lst_static", local_text=False)
    with pytest.raises(ConfigError, match=r"give train=\{'seed': ...\} or evaluation=\{'seed': ...\}\.$"):
        arm_config("lst_static", seed=1)
    with pytest.raises(ConfigError, match=r"unknown key 'modle'; did you mean 'model'"):
        arm_config("lst_static", modle={})


def test_the_curriculum_falls_linearly_between_its_thirds():
    curriculum = PatchingConfig(kind=Patching.CURRICULUM)
    values = [curriculum.aligned_probability(p) for p in (0, 0.33, 0.5, 0.58333333333333333, 0.67, 0.999)]
    assert values == pytest.approx([1, 1, 0.5, 0.25, 0, 0])
    assert PatchingConfig(kind=Patching.MIXED, mixed_aligned_share=0.3).aligned_probability(0.9) == 0.3
    assert curriculum.evaluation_kind is Patching.STATIC
    assert PatchingConfig(kind=Patching.ALIGNED).evaluation_kind is Patching.ALIGNED


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"evaluation": {"context_tokens": 2}}, "evaluation.context_tokens=2 is too short"),
        ({"evaluation": {"seed": -1}}, "evaluation.seed=-1 is no seed"),
        ({"train": {"seed": 2**63}}, "is no seed; give 0 or more, below 2^63"),
    ],
)
def test_values_that_could_not_run_are_refused_before_they_do(values, sentence):
    with pytest.raises(ConfigError, match=sentence.replace("^", r"\^")):
        RunConfig.from_dict(merge(to_dict(arm_config("baseline")), values))
