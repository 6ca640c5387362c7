"""`plan-sweep` as a user meets it: what it prints, one sentence for wrong input, no files left behind, no torch."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sweeps.cli import compose_study, main
from sweeps.study import StudyConfig, load_study, study_names
from sweeps.text import WIDTH

ROOT = Path(__file__).parents[2]


@pytest.fixture
def small(toy_dataset: Path) -> list[str]:
    """Overrides that make `study=demo` small and put it on the toy corpus: still 3 x 4 x 2 + 3 rows."""
    lists = ["budgets=[4e8,6e8,8e8]", "sizes=[w8,w16,w24,w48]", "seq_len_units=16"]
    scalars = ["evaluation.heldout_documents=4", "evaluation.story_items=0", "stories_from=0", "admission.min_steps=2"]
    loose = ["admission.min_batch_units=1", "admission.max_warmup_share=0.5", "recipe.warmup_steps=1"]
    return ["study=demo", f"data={toy_dataset}", *lists, *scalars, *loose]


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one sentence of a call that must end with exit status 2."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("plan-sweep: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_demo_has_27_rows_and_reads_well_at_100_columns(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    assert main([*small, f"out={out}"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.replace(str(out), "").splitlines())) <= WIDTH
    assert "study demo: 27 runs" in text
    assert len([line for line in text.splitlines() if line.endswith(("admitted", "refused"))]) == 27
    assert f"written: {out}" in text
    assert len((out / "plan.csv").read_text().splitlines()) == 28
    assert main([*small, f"out={out}"]) == 0
    assert "unchanged" in capsys.readouterr().out


def test_every_arm_is_planned_on_the_embedded_corpus(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its 1,000 speech pieces are made by the planner and kept in the user's cache. (Mixtures of every arm: test_export.)"""
    monkeypatch.setenv("LST_CACHE", str(tmp_path / "cache"))
    arms = ["baseline", "bpe", "lst_static", "lst_aligned", "lst_mixed", "lst_curriculum"]
    lists = [f"arms=[{','.join(arms)}]", "budgets=[3e9]", "sizes=[w8]", "seq_len_units=64"]
    options = [
        "evaluation.heldout_documents=4",
        "evaluation.story_items=0",
        "mixture.interleaved_token_share=1.0",
        "patching.silence=merged",
        "recipe.batch_sequences=2",
    ]
    call = ["study=isoflop_small", *lists, *options, f"out={tmp_path / 'study'}", "--json"]
    assert main(call) == 0
    planned = json.loads(capsys.readouterr().out)
    assert [row["arm"] for row in planned["rows"]] == arms
    assert {"speech pieces", "merged silence"} <= set(planned["assumptions"])
    (kept,) = (tmp_path / "cache").iterdir()
    assert kept.name.endswith("-1000.model")


def test_the_packaged_demo_is_3_budgets_by_4_sizes_by_2_arms_and_3_more() -> None:
    study = load_study("demo")
    assert len(study.lengths) == 3
    assert {arm: len(study.sizes_of(arm)) for arm in study.arms} == {"baseline": 4, "lst_static": 4, "lst_curriculum": 1}
    assert study.matching == "flop"


@pytest.mark.parametrize("name", study_names())
def test_every_packaged_study_composes_alike_with_and_without_hydra(name: str) -> None:
    assert load_study(name) == compose_study({"study": name})
    assert load_study(name).name == name


def test_overrides_reach_nested_fields_and_mappings() -> None:
    study = compose_study({"study": "demo", "recipe.lr_scale": "0.5", "arm_sizes.lst_static": "[w48]", "data": "a b/c=d(1)"})
    assert study.recipe.lr_scale == 0.5
    assert study.sizes_of("lst_static") == ("w48",)
    assert study.sizes_of("lst_curriculum") == ("w24",)
    assert study.data == "a b/c=d(1)"


def test_options_of_an_evaluation_are_written_as_its_command_takes_them() -> None:
    words = {"directions": "S->S,T->T", "limit": "5", "score": "loglik_sum", "dtype": "float64"}
    study = compose_study({"study": "lst_table12", **{f"after.options.{key}": value for key, value in words.items()}})
    assert study.after.options == words | {"limit": 5}
    floats = compose_study({"study": "lst_table12", "after.task": "asr", "after.options.tokens_per_second": "NaN"})
    assert floats.after.options == {"tokens_per_second": "NaN"}  # of another type than the option is: refused when it is planned


def test_an_empty_mapping_clears_the_studys_sizes_of_arms() -> None:
    study = compose_study({"study": "demo", "arm_sizes": "{}"})
    assert study.arm_sizes == {}
    assert study.sizes_of("lst_curriculum") == study.sizes
    study = compose_study({"study": "demo", "arm_sizes": "{ }", "arm_sizes.lst_static": "[w48]"})
    assert study.arm_sizes == {"lst_static": ("w48",)}
    assert compose_study({"study": "isoflop_small", "arm_sizes": "{}"}).arm_sizes == {}


def test_an_arm_without_sizes_is_told_what_to_type(small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*small, "arm_sizes.lst_curriculum=[w32]", "--dry-run"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "give arm_sizes.lst_curriculum=[SIZE,...], or arm_sizes={} to plan every arm at every size." in text


def test_every_row_of_the_small_demo_is_admitted(capsys: pytest.CaptureFixture[str]) -> None:
    (words,) = re.findall(r"^DEMO_SMALL_ARGS \?= (.*?[^\\])$", (ROOT / "Makefile").read_text(), re.MULTILINE | re.DOTALL)
    assert main(["study=demo", *words.replace("\\\n", " ").split(), "--dry-run", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert [row["reason"] for row in planned["rows"] if row["status"] != "admitted"] == []
    assert len(planned["rows"]) == 10


def test_the_plan_prints_the_studys_values_of_options(small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    options = ["model.pooling=mean", "model.local_text=false", "model.tied_head=true", "model.queries_per_patch=0"]
    assert main([*small, *options, "patching.curriculum_static_from=0.8", "--dry-run"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "patch query pooling: model.pooling = mean (by default: max over" in text
    assert "local modules on text: model.local_text = false (by default" in text
    assert "output head: model.tied_head = true (by default" in text
    assert "starts from silence apart (patching.silence); here patching.curriculum_static_from = 0.8" in text
    assert "queries per patch: two queries" in text


def test_dry_run_writes_nothing(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*small, "out=there", "--dry-run"]) == 0
    assert main([*small, "--dry-run"]) == 0
    assert "nothing was written" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_planning_leaves_only_its_folder(small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*small, "out=there"]) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


def test_json_is_one_object(small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*small, "--dry-run", "--json", "--cores", "3"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert len(content["rows"]) == content["totals"]["rows"] == 27
    assert content["totals"]["cores"] == 3
    assert content["totals"]["wall_minutes"] < content["totals"]["process_minutes"]
    assert content["written"] is None
    assert "compute" in content["assumptions"]
    assert "curriculum" in content["assumptions"]


def test_diff_and_price_print(small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "a")
    assert main([*small, f"out={out}"]) == 0
    assert main(["diff", out, out]) == 0
    assert main(["price", out, "price.device=h100", "--json"]) == 0
    lines = capsys.readouterr().out
    assert "the plans are the same: 27 runs" in lines
    assert '"gpus": 1' in lines
    assert "only fields of the section price" in error_of(capsys, "price", out, "seeds=[1]")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["study=dmeo"], "did you mean 'demo'?"),
        (["study=demo", "sizs=[w32]"], "unknown key 'sizs'; did you mean 'sizes'?"),
        (["study=demo", "recipe.lrr=1"], "did you mean 'lr'?"),
        (["study=demo", "name.x=1"], "'name' has no fields"),
        (["study=demo", "arms=[baselin]"], "did you mean 'baseline'?"),
        (["study=demo", "sizes=[w33]"], "sizes has 'w33'"),
        (["study=demo", "sizes=[420]"], "sizes[0]=420 is a number, and sizes are names; the nearest are '420M' and '630M'."),
        (["study=demo", "sizes=[48]"], "the nearest are 'w48' and '39M'."),
        (["study=demo", "sizes=[1.4]"], "the nearest are '1.4B' and"),
        (["study=demo", "sizes=[-1]"], "sizes[0]=-1 is a number, and sizes are names; known: "),
        (
            ["study=demo", "arm_sizes.baseline=[7]"],
            "arm_sizes.baseline[0]=7 is a number, and sizes are names; the nearest",
        ),
        (["study=demo", "data=nowhere", "sizes=[1.4B,table7_1b]", "arm_sizes={}"], "'1.4B' and 'table7_1b', two names of one"),
        (["study=demo", "model.cross_attention=preceeding"], "did you mean 'preceding'?"),
        (["study=demo", "arms=[baseline]", "model.pooling=mox"], "did you mean 'max'?"),
        (["study=demo", "model.queries_per_patch=-1"], "model.queries_per_patch=-1 must be positive"),
        (["study=demo", "model.rope_theta=0"], "model.rope_theta=0.0 must be positive"),
        (["study=demo", "model.tied_head=1"], "model.tied_head=1 must be of type bool"),
        (["study=demo", "train.bad_step=skp"], "did you mean 'skip'?"),
        (["study=demo", "train.spike_factor=0.5"], "train.spike_factor=0.5 must be above 1"),
        (["study=demo", "train.init_from=abc"], "train.init_from='abc' is no content hash"),
        (["study=demo", "train.init_from=0123456789ab"], "execution.init_path is empty; give their folder"),
        (
            ["study=demo", "train.branch_steps=[10]"],
            "unknown key 'train.branch_steps'; known: init_from, bad_step, max_skipped_steps, spike_factor, spike_memory_steps.",
        ),
        (["study=demo", "arm_sizes.lst_statc=[w32]"], "did you mean 'lst_static'?"),
        (["study=demo", "recipe.name=smal"], "did you mean 'small'?"),
        (["study=demo", "recipe.schedule=wds"], "did you mean 'wsd'?"),
        (["study=demo", "recipe.schedule=wsd", "recipe.decay_shape=squrt"], "did you mean 'sqrt'?"),
        (["study=demo", "recipe.schedule=wsd", "recipe.decay_share=1.5"], "recipe.decay_share=1.5 must lie in (0, 1]"),
        (["study=demo", "recipe.decay_share=0.1"], "has no meaning for a cosine; set recipe.schedule=wsd"),
        (["study=demo", "recipe.schedule=wsd", "recipe.decay_share=1.0"], "inside the warm-up"),
        (["study=demo", "matching=flops"], "did you mean 'flop'?"),
        (["study=demo", "budgets=[-1e9]"], "budgets[0]=-1000000000.0 must be a positive finite number"),
        (["study=demo", "budgets=[0]"], "budgets[0]=0.0 must be"),
        (["study=demo", "budgets=[nan]"], "budgets[0]=nan must be"),
        (["study=demo", "budgets=[1e9,inf]"], "budgets[1]=inf must be"),
        (["study=demo", "budgets=[1" + "0" * 400 + "]"], "budgets[0]=inf must be"),
        (["study=demo", "budgets=[1e9,1e9]"], "twice"),
        (["study=demo", "budgets=1e9"], "must be a list"),
        (["study=demo", "budgets=[true]"], "must be of type float"),
        (["study=demo", "budgets=[1e9"], "cannot be read"),
        (["study=demo", "budgets=[]"], "exactly one length axis"),
        (["study=demo", "tokens=[1e6]"], "budgets and tokens"),
        (["study=demo", "seeds=[]"], "seeds is empty"),
        (["study=demo", "seeds=[-1]"], "seeds has -1"),
        (["study=demo", "seeds=[0]", "seeds=[1]"], "given twice"),
        (["study=demo", "seq_len_units=0"], "must be positive"),
        (["study=demo", "matching=unit", "reference_arm=lst_mixed"], "not among arms"),
        (["study=demo", "matching=unit", "context_match=tokens"], "matching=unit wants equal units"),
        (["study=demo", "matching=unit", "arm_sizes.baseline=[w32]"], "where the reference arm"),
        (["study=demo", "execution.data_path=x"], "give data=FOLDER"),
        (["study=demo", "price.mfu=2"], "price.mfu=2.0"),
        (["study=demo", "price.cpu_flops_per_second=.inf"], "price.cpu_flops_per_second"),
        (["study=demo", "data=nowhere"], "data 'nowhere' has no manifest.json"),
        (["study=demo", "data=${oc.env:HOME}"], "a reference in configuration files"),
        (["study=demo", "hydra.run.dir=x"], "unknown key 'hydra.run.dir'"),
        (["stray"], "no key=value"),
        ([], "study is missing"),
    ],
)
def test_wrong_input_is_one_sentence(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert says in error_of(capsys, *arguments, "--dry-run")


def test_a_missing_or_unwritable_out_is_one_sentence(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = [*small, "arms=[baseline]", "recipe.lr=1e-3"]
    assert "out is missing" in error_of(capsys, *small)
    (tmp_path / "file").write_text("")
    assert "is a file" in error_of(capsys, *small, f"out={tmp_path / 'file'}")
    assert "cannot be written" in error_of(capsys, *small, f"out={tmp_path / 'file' / 'below'}")


def test_interrupt_ends_quietly_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_: object) -> StudyConfig:
        raise KeyboardInterrupt

    monkeypatch.setattr("sweeps.cli.compose_study", interrupted)
    assert main(["study=demo", "--dry-run"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_planning_never_imports_torch(small: list[str], tmp_path: Path) -> None:
    """In a process of its own, as a user runs it."""
    arguments = [*small, "arms=[baseline,lst_curriculum]", f"out={tmp_path / 's'}"]
    heavy = "[m for m in ('torch', 'matplotlib') if m in sys.modules]"
    code = f"import sys; from sweeps.cli import main; code = main({arguments!r}); print({heavy}, code)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert result.stdout.strip().splitlines()[-1] == "[] 0"


def test_a_command_whose_reader_left_is_quiet(small: list[str]) -> None:
    """plan-sweep ... | head -1"""
    command = [sys.executable, "-m", "sweeps.cli", *small, "arms=[baseline]", "--dry-run", "--json"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["sweeps.cli", "sizes"], "plan-sweep"),
        (["launch.cli", "status", "DIR"], "error"),
        (["analysis.cli", "fit", "--help"], ""),
    ],
)
def test_an_output_that_cannot_be_written_is_one_sentence(tmp_path: Path, command: list[str], name: str, unbuffered: str) -> None:
    """Told once, not again at the interpreter's exit; argparse itself is quiet where it cannot write its help at once."""
    (tmp_path / "plan.csv").write_text("run_id,arm,size,steps,planned_flops,gpus,est_gpu_hours,status,reason\n")
    command = [str(tmp_path) if word == "DIR" else word for word in command]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", *command], cwd=ROOT, env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    says = "the output cannot be read or written (No space left on device); free some space and call again."
    if name:
        assert (ended.returncode, ended.stderr) == (2, f"{name}: {says}\n")
    else:
        assert "Traceback" not in ended.stderr
        assert "Exception" not in ended.stderr
