"""Statistics measured on a data set, stated in a file, give the plan of that data set within the stated tolerance."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lst.data.shards import open_dataset
from sweeps import export
from sweeps.cli import compose_study, main
from sweeps.export import TOLERANCE, measure_statistics
from sweeps.measure import Measurements
from sweeps.plan import plan, plan_with
from sweeps.stated import StatedMeasurements
from sweeps.stated_file import from_plain, read_stated, to_plain
from sweeps.study import StudyConfig

ARMS = ["baseline", "bpe", "lst_static", "lst_aligned", "lst_mixed", "lst_curriculum"]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Speech pieces are made in a folder of the tests'."""
    patch = pytest.MonkeyPatch()
    patch.setenv("LST_CACHE", str(tmp_path_factory.mktemp("cache")))


def study(**changes: object) -> StudyConfig:
    fields = {"name": "x", "arms": ARMS, "sizes": ["w24"], "budgets": [2.5e11], "seq_len_units": 128, "matching": "flop"}
    loose = {"max_match_gap": 0.1, "min_steps": 1, "max_warmup_share": 1.0, "min_batch_units": 1}
    return StudyConfig.from_dict(fields | {"admission": loose, "recipe": {"name": "small"}} | changes)


@pytest.fixture(scope="module")
def embedded() -> Measurements:
    return Measurements(open_dataset("embedded"))


ON_SPEECH: dict[str, object] = {"model": {"local_text": False}, "arms": ["lst_static", "lst_aligned"]}
"""The two cuttings that all other patched arms are made of; what they count is the local modules' business alone."""


@pytest.mark.parametrize("changes", [{}, ON_SPEECH], ids=["local modules everywhere", "on speech alone"])
def test_a_stated_plan_agrees_with_the_replayed_one_for_every_arm(embedded: Measurements, changes: dict[str, object]) -> None:
    """Sequence by sequence: FLOPs and tokens of the mean sequence; then the plans: tokens and units at equal FLOPs."""
    config = study(**changes)
    replayed = plan_with(config, embedded)
    configs = [replayed.run_configs[row.run_id] for row in replayed.rows]
    measured = from_plain(to_plain(measure_statistics(embedded.dataset, configs, name="embedded")))
    stated = plan_with(config, StatedMeasurements(measured))
    assert [row.arm for row in stated.rows] == changes.get("arms", ARMS)
    for a, b in zip(replayed.rows, stated.rows, strict=True):
        assert b.flops_per_step == pytest.approx(a.flops_per_step, rel=TOLERANCE)
        assert b.tokens / b.units == pytest.approx(a.tokens / a.units, rel=TOLERANCE)
        for column in ("tokens", "units", "planned_flops"):
            assert getattr(b, column) == pytest.approx(getattr(a, column), rel=2 * TOLERANCE), (a.arm, column)
        # some hundred sequences of a replayed run hold speech, and they are themselves a sample
        assert b.speech_tokens == pytest.approx(a.speech_tokens, rel=0.05)
        assert b.text_tokens == pytest.approx(a.text_tokens, rel=0.05)
        assert b.speech_epochs == pytest.approx(a.speech_epochs, rel=0.05)
        assert b.mean_patch_length == pytest.approx(a.mean_patch_length, rel=0.02)
        shares = [
            (getattr(b, f"flops_share_{g}"), getattr(a, f"flops_share_{g}")) for g in ("encoder", "global", "decoder", "head")
        ]
        assert all(x == pytest.approx(y, abs=TOLERANCE) for x, y in shares)


def test_the_command_writes_a_file_that_plans(
    toy_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "SAMPLE", 64)  # how near the numbers come is the test above
    out = tmp_path / "toy.yaml"
    call = ["study=fixed_tokens", f"data={toy_dataset}", "seq_len_units=32", "sizes=[w32]", "mixture.interleaved_token_share=1.0"]
    assert main(["statistics", *call, f"out={out}"]) == 0
    stated = read_stated(str(out))
    assert f"plan from it with data={out}" in capsys.readouterr().out
    assert stated.name == "toy"
    assert set(stated.units) == {"static_4"}
    assert main(["statistics", *call]) == 0
    printed = from_plain(json.loads(capsys.readouterr().out))
    assert printed.data_id == stated.data_id
    assert main(["statistics", *call, f"out={out}"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main(["statistics", *call, "out=x.txt"]) == 2
    assert "must end in .yaml" in capsys.readouterr().err
    assert main(["statistics", "study=lst_table8"]) == 2
    assert "are stated statistics already" in capsys.readouterr().err
    composed = compose_study({"study": "fixed_tokens", "data": str(out), "seq_len_units": "32", "sizes": "[w32]"})
    assert all(row.data_id == stated.data_id for row in plan(composed).rows)
