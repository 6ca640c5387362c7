"""A data preparation's parts as runs of a study, and the look at a machine before a study."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch import preflight
from launch.cli import main
from launch.cluster import load_cluster
from launch.ledger import read_attempts
from launch.preflight import check_machines, report_lines
from launch.prepare import split_words, write_preparation
from lst.config import arm_config
from lst.data.shards import open_dataset
from lst.errors import ConfigError, LaunchError
from lst.preflight import _is_seen, filesystem
from lst.records import read_json
from tests.launch.fake_slurm import install
from tests.launch.study import call, make_study, plan_real_runs, status
from tests.train.tiny_run import write_tiny_dataset


def write_input(folder: Path) -> Path:
    """A few spoken documents."""
    lines = []
    for number in range(60):
        words = ["".join(chr(97 + (number * k + j) % 26) for j in range(4)) for k in range(30)]
        spans = [{"word": w, "start": 3 * k, "end": 3 * k + 1} for k, w in enumerate(words)]
        tokens = [(number * 7 + k) % 40 for k in range(3 * len(words))]
        lines.append(json.dumps({"id": f"d{number}", "speech_tokens": tokens, "text": " ".join(words), "words": spans}))
    path = folder / "speech.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_preparation_in_parts_gives_what_one_process_gives(tmp_path: Path) -> None:
    options = [f"input={write_input(tmp_path)}", "speech_vocab=40", "split_by=document"]
    write_tiny_dataset(tmp_path / "tiny")
    options.append(f"tokenizer={tmp_path / 'tiny/spm.model'}")
    jobs, out = tmp_path / "jobs", tmp_path / "data"
    code, _, err = call("prepare", jobs, "parts=2", *options, f"out={out}", "parallel=1")
    assert (code, err) == (0, "")
    found = status(jobs)
    assert list(found) == ["part-1-of-2", "part-2-of-2", "merge"]
    assert {s["state"] for s in found.values()} == {"done"}
    assert call("prepare", tmp_path / "again", "parts=1", *options, f"out={tmp_path / 'one'}")[0] == 0
    assert open_dataset(str(out)).data_id == open_dataset(str(tmp_path / "one")).data_id
    assert call("prepare", jobs, "parts=2", *options, f"out={out}")[1].startswith("nothing to submit")
    code, _, err = call("prepare", jobs, "parts=3", *options, f"out={out}")
    assert code == 2
    assert "holds another preparation" in err


def test_a_part_that_fails_is_told_and_nothing_is_merged(tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"id": "a"}\n')
    jobs = tmp_path / "jobs"
    code, _, err = call("prepare", jobs, "parts=1", f"input={bad}", f"out={tmp_path / 'data'}")
    assert code == 1
    found = status(jobs)
    assert [s["state"] for s in found.values()] == ["failed", "planned"]
    assert found["merge"]["cause"] == "comes after run part-1-of-1, which is not done"
    assert "bad.jsonl" in found["part-1-of-1"]["cause"]
    assert "failed: part-1-of-1" in err
    assert not (tmp_path / "data").exists()


def test_on_slurm_parts_are_an_array_and_the_merge_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in install(tmp_path / "slurm").items():
        monkeypatch.setenv(name, value)
    words = ["parts=3", f"input={write_input(tmp_path)}", f"out={tmp_path / 'data'}", "cluster=slurm", "cluster.partition=cpu"]
    assert call("prepare", tmp_path / "jobs", *words)[0] == 0
    (script,) = (tmp_path / "slurm").glob("script-*.sh")
    assert "--array=0-2" in script.read_text()
    (spec,) = (tmp_path / "jobs/launch/jobs").glob("*/jobs.json")
    content = read_json(spec)
    assert content is not None
    assert [job["task"][0] for job in content["jobs"]] == ["lst.data.prepare"] * 3
    assert [job["task"][-1] for job in content["jobs"]] == ["part=1/3", "part=2/3", "part=3/3"]


def test_words_of_a_preparation_are_told_apart() -> None:
    parts, options, ours = split_words(["parts=4", "out=x", "heldout_share=0.1", "cluster=slurm", "limit.gpus=2"])
    assert (parts, ours) == (4, ["cluster=slurm", "limit.gpus=2"])
    assert options == [f"out={Path('x').absolute()}", "heldout_share=0.1"]
    for words, sentence in ((["out=x"], "needs parts=N"), (["parts=0", "out=x"], "positive"), (["part=1/2"], "by the launcher")):
        with pytest.raises(ConfigError, match=sentence):
            split_words(words)


def test_a_preparation_is_judged_before_it_is_written_and_replaced_until_a_job_was_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs, words = tmp_path / "jobs", [f"input={tmp_path}", f"out={tmp_path / 'out'}"]
    for wrong, sentence in (
        (["parts=2", "out=", "input=x"], "needs parts=N and out=FOLDER"),
        (["parts=2", *words, "cluster=foo"], "'foo' is unknown"),
        (["parts=2", *words, "limit.gpuz=1"], "unknown key 'limit.gpuz'"),
        (["parts=2", *words, "heldout_shar=0.1"], "did you mean 'heldout_share'"),
        (["parts=2", *words, "heldout_share=2"], "must lie in 0..1"),
        (["parts=2", *words, "vocab_size=many"], "must be of type int"),
        (["parts=2", "out=o", "corpus=embedded"], "is for input=FILE"),
        (["parts=2", "out=o", "input=mistyped"], "input='mistyped' does not exist"),
    ):
        assert main(["prepare", str(jobs), *wrong]) == 2
        told = capsys.readouterr().err
        assert (sentence in told, told.count("\n")) == (True, 1), told
        assert not jobs.exists()
    write_preparation(jobs, 2, ["input=typo", "out=o"])
    write_preparation(jobs, 3, ["input=right", "out=o"])
    assert read_json(jobs / "preparation.json") == {"parts": 3, "options": ["input=right", "out=o"]}
    (jobs / "launch").mkdir()
    (jobs / "launch/ledger.jsonl").touch()
    with pytest.raises(LaunchError, match="holds another preparation"):
        write_preparation(jobs, 2, ["input=typo", "out=o"])


def test_preflight_of_this_machine_tells_what_is_there(tmp_path: Path) -> None:
    (machine,) = check_machines(tmp_path, load_cluster([]))
    seen = machine["seen"]
    assert seen["imports"]["torch"][0].isdigit()
    assert seen["collective"] == {"backend": "gloo", "processes": 2}
    assert [seen["disk"][name] for name in ("locks", "creates_once", "replaces")] == [True] * 3
    assert f"study on {seen['disk']['filesystem']}" in report_lines([machine])[0]
    assert not [sentence for sentence in machine["wrong"] if not sentence.startswith(("bfloat16 takes", "the study's folder"))]
    assert report_lines([machine])[0].startswith("this machine: ")


GOOD_DISK = {"free_gib": 900.0, "locks": True, "creates_once": True, "replaces": True}
GOOD = {
    "host": "n1", "python": "3.11.7", "imports": {"torch": "2.10.0"}, "gpus": ["H100"] * 8, "bf16": {"relative_error": 0.004},
    "collective": {"backend": "nccl", "processes": 8}, "disk": {"free_gib": 900.0, "locks": True}, "clock": 0.1,
    "commands": ["sbatch", "scontrol"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({}, ""),
        ({"imports": {"torch": "error: ImportError: libcudart"}}, "torch cannot be imported (ImportError: libcudart)"),
        ({"gpus": ["H100"] * 7}, "torch sees 7 GPUs of 8"),
        ({"bf16": {"error": "RuntimeError: no kernel"}}, "bf16: RuntimeError: no kernel"),
        ({"bf16": {"relative_error": 0.5}}, "bfloat16 products are off by 50%"),
        ({"bf16": {"relative_error": 0.0, "times_float32": 28.0}}, "takes 28 times as long"),
        ({"collective": {"error": "RuntimeError: nccl"}}, "collective: RuntimeError: nccl"),
        ({"disk": {"free_gib": 0.5, "locks": True}}, "0.5 GiB of free space"),
        ({"disk": {"free_gib": 9.0, "locks": False}}, "has no locks"),
        ({"disk": GOOD_DISK | {"creates_once": False}}, "does not create a file once only"),
        ({"disk": GOOD_DISK | {"replaces": False}}, "shows replaced ones late"),
        ({"disk": GOOD_DISK | {"letter": False}}, "is not seen there"),
        ({"disk": GOOD_DISK | {"letter": True, "options": "rw,vers=3,local_lock=none"}}, ""),
        ({"disk": GOOD_DISK | {"options": "rw,vers=3,nolock,addr=10.0.0.1"}}, "mounted with nolock: locks tell nothing between"),
        ({"disk": GOOD_DISK | {"options": "rw,local_lock=flock"}}, "mounted with local_lock=flock"),
        ({"disk": GOOD_DISK | {"options": "rw,localflock"}}, "mounted with localflock"),
        ({"clock": -42.0}, "the clock is -42 s off"),
        ({"commands": ["sbatch"]}, "scontrol are not on PATH in jobs"),
        ({"error": "srun: command not found"}, "the check itself did not run: srun: command not found"),
    ],
)
def test_preflight_says_what_is_wrong(change: dict[str, object], sentence: str) -> None:
    wrong = preflight._judged("type", GOOD | change, gpus=8, bf16=True, needs_commands=True)["wrong"]
    assert [sentence in found for found in wrong] == ([True] if sentence else [])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_slow_bfloat16_is_told_where_a_run_is_planned_in_it(tmp_path: Path, dtype: str) -> None:
    assert preflight._wants_bf16(tmp_path)  # nothing is planned yet
    config = arm_config("baseline", size="tiny", train={"steps": 9, "dtype": dtype})
    plan_real_runs(tmp_path, [arm_config("baseline", size="tiny", train={"steps": 8}), config])
    assert preflight._wants_bf16(tmp_path) is (dtype == "bfloat16")
    slow = GOOD | {"bf16": {"relative_error": 0.0, "times_float32": 28.0}}
    assert preflight._judged("type", slow, gpus=8, bf16=False, needs_commands=True)["wrong"] == []


def test_the_filesystem_of_a_folder_is_that_of_the_longest_mount_point(tmp_path: Path) -> None:
    inner = tmp_path / "a b"
    inner.mkdir()
    mounts = f"/dev/x / ext4 rw 0 0\nserver:/s {tmp_path} nfs4 rw,vers=4.2 0 0\nmgs:/l {tmp_path}/a\\040b lustre rw,flock 0 0\n"
    assert filesystem(tmp_path, mounts) == ("nfs4", "rw,vers=4.2")
    assert filesystem(inner, mounts) == ("lustre", "rw,flock")
    assert filesystem(Path("/"), mounts) == ("ext4", "rw")


def test_a_letter_from_another_machine_is_seen_or_not(tmp_path: Path) -> None:
    letter = tmp_path / "abc.letter"
    assert not _is_seen(letter)
    letter.write_text("abc.letter")
    assert _is_seen(letter)


def install_nodes(folder: Path, monkeypatch: pytest.MonkeyPatch, *nodes: str) -> None:
    """The fake SLURM with a sinfo that lists `nodes`."""
    for name, value in install(folder).items():
        monkeypatch.setenv(name, value)
    (folder / "sinfo").write_text("#!/bin/sh\n" + "".join(f"echo '{node}'\n" for node in nodes))
    (folder / "sinfo").chmod(0o755)


def test_a_check_whose_job_never_starts_is_told_and_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_nodes(tmp_path / "slurm", monkeypatch, "n1|h100|gpu:8|64")
    (tmp_path / "slurm/queue.txt").write_text("4711 PENDING\n")
    make_study(tmp_path / "study", {"steps": 1}, {"steps": 2}, gpus=4)
    monkeypatch.setattr(preflight, "WAIT_SECONDS", 0)
    (machine,) = check_machines(tmp_path / "study", load_cluster(["cluster=slurm"]))
    assert machine["wrong"] == ["the check itself did not run: job 4711 was still PENDING after 0 s, and is cancelled"]
    assert "--gpus-per-node=4" in (tmp_path / "slurm/script-0.sh").read_text()  # as many as the plan's runs use
    assert "scancel --quiet 4711" in (tmp_path / "slurm/calls.txt").read_text()


def test_a_node_types_job_asks_for_a_node_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_nodes(tmp_path / "slurm", monkeypatch, "n1|h100|gpu:8|64", "n2|h100|gpu:8|64", "c1|(null)|(null)|128")
    (tmp_path / "study").mkdir()
    found = check_machines(tmp_path / "study", load_cluster(["cluster=slurm", "partition=gpu"]))
    assert [machine["type"] for machine in found] == ["h100, gpu:8, 64 cores", "128 cores"]
    assert all("did not run" in machine["wrong"][0] for machine in found)  # the fake runs nothing
    scripts = [path.read_text() for path in sorted((tmp_path / "slurm").glob("script-*.sh"))]
    assert ["--nodelist=n1" in scripts[0], "--nodelist=c1" in scripts[1], "--partition=gpu" in scripts[1]] == [True] * 3


def test_jobs_of_a_killed_call_are_not_taken_for_another_preparation(
    tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "jobs"
    words = ["prepare", str(folder), "parts=2", f"input={write_input(tmp_path)}", f"out={tmp_path / 'data'}", "cluster=slurm"]
    with monkeypatch.context() as patch:
        patch.setattr("launch.order._record", interrupted)
        with pytest.raises(Killed):
            main([*words, "speech_vocab=540"])
    (slurm / "queue.txt").write_text("4711_0 PENDING\n4711_1 PENDING\n")
    assert main([*words, "speech_vocab=550"]) == 2
    assert "holds another preparation" in capsys.readouterr().err
    assert main([*words, "speech_vocab=540"]) == 0
    assert sorted(tries[0].job_id for tries in read_attempts(folder).values()) == ["4711_0", "4711_1"]


class Killed(BaseException):
    pass


def interrupted(*_: object) -> None:
    raise Killed


def test_a_preparation_that_sbatch_refused_may_be_given_other_options(tmp_path: Path, slurm: Path) -> None:
    words = ["prepare", str(tmp_path / "jobs"), "parts=2", f"input={write_input(tmp_path)}", f"out={tmp_path / 'data'}"]
    assert main([*words, "cluster=slurm", "cluster.partition=nowhere"]) == 2
    assert main([*words, "cluster=slurm", "speech_vocab=550"]) == 0


def test_debug_is_refused_for_a_preparation_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["parts=2", f"input={write_input(tmp_path)}", f"out={tmp_path / 'data'}", "cluster=debug"]
    assert main(["prepare", str(tmp_path / "jobs"), *words]) == 2
    assert capsys.readouterr().err.startswith("error: cluster=debug trains runs")
    assert not (tmp_path / "jobs").exists()


def test_an_option_of_the_cluster_without_its_prefix_is_told_with_it() -> None:
    with pytest.raises(ConfigError, match=r"write cluster\.partition=low"):
        split_words(["parts=2", "out=x", "partition=low"])
