"""Prices from records that were made by hand: what is measured, what is reckoned from it, what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sweeps.cli import main
from sweeps.columns import PlanRow
from sweeps.plan import Plan
from sweeps.price import PriceConfig, evaluation_flops

STEP_FLOPS, STEP_SECONDS = 1e9, 2.0  # of a made-up step: 5e8 FLOP/s


@pytest.fixture
def study(small_plan: Plan, tmp_path: Path) -> Iterator[Path]:
    small_plan.write(tmp_path / "study")
    yield tmp_path / "study"
    shutil.rmtree(tmp_path / "study")


def row_of(plan: Plan, arm: str, size: str) -> PlanRow:
    return next(row for row in plan.rows if (row.arm, row.size) == (arm, size) and row.admitted)


def write_records(study: Path, run_id: str, *, steps: int = 4, **fields: Any) -> Path:
    """A first step of 10 s and further ones of 2 s; `fields` change every record, None takes one away."""
    folder = study / "runs" / run_id
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for step in range(1, steps + 1):
        record = {"step": step, "train_flops": step * STEP_FLOPS, "seconds": 10.0 if step == 1 else STEP_SECONDS}
        record |= {"peak_memory_mib": 512.0 + step} | fields
        lines.append(json.dumps({name: value for name, value in record.items() if value is not None}))
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def price(study: Path, runs: Path, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["price", str(study), "--from-canary", str(runs), "--json", *words]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def refused(study: Path, runs: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(["price", str(study), "--from-canary", str(runs), *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_speeds_are_medians_without_the_first_step(study: Path, small_plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    row = row_of(small_plan, "baseline", "tiny")
    before = {path: path.read_bytes() for path in study.rglob("*") if path.is_file()}
    folder = write_records(study, row.run_id)
    found = price(study, study, capsys)
    (measured,) = found["canary"]["measured"]
    assert (measured["run_id"], measured["steps"], measured["processes"], measured["mfu"]) == (row.run_id, 3, 1, None)
    assert measured["step_seconds"] == STEP_SECONDS
    assert measured["flops_per_second"] == STEP_FLOPS / STEP_SECONDS
    assert measured["peak_gib"] == 516 / 1024
    assert measured["est_peak_gib"] == row.est_peak_gib
    config = small_plan.run_configs[row.run_id]
    flops = row.planned_flops + evaluation_flops(config, row.planned_flops / row.tokens)
    minutes = (flops / 5e8 + PriceConfig().startup_seconds) / 60
    (repriced,) = [r for r in found["rows"] if r["run_id"] == row.run_id]
    assert repriced["est_minutes"] == pytest.approx(minutes, rel=1e-3)
    assert price(study, folder, capsys) == found
    assert {path: path.read_bytes() for path in before} == before  # pricing changes no file of the plan


def test_other_rows_take_the_nearest_run_of_their_arm(study: Path, small_plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    ours = {key: row_of(small_plan, *key) for key in (("baseline", "tiny"), ("baseline", "w48"), ("lst_static", "tiny"))}
    for row in ours.values():
        write_records(study, row.run_id)
    source = price(study, study / "runs", capsys)["canary"]["extrapolated"]
    for row in small_plan.rows:
        if row.run_id in {r.run_id for r in ours.values()}:
            assert row.run_id not in source
        elif row.arm == "lst_static":
            assert source[row.run_id] == ours["lst_static", "tiny"].run_id
        elif row.arm == "baseline":
            assert source[row.run_id] == ours["baseline", row.size].run_id
    assert main(["price", str(study), "--from-canary", str(study)]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    assert f"{len(source)} rows are extrapolated" in text


def test_several_processes_are_reckoned_by_the_process(study: Path, small_plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    row = row_of(small_plan, "baseline", "tiny")
    write_records(study, row.run_id, processes=2, mfu=2.5e8 / 494.5e12)
    (measured,) = price(study, study, capsys, "price.device=h100")["canary"]["measured"]
    assert measured["flops_per_second"] == 2.5e8
    assert measured["est_peak_gib"] == row.est_peak_gib - row.est_gib_runtime
    assert "price.device='b200'" in refused(study, study, capsys, "price.device=b200")


def test_what_cannot_be_a_canary_is_one_sentence(
    study: Path, small_plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = row_of(small_plan, "baseline", "tiny")
    assert "holds no train.jsonl" in refused(study, tmp_path / "nowhere", capsys)
    other = tmp_path / "other"
    write_records(other, "0123456789ab")
    assert "another study" in refused(study, other, capsys)
    write_records(study, row.run_id, steps=1)
    assert "fewer than two steps" in refused(study, study, capsys)
    write_records(study, row.run_id, train_flops=None)
    assert "a record without train_flops" in refused(study, study, capsys)
    write_records(study, row.run_id, train_flops=1.0)
    assert "is damaged" in refused(study, study, capsys)
    write_records(study, row.run_id)
    assert "has no mfu" in refused(study, study, capsys, "price.device=h100")
    assert "did you mean 'h100'" in refused(study, study, capsys, "price.device=h1000")


def test_profiles_come_from_a_file_or_a_mapping(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "gpus.json"
    profile = {"bfloat16": 1e15, "float32": 5e14, "memory_gib": 96, "dollars_per_hour": 3.0}
    file.write_text(json.dumps({"mine": profile}))
    mapping = "price.profiles={mine: {bfloat16: 1e15, float32: 5e14, memory_gib: 96, dollars_per_hour: 3.0}}"
    found = []
    for words in (f"price.profiles={file}", mapping):
        capsys.readouterr()
        assert main(["price", str(study), "--json", "price.device=mine", words]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0] == found[1]
    assert all(row["est_dollars"] > 0 for row in found[0]["rows"] if row["status"] == "admitted")
    file.write_text("[1, 2")
    assert main(["price", str(study), "price.device=mine", f"price.profiles={file}"]) == 2
    assert "cannot be read" in capsys.readouterr().err
