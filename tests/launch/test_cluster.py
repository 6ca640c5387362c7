"""Clusters by name and override: strict, with the nearest name where one is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from launch.cluster import LocalCluster, SlurmCluster, available_cores, load_cluster
from launch.environment import job_environment
from launch.executor import visible_gpu
from lst.errors import ConfigError


def test_local_takes_one_run_a_core_unless_told_otherwise() -> None:
    assert isinstance(load_cluster([]), LocalCluster)
    assert load_cluster(["cluster=local"]).slots == available_cores()  # type: ignore[union-attr]
    assert load_cluster(["threads=1000"]).slots == 1  # type: ignore[union-attr]
    assert load_cluster(["gpus=3"]).slots == 3  # type: ignore[union-attr]
    assert load_cluster(["cluster.gpus=3", "+parallel=6"]).slots == 6  # type: ignore[union-attr]


def test_options_of_sbatch_pass_through_and_unset_ones_are_absent() -> None:
    cluster = load_cluster(
        ["cluster=slurm", "options.reservation=night", "options.no_kill=true", "options.nice=null", "options.hint=false"]
    )
    assert isinstance(cluster, SlurmCluster)
    assert cluster.options == (("no-kill", True), ("reservation", "night"))
    assert (cluster.partition, cluster.timeout_min) == (None, None)


@pytest.mark.parametrize(
    "line",
    [
        "timeout_min: 10:00",
        "timeout_min: 1:30:00  # a day",
        "options: {begin: 16:00}",
        "options: {a: 1, begin: 16:00, b: 2}",
        'options: {"begin": 16:00}',
        "options:\n  comment-text: 'a # b'\n  begin:\n    16:00",
        "environment: 'a # b'\ntimeout_min: 10:00",
    ],
)
def test_numbers_of_base_60_in_a_file_are_refused(tmp_path: Path, line: str) -> None:
    site = tmp_path / "site.yaml"
    site.write_text(f"executor: slurm\n{line}\n")
    with pytest.raises(ConfigError, match=r"says (timeout_min|begin): 1[0-9:]+, which YAML reads to base 60"):
        load_cluster([f"cluster={site}"])


def test_what_looks_like_base_60_and_is_a_text_stays_one(tmp_path: Path) -> None:
    site = tmp_path / "site.yaml"
    site.write_text(
        "# from: 10:00\nexecutor: slurm # to: 20:00\n"
        "options: {begin: '16:00', comment-text: \"at: 10:00\", wckey: 'a: 10:00, b', time-min: 04:00:00}\n"
    )
    cluster = load_cluster([f"cluster={site}", "options.deadline=17:30"])
    assert isinstance(cluster, SlurmCluster)
    assert dict(cluster.options) == {
        **{"begin": "16:00", "comment-text": "at: 10:00", "wckey": "a: 10:00, b", "time-min": "04:00:00"},
        "deadline": "17:30",
    }
    with pytest.raises(ConfigError, match=r"timeout_min='10:00' must be of type int"):
        load_cluster(["cluster=slurm", "timeout_min=10:00"])


def test_a_users_own_file_is_read(tmp_path: Path) -> None:
    site = tmp_path / "site.yaml"
    site.write_text("executor: slurm\npartition: gpu\noptions: {licenses: 'a:1'}\n")
    cluster = load_cluster([f"cluster={site}", "qos=low"])
    assert isinstance(cluster, SlurmCluster)
    assert (cluster.partition, cluster.qos, cluster.options) == ("gpu", "low", (("licenses", "a:1"),))


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["cluster=slrm"], "cluster='slrm' is unknown; did you mean 'slurm'?"),
        (["cluster=nowhere.yaml"], "cluster=nowhere.yaml does not exist"),
        (["cluster=slurm", "partitoin=x"], "unknown key 'cluster.partitoin'; did you mean 'partition'?"),
        (["local"], "'local' is no override; write key=value"),
        (["cluster=slurm", "options.time=5"], "write cluster.timeout_min=VALUE"),
        (["cluster=slurm", "options.partition=x"], "write cluster.partition=VALUE"),
        (["cluster=slurm", "options.output=x"], "is set by the launcher itself"),
        (["cluster=slurm", "options.a;b=x"], "is no sbatch option"),
        (["cluster=slurm", "mem_gb=0"], "cluster.mem_gb=0.0 must be positive"),
        (["environment=A B"], "is no variable's name"),
        (["executor=cloud"], "cluster.executor='cloud' is unknown"),
    ],
)
def test_wrong_overrides_name_the_remedy(overrides: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(sentence)) as caught:
        load_cluster(overrides)
    assert "\n" not in str(caught.value)


def test_a_line_break_cannot_enter_the_batch_script(tmp_path: Path) -> None:
    site = tmp_path / "site.yaml"
    for text in ('partition: "gpu\\ncurl evil"', 'options: {reservation: "a\\nb"}'):
        site.write_text(f"executor: slurm\n{text}\n")
        with pytest.raises(ConfigError, match="line"):
            load_cluster([f"cluster={site}"])


def test_jobs_get_the_allowed_variables_and_our_python() -> None:
    base = {
        "PATH": "/bin",
        "LC_ALL": "C",
        "AWS_SECRET": "x",
        "PYTHONPATH": "/evil",
        "PYTHONSTARTUP": "y",
        "MINE_A": "1",
        "OMP_NUM_THREADS": "64",
        "CC": "gcc-12",
        "CXX": "g++-12",
        "TORCHINDUCTOR_CACHE_DIR": "/scratch",
    }
    made = job_environment(base, root=Path("/code"), threads=2, allow=("MINE_*",))
    assert {key: made.get(key) for key in base} == {
        "PATH": "/bin", "LC_ALL": "C", "AWS_SECRET": None, "PYTHONPATH": "/code", "PYTHONSTARTUP": None,
        "MINE_A": "1", "OMP_NUM_THREADS": "2", "CC": "gcc-12", "CXX": "g++-12", "TORCHINDUCTOR_CACHE_DIR": "/scratch",
    }  # fmt: skip
    assert made["PYTHONSAFEPATH"] == "1"


def test_gpus_are_taken_from_those_visible_here() -> None:
    assert visible_gpu(None, None) == ""
    assert visible_gpu(None, 1) == "1"
    assert visible_gpu("4,6", 1) == "6"
