"""What waits to be submitted, and why: limits of GPUs, of SLURM and of the budget, canaries, and answers that got lost."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from launch import limits, scheduler
from launch.asked import read_order
from launch.canary import canaries
from launch.lease import Lease
from launch.ledger import append_event, read_attempts
from launch.limits import change_limits, look, overspent, read_limits, spent
from launch.order import FULL, adopt
from launch.rows import read_rows
from launch.scheduler import NoAnswer
from lst.errors import ConfigError
from lst.records import read_json
from tests.launch.study import NO_CANARY, call, lives, make_study, send, status, steps, wait_for


def sizes(slurm: Path) -> list[int]:
    """How many jobs each sbatch has got."""
    texts = [path.read_text() for path in sorted(slurm.glob("script-*.sh"), key=lambda p: int(p.stem[7:]))]
    return [int(re.search(r"--array=0-(\d+)", text)[1]) + 1 for text in texts]  # type: ignore[index]


def test_rows_beyond_the_largest_array_make_further_arrays(tmp_path: Path, slurm: Path) -> None:
    study = tmp_path / "study"
    make_study(study, *[{"steps": n + 1} for n in range(25)])
    assert "25 runs submitted" in call("submit", study, *NO_CANARY, "max_array_size=11")[1]
    assert sizes(slurm) == [11, 11, 3]
    assert len({a[-1].job_id for a in read_attempts(study).values()}) == 25


def test_slurms_own_limit_leaves_the_rest_waiting_and_a_later_call_submits_it(tmp_path: Path, slurm: Path) -> None:
    study = tmp_path / "study"
    make_study(study, *[{"steps": n + 1} for n in range(5)])
    (slurm / "limit").write_text("2")
    code, out, _ = call("submit", study, *NO_CANARY)
    assert (code, sizes(slurm)) == (0, [2, 2, 1])  # 5 are too many, 2 not
    assert "5 runs submitted" in out


def test_limit_gpus_caps_what_is_open_over_all_arrays_and_may_change_meanwhile(tmp_path: Path, slurm: Path) -> None:
    study = tmp_path / "study"
    make_study(study, *[{"steps": n + 1} for n in range(6)], gpus=2)
    _, out, _ = call("submit", study, *NO_CANARY, "limit.gpus=4")
    assert "2 runs submitted" in out
    assert "4 wait for limit.gpus=4" in out
    (slurm / "queue.txt").write_text("4711_0 RUNNING\n4711_1 PENDING\n")
    found = [s["cause"] for s in status(study).values() if s["state"] == "queued" and s["source"] == "order"]
    assert found == ["waits for limit.gpus=4"] * 4
    assert "0 runs submitted" in call("submit", study, *NO_CANARY)[1] or sizes(slurm) == [2]
    _, out, _ = call("submit", study, *NO_CANARY, "limit.gpus=7")
    assert sizes(slurm) == [2, 1]
    assert len(read_order(study).waiting) == 3
    assert call("cancel", study)[0] == 0
    assert read_order(study).waiting == ()


def test_a_lowered_limit_leaves_queued_jobs_of_the_same_array_that_have_a_place(tmp_path: Path, slurm: Path) -> None:
    """SLURM ends every waiting task of an array where one is cancelled as a pending one: they are one record."""
    study = tmp_path / "study"
    make_study(study, *({"steps": n} for n in range(2, 6)))
    call("submit", study, "cluster=slurm", "canary_steps=0", "limit.gpus=4")
    (slurm / "queue.txt").write_text("".join(f"4711_{n} PENDING\n" for n in range(4)))
    assert "2 queued jobs beyond limit.gpus are taken back" in call("submit", study, "cluster=slurm", "limit.gpus=2")[1]
    assert (slurm / "queue.txt").read_text().split()[::2] == ["4711_0", "4711_1"]
    causes = [a.cause for tries in read_attempts(study).values() for a in tries]
    assert sorted(causes) == ["", "", *["taken back: limit.gpus=2"] * 2]


def test_a_lowered_limit_takes_back_queued_jobs_beyond_it_and_leaves_running_ones(tmp_path: Path, slurm: Path) -> None:
    study = tmp_path / "study"
    make_study(study, *[{"steps": n + 1} for n in range(5)], gpus=2)
    call("submit", study, *NO_CANARY, "limit.gpus=8")
    (slurm / "queue.txt").write_text("4711_0 RUNNING\n4711_1 RUNNING\n4711_2 PENDING\n4711_3 PENDING\n")
    before = {run: a[-1].job_id for run, a in read_attempts(study).items()}
    out = call("submit", study, *NO_CANARY, "limit.gpus=5")[1]
    assert "2 queued jobs beyond limit.gpus are taken back" in out
    assert sorted((slurm / "queue.txt").read_text().split()) == ["4711_0", "4711_1", "RUNNING", "RUNNING"]
    taken = {run for run, job in before.items() if job in ("4711_2", "4711_3")}
    waiting = read_order(study).waiting
    assert len(waiting) == 3
    assert taken < set(waiting)
    assert {status(study)[run]["state"] for run in taken} == {"queued"}
    assert {status(study)[run]["cause"] for run in taken} == {"waits for limit.gpus=5"}
    call("submit", study, *NO_CANARY, "limit.gpus=6")
    assert sizes(slurm) == [4, 1]


def test_jobs_that_end_submit_what_waits(tmp_path: Path, slurm: Path) -> None:
    (slurm / "runs").touch()
    study = tmp_path / "study"
    runs = make_study(study, *[{"steps": 2}] * 3, gpus=1)
    assert "1 run submitted" in call("submit", study, *NO_CANARY, "limit.gpus=1")[1]
    wait_for(lambda: {s["state"] for s in status(study).values()} == {"done"}, "one job after the other")
    assert sizes(slurm) == [1, 1, 1]
    assert [len(lives(study, run)) for run in runs] == [1, 1, 1]


def test_the_grid_follows_canaries_that_pass_and_they_go_on_where_they_were(tmp_path: Path, slurm: Path) -> None:
    (slurm / "runs").touch()
    study = tmp_path / "study"
    slow = {"seconds_per_step": 0.1}
    runs = make_study(study, {"steps": 40} | slow, {"steps": 60}, {"steps": 70})
    assert "1 run submitted" in call("submit", study, "cluster=slurm")[1]
    wait_for(lambda: {s["state"] for s in status(study).values()} == {"done"}, "the grid")
    assert sizes(slurm)[0] == 1
    assert [len(lives(study, run)) for run in runs] == [2, 1, 1]
    assert steps(study, runs[0]) == list(range(1, 41))
    assert read_attempts(study)[runs[0]][0].failure == "canary"
    assert read_json(study / "launch/canary.json")["arms"] == ["baseline"]  # type: ignore[index]
    assert "columns" in str(read_json(study / "launch/price.json"))  # a plan of the tests has too few to be priced


def test_a_failing_canary_costs_one_run_and_stops_the_study(tmp_path: Path, slurm: Path) -> None:
    (slurm / "runs").touch()
    study = tmp_path / "study"
    runs = make_study(study, *[{"steps": 4, "die_at": 0, "how": "raise"}] * 5)
    call("submit", study, "cluster=slurm")
    wait_for(lambda: (study / "launch/stopped.json").exists(), "the study to stop")
    assert sum(len(lives(study, run)) for run in runs) == 1
    assert sorted(s["state"] for s in status(study).values()) == ["failed"] + ["planned"] * 4
    assert "canary" in call("submit", study, "cluster=slurm")[2]


def test_canaries_are_the_cheapest_of_each_arm_and_pass_once_for_a_code(tmp_path: Path) -> None:
    runs = make_study(tmp_path, {"steps": 9}, {"steps": 2}, {"steps": 5})
    rows = read_rows(tmp_path)
    assert [row.run_id for row in canaries(tmp_path, rows, "code")] == [runs[1]]
    assert canaries(tmp_path, rows[:1], "code") == []  # nothing would follow
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch/canary.json").write_text('{"code": "code", "arms": ["baseline"]}')
    assert canaries(tmp_path, rows, "code") == []
    assert len(canaries(tmp_path, rows, "other")) == 1


def test_local_canaries_run_before_the_rest(tmp_path: Path) -> None:
    runs = make_study(tmp_path, {"steps": 30, "seconds_per_step": 0.1}, {"steps": 90, "die_at": 0, "how": "raise"})
    code, out, _ = call("submit", tmp_path, "parallel=2", "canary_steps=3")
    assert code == 1
    assert "1 canaries of 3 steps first" in out
    assert [len(lives(tmp_path, run)) for run in runs] == [2, 1]


def test_a_submission_whose_answer_got_lost_is_found_by_its_token(tmp_path: Path, slurm: Path) -> None:
    study = tmp_path / "study"
    make_study(study, {"steps": 1}, {"steps": 2})
    (slurm / "loses-answer").touch()
    assert "2 runs submitted" in call("submit", study, *NO_CANARY)[1]
    assert sorted(a[-1].job_id for a in read_attempts(study).values()) == ["4711_0", "4711_1"]
    assert sizes(slurm) == [2]


def test_a_submission_without_an_answer_that_slurm_lists_late_is_not_sent_again(
    tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tmp_path / "study"
    (run,) = make_study(study, {"steps": 7})
    monkeypatch.setattr(scheduler, "LOOK_SECONDS", 0.01)
    (slurm / "loses-answer").touch()
    (slurm / "lists-late").touch()
    with pytest.raises(NoAnswer, match=r"Socket timed out.*what it has taken is looked for first"):
        send(study, *NO_CANARY, limits={"gpus": 3})
    (slurm / "lists-late").unlink()
    (slurm / "loses-answer").unlink()
    (slurm / "queue.txt").write_text("4711_0 PENDING\n")
    assert send(study, *NO_CANARY).endswith("0 submitted")
    assert [a.job_id for a in read_attempts(study)[run]] == ["4711_0"]
    assert (sizes(slurm), status(study)[run]["state"], read_limits(study).gpus) == ([1], "queued", 3)


def test_a_submission_that_slurm_lists_after_the_next_one_is_known_all_the_same(
    tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tmp_path / "study"
    (run,) = make_study(study, {"steps": 7})
    monkeypatch.setattr(scheduler, "LOOK_SECONDS", 0.01)
    (slurm / "loses-answer").touch()
    (slurm / "lists-late").touch()
    with pytest.raises(NoAnswer):
        send(study, *NO_CANARY)
    (slurm / "loses-answer").unlink()
    assert send(study, *NO_CANARY).endswith("1 submitted")
    (slurm / "lists-late").unlink()
    (slurm / "queue.txt").write_text("4711_0 PENDING\n4712_0 PENDING\n")
    assert send(study, *NO_CANARY).endswith("0 submitted")
    assert sorted(a.job_id for a in read_attempts(study)[run]) == ["4711_0", "4712_0"]
    adopt(study)
    assert len(read_attempts(study)[run]) == 2


def test_jobs_that_slurm_lists_after_they_were_cancelled_are_cancelled(
    tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tmp_path / "study"
    make_study(study, {"steps": 7}, {"steps": 8})
    monkeypatch.setattr(scheduler, "LOOK_SECONDS", 0.01)
    (slurm / "loses-answer").touch()
    (slurm / "lists-late").touch()
    with pytest.raises(NoAnswer):
        send(study, *NO_CANARY)
    assert call("cancel", study)[0] == 0
    (slurm / "lists-late").unlink()
    (slurm / "loses-answer").unlink()
    (slurm / "queue.txt").write_text("4711_0 PENDING\n4711_1 PENDING\n")
    adopt(study)
    assert (slurm / "queue.txt").read_text() == ""
    assert send(study, *NO_CANARY).endswith("2 submitted")  # it is asked for anew
    assert [[a.failure for a in tries] for tries in read_attempts(study).values()] == [["cancelled", ""]] * 2


def test_a_submitter_that_was_killed_before_the_ledger_knew_leaves_nothing_to_submit_twice(tmp_path: Path, slurm: Path) -> None:
    study = tmp_path / "study"
    make_study(study, {"steps": 1}, {"steps": 2})
    call("submit", study, *NO_CANARY)
    (study / "launch/ledger.jsonl").unlink()
    (accepted,) = (study / "launch/jobs").glob("*/accepted")
    accepted.unlink()
    (slurm / "queue.txt").write_text("4711_[0-1] PENDING\n")
    assert call("submit", study, *NO_CANARY)[1].startswith("nothing to submit")
    assert sizes(slurm) == [2]
    adopt(study)
    assert sorted(a[-1].job_id for a in read_attempts(study).values()) == ["4711_0", "4711_1"]


def test_the_budget_counts_failed_attempts_and_what_they_lost(tmp_path: Path) -> None:
    run, other = make_study(tmp_path, {"steps": 9}, {"steps": 8})
    (tmp_path / "launch").mkdir()
    for attempt, before in ((1, 0.0), (2, 4e6)):
        append_event(tmp_path, "started", run, attempt=attempt, job_id="7", time=1e6, gpus=8, flops=before)
        append_event(tmp_path, "ended", run, attempt=attempt, job_id="7", time=1e6 + 900, state="failed", flops=5e6)
    append_event(tmp_path, "started", other, attempt=1, job_id="8", time=1e6 + 900, gpus=4, flops=1e6)
    (tmp_path / "runs" / other / "train.jsonl").write_text('{"step": 3, "train_flops": 3e6}\n')
    lease = Lease.acquire(tmp_path / "runs" / other / "lease.json", beats=True)
    assert lease is not None
    found = spent(tmp_path, read_attempts(tmp_path), 1e6 + 1800)
    assert (found.gpu_hours, found.flops) == (2 * 8 * 0.25 + 4 * 0.25, 1e7 + 2e6)
    change_limits(tmp_path, {"flops": 1.3e7})
    assert overspent(tmp_path) == ""
    change_limits(tmp_path, {"flops": 1.2e7})
    assert "limit of 1.2e+07 FLOPs is reached" in overspent(tmp_path)
    for key, value in (("gpus", "nan"), ("gpus", "inf"), ("gpu_hours", "nan"), ("flops", "inf")):
        with pytest.raises(ConfigError, match=rf"limit.{key}="):
            change_limits(tmp_path, {key: float(value)})
    with pytest.raises(ConfigError, match="did you mean 'gpu_hours'"):
        change_limits(tmp_path, {"gpu_hour": 1})


def test_workers_look_at_the_budget_the_oftener_the_nearer_a_limit_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run,) = make_study(tmp_path, {"steps": 9})
    (tmp_path / "launch").mkdir()
    append_event(tmp_path, "started", run, attempt=1, job_id="8", time=1e6, gpus=4, since=1e6 - 60)
    lease = Lease.acquire(tmp_path / "runs" / run / "lease.json", beats=True)
    assert lease is not None
    monkeypatch.setattr(limits.time, "time", lambda: 1e6 + 840)
    assert spent(tmp_path, read_attempts(tmp_path), 1e6 + 840).gpu_hours == 1.0  # 4 GPUs for 15 minutes, from the job's start
    pauses = []
    for left_seconds in (3600.0, 20.0, 4.0, 0.5):
        change_limits(tmp_path, {"gpu_hours": 1.0 + 4 * left_seconds / 3600})
        pauses.append(look(tmp_path))
    assert pauses == [("", 15.0), ("", pytest.approx(10.0)), ("", pytest.approx(2.0)), ("", 1.0)]
    change_limits(tmp_path, {"gpu_hours": 1.0})
    assert "the limit of 1 GPU-hours is reached" in look(tmp_path)[0]
    change_limits(tmp_path, {"gpu_hours": 0, "flops": 1e9})
    assert look(tmp_path) == ("", 1.0)  # no record yet: nobody knows how fast it goes
    records, begun = tmp_path / "runs" / run / "train.jsonl", 1e6 + 820  # 14 minutes were imports and loading
    before = {"step": 1, "train_flops": 5e8, "time": 1e6 - 100, "seconds": 0.001}  # another attempt's
    first = {"step": 2, "train_flops": 6e8, "time": begun, "seconds": 800.0}  # a compiler's
    records.write_text(f"{json.dumps(before)}\n{json.dumps(first)}\n")
    assert look(tmp_path, run) == ("", 1.0)  # nor from one
    more = [{"step": 3 + n, "train_flops": 6e8 + (n + 1) * 1e7, "time": begun + n, "seconds": 1.0} for n in range(20)]
    records.write_text(records.read_text() + "".join(f"{json.dumps(step)}\n" for step in more))
    assert look(tmp_path, run) == ("", pytest.approx(10.0))  # 2e8 left, at 1e7 a second
    change_limits(tmp_path, {"flops": 8e8 + 8e7})
    assert look(tmp_path, run) == ("", pytest.approx(4.0))
    assert look(tmp_path, "another") == ("", pytest.approx(4.0))


def test_a_spent_budget_stops_runs_at_a_step_and_a_higher_one_lets_them_go_on(tmp_path: Path) -> None:
    run, waiting = make_study(tmp_path, {"steps": 400, "seconds_per_step": 0.1}, {"steps": 300})
    code, out, _ = call("submit", tmp_path, "parallel=1", "limit.flops=2e6")
    assert code == 1  # not all are done
    done = steps(tmp_path, run)[-1]
    assert 2 <= done < 400
    assert status(tmp_path)[run]["cause"].startswith("the limit of 2e+06 FLOPs is reached")
    assert lives(tmp_path, waiting) == []
    assert "the limit of 2e+06 FLOPs is reached" in out
    behaviour = tmp_path / "runs" / run / "behaviour.json"
    behaviour.write_text(json.dumps({"steps": 400}))
    assert call("submit", tmp_path)[0] == 2
    assert call("submit", tmp_path, "limit.flops=0")[0] == 0
    assert steps(tmp_path, run) == list(range(1, 401))


def test_an_attempt_that_ends_before_its_first_step_is_not_debited_with_an_earlier_ones_steps(tmp_path: Path) -> None:
    (run,) = make_study(tmp_path, {"steps": 9})
    (tmp_path / "launch").mkdir()
    append_event(tmp_path, "started", run, attempt=1, job_id="7", time=1e6)
    append_event(tmp_path, "ended", run, attempt=1, job_id="7", time=1e6 + 9, state="failed", flops=6e6)
    append_event(tmp_path, "started", run, attempt=2, job_id="7", time=1e6 + 20, flops=4e6)
    records = tmp_path / "runs" / run / "train.jsonl"
    records.write_text(f'{{"step": 6, "train_flops": 6e6, "time": {1e6 + 9}}}\n')  # not taken back to the checkpoint yet
    assert spent(tmp_path, read_attempts(tmp_path), 1e6 + 30).flops == 6e6
    records.write_text(f'{{"step": 5, "train_flops": 5e6, "time": {1e6 + 25}}}\n')
    assert spent(tmp_path, read_attempts(tmp_path), 1e6 + 30).flops == 6e6 + 1e6


def test_an_attempt_that_was_lost_costs_nothing_after_its_last_beat(tmp_path: Path) -> None:
    (run,) = make_study(tmp_path, {"steps": 9})
    (tmp_path / "launch").mkdir()
    append_event(tmp_path, "started", run, attempt=1, job_id="8", time=1e6, gpus=8)
    (tmp_path / "runs" / run / "lease.json").write_text(f'{{"beats": true, "attempt": 1, "beat": {1e6 + 450}, "host": "gone"}}')
    assert spent(tmp_path, read_attempts(tmp_path), 1e6 + 3 * 86400).gpu_hours == 1.0
    change_limits(tmp_path, {"gpu_hours": 2.0})
    assert look(tmp_path)[0] == ""
    append_event(tmp_path, "submitted", run, attempt=2, job_id="9")  # a twin's, that has not begun, hides nothing
    (tmp_path / "runs" / run / "train.jsonl").write_text('{"step": 3, "train_flops": 3e6}\n')
    assert spent(tmp_path, read_attempts(tmp_path), 1e6 + 3 * 86400).flops == 3e6


def test_a_call_that_is_refused_leaves_what_waits_and_the_limits_as_they_were(tmp_path: Path, slurm: Path) -> None:
    study = tmp_path / "study"
    make_study(study, *[{"steps": n + 1} for n in range(3)], gpus=4)
    call("submit", study, *NO_CANARY, "limit.gpus=4", "partition=good")
    (slurm / "queue.txt").write_text("4711_0 RUNNING\n")
    before, limits_before = read_order(study), read_json(study / "launch/limits.json")
    assert (len(before.waiting), before.cluster["partition"]) == (2, "good")
    for words, sentence in (
        (["partition=nowhere", "limit.gpus=12"], "invalid partition specified"),
        (["limit.gpus=3"], "needs 4 GPUs, more than limit.gpus=3; raise it"),
    ):
        code, _, err = call("submit", study, *NO_CANARY, *words)
        assert (code, sentence in err) == (2, True)
        order = read_order(study)
        assert (order.waiting, order.cluster) == (before.waiting, before.cluster)
        assert read_json(study / "launch/limits.json") == limits_before


@pytest.mark.parametrize(
    "name", ["AssocGrpSubmitJobsLimit", "QOSGrpSubmitJobsLimit", "QOSMaxSubmitJobPerUserLimit", "AssocMaxSubmitJobLimit"]
)
def test_slurms_names_of_limits_on_submitted_jobs_are_known(name: str) -> None:
    assert FULL.search(f"sbatch refused the jobs (error: {name} Batch job submission failed: Job violates accounting/QOS policy)")
