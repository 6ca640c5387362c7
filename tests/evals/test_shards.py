"""Evaluations shared between processes: joined to what one process gives, after kills and torn files too."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lst.errors import ConfigError, RunFailed
from lst.evals import asr, choice_run, tts
from lst.evals.__main__ import main
from lst.evals.asr import run_asr
from lst.evals.choice_run import run_choices
from lst.evals.evaluation_folder import EvaluationFolder, Shard
from lst.evals.make_items import prepare_items
from lst.evals.tts import run_tts
from lst.file_lock import locked
from lst.model import build_model, export_checkpoint
from lst.records import read_jsonl
from lst.train import layout
from tests.evals.item_files import spoken_items, write_lines
from tests.train.tiny_run import tiny_config

RECORDS = ("eval.jsonl", "items.jsonl")


@pytest.fixture(scope="module")
def checkpoint(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    config = tiny_config("lst_static", tiny_data)
    return export_checkpoint(build_model(config), config, tmp_path_factory.mktemp("c") / "model")


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("items")
    prepare_items({"eval": str(write_lines(folder / "cloze.jsonl", spoken_items(10))), "out": str(folder / "set")})
    return folder / "set"


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
def test_shards_join_to_the_bytes_of_one_process_whoever_is_last(
    checkpoint: Path, items: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: tuple[int, ...]
) -> None:
    monkeypatch.setattr(choice_run, "PART", 3)  # four directions of four parts, of which the last is short
    run_choices(checkpoint, {"items": str(items), "out": str(tmp_path / "whole")})
    *others, last = order
    shared = {"items": str(items), "out": str(tmp_path / "shared")}
    for number in others:
        assert f"shard {number}/3 of" in run_choices(checkpoint, shared | {"shard": f"{number}/3"})
        assert not (tmp_path / "shared").exists()
    assert "written:" in run_choices(checkpoint, shared | {"shard": f"{last}/3"})
    for name in RECORDS:
        assert (tmp_path / "shared" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert {p.name for p in (tmp_path / "shared").iterdir()} == {"evaluation.json", *RECORDS}
    assert list(tmp_path.glob(".*")) == []
    assert "there already" in run_choices(checkpoint, shared | {"shard": f"{others[0]}/3"})


def test_a_killed_shard_goes_on_and_another_division_takes_what_is_there(
    checkpoint: Path, items: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice_run, "PART", 4)
    options = {"items": str(items), "directions": "S->S,T->T"}
    run_choices(checkpoint, options | {"out": str(tmp_path / "whole")})
    shared, parts = options | {"out": str(tmp_path / "shared")}, tmp_path / ".shared.work" / "parts"

    def killed() -> None:
        from lst.evals import choices

        real, calls = choices.score_choices, 0

        def dies(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments)

        choices.score_choices = dies
        run_choices(checkpoint, shared | {"shard": "2/2"})

    process = multiprocessing.get_context("fork").Process(target=killed)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert [p.name for p in parts.iterdir()] == ["00001.jsonl"]
    stamp = (parts / "00001.jsonl").stat().st_mtime_ns
    run_choices(checkpoint, shared | {"shard": "1/3"})
    assert sorted(p.name for p in parts.glob("*.jsonl")) == ["00000.jsonl", "00001.jsonl", "00003.jsonl"]
    assert (parts / "00001.jsonl").stat().st_mtime_ns == stamp
    (parts / "00003.jsonl").write_bytes((parts / "00003.jsonl").read_bytes()[:-1])  # a torn copy is made again
    run_choices(checkpoint, shared)
    for name in RECORDS:
        assert (tmp_path / "shared" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


WALL_CLOCK = (*tts.WALL_CLOCK, "real_time_factor")


@pytest.mark.parametrize(("run", "module"), [(run_asr, asr), (run_tts, tts)])
def test_asr_and_tts_are_shared_too(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., str], module: Any
) -> None:
    monkeypatch.setattr(module, "PART", 2)
    options: dict[str, Any] = {"utterances": 5, "words": 3, "seed": 1}
    options |= {"vocoder": "none", "seconds_per_word": 0.2, "temperature": 1.0} if module is tts else {}
    run(checkpoint, options | {"out": str(tmp_path / "whole")})
    for shard in ("2/2", "1/2"):
        told = run(checkpoint, options | {"out": str(tmp_path / "shared"), "shard": shard})
    assert "written:" in told

    def plain(folder: str, name: str) -> list[dict[str, Any]]:
        rows = [r for r in read_jsonl(tmp_path / folder / name) if r.get("metric") not in WALL_CLOCK]
        return [{key: value for key, value in r.items() if key not in WALL_CLOCK} for r in rows]

    assert all(plain("shared", name) == plain("whole", name) for name in RECORDS)


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_no_share_of_the_work_is_refused(checkpoint: Path, items: Path, tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=f"shard={text} is no share of the work"):
        run_choices(checkpoint, {"items": str(items), "out": str(tmp_path / "o"), "shard": text})
    assert list(tmp_path.iterdir()) == []


def test_two_processes_on_one_shard_or_two_evaluations_in_one_folder_are_refused(tmp_path: Path) -> None:
    first, same = (EvaluationFolder(tmp_path / "o", {"a": 1}, shard="1/2") for _ in range(2))
    other = EvaluationFolder(tmp_path / "o", {"a": 2}, shard="2/2")
    with first.records([1, 1], lambda part: [{"part": part}]) as found:
        assert found is None
        with pytest.raises(RunFailed, match="lock-1-of-2"), same.records([1, 1], lambda _: []):
            raise AssertionError
        parts = list((tmp_path / ".o.work" / "parts").iterdir())
    assert [p.name for p in parts] == ["00000.jsonl"]
    with first._lock("lock-1-of-2"), pytest.raises(RunFailed, match="in use"), other.records([1, 1], lambda _: []):
        raise AssertionError
    assert read_jsonl(parts[0]) == [{"part": 0}]


def test_ctrl_c_tells_what_is_kept_and_leaves_nothing_where_nothing_is_done(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def stops(part: int) -> list[dict[str, int]]:
        if part == last:
            raise KeyboardInterrupt
        return [{"part": part}]

    for last, told in (
        (0, "nothing was finished, and nothing is left."),
        (1, f"are kept in '{tmp_path / '.o.work'}', and the same"),
    ):
        with pytest.raises(KeyboardInterrupt), EvaluationFolder(tmp_path / "o", {"a": 1}).records([1, 1], stops):
            raise AssertionError
        assert told in caplog.text
        assert (tmp_path / ".o.work").exists() == (last == 1)


def test_a_shard_that_comes_when_all_is_done_leaves_nothing(tmp_path: Path) -> None:
    late = EvaluationFolder(tmp_path / "o", {"a": 1}, shard="2/2")
    with EvaluationFolder(tmp_path / "o", {"a": 1}).records([1, 1], lambda part: [{"part": part}]) as found:
        assert found == [{"part": 0}, {"part": 1}]
        EvaluationFolder(tmp_path / "o", {"a": 1}).finish({}, found, [])
    with late.records([1, 1], lambda part: [{"part": part}]) as found:
        assert found is None
    assert "there already" in late.left
    assert [p.name for p in tmp_path.iterdir()] == ["o"]


def test_shards_that_start_at_once_do_not_take_each_other_for_another_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first has its own lock, and no card is there yet that says of what it is a shard; the second goes ahead of it."""
    first, second = (EvaluationFolder(tmp_path / "o", {"a": 1}, shard=f"{i}/2") for i in (1, 2))
    other = EvaluationFolder(tmp_path / "o", {"a": 2}, shard="2/3")
    real, overtaken = first._lock, []

    def after_the_second(name: str, *, wait: bool = True) -> Any:
        if name == "lock" and not overtaken:
            overtaken.append(name)
            with second.records([1, 1], lambda part: [{"part": part}]) as found:
                assert found is None
            with pytest.raises(RunFailed, match="in use"), other.records([1, 1], lambda _: []):
                raise AssertionError
        return real(name, wait=wait)

    monkeypatch.setattr(first, "_lock", after_the_second)
    with first.records([1, 1], lambda part: [{"part": part}]) as found:
        assert found == [{"part": 0}, {"part": 1}]
    assert overtaken == ["lock"]


def test_nobody_gets_the_folder_while_its_last_files_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its card is then another than that of an evaluation in the making, so it would be taken for a forsaken one, and emptied."""
    held = []

    def while_flushing(folder: Path) -> None:
        for name in ("lock", "lock-1-of-1"):
            with pytest.raises(BlockingIOError), locked(folder / name):
                raise AssertionError
            held.append(name)

    monkeypatch.setattr(layout, "flush_to_disk", while_flushing)
    evaluation = EvaluationFolder(tmp_path / "o", {"a": 1})
    with evaluation.records([1], lambda part: [{"part": part}]) as found:
        assert found is not None
        evaluation.finish({}, found, [])
    assert held == ["lock", "lock-1-of-1"]
    assert {p.name for p in (tmp_path / "o").iterdir()} == {"evaluation.json", *RECORDS}


def test_a_shard_that_waited_while_the_others_ended_makes_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for the folder's lock while the others finish, which takes the folder away under it."""
    late = EvaluationFolder(tmp_path / "o", {"a": 1}, shard="2/2")
    real, waited = late._lock, []

    def ended_meanwhile(name: str, *, wait: bool = True) -> Any:
        if name == "lock" and not waited:
            waited.append(name)
            with EvaluationFolder(tmp_path / "o", {"a": 1}).records([1, 1], lambda part: [{"part": part}]) as found:
                assert found is not None
                EvaluationFolder(tmp_path / "o", {"a": 1}).finish({}, found, [])
        return real(name, wait=wait)

    monkeypatch.setattr(late, "_lock", ended_meanwhile)
    with late.records([1, 1], lambda part: pytest.fail(f"part {part} is made again")) as found:
        assert found is None
    assert "there already" in late.left
    assert [p.name for p in tmp_path.iterdir()] == ["o"]


def test_a_diverged_model_is_told_in_one_sentence(
    tiny_data: Path, items: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config("baseline", tiny_data)
    model = build_model(config)
    next(model.parameters()).data.fill_(float("nan"))
    source = export_checkpoint(model, config, tmp_path / "model")
    assert main(["choices", str(source), f"items={items}", f"out={tmp_path / 'o'}", "directions=T->T"]) == 1
    assert "are no numbers (nan or infinite)" in capsys.readouterr().err
    assert {p.name for p in tmp_path.iterdir()} == {"model"}  # nothing was done, so nothing is left


def test_a_shard_is_written_as_it_is_given() -> None:
    assert (Shard.parse("2/4"), str(Shard.parse("2/4"))) == (Shard(2, 4), "2/4")
