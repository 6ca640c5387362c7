"""A plan on disk: written whole or not at all, unchanged when planned again, never over another plan."""

from __future__ import annotations

import csv
import dataclasses
import errno
import io
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from analysis.collect import read_plan as collected_plan
from launch.rows import read_rows as submitted_rows
from lst.config import RunConfig
from lst.errors import FitError, LaunchError, PlanError
from sweeps import folder
from sweeps.columns import COLUMNS, read_rows, rows_to_csv
from sweeps.diff import describe_diff, diff_plans
from sweeps.folder import Written, _locked, to_yaml, write_plan
from sweeps.measure import Measurements
from sweeps.plan import Plan, plan, plan_with, read_plan
from sweeps.reprice import reprice
from sweeps.study import StudyConfig, study_to_dict

ROOT = Path(__file__).parents[2]
ONE = {"name": "one", "data": "paper", "units": [1e11], "matching": "unit", "sizes": ["420M"], "recipe": {"name": "paper"}}


def contents(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


@pytest.fixture
def wider(small_study: dict[str, Any], measure: Measurements) -> Plan:
    return plan_with(StudyConfig.from_dict({**small_study, "budgets": [2e9, 4e9, 6e9]}), measure)


def test_planning_again_changes_no_byte(
    small_plan: Plan, small_study: dict[str, Any], measure: Measurements, tmp_path: Path
) -> None:
    out = tmp_path / "deep" / "study"
    assert small_plan.write(out) is Written.NEW
    before, stamps = contents(out), {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    assert plan_with(StudyConfig.from_dict(small_study), measure).write(out) is Written.UNCHANGED
    assert contents(out) == before
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == stamps
    assert set(before) == {"plan.csv", "study.yaml", "references.json"} | {f"runs/{r}/run.yaml" for r in small_plan.run_configs}


def test_two_folders_of_one_plan_are_equal(small_plan: Plan, tmp_path: Path) -> None:
    small_plan.write(tmp_path / "a")
    small_plan.write(str(tmp_path / "b"))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_run_yaml_reads_back_exactly_through_omegaconf(small_plan: Plan, tmp_path: Path) -> None:
    small_plan.write(tmp_path / "s")
    for run_id, config in small_plan.run_configs.items():
        stored = OmegaConf.to_container(OmegaConf.load(tmp_path / "s" / "runs" / run_id / "run.yaml"))
        assert stored["run_id"] == run_id == config.run_id
        assert RunConfig.from_dict(stored["config"]) == config


def test_yaml_keeps_every_scalar() -> None:
    content = {
        "floats": [1e18, 1e-8, 4e-4, 0.1, 1.0, 5e22, -2.5e-300, 100000000000.0],
        "ints": [0, -3, 10**18],
        "text": ["", "true", "1e5", "null", "a: b # c", 'quote " and \\', "line\nbreak", "ünïcode", "0x10", "~"],
        "none": None,
        "flags": [True, False],
        "empty": {},
        "nested": {"deep": {"list": []}},
    }
    text = to_yaml(content)
    assert OmegaConf.to_container(OmegaConf.create(text)) == content


def test_a_stored_plan_reads_back_equal(small_plan: Plan, tmp_path: Path) -> None:
    small_plan.write(tmp_path / "s")
    stored = read_plan(tmp_path / "s")
    assert stored.rows == small_plan.rows
    assert stored.study == small_plan.study
    assert stored.totals == small_plan.totals
    assert stored.table.equals(small_plan.table)


def test_table_has_the_documented_columns(small_plan: Plan) -> None:
    """docs/columns.md is the golden: its first table's first column, in order."""
    lines = (Path(__file__).parents[2] / "docs" / "columns.md").read_text().split("## ")[1].splitlines()
    names: list[str] = []
    for cell in [line.split("|")[1].strip() for line in lines if line.startswith("|")][2:]:
        first, *others = [part.strip() for part in cell.split(",")]
        # '_encoder' after 'num_params_embedding' is short for 'num_params_encoder'
        names += [first] + [first.removesuffix("_embedding") + part if part.startswith("_") else part for part in others]
    assert tuple(names) == COLUMNS
    assert list(small_plan.table.columns) == list(COLUMNS)
    assert rows_to_csv(small_plan.rows).splitlines()[0] == ",".join(COLUMNS)


def test_widening_keeps_every_id_and_file(small_plan: Plan, wider: Plan, tmp_path: Path) -> None:
    out = tmp_path / "s"
    small_plan.write(out)
    (out / "runs" / small_plan.rows[0].run_id / "train.jsonl").write_text("{}\n")
    before = contents(out)
    with pytest.raises(PlanError, match="--widen"):
        wider.write(out)
    assert contents(out) == before
    assert wider.write(out, widen=True) is Written.WIDENED
    after = contents(out)
    kept = {name: data for name, data in before.items() if name.startswith("runs/")}
    assert kept.items() <= after.items()
    assert len(read_rows(out)) == 15
    assert wider.write(out) is Written.UNCHANGED


def test_another_plan_is_refused_even_when_widening(small_plan: Plan, wider: Plan, tmp_path: Path) -> None:
    out = tmp_path / "s"
    wider.write(out)
    before = contents(out)
    for widen in (False, True):
        with pytest.raises(PlanError, match=r"another plan: 5 of its 15 runs"):
            small_plan.write(out, widen=widen)
    assert contents(out) == before


@pytest.mark.parametrize("widen", [False, True])
def test_a_folder_that_is_not_ours_is_refused(small_plan: Plan, tmp_path: Path, widen: bool) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(PlanError, match="no plan of ours"):
        small_plan.write(tmp_path, widen=widen)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_refused_and_an_empty_folder_is_taken(small_plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(PlanError, match="is a file"):
        small_plan.write(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert small_plan.write(tmp_path / "empty") is Written.NEW


def test_a_lost_or_damaged_file_is_put_back(small_plan: Plan, tmp_path: Path) -> None:
    small_plan.write(tmp_path / "s")
    before = contents(tmp_path / "s")
    first, second = list(small_plan.run_configs)[:2]
    (tmp_path / "s" / "runs" / first / "run.yaml").unlink()
    (tmp_path / "s" / "runs" / second / "run.yaml").write_text("torn")
    (tmp_path / "s" / "references.json").unlink()
    assert small_plan.write(tmp_path / "s") is Written.UNCHANGED
    assert contents(tmp_path / "s") == before


@pytest.mark.parametrize("left", [None, 0, 1, 3, 4.5])
@pytest.mark.parametrize("names", [["plan.csv"], ["study.yaml"], ["plan.csv", "study.yaml"]])
def test_a_lost_or_cut_table_and_study_are_put_back(
    small_plan: Plan, tmp_path: Path, names: list[str], left: float | None
) -> None:
    """`left` lines of each are there; of the half one, its first characters."""
    small_plan.write(tmp_path / "s")
    before = contents(tmp_path / "s")
    for name in names:
        if left is None:
            (tmp_path / "s" / name).unlink()
        else:
            lines = before[name].splitlines(keepends=True)
            (tmp_path / "s" / name).write_bytes(b"".join(lines[: int(left)]) + (lines[4][:9] if left > int(left) else b""))
    assert small_plan.write(tmp_path / "s") is Written.UNCHANGED
    assert contents(tmp_path / "s") == before


def test_what_is_left_of_another_plan_is_not_taken_for_this_one(small_plan: Plan, wider: Plan, tmp_path: Path) -> None:
    out = tmp_path / "s"
    wider.write(out)
    for name in ("plan.csv", "study.yaml"):
        (out / name).unlink()
    before = contents(out)
    for widen in (False, True):
        with pytest.raises(PlanError, match="another plan: 5 of its 15 runs are not in this one"):
            small_plan.write(out, widen=widen)
    assert contents(out) == before
    first = next(iter(wider.run_configs))
    (out / "runs" / first / "run.yaml").unlink()
    with pytest.raises(PlanError, match="though all its 14 runs are in this one too; add --widen"):
        wider.write(out)
    assert wider.write(out, widen=True) is Written.WIDENED
    assert contents(out) == before | contents(tmp_path / "s")
    assert read_plan(out).rows == wider.rows


def test_every_reader_refuses_a_table_that_was_cut_between_two_rows(small_plan: Plan, tmp_path: Path) -> None:
    out = tmp_path / "s"
    small_plan.write(out)
    lines = (out / "plan.csv").read_bytes().splitlines(keepends=True)
    (out / "plan.csv").write_bytes(b"".join(lines[:4]))
    says = "is cut: it holds 3 of its 10 rows; plan the study again into the same folder, which puts it back"
    for read, error in (
        (read_plan, PlanError), (partial(diff_plans, out), PlanError), (submitted_rows, LaunchError), (collected_plan, FitError),
    ):  # fmt: skip
        with pytest.raises(error, match=says):
            read(out)
    (out / "plan.csv").write_bytes(b"".join(lines) + lines[-1].replace(b"admitted", b"refused"))
    assert len(read_plan(out).rows) == 11  # a plan that grows gets its table first


def test_a_file_that_was_cut_inside_a_line_is_called_torn(small_plan: Plan, tmp_path: Path) -> None:
    out = tmp_path / "s"
    small_plan.write(out)
    for name in ("study.yaml", "plan.csv"):
        whole = (out / name).read_bytes()
        (out / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(PlanError, match=rf"{name}' is torn \(its last line has no end\); plan the study again"):
            read_plan(out)
        (out / name).write_bytes(whole)


def test_a_full_disk_leaves_nothing(small_plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, written = os.write, []

    def full_after_three(file: int, data: bytes) -> int:
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(file)
        return real(file, data[:1000])  # a disk may take a part

    monkeypatch.setattr(os, "write", full_after_three)
    with pytest.raises(PlanError, match=r"No space left on device.*free some space"):
        small_plan.write(tmp_path / "s")
    assert len(written) == 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_planner_that_is_ended_in_the_middle_leaves_no_plan_and_no_litter(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM take away what was begun; what kill -9 leaves aside, hidden, goes with the next planner, once old."""
    out, script = tmp_path / "study", tmp_path / "plan.py"
    script.write_text(
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from lst.command import ended, sigterm_raises\nfrom sweeps import folder\n"
        "write = folder._write_file\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell starts what it has in the background without it
        f"def dies(path, data):\n    write(path, data)\n    'run.yaml' in path and os.kill(os.getpid(), {int(number)})\n"
        "folder._write_file = dies\n"
        "files = {'study.yaml': b'', 'runs/a/run.yaml': b'', 'runs/b/run.yaml': b''}\n"
        "with sigterm_raises():\n"
        "    sys.exit(ended('plan-sweep', lambda: folder.write_plan(Path(sys.argv[1]), files, None) and 0))\n"
    )
    ended = subprocess.run(
        [sys.executable, str(script), str(out)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == ({signal.SIGKILL: -9}.get(number, 128 + number), "")
    left = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert [path.name.startswith(".study.") for path in left] == [True] * (number == signal.SIGKILL)
    files = {"plan.csv": b"x"}
    for path in left:
        os.utime(path, (0, 0))
    assert write_plan(out, files, None) == "new"
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["study"]


def test_planning_the_same_again_removes_what_was_left_aside(tmp_path: Path) -> None:
    files = {"plan.csv": b"x"}
    write_plan(tmp_path / "study", files, None)
    aside = tmp_path / ".study.abc.plan-sweep"
    aside.mkdir()
    os.utime(aside, (0, 0))
    assert write_plan(tmp_path / "study", files, None) == "unchanged"
    assert not aside.exists()


def test_what_another_planner_is_writing_stays(tmp_path: Path) -> None:
    aside = tmp_path / ".study.abc.plan-sweep"
    aside.mkdir()
    os.utime(aside, (0, 0))
    with _locked(aside):
        assert write_plan(tmp_path / "study", {"plan.csv": b"x"}, None) == "new"
        assert aside.is_dir()


def test_of_two_planners_at_once_the_second_finds_the_firsts_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one is done between the look at the folder and the rename."""
    ours, wider = plan(ONE), plan(ONE | {"seeds": [0, 1]})
    for theirs, message in ((ours, ""), (wider, "holds another plan")):
        out, write = tmp_path / str(len(theirs.rows)) / "study", folder._remove_leftovers

        def overtaken(path: Path, theirs: Plan = theirs, write: Any = write) -> None:
            monkeypatch.setattr(folder, "_remove_leftovers", write)
            theirs.write(path)

        monkeypatch.setattr(folder, "_remove_leftovers", overtaken)
        if message:
            with pytest.raises(PlanError, match=message):
                ours.write(out)
        else:
            assert ours.write(out) == "unchanged"
        assert read_plan(out).rows == theirs.rows
        assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_the_folder_that_one_is_in_and_a_link_to_an_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(PlanError, match=r"out=\. is the folder that you are in, and it is empty; give its name from outside"):
        write_plan(Path(), {"plan.csv": b"x"}, None)
    monkeypatch.chdir(tmp_path)
    assert write_plan(Path("link"), {"plan.csv": b"x"}, None) == "new"
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "empty" / "plan.csv").read_bytes() == b"x"


def test_an_interrupted_widening_leaves_the_old_table(
    small_plan: Plan, wider: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "s"
    small_plan.write(out)
    old = (out / "plan.csv").read_bytes()
    real = folder.write_atomically

    def full_at_the_end(path: Path, data: bytes) -> None:
        if path.name == "plan.csv":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, data)

    monkeypatch.setattr(folder, "write_atomically", full_at_the_end)
    with pytest.raises(PlanError, match="free some space"):
        wider.write(out, widen=True)
    assert (out / "plan.csv").read_bytes() == old
    monkeypatch.undo()
    assert wider.write(out, widen=True) is Written.WIDENED
    assert read_plan(out).rows == wider.rows


def test_a_damaged_table_is_told_by_its_line(small_plan: Plan, tmp_path: Path) -> None:
    small_plan.write(tmp_path / "s")
    path = tmp_path / "s" / "plan.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], lines[2].replace(",", ",,", 1), *lines[3:], ""]))
    with pytest.raises(PlanError, match=rf"line 3 is damaged \({len(COLUMNS) + 1} cells, not {len(COLUMNS)}\); .* puts it back"):
        read_plan(tmp_path / "s")
    path.write_text("a,b\n1,2\n")
    with pytest.raises(PlanError, match="columns"):
        read_plan(tmp_path / "s")
    with pytest.raises(PlanError, match=r"no readable plan\.csv"):
        read_plan(tmp_path / "nowhere")


def test_diff_names_what_changed(small_plan: Plan, wider: Plan, tmp_path: Path) -> None:
    small_plan.write(tmp_path / "a")
    wider.write(tmp_path / "b")
    diff = diff_plans(tmp_path / "a", tmp_path / "b")
    assert (len(diff.only_a), len(diff.only_b), diff.common, diff.changed) == (0, 5, 10, {})
    assert diff.study == {"budgets": ([2e9, 4e9], [2e9, 4e9, 6e9])}
    assert "only in B" in describe_diff(diff)
    assert describe_diff(diff_plans(tmp_path / "a", tmp_path / "a")) == "the plans are the same: 10 runs"


def test_repricing_reads_the_frozen_configurations(small_plan: Plan, tmp_path: Path) -> None:
    small_plan.write(tmp_path / "s")
    stored = read_plan(tmp_path / "s")
    assert reprice(stored, small_plan.study.price) == small_plan.rows
    (tmp_path / "s" / "runs" / stored.rows[0].run_id / "run.yaml").unlink()
    with pytest.raises(PlanError, match=r"run.yaml' is missing"):
        reprice(stored, small_plan.study.price)


def test_a_study_reads_back_from_its_plain_form(small_plan: Plan) -> None:
    assert StudyConfig.from_dict(study_to_dict(small_plan.study)) == small_plan.study


def test_a_seed_planned_beside_others_is_the_bytes_of_the_seed_alone() -> None:
    """Seeds share what is made of them but for the number itself; 1 and 10 share digits too."""
    together = plan({**ONE, "seeds": [1, 10, 0]}).files()
    for seed in (1, 10, 0):
        alone = plan({**ONE, "seeds": [seed]}).files()
        runs = {name: data for name, data in alone.items() if name.startswith("runs/")}
        assert len(runs) == 2
        assert {name: together[name] for name in runs} == runs
        assert set(alone["plan.csv"].splitlines()) < set(together["plan.csv"].splitlines())


def test_plan_csv_is_what_the_csv_module_writes() -> None:
    row = plan(
        {"name": "a", "data": "paper", "units": [1e9], "matching": "unit", "sizes": ["420M"], "recipe": {"name": "paper"}}
    ).rows[0]
    rows = [dataclasses.replace(row, reason=reason) for reason in ("", 'say "no", twice', "a,b", " blank ", "two\nlines", "ünï")]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *([getattr(row, name) for name in COLUMNS] for row in rows)])
    assert rows_to_csv(rows) == text.getvalue()
