"""Run folders to tables: contents, tolerance of torn and repeated records, exclusions, equal bytes."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from analysis import exclude
from analysis.collect import ATTEMPT_COLUMNS, LOCK, collect, collect_into
from analysis.columns import RESULT_COLUMNS, RUN_COLUMNS
from analysis.study import final_losses, read_table, spending_warnings
from lst import records
from lst.errors import FitError
from tests.analysis.study_folder import STEPS, Synthetic, eval_record, rows, train_record, write_run, write_study

DOCS = Path(__file__).resolve().parents[2] / "docs" / "columns.md"
SMALL = Synthetic(budgets=(1e18,), sizes=2)


def written(folder: Path) -> dict[str, bytes]:
    collect_into(folder)
    names = ("results.csv", "runs.csv", "attempts.csv", "curves.parquet", "items.parquet", "item_pairs.csv")
    return {name: (folder / name).read_bytes() for name in names}


def test_tables_have_the_documented_columns(tmp_path: Path) -> None:
    collected = collect(write_study(tmp_path, SMALL))
    text = DOCS.read_text()
    documented = {
        section.split("\n", 1)[0].split(" ")[0]: [
            w.split(" (")[0].strip() for w in section.split("\n\n")[1].replace("\n", " ").split(",")
        ]
        for section in text.split("## ")[2:]
    }
    assert documented["results.csv"] == RESULT_COLUMNS == list(collected.results.columns)
    assert documented["attempts.csv"] == ATTEMPT_COLUMNS == list(collected.attempts.columns)
    assert documented["curves.parquet"] == collected.curves.schema.names
    assert documented["item_pairs.csv"] == list(collected.pairs.columns)
    assert documented["items.parquet"] == collected.items.schema.names
    assert documented["runs.csv"][: len(RUN_COLUMNS) - 1] == RUN_COLUMNS[:-1]
    assert list(collected.runs.columns) == RUN_COLUMNS


def test_complete_study_is_collected_whole(tmp_path: Path) -> None:
    collected = collect(write_study(tmp_path, SMALL))
    assert len(collected.runs) == 4
    assert set(collected.runs["state"]) == {"done"}
    assert set(collected.runs["excluded"]) == {""}
    assert len(collected.results) == 4 * 5
    assert collected.curves.num_rows == 4 * STEPS
    assert collected.items.num_rows == 4 * 4
    assert len(collected.attempts) == 4
    run = collected.runs.iloc[0]
    assert run["train_flops"] == 1e18
    assert float(run["planned_flops"]) == 1e18
    assert run["step"] == STEPS
    last_loss = collected.curves.to_pandas().query("run_id == @run.run_id")["loss"].iloc[-2:].mean()
    assert run["final_loss"] == pytest.approx(last_loss)


def test_collecting_twice_gives_equal_bytes(tmp_path: Path) -> None:
    write_study(tmp_path, SMALL)
    assert written(tmp_path) == written(tmp_path)


def test_restarted_run_has_each_step_once_as_last_written(tmp_path: Path) -> None:
    write_study(tmp_path, SMALL)
    before = written(tmp_path)
    row, _ = rows(SMALL)[0]
    path = tmp_path / "runs" / row.run_id / records.TRAIN_RECORDS
    lines = path.read_text().splitlines(keepends=True)
    stale = json.dumps(train_record(row, 20, 99.0)) + "\n"
    path.write_text("".join([*lines[:19], stale, "{torn li\n", *lines[19:], lines[-1], '{"step": 41, "lo']))
    assert written(tmp_path) == before


def test_run_ids_that_look_like_numbers_stay_text(tmp_path: Path) -> None:
    write_study(tmp_path, SMALL)
    plan = (tmp_path / "plan.csv").read_text()
    run_id = plan.splitlines()[1].split(",")[0]
    (tmp_path / "plan.csv").write_text(plan.replace(run_id, "0012e4567890"))
    (tmp_path / "runs" / run_id).rename(tmp_path / "runs" / "0012e4567890")
    written(tmp_path)
    assert "0012e4567890" in set(pd.read_csv(tmp_path / "runs.csv", dtype=str)["run_id"])
    assert "0012e4567890" in pq.read_table(tmp_path / "curves.parquet")["run_id"].to_pylist()


def test_incomplete_runs_are_excluded_with_reasons(tmp_path: Path) -> None:
    study = Synthetic(budgets=(1e18,), sizes=3)
    write_study(tmp_path, study)
    planned = rows(study)
    folders = [tmp_path / "runs" / row.run_id for row, _ in planned]
    for file in folders[0].iterdir():
        file.unlink()
    folders[0].rmdir()
    for index in (1, 2):
        (folders[index] / records.EXIT).unlink()
    records.write_json(folders[2] / records.FAILURE, {"class": "oom", "cause": "out of memory", "step": 3})
    (folders[3] / records.EVAL_RECORDS).unlink()
    path = folders[4] / records.TRAIN_RECORDS
    path.unlink()
    with records.JsonLinesWriter(path) as file:
        for step in range(1, STEPS + 1):
            file.write(train_record(planned[4][0], step, 3.0 + 9.0 * (step > 30)))
    runs = collect(tmp_path).runs
    assert list(runs["state"]) == ["not_started", "unfinished", "failed", "done", "done", "done"]
    reasons = list(runs["excluded"])
    assert reasons[0] == "not started"
    assert reasons[1] == f"unfinished: step {STEPS} of {STEPS}"
    assert reasons[2] == "failed (oom): out of memory"
    assert reasons[3] == f"no evaluation at the final step {STEPS}"
    assert reasons[4].startswith("diverged: the training loss ends at 12.000")
    assert reasons[5] == ""


def test_run_that_stopped_early_is_excluded_though_it_says_done(tmp_path: Path) -> None:
    write_study(tmp_path, SMALL)
    row, _ = rows(SMALL)[0]
    path = tmp_path / "runs" / row.run_id / records.EXIT
    records.write_json(path, (records.read_json(path) or {}) | {"step": STEPS - 5})
    assert collect(tmp_path).runs["excluded"].iloc[0] == f"stopped at step {STEPS - 5} of {STEPS}"


def test_run_refused_by_the_plan_keeps_its_reason(tmp_path: Path) -> None:
    write_study(tmp_path, SMALL)
    plan = pd.read_csv(tmp_path / "plan.csv", dtype=str, keep_default_na=False)
    plan.loc[0, ["status", "reason"]] = ["refused", "too few steps"]
    plan.to_csv(tmp_path / "plan.csv", index=False)
    (tmp_path / "runs" / str(plan["run_id"].iloc[0]) / records.EXIT).unlink()
    run = collect(tmp_path).runs.iloc[0]
    assert (run["state"], run["excluded"]) == ("refused", "refused by the plan: too few steps")


def test_folder_without_a_plan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FitError, match=r"holds no plan\.csv"):
        collect(tmp_path)


def test_progress_is_told_a_run_at_a_time(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    collect(write_study(tmp_path, SMALL), progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize(
    ("losses", "diverged"),
    [
        ([9.0 - 0.1 * i for i in range(40)], False),
        ([3.0, 2.0, 5.0], True),
        ([3.0, 2.5, 2.6], False),
        ([5.0] * 10 + [2.0] * 10 + [2.9] * 20, False),
        ([5.0] * 10 + [2.0] * 10 + [3.1] * 20, True),
        ([3.0, 3.0], True),
        ([2.0], False),
        ([], False),
    ],
)
def test_divergence(losses: list[float], diverged: bool) -> None:
    assert bool(exclude.divergence(losses)) is diverged


def test_unfinished_run_written_by_the_trainer_so_far(tmp_path: Path) -> None:
    study = write_study(tmp_path, SMALL)
    row, loss = rows(SMALL)[1]
    for file in (study / "runs" / row.run_id).iterdir():
        file.unlink()
    write_run(study / "runs" / row.run_id, row, loss, steps=7, finished=False)
    run = collect(study).runs.iloc[1]
    assert (run["state"], run["step"], run["excluded"]) == ("unfinished", 7, f"unfinished: step 7 of {STEPS}")
    assert run["train_flops"] == pytest.approx(1e18 * 7 / STEPS)


def test_rows_of_a_branch_stand_beside_the_runs_own_and_enter_neither_its_curve_nor_its_fit(tmp_path: Path) -> None:
    study = write_study(tmp_path, SMALL)
    before = collect(study)
    row, _ = rows(SMALL)[0]
    folder = study / "runs" / row.run_id
    branch = {"branch": STEPS // 2, "train_flops": 4e17, "spent_flops": 1.1e18}
    last = eval_record(row, "heldout_mixture", "ST->ST", "nats_per_token", 1.5, 1000)
    for name, record in (
        (records.TRAIN_RECORDS, train_record(row, STEPS // 2, 0.5) | branch),
        (records.EVAL_RECORDS, last | {"step": STEPS // 2} | branch),
        (records.EVAL_RECORDS, last | branch),  # at the run's own last step it would be taken for the run's
    ):
        with records.JsonLinesWriter(folder / name) as file:
            file.write(record)
    records.write_json(folder / records.EXIT, (records.read_json(folder / records.EXIT) or {}) | {"spent_flops": 1.1e18})
    after = collect(study)
    assert after.curves == before.curves
    assert after.runs["spent_flops"].iloc[0] == 1.1e18
    columns = [name for name in RUN_COLUMNS if name != "spent_flops"]
    assert after.runs[columns].equals(before.runs[columns])
    found = after.results[after.results["branch"].notna()]
    assert found[["run_id", "branch", "step", "train_flops", "value"]].to_numpy().tolist() == [
        [row.run_id, STEPS // 2, step, 4e17, 1.5] for step in (STEPS // 2, STEPS)
    ]
    collect_into(study)
    runs, results = read_table(study, "runs.csv"), read_table(study, "results.csv")
    assert 1.5 not in set(final_losses(runs, results, "mixture")["loss"])
    assert len(final_losses(runs, results, "mixture")) == 4
    assert spending_warnings(runs) == [f"run {row.run_id} spent +10.0% against its planned FLOPs"]


def test_skipped_steps_are_counted_and_leave_no_mark_on_the_curve(tmp_path: Path) -> None:
    study = write_study(tmp_path, SMALL)
    before = collect(study)
    row, _ = rows(SMALL)[0]
    path = study / "runs" / row.run_id / records.TRAIN_RECORDS
    kept = [r for r in records.read_jsonl(path) if r["step"] not in (20, STEPS)]
    skipped = [train_record(row, step, 99.0) | {"skipped": "spike"} for step in (20, STEPS)]
    del skipped[0]["loss"]  # no finite number
    path.unlink()
    with records.JsonLinesWriter(path) as file:
        for record in [*kept, *skipped]:
            file.write(record)
    after = collect(study)
    assert list(after.runs["skipped_steps"]) == [2, 0, 0, 0]
    assert after.curves.num_rows == before.curves.num_rows - 2
    assert after.runs["excluded"].iloc[0] == ""
    assert after.runs["final_loss"].iloc[0] < 10
    assert (after.runs["step"].iloc[0], after.runs["train_flops"].iloc[0]) == (STEPS, 1e18)


def ledger(folder: Path, run_id: str, attempts: list[tuple[int, str]]) -> None:
    (folder / "launch" / "ledger.jsonl").unlink()
    with records.JsonLinesWriter(folder / "launch" / "ledger.jsonl") as file:
        for attempt, (step, code) in enumerate(attempts, start=1):
            file.write({"time": 1e9, "run_id": run_id, "event": "started", "attempt": attempt, "step": step, "code": code})


@pytest.mark.parametrize(
    ("attempts", "excluded"),
    [
        ([(0, "a"), (10, "a"), (20, "a")], ""),
        ([(0, "a"), (10, "b")], "resumed across versions: trained by code a, b"),
        ([(0, "a"), (0, "b"), (10, "b")], ""),  # the first attempt got nowhere
        ([(0, "a"), (20, "b"), (0, "c")], ""),  # begun anew
        ([(0, "a"), (20, "b"), (10, "a")], ""),  # what b trained was trained again
        ([(0, "a"), (STEPS, "b")], ""),  # done when b started
        ([(0, "a"), (10, "b"), (20, "a")], "resumed across versions: trained by code a, b"),
    ],
)
def test_run_trained_by_several_versions_of_the_code_is_excluded(
    tmp_path: Path, attempts: list[tuple[int, str]], excluded: str
) -> None:
    write_study(tmp_path, SMALL)
    ledger(tmp_path, rows(SMALL)[1][0].run_id, attempts)
    collected = collect(tmp_path)
    assert list(collected.runs["excluded"]) == ["", excluded, "", ""]
    assert collected.attempts[["step", "code"]].to_numpy().tolist() == [list(attempt) for attempt in attempts]


def test_run_that_ends_in_its_warm_up_is_excluded(tmp_path: Path) -> None:
    write_study(tmp_path, SMALL)
    plan = pd.read_csv(tmp_path / "plan.csv", dtype=str, keep_default_na=False)
    plan.loc[[0, 1], "warmup_steps"] = [str(STEPS), str(STEPS - 1)]
    plan.to_csv(tmp_path / "plan.csv", index=False)
    reasons = list(collect(tmp_path).runs["excluded"])
    assert reasons == [f"warm-up: the run ends at step {STEPS}, inside its warm-up of {STEPS} steps", "", "", ""]


def test_run_with_the_losses_of_another_is_a_duplicate_and_a_seed_of_the_same_cell_is_none(tmp_path: Path) -> None:
    write_study(tmp_path, SMALL)
    (first, _), *_ = rows(SMALL)
    plan = pd.read_csv(tmp_path / "plan.csv", dtype=str, keep_default_na=False)
    copies = plan.iloc[[0, 0]].assign(run_id=["copy", "seed"], seed=["0", "1"])
    pd.concat([plan, copies]).to_csv(tmp_path / "plan.csv", index=False)
    write_run(tmp_path / "runs" / "copy", first, rows(SMALL)[0][1])
    write_run(tmp_path / "runs" / "seed", first, rows(SMALL)[0][1] + 1e-12)
    reasons = list(collect(tmp_path).runs["excluded"])
    assert reasons == ["", "", "", "", f"duplicated: the same losses at step {STEPS} as run {first.run_id}", ""]


def test_an_excluded_run_makes_no_other_a_duplicate(tmp_path: Path) -> None:
    write_study(tmp_path, SMALL)
    (first, loss), *_ = rows(SMALL)
    plan = pd.read_csv(tmp_path / "plan.csv", dtype=str, keep_default_na=False)
    plan.loc[0, "warmup_steps"] = str(STEPS)
    pd.concat([plan, plan.iloc[[0]].assign(run_id="copy", warmup_steps="1")]).to_csv(tmp_path / "plan.csv", index=False)
    write_run(tmp_path / "runs" / "copy", first, loss)
    assert [bool(reason) for reason in collect(tmp_path).runs["excluded"]] == [True, False, False, False, False]


def test_second_collector_is_refused_and_the_tables_stay(tmp_path: Path) -> None:
    before = written(write_study(tmp_path, SMALL))
    with (tmp_path / LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(FitError, match="another collection of"):
            collect_into(tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_a_collection_that_dies_leaves_the_old_tables_and_nothing_beside_them(tmp_path: Path) -> None:
    before = written(write_study(tmp_path, SMALL))
    names = {path.name for path in tmp_path.iterdir()}
    row, _ = rows(SMALL)[0]
    (tmp_path / "runs" / row.run_id / records.EXIT).unlink()

    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect_into(tmp_path, progress=interrupt)
    assert {path.name for path in tmp_path.iterdir()} == names
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_a_run_that_goes_while_it_is_collected_counts_as_not_started(tmp_path: Path) -> None:
    write_study(tmp_path, SMALL)
    last = rows(SMALL)[-1][0].run_id

    def remove(done: int, total: int) -> None:
        if done == 1:
            shutil.rmtree(tmp_path / "runs" / last, ignore_errors=True)

    runs, _ = collect_into(tmp_path, progress=remove)
    assert runs["state"].iloc[-1] in ("not_started", "unfinished", "done")
    assert list(runs["state"])[:-1] == ["done"] * 3


def test_written_tables_are_those_in_memory(tmp_path: Path) -> None:
    collected = collect(write_study(tmp_path, SMALL))
    collect_into(tmp_path)
    assert pq.read_table(tmp_path / "curves.parquet").equals(collected.curves)
    assert pq.read_table(tmp_path / "items.parquet").equals(collected.items)
    assert (tmp_path / "results.csv").read_text() == collected.results.to_csv(index=False, lineterminator="\n")


def test_branch_row_without_steps_is_refused(tmp_path: Path) -> None:
    write_study(tmp_path, SMALL)
    plan = pd.read_csv(tmp_path / "plan.csv", dtype=str, keep_default_na=False)
    plan.loc[0, ["kind", "branch"]] = ["branch", "many"]
    plan.to_csv(tmp_path / "plan.csv", index=False)
    with pytest.raises(FitError, match="is a branch of no run"):
        collect(tmp_path)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (
            lambda text: text.replace("nats_per_token,", "nats_per_token,x", 1),
            "has value=x.* in row 1, which is no number; run: fit-scaling",
        ),
        (lambda text: text[:-20], "is torn"),
        (lambda text: text.replace("metric", "metrik", 1), "has no column 'metric'"),
        (lambda text: text.replace("\n", ',"\n', 3), "is no readable table"),
    ],
)
def test_table_that_was_edited_by_hand_is_refused_with_what_makes_it_anew(
    tmp_path: Path, edit: Callable[[str], str], said: str
) -> None:
    collect_into(write_study(tmp_path, SMALL))
    path = tmp_path / "results.csv"
    path.write_text(edit(path.read_text()))
    with pytest.raises(FitError, match=said):
        read_table(tmp_path, "results.csv")
