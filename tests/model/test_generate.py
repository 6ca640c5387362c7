"""`generate`: greedy and drawn continuations, what may come, what ends it, and what is refused."""

import dataclasses
import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from lst.config import Arm, Patching
from lst.data.vocab import EOS, SPEECH, TEXT, Vocabulary
from lst.errors import ConfigError, DataError, RunFailed
from lst.model import generate, make_batch
from lst.model.generate import DIRECTIONS, Stop, choose
from lst.patching import closing_positions, visible_units
from lst.sampling import Sampling
from tests.data.made_up_pieces import made_up_pieces
from tests.model.decoding_cases import CASES, SPEECH_VOCAB, TEXT_VOCAB, config_of, network

VOCABULARY = Vocabulary(text=TEXT_VOCAB, speech=SPEECH_VOCAB)
PROMPTS = [
    [("text", [5, 6, 7]), ("speech", [1, 2, 3, 4, 5, 6, 7])],  # two patches of three and an open one
    [("speech", [8, 8, 9])],
    [("text", [11]), ("speech", [3, 4]), ("text", [4]), ("speech", [9])],
]


def batch_of_ids(ids, config):
    """A document of any ids, in any order, under static patches or none; not made by make_batch."""
    kinds = Vocabulary.of(config.model).modality(np.array(ids))
    size = 1 if config.model.arm.plain else config.patching.patch_size
    lengths, complete = [], []
    for before, kind in zip([None, *kinds], kinds, strict=False):
        if not (kind == before == SPEECH) or lengths[-1] == size:
            lengths.append(0)
            complete.append(True)
        lengths[-1] += 1
        complete[-1] = kind != SPEECH or lengths[-1] == size
    units, tokens = len(lengths), len(ids)
    visible = visible_units(closing_positions(np.array(lengths), np.array(complete)), tokens)
    return dataclasses.replace(
        make_batch([[("text", [3] * (tokens - 2))]], config),
        ids_BT=torch.tensor([ids]),
        unit_BT=torch.from_numpy(np.repeat(np.arange(units), lengths))[None],
        visible_BT=torch.from_numpy(visible)[None],
        speech_BT=torch.from_numpy(kinds == SPEECH)[None],
        unit_doc_BU=torch.zeros(1, units, dtype=torch.int64),
        unit_position_BU=torch.arange(units)[None],
        row_units=(units,),
    )


def by_full_forwards(model, config, prompt, target, max_tokens, kind=None):
    """Greedy generation without a cache: the whole document anew for each token. Ids, log-likelihoods, closed units.

    The units are those of the last forward pass, which has not seen the last id.
    """
    vocabulary = Vocabulary.of(config.model)
    same = prompt[-1][0] == target
    head, begun = (prompt[:-1], prompt[-1][1]) if same else (prompt, [])
    kinds = vocabulary.modality(np.arange(vocabulary.size))
    other = vocabulary.text_marker if target == "speech" else vocabulary.speech_marker
    allowed = [i for i, k in enumerate(kinds) if k == (SPEECH if target == "speech" else TEXT) or i in (EOS, other)]
    first = TEXT_VOCAB if target == "speech" else 0
    start = make_batch([[*head, (target, begun)]], config, kind=kind)
    ids, logliks = [], []
    while len(ids) < max_tokens and not {EOS, other} & {*ids}:
        if config.model.arm is Arm.BPE:  # make_batch would cut other pieces
            batch = batch_of_ids([*start.ids_BT[0].tolist(), *ids], config)
        else:
            batch = make_batch([[*head, (target, [*begun, *(i - first for i in ids)])]], config, kind=kind)
        with torch.no_grad():
            logits = model(batch)[0, -1]
        ids.append(max(allowed, key=lambda i: float(logits[i])))
        logliks.append(float(logits.log_softmax(0)[ids[-1]]))
    return ids, logliks, int(batch.visible_BT[0, -1])


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("arm", "options"), [case for case in CASES if case[0] is not Arm.LST_ALIGNED])
def test_greedy_generation_is_greedy_by_full_forwards(arm, options, direction):
    config = config_of(arm, options)
    model = network(config)
    prompts = PROMPTS if direction[0] == "S" else [[*prompt, ("text", [9, 10])] for prompt in PROMPTS]
    results = generate(model, config, prompts, direction=direction, max_tokens=9)
    target = "speech" if direction[-1] == "S" else "text"
    for prompt, result in zip(prompts, results, strict=True):
        ids, logliks, units = by_full_forwards(model, config, prompt, target, 9)
        assert list(result.ids) == ids
        assert result.logliks == pytest.approx(logliks, abs=1e-10)
        assert result.loglik_sum == pytest.approx(sum(logliks), abs=1e-9)
        assert result.units == units
        begin = prompt if prompt[-1][0] == target else [*prompt, (target, [])]
        assert result.prompt_units == int(make_batch([begin], config).visible_BT[0, -1])


def test_an_aligned_prompt_goes_on_in_text():
    config = config_of(Arm.LST_ALIGNED)
    model = network(config)
    prompt = [("text", [5, 6]), ("speech", [1, 2, 3, 4, 5, 6, 7], [(1, 2), (4, 5)])]
    [result] = generate(model, config, [prompt], direction="S->T", max_tokens=9)
    assert list(result.ids) == by_full_forwards(model, config, prompt, "text", 9)[0]
    assert (result.patching, result.note) == (Patching.ALIGNED, "")


def test_aligned_speech_is_refused_or_static_and_labelled():
    config = config_of(Arm.LST_ALIGNED)
    model = network(config)
    for direction, asked in (("S->S", "direction='S->S' generates speech"), (None, "no direction was given, so speech may come")):
        with pytest.raises(ConfigError, match=rf"^{asked}, and .* knows no alignment .*; give static_fallback=True"):
            generate(model, config, PROMPTS, direction=direction, max_tokens=4)
    results = generate(model, config, PROMPTS, direction="S->S", max_tokens=9, static_fallback=True)
    for prompt, result in zip(PROMPTS, results, strict=True):
        assert list(result.ids) == by_full_forwards(model, config, prompt, "speech", 9, Patching.STATIC)[0]
        assert result.patching is Patching.STATIC
        assert "not trained" in result.note
    [labelled] = generate(network(config_of()), config_of(), PROMPTS[:1], max_tokens=2, static_fallback=True)
    assert labelled.note == ""


@pytest.mark.parametrize("arm", [Arm.BASELINE, Arm.LST_STATIC])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("options", [{}, {"local_text": False}])
def test_a_row_does_not_depend_on_its_neighbours(arm, temperature, options):
    config = config_of(arm, options if arm is Arm.LST_STATIC else {})
    model = network(config)

    def run(prompts):
        generator = torch.Generator().manual_seed(3)
        return generate(model, config, prompts, max_tokens=40, temperature=temperature, generator=generator)

    together = run(PROMPTS)
    others = run([PROMPTS[0], [("text", list(range(3, 30)))], PROMPTS[2], PROMPTS[1]])
    for row in (0, 2):
        assert together[row].ids == others[row].ids
        assert together[row].logliks == pytest.approx(others[row].logliks, abs=1e-10)
        assert (together[row].stop, together[row].units) == (others[row].stop, others[row].units)
    if temperature:
        assert len({len(result.ids) for result in together}) > 1  # rows left while others went on


@pytest.mark.parametrize("arm", [Arm.LST_STATIC, Arm.BPE])
def test_unmasked_documents_equal_their_full_forward(arm):
    """Markers, EOS and BOS may come anywhere; log-likelihoods are those of one forward pass over the ids."""
    config = config_of(arm)
    model = network(config)
    vocabulary = Vocabulary.of(config.model)
    generator = torch.Generator().manual_seed(11)
    results = generate(model, config, PROMPTS * 8, max_tokens=30, temperature=4.0, generator=generator)
    switched = 0
    for prompt, result in zip(PROMPTS * 8, results, strict=True):
        begun = make_batch([prompt], config).ids_BT[0].tolist()
        with torch.no_grad():
            logp_TV = model(batch_of_ids([*begun, *result.ids], config))[0].log_softmax(-1)
        expected = [float(logp_TV[len(begun) - 1 + i, token]) for i, token in enumerate(result.ids)]
        assert result.logliks == pytest.approx(expected, abs=1e-10)
        switched += any(token >= vocabulary.text_marker for token in result.ids[:-1])
        assert (result.stop is Stop.EOS) == (result.ids[-1] == EOS)
        assert EOS not in result.ids[:-1]
    assert switched > 3


def test_arm_bpe_gives_speech_tokens():
    config = config_of(Arm.BPE)
    pieces = made_up_pieces(SPEECH_VOCAB, SPEECH_VOCAB + 8)
    generator = torch.Generator().manual_seed(2)
    results = generate(
        network(config), config, PROMPTS * 3, direction="S->S", max_tokens=20, temperature=2.0, generator=generator
    )
    longer = 0
    for result in results:
        body = [i - TEXT_VOCAB for i in result.ids if VOCABULARY.text <= i < Vocabulary.of(config.model).text_marker]
        tokens = [token for piece in body for token in pieces.pieces[piece]]
        assert result.segments == ((("speech", tuple(tokens)),) if tokens else ())
        longer += len(tokens) > len(body)
    assert longer


def test_sampling_with_the_same_generator_is_repeatable():
    config, options = config_of(), {"direction": "S->S", "max_tokens": 15, "temperature": 1.0, "top_k": 20, "top_p": 0.9}
    model = network(config)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, again = (
        [r.ids for r in generate(model, config, PROMPTS, generator=torch.Generator().manual_seed(5), **options)] for _ in "ab"
    )
    other = [r.ids for r in generate(model, config, PROMPTS, generator=torch.Generator().manual_seed(6), **options)]
    assert first == again
    assert first != other
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is not touched


def test_draws_follow_the_distribution():
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0, -math.inf]]).repeat(40_000, 1)
    draws = torch.rand(40_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def shares(**options):
        ids, logliks = choose(logits, torch.tensor([True, True, True, True, True]), Sampling(**options), draws)
        assert logliks == pytest.approx(logits[0].double().log_softmax(0).numpy()[ids])
        return np.bincount(ids, minlength=5) / len(ids)

    def softmax(values):
        return np.array(values) / sum(values)

    e = math.e
    assert shares(temperature=1.0) == pytest.approx(softmax([1, e, e**2, 1 / e, 0]), abs=0.01)
    assert shares(temperature=2.0) == pytest.approx(softmax([1, e**0.5, e, e**-0.5, 0]), abs=0.01)
    assert shares(temperature=1.0, top_k=2) == pytest.approx(softmax([0, e, e**2, 0, 0]), abs=0.01)
    assert shares(temperature=1.0, top_p=0.7) == pytest.approx(softmax([0, e, e**2, 0, 0]), abs=0.01)  # 0.64 < 0.7 < 0.88
    assert shares(temperature=1.0, top_p=0.6).tolist() == [0, 0, 1, 0, 0]
    assert shares(temperature=1.0, top_k=2, top_p=0.73).tolist() == [0, 0, 1, 0, 0]  # e^2 is 0.731 of what top_k left
    assert shares(temperature=0.0).tolist() == [0, 0, 1, 0, 0]


def test_only_what_the_direction_allows_comes_and_ends_it():
    config = config_of()
    model = network(config)
    stops = set()
    for direction, seed in itertools.product(DIRECTIONS, range(4)):
        prompts = [[("speech", [1, 2])] if direction[0] == "S" else [("text", [5])]] * 4
        generator = torch.Generator().manual_seed(seed)
        for result in generate(model, config, prompts, direction=direction, max_tokens=20, temperature=3.0, generator=generator):
            target, own, other = (
                ("speech", 1, VOCABULARY.text_marker) if direction[-1] == "S" else ("text", 0, VOCABULARY.speech_marker)
            )
            body = result.ids if result.stop is Stop.MAX_TOKENS else result.ids[:-1]
            assert set(VOCABULARY.modality(np.array(body, np.int64)).tolist()) <= {own}
            if result.stop is not Stop.MAX_TOKENS:
                assert result.ids[-1] == {Stop.EOS: EOS, Stop.SWITCH: other}[result.stop]
            shift = TEXT_VOCAB if own else 0
            assert result.segments == (((target, tuple(i - shift for i in body)),) if body else ())
            assert len(result.logliks) == len(result.ids) <= 20
            stops.add(result.stop)
    assert stops == set(Stop)


def test_patches_of_four_take_a_quarter_of_the_global_steps():
    tokens, steps = 81, {}
    for arm in (Arm.BASELINE, Arm.LST_STATIC):
        config = config_of(arm, patch_size=4)
        model = network(config)
        ends = torch.tensor([EOS, VOCABULARY.text_marker])
        model.head.register_forward_hook(lambda _, __, logits, ends=ends: logits.index_fill(-1, ends, -1e3))
        [result] = generate(model, config, [[("speech", [1, 2, 3, 4])]], direction="S->S", max_tokens=tokens)
        assert (len(result.ids), result.stop) == (tokens, Stop.MAX_TOKENS)
        steps[arm] = result.global_steps
    assert steps == {Arm.BASELINE: 80, Arm.LST_STATIC: 20}  # the last id is not processed


def test_the_model_is_left_as_it_was():
    config = config_of()
    model = network(config).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generate(model, config, PROMPTS, max_tokens=3)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


MISTAKES = [
    ({"prompts": [[]]}, DataError, 'prompt 0 is empty; give a segment, or ("text", []) for a document from its start.'),
    ({"direction": "T->X"}, ConfigError, "direction='T->X' is unknown; did you mean 'T->T'?"),
    ({"direction": "T->S"}, DataError, "prompt 0 ends in speech, and direction='T->S' goes on from text; use 'S->S'."),
    ({"prompts": [[("audio", [1])]]}, DataError, "document 0: modality='audio' is unknown; use 'text' or 'speech'."),
    ({"max_tokens": 0}, ConfigError, "max_tokens=0 must be 1 or more."),
    ({"temperature": -1.0}, ConfigError, "temperature=-1.0 must be a number from 0"),
    ({"temperature": math.nan}, ConfigError, "temperature=nan must be a number from 0"),
    ({"temperature": 1.0}, ConfigError, "temperature=1.0 draws ids; give a torch.Generator"),
    ({"top_k": -2}, ConfigError, "top_k=-2 is negative; give 0 for all ids."),
    ({"top_p": 0.0}, ConfigError, "top_p=0.0 must lie in (0, 1]; give 1 for all ids."),
    ({"config": config_of(model={"queries_per_patch": 1})}, ConfigError, "the model is not the one that the configuration"),
]


@pytest.mark.parametrize(("change", "error", "sentence"), MISTAKES, ids=[m[2][:40] for m in MISTAKES])
def test_mistakes_are_told_in_a_sentence(change, error, sentence):
    config = config_of()
    arguments = {"config": config, "prompts": PROMPTS, "direction": "S->S", "max_tokens": 3} | change
    with pytest.raises(error, match=re.escape(sentence)) as caught:
        generate(network(config), **arguments)
    assert "\n" not in str(caught.value)


def test_damaged_weights_are_told():
    config = config_of()
    model = network(config)
    with torch.no_grad():
        model.head.weight[3] = math.nan
    for options in ({}, {"temperature": 1.0, "generator": torch.Generator().manual_seed(0)}):
        with pytest.raises(RunFailed, match=r"prompt 0: the model's logits of generated id 0 are no finite numbers"):
            generate(model, config, PROMPTS, max_tokens=3, **options)


def test_no_prompts_no_results():
    config = config_of()
    assert generate(network(config), config, [], max_tokens=3) == []


def test_the_documents_example_runs():
    page = (Path(__file__).parents[2] / "docs" / "generation.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert blocks
    names: dict = {}
    for block in blocks:
        exec(block, names)
    assert names["result"].segments
