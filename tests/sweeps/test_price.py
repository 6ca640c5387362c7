"""Prices with truths by hand: bytes in closed form, FSDP's division, GPUs and micro-batches that fit, hours, disk, money."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import pytest

from lst.config import RunConfig, arm_config
from lst.errors import ConfigError
from lst.hardware import GPU_PROFILES, GpuProfile
from lst.memory import GIB, memory_by_part
from sweeps.estimate import Price, price_run
from sweeps.price import PriceConfig, disk_gib

TOKENS, SEQUENCES = 4096, 64  # of a sequence, of a batch


def small(**sections: Any) -> RunConfig:
    """A plain network whose parameters are counted by hand in `PARAMS`."""
    model = {"global_stack": {"layers": 2, "dim": 8, "heads": 2, "ffn_dim": 12}, "text_vocab": 20, "speech_vocab": 10}
    return arm_config("baseline", model=model, **sections)


# vocabulary: 20 text, 10 speech, markers; a layer: 4 x 8 x 8 + 3 x 8 x 12 + 2 x 8 = 560
LAYERS, LAST_NORM = 2 * 560, 8


def big(size: str = "7B", *, batch: int = 128, **sections: Any) -> RunConfig:
    train = {"dtype": "bfloat16", "batch_sequences": batch, "steps": 1000}
    return arm_config("baseline", size=size, train=train, data={"seq_len_units": TOKENS}, **sections)


def priced(config: RunConfig, flops: float = 1e21, **options: Any) -> Price:
    options = {"device": "h100", "gpus": "auto"} | options
    tokens = config.train.total_sequences * float(TOKENS)
    price = PriceConfig(**options)
    price.validate()
    return price_run(config, price, train_flops=flops, tokens=tokens)


def test_bytes_of_a_small_network_by_hand() -> None:
    from lst.data.vocab import Vocabulary

    model = small().model
    vocabulary = Vocabulary.of(model).size
    params = LAYERS + LAST_NORM + 2 * vocabulary * 8
    parts = memory_by_part(model, tokens=1, units=1, gpu=False)
    assert parts["weights"] * GIB == pytest.approx(4 * params, rel=1e-3)
    assert parts["gradients"] == parts["weights"]
    assert parts["optimiser"] * GIB == pytest.approx(8 * params, rel=1e-3)
    assert parts["gathered"] == 0
    kept, most = disk_gib(small())
    assert kept * GIB == pytest.approx(4 * params)
    assert most * GIB == pytest.approx(3 * 12 * params)  # two that stay and the one being written


def test_ranks_hold_their_rows_and_gather_the_rest() -> None:
    """Over 3 ranks: rows of 24, 8, 24 and 8 (a layer's matrices, and its vectors of 8) are 8, 3, 8 and 3."""
    from lst.data.vocab import Vocabulary

    model = small().model
    v = Vocabulary.of(model).size
    rows = -(-v // 3)
    layer = 8 * 8 + 3 * 8 + 8 * 8 + 3 * 12 + 3 + 3
    parts = memory_by_part(model, tokens=1, units=1, gpu=False, ranks=3)
    assert parts["weights"] * GIB == pytest.approx(4 * (2 * layer + 3 + 2 * rows * 8), rel=1e-3)
    assert parts["optimiser"] == pytest.approx(2 * parts["weights"], rel=1e-3)
    rest = 2 * v * 8 + 8
    assert parts["gathered"] * GIB == pytest.approx(16 * rest + 16 * 560, rel=1e-3)
    half = memory_by_part(model, tokens=1, units=1, gpu=True, ranks=3, dtype="bfloat16")
    assert half["gathered"] * GIB == pytest.approx(16 * rest + 10 * 560, rel=1e-3)


def test_auto_takes_the_fewest_gpus_and_the_largest_micro_batch_that_fit() -> None:
    chosen = priced(big()).placement
    usable = 0.9 * GPU_PROFILES["h100"].memory_gib
    assert chosen.gpus > 1
    assert chosen.peak_gib <= usable
    fewer = [priced(big(execution={"micro_batch_tokens": m}), gpus=chosen.gpus // 2).placement for m in (4096, 8192, 16384)]
    assert all(p.refusal for p in fewer)
    assert chosen.micro_batch_tokens < 16384
    assert priced(big(execution={"micro_batch_tokens": 2 * chosen.micro_batch_tokens}), gpus=chosen.gpus).placement.refusal
    assert f"{chosen.gpus // 2} would not hold it" in chosen.why
    assert f"micro-batches of {2 * chosen.micro_batch_tokens:,} tokens would need" in chosen.why


def test_execution_of_a_placement_leaves_the_run_id_alone() -> None:
    config = big()
    other = dataclasses.replace(
        config,
        execution=dataclasses.replace(config.execution, micro_batch_tokens=1, activation_checkpointing="layers"),
    )
    assert other.run_id == config.run_id


def test_a_run_that_fits_nowhere_is_told_what_would_help() -> None:
    refused = priced(big(), max_gpus=1).placement
    assert "on one h100" in refused.refusal
    assert "it would fit with price.gpus=2" in refused.refusal or "it would fit with price.gpus=4" in refused.refusal
    fixed = priced(big(size="1.8B", execution={"micro_batch_tokens": 65536}), gpus=1).placement
    assert "(execution.micro_batch_tokens)" in fixed.refusal
    tiny = GpuProfile(bfloat16=1e15, memory_gib=1.5)
    hopeless = priced(big(), device="tiny", profiles={"tiny": tiny}).placement
    assert "plan a smaller size" in hopeless.refusal


def test_no_gpu_is_without_a_sequence() -> None:
    assert priced(big(batch=1)).placement.refusal  # one sequence: one GPU, which does not hold it
    fixed = priced(big(size="420M", batch=4), gpus=8).placement
    assert "batch of 4 sequences cannot be shared by price.gpus=8" in fixed.refusal
    assert priced(big(size="420M", batch=4), gpus=4).placement.refusal == ""


def test_hours_are_flops_over_peak_and_utilisation_and_the_busiest_gpu_sets_the_pace() -> None:
    config = big(size="420M", batch=64, evaluation={"heldout_documents": 1, "context_tokens": 3})
    hours = 1e21 / (989e12 * 0.4 * 4) / 3600
    price = priced(config, gpus=4, startup_seconds=0.0)
    assert price.minutes / 60 == pytest.approx(hours, rel=1e-3)
    assert price.gpu_hours == pytest.approx(4 * hours, rel=1e-3)
    uneven = priced(dataclasses.replace(config, train=dataclasses.replace(config.train, batch_sequences=66)), gpus=4)
    assert uneven.minutes / 60 == pytest.approx(hours * 17 * 4 / 66, rel=1e-3)
    lossy = priced(config, gpus=4, startup_seconds=0.0, gpu_efficiency=0.9)
    assert lossy.minutes / 60 == pytest.approx(hours / 0.9**2, rel=1e-3)
    assert priced(config, gpus=4, startup_seconds=0.0, dollars_per_gpu_hour=2.5).dollars == pytest.approx(10 * hours, rel=1e-3)


def test_max_hours_buys_more_gpus_or_refuses() -> None:
    config = big(size="420M", batch=64)
    few = priced(config).placement.gpus
    hours = priced(config).minutes / 60
    more = priced(config, max_hours=hours / 3)
    assert more.placement.gpus == 4 * few
    assert more.minutes <= hours / 3 * 60
    assert f"{2 * few} would take longer than price.max_hours" in more.placement.why
    late = priced(config, max_hours=hours / 1000)
    assert "over price.max_hours" in late.placement.refusal


def test_counts_of_gpus_are_doubled_in_a_node_and_then_nodes() -> None:
    from sweeps.placement import room_of

    odd = GpuProfile(bfloat16=1e15, memory_gib=80.0, gpus_per_node=6)
    room = room_of(PriceConfig(device="odd", gpus="auto", profiles={"odd": odd}, max_gpus=30))
    assert room is not None
    assert room.counts == (1, 2, 4, 6, 12, 24)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"device": "h20"}, "did you mean 'h200'"),
        ({"dollars_per_gpu_hour": -1.0}, "price.dollars_per_gpu_hour=-1.0"),
        ({"gpus": "some"}, "neither a number nor 'auto'"),
        ({"gpus": 0}, "price.gpus=0"),
        ({"device": "cpu", "gpus": "auto"}, "nothing to choose on a CPU"),
        ({"max_hours": float("nan")}, "price.max_hours=nan"),
        ({"gpu_efficiency": 1.5}, "must lie in"),
        ({"profiles": {"x": GpuProfile(bfloat16=1e15, memory_gib=-1.0)}}, "price.profiles.x.memory_gib=-1.0"),
        ({"profiles": {"x": GpuProfile(bfloat16=1e15, memory_gib=1.0, dollars_per_hour=-2.0)}}, "dollars_per_hour=-2.0"),
    ],
)
def test_prices_that_cannot_be_are_one_sentence(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        PriceConfig(**({"device": "h100"} | options)).validate()


def test_a_profile_without_float32_prices_no_float32_run() -> None:
    config = dataclasses.replace(big(size="420M"), train=dataclasses.replace(big(size="420M").train, dtype="float32"))
    profile = GpuProfile(bfloat16=1e15, memory_gib=192.0)
    with pytest.raises(ConfigError, match=r"price\.profiles\.mine has no float32"):
        priced(config, device="mine", profiles={"mine": profile})


def test_ten_thousand_runs_are_priced_in_seconds() -> None:
    """About a second on a free core; processor time, so that neighbours do not matter."""
    configs = [big(size=size, batch=batch) for size in ("420M", "1.8B", "7B") for batch in (64, 128)]
    start = time.process_time()
    for index in range(10_000):
        priced(configs[index % len(configs)], flops=1e20 + index)
    assert time.process_time() - start < 4
